// What the viewer and the list of a batch share; it is put before the parts of both.
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function showTab(name) {
  [...document.querySelectorAll("[role=tab]")].find((one) => one.textContent.trim() === name).click();
}
