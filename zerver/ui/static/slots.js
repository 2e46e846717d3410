// Slots: who wrote them, who read them, and what was in them; effects: what was asked of the world. Law: values are
// shown as the server shows them, already veiled; nothing here can unveil.

import { h } from "./dom.js";
import { clock, count, took } from "./format.js";
import { panel, table, value } from "./parts.js";
import { href } from "./route.js";

export function slotsTable(view, id) {
  const last = view.header.total_ns;
  const step = (name) => (name === null ? h("span", { class: "soft" }, "–")
    : name === "given" ? h("span", { class: "tag" }, "given")
      : h("a", { href: href(["runs", id, "graph"], { step: nodeOf(view, name) }) }, name));
  const parts = view.inputs ?? [];
  return [table("Slots", [
    ["slot", (slot) => [h("code", { class: "slot" }, slot.name), slot.secret ? h("span", { class: "tag" }, "secret") : null]],
    ["type", (slot) => h("code", { class: "soft" }, slot.type)],
    ["written by", (slot) => step(slot.writer)],
    ["at", (slot) => (slot.written && slot.at_ns !== null ? clock(slot.at_ns, last) : h("span", { class: "soft" }, "not written")), "number"],
    ["read by", (slot) => (slot.readers.length ? slot.readers.map((name, n) => [n ? ", " : "", step(name)]) : h("span", { class: "soft" }, "nobody"))],
    ["value", (slot) => (slot.written || slot.value !== null ? value(slot.value, slot.shown) : "")],
    ["", (slot) => (slot.editable && view.header.replayable
      ? h("a", { href: href(["runs", id, "replay"], { slot: slot.name }), "aria-label": `Replay with another ${slot.name}` }, "change") : "")],
  ], view.slots, "This flow has no slots."), parts.length ? panel("Parts of the request", table("Parts of the request", [
    ["part", (part) => [h("code", { class: "slot" }, part.name), part.secret ? h("span", { class: "tag" }, "secret") : null]],
    ["of", (part) => part.source],
    ["value", (part) => value(part.value, part.shown)],
  ], parts)) : null];
}

function nodeOf(view, step) {
  return view.graph.nodes.find((node) => node.step === step)?.id ?? "";
}

export function effectsTable(view) {
  const last = view.header.total_ns;
  const shown = view.effects.items;
  const note = view.effects.total > shown.length
    ? h("p", { class: "soft" }, `The first ${count(shown.length)} of ${count(view.effects.total)}.`) : null;
  return [note, table("Effects", [
    ["asked at", (effect) => clock(effect.asked_ns, last), "number"],
    ["step", (effect) => effect.step],
    ["effect", (effect) => [h("code", null, effect.text), effect.key ? h("div", { class: "soft small" }, "key ", h("code", null, effect.key)) : null]],
    ["access", (effect) => effect.access],
    ["took", (effect) => took(effect.ended_ns === null ? null : effect.ended_ns - effect.asked_ns), "number"],
    ["outcome", (effect) => [
      h("span", { class: "status", "data-status": OUTCOMES[effect.outcome] ?? "running" }, effect.outcome ?? "under way"),
      ...["committed", "undone", "late"].filter((name) => effect[name]).map((name) => h("span", { class: "tag" }, name))]],
    ["tries", (effect) => [effect.attempts, effect.timeouts ? ` (${effect.timeouts} timed out)` : ""], "number"],
    ["came to", (effect) => (effect.error ? h("span", { class: "loud" }, effect.error) : effect.shown === null ? "" : value(null, effect.shown))],
  ], shown, "No step asked for an effect.")];
}

const OUTCOMES = { success: "ok", failure: "failed", unknown: "unresolved", cancelled: "cut" };
