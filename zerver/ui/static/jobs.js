// The list of jobs, and their queues. Law: asked again every few seconds while it is looked at, and it never moves under
// a reader who has gone further down; what is done to many is asked back with the number that it will be done to.

import { ask } from "./ask.js";
import { get, post } from "./api.js";
import { afterRest, fill, h, say } from "./dom.js";
import { ago, count, date, shortId } from "./format.js";
import { lend } from "./keys.js";
import { meter, trouble } from "./parts.js";
import { go, href, keep } from "./route.js";

const EVERY = 2000;
const PAGE = 50;
const FILTERS = ["state", "queue", "flow", "tenant", "text", "id"];
const STATES = ["waiting", "scheduled", "available", "running", "parked", "done", "dead", "cancelled"];

/** What can be done to jobs: the word on the button, and what is said before. */
export const VERBS = {
  retry: { word: "Retry", does: "begin now, with all their attempts again", one: "begins now, with all its attempts again" },
  cancel: { word: "Cancel", does: "are cancelled; those that run are ended and undone", one: "is cancelled; if it runs, it is ended and undone" },
  delete: { word: "Delete", does: "are forgotten", one: "is forgotten" },
};

const MARKS = { waiting: "…", scheduled: "◷", available: "·", running: "▸", parked: "‖", done: "✓", dead: "✗", cancelled: "⊘" };

/** A job's state: a mark and a word. */
export function jobState(word) {
  return h("span", { class: "status", "data-status": word }, h("span", { class: "mark", "aria-hidden": "true" }, MARKS[word] ?? "·"), word);
}

/** How far a job says it is. */
export function progressOf(job) {
  if (!job.progress) return null;
  const { done, total, note } = job.progress;
  return [total ? [meter(done, total), ` ${count(done)} of ${count(total)}`] : done ? count(done) : null, note ? [" ", h("span", { class: "soft" }, note)] : null];
}

export function showJobs(root, path, query, page) {
  let filters = pick(query);
  let selected = query.job ?? "";
  let jobs = [];
  let before = null;
  let deeper = false;
  let asked = null;
  let drawnQueues = "";
  const rows = new Map(); // id -> its elements

  const form = filterForm(filters, (changed) => {
    keep({ ...blank(), ...changed, job: "" });
    filters = changed;
    selected = "";
    deeper = false;
    load();
  });
  const queues = h("div", { class: "queues" });
  const wrong = h("div");
  const done = h("p", { class: "picked", hidden: true, role: "status" });
  const body = h("tbody");
  const grid = h("table", { class: "table runs jobs", role: "grid", "aria-label": "Jobs" },
    h("thead", null, h("tr", null, ["Ordered", "Job", "State", "Attempt", "Queue", "Tenant", "Why"].map((title) =>
      h("th", { scope: "col" }, title)))), body);
  const older = h("button", { type: "button", hidden: true, onclick: loadOlder }, "Older jobs");
  const empty = h("p", { class: "soft empty", hidden: true });
  const verbs = Object.entries(VERBS).map(([verb, { word }]) => h("button", { type: "button", "data-verb": verb,
    onclick: () => doToAll(verb) }, `${word} all…`));
  fill(root, h("h1", { class: "unseen" }, "Jobs"), queues, h("div", { class: "tools" }, form.element,
    h("span", { class: "grow" }), verbs), done, wrong, grid, empty, older);

  const unlend = lend("Jobs", {
    "j": ["Next job", () => move(1)],
    "ArrowDown": ["Next job", () => move(1)],
    "k": ["Previous job", () => move(-1)],
    "ArrowUp": ["Previous job", () => move(-1)],
    "Enter": ["Open the job", () => selected && go(["jobs", selected])],
    "/": ["Search in the errors", () => form.focus("text")],
    "f": ["Filter by state", () => form.focus("state")],
    "Escape": ["Select nothing", () => select("")],
  });
  const clockwork = setInterval(tick, EVERY);
  load();
  loadQueues();
  let ticks = 0;

  function tick() {
    if (document.hidden || document.querySelector("dialog[open]")) return;
    if (!deeper && window.scrollY < 40) load();
    if ((ticks += 1) % 2 === 0) loadQueues();
  }

  async function load() {
    asked?.abort();
    asked = new AbortController();
    try {
      const told = await get("jobs", { ...filters, limit: PAGE }, asked.signal);
      jobs = told.jobs;
      before = told.before;
      fill(wrong);
      draw();
    } catch (error) {
      fail(error);
    }
  }

  async function loadOlder() {
    deeper = true;
    try {
      const told = await get("jobs", { ...filters, limit: PAGE, before });
      jobs = [...jobs, ...told.jobs.filter(({ id }) => !jobs.some((job) => job.id === id))];
      before = told.before;
      draw();
    } catch (error) {
      fail(error);
    }
  }

  async function loadQueues() {
    try {
      drawQueues((await get("queues")).queues);
    } catch (error) {
      fail(error);
    }
  }

  function fail(error) {
    if (error.name !== "AbortError") fill(wrong, trouble(error));
  }

  function drawQueues(list) {
    const now = JSON.stringify([list, filters.queue]);
    if (now === drawnQueues && list.every((queue) => queue.oldest_unix_ms === null)) return;
    drawnQueues = now;
    const held = queues.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    fill(queues, list.map((queue) => queueCard(queue)));
    if (held) queues.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
  }

  function queueCard(queue) {
    const chosen = filters.queue === queue.name;
    const numbers = STATES.filter((state) => queue.counts[state]).map((state) => h("button", { type: "button",
      class: "quiet small", "data-key": `${queue.name}/${state}`, onclick: () => choose({ queue: queue.name, state }) },
    jobState(state), " ", h("b", null, count(queue.counts[state]))));
    const limits = [queue.limit === null ? null : `${count(queue.limit)} at once`,
      queue.per_tenant === null ? null : `${count(queue.per_tenant)} of a tenant`].filter(Boolean).join(", ");
    return h("section", { class: "queue", "data-queue": queue.name, "data-paused": String(queue.paused) },
      h("p", { class: "queue-title" }, h("button", { type: "button", class: "quiet name", "aria-pressed": String(chosen),
        "data-key": queue.name, onclick: () => choose({ queue: chosen ? "" : queue.name }) }, queue.name),
      queue.paused ? h("span", { class: "tag loud" }, "paused") : null, h("span", { class: "grow" }),
      h("button", { type: "button", class: "small", "data-key": `${queue.name}/pause`,
        "aria-label": `${queue.paused ? "Go on with" : "Pause"} queue ${queue.name}`,
        onclick: () => pause(queue) }, queue.paused ? "Go on" : "Pause")),
      h("p", { class: "queue-numbers" }, numbers.length ? numbers : h("span", { class: "soft" }, "nothing in it")),
      h("p", { class: "soft small" }, [limits,
        queue.oldest_unix_ms === null ? "" : `the oldest has waited for ${ago(queue.oldest_unix_ms, page.now())}`].filter(Boolean).join(" · ")));
  }

  async function pause(queue) {
    try {
      drawQueues((await post(`queues/${encodeURIComponent(queue.name)}/pause`, { paused: !queue.paused })).queues);
      say(`Queue ${queue.name} ${queue.paused ? "goes on" : "is paused"}`);
    } catch (error) {
      fail(error);
    }
  }

  function choose(changed) {
    form.set(changed);
    loadQueues();
  }

  async function doToAll(verb) {
    const { word, does } = VERBS[verb];
    try {
      const found = await get("matching", { ...filters, verb });
      if (found.count === 0) {
        tell(`None of these jobs can be ${verb === "retry" ? "retried" : verb === "cancel" ? "cancelled" : "deleted"}.`);
        return;
      }
      const many = `${found.more ? "More than " : ""}${count(found.count)} job${found.count === 1 ? "" : "s"}`;
      const agreed = await ask({ title: `${word} ${many.toLowerCase()}?`, loud: verb !== "retry", action: `${word} ${count(found.count)}${found.more ? "+" : ""}`,
        text: [h("b", null, many), ` ${does}: `, meaning(filters), "."],
        fields: verb === "cancel" ? [{ name: "reason", label: "Reason" }] : [] });
      if (!agreed) return;
      const told = await post("matching", { verb, wanted: filters, count: found.count, reason: agreed.reason ?? "" });
      tell(`${word}: ${count(told.changed)} job${told.changed === 1 ? "" : "s"}.`);
      deeper = false;
      load();
      loadQueues();
    } catch (error) {
      fail(error);
    }
  }

  function tell(text) {
    done.hidden = false;
    fill(done, text);
  }

  function draw() {
    let at = body.firstChild;
    for (const job of jobs) {
      let row = rows.get(job.id);
      if (!row) rows.set(job.id, (row = makeRow(job.id)));
      row.show(job);
      if (row.element === at) at = at.nextSibling;
      else body.insertBefore(row.element, at);
    }
    const shown = new Set(jobs.map((job) => job.id));
    for (const [id, row] of rows) {
      if (shown.has(id)) continue;
      row.element.remove();
      rows.delete(id);
    }
    older.hidden = before === null;
    empty.hidden = jobs.length > 0;
    empty.textContent = Object.keys(filters).length ? "No job fits the filter." : "No job yet.";
    mark();
  }

  function makeRow(id) {
    const cells = ["when", "what", "word", "attempt", "queue-name", "tenant", "why"].map((name) => h("td", { class: name }));
    const element = h("tr", { "data-id": id, tabindex: "-1", onclick: (event) => {
      select(id);
      if (!event.target.closest("a") && !String(getSelection())) go(["jobs", id]);
    } }, cells);
    const [when, what, word, attempt, queue, tenant, why] = cells;
    let drawn = "";
    return { element, show(job) {
      const age = ago(job.ordered_unix_ms ?? 0, page.now());
      if (when.textContent !== age) when.textContent = age;
      const now = JSON.stringify(job);
      if (now === drawn) return;
      drawn = now;
      when.title = date(job.ordered_unix_ms ?? 0);
      fill(what, h("a", { href: href(["jobs", id]), tabindex: "-1" }, job.flow), " ", h("span", { class: "id" }, shortId(id)));
      fill(word, jobState(job.state));
      fill(attempt, `${job.attempt} of ${job.attempts}`, job.rescues ? h("span", { class: "loud" }, ` ${job.rescues} rescued`) : null);
      fill(queue, job.queue);
      fill(tenant, job.tenant);
      fill(why, job.state === "running" ? progressOf(job) : null,
        job.state === "scheduled" ? h("span", { class: "soft" }, `begins ${date(job.at_unix_ms ?? 0).slice(0, 19)} `) : null, job.error ?? "");
      why.title = job.error ?? "";
    } };
  }

  function move(by) {
    if (!jobs.length) return;
    const at = jobs.findIndex((job) => job.id === selected);
    select(jobs[Math.min(jobs.length - 1, Math.max(0, at < 0 ? 0 : at + by))].id);
    const { element } = rows.get(selected) ?? {};
    element?.focus({ preventScroll: true });
    element?.scrollIntoView({ block: "nearest" });
  }

  function select(id) {
    selected = id;
    keep({ job: id });
    mark();
  }

  function mark() {
    for (const [id, { element }] of rows) {
      element.setAttribute("aria-selected", String(id === selected));
      element.tabIndex = id === selected ? 0 : -1;
    }
    if (!rows.has(selected) && body.firstElementChild) body.firstElementChild.tabIndex = 0;
  }

  return {
    update(_, changed) {
      const now = pick(changed);
      selected = changed.job ?? "";
      if (JSON.stringify(now) === JSON.stringify(filters)) return mark();
      filters = now;
      deeper = false;
      form.show(filters);
      return load();
    },
    close() {
      asked?.abort();
      clearInterval(clockwork);
      unlend();
    },
  };
}

/** What a filter means, in words. */
function meaning(filters) {
  const parts = Object.entries(filters);
  return parts.length ? parts.map(([name, said], n) => [n ? ", " : "", NAMES[name], " ", h("code", null, said)]) : "of all queues";
}

const NAMES = { state: "state", queue: "queue", flow: "flow", tenant: "tenant", text: "with the error", id: "id" };

function pick(query) {
  return Object.fromEntries(FILTERS.filter((name) => query[name]).map((name) => [name, query[name]]));
}

function blank() {
  return Object.fromEntries(FILTERS.map((name) => [name, ""]));
}

function filterForm(filters, changed) {
  const text = (name, label) => h("input", { name, "aria-label": label, placeholder: label, autocomplete: "off",
    spellcheck: "false", type: name === "text" ? "search" : "text" });
  const controls = {
    state: h("select", { name: "state", "aria-label": "State" }, h("option", { value: "" }, "any state"),
      STATES.map((word) => h("option", { value: word }, word))),
    text: text("text", "in the error"), flow: text("flow", "flow"), queue: text("queue", "queue"),
    tenant: text("tenant", "tenant"), id: text("id", "id begins"),
  };
  const read = () => pick(Object.fromEntries(FILTERS.map((name) => [name, controls[name].value.trim()])));
  const soon = afterRest(200, () => changed(read()));
  const element = h("form", { class: "filter", role: "search", "aria-label": "Filter the jobs",
    onsubmit: (event) => event.preventDefault(), oninput: soon }, Object.values(controls));
  const show = (now) => {
    for (const name of FILTERS) controls[name].value = now[name] ?? "";
  };
  show(filters);
  return { element, show, focus: (name) => controls[name].focus(), set: (given) => {
    for (const [name, said] of Object.entries(given)) controls[name].value = said;
    changed(read());
  } };
}
