// One run: its head, and its six sides. Law: the server's view is fetched once and shared by the sides; which side is
// shown, and what is selected on it, is in the URL.

import { get } from "./api.js";
import { fill, h, put, say } from "./dom.js";
import { date, shortId, since, took } from "./format.js";
import { drawGraph, showNode } from "./graph.js";
import { lend } from "./keys.js";
import { accountsBar, accountsLine, copier, status, trouble } from "./parts.js";
import { replayForm } from "./replay.js";
import { go, href, keep } from "./route.js";
import { seen } from "./seen.js";
import { effectsTable, slotsTable } from "./slots.js";
import { showSpan } from "./span.js";
import { textRows } from "./text.js";
import { waterfall } from "./waterfall.js";

const SIDES = [["waterfall", "Waterfall"], ["text", "Text"], ["graph", "Graph"], ["slots", "Slots"],
  ["effects", "Effects"], ["replay", "Replay"]];

export function showRun(root, path, query, page) {
  const id = path[1];
  const began = performance.now();
  let view = null;
  let side = null; // {name, show?(view), close?(), update?(query)}
  let name = "";
  let timer = 0;
  const stop = new AbortController();
  const head = h("header", { class: "run-head" });
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "Sides of the run" });
  const body = h("div", { class: "side", role: "tabpanel", id: "side" });
  fill(root, head, tabs, body);
  fill(head, h("h1", null, id), h("p", { class: "soft" }, "loading"));
  const unlend = lend("Run", {
    ...Object.fromEntries(SIDES.map(([key, title], n) => [String(n + 1), [title, () => turn(key)]])),
    "r": ["Replay", () => turn("replay")],
    "d": ["Pick for a diff with another run", () => go(["runs"], { a: whole(), run: whole() })],
    "Escape": ["Back to the runs", () => go(["runs"], { run: whole() })],
  });
  load();

  const whole = () => view?.header.id ?? id;

  async function load() {
    try {
      const told = await get(`runs/${encodeURIComponent(id)}`, {}, stop.signal);
      const first = view === null;
      view = told;
      seen.run = told.header.id;
      drawHead();
      if (first) open(path[2] ?? "waterfall", query);
      else {
        if (!tabs.contains(document.activeElement)) drawTabs();
        side?.show?.(view);
      }
      if (first) requestAnimationFrame(() => (seen.opened_ms = performance.now() - began));
      if (view.header.under_way) timer = setTimeout(load, view.header.status === "parked" ? 5000 : 1000);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (view === null) fill(head, h("h1", null, error.status === 404 ? "No such run" : id));
      fill(body, trouble(error), error.status === 404
        ? h("p", { class: "soft" }, "The ring keeps the newest runs; errors, slow runs and a sample are stored. ",
          "This one is in neither any more.") : null, h("p", null, h("a", { href: "#/runs" }, "Back to the runs")));
    }
  }

  function drawHead() {
    const { header, accounts, causes, unresolved } = view;
    fill(head,
      h("div", { class: "run-title" }, h("h1", null, header.label || header.flow), status(header.status, header.http),
        header.under_way ? h("span", { class: "tag" }, "under way") : null),
      h("p", { class: "run-facts" }, h("code", null, header.id), copier(header.id, "the run's id"),
        h("span", null, header.priority, " · tenant ", h("b", null, header.tenant)),
        h("span", null, "flow ", h("b", null, header.flow), ` v${header.version}`),
        header.began_unix_ms === null ? null : [
          h("time", { datetime: new Date(header.began_unix_ms).toISOString() }, date(header.began_unix_ms)), " ",
          h("span", { class: "soft" }, since(header.began_unix_ms, page.now()))],
        header.reason ? h("span", null, "by ", header.reason) : null,
        jobOf(header.id) ? h("span", null, "of ", h("a", { href: href(["jobs", jobOf(header.id)]) }, "its job")) : null,
        header.parent ? h("span", { class: "soft" }, "trace ", h("code", null, shortId(header.parent.split("-")[1] ?? header.parent))) : null),
      causes.length ? h("ul", { class: "causes" }, causes.map((line) => cause(line))) : null,
      unresolved.length ? h("ul", { class: "causes" }, unresolved.map((entry) => cause(`UNRESOLVED ${entry.text}`))) : null,
      header.journal ? standing(header.journal) : null,
      page.session.journal && (unresolved.length || header.journal?.aside) && !header.journal?.reason
        ? h("p", null, h("a", { href: href(["cases"], { run: header.id }) }, "Look at it among the cases")) : null,
      accountsBar(accounts), accountsLine(accounts));
    document.title = `${header.label || header.flow} ${header.http ?? header.status} · run`;
  }

  function open(wanted, chosen) {
    const known = SIDES.some(([key]) => key === wanted) ? wanted : "waterfall";
    side?.close?.();
    name = known;
    drawTabs();
    body.setAttribute("aria-labelledby", `tab-${known}`);
    fill(body);
    side = OPEN[known](body, view, chosen, id);
    say(SIDES.find(([key]) => key === known)[1]);
  }

  function drawTabs() {
    fill(tabs, SIDES.map(([key, title], n) => h("a", { role: "tab", href: href(["runs", id, key]), id: `tab-${key}`,
      "aria-selected": String(key === name), "aria-controls": "side", "aria-keyshortcuts": n + 1 }, title,
    key === "slots" ? tally(view.slots.length) : key === "effects" ? tally(view.effects.total) : null)));
  }

  function turn(wanted) {
    if (view && wanted !== name) go(["runs", id, wanted]);
  }

  return {
    update(now, chosen) {
      if (!view) return;
      const wanted = now[2] ?? "waterfall";
      if (wanted !== name) open(wanted, chosen);
      else side?.update?.(chosen);
    },
    close() {
      stop.abort();
      clearTimeout(timer);
      side?.close?.();
      unlend();
      seen.run = null;
    },
  };
}

/** The id of the job whose run this is. */
function jobOf(id) {
  return id.startsWith("job_") ? id.slice(4).split(".")[0] : "";
}

/** How a run stands that is only in the journal. */
function standing({ aside, reason, waits }) {
  const lines = [
    aside ? h("li", { "data-cause": "UNRESOLVED" }, h("b", null, "STUCK"), " ", aside) : null,
    reason ? h("li", { "data-cause": "RESOLVED" }, h("b", null, "RESOLVED"), " by ", reason) : null,
    ...(waits ?? []).map((one) => h("li", { "data-cause": "WAITS" }, h("b", null, "PARKED"),
      ` it waits for '${one.signal}', until ${date(one.expires_unix_ms)} at most`, one.came ? "; that has come" : "")),
  ].filter(Boolean);
  return lines.length ? h("ul", { class: "causes" }, lines) : null;
}

function tally(number) {
  return number ? h("span", { class: "tally" }, number) : null;
}

/** `SLOW payment.charge took …`: the word is the loud part. */
function cause(line) {
  const [word, ...rest] = line.split(" ");
  return word === word.toUpperCase()
    ? h("li", { "data-cause": word }, h("b", null, word), " ", rest.join(" "))
    : h("li", null, line);
}

const OPEN = {
  waterfall(root, view, chosen, id) {
    const details = h("aside", { class: "details", "aria-label": "Selected span", "aria-live": "polite" });
    const chart = waterfall({
      selected: chosen.span === undefined ? null : Number(chosen.span),
      onSelect: (span) => {
        keep({ span: span?.id ?? "" });
        showSpan(details, span, view, chart);
      },
      more: (from) => get(`runs/${encodeURIComponent(id)}/spans`, { from, count: 5000 }),
    });
    put(root, tools(chart), h("div", { class: "beside" }, chart.element, details), legend());
    chart.show(view);
    const span = view.spans.items.find((item) => String(item.id) === chosen.span);
    showSpan(details, span ?? null, view, chart);
    const unlend = lend("Waterfall", chart.bindings);
    seen.waterfall = chart.statistics;
    return {
      show(told) {
        view = told;
        chart.show(told);
      },
      close() {
        unlend();
        chart.close();
        seen.waterfall = null;
      },
    };
  },
  text: (root, view, chosen, id) => textRows(root, view, chosen, id),
  graph(root, view, chosen, id) {
    const details = h("aside", { class: "details", "aria-label": "Selected step", "aria-live": "polite" });
    const choose = (node) => {
      keep({ step: node?.id ?? "" });
      if (node) graph.select(node.id);
      showNode(details, node, node?.step ? href(["runs", id, "replay"], { until: node.step }) : null);
    };
    let graph = drawGraph(view.graph, view.header.total_ns, choose);
    const frame = h("div", { class: "beside" }, graph.element, details);
    put(root, frame);
    const find = (key) => view.graph.nodes.find((node) => node.id === key) ?? null;
    choose(find(chosen.step));
    const boxes = () => view.graph.nodes.filter((node) => node.shape !== "point");
    const step = (by) => {
      const list = boxes();
      const at = list.findIndex((node) => node.id === new URLSearchParams(location.hash.split("?")[1]).get("step"));
      choose(list[Math.min(list.length - 1, Math.max(0, at + by))] ?? null);
    };
    const unlend = lend("Graph", {
      "j": ["Next step", () => step(1)], "ArrowDown": ["Next step", () => step(1)],
      "k": ["Previous step", () => step(-1)], "ArrowUp": ["Previous step", () => step(-1)],
    });
    return {
      show(told) {
        view = told;
        graph = drawGraph(view.graph, view.header.total_ns, choose);
        frame.replaceChild(graph.element, frame.firstChild);
      },
      close: unlend,
    };
  },
  slots(root, view, chosen, id) {
    fill(root, slotsTable(view, id));
    return { show: (told) => fill(root, slotsTable(told, id)) };
  },
  effects(root, view) {
    put(root, effectsTable(view));
    return { show: (told) => fill(root, effectsTable(told)) };
  },
  replay: (root, view, chosen, id) => replayForm(root, view, chosen, id),
};

function tools(chart) {
  const button = (key, text) => h("button", { type: "button", class: "quiet small", "aria-keyshortcuts": key,
    onclick: () => chart.bindings[key][1]() }, text, " ", h("kbd", null, key));
  return h("div", { class: "tools", role: "toolbar", "aria-label": "Waterfall" }, button("+", "in"), button("-", "out"),
    button("0", "whole"), button("s", "squeeze"), button("n", "next trouble"),
    h("span", { class: "soft wide-only" }, "drag to zoom, Ctrl+wheel too"));
}

function legend() {
  const items = [["cpu", "cpu"], ["io", "io"], ["turn", "turn"], ["admission", "admission"], ["parked", "parked"],
    ["undo", "↩ rollback"], ["hedge", "+ hedge"], ["failed", "✗ failed"], ["cut", "⊘ cut, ≠ lost"], ["late", "◷ late"]];
  return h("ul", { class: "legend", "aria-label": "Legend" }, items.map(([kind, word]) =>
    h("li", null, h("i", { class: "swatch", "data-account": kind, "aria-hidden": "true" }), word)));
}
