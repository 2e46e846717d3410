// Light or dark, before the first paint: a classic script in the head, so that no page flashes in the wrong one.
"use strict";
(() => {
  let chosen = "";
  try {
    chosen = localStorage.getItem("zerver.theme") ?? "";
  } catch {
    // A browser that keeps nothing for us follows the system.
  }
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
})();
