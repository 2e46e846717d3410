// The run as text, in the words of `zerver trace`. Law: only the lines that can be seen are in the document, with some
// around them; what has not come yet is asked for when it is scrolled to.

import { get } from "./api.js";
import { fill, h, perFrame, put } from "./dom.js";
import { clock } from "./format.js";
import { lend } from "./keys.js";
import { copier } from "./parts.js";
import { keep } from "./route.js";

const LINE = 20;
const AROUND = 20;

export function textRows(root, view, chosen, id) {
  let items = view.rows.items;
  let next = view.rows.next;
  let total = view.rows.total;
  let loading = false;
  let selected = chosen.at === undefined ? -1 : items.findIndex((row) => String(row.index) === chosen.at);
  const lines = h("ol", { class: "lines" });
  const spacer = h("div", { class: "spacer" });
  const box = h("div", { class: "text", tabindex: "0", role: "region", "aria-label": "Timeline as text" }, spacer, lines);
  const note = h("span", { class: "soft" });
  const whole = h("button", { type: "button", class: "quiet small", onclick: copyAll }, "copy as text");
  put(root, h("div", { class: "tools" }, note, h("span", { class: "grow" }), whole, copier(`zerver trace ${id}`, "the command", "copy command")), box);
  const draw = perFrame(drawNow);
  const watch = new ResizeObserver(draw);
  watch.observe(box);
  box.addEventListener("scroll", draw);
  const unlend = lend("Text", {
    "j": ["Next line", () => move(1)], "ArrowDown": ["Next line", () => move(1)],
    "k": ["Previous line", () => move(-1)], "ArrowUp": ["Previous line", () => move(-1)],
    "n": ["Next line that went wrong", () => seek(1)], "N": ["Previous line that went wrong", () => seek(-1)],
  });
  if (selected >= 0) box.scrollTop = Math.max(0, (selected - 4) * LINE);
  draw();

  function drawNow() {
    spacer.style.height = `${items.length * LINE}px`;
    const first = Math.max(0, Math.floor(box.scrollTop / LINE) - AROUND);
    const last = Math.min(items.length, first + Math.ceil(box.clientHeight / LINE) + 2 * AROUND);
    const names = Math.min(28, Math.max(4, ...items.slice(0, 500).map((row) => row.subject.length)));
    lines.style.transform = `translateY(${first * LINE}px)`;
    lines.style.setProperty("--names", `${names + 1}ch`);
    fill(lines, items.slice(first, last).map((row, n) => line(row, first + n)));
    note.textContent = next === null ? `${items.length} lines of ${total} records`
      : `${items.length} lines so far; ${total} records`;
    if (next !== null && last + AROUND >= items.length) more();
  }

  function line(row, at) {
    const sign = /^\s*([→✓✗⚠+·↩⏸▶]|OVERRUN)/.exec(row.text)?.[1] ?? "";
    return h("li", { "data-sign": sign, "data-index": row.index, "aria-current": at === selected ? "true" : null,
      onclick: () => choose(at) }, h("span", { class: "at" }, clock(row.at_ns, view.header.total_ns)),
    h("span", { class: "subject", title: row.subject }, row.subject), h("span", { class: "said" }, row.text));
  }

  async function more() {
    if (loading) return;
    loading = true;
    try {
      const told = await get(`runs/${encodeURIComponent(id)}/records`, { from: next, count: 2000 });
      items = [...items, ...told.items];
      next = told.next;
      total = told.total;
    } catch (error) {
      note.textContent = error.message;
      return;
    } finally {
      loading = false;
    }
    draw();
  }

  async function copyAll() {
    try {
      const { text } = await get(`runs/${encodeURIComponent(id)}/text`);
      await navigator.clipboard.writeText(text);
      whole.textContent = "copied";
    } catch (error) {
      whole.textContent = error.message;
    }
  }

  function choose(at) {
    selected = at;
    keep({ at: items[at]?.index ?? "" });
    const top = at * LINE;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + LINE > box.scrollTop + box.clientHeight) box.scrollTop = top + LINE - box.clientHeight;
    draw();
  }

  function move(by) {
    if (items.length) choose(Math.min(items.length - 1, Math.max(0, selected + by)));
  }

  function seek(by) {
    for (let at = selected + by; at >= 0 && at < items.length; at += by) {
      if (/^\s*([✗⚠↩]|OVERRUN)/.test(items[at].text)) {
        choose(at);
        return;
      }
    }
  }

  return {
    show(told) {
      view = told;
      if (told.rows.total === total) return;
      ({ items, next, total } = told.rows);
      draw();
    },
    close() {
      watch.disconnect();
      draw.cancel();
      unlend();
    },
  };
}
