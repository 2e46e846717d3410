// What the app calls: breakers, adaptive limits, retry and hedge budgets, latencies. Law: an open breaker comes first.

import { h } from "./dom.js";
import { count, took } from "./format.js";
import { liveView } from "./live.js";
import { meter, panel, table } from "./parts.js";

const ORDER = { "open": 0, "half-open": 1, "closed": 2 };

export function showTargets(root, path, query, page) {
  return liveView(root, "Targets", page, draw);
}

function draw({ targets }) {
  const sorted = [...targets].sort((a, b) => (ORDER[a.breaker] ?? 3) - (ORDER[b.breaker] ?? 3) || b.attempts - a.attempts);
  const tokens = (n) => (n === null ? "–" : Number(n).toFixed(n < 10 ? 1 : 0));
  return [
    table("Targets", [
      ["target", (one) => h("b", null, one.name)],
      ["breaker", (one) => breaker(one.breaker)],
      ["at once", (one) => [meter(one.at_once, one.limit ?? Math.max(1, one.at_once)), ` ${count(one.at_once)}`], "number gauge"],
      ["limit", (one) => count(one.limit === null ? null : Math.floor(one.limit)), "number"],
      ["waiting", (one) => count(one.waiting), "number"],
      ["attempts", (one) => count(one.attempts), "number"],
      ["failures", (one) => h("span", { class: one.failures ? "loud" : "" }, count(one.failures)), "number"],
      ["retries", (one) => count(one.retries), "number"],
      ["refused", (one) => count(one.refused), "number"],
      ["throttled", (one) => count(one.throttled), "number"],
      ["hedges", (one) => [count(one.hedges), one.hedges_held_back ? ` (${count(one.hedges_held_back)} held)` : ""], "number"],
      ["tokens r/h", (one) => `${tokens(one.retry_tokens)} / ${tokens(one.hedge_tokens)}`, "number"],
      ["p50", (one) => took(one.p50_ns), "number"],
      ["p99", (one) => took(one.p99_ns), "number"],
    ], sorted, "Nothing has been called yet."),
    panel("Operations", table("Operations", [
      ["operation", (inner) => inner.name],
      ["of", (inner) => inner.of],
      ["breaker", (inner) => breaker(inner.breaker)],
      ["throttled", (inner) => count(inner.throttled), "number"],
      ["p50", (inner) => took(inner.p50_ns), "number"],
      ["p95", (inner) => took(inner.p95_ns), "number"],
      ["p99", (inner) => took(inner.p99_ns), "number"],
    ], sorted.flatMap((one) => one.operations.map((inner) => ({ ...inner, of: one.name }))))),
  ];
}

function breaker(state) {
  if (state === null) return h("span", { class: "soft" }, "–");
  const status = { "open": "failed", "half-open": "late", "closed": "ok" }[state];
  return h("span", { class: "status", "data-status": status }, h("span", { class: "mark", "aria-hidden": "true" },
    { "open": "○", "half-open": "◐", "closed": "●" }[state]), state);
}
