// Two runs side by side. Law: the server aligns them; here the first divergence comes first, and steps that are the
// same are one quiet line each.

import { get } from "./api.js";
import { fill, h } from "./dom.js";
import { date, took } from "./format.js";
import { lend } from "./keys.js";
import { meter, panel, status, trouble } from "./parts.js";
import { go, href } from "./route.js";

export function showDiff(root, path, query) {
  let { a = "", b = "" } = query;
  const stop = new AbortController();
  const unlend = lend("Diff", {
    "x": ["Swap the two", () => go(["diff"], { a: b, b: a })],
    "Escape": ["Back to the runs", () => go(["runs"], { run: b })],
  });
  load();

  async function load() {
    if (!a || !b) {
      fill(root, h("h1", null, "Diff"), chooser(a, b));
      return;
    }
    fill(root, h("h1", null, "Diff"), h("p", { class: "soft" }, "comparing"));
    try {
      draw(await get("diff", { a, b }, stop.signal));
    } catch (error) {
      if (error.name !== "AbortError") fill(root, h("h1", null, "Diff"), trouble(error), chooser(a, b));
    }
  }

  function draw(told) {
    fill(root, h("div", { class: "run-title" }, h("h1", null, "Diff"), h("span", { class: "grow" }),
      h("button", { type: "button", onclick: () => go(["diff"], { a: b, b: a }) }, "Swap ", h("kbd", null, "x"))),
    h("div", { class: "two" }, runCard("A", told.a), runCard("B", told.b)),
    told.first === null
      ? h("p", { class: "verdict", "data-same": String(told.same) }, h("b", null, told.same ? "The two are the same." : "The two went the same way; only times differ."))
      : panel("First divergence", h("p", { class: "verdict", "data-same": "false" }, told.first.step ? h("code", null, told.first.step) : null,
        " ", told.first.text)),
    panel("Step by step", diffSteps(told, "A", "B")),
    h("details", { class: "panel" }, h("summary", null, "As text, as ", h("code", null, "zerver diff"), " prints it"),
      h("pre", { class: "story", tabindex: "0" }, told.text)));
  }

  return {
    update(_, changed) {
      ({ a = "", b = "" } = changed);
      load();
    },
    close() {
      stop.abort();
      unlend();
    },
  };
}

function runCard(letter, run) {
  return h("section", { class: "card", "aria-label": `Run ${letter}` }, h("h2", null, h("span", { class: "letter" }, letter), " ",
    h("a", { href: href(["runs", run.id]) }, run.label || run.flow)),
  h("p", null, status(run.status, run.http), " ", h("b", null, took(run.took_ns))),
  h("p", { class: "soft" }, h("code", null, run.id), " · ", date(run.began_unix_ms), ` · tenant ${run.tenant}`),
  run.cause ? h("p", null, run.cause) : null);
}

function chooser(a, b) {
  const field = (name, given) => h("label", null, `Run ${name.toUpperCase()} `,
    h("input", { name, value: given, required: true, spellcheck: "false", autocomplete: "off", placeholder: "req_…" }));
  return h("form", { class: "filter", onsubmit: (event) => {
    event.preventDefault();
    go(["diff"], Object.fromEntries(new FormData(event.target)));
  } }, field("a", a), field("b", b), h("button", { type: "submit" }, "Compare"),
  h("p", { class: "soft" }, "Or press ", h("kbd", null, "d"), " on two runs of the list."));
}

/** The steps of two runs; `one` and `other` name the sides. */
export function diffSteps(told, one, other) {
  const longest = Math.max(1, ...told.steps.flatMap((step) => [step.a_took_ns ?? 0, step.b_took_ns ?? 0]));
  const first = told.first?.step;
  return h("ol", { class: "diff" }, told.steps.map((step) =>
    h("li", { "data-same": String(step.same), "data-first": String(!step.same && step.step === first), "data-step": step.step },
      h("div", { class: "diff-head" }, h("span", { class: "mark", "aria-hidden": "true" }, step.same ? "=" : "≠"),
        h("b", null, step.step), h("span", { class: "unseen" }, step.same ? "the same" : "differs"),
        h("span", { class: "diff-times" }, lane(one, step.a_took_ns, longest), lane(other, step.b_took_ns, longest),
          h("span", { class: "delta" }, delta(step.a_took_ns, step.b_took_ns)))),
      step.differences.length ? h("ul", { class: "differences" }, step.differences.map((difference) => differs(difference, one, other))) : null)));
}

function lane(name, ns, longest) {
  return h("span", { class: "lane" }, h("span", { class: "soft" }, name), meter(ns ?? 0, longest), h("span", { class: "number" }, took(ns)));
}

function delta(a, b) {
  if (a === null || b === null) return a === b ? "" : a === null ? "only there" : "not there";
  return a === b ? "±0" : `${b > a ? "+" : ""}${took(b - a)}`;
}

function differs(difference, one, other) {
  const sides = [difference.a, difference.b].map((json) => JSON.stringify(json) ?? "");
  const long = difference.kind !== "timing" && sides.some((text) => text.length > 60);
  const [what] = difference.text.split(":");
  return h("li", { "data-kind": difference.kind }, h("span", { class: "tag" }, difference.kind), " ",
    long ? what : difference.text,
    long ? h("div", { class: "two" }, side(one, difference.a), side(other, difference.b)) : null);
}

function side(title, json) {
  return h("figure", { class: "side-text", "data-side": title }, h("figcaption", null, title),
    h("pre", { tabindex: "0" }, json === null ? "–" : typeof json === "string" ? json : JSON.stringify(json, null, 2)));
}
