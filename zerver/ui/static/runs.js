// The list of runs: as they happen, filtered, walked with keys. Law: the list never moves under a reader: while
// something but the first row is selected, the list is scrolled, or it is paused, what arrives waits behind a button.

import { get } from "./api.js";
import { afterRest, fill, h, perFrame, say } from "./dom.js";
import { ago, count, date, rate, shortId, took } from "./format.js";
import { lend } from "./keys.js";
import { meter, spark, status, trouble } from "./parts.js";
import { go, href, keep } from "./route.js";

const MOST = 400;
const FILTERS = ["route", "status", "tenant", "slow_ms", "failed", "unresolved", "id"];
const STATUSES = ["running", "done", "failed", "defect", "deadline", "cancelled", "refused"];

export function showRuns(root, path, query, page) {
  const runs = new Map(); // id -> summary, newest first
  const rows = new Map(); // id -> its elements
  const waiting = new Map();
  let filters = pick(query);
  let selected = query.run ?? "";
  let first = query.a ?? "";
  let paused = false;
  let more = false;
  let asked = null;

  const form = filterForm(filters, (changed) => {
    keep({ ...blank(), ...changed, run: "" });
    filters = changed;
    selected = "";
    load();
  });
  const routes = h("div", { class: "routes" });
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: togglePause }, "Pause");
  const arrived = h("button", { type: "button", class: "chip", hidden: true, onclick: letIn });
  const picked = h("p", { class: "picked", hidden: true });
  const body = h("tbody");
  const grid = h("table", { class: "table runs", role: "grid", "aria-label": "Runs" },
    h("thead", null, h("tr", null, ["", "When", "What", "Status", "Took", "Tenant", "Why"].map((title, i) =>
      h("th", { scope: "col", class: i === 4 ? "number" : null }, title)))), body);
  const older = h("button", { type: "button", hidden: true, onclick: loadOlder }, "Older runs");
  const empty = h("p", { class: "soft empty", hidden: true });
  const wrong = h("div");
  fill(root, h("h1", { class: "unseen" }, "Runs"), routes,
    h("div", { class: "tools" }, form.element, h("span", { class: "grow" }), arrived, pause), picked, wrong, grid,
    empty, older);

  const draw = perFrame(drawNow);
  const stopHearing = page.hear({ runs: onRuns, running: onRunning, overview: drawRoutes, hello: load });
  const clockwork = setInterval(drawAges, 1000);
  const unlend = lend("Runs", {
    "j": ["Next run", () => move(1)],
    "ArrowDown": ["Next run", () => move(1)],
    "k": ["Previous run", () => move(-1)],
    "ArrowUp": ["Previous run", () => move(-1)],
    "Enter": ["Open the run", () => selected && go(["runs", selected])],
    "d": ["Pick for a diff; the second one opens it", () => selected && pickForDiff(selected)],
    "r": ["Replay the run", () => selected && go(["runs", selected, "replay"])],
    "/": ["Search by route or id", () => form.focus("route")],
    "f": ["Filter by status", () => form.focus("status")],
    "p": ["Pause, or go on", togglePause],
    "Escape": ["Select nothing, pick nothing", clear],
  });
  load();
  showPicked();
  if (page.last.overview) drawRoutes(page.last.overview);

  async function load() {
    asked?.abort();
    asked = new AbortController();
    try {
      const told = await get("runs", { ...filters, limit: 100 }, asked.signal);
      runs.clear();
      waiting.clear();
      for (const run of told.runs) runs.set(run.id, run);
      more = told.more;
      fill(wrong);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") fill(wrong, trouble(error));
    }
  }

  async function loadOlder() {
    const until = [...runs.values()].at(-1)?.began_unix_ms;
    try {
      const told = await get("runs", { ...filters, limit: 100, until });
      const before = runs.size;
      for (const run of told.runs) if (!runs.has(run.id)) runs.set(run.id, run);
      more = told.more && runs.size > before;
      draw();
    } catch (error) {
      fill(wrong, trouble(error));
    }
  }

  function onRuns(told) {
    for (const run of told.runs) {
      if (!fits(run, filters)) {
        if (runs.delete(run.id)) draw(); // it was under way, and has become something else
      } else if (runs.has(run.id)) {
        runs.set(run.id, run);
        draw();
      } else waiting.set(run.id, run);
    }
    settle();
  }

  function onRunning(told) {
    const going = new Set(told.runs.map((run) => run.id));
    for (const run of told.runs) {
      if (!fits(run, filters)) continue;
      if (runs.has(run.id)) runs.set(run.id, run);
      else waiting.set(run.id, run);
    }
    // Ended, and its summary was left out: better gone than running for ever.
    if (told.total === told.runs.length) {
      for (const [id, run] of runs) if (run.status === "running" && !going.has(id)) runs.delete(id);
    }
    settle();
  }

  function settle() {
    const still = !paused && window.scrollY < 40 && (!selected || [...runs.keys()][0] === selected || !runs.has(selected));
    if (still) letIn();
    else showArrived();
  }

  function letIn() {
    if (waiting.size) {
      const all = [...waiting.values(), ...runs.values()].sort(newestFirst).slice(0, Math.max(MOST, runs.size));
      waiting.clear();
      runs.clear();
      for (const run of all) runs.set(run.id, run);
    }
    draw();
    showArrived();
  }

  function showArrived() {
    arrived.hidden = waiting.size === 0;
    arrived.textContent = `${count(waiting.size)} new`;
  }

  function drawNow() {
    const longest = Math.max(1, ...[...runs.values()].map((run) => run.took_ns ?? 0));
    let at = body.firstChild;
    for (const run of runs.values()) {
      let row = rows.get(run.id);
      if (!row) rows.set(run.id, (row = makeRow(run.id)));
      row.show(run, longest);
      if (row.element === at) at = at.nextSibling;
      else body.insertBefore(row.element, at);
    }
    for (const [id, row] of rows) {
      if (runs.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    older.hidden = !more;
    empty.hidden = runs.size > 0;
    empty.textContent = Object.keys(filters).length
      ? "No run fits the filter." : "No run yet. The first request appears here by itself.";
    mark();
    drawAges();
  }

  function makeRow(id) {
    const when = h("td", { class: "when" });
    const what = h("td", { class: "what" });
    const word = h("td", { class: "word" });
    const time = h("td", { class: "number took" });
    const tenant = h("td", { class: "tenant" });
    const why = h("td", { class: "why" });
    const check = h("td", { class: "pick", "aria-hidden": "true" });
    const element = h("tr", { "data-id": id, tabindex: "-1", onclick: (event) => {
      select(id);
      if (!event.target.closest("a") && !String(getSelection())) go(["runs", id]);
    } }, check, when, what, word, time, tenant, why);
    let drawn = "";
    return { element, when, check, show(run, longest) {
      const now = `${run.status} ${run.http} ${run.took_ns} ${longest}`;
      if (now === drawn) return;
      drawn = now;
      when.title = date(run.began_unix_ms);
      when.dataset.at = run.began_unix_ms;
      fill(what, h("a", { href: href(["runs", id]), tabindex: "-1" }, run.label || run.flow), " ",
        h("span", { class: "id" }, shortId(id)));
      fill(word, status(run.status, run.http), run.unresolved ? h("span", { class: "loud" }, " unresolved") : null);
      fill(time, took(run.took_ns), meter(run.took_ns ?? 0, longest, run.status));
      fill(tenant, run.tenant, run.priority === "default" ? null : h("span", { class: "soft" }, ` ${run.priority}`));
      fill(why, run.cause ?? "", run.kept ? h("span", { class: "tag", title: "why it is stored" }, run.kept) : null);
      why.title = run.cause ?? "";
    } };
  }

  function drawAges() {
    for (const { when } of rows.values()) {
      const text = ago(Number(when.dataset.at), page.now());
      if (when.textContent !== text) when.textContent = text;
    }
  }

  function drawRoutes(overview) {
    const list = overview.routes.slice(0, 8);
    fill(routes, list.map((route) => h("button", { type: "button", class: "route",
      "aria-pressed": String(filters.route === route.label), onclick: () => form.set("route",
        filters.route === route.label ? "" : route.label) },
      h("span", { class: "route-name" }, route.label), spark(route.spark),
      h("span", { class: "route-numbers" }, h("b", null, rate(route.rate)), "/s  p50 ", h("b", null, took(route.p50_ns)),
        "  p99 ", h("b", null, took(route.p99_ns)),
        route.errors ? h("span", { class: "loud" }, `  ${count(route.errors)} failed`) : null))));
  }

  function move(by) {
    const ids = [...runs.keys()];
    if (!ids.length) return;
    const at = ids.indexOf(selected);
    select(ids[Math.min(ids.length - 1, Math.max(0, at < 0 ? 0 : at + by))]);
    const { element } = rows.get(selected) ?? {};
    element?.focus({ preventScroll: true });
    element?.scrollIntoView({ block: "nearest" });
  }

  function select(id) {
    selected = id;
    keep({ run: id });
    mark();
    settle();
  }

  function mark() {
    for (const [id, { element, check }] of rows) {
      element.setAttribute("aria-selected", String(id === selected));
      element.tabIndex = id === selected ? 0 : -1;
      check.textContent = id === first ? "A" : "";
    }
    if (!rows.has(selected) && body.firstElementChild) body.firstElementChild.tabIndex = 0;
  }

  function pickForDiff(id) {
    if (first && first !== id) {
      go(["diff"], { a: first, b: id });
      return;
    }
    first = first === id ? "" : id;
    keep({ a: first });
    mark();
    showPicked();
  }

  function showPicked() {
    picked.hidden = !first;
    fill(picked, h("b", null, "A"), ` ${shortId(first)} is picked. `, h("kbd", null, "d"),
      " on another run compares the two. ",
      h("button", { type: "button", class: "quiet small", onclick: () => pickForDiff(first) }, "unpick"));
    if (first) say("Picked for a diff");
  }

  function togglePause() {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    pause.textContent = paused ? "Go on" : "Pause";
    settle();
  }

  function clear() {
    selected = "";
    first = "";
    keep({ run: "", a: "" });
    mark();
    showPicked();
    settle();
  }

  return {
    update(_, changed) {
      const now = pick(changed);
      first = changed.a ?? "";
      selected = changed.run ?? "";
      showPicked();
      if (JSON.stringify(now) === JSON.stringify(filters)) return mark();
      filters = now;
      form.show(filters);
      return load();
    },
    close() {
      asked?.abort();
      stopHearing();
      clearInterval(clockwork);
      draw.cancel();
      unlend();
    },
  };
}

function newestFirst(a, b) {
  return (b.status === "running") - (a.status === "running") || b.began_unix_ms - a.began_unix_ms;
}

function pick(query) {
  return Object.fromEntries(FILTERS.filter((name) => query[name]).map((name) => [name, query[name]]));
}

function blank() {
  return Object.fromEntries(FILTERS.map((name) => [name, ""]));
}

/** Whether a run that arrives belongs into the list: the same question as the server's. */
function fits(run, { route, status: wanted, tenant, slow_ms: slow, failed, unresolved, id }) {
  return (!route || run.label === route || run.flow === route)
    && (!wanted || run.status === wanted)
    && (!tenant || run.tenant === tenant)
    && (!slow || (run.took_ns ?? 0) >= Number(slow) * 1e6)
    && (!failed || ["failed", "defect", "deadline"].includes(run.status))
    && (!unresolved || run.unresolved)
    && (!id || run.id.startsWith(id));
}

function filterForm(filters, changed) {
  const text = (name, label, extra = {}) =>
    h("input", { name, "aria-label": label, placeholder: label, autocomplete: "off", spellcheck: "false", ...extra });
  const controls = {
    route: text("route", "route, flow or id", { type: "search", class: "wide" }),
    status: h("select", { name: "status", "aria-label": "Status" },
      h("option", { value: "" }, "any status"), STATUSES.map((word) => h("option", { value: word }, word))),
    tenant: text("tenant", "tenant"),
    slow_ms: text("slow_ms", "slower, ms", { inputmode: "numeric", pattern: "[0-9.]*" }),
    failed: h("input", { type: "checkbox", name: "failed" }),
    unresolved: h("input", { type: "checkbox", name: "unresolved" }),
  };
  const read = () => {
    const found = { status: controls.status.value, tenant: controls.tenant.value.trim() };
    const wanted = controls.route.value.trim();
    found[/^(req|job)_/.test(wanted) ? "id" : "route"] = wanted;
    if (Number(controls.slow_ms.value) > 0) found.slow_ms = String(Math.round(Number(controls.slow_ms.value)));
    for (const name of ["failed", "unresolved"]) if (controls[name].checked) found[name] = "1";
    return pick(found);
  };
  const soon = afterRest(200, () => changed(read()));
  const element = h("form", { class: "filter", role: "search", "aria-label": "Filter the runs",
    onsubmit: (event) => event.preventDefault(), oninput: soon }, controls.route, controls.status, controls.tenant,
  controls.slow_ms, h("label", null, controls.failed, "failed"), h("label", null, controls.unresolved, "unresolved"));
  const show = (now) => {
    controls.route.value = now.id ?? now.route ?? "";
    for (const name of ["status", "tenant", "slow_ms"]) controls[name].value = now[name] ?? "";
    for (const name of ["failed", "unresolved"]) controls[name].checked = Boolean(now[name]);
  };
  show(filters);
  return { element, show, focus: (name) => controls[name].focus(), set: (name, given) => {
    controls[name].value = given;
    changed(read());
  } };
}
