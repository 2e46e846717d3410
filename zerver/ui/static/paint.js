// How a waterfall looks. Law: draws what it is given onto a canvas, in the colours of the style sheet, and only rows
// that can be seen; keeps nothing but widths of texts.

import { fine, took } from "./format.js";

export const ROW = 22;
export const AXIS = 26;
const BAR = 12;

const GLYPHS = { run: "", admission: "…", step: "", turn: "…", effect: "→", join: "⇉", attempt: "·", hedge: "+",
  park: "‖", undo: "↩" };
const SIGNS = { failed: "✗", cut: "⊘", late: "◷", lost: "≠", unresolved: "⚠", running: "▸" };
const NAMES = ["ink", "soft", "faint", "line", "ground", "raised", "select", "accent", "bad", "warn", "undo", "cpu", "io",
  "turn", "admission", "parked", "good"];

export class Brush {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.widths = new Map();
    this.restyle();
  }

  /** Read the colours again: the theme has changed. */
  restyle() {
    const style = getComputedStyle(document.body);
    this.colour = Object.fromEntries(NAMES.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
    this.font = `12px ${style.fontFamily}`;
    this.numbers = `11px ${style.getPropertyValue("--mono").trim()}`;
    this.widths.clear();
    this.hatches = {};
  }

  resize(width, height) {
    const dense = window.devicePixelRatio || 1;
    if (this.width === width && this.height === height && this.dense === dense) return;
    Object.assign(this, { width, height, dense });
    this.canvas.width = Math.round(width * dense);
    this.canvas.height = Math.round(height * dense);
    this.canvas.style.width = `${width}px`;
    this.canvas.style.height = `${height}px`;
    this.hatches = {};
  }

  /**
   * Draw. view: {tree, scale, from, to (places on the axis), first (row), offset (px), left (px of names), selected,
   * hovered (ids), brushing: [x, x] | null, now (ns, for what is still running)}. Returns the rows drawn.
   */
  draw(view) {
    const { context, colour, width, height } = this;
    context.setTransform(this.dense, 0, 0, this.dense, 0, 0);
    context.clearRect(0, 0, width, height);
    this.view = view;
    this.x = (ns) => view.left + ((view.scale.place(ns) - view.from) / (view.to - view.from)) * (width - view.left - 8);
    this.gaps();
    const drawn = [];
    const last = Math.min(view.tree.rows, view.first + Math.ceil((height - AXIS + view.offset) / ROW));
    for (let row = view.first; row < last; row += 1) {
      const top = AXIS + (row - view.first) * ROW - view.offset;
      const span = view.tree.at(row);
      this.row(row, top, span);
      if (span) drawn.push(row);
    }
    context.fillStyle = colour.ground;
    context.fillRect(0, 0, width, AXIS);
    this.axis();
    if (view.brushing) this.band(...view.brushing);
    return drawn;
  }

  gaps() {
    const { context, colour, height, view } = this;
    for (const held of view.scale.squeezed) {
      const [from, to] = [this.x(held.from), this.x(held.to)];
      if (to < view.left || from > this.width) continue;
      context.fillStyle = this.hatch(colour.line, 5);
      context.fillRect(Math.max(view.left, from), AXIS, to - Math.max(view.left, from), height - AXIS);
    }
  }

  axis() {
    const { context, colour, view, width } = this;
    context.font = this.numbers;
    context.textBaseline = "middle";
    const most = Math.max(2, Math.floor((width - view.left) / 90));
    const { step, ticks } = view.scale.ticks(view.from, view.to, most);
    let free = view.left - 4;
    const squeezed = view.scale.squeezed.map((held) => ({
      x: (this.x(held.from) + this.x(held.to)) / 2, text: `⋯ ${took(held.to - held.from)}`,
    })).filter(({ x }) => x > view.left && x < width - 8);
    const taken = [];
    context.textAlign = "center";
    for (const { x, text } of squeezed) {
      const half = this.measure(text, this.numbers) / 2 + 4;
      if (taken.some(([from, to]) => x + half > from && x - half < to)) continue;
      taken.push([x - half, x + half]);
      context.fillStyle = colour.soft;
      context.fillText(text, Math.min(Math.max(x, view.left + half), width - half), AXIS / 2);
    }
    context.textAlign = "left";
    for (const { ns } of ticks) {
      const x = Math.round(this.x(ns)) + 0.5;
      if (x < view.left - 1) continue;
      context.fillStyle = colour.line;
      context.fillRect(x - 0.5, AXIS - 5, 1, 5);
      const text = label(ns, step);
      const wide = this.measure(text, this.numbers);
      if (x < free || x + wide + 4 > width || taken.some(([from, to]) => x + wide + 6 > from && x < to)) continue;
      context.fillStyle = colour.soft;
      context.fillText(text, x + 3, AXIS / 2);
      free = x + wide + 14;
    }
    context.fillStyle = colour.line;
    context.fillRect(0, AXIS - 1, width, 1);
    context.fillRect(view.left - 1, 0, 1, this.height);
  }

  row(row, top, span) {
    const { context, colour, view, width } = this;
    const middle = top + ROW / 2;
    if (span && (span.id === view.selected || span.id === view.hovered)) {
      context.fillStyle = span.id === view.selected ? colour.select : colour.raised;
      context.fillRect(0, top, width, ROW);
    }
    context.textBaseline = "middle";
    context.textAlign = "left";
    if (!span) {
      context.fillStyle = colour.line;
      context.fillRect(10, middle - 2, 60, 4);
      return;
    }
    this.name(span, middle);
    context.save();
    context.beginPath();
    context.rect(view.left, top, width - view.left, ROW);
    context.clip();
    this.bar(span, top + (ROW - BAR) / 2);
    context.restore();
  }

  name(span, middle) {
    const { context, colour, view } = this;
    const depth = view.tree.depthOf(span);
    let x = 6 + Math.min(depth * 12, view.left / 3);
    context.font = this.font;
    if (view.tree.parents.has(span.id)) {
      context.fillStyle = colour.faint;
      context.fillText(view.tree.folded.has(span.id) ? "▸" : "▾", x, middle);
    }
    x += 13;
    const bad = ["failed", "unresolved"].includes(span.status);
    const gone = ["cut", "lost", "late"].includes(span.status);
    const glyph = GLYPHS[span.kind] ?? "";
    if (glyph) {
      context.fillStyle = span.kind === "undo" ? colour.undo : span.kind === "hedge" ? colour.accent : colour.faint;
      context.fillText(glyph, x, middle);
      x += 14;
    }
    context.fillStyle = bad ? colour.bad : gone ? colour.soft : span.kind === "undo" ? colour.undo : colour.ink;
    context.font = span.kind === "step" || span.kind === "run" ? `600 ${this.font}` : this.font;
    context.fillText(this.fit(span.name, view.left - x - 8, context.font), x, middle);
  }

  bar(span, top) {
    const { context, colour, view, width } = this;
    const open = span.ended_ns === null;
    const ended = open ? view.now : span.ended_ns;
    const [from, to] = [this.x(span.began_ns), this.x(ended)];
    const left = Math.max(from, view.left - 2);
    const right = Math.max(Math.min(to, width + 2), left + 2);
    const thin = ["attempt", "hedge", "turn", "admission"].includes(span.kind);
    const [y, high] = thin ? [top + 2, BAR - 4] : [top, BAR];
    if (to >= view.left && from <= width) {
      context.globalAlpha = ["cut", "lost"].includes(span.status) ? 0.45 : 1;
      context.fillStyle = this.base(span);
      context.fillRect(left, y, right - left, high);
      this.segments(span, y, high);
      context.globalAlpha = 1;
      this.state(span, left, right, y, high);
    }
    this.length(span, from, right, ended, top + BAR / 2);
  }

  base(span) {
    const { colour } = this;
    if (span.kind === "park") return this.hatch(colour.parked, 4);
    if (span.kind === "undo") return colour.undo;
    if (span.kind === "turn" || span.kind === "admission") return colour[span.kind];
    if (span.kind === "step" || span.kind === "run") return colour.line;
    return colour.io;
  }

  /** The accounts of a span. A run may have tens of thousands: what falls into one pixel is drawn once. */
  segments(span, y, high) {
    const { context, colour, width, view } = this;
    if (span.kind === "undo" || span.kind === "park") return;
    let drawnTo = -1;
    for (const segment of span.segments) {
      const to = Math.min(this.x(segment.ended_ns), width + 2);
      if (to <= drawnTo || to < view.left) continue;
      const from = Math.max(this.x(segment.began_ns), view.left - 2, drawnTo);
      if (from > width) break;
      const right = Math.max(to, Math.floor(from) + 1);
      context.fillStyle = segment.account === "parked" ? this.hatch(colour.parked, 4) : colour[segment.account];
      context.fillRect(from, y, right - from, high);
      drawnTo = right;
    }
  }

  /** What happened to it: an outline or a hatch beside the colour. */
  state(span, left, right, y, high) {
    const { context, colour } = this;
    const wide = right - left;
    if (span.status === "failed" || span.status === "unresolved") {
      context.fillStyle = colour.bad;
      context.fillRect(left, y + high - 2, wide, 3);
      context.fillRect(right - 2, y - 2, 2, high + 4);
      if (span.status === "unresolved") {
        context.fillStyle = this.hatch(colour.bad, 4);
        context.fillRect(left, y, wide, high);
      }
    } else if (span.status === "cut" || span.status === "lost") {
      context.fillStyle = this.hatch(colour.soft, 4);
      context.fillRect(left, y, wide, high);
      if (span.status === "cut") context.fillRect(right - 2, y - 2, 2, high + 4);
    } else if (span.status === "late") {
      context.strokeStyle = colour.warn;
      context.setLineDash([3, 2]);
      context.strokeRect(left + 0.5, y - 0.5, Math.max(1, wide - 1), high + 1);
      context.setLineDash([]);
    } else if (span.status === "running") {
      context.fillStyle = colour.accent;
      context.fillRect(right - 3, y - 2, 3, high + 4);
    }
    if (span.kind === "hedge") {
      context.strokeStyle = colour.accent;
      context.strokeRect(left + 0.5, y + 0.5, Math.max(1, wide - 1), high - 1);
    }
  }

  length(span, from, right, ended, middle) {
    const { context, colour, view, width } = this;
    const sign = SIGNS[span.status] ?? "";
    const long = ended - span.began_ns;
    const text = [long < 100_000 ? fine(long) : took(long), sign, sign && span.status !== "running" ? span.status : ""]
      .filter(Boolean).join(" ");
    const wide = this.measure(text, this.numbers);
    context.font = this.numbers;
    context.fillStyle = ["failed", "unresolved"].includes(span.status) ? colour.bad : colour.soft;
    if (from > width) context.fillText("›", width - 10, middle);
    else if (right < view.left) context.fillText("‹", view.left + 3, middle);
    else if (right + 6 + wide < width) context.fillText(text, right + 6, middle);
    else if (from - 6 - wide > view.left) context.fillText(text, from - 6 - wide, middle);
    else this.inside(text, Math.max(from, view.left) + 5, wide, middle);
  }

  /** A bar as wide as the page: its length stands on it, on a ground of its own, as colours differ. */
  inside(text, x, wide, middle) {
    const { context, colour } = this;
    context.fillStyle = colour.ground;
    context.globalAlpha = 0.86;
    context.fillRect(x - 3, middle - 6, wide + 6, 12);
    context.globalAlpha = 1;
    context.fillStyle = colour.ink;
    context.fillText(text, x, middle);
  }

  band(one, other) {
    const { context, colour, height } = this;
    context.globalAlpha = 0.18;
    context.fillStyle = colour.accent;
    context.fillRect(Math.min(one, other), 0, Math.abs(other - one), height);
    context.globalAlpha = 1;
  }

  hatch(colour, size) {
    const name = `${colour} ${size}`;
    if (!this.hatches[name]) {
      const side = size * this.dense;
      const tile = document.createElement("canvas");
      tile.width = tile.height = side;
      const pen = tile.getContext("2d");
      pen.strokeStyle = colour;
      pen.lineWidth = this.dense * 1.2;
      for (const shift of [-side, 0, side]) {
        pen.moveTo(shift, side);
        pen.lineTo(shift + side, 0);
      }
      pen.stroke();
      const pattern = this.context.createPattern(tile, "repeat");
      pattern.setTransform(new DOMMatrix().scale(1 / this.dense));
      this.hatches[name] = pattern;
    }
    return this.hatches[name];
  }

  measure(text, font) {
    const key = `${font}${text}`;
    let found = this.widths.get(key);
    if (found === undefined) {
      if (this.widths.size > 5000) this.widths.clear();
      this.context.font = font;
      found = this.context.measureText(text).width;
      this.widths.set(key, found);
    }
    return found;
  }

  /** A text cut to a width. */
  fit(text, width, font) {
    if (width < 12) return "";
    if (this.measure(text, font) <= width) return text;
    let [low, high] = [0, text.length];
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.measure(`${text.slice(0, middle)}…`, font) <= width) low = middle;
      else high = middle - 1;
    }
    return `${text.slice(0, low)}…`;
  }
}

/** A tick, with no more digits than the step needs. */
function label(ns, step) {
  if (ns >= 100e9 || step >= 1e9) return `${(ns / 1e9).toFixed(step < 1e9 ? 1 : 0)}s`;
  const digits = step >= 1e6 ? 0 : step >= 1e5 ? 1 : step >= 1e4 ? 2 : 3;
  return `${(ns / 1e6).toFixed(digits)}ms`;
}
