// A view of the overview, drawn again with each one that comes. Law: a table that is being scrolled or has the focus
// keeps its place; nothing is drawn while the page is hidden.

import { get } from "./api.js";
import { fill, h, perFrame } from "./dom.js";
import { trouble } from "./parts.js";

/** draw(overview) -> elements. Returns the view for the router. */
export function liveView(root, title, page, draw) {
  const body = h("div", { class: "live-view" });
  const paused = { now: false };
  const pause = h("button", { type: "button", "aria-pressed": "false", onclick: () => {
    paused.now = !paused.now;
    pause.setAttribute("aria-pressed", String(paused.now));
    pause.textContent = paused.now ? "Go on" : "Pause";
  } }, "Pause");
  fill(root, h("div", { class: "run-title" }, h("h1", null, title), h("span", { class: "grow" }), pause), body);
  const opened = new Map(); // what a reader has folded, by its key
  let overview = page.last.overview;
  const redraw = perFrame(() => {
    const at = [...body.querySelectorAll(".scroll")].map((box) => box.scrollLeft);
    const held = [...body.querySelectorAll("[tabindex], summary, a")].indexOf(document.activeElement);
    for (const one of body.querySelectorAll("details")) opened.set(one.dataset.key, one.open);
    fill(body, draw(overview));
    body.querySelectorAll(".scroll").forEach((box, n) => (box.scrollLeft = at[n] ?? 0));
    for (const one of body.querySelectorAll("details")) one.open = opened.get(one.dataset.key) ?? one.open;
    if (held >= 0) body.querySelectorAll("[tabindex], summary, a")[held]?.focus({ preventScroll: true });
  });
  const stop = page.hear({ overview: (told) => {
    if (paused.now || document.hidden) return;
    overview = told;
    redraw();
  } });
  if (overview) redraw();
  else {
    fill(body, h("p", { class: "soft" }, "loading"));
    get("overview").then((told) => {
      overview ??= told;
      redraw();
    }, (error) => fill(body, trouble(error)));
  }
  return { update() {}, close() {
    stop();
    redraw.cancel();
  } };
}
