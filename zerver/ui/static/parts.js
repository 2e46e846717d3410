// What several views show alike: statuses, bars, numbers, tables, values. Law: data in, elements out, nothing kept.

import { h, svg } from "./dom.js";
import { ACCOUNTS, mark, took } from "./format.js";

/** A run's status: a mark, a word, and the HTTP status if there was one. */
export function status(word, http = null) {
  return h("span", { class: "status", "data-status": word },
    h("span", { class: "mark", "aria-hidden": "true" }, mark(word)), word,
    http === null ? null : h("span", { class: "http" }, http));
}

/** A bar of where the time went; widths by CSSOM, which the policy allows where style attributes are forbidden. */
export function accountsBar(accounts) {
  const total = Math.max(1, accounts.total);
  const bar = h("div", { class: "accounts-bar", "aria-hidden": "true" });
  for (const name of ACCOUNTS) {
    if (!accounts[name]) continue;
    const part = h("span", { "data-account": name });
    part.style.flexGrow = String(Math.max(accounts[name] / total, 0.002) * 1000);
    bar.append(part);
  }
  return bar;
}

/** `total 96.1ms = admission 0.0 + …`, with the colours of the waterfall: its legend, too. */
export function accountsLine(accounts) {
  return h("p", { class: "accounts" }, h("span", null, "total ", h("b", null, took(accounts.total)), " ="),
    ACCOUNTS.map((name, index) => [index ? " + " : " ",
      h("span", { class: "account", "data-account": name, "data-zero": accounts[name] === 0 },
        h("i", { class: "swatch", "aria-hidden": "true" }), name, " ", h("b", null, took(accounts[name])))]));
}

/** A bar of one length against the longest, as a table cell. */
export function meter(part, whole, kind = "") {
  const inside = h("span", { class: "meter-in", "data-kind": kind });
  inside.style.width = `${whole > 0 ? Math.min(100, (100 * part) / whole) : 0}%`;
  return h("span", { class: "meter", "aria-hidden": "true" }, inside);
}

/** A little curve of counts. */
export function spark(counts, width = 96, height = 18) {
  const most = Math.max(1, ...counts);
  const step = counts.length > 1 ? width / (counts.length - 1) : width;
  const points = counts.map((n, i) => `${(i * step).toFixed(1)},${(height - 1 - (n / most) * (height - 3)).toFixed(1)}`);
  return svg("svg", { class: "spark", width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" },
    svg("polygon", { points: `0,${height} ${points.join(" ")} ${width},${height}` }),
    svg("polyline", { points: points.join(" ") }));
}

/**
 * A table. columns: [title, cell(row) -> children, kind?]: "number" is right-aligned with tabular figures.
 * Rows are things; `empty` is said when there are none.
 */
export function table(caption, columns, rows, empty = "none") {
  const head = columns.map(([title, , kind]) => h("th", { scope: "col", class: kind }, title));
  const body = rows.map((row) =>
    h("tr", null, columns.map(([title, cell, kind], index) =>
      h(index ? "td" : "th", { class: kind, scope: index ? null : "row", "data-title": title }, cell(row)))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", { class: "table" }, h("caption", { class: "unseen" }, caption), h("thead", null, h("tr", null, head)),
      h("tbody", null, body.length ? body
        : h("tr", null, h("td", { colspan: columns.length, class: "soft" }, empty)))));
}

/** A titled part of a view. */
export function panel(title, ...children) {
  return h("section", { class: "panel" }, h("h2", null, title), children);
}

/** Names and numbers, side by side. */
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.map(([name, ...value]) =>
    h("div", null, h("dt", null, name), h("dd", null, value))));
}

/** A value as indented JSON; long ones open on demand. */
export function value(json, shown = "") {
  const line = json === null || json === undefined ? shown : JSON.stringify(json);
  if (line.length < 90 && !line.includes("\n")) return h("code", { class: "value" }, line);
  const text = json === null || json === undefined ? shown : JSON.stringify(json, null, 2);
  const first = line.replace(/\s+/g, " ").slice(0, 80);
  return h("details", { class: "value" }, h("summary", null, h("code", null, `${first}…`)), h("pre", null, text));
}

/** What went wrong with the view itself. */
export function trouble(error) {
  return h("p", { class: "trouble", role: "alert" }, h("b", null, error.title ?? "Error"), " ", error.message);
}

/** A button that copies a text. */
export function copier(text, what, word = "copy") {
  const button = h("button", { type: "button", class: "quiet small", "aria-label": `Copy ${what}`,
    onclick: async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "copied";
      } catch {
        button.textContent = "select it";
      }
      setTimeout(() => (button.textContent = word), 1200);
    } }, word);
  return button;
}
