// A time axis that squeezes silences. Law: pure; monotonic; `ns(place(x)) === x` but for rounding. A gap keeps its
// place in time and loses its width: a run that was parked for a day is still read in one look.

export class Scale {
  /** total: ns. gaps: [{began_ns, ended_ns, account}] in order. squeeze: whether to. */
  constructor(total, gaps, squeeze = true) {
    this.total = Math.max(1, total);
    this.stretches = []; // {from, to, at, width, gap}: in time, and on the axis
    const long = squeeze ? outstanding(gaps, this.total) : [];
    const silent = long.reduce((sum, gap) => sum + length(gap), 0);
    const busy = Math.max(this.total - silent, this.total / 1000);
    const narrow = busy / Math.max(9, long.length * 3);
    let time = 0;
    let at = 0;
    const add = (to, width, gap) => {
      if (to <= time) return;
      this.stretches.push({ from: time, to, at, width, gap });
      time = to;
      at += width;
    };
    for (const gap of long) {
      if (gap.began_ns < time) continue;
      add(gap.began_ns, gap.began_ns - time, null);
      add(Math.min(gap.ended_ns, this.total), narrow, gap);
    }
    add(this.total, this.total - time, null);
    this.length = at;
    this.squeezed = this.stretches.filter(({ gap }) => gap !== null);
  }

  /** Where on the axis a time is. */
  place(ns) {
    const held = this.find(ns, "from");
    const share = Math.min(1, Math.max(0, (ns - held.from) / (held.to - held.from)));
    return held.at + share * held.width;
  }

  /** Which time is at a place of the axis. */
  ns(place) {
    const held = this.find(place, "at");
    const share = Math.min(1, Math.max(0, (place - held.at) / held.width));
    return held.from + share * (held.to - held.from);
  }

  find(wanted, side) {
    let low = 0;
    let high = this.stretches.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.stretches[middle][side] <= wanted) low = middle;
      else high = middle - 1;
    }
    return this.stretches[low];
  }

  /** Round times for the labels of a window [from, to] of the axis, at least `apart` of its length from each other. */
  ticks(from, to, most) {
    const ticks = [];
    const step = nice((to - from) / Math.max(1, most));
    for (const held of this.stretches) {
      if (held.gap || held.at > to || held.at + held.width < from) continue;
      const began = Math.max(held.from, this.ns(Math.max(from, held.at)));
      const ended = Math.min(held.to, this.ns(Math.min(to, held.at + held.width)));
      for (let ns = Math.ceil(began / step) * step; ns <= ended; ns += step) ticks.push({ ns, at: this.place(ns) });
    }
    return { step, ticks };
  }
}

function length(gap) {
  return gap.ended_ns - gap.began_ns;
}

/**
 * The gaps that are of another order than the rest, and take most of the picture; in order of time. An ordinary run
 * waits most of its time too, but in waits that compare with one another: squeezing those would only lie.
 */
function outstanding(gaps, total) {
  const sorted = [...gaps].sort((a, b) => length(b) - length(a));
  let sum = 0;
  let most = 0;
  sorted.forEach((gap, index) => {
    sum += length(gap);
    const next = Math.max(total / 50, index + 1 < sorted.length ? length(sorted[index + 1]) : 0);
    if (length(gap) > 4 * next && sum > 0.8 * total) most = index + 1;
  });
  const chosen = new Set(sorted.slice(0, most));
  return gaps.filter((gap) => chosen.has(gap));
}

/** The next of 1, 2, 5, 10, … */
function nice(rough) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, rough)));
  return [1, 2, 5, 10].map((n) => n * power).find((n) => n >= rough) ?? 10 * power;
}
