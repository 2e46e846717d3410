// One job: what it is, why it waits, what its runs came to, and what can be done about it. Law: asked again every few
// seconds until it is final; the server says which verbs would do something.

import { ask } from "./ask.js";
import { get, post } from "./api.js";
import { fill, h, say } from "./dom.js";
import { ago, date, since, took } from "./format.js";
import { jobState, progressOf, VERBS } from "./jobs.js";
import { lend } from "./keys.js";
import { copier, facts, panel, status, table, trouble, value } from "./parts.js";
import { go, href } from "./route.js";

const EVERY = 2000;
const FINAL = ["done", "dead", "cancelled"];

export function showJob(root, path, query, page) {
  const id = path[1];
  const stop = new AbortController();
  let timer = 0;
  let drawn = "";
  const head = h("header", { class: "run-head" }, h("h1", null, id), h("p", { class: "soft" }, "loading"));
  const wrong = h("div");
  const body = h("div");
  fill(root, head, wrong, body);
  const unlend = lend("Job", {
    "Enter": ["Open its last run", () => body.querySelector(".job-runs a")?.click()],
    "Escape": ["Back to the jobs", () => go(["jobs"], { job: id })],
  });
  load();

  async function load() {
    clearTimeout(timer);
    try {
      const job = await get(`jobs/${encodeURIComponent(id)}`, {}, stop.signal);
      fill(wrong);
      const now = JSON.stringify(job);
      if (now !== drawn) draw(job);
      drawn = now;
      if (!FINAL.includes(job.state)) timer = setTimeout(load, EVERY);
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status === 404) fill(head, h("h1", null, "No such job"));
      fill(wrong, trouble(error), h("p", null, h("a", { href: "#/jobs" }, "Back to the jobs")));
    }
  }

  function draw(job) {
    document.title = `${job.flow} ${job.state} · job`;
    const held = root.contains(document.activeElement) ? document.activeElement.dataset.key : null;
    fill(head,
      h("div", { class: "run-title" }, h("h1", null, `job ${job.flow}`), jobState(job.state), h("span", { class: "grow" }),
        job.verbs.map((verb) => h("button", { type: "button", "data-key": verb, "data-verb": verb, onclick: () => act(verb) },
          VERBS[verb].word))),
      h("p", { class: "run-facts" }, h("code", null, job.id), copier(job.id, "the job's id"),
        h("span", null, job.priority, " · tenant ", h("b", null, job.tenant)),
        h("span", null, "queue ", h("a", { href: href(["jobs"], { queue: job.queue }) }, job.queue)),
        h("span", null, "flow ", h("a", { href: href(["flows", job.flow]) }, job.flow)),
        job.origin ? h("span", null, "by ", job.origin) : null),
      h("ul", { class: "causes" },
        job.error ? h("li", { "data-cause": "FAILED", class: "job-error" }, h("b", null, job.state === "dead" ? "DEAD" : "ERROR"), " ", job.error) : null,
        job.why ? h("li", { "data-cause": "WAITS", class: "job-why" }, h("b", null, "WAITS"), " ", job.why) : null,
        job.here ? null : h("li", { "data-cause": "FAILED" }, h("b", null, "UNKNOWN"), ` This app has no flow ${job.flow}: other code must work on it.`)));
    const at = (ms) => (ms === null ? h("span", { class: "soft" }, "–")
      : [date(ms), h("span", { class: "soft" }, ms > page.now() ? ` in ${ago(page.now(), ms)}` : ` ${since(ms, page.now())}`)]);
    fill(body,
      facts([
        ["attempt", `${job.attempt} of ${job.attempts}`],
        ["ordered", at(job.ordered_unix_ms)], ["not before", at(job.at_unix_ms)], ["last begun", at(job.began_unix_ms)], ["ended", at(job.ended_unix_ms)],
        ...(job.progress ? [["progress", progressOf(job)]] : []),
        ...(job.rescues ? [["rescued", h("span", { class: "loud" }, job.rescues)]] : []),
        ...(job.awaits > 0 ? [["waits for", `${job.awaits} jobs`]] : []),
        ...(job.releases ? [["awaited by", h("a", { href: href(["jobs", job.releases]) }, job.releases)]] : []),
        ...(job.unique ? [["unique by", h("code", null, job.unique)]] : []),
        ...(job.owner ? [["worker", h("code", null, job.owner)]] : []),
        ["fence", job.fence],
        ...(job.parent ? [["asked for in trace", h("code", null, job.parent)]] : []),
      ]),
      panel("Body", job.body ? value(job.body.value, job.body.shown) : h("p", { class: "soft" }, "It has none.")),
      job.state === "done" ? panel("Result", job.result ? value(job.result.value, job.result.shown) : h("p", { class: "soft" }, "It gave none.")) : null,
      h("div", { class: "job-runs" }, panel("Runs", table("Runs", [
        ["run", (run) => (run.summary || run.id === job.run ? h("a", { href: href(["runs", run.id]), "data-key": run.id }, run.id) : h("code", null, run.id))],
        ["status", (run) => (run.summary ? status(run.summary.status, run.summary.http) : h("span", { class: "soft" }, "not in memory"))],
        ["took", (run) => took(run.summary?.took_ns ?? null), "number"],
        ["why", (run) => run.summary?.cause ?? ""],
      ], job.runs, "It has not been begun yet."))));
    if (held) root.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus({ preventScroll: true });
    say(`job ${job.state}`);
  }

  async function act(verb) {
    const { word, one } = VERBS[verb];
    const agreed = verb === "retry" ? {} : await ask({ title: `${word} this job?`, action: word, loud: true,
      text: [h("code", null, id), ` ${one}.`], fields: verb === "cancel" ? [{ name: "reason", label: "Reason" }] : [] });
    if (!agreed) return;
    try {
      await post(`jobs/${encodeURIComponent(id)}/${verb}`, agreed);
      if (verb === "delete") go(["jobs"]);
      else await load();
    } catch (error) {
      fill(wrong, trouble(error));
    }
  }

  return { update() {}, close() {
    stop.abort();
    clearTimeout(timer);
    unlend();
  } };
}
