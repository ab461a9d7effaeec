// Parts of the page that every script needs. Texts are put into the page as text nodes only, never as markup.

export const $ = (selector, within = document) => within.querySelector(selector);

/** Creates an element with attributes and children; strings become text nodes. */
export const element = (tag, attributes = {}, ...children) => filled(document.createElement(tag), attributes, children);

/** Creates an element of a picture. */
export const svg = (tag, attributes, ...children) =>
  filled(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

function filled(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Whether a key event belongs to an input method. Some browsers report this only in the key code. */
export const composing = (event) => event.isComposing || event.keyCode === 229;
export const template = (name) => $(`#${name}-template`).content.cloneNode(true);

export const plural = (n, noun) => `${n.toLocaleString("en")} ${noun}${n === 1 ? "" : "s"}`;

/** Formats a number with three decimals and with a minus sign instead of a hyphen. */
export const decimal = (value) => (Math.abs(value) < 0.0005 ? 0 : value).toFixed(3).replace("-", "−");
