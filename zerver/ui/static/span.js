// What is known of one span. Law: all of it, and nothing made up: attributes as the server named them.

import { fill, h } from "./dom.js";
import { clock, fine, mark } from "./format.js";
import { accountsBar, facts, value } from "./parts.js";

export function showSpan(root, span, view, chart) {
  if (!span) {
    fill(root, h("p", { class: "soft" }, "Choose a span: click it, or ", h("kbd", null, "j"), " and ", h("kbd", null, "k"), "."));
    return;
  }
  const last = view.header.total_ns;
  const ended = span.ended_ns;
  const accounts = sums(span, ended ?? last);
  fill(root,
    h("h2", null, h("span", { class: "kind" }, span.kind), " ", span.name),
    h("p", { class: "status", "data-status": span.status }, h("span", { class: "mark", "aria-hidden": "true" }, mark(span.status)), span.status),
    accounts.total ? accountsBar(accounts) : null,
    facts([
      ["took", ended === null ? "under way" : fine(ended - span.began_ns)],
      ["from", clock(span.began_ns, last)],
      ["to", ended === null ? "–" : clock(ended, last)],
      ...["admission", "turn", "cpu", "io", "parked"].filter((name) => accounts[name]).map((name) => [
        [h("i", { class: "swatch", "data-account": name, "aria-hidden": "true" }), name], fine(accounts[name])]),
    ]),
    h("dl", { class: "attributes" }, Object.entries(span.attributes).map(([name, given]) =>
      [h("dt", null, name), h("dd", null, value(typeof given === "string" ? null : given, String(given)))])),
    h("p", null, h("button", { type: "button", class: "small", onclick: () => chart.bindings.z[1]() }, "Zoom to it ",
      h("kbd", null, "z"))));
}

function sums(span, last) {
  const found = { total: 0 };
  for (const { account, began_ns: from, ended_ns: to } of span.segments) {
    const long = Math.max(0, (to ?? last) - from);
    found[account] = (found[account] ?? 0) + long;
    found.total += long;
  }
  return found;
}
