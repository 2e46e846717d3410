// The process itself: actors, pools, what is kept of runs. Law: a tree is a list in a list, and folds by itself.

import { h } from "./dom.js";
import { count, date, took } from "./format.js";
import { liveView } from "./live.js";
import { facts, panel, table } from "./parts.js";

export function showSystem(root, path, query, page) {
  return liveView(root, "System", page, draw);
}

function draw({ server, runs, journal, pools, actors, trace }) {
  const numbers = (map) => Object.entries(map).map(([name, n], at) => [at ? " · " : "", name.replaceAll("_", " "), " ", h("b", null, said(n))]);
  return [
    facts([
      ["app", h("b", null, server.app)], ["zerver", server.version], ["pid", server.pid],
      ["up", took(server.uptime_ns), h("span", { class: "soft" }, ` since ${date(server.began_unix_ms)}`)],
      ["listens on", server.addresses.join(", ") || "–"],
      ["runs ended", count(runs.ended)], ["running", count(runs.running)],
      ["unresolved", h("span", { class: runs.unresolved ? "loud" : "" }, count(runs.unresolved))],
      ["stuck", h("span", { class: runs.stuck ? "loud" : "" }, count(runs.stuck))],
      ["observer errors", h("span", { class: runs.observer_errors ? "loud" : "" }, count(runs.observer_errors))],
    ]),
    journal ? panel("Journal", facts([
      ["place", journal.place], ["unfinished: under way, parked or left", count(journal.unfinished)], ["parked", count(journal.parked)],
      ...(journal.parked_due_ns === null ? [] : [["next parked run is due in", took(journal.parked_due_ns)]]),
      ...Object.entries(journal.by_status).map(([word, n]) => [word, word === "unresolved"
        ? h("a", { href: "#/cases", class: "loud" }, count(n)) : count(n)]),
    ])) : null,
    panel("Pools", table("Pools", [
      ["pool", (pool) => h("b", null, pool.name)],
      ["kind", (pool) => pool.kind],
      ["numbers", (pool) => numbers(pool.numbers)],
    ], pools, "No capability has a pool.")),
    panel("Actors", h("ul", { class: "actors" }, actor(actors, 0))),
    panel("What is kept", facts([
      ["ring", trace.ring ? numbers(trace.ring) : "off"],
      ["recorder", trace.recorder ? numbers(trace.recorder) : "off"],
      ["store", trace.store ? "on" : "off"],
      ["feed", numbers(trace.feed)],
    ])),
  ];
}

function actor(one, depth, path = "") {
  const key = `${path}/${one.name}`;
  const line = [h("span", { class: "kind" }, one.kind), " ", h("b", null, one.name), " ", h("span", { class: "soft" }, one.state ?? ""),
    one.restarts ? h("span", { class: "loud" }, ` ${count(one.restarts)} restarts`) : null, one.note ? h("span", { class: "soft" }, ` ${one.note}`) : null];
  if (!one.children.length) return h("li", null, line);
  return h("li", null, h("details", { open: depth < 3, "data-key": key }, h("summary", null, line),
    h("ul", { class: "actors" }, one.children.map((child) => actor(child, depth + 1, key)))));
}

function said(n) {
  return typeof n !== "number" ? String(n) : Number.isInteger(n) ? count(n) : n.toFixed(2);
}
