// The server, asked. Law: one place knows addresses, the proof against forged writes, and what an error looks like.
// The contract is the docstring of zerver/ui/api.py.

const HERE = new URL("api/", import.meta.url);

/** What the server said no to. status: the HTTP status, 0 when there was no answer. */
export class ApiError extends Error {
  constructor(status, title, detail) {
    super(detail || title);
    this.status = status;
    this.title = title;
  }
}

let begun = null;

/** {csrf, version, app, pid, store, replay, now_unix_ms}, asked once. `skew`: the server's clock less ours. */
export function session() {
  begun ??= get("session").then(
    (told) => ({ ...told, skew: told.now_unix_ms - Date.now() }),
    (error) => {
      begun = null;
      throw error;
    },
  );
  return begun;
}

/** GET; query values that are empty are left out. */
export async function get(path, query = {}, signal = undefined) {
  return answer(await ask(address(path, query), { signal }));
}

/** POST with the proof. */
export async function post(path, body, signal = undefined) {
  const { csrf } = await session();
  const headers = { "content-type": "application/json", "x-zerver-csrf": csrf };
  return answer(await ask(address(path), { method: "POST", headers, body: JSON.stringify(body), signal }));
}

function address(path, query = {}) {
  const url = new URL(path, HERE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

async function ask(url, init) {
  try {
    return await fetch(url, { credentials: "same-origin", cache: "no-store", ...init });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "No answer", "The server does not answer. It may be restarting.");
  }
}

async function answer(response) {
  if (response.ok) return response.json();
  let problem = {};
  try {
    problem = await response.json();
  } catch {
    // Not of this server's making; the status says enough.
  }
  throw new ApiError(response.status, problem.title ?? `HTTP ${response.status}`, problem.detail ?? "");
}

/**
 * Listen to the feed. handlers: {hello, runs, running, overview, state(word)}.
 * EventSource comes back by itself, but gives up on a status other than 200: then we try again, and slower each time.
 * A page that nobody sees lets go: a browser has six connections to a server, for all of its tabs together.
 */
export function listen(handlers, overview) {
  let source = null;
  let timer = 0;
  let wait = 1000;
  const close = () => {
    clearTimeout(timer);
    source?.close();
    source = null;
  };
  const open = () => {
    close();
    source = new EventSource(address("feed", { overview: overview ? 1 : "" }));
    for (const kind of ["hello", "runs", "running", "overview"]) {
      source.addEventListener(kind, (event) => handlers[kind]?.(JSON.parse(event.data)));
    }
    source.onopen = () => {
      wait = 1000;
      handlers.state?.("live");
    };
    source.onerror = () => {
      handlers.state?.("lost");
      if (source.readyState !== EventSource.CLOSED) return;
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, 15000);
    };
  };
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => event.persisted && open());
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : source ?? open()));
  open();
}
