// The waterfall: rows of spans on one squeezed axis. Law: a canvas with only the rows that can be seen, and beside it a
// list of the same rows for those who do not see it; both are bounded, however long the run is.

import { fill, h, perFrame } from "./dom.js";
import { clock, took } from "./format.js";
import { AXIS, Brush, ROW } from "./paint.js";
import { Scale } from "./scale.js";
import { Tree } from "./tree.js";

const AHEAD = 400; // rows before the end of what has come, at which more is asked for

/**
 * options: {selected, onSelect(span | null), more: async (from) => window | null}.
 * Returns {element, show(view), select(id), bindings, statistics(), close()}.
 */
export function waterfall({ selected = null, onSelect, more = null }) {
  const canvas = h("canvas", { "aria-hidden": "true" });
  const spacer = h("div", { class: "spacer" });
  const mirror = h("div", { class: "unseen", role: "group" });
  const tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
  const box = h("div", { class: "waterfall", tabindex: "0", role: "tree", "aria-label": "Waterfall of spans" },
    spacer, mirror);
  const element = h("div", { class: "waterfall-frame" }, canvas, box, tip); // the box scrolls, before the canvas
  const brush = new Brush(canvas);
  let tree = new Tree();
  let scale = new Scale(1, []);
  let view = null;
  let squeeze = true;
  let range = [0, 1]; // places on the axis
  let hovered = null;
  let brushing = null;
  let loading = false;
  let drawn = [];
  const draw = perFrame(drawNow);

  function show(told) {
    const before = view;
    view = told;
    tree = new Tree();
    tree.add(told.spans);
    rescale(before !== null && before.header.total_ns === told.header.total_ns);
    if (selected !== null) tree.reveal(selected);
    resize();
    if (before === null && selected !== null) bring(selected);
    loadMore();
  }

  function rescale(stay = false) {
    scale = new Scale(Math.max(view.header.total_ns, ...view.spans.items.slice(0, 1).map((s) => s.ended_ns ?? 0)),
      view.gaps, squeeze);
    if (!stay) range = [0, scale.length];
    draw();
  }

  function resize() {
    spacer.style.height = `${Math.max(0, tree.rows * ROW + AXIS)}px`;
    brush.resize(box.clientWidth, box.clientHeight);
    draw();
  }

  function left() {
    return Math.round(Math.min(300, Math.max(110, box.clientWidth * 0.32)));
  }

  function drawNow() {
    if (!view || !box.clientWidth) return;
    const first = Math.floor(box.scrollTop / ROW);
    drawn = brush.draw({ tree, scale, from: range[0], to: range[1], first, offset: box.scrollTop % ROW, left: left(),
      selected, hovered, brushing: brushing && [brushing.from, brushing.to], now: view.header.total_ns });
    reflect();
    if (first + drawn.length + AHEAD > tree.spans.length) loadMore();
  }

  /** The rows that are drawn, as a tree for assistive technology. */
  function reflect() {
    fill(mirror, drawn.map((row) => {
      const span = tree.at(row);
      const depth = tree.depthOf(span);
      return h("div", { role: "treeitem", id: `span-${span.id}`, "data-span": span.id, "data-kind": span.kind,
        "data-status": span.status, "aria-level": depth + 1, "aria-setsize": tree.rows, "aria-posinset": row + 1,
        "aria-selected": String(span.id === selected),
        "aria-expanded": tree.parents.has(span.id) ? String(!tree.folded.has(span.id)) : null }, told(span, view));
    }));
    if (tree.rowOf(selected) >= 0 && drawn.includes(tree.rowOf(selected))) {
      box.setAttribute("aria-activedescendant", `span-${selected}`);
    } else box.removeAttribute("aria-activedescendant");
  }

  async function loadMore() {
    if (!more || loading || tree.complete) return;
    const first = Math.floor(box.scrollTop / ROW);
    const needed = first + box.clientHeight / ROW + AHEAD;
    if (needed < (tree.order ? tree.order.length : tree.spans.length)) return;
    loading = true;
    const wanted = tree;
    try {
      const window = await more(tree.spans.length);
      if (window && wanted === tree && window.items.length) {
        tree.add(window);
        resize();
      }
    } finally {
      loading = false;
    }
    if (wanted === tree && !tree.complete) draw();
  }

  function choose(id, { scroll = true } = {}) {
    selected = id;
    if (id !== null && scroll) bring(id);
    draw();
    onSelect(id === null ? null : tree.get(id) ?? null);
  }

  function bring(id) {
    const row = tree.rowOf(id);
    if (row < 0) return;
    const top = row * ROW;
    const room = box.clientHeight - AXIS - ROW;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top > box.scrollTop + room) box.scrollTop = top - room;
  }

  function step(by, fits = () => true) {
    const row = tree.rowOf(selected);
    const found = row < 0 ? (tree.at(0) && fits(tree.at(0)) ? 0 : tree.seek(0, 1, fits)) : tree.seek(row, by, fits);
    const span = found < 0 ? null : tree.at(found);
    if (span) choose(span.id);
  }

  function fold(folded) {
    const span = tree.get(selected);
    if (!span) return;
    const can = tree.parents.has(span.id) && tree.folded.has(span.id) !== folded;
    if (can) {
      tree.fold(span.id, folded);
      resize();
    } else if (folded && span.parent !== null) choose(span.parent);
    else if (!folded && tree.parents.has(span.id)) step(1);
  }

  // ---- zoom ----

  function placeOf(x) {
    return range[0] + ((x - left()) / (box.clientWidth - left() - 8)) * (range[1] - range[0]);
  }

  function zoom(factor, around = (range[0] + range[1]) / 2) {
    const least = Math.min(scale.length, Math.max(50, scale.length / 1e6));
    const width = Math.min(scale.length, Math.max(least, (range[1] - range[0]) * factor));
    const share = (around - range[0]) / (range[1] - range[0]);
    setRange(around - share * width, width);
  }

  function setRange(from, width) {
    const start = Math.max(0, Math.min(scale.length - width, from));
    range = [start, start + width];
    draw();
  }

  function pan(share) {
    const width = range[1] - range[0];
    setRange(range[0] + width * share, width);
  }

  function zoomTo(span) {
    if (!span) return;
    const from = scale.place(span.began_ns);
    const to = scale.place(span.ended_ns ?? view.header.total_ns);
    const width = Math.min(scale.length, Math.max((to - from) * 1.15, 50));
    setRange(from - (width - (to - from)) / 2, width);
  }

  function toggleSqueeze() {
    squeeze = !squeeze;
    rescale();
  }

  // ---- pointer ----

  function at(event) {
    const area = box.getBoundingClientRect();
    const x = event.clientX - area.left;
    const y = event.clientY - area.top;
    const row = y < AXIS ? -1 : Math.floor((y - AXIS + box.scrollTop) / ROW);
    return { x, y, span: row < 0 ? undefined : tree.at(row) };
  }

  box.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) {
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, placeOf(Math.max(left(), at(event).x)));
    } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      event.preventDefault();
      pan((event.deltaX || event.deltaY) / box.clientWidth);
    }
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    const { x } = at(event);
    if (event.button !== 0 || event.pointerType === "touch" || x >= box.clientWidth) return;
    brushing = { start: x, from: x, to: x };
    box.setPointerCapture(event.pointerId);
  });
  box.addEventListener("pointermove", (event) => {
    const { x, span } = at(event);
    if (brushing) {
      brushing.to = x;
      brushing.moved ||= Math.abs(x - brushing.start) > 5 && brushing.start >= left();
      if (!brushing.moved) brushing.to = brushing.from;
      draw();
    }
    const id = span?.id ?? null;
    if (id !== hovered) {
      hovered = id;
      draw();
    }
    showTip(event, span);
  });
  const finish = (event) => {
    const done = brushing;
    brushing = null;
    if (done?.moved) {
      const [from, to] = [placeOf(Math.min(done.from, done.to)), placeOf(Math.max(done.from, done.to))];
      setRange(Math.max(0, from), Math.max(50, Math.min(scale.length, to) - Math.max(0, from)));
    } else if (event.type === "pointerup" && (done || event.pointerType === "touch")) click(event);
    draw();
  };
  box.addEventListener("pointerup", finish);
  box.addEventListener("pointercancel", finish);
  box.addEventListener("pointerleave", () => {
    hovered = null;
    tip.hidden = true;
    draw();
  });
  box.addEventListener("dblclick", (event) => {
    const { x, span } = at(event);
    if (span && x >= left()) zoomTo(span);
    else setRange(0, scale.length);
  });
  box.addEventListener("scroll", () => {
    tip.hidden = true;
    draw();
  });

  function click(event) {
    const { x, span } = at(event);
    if (!span) return;
    const folder = 6 + Math.min(tree.depthOf(span) * 12, left() / 3);
    if (tree.parents.has(span.id) && x >= folder - 6 && x <= folder + 14) {
      tree.fold(span.id, !tree.folded.has(span.id));
      resize();
    } else choose(span.id, { scroll: false });
  }

  function showTip(event, span) {
    tip.hidden = !span || event.pointerType === "touch" || Boolean(brushing?.moved);
    if (tip.hidden) return;
    fill(tip, h("b", null, span.name), ` ${told(span, view).slice(span.name.length)}`);
    const area = element.getBoundingClientRect();
    const x = Math.min(event.clientX - area.left + 14, area.width - tip.offsetWidth - 4);
    tip.style.transform = `translate(${Math.max(0, x)}px, ${event.clientY - area.top + 18}px)`;
  }

  const watch = new ResizeObserver(resize);
  watch.observe(box);
  const restyle = () => {
    brush.restyle();
    draw();
  };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", restyle);
  window.addEventListener("themechange", restyle);

  const bad = (span) => ["failed", "unresolved", "cut", "late", "lost"].includes(span.status);
  return {
    element,
    show,
    select: (id) => choose(id),
    bindings: {
      "j": ["Next span", () => step(1)],
      "ArrowDown": ["Next span", () => step(1)],
      "k": ["Previous span", () => step(-1)],
      "ArrowUp": ["Previous span", () => step(-1)],
      "n": ["Next span that went wrong", () => step(1, bad)],
      "N": ["Previous span that went wrong", () => step(-1, bad)],
      "ArrowRight": ["Unfold, or go inside", () => fold(false)],
      "ArrowLeft": ["Fold, or go outside", () => fold(true)],
      "+": ["Zoom in", () => zoom(0.66)],
      "=": ["Zoom in", () => zoom(0.66)],
      "-": ["Zoom out", () => zoom(1.5)],
      "Shift+ArrowLeft": ["Move the window", () => pan(-0.25)],
      "Shift+ArrowRight": ["Move the window", () => pan(0.25)],
      "z": ["Zoom to the selected span", () => zoomTo(tree.get(selected))],
      "0": ["Show the whole run", () => setRange(0, scale.length)],
      "s": ["Squeeze silences, or not", toggleSqueeze],
      "Home": ["First span", () => tree.at(0) && choose(tree.at(0).id)],
    },
    /** What is on the canvas now; for tests and for the curious. */
    statistics: () => ({ rows: tree.rows, loaded: tree.spans.length, drawn: drawn.length, selected, squeeze,
      window: [scale.ns(range[0]), scale.ns(range[1])], squeezed: scale.squeezed.length }),
    close() {
      watch.disconnect();
      draw.cancel();
      dark.removeEventListener("change", restyle);
      window.removeEventListener("themechange", restyle);
    },
  };
}

/** A span in one sentence. */
function told(span, view) {
  const ended = span.ended_ns === null ? "under way" : took(span.ended_ns - span.began_ns);
  return `${span.name}, ${span.kind}, ${span.status}, ${ended}, at ${clock(span.began_ns, view.header.total_ns)}`;
}
