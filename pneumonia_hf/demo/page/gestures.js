// Hands: drag for window and level, wheel and pinch for zoom, Shift, middle button or tool to pan.
const pointers = new Map();
let last = null;

// Where a pointer is on the film, as shares of its sides.
function place(event) {
  const box = film.getBoundingClientRect();
  return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
}

// Modes take a gesture over by their own handlers: {start, move, end, wheel, key}.
const modes = {view: {}, empty: {}, hide: {}, opacity: {}};
const mode = () => modes[workspace.dataset.mode];
const middle = () => {
  const [a, b] = [...pointers.values()];
  return {x: (a.clientX + b.clientX) / 2, y: (a.clientY + b.clientY) / 2, far: Math.hypot(a.clientX - b.clientX, a.clientY - b.clientY)};
};

stage.addEventListener("pointerdown", (event) => {
  if (film.hidden || event.target.closest("button, input, .wait") || event.button > 1) return;
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) { last = middle(); return; }
  const panning = view.pan || event.shiftKey || event.button === 1 || (event.pointerType === "touch" && view.zoom > 1 && !mode().start);
  last = {x: event.clientX, y: event.clientY, panning, own: !panning && mode().start && mode().start(event)};
  if (event.pointerType !== "touch") event.preventDefault();
  stage.focus({preventScroll: true});
  stage.setPointerCapture(event.pointerId);
});
stage.addEventListener("pointermove", (event) => {
  if (!pointers.has(event.pointerId) || !last) return;
  pointers.set(event.pointerId, event);
  if (pointers.size === 2) {
    const now = middle();
    zoomBy(now.far / last.far, [now.x, now.y]);
    move(now.x - last.x, now.y - last.y);
    last = now;
    return;
  }
  if (pointers.size > 2 || last.far) return;
  const [x, y] = [event.clientX - last.x, event.clientY - last.y];
  Object.assign(last, {x: event.clientX, y: event.clientY});
  if (last.own) mode().move(event);
  else if (last.panning) move(x, y);
  else window_(x, y);
});
for (const name of ["pointerup", "pointercancel"])
  stage.addEventListener(name, (event) => {
    if (!pointers.delete(event.pointerId)) return;
    if (last && last.own) mode().end(event);
    last = null;
  });
stage.addEventListener("wheel", (event) => {
  if (film.hidden) return;
  event.preventDefault();
  if (mode().wheel && mode().wheel(event)) return;
  zoomBy(Math.exp(-clamp(event.deltaY, -100, 100) / 500), [event.clientX, event.clientY]);
}, {passive: false});
stage.addEventListener("dblclick", (event) => { if (!event.target.closest("button, input")) reset(); });

const arrows = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
const keys = {i: "invert", m: "map", f: "fit", p: "preset", "+": "in", "=": "in", "-": "out"};
document.addEventListener("keydown", (event) => {
  const inBar = event.target.closest?.("#batch-bar");  // whose arrows go to the next X-ray
  if ((event.target !== stage && !inBar) || film.hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = inBar ? undefined : arrows[event.key], key = event.key.toLowerCase();
  if (mode().key && mode().key(event, arrow)) event.preventDefault();
  else if (arrow) {
    event.preventDefault();
    if (view.zoom > 1) move(-40 * arrow[0], -40 * arrow[1]);
    else window_(5 * arrow[0], 5 * arrow[1]);
  } else if (keys[key] && !find(`[data-do=${keys[key]}]`).disabled) actions[keys[key]]();
});
