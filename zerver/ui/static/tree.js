// The spans of a run as a list of rows. Law: spans come in the order of the tree, window by window; a row is a span
// that no folded ancestor hides. Knows no pixels and asks nobody.

export class Tree {
  constructor() {
    this.spans = []; // in the server's order
    this.depth = []; // beside spans
    this.index = new Map(); // id -> index
    this.parents = new Set(); // ids that have children
    this.folded = new Set();
    this.total = 0;
    this.order = null; // indexes of rows; null while nothing is hidden: then row n is span n
  }

  /** Add a window {total, items}; it follows what is here. */
  add(window) {
    this.total = window.total;
    for (const span of window.items) {
      const parent = span.parent === null ? undefined : this.index.get(span.parent);
      this.index.set(span.id, this.spans.length);
      this.depth.push(parent === undefined ? 0 : this.depth[parent] + 1);
      if (parent !== undefined) this.parents.add(span.parent);
      this.spans.push(span);
    }
    this.arrange();
  }

  /** How many rows there are, those included that have not come yet. */
  get rows() {
    return (this.order ? this.order.length : this.spans.length) + (this.total - this.spans.length);
  }

  get complete() {
    return this.spans.length >= this.total;
  }

  /** The span of a row; undefined when it has not come yet. */
  at(row) {
    return this.spans[this.order ? this.order[row] : row];
  }

  depthOf(span) {
    return this.depth[this.index.get(span.id)];
  }

  /** The row of a span; -1 when it is hidden or has not come. */
  rowOf(id) {
    const index = this.index.get(id);
    if (index === undefined) return -1;
    return this.order ? this.order.indexOf(index) : index;
  }

  get(id) {
    return this.spans[this.index.get(id)];
  }

  fold(id, folded) {
    if (!this.parents.has(id)) return false;
    if (folded) this.folded.add(id);
    else this.folded.delete(id);
    this.arrange();
    return true;
  }

  /** Unfold whatever hides a span. */
  reveal(id) {
    for (let span = this.get(id); span && span.parent !== null; span = this.get(span.parent)) {
      this.folded.delete(span.parent);
    }
    this.arrange();
  }

  /** The next row from `row` on, in a direction, whose span fits; -1 without one. */
  seek(row, by, fits) {
    for (let at = row + by; at >= 0 && at < this.rows; at += by) {
      const span = this.at(at);
      if (span && fits(span)) return at;
    }
    return -1;
  }

  arrange() {
    if (this.folded.size === 0) {
      this.order = null;
      return;
    }
    this.order = [];
    let hidden = Infinity; // rows deeper than this are inside of a folded one
    for (let index = 0; index < this.spans.length; index += 1) {
      if (this.depth[index] > hidden) continue;
      hidden = this.folded.has(this.spans[index].id) ? this.depth[index] : Infinity;
      this.order.push(index);
    }
  }
}
