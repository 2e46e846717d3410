// The app's flows, and one flow's graph without a run. Law: what is drawn is the plan, as the server has it loaded.

import { get } from "./api.js";
import { fill, h, put } from "./dom.js";
import { drawGraph, showNode } from "./graph.js";
import { lend } from "./keys.js";
import { table, trouble } from "./parts.js";
import { go, href, keep } from "./route.js";

export function showFlows(root, path, query) {
  const stop = new AbortController();
  const wanted = path[1];
  const unlend = lend("Flows", { "Escape": ["Back", () => go(wanted ? ["flows"] : ["runs"])] });
  load();

  async function load() {
    try {
      if (wanted) draw(await get(`flows/${encodeURIComponent(wanted)}/graph`, {}, stop.signal));
      else list(await get("flows", {}, stop.signal));
    } catch (error) {
      if (error.name !== "AbortError") fill(root, h("h1", null, wanted ?? "Flows"), trouble(error));
    }
  }

  function list({ flows }) {
    fill(root, h("h1", null, "Flows"), table("Flows", [
      ["flow", (flow) => h("a", { href: href(["flows", flow.name]) }, flow.name)],
      ["version", (flow) => h("code", null, flow.version), "number"],
      ["routes", (flow) => flow.routes.map((label) => h("div", null, h("a", { href: href(["runs"], { route: label }) }, label)))],
      ["owner", (flow) => flow.owner || h("span", { class: "soft" }, "–")],
      ["what it is", (flow) => flow.doc || ""],
    ], flows, "This app has no flows."));
  }

  function draw(told) {
    const details = h("aside", { class: "details", "aria-label": "Selected step", "aria-live": "polite" });
    const choose = (node) => {
      keep({ step: node?.id ?? "" });
      if (node) graph.select(node.id);
      showNode(details, node, null);
    };
    const graph = drawGraph(told.graph, 0, choose);
    fill(root, h("div", { class: "run-title" }, h("h1", null, told.flow), h("span", { class: "tag" }, `v${told.version}`),
      h("a", { href: href(["runs"], { route: told.flow }) }, "its runs")));
    put(root, h("div", { class: "beside" }, graph.element, details));
    choose(told.graph.nodes.find((node) => node.id === query.step) ?? null);
  }

  return { update() {}, close() {
    stop.abort();
    unlend();
  } };
}
