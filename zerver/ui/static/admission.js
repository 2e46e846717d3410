// Who may run, and who waits: classes, tenants, turns, routes. Law: figures as the server gives them, once a second.

import { h } from "./dom.js";
import { count, fine, rate, took } from "./format.js";
import { liveView } from "./live.js";
import { facts, meter, panel, spark, table } from "./parts.js";
import { href } from "./route.js";

export function showAdmission(root, path, query, page) {
  return liveView(root, "Admission", page, draw);
}

function draw({ admission, tenants, turns, routes, loop, window_ns: window }) {
  const reasons = Object.entries(admission.reasons);
  const span = `over the last ${took(window)}`;
  return [
    facts([
      ["running", h("b", null, count(admission.running))],
      ["queued", h("b", null, count(admission.queued))],
      ["parked", count(admission.parked)],
      ["admitted", count(admission.admitted)],
      ["refused", count(admission.refused), reasons.length
        ? h("span", { class: "soft" }, ` ${reasons.map(([why, n]) => `${why} ${count(n)}`).join(" · ")}`) : null],
      ["loop lag", fine(loop.lag_ns), h("span", { class: "soft" }, ` worst ${fine(loop.worst_ns)}`)],
      ...(admission.degraded ? [["state", h("span", { class: "loud" }, "degraded")]] : []),
      ...(admission.draining ? [["state", h("span", { class: "loud" }, "draining")]] : []),
    ]),
    panel("Classes", table("Classes", [
      ["class", (one) => h("b", null, one.priority)],
      ["running", (one) => [meter(one.running, one.limit ?? one.running), ` ${count(one.running)}`], "number gauge"],
      ["limit", (one) => count(one.limit === null ? null : Math.floor(one.limit)), "number"],
      ["guaranteed", (one) => count(one.guaranteed), "number"],
      ["queued", (one) => h("span", { class: one.queued ? "loud" : "" }, count(one.queued)), "number"],
      ["rate/s", (one) => rate(one.rate), "number"],
      ["admitted", (one) => count(one.admitted), "number"],
      ["refused", (one) => count(one.refused), "number"],
      ["", (one) => (one.overloaded ? h("span", { class: "loud" }, "overloaded") : "")],
    ], admission.classes)),
    panel(`Routes ${span}`, table("Routes", [
      ["route", (one) => h("a", { href: href(["runs"], { route: one.label }) }, one.label)],
      ["", (one) => spark(one.spark)],
      ["rate/s", (one) => rate(one.rate), "number"],
      ["running", (one) => count(one.running), "number"],
      ["p50", (one) => took(one.p50_ns), "number"],
      ["p99", (one) => took(one.p99_ns), "number"],
      ["failed", (one) => h("span", { class: one.errors ? "loud" : "" }, count(one.errors)), "number"],
      ["refused", (one) => count(one.refused), "number"],
    ], routes, "No request yet.")),
    panel(`Tenants ${span}`, table("Tenants", [
      ["tenant", (one) => h("a", { href: href(["runs"], { tenant: one.name }) }, one.name)],
      ["running", (one) => count(one.running), "number"],
      ["runs", (one) => count(one.count), "number"],
      ["failed", (one) => h("span", { class: one.errors ? "loud" : "" }, count(one.errors)), "number"],
      ["refused", (one) => count(one.refused), "number"],
      ["p99", (one) => took(one.p99_ns), "number"],
      ["weight", (one) => one.weight ?? "–", "number"],
      ["rate limit/s", (one) => one.rate_limit ?? "–", "number"],
    ], tenants, "No tenant yet.")),
    panel("Turns", facts([
      ["waiting, by class", turns.waiting.map((n) => count(n)).join(" · ")],
      ["seconds held", turns.seconds === null ? "–" : Number(turns.seconds).toFixed(1)],
      ["demoted", turns.demoted.length ? turns.demoted.join(", ") : "none"],
    ]), table("Overruns", [
      ["step that held the loop too long", (one) => h("b", null, one.step)],
      ["flow", (one) => one.flow],
      ["times", (one) => count(one.count), "number"],
      ["longest", (one) => fine(one.longest_ns), "number"],
      ["where", (one) => h("code", null, one.place ?? "")],
    ], turns.overruns, "No step has held the loop for longer than it may.")),
  ];
}
