// The page: its shell, its router, its one feed. Law: a view is {update(query), close(), said?}; exactly one is shown;
// what the feed tells is kept here, so that going from view to view loses nothing.

import { listen, session } from "./api.js";
import { fill, h, put, say } from "./dom.js";
import * as keys from "./keys.js";
import { go, parse } from "./route.js";
import { showAdmission } from "./admission.js";
import { showCases } from "./cases.js";
import { showDiff } from "./diff.js";
import { showFlows } from "./flows.js";
import { showJob } from "./job.js";
import { showJobs } from "./jobs.js";
import { showRun } from "./run.js";
import { showRuns } from "./runs.js";
import { showSystem } from "./system.js";
import { showTargets } from "./targets.js";

const VIEWS = { runs: showRuns, run: showRun, jobs: showJobs, job: showJob, cases: showCases, flows: showFlows,
  diff: showDiff, admission: showAdmission, targets: showTargets, system: showSystem };
const TITLES = { runs: "Runs", run: "Run", jobs: "Jobs", job: "Job", cases: "Cases", flows: "Flows", diff: "Diff",
  admission: "Admission", targets: "Targets", system: "System" };
const OPENS = { runs: "run", jobs: "job" }; // the view of one of them

/** Views that an app may have nothing for: what session() says of it, and their key. */
const OPTIONAL = { jobs: ["g j", "Jobs"], cases: ["g c", "Cases: runs to look at"] };
const THEMES = ["", "light", "dark"];

const main = document.getElementById("main");
const listeners = new Set();
const last = { overview: null, running: null };
let shown = { key: "", view: null };

/** What views may use of the page: the last overview and who is running, and what comes next. */
const page = {
  last,
  skew: 0,
  now: () => Date.now() + page.skew,
  /** handlers: {runs, running, overview, hello}; returns what stops it. */
  hear(handlers) {
    listeners.add(handlers);
    return () => listeners.delete(handlers);
  },
};

async function begin() {
  keys.start();
  keys.lend("Everywhere", {
    "g r": ["Runs", () => go(["runs"])],
    "g f": ["Flows", () => go(["flows"])],
    "g a": ["Admission", () => go(["admission"])],
    "g t": ["Targets: breakers and limits", () => go(["targets"])],
    "g s": ["System: pools and actors", () => go(["system"])],
    "t": ["Light, dark, or as the system", turnTheme],
    "?": ["This help", keys.showHelp],
  });
  document.getElementById("skip").addEventListener("click", () => main.focus());
  document.getElementById("theme").addEventListener("click", turnTheme);
  nameTheme();
  try {
    const told = await session();
    page.skew = told.skew;
    page.session = told;
    document.getElementById("app-name").textContent = told.app;
    offer({ jobs: told.jobs, cases: told.journal });
  } catch (error) {
    showError(error);
    return;
  }
  listen({
    hello: (told) => {
      page.skew = told.now_unix_ms - Date.now();
      tell("hello", told);
    },
    runs: (told) => tell("runs", told),
    running: (told) => tell("running", told),
    overview: (told) => tell("overview", told),
    state: showState,
  }, true);
  window.addEventListener("hashchange", route);
  route();
}

/** Show the way to views that this app has something for. */
function offer(has) {
  const found = Object.keys(OPTIONAL).filter((room) => has[room]);
  for (const room of found) document.querySelector(`#nav a[href="#/${room}"]`).hidden = false;
  if (found.length) {
    keys.lend("Of this app", Object.fromEntries(found.map((room) => {
      const [key, says] = OPTIONAL[room];
      return [key, [says, () => go([room])]];
    })));
  }
}

function tell(kind, told) {
  if (kind in last) last[kind] = told;
  for (const handlers of listeners) handlers[kind]?.(told);
}

function showState(word) {
  document.getElementById("live").dataset.state = word;
  document.getElementById("live-word").textContent = word === "live" ? "live" : "reconnecting";
}

function route() {
  const { path, query } = parse();
  const [room = "runs", id] = path;
  const name = (id && OPENS[room]) || room;
  const key = name !== room || name === "flows" ? `${name}/${id ?? ""}` : name;
  if (shown.key === key && shown.view) {
    shown.view.update(path, query);
    return;
  }
  shown.view?.close();
  shown = { key, view: null };
  const title = name !== room ? `${id} · ${name}` : (TITLES[name] ?? "Nothing here");
  document.title = `${title} · ${page.session.app}`;
  for (const link of document.querySelectorAll("#nav a")) {
    const here = link.getAttribute("href") === `#/${room}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  fill(main);
  window.scrollTo(0, 0);
  const show = VIEWS[name];
  if (!show || (room === "jobs" && !page.session.jobs) || (room === "cases" && !page.session.journal)) {
    put(main, notice("Nothing is here.", h("p", null, h("a", { href: "#/runs" }, "Back to the runs"))));
    return;
  }
  shown.view = show(main, path, query, page);
  main.removeAttribute("aria-busy");
  say(title);
}

function showError(error) {
  main.removeAttribute("aria-busy");
  document.title = "Zerver";
  document.getElementById("live").dataset.state = "lost";
  document.getElementById("live-word").textContent = "not connected";
  if (error.status === 401 || error.status === 403) {
    fill(main, notice("This page is locked.",
      h("p", null, "Open it with the address that the server printed when it began: it carries the token."),
      h("p", { class: "soft" }, error.message)));
    return;
  }
  fill(main, notice("The page could not begin.", h("p", null, error.message),
    h("button", { type: "button", onclick: () => location.reload() }, "Try again")));
}

function notice(title, ...rest) {
  return h("section", { class: "notice" }, h("h1", null, title), rest);
}

function turnTheme() {
  const root = document.documentElement;
  const next = THEMES[(THEMES.indexOf(root.dataset.theme ?? "") + 1) % THEMES.length];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  try {
    if (next) localStorage.setItem("zerver.theme", next);
    else localStorage.removeItem("zerver.theme");
  } catch {
    // The choice lasts as long as the page, then.
  }
  nameTheme();
  window.dispatchEvent(new Event("themechange"));
}

function nameTheme() {
  const word = document.documentElement.dataset.theme || "auto";
  document.getElementById("theme").textContent = `Theme: ${word}`;
}

begin();
