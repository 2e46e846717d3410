// The flow's graph with what happened laid over it. Law: places come from dag.js, states and times from the server;
// a node is a button, so that keys and readers get there.

import { curve, layout } from "./dag.js";
import { fill, h, svg } from "./dom.js";
import { fine, mark, took } from "./format.js";
import { facts } from "./parts.js";

/**
 * graph: {nodes, edges}; total_ns: of the run, 0 without one; onSelect(node).
 * Returns {element, select(id)}.
 */
export function drawGraph(graph, total, onSelect) {
  const plan = layout(graph.nodes, graph.edges);
  const groups = new Map();
  const picture = svg("svg", { class: "dag", width: plan.width, height: plan.height, role: "group",
    viewBox: `0 0 ${plan.width} ${plan.height}`, "aria-label": "Steps of the flow" },
  svg("defs", null, ["taken", "idle"].map((kind) =>
    svg("marker", { id: `arrow-${kind}`, class: `arrow ${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 7,
      markerHeight: 7, orient: "auto" }, svg("path", { d: "M0,0 L8,4 L0,8 z" })))));
  for (const { edge, points } of plan.edges) {
    const kind = edge.taken ? "taken" : "idle";
    picture.append(svg("path", { class: `edge ${kind}`, d: curve(points), "marker-end": `url(#arrow-${kind})` }));
    if (edge.label) {
      const [x, y] = points[1];
      picture.append(svg("text", { class: "edge-label", x: x + 7, y: y - 8 }, edge.label));
    }
  }
  for (const node of graph.nodes) {
    const cell = plan.nodes.get(node.id);
    const group = node.shape === "point" ? point(cell) : box(node, cell, total, onSelect);
    groups.set(node.id, group);
    picture.append(group);
  }
  return {
    element: h("div", { class: "scroll dag-frame", tabindex: "0", role: "region", "aria-label": "Graph" }, picture),
    select(id) {
      for (const [key, group] of groups) {
        if (group.hasAttribute("role")) group.setAttribute("aria-pressed", String(key === id));
      }
      const group = groups.get(id);
      group?.focus({ preventScroll: true });
      group?.scrollIntoView({ block: "nearest", inline: "nearest" });
    },
  };
}

function point(cell) {
  const radius = cell.width / 2;
  return svg("circle", { class: "point", cx: cell.x + radius, cy: cell.y + radius, r: radius - 2 });
}

function box(node, cell, total, onSelect) {
  const choice = node.shape === "choice";
  const timed = node.took_ns !== null && node.took_ns !== undefined;
  const words = [node.label, node.status ?? "not reached", timed ? took(node.took_ns) : ""].filter(Boolean).join(", ");
  const press = () => onSelect(node);
  const group = svg("g", { class: "node", role: "button", tabindex: "0", "aria-pressed": "false", "aria-label": words,
    "data-node": node.id, "data-status": node.status ?? "none", "data-shape": node.shape,
    transform: `translate(${cell.x},${cell.y})`, onclick: press, onkeydown: (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      press();
    } },
  svg("title", null, words),
  svg("rect", { class: "body", width: cell.width, height: cell.height, rx: choice ? 18 : 5 }),
  svg("text", { class: "name", x: choice ? 16 : 10, y: 21 }, cut(node.label, 25)));
  if (node.status) {
    group.append(svg("text", { class: "sign", x: cell.width - 10, y: 21, "text-anchor": "end" }, mark(node.status)));
  }
  const notes = [timed ? took(node.took_ns) : node.status === null && total ? "not reached" : "",
    node.attempts > Math.max(1, node.effects) ? `${node.attempts} attempts` : "",
    node.effects ? `${node.effects} effect${node.effects > 1 ? "s" : ""}` : "", node.pivot ? "pivot" : ""];
  group.append(svg("text", { class: "note", x: choice ? 16 : 10, y: 38 }, notes.filter(Boolean).join("  ")));
  if (timed && total > 0) group.append(...strip(node, cell, total));
  return group;
}

/** Where in the run the step was: a strip as wide as the run, with the step's own stretch on it. */
function strip(node, cell, total) {
  const [x, wide, y] = [10, cell.width - 20, cell.height - 9];
  const from = x + (wide * node.began_ns) / total;
  const ended = node.ended_ns ?? total;
  const long = Math.max(2, (wide * (ended - node.began_ns)) / total);
  const parts = [["io", node.io_ns], ["parked", node.parked_ns], ["cpu", node.cpu_ns]].filter(([, ns]) => ns > 0);
  const sum = parts.reduce((all, [, ns]) => all + ns, 0) || 1;
  let at = Math.min(from, x + wide - long);
  const shapes = [svg("rect", { class: "track", x, y, width: wide, height: 4 })];
  for (const [name, ns] of parts.length ? parts : [["cpu", 1]]) {
    const width = (long * ns) / sum;
    shapes.push(svg("rect", { class: "stretch", "data-account": name, x: at, y, width, height: 4 }));
    at += width;
  }
  return shapes;
}

/** What is known of a node, beside the graph. */
export function showNode(root, node, run) {
  if (!node) {
    fill(root, h("p", { class: "soft" }, "Choose a step to see what it read and wrote, and where its time went."));
    return;
  }
  const list = (names) => (names.length ? names.map((name) => [h("code", null, name), " "]) : h("span", { class: "soft" }, "–"));
  fill(root, h("h2", null, node.label), facts([
    ["status", node.status ?? "not reached"],
    ...(node.took_ns === null ? [] : [["took", fine(node.took_ns)], ["cpu", fine(node.cpu_ns)], ["io", fine(node.io_ns)],
      ...(node.parked_ns ? [["parked", fine(node.parked_ns)]] : []), ["effects", node.effects],
      ["attempts", node.attempts]]),
    ["reads", list(node.reads)], ["writes", list(node.writes)], ...(node.pivot ? [["pivot", "nothing before it is undone"]] : []),
  ]), run && node.step ? h("p", null, h("a", { href: run }, "Replay until this step")) : null);
}

function cut(text, most) {
  return text.length > most ? `${text.slice(0, most - 1)}…` : text;
}
