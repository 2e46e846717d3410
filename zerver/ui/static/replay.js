// Replay from the page: the same run, offline, with other values. Law: only what was changed is sent; nothing is
// performed; what comes back is told before it is drawn: did it go the same way, and where not.

import { post } from "./api.js";
import { fill, h, put, say } from "./dom.js";
import { diffSteps } from "./diff.js";
import { accountsBar, accountsLine, panel, status, trouble } from "./parts.js";
import { showSpan } from "./span.js";
import { waterfall } from "./waterfall.js";

export function replayForm(root, view, chosen, id) {
  const { header } = view;
  if (!header.replayable) {
    put(root, h("p", { class: "notice" }, h("b", null, "This run cannot be replayed here. "), header.why_not ?? ""));
    return {};
  }
  const fields = view.slots.filter((slot) => slot.editable).map(field);
  const steps = view.graph.nodes.filter((node) => node.step).map((node) => node.step);
  const until = h("select", { id: "until", name: "until" }, h("option", { value: "" }, "the end"),
    steps.map((step) => h("option", { value: step }, step)));
  if (steps.includes(chosen.until)) until.value = chosen.until;
  const run = h("button", { type: "submit", class: "main" }, "Replay");
  const result = h("div", { class: "replayed", "aria-live": "polite" });
  const form = h("form", { class: "replay", onsubmit: submit },
    h("p", { class: "soft" }, "The recorded outcomes, clock and joins are fed to the same steps. Nothing is performed: ",
      "no call, no query, no charge. Change a slot to ask what would have happened."),
    fields.length ? h("div", { class: "fields" }, fields.map(({ element }) => element)) : h("p", { class: "soft" }, "No slot of this run can be changed."),
    h("p", { class: "tools" }, h("label", { for: "until" }, "until "), until, run,
      h("button", { type: "reset", class: "quiet", onclick: () => setTimeout(() => fields.forEach((one) => one.check())) }, "As it was")));
  put(root, form, result);
  const first = fields.find((one) => one.name === chosen.slot) ?? null;
  (first?.input ?? run).focus({ preventScroll: first === null });
  let closers = [];
  let asked = null;

  async function submit(event) {
    event.preventDefault();
    if (!fields.every((one) => one.check())) return;
    const changes = Object.fromEntries(fields.filter((one) => one.changed()).map((one) => [one.name, one.read()]));
    asked?.abort();
    asked = new AbortController();
    run.disabled = true;
    fill(result, h("p", { class: "soft" }, "replaying"));
    try {
      const told = await post(`runs/${encodeURIComponent(id)}/replay`, { changes, until: until.value || null }, asked.signal);
      show(told, Object.keys(changes));
    } catch (error) {
      if (error.name !== "AbortError") fill(result, trouble(error));
    } finally {
      run.disabled = false;
    }
  }

  function show(told, changed) {
    close();
    const { divergence } = told;
    const verdict = divergence === null
      ? (changed.length ? "It went the same way all the same." : "It went the same way, record by record.")
      : `It went another way at ${divergence.step || divergence.kind}.`;
    fill(result,
      h("p", { class: "verdict", "data-same": String(divergence === null) }, h("b", null, verdict),
        changed.length ? ` Changed: ${changed.join(", ")}.` : ""),
      divergence === null ? null : panel("First divergence", divergence.recorded && divergence.now
        ? h("div", { class: "two" }, side("recorded", divergence.recorded), side("now", divergence.now)) : null,
      h("pre", { class: "story", tabindex: "0" }, divergence.text)),
      told.not_done.length ? panel("What did not happen", h("ul", { class: "not-done" }, told.not_done.map((line) => h("li", null, line)))) : null,
      told.diff && !told.diff.same ? panel("What changed, step by step", diffSteps(told.diff, "recorded", "replayed")) : null,
      panel("The story", h("pre", { class: "story", tabindex: "0" }, told.text)),
      told.view ? replayed(told.view) : null);
    say(verdict);
  }

  function replayed(now) {
    const details = h("aside", { class: "details", "aria-label": "Selected span" });
    const chart = waterfall({ onSelect: (span) => showSpan(details, span, now, chart) });
    closers.push(chart.close);
    const shown = panel("As it would have been", h("p", null, status(now.header.status, now.header.http)),
      accountsBar(now.accounts), accountsLine(now.accounts), h("div", { class: "beside short" }, chart.element, details));
    requestAnimationFrame(() => chart.show(now));
    showSpan(details, null, now, chart);
    return shown;
  }

  function close() {
    closers.forEach((act) => act());
    closers = [];
  }

  return { close() {
    asked?.abort();
    close();
  } };
}

function side(title, text) {
  const shown = typeof text === "string" ? text : JSON.stringify(text, null, 2);
  return h("figure", { class: "side-text" }, h("figcaption", null, title), h("pre", { tabindex: "0" }, shown ?? "–"));
}

/** One slot: its value as JSON, and whether it is still JSON. */
function field(slot) {
  const before = JSON.stringify(slot.value, null, 2) ?? "null";
  const key = `slot-${slot.name}`;
  const problem = h("span", { class: "loud", role: "alert" });
  const sign = h("span", { class: "tag", hidden: true }, "changed");
  const input = h("textarea", { id: key, name: slot.name, spellcheck: "false", rows: Math.min(8, before.split("\n").length),
    oninput: () => check() });
  input.defaultValue = before;
  const read = () => JSON.parse(input.value);
  const changed = () => {
    try {
      return JSON.stringify(read()) !== JSON.stringify(slot.value);
    } catch {
      return true;
    }
  };
  const check = () => {
    let wrong = "";
    try {
      read();
    } catch (error) {
      wrong = `not JSON: ${error.message}`;
    }
    problem.textContent = wrong;
    input.setAttribute("aria-invalid", String(wrong !== ""));
    sign.hidden = !changed();
    return wrong === "";
  };
  const element = h("div", { class: "field" }, h("label", { for: key }, h("code", null, slot.name), " ",
    h("span", { class: "soft" }, slot.type), " ", sign), input, problem);
  return { name: slot.name, element, input, read, check, changed };
}
