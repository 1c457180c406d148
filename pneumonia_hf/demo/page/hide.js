// What if I hide something? A box or the border, on the same viewer.
const hidden = {box: [0, 0, 0, 0], border: 0, fill: props.fills[0]};
let corner = null;  // where a drag began; null while it moves the border

function askMask() {
  placeRegion(hidden.box);
  find(".edge").style.inset = `${100 * hidden.border}%`;
  find(".border").value = 100 * hidden.border;
  ask("mask", {of: shown.number, border: hidden.border, box: hidden.box, fill: hidden.fill});
}

// The yellow frame; the film itself shows what is hidden when the answer has come.
function placeRegion([left, top, right, bottom], round = false) {
  const region = find(".region");
  region.hidden = right <= left || bottom <= top;
  region.classList.toggle("round", round);
  Object.assign(region.style, {left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`});
}

receivers.mask = ({number, image, text, before}) => {
  if (number === undefined || workspace.dataset.mode !== "hide") return;
  xray.src = image;
  find(".panel.hide .result").innerHTML = text;
  addDot(find(".panel.hide .scale"), before);
};

// A second, hollow dot on a scale.
function addDot(scale, probability) {
  if (scale) scale.append(make("div", {class: "point before", "data-probability": probability, style: `left:${100 * probability}%`}));
}

const GRAB = 0.02;  // of the X-ray's sides: so near to the edge of the border, a drag moves it
const toEdge = ([x, y]) => Math.min(x, y, 1 - x, 1 - y);
modes.hide = {
  start(event) {
    const at = place(event);
    corner = Math.abs(toEdge(at) - hidden.border) < GRAB ? null : at;
    return true;
  },
  move(event) {
    if (!corner) { hidden.border = clamp(toEdge(place(event)), 0, 0.4); askMask(); return; }
    const other = place(event), within = (share) => clamp(share, 0, 1);
    placeRegion(hidden.box = [0, 1].map((axis) => within(Math.min(corner[axis], other[axis])))
      .concat([0, 1].map((axis) => within(Math.max(corner[axis], other[axis])))));
  },
  end() {
    if (hidden.box[2] - hidden.box[0] < 0.02 || hidden.box[3] - hidden.box[1] < 0.02) hidden.box = [0, 0, 0, 0];
    askMask();
  },
  key(event, arrow) {
    if (!arrow) return false;
    if (hidden.box[2] <= hidden.box[0]) hidden.box = [0.4, 0.4, 0.6, 0.6];
    else {
      const step = arrow.map((one) => 0.02 * one), [left, top, right, bottom] = hidden.box;
      if (event.shiftKey) hidden.box = [left, top, clamp(right + step[0], left + 0.02, 1), clamp(bottom + step[1], top + 0.02, 1)];
      else {
        const [x, y] = [clamp(step[0], -left, 1 - right), clamp(step[1], -top, 1 - bottom)];
        hidden.box = [left + x, top + y, right + x, bottom + y];
      }
    }
    askMask();
    return true;
  },
};

actions.hide = () => {
  const leaving = workspace.dataset.mode === "hide";
  cancel("mask", "explain");
  showMaps([]);
  setMode(leaving ? "view" : "hide");
  if (leaving) xray.src = shown.image;
  else { stage.focus({preventScroll: true}); actions.clear(); }
};
actions.clear = () => {
  Object.assign(hidden, {box: [0, 0, 0, 0], border: 0});
  askMask();
};
find(".border").addEventListener("input", ({target}) => { hidden.border = Number(target.value) / 100; askMask(); });
props.fills.forEach((fill) => {
  const button = make("button", {type: "button", "aria-pressed": fill === hidden.fill}, fill);
  button.addEventListener("click", () => {
    hidden.fill = fill;
    for (const one of find(".fills").children) one.setAttribute("aria-pressed", one === button);
    askMask();
  });
  find(".fills").append(button);
});
