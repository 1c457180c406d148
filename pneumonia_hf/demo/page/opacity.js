// What if there were pneumonia? An opacity in the simulated patient, moved and grown by hand.
const opacity = {x: 0.28, y: 0.35, diameter: 80};
const film_mm = props.film;  // width and height of the simulated film in mm
let back = null, resting = null, following = true;  // resting: the timer that asks for the map

function placeOpacity() {
  const {x, y, diameter} = opacity, [wide, high] = film_mm.map((side) => diameter / 2 / side);
  placeRegion([x - wide, y - high, x + wide, y + high], true);
}

function askOpacity() {
  placeOpacity();
  find(".diameter").value = opacity.diameter;
  find(".size").textContent = `${opacity.diameter} mm`;
  clearTimeout(resting);
  cancel("attribute");
  find(".maps").replaceChildren();  // of another place
  ask("simulate", {...opacity});
}

receivers.simulate = ({number, image, width, height, text, normal, probability}) => {
  if (number === undefined || workspace.dataset.mode !== "opacity") return;
  const first = !shown;
  shown = {name: "Simulated patient", said: ["Simulated patient"], image, width, height, scored: true, simulated: true};
  if (first) { setMode("opacity"); Object.assign(view, usual); }
  find(".panel.opacity .result").innerHTML = text;
  addDot(find(".panel.opacity .scale"), normal);
  showImage(image);
  placeOpacity();
  // The hand rests: the last answer has come, and no move since.
  if (following && !channels.simulate.running) resting = setTimeout(() => ask("attribute", {...opacity}), 60);
};
receivers.attribute = ({number, maps}) => {
  if (number !== undefined && workspace.dataset.mode === "opacity") showMaps(maps);
};

const nudge = (x, y) => { opacity.x = clamp(opacity.x + x, 0, 1); opacity.y = clamp(opacity.y + y, 0, 1); askOpacity(); };
const grow = (by) => { opacity.diameter = clamp(opacity.diameter + by, 0, 120); askOpacity(); };
modes.opacity = {
  start(event) { modes.opacity.move(event); return true; },
  move(event) { [opacity.x, opacity.y] = place(event).map((share) => clamp(share, 0, 1)); askOpacity(); },
  end() {},
  wheel(event) {
    if (!event.target.closest(".region")) return false;
    grow(event.deltaY < 0 ? 4 : -4);
    return true;
  },
  key(event, arrow) {
    const step = event.shiftKey ? 0.05 : 0.01;
    if (arrow) nudge(step * arrow[0], step * arrow[1]);
    else if (["+", "="].includes(event.key)) grow(4);
    else if (event.key === "-") grow(-4);
    else return false;
    return true;
  },
};

actions.opacity = () => {
  const leaving = workspace.dataset.mode === "opacity";
  cancel("analyse", "explain", "mask", "simulate", "attribute");
  clearTimeout(resting);
  showMaps([]);
  if (leaving) {
    shown = back;
    setMode(back ? "view" : "empty");
    if (back) showImage(back.image);
    return;
  }
  back = shown;
  shown = null;
  setMode("opacity");
  Object.assign(find(".more"), {hidden: false, open: true});
  stage.focus({preventScroll: true});
  askOpacity();
};
actions.follow = (button) => {
  following = !following;
  button.setAttribute("aria-pressed", following);
  if (following) askOpacity();
  else { cancel("attribute"); showMaps([]); }
};
find(".diameter").addEventListener("input", ({target}) => { opacity.diameter = Number(target.value); askOpacity(); });
