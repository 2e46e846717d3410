// A layered drawing of a flow. Law: pure: nodes and edges in, places and paths out; the same graph is always drawn the
// same. Layers by longest path, order inside a layer by the middle of the neighbours (Sugiyama's method, small).

const WIDE = 216;
const HIGH = 54;
const POINT = 12;
const ACROSS = 28;
const DOWN = 36;

/**
 * nodes: [{id, shape}], edges: [{source, target}]; an edge that closes a circle is drawn, and not obeyed.
 * Returns {width, height, nodes: Map id -> {x, y, width, height}, edges: [{edge, points: [[x, y], …]}]}.
 */
export function layout(nodes, edges) {
  const known = new Set(nodes.map((node) => node.id));
  const kept = edges.filter((edge) => known.has(edge.source) && known.has(edge.target));
  const layer = layers(nodes, kept);
  const { rows, chains } = withBends(nodes, kept, layer);
  order(rows, chains);
  return place(nodes, kept, rows, chains);
}

/** The longest way to each node from any that has no edge in. */
function layers(nodes, edges) {
  const ahead = new Map(nodes.map((node) => [node.id, []]));
  const missing = new Map(nodes.map((node) => [node.id, 0]));
  for (const { source, target } of edges) {
    ahead.get(source).push(target);
    missing.set(target, missing.get(target) + 1);
  }
  const layer = new Map(nodes.map((node) => [node.id, 0]));
  const ready = nodes.filter((node) => missing.get(node.id) === 0).map((node) => node.id);
  for (let at = 0; at < ready.length; at += 1) {
    for (const next of ahead.get(ready[at])) {
      layer.set(next, Math.max(layer.get(next), layer.get(ready[at]) + 1));
      missing.set(next, missing.get(next) - 1);
      if (missing.get(next) === 0) ready.push(next);
    }
  }
  return layer;
}

/** Rows of cells; an edge over more than one layer bends in a cell of its own in each. */
function withBends(nodes, edges, layer) {
  const rows = [];
  const row = (n) => (rows[n] ??= []);
  for (const node of nodes) row(layer.get(node.id)).push({ id: node.id, width: node.shape === "point" ? POINT : WIDE });
  const chains = edges.map((edge, index) => {
    const chain = [edge.source];
    for (let n = layer.get(edge.source) + 1; n < layer.get(edge.target); n += 1) {
      const id = `bend ${index} ${n}`;
      row(n).push({ id, width: 8, bend: true });
      chain.push(id);
    }
    chain.push(edge.target);
    return chain;
  });
  return { rows: rows.map((cells) => cells ?? []), chains };
}

function order(rows, chains) {
  const above = new Map();
  const below = new Map();
  const note = (map, key, value) => map.set(key, [...(map.get(key) ?? []), value]);
  for (const chain of chains) {
    for (let n = 1; n < chain.length; n += 1) {
      note(above, chain[n], chain[n - 1]);
      note(below, chain[n - 1], chain[n]);
    }
  }
  const sweep = (from, to, neighbours) => {
    const at = new Map(from.map((cell, index) => [cell.id, index]));
    const middle = (cell, index) => {
      const found = (neighbours.get(cell.id) ?? []).map((id) => at.get(id)).filter((n) => n !== undefined);
      return found.length ? found.reduce((sum, n) => sum + n, 0) / found.length : index;
    };
    const keys = new Map(to.map((cell, index) => [cell.id, middle(cell, index)]));
    to.sort((a, b) => keys.get(a.id) - keys.get(b.id));
  };
  for (let round = 0; round < 4; round += 1) {
    for (let n = 1; n < rows.length; n += 1) sweep(rows[n - 1], rows[n], above);
    for (let n = rows.length - 2; n >= 0; n -= 1) sweep(rows[n + 1], rows[n], below);
  }
}

function place(nodes, edges, rows, chains) {
  const widths = rows.map((cells) => cells.reduce((sum, cell) => sum + cell.width + ACROSS, -ACROSS));
  const width = Math.max(WIDE, ...widths);
  const where = new Map();
  let y = 4;
  rows.forEach((cells, n) => {
    let x = (width - widths[n]) / 2 + 4;
    const high = cells.some((cell) => cell.width === WIDE) ? HIGH : POINT;
    for (const cell of cells) {
      const own = cell.bend ? high : cell.width === WIDE ? HIGH : POINT;
      where.set(cell.id, { x, y: y + (high - own) / 2, width: cell.width, height: own });
      x += cell.width + ACROSS;
    }
    y += high + DOWN;
  });
  const paths = edges.map((edge, index) => ({ edge, points: through(chains[index].map((id) => where.get(id))) }));
  return {
    width: width + 8,
    height: y - DOWN + 4,
    nodes: new Map(nodes.map((node) => [node.id, where.get(node.id)])),
    edges: paths,
  };
}

/** From the foot of the first, down through the bends, to the head of the last. */
function through(cells) {
  const points = [];
  cells.forEach((cell, n) => {
    const x = cell.x + cell.width / 2;
    if (n > 0) points.push([x, cell.y]);
    if (n < cells.length - 1) points.push([x, cell.y + cell.height]);
  });
  return points;
}

/** An SVG path of such points: curves that leave and arrive upright. */
export function curve(points) {
  return points.map(([x, y], n) => {
    if (n === 0) return `M${x},${y}`;
    const [before, above] = points[n - 1];
    const middle = (above + y) / 2;
    return before === x ? `L${x},${y}` : `C${before},${middle} ${x},${middle} ${x},${y}`;
  }).join(" ");
}
