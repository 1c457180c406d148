// Shows an X-ray and its attribution maps. Window, level, zoom and opacity change in the browser.
// The value: {image: address, maps: [{title, source}]}, or null.
const usual = {level: 128, window: 255, zoom: 100, opacity: 60, invert: false, x: 0, y: 0};
const state = {...usual};
const filterName = "levels-" + Math.random().toString(36).slice(2);
const find = (selector) => element.querySelector(selector);
const all = (selector) => [...element.querySelectorAll(selector)];

function levels() {
  const slope = 255 / state.window, intercept = 0.5 - (state.level / 255) * slope;
  return state.invert ? [-slope, 1 - intercept] : [slope, intercept];
}

function draw() {
  const filter = find("filter.levels");
  if (!filter) return;
  filter.id = filterName;
  const [slope, intercept] = levels();
  for (const part of filter.querySelectorAll("feFuncR, feFuncG, feFuncB")) {
    part.setAttribute("slope", slope);
    part.setAttribute("intercept", intercept);
  }
  const place = `translate(${state.x}%, ${state.y}%) scale(${state.zoom / 100})`;
  for (const image of all(".xray")) {
    image.style.filter = `url(#${filterName})`;
    image.style.transform = place;
  }
  for (const map of all(".map")) {
    map.style.opacity = state.opacity / 100;
    map.style.transform = place;
  }
  for (const input of all("input[data-tool]")) input.value = state[input.dataset.tool];
  const invert = find("[data-tool=invert]");
  invert.setAttribute("aria-pressed", String(state.invert));
  const preset = find("[data-tool=preset]"), wanted = `${state.level},${state.window}`;
  preset.value = [...preset.options].some((one) => one.value === wanted) ? wanted : "";
}

function addPane(panes, value, map) {
  const figure = document.createElement("figure"), stage = document.createElement("div");
  stage.className = "stage";
  stage.tabIndex = 0;
  stage.setAttribute("aria-label", "X-ray; arrow keys move it, + and - enlarge and shrink it");
  const image = document.createElement("img");
  image.className = "xray";
  image.src = value.image;
  image.draggable = false;
  image.alt = "The X-ray as the model reads it";
  stage.append(image);
  if (map) {
    const layer = document.createElement("img");
    layer.className = "map";
    layer.src = map.source;
    layer.draggable = false;
    layer.alt = `Attribution map, ${map.title}`;
    stage.append(layer);
  }
  const caption = document.createElement("figcaption");
  caption.textContent = map ? map.title : "X-ray as the model reads it";
  figure.append(stage, caption);
  panes.append(figure);
}

function render() {
  const panes = find(".panes"), value = props.value;
  if (!panes) return;
  const kept = value && element.dataset.image === value.image;
  if (!kept) Object.assign(state, usual);
  element.dataset.image = value ? value.image : "";
  panes.replaceChildren();
  find(".tools").hidden = !value;
  if (!value) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "The X-ray appears here.";
    panes.append(empty);
    return;
  }
  const maps = value.maps || [];
  if (maps.length !== 1) addPane(panes, value, null);
  for (const map of maps) addPane(panes, value, map);
  find(".of-map").hidden = !maps.length;
  draw();
}

function save() {
  for (const [number, stage] of all(".stage").entries()) {
    const image = stage.querySelector(".xray"), map = stage.querySelector(".map");
    const canvas = document.createElement("canvas");
    canvas.width = image.naturalWidth;
    canvas.height = image.naturalHeight;
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
    const [slope, intercept] = levels();
    for (let at = 0; at < pixels.data.length; at += 4)
      for (let colour = 0; colour < 3; colour++)
        pixels.data[at + colour] = pixels.data[at + colour] * slope + 255 * intercept;
    context.putImageData(pixels, 0, 0);
    if (map) {
      context.globalAlpha = state.opacity / 100;
      context.drawImage(map, 0, 0, canvas.width, canvas.height);
    }
    const link = document.createElement("a");
    link.download = map ? `xray-map-${number}.png` : "xray.png";
    link.href = canvas.toDataURL("image/png");
    link.click();
  }
}

function move(x, y) {
  const most = Math.max(0, (state.zoom - 100) / 2);
  state.x = Math.min(most, Math.max(-most, state.x + x));
  state.y = Math.min(most, Math.max(-most, state.y + y));
  draw();
}

function zoom(factor) {
  state.zoom = Math.min(600, Math.max(100, state.zoom * factor));
  move(0, 0);
}

element.addEventListener("input", (event) => {
  const tool = event.target.dataset && event.target.dataset.tool;
  if (!tool) return;
  if (tool === "preset") [state.level, state.window] = event.target.value.split(",").map(Number);
  else state[tool] = Number(event.target.value);
  move(0, 0);
});
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-tool]");
  if (!button) return;
  if (button.dataset.tool === "invert") state.invert = !state.invert;
  if (button.dataset.tool === "reset") Object.assign(state, usual);
  if (button.dataset.tool === "save") save();
  draw();
});
let held = null;
element.addEventListener("pointerdown", (event) => {
  const stage = event.target.closest(".stage");
  if (stage && state.zoom > 100) held = {x: event.clientX, y: event.clientY, box: stage.getBoundingClientRect()};
});
window.addEventListener("pointermove", (event) => {
  if (!held) return;
  const {x, y, box} = held;
  Object.assign(held, {x: event.clientX, y: event.clientY});
  move(100 * (event.clientX - x) / box.width, 100 * (event.clientY - y) / box.height);
});
window.addEventListener("pointerup", () => { held = null; });
element.addEventListener("wheel", (event) => {
  if (!event.ctrlKey || !event.target.closest(".stage")) return;
  event.preventDefault();
  zoom(event.deltaY < 0 ? 1.15 : 1 / 1.15);
}, {passive: false});
element.addEventListener("keydown", (event) => {
  if (!event.target.closest(".stage")) return;
  const steps = {ArrowLeft: [5, 0], ArrowRight: [-5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5]};
  if (steps[event.key]) move(...steps[event.key]);
  else if (event.key === "+" || event.key === "=") zoom(1.25);
  else if (event.key === "-") zoom(0.8);
  else return;
  event.preventDefault();
});
watch("value", render);
render();
