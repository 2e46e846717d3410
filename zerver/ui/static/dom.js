// Elements from data. Law: whatever comes from a server is text; nothing here parses markup, and no attribute that
// runs code can be set by a name that comes from data (`on…` takes functions alone).

const SVG = "http://www.w3.org/2000/svg";

/** An HTML element: h("td", {class: "number"}, "12"). Children: strings, numbers, nodes, lists of them, null. */
export function h(tag, props, ...children) {
  return furnish(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function svg(tag, props, ...children) {
  return furnish(document.createElementNS(SVG, tag), props, children);
}

function furnish(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else if (name.startsWith("on")) throw new TypeError(`${name} takes a function`);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  put(element, children);
  return element;
}

/** Add children; strings become text nodes. */
export function put(element, ...children) {
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
  return element;
}

/** Replace what is in an element. */
export function fill(element, ...children) {
  element.replaceChildren();
  return put(element, ...children);
}

/** Call at most once per frame, with the last arguments. */
export function perFrame(act) {
  let asked = 0;
  const ask = () => {
    asked ||= requestAnimationFrame(() => {
      asked = 0;
      act();
    });
  };
  ask.cancel = () => {
    cancelAnimationFrame(asked);
    asked = 0;
  };
  return ask;
}

/** Call when nothing has happened for so many milliseconds. */
export function afterRest(rest, act) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...given), rest);
  };
}

/** Tell a screen reader. */
export function say(text) {
  document.getElementById("say").textContent = text;
}
