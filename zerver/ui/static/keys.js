// Keys. Law: one listener; pages lend it bindings and take them back; nothing fires while somebody types, and no key
// of the browser's own (with Ctrl, Alt or Meta) is taken.

import { fill, h } from "./dom.js";

const layers = [];
let prefix = "";
let forget = 0;

/** Lend bindings {"g r": [says, act]}; the last layer is asked first. Returns what takes them back. */
export function lend(title, bindings) {
  const layer = { title, bindings };
  layers.push(layer);
  return () => {
    const index = layers.indexOf(layer);
    if (index >= 0) layers.splice(index, 1);
  };
}

export function start() {
  document.addEventListener("keydown", onKey);
  document.getElementById("help").addEventListener("click", showHelp);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
  const typing = isTyping(event.target);
  if (typing && event.key !== "Escape") return;
  if (typing) {
    event.target.blur();
    return;
  }
  if (document.querySelector("dialog[open]")) return; // a dialog has the floor; it closes on Escape by itself
  if (["Shift", "CapsLock", "Tab"].includes(event.key)) return;
  const name = event.shiftKey && event.key.length > 1 ? `Shift+${event.key}` : event.key;
  const pressed = prefix ? `${prefix} ${name}` : name;
  prefix = "";
  if (event.key === "Enter" && event.target.closest?.("a, button, summary")) return; // it does what it says
  for (const { bindings } of layers.toReversed()) {
    const found = bindings[pressed];
    if (!found) continue;
    event.preventDefault();
    found[1](event);
    return;
  }
  if (layers.some(({ bindings }) => Object.keys(bindings).some((key) => key.startsWith(`${pressed} `)))) {
    prefix = pressed;
    clearTimeout(forget);
    forget = setTimeout(() => (prefix = ""), 1200);
    event.preventDefault();
  }
}

function isTyping(target) {
  return target.matches?.("input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]") ?? false;
}

const SHOWN = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", "Shift+ArrowLeft": "⇧←",
  "Shift+ArrowRight": "⇧→", Escape: "Esc", " ": "Space" };

/** Every binding that works here and now. */
export function showHelp() {
  const dialog = document.getElementById("keys");
  const sections = layers.toReversed().map(({ title, bindings }) => {
    const rows = new Map();
    for (const [key, [says]] of Object.entries(bindings)) rows.set(says, [...(rows.get(says) ?? []), key]);
    return h("section", null, h("h3", null, title), h("dl", { class: "keys" },
      [...rows].map(([says, keys]) => [h("dt", null, keys.map((key) => [caps(key), " "])), h("dd", null, says)])));
  });
  fill(dialog, h("h2", { id: "keys-title" }, "Keys"), sections,
    h("p", { class: "end" }, h("button", { type: "button", autofocus: true, onclick: () => dialog.close() }, "Close")));
  dialog.showModal();
}

function caps(keys) {
  return keys === " " ? h("kbd", null, "Space") : keys.split(" ").map((key) => h("kbd", null, SHOWN[key] ?? key));
}
