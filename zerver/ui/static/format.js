// Numbers as people read them. Law: pure functions; the words are those of `zerver trace`.

const MS = 1e6;

/** A length of time in nanoseconds: 0.4ms, 87.9ms, 1.204s, 3m 12s. */
export function took(ns) {
  if (ns === null || ns === undefined) return "–";
  if (ns < 0) return `−${took(-ns)}`;
  if (ns < 1000 * MS) return `${(ns / MS).toFixed(1)}ms`;
  if (ns < 100e9) return `${(ns / 1e9).toFixed(ns < 10e9 ? 2 : 1)}s`;
  const seconds = Math.round(ns / 1e9);
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${pad(seconds % 60)}s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h ${pad(Math.floor((seconds % 3600) / 60))}m`;
  return `${Math.floor(seconds / 86400)}d ${Math.floor((seconds % 86400) / 3600)}h`;
}

/** The same, with as many digits as a short stretch needs: 412ns, 8.3µs. */
export function fine(ns) {
  if (ns === null || ns === undefined) return "–";
  if (Math.abs(ns) < 1000) return `${Math.round(ns)}ns`;
  if (Math.abs(ns) < MS) return `${(ns / 1000).toFixed(1)}µs`;
  return took(ns);
}

/** A time since the run was received, as the text timeline shows it. */
export function clock(at, last) {
  return last < 100e9 ? `${(at / MS).toFixed(1)}ms` : `${(at / 1e9).toFixed(3)}s`;
}

/** How long ago, from two wall-clock times in milliseconds. */
export function ago(then, now) {
  const seconds = Math.max(0, (now - then) / 1000);
  if (seconds < 1) return "now";
  if (seconds < 60) return `${Math.floor(seconds)}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${pad(Math.floor(seconds % 60))}s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h ${pad(Math.floor((seconds % 3600) / 60))}m`;
  return `${Math.floor(seconds / 86400)}d`;
}

/** The same as a phrase: "3m 02s ago", "now". */
export function since(then, now) {
  return now - then < 1000 ? "now" : `${ago(then, now)} ago`;
}

/** A wall-clock time in the reader's own zone, to the millisecond. */
export function date(unixMs) {
  const d = new Date(unixMs);
  const day = `${d.getFullYear()}-${pad(d.getMonth() + 1)}-${pad(d.getDate())}`;
  const time = `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
  return `${day} ${time}.${String(d.getMilliseconds()).padStart(3, "0")}`;
}

const WHOLE = new Intl.NumberFormat("en");

/** A count: 12,045. */
export function count(number) {
  return number === null || number === undefined ? "–" : WHOLE.format(number);
}

/** A rate per second. */
export function rate(number) {
  if (number === null || number === undefined) return "–";
  return number >= 100 ? WHOLE.format(Math.round(number)) : number.toFixed(1);
}

/** A run's id, short enough for a line. */
export function shortId(id) {
  return id.length > 14 ? `${id.slice(0, 12)}…` : id;
}

/** A JSON value on one line, cut. */
export function brief(value, most = 120) {
  const text = typeof value === "string" ? value : JSON.stringify(value);
  return text === undefined ? "–" : text.length > most ? `${text.slice(0, most - 1)}…` : text;
}

export const ACCOUNTS = ["admission", "turn", "cpu", "io", "parked"];

const MARKS = {
  done: "✓", failed: "✗", defect: "✗", deadline: "⏱", cancelled: "⊘", refused: "⊝", running: "▸",
  ok: "✓", cut: "⊘", late: "◷", lost: "≠", unresolved: "⚠", waiting: "…",
  parked: "‖",
};

/** One character for a status; colour is never the only sign. */
export function mark(status) {
  return MARKS[status] ?? "·";
}

function pad(number) {
  return String(number).padStart(2, "0");
}
