// Asking back: a dialog before something is done that cannot be taken back. Law: it says what will be done, and to how
// many; Escape is no; what needs a reason is not sent without one.

import { fill, h } from "./dom.js";

/**
 * {title, text: children, action: the word on the button, fields: [{name, label, required}], loud}.
 * Resolves to {name: text} when it was agreed to, to null when it was not.
 */
export function ask({ title, text = [], action, fields = [], loud = false }) {
  return new Promise((resolve) => {
    const inputs = fields.map(({ name, label, required }) => [name, required, h("input", { name, id: `ask-${name}`,
      class: "wide", autocomplete: "off", required, maxlength: 1000 }), label]);
    const before = document.activeElement;
    let answer = null;
    const dialog = h("dialog", { class: "ask", "aria-labelledby": "ask-title" });
    const agree = (event) => {
      event.preventDefault();
      const missing = inputs.find(([, required, input]) => required && !input.value.trim());
      if (missing) {
        missing[2].setAttribute("aria-invalid", "true");
        missing[2].focus();
        return;
      }
      answer = Object.fromEntries(inputs.map(([name, , input]) => [name, input.value.trim()]));
      dialog.close();
    };
    fill(dialog, h("form", { novalidate: true, onsubmit: agree }, h("h2", { id: "ask-title" }, title), h("p", null, text),
      inputs.map(([name, , input, label]) => h("p", { class: "field" }, h("label", { for: `ask-${name}` }, label), input)),
      h("p", { class: "end" }, h("button", { type: "button", class: "quiet", onclick: () => dialog.close() }, "No"), " ",
        h("button", { type: "submit", class: loud ? "main danger" : "main" }, action))));
    dialog.addEventListener("close", () => {
      dialog.remove();
      before?.focus?.({ preventScroll: true });
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    (inputs[0]?.[2] ?? dialog.querySelector("button[type=submit]")).focus();
  });
}
