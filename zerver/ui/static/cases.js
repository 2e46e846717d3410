// Cases: the runs that somebody must look at. Law: each says which write is in doubt, and with which key to ask the other
// side; it is closed by the runtime, when it has tried again, or by somebody, with a reason.

import { ask } from "./ask.js";
import { get, post } from "./api.js";
import { fill, h, say } from "./dom.js";
import { date, shortId, since } from "./format.js";
import { lend } from "./keys.js";
import { copier, trouble } from "./parts.js";
import { go, href, keep } from "./route.js";

const EVERY = 5000;

export function showCases(root, path, query, page) {
  const stop = new AbortController();
  let cases = [];
  let after = null;
  let deeper = false;
  let drawn = "";
  let selected = query.run ?? "";
  const place = h("span", { class: "soft" });
  const wrong = h("div");
  const told = h("p", { class: "picked", hidden: true, role: "status" });
  const list = h("ul", { class: "cases" });
  const more = h("button", { type: "button", hidden: true, onclick: () => load(true) }, "More cases");
  const refresh = h("button", { type: "button", onclick: () => load() }, "Look again");
  fill(root, h("div", { class: "run-title" }, h("h1", null, "Cases"), place, h("span", { class: "grow" }), refresh),
    h("p", { class: "soft" }, "Runs that ended with a write of which nobody knows, or one that could not be undone; and runs that no code could carry on."),
    told, wrong, list, more);
  const unlend = lend("Cases", {
    "j": ["Next case", () => move(1)], "ArrowDown": ["Next case", () => move(1)],
    "k": ["Previous case", () => move(-1)], "ArrowUp": ["Previous case", () => move(-1)],
    "Enter": ["Open its run", () => selected && go(["runs", selected])],
    "Escape": ["Select nothing", () => select("")],
  });
  const clockwork = setInterval(() => {
    if (!document.hidden && !deeper && !document.querySelector("dialog[open]")) load();
  }, EVERY);
  load();

  async function load(further = false) {
    try {
      const found = await get("cases", { after: further ? after : "" }, stop.signal);
      deeper ||= further;
      if (!further) deeper = false;
      cases = further ? [...cases, ...found.cases] : found.cases;
      after = found.after;
      place.textContent = found.place;
      fill(wrong);
      draw();
    } catch (error) {
      if (error.name !== "AbortError") fill(wrong, trouble(error));
    }
  }

  function draw() {
    more.hidden = after === null;
    const now = JSON.stringify(cases);
    if (now !== drawn) {
      const held = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
      fill(list, cases.length ? cases.map(card) : h("li", { class: "soft empty" }, "No run is unresolved or stuck."));
      if (held) list.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
      drawn = now;
    }
    mark();
  }

  function card(one) {
    return h("li", { class: "card case", "data-id": one.run, "data-key": one.run, tabindex: "-1", onclick: () => select(one.run) },
      h("p", { class: "run-title" }, h("a", { href: href(["runs", one.run]) }, h("b", null, one.label || one.flow)),
        h("span", { class: "status", "data-status": "unresolved" }, h("span", { class: "mark", "aria-hidden": "true" }, "⚠"), one.state),
        h("span", { class: "soft" }, `${one.flow} v${one.version} · tenant `, h("b", null, one.tenant)),
        h("time", { class: "soft", title: date(one.since_unix_ms) }, since(one.since_unix_ms, page.now())),
        h("code", { class: "id", title: one.run }, shortId(one.run)), copier(one.run, "the run's id"), h("span", { class: "grow" }),
        h("button", { type: "button", class: "small", "data-key": `${one.run}/retry`, onclick: () => retry(one) }, "Try again"),
        h("button", { type: "button", class: "small", "data-key": `${one.run}/resolve`, onclick: () => resolve(one) }, "Resolve…")),
      one.why ? h("p", { class: "loud" }, one.why) : null,
      h("ul", { class: "causes" }, one.writes.map((write) => h("li", { "data-cause": "UNRESOLVED" },
        h("b", null, write.state === "happened" ? "NOT UNDONE" : "IN DOUBT"), " ", h("code", null, write.text), ` in ${write.step} `,
        write.state === "happened" ? "happened, and was not undone" : "may or may not have happened",
        write.key ? [", key ", h("code", { class: "key" }, write.key), " ", copier(write.key, "the key")] : ", without a key",
        write.why ? h("span", { class: "soft" }, `: ${write.why}`) : null))));
  }

  async function retry(one) {
    tell(`Trying ${shortId(one.run)} again…`);
    try {
      const came = await post(`cases/${encodeURIComponent(one.run)}/retry`, {});
      tell(came.unresolved ? `${shortId(one.run)} is unresolved as before.` : `${shortId(one.run)} is ${came.status}, and nothing of it is unresolved.`);
      await load();
    } catch (error) {
      told.hidden = true;
      fill(wrong, trouble(error));
    }
  }

  async function resolve(one) {
    const said = await ask({ title: "Is it right by now?", action: "Resolve",
      text: ["Say what was found about ", h("code", null, shortId(one.run)), ", and what was done. The journal keeps it."],
      fields: [{ name: "reason", label: "Reason (required)", required: true }, { name: "by", label: "Who says so" }] });
    if (!said) return;
    try {
      await post(`cases/${encodeURIComponent(one.run)}/resolve`, said);
      tell(`${shortId(one.run)} is resolved.`);
      await load();
    } catch (error) {
      fill(wrong, trouble(error));
    }
  }

  function tell(text) {
    told.hidden = false;
    fill(told, text);
    say(text);
  }

  function move(by) {
    if (!cases.length) return;
    const at = cases.findIndex((one) => one.run === selected);
    select(cases[Math.min(cases.length - 1, Math.max(0, at < 0 ? 0 : at + by))].run);
    const chosen = list.querySelector(".case[aria-current=true]");
    chosen?.focus({ preventScroll: true });
    chosen?.scrollIntoView({ block: "nearest" });
  }

  function select(run) {
    selected = run;
    keep({ run });
    mark();
  }

  function mark() {
    for (const element of list.querySelectorAll(".case")) {
      if (element.dataset.id === selected) element.setAttribute("aria-current", "true");
      else element.removeAttribute("aria-current");
      element.tabIndex = element.dataset.id === selected ? 0 : -1;
    }
    const first = list.querySelector(".case");
    if (first && !list.querySelector(".case[aria-current=true]")) first.tabIndex = 0;
  }

  return {
    update(_, changed) {
      selected = changed.run ?? "";
      mark();
    },
    close() {
      stop.abort();
      clearInterval(clockwork);
      unlend();
    },
  };
}
