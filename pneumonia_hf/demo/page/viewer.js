// The viewer: one X-ray, its window, zoom and maps. All parts share this function: see viewer.py.
const usual = {level: 128, window: 255, zoom: 1, x: 0, y: 0, invert: false, preset: 0};
const view = {...usual, strength: 0.6, showMap: true, pan: false};
const presets = [["as read", 128, 255], ["dark lungs", 80, 160], ["bright areas", 170, 170], ["high contrast", 128, 110]];
// What is shown: an image of the visitor or an example, what was found in it, and its maps.
let shown = null;
const stage = find(".stage"), film = find(".film"), xray = find(".xray"), workspace = find(".workspace");
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const icons = {
  choose: "M4 17v3h16v-3M12 15V4M7 9l5-5 5 5", preset: "M12 3a9 9 0 1 0 0 18V3M16 8h3M16 12h5M16 16h3",
  invert: "M4 4h16v16H4zM4 20L20 4v16z", pan: "M12 3v18M3 12h18M9 6l3-3 3 3M9 18l3 3 3-3M6 9l-3 3 3 3M18 9l3 3-3 3",
  out: "M10 4a6 6 0 1 0 0 12a6 6 0 1 0 0-12M15 15l6 6M7 10h6", in: "M10 4a6 6 0 1 0 0 12a6 6 0 1 0 0-12M15 15l6 6M7 10h6M10 7v6",
  fit: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5M9 9h6v6H9z", map: "M12 4l9 5-9 5-9-5zM3 14l9 5 9-5",
  strength: "M12 3c4 5 6 8 6 11a6 6 0 0 1-12 0c0-3 2-6 6-11M12 20V8", save: "M12 4v11M7 10l5 5 5-5M4 20h16",
  full: "M4 9V4h5M15 4h5v5M20 15v5h-5M9 20H4v-5",
};
const tools = {
  choose: "Open another X-ray (or drop or paste it here)", preset: "Next window preset (P); drag on the X-ray for window and level",
  invert: "Invert (I)", pan: "Pan tool: drag moves the X-ray (else Shift and drag, or the middle button)",
  out: "Zoom out (-, wheel)", in: "Zoom in (+, wheel, pinch)", fit: "Fit and reset (F, double-click)",
  map: "Show or hide the map (M)", strength: "Strength of the map", save: "Save the image as shown", full: "Full screen",
};
const hasMap = () => find(".maps").childElementCount > 0;
const pressed = {invert: () => view.invert, pan: () => view.pan, map: () => view.showMap && hasMap()};

function addTools() {
  for (const [name, title] of Object.entries(tools)) {
    const button = make("button", {type: "button", "data-do": name, title, "aria-label": title});
    button.innerHTML = `<svg viewBox="0 0 24 24" aria-hidden="true"><path d="${icons[name]}"/></svg>`;
    find(".tools").append(button);
  }
}

function levels() {
  const slope = 255 / view.window, intercept = 0.5 - (view.level / 255) * slope;
  return view.invert ? [-slope, 1 - intercept] : [slope, intercept];
}

// Fit the film into the stage; region and maps are children of the film, so that they move with it.
function layOut() {
  if (!shown) return;
  stage.style.setProperty("--ratio", shown.width / shown.height);
  const room = [stage.clientWidth / shown.width, stage.clientHeight / shown.height];
  const scale = Math.min(...room);
  film.style.width = `${shown.width * scale}px`;
  film.style.height = `${shown.height * scale}px`;
  draw();
}

function draw() {
  const [slope, intercept] = levels();
  for (const part of all("feFuncR, feFuncG, feFuncB")) {
    part.setAttribute("slope", slope);
    part.setAttribute("intercept", intercept);
  }
  const spare = (size, room) => Math.max(0, (size * view.zoom - room) / 2);
  const most = [spare(film.offsetWidth, stage.clientWidth), spare(film.offsetHeight, stage.clientHeight)];
  view.x = clamp(view.x, -most[0], most[0]);
  view.y = clamp(view.y, -most[1], most[1]);
  film.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
  film.style.setProperty("--zoom", view.zoom);
  find(".maps").style.opacity = view.showMap ? view.strength : 0;
  stage.classList.toggle("zoomed", view.zoom > 1);
  for (const [name, is] of Object.entries(pressed)) find(`[data-do=${name}]`).setAttribute("aria-pressed", is());
  for (const name of ["map", "strength"]) find(`[data-do=${name}]`).disabled = !hasMap();
  for (const name of ["preset", "invert", "pan", "out", "in", "fit", "save"]) find(`[data-do=${name}]`).disabled = !shown;
  const [title, level, width] = presets[view.preset];
  const known = view.level === level && view.window === width ? ` (${title})` : "";
  find(".levels").textContent = shown
    ? `W ${Math.round(view.window)} L ${Math.round(view.level)}${known}${view.invert ? " inverted" : ""} · ${Math.round(100 * view.zoom)}%`
    : "";
}

// Zoom about a point of the screen; by default the middle of the stage.
function zoomBy(factor, at) {
  const box = stage.getBoundingClientRect(), before = view.zoom;
  view.zoom = clamp(view.zoom * factor, 1, 8);
  const ratio = view.zoom / before;
  const [x, y] = at ? [at[0] - box.left - box.width / 2, at[1] - box.top - box.height / 2] : [0, 0];
  view.x = x - (x - view.x) * ratio;
  view.y = y - (y - view.y) * ratio;
  draw();
}

function move(x, y) {
  view.x += x;
  view.y += y;
  draw();
}

function window_(width, level) {
  view.window = clamp(view.window + width, 10, 510);
  view.level = clamp(view.level + level, 0, 255);
  draw();
}

function nextPreset() {
  view.preset = (view.preset + 1) % presets.length;
  [, view.level, view.window] = presets[view.preset];
  draw();
}

function reset() {
  Object.assign(view, usual);
  draw();
}

function paint() {
  const canvas = make("canvas");
  canvas.width = xray.naturalWidth;
  canvas.height = xray.naturalHeight;
  const context = canvas.getContext("2d"), [slope, intercept] = levels();
  context.drawImage(xray, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4)
    for (let colour = 0; colour < 3; colour++)
      pixels.data[at + colour] = pixels.data[at + colour] * slope + 255 * intercept;
  context.putImageData(pixels, 0, 0);
  context.globalAlpha = view.showMap ? view.strength : 0;
  const maps = all(".maps img"), cut = maps.length > 1 ? canvas.width * find(".divider").value / 100 : canvas.width;
  maps.forEach((map, number) => {
    context.save();
    context.beginPath();
    context.rect(number ? cut : 0, 0, number ? canvas.width - cut : cut, canvas.height);
    context.clip();
    context.drawImage(map, 0, 0, canvas.width, canvas.height);
    context.restore();
  });
  return canvas.toDataURL("image/png");
}

const stem = () => shown.name.replace(/\.[^./]*$/, "").replaceAll("/", "-");  // folders in a zip

function download(name, address) {
  make("a", {download: name, href: address}).click();
}

// A report, or the CSV of a batch: a text, or bytes in base64; no file lies on the server.
document.addEventListener("save-file", ({detail: {name, kind, text, base64}}) => {
  const bytes = base64 === undefined ? new TextEncoder().encode(text) : Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  download(name, URL.createObjectURL(new Blob([bytes], {type: kind})));
});

const actions = {
  preset: nextPreset, fit: reset,
  invert: () => { view.invert = !view.invert; draw(); },
  pan: () => { view.pan = !view.pan; draw(); },
  out: () => zoomBy(0.8), in: () => zoomBy(1.25),
  map: () => { view.showMap = !view.showMap; draw(); },
  strength: () => { view.strength = view.strength > 0.9 ? 0.3 : view.strength + 0.35; draw(); },
  save: () => download(all(".maps img").length && view.showMap ? `${stem()}-${mapped.join("-")}.png` : `${stem()}.png`, paint()),
  full: () => document.fullscreenElement ? document.exitFullscreen() : find(".left").requestFullscreen(),
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (button && actions[button.dataset.do]) actions[button.dataset.do](button);
});
new ResizeObserver(layOut).observe(stage);
