// The URL is the selection: #/runs/ID/graph?step=charge. Law: whatever a reader chose is in the hash, so that reload,
// back and a link sent to a colleague show the same.

/** {path: [part, …], query: {name: value}} of a hash. */
export function parse(hash = location.hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split("?", 2);
  const parts = path.split("/").filter(Boolean).map(decoded);
  return { path: parts, query: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

/** The hash of a path and a query; empty values are left out. */
export function href(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  const text = new URLSearchParams(kept).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${text ? `?${text}` : ""}`;
}

/** Go there, as a new entry of the history. */
export function go(path, query = {}) {
  location.hash = href(path, query);
}

/** Keep a smaller choice (a selected span, a filter) without a new entry; nobody wants to go back through those. */
export function keep(changes) {
  const { path, query } = parse();
  history.replaceState(null, "", href(path, { ...query, ...changes }));
}

function decoded(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}
