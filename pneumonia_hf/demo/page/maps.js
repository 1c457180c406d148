// Why? Attribution maps on the same viewer; a second one beside it by a divider.
let chosen = [];  // the methods that are wanted, in order
let mapped = [];  // the methods whose maps are shown

const mapsShown = () => mapped.slice(0, 1);

function explain(...methods) {
  chosen = methods;
  if (!methods.length) { cancel("explain"); showMaps([]); }
  else { wait("Computing the map"); ask("explain", {of: shown.number, methods}); }
  syncMethods();
}

receivers.explain = ({number, maps}) => {
  wait(null);
  if (number === undefined) return syncMaps();
  showMaps(maps);
};

function showMaps(maps) {
  mapped = maps.map((map) => map.method);
  if (!maps.length) chosen = [];
  find(".maps").replaceChildren(...maps.map(({source, title}) =>
    make("img", {class: "map", src: source, alt: `Attribution map, ${title}`, draggable: "false"})));
  find(".said").textContent = maps.map((map) => map.title).join(" Right of the divider: ");
  view.showMap = true;
  divide();
  syncMethods();
  draw();
}

// What was not answered is no longer chosen.
function syncMaps() {
  chosen = [...mapped];
  syncMethods();
}

function divide() {
  const divider = find(".divider"), [first, second] = all(".maps img");
  divider.hidden = !second;
  if (!second) return;
  first.style.clipPath = `inset(0 ${100 - divider.value}% 0 0)`;
  second.style.clipPath = `inset(0 0 0 ${divider.value}%)`;
}

function syncMethods() {
  find(".panel.why").hidden = !chosen.length;
  find("[data-do=why]").setAttribute("aria-pressed", chosen.length > 0);
  for (const button of all(".methods [data-method]")) {
    const {method, second} = button.dataset;
    button.setAttribute("aria-pressed", method === chosen[second ? 1 : 0]);
    if (second) button.hidden = method === chosen[0];
  }
}

function addMethods() {
  const row = find(".methods"), rest = make("details", {}, make("summary", {}, "More"));
  props.methods.forEach(({method, title}, number) => {
    const button = make("button", {type: "button", "data-method": method}, title);
    button.addEventListener("click", () => explain(method));
    (number < 3 ? row : rest).append(button);
  });
  for (const {method, title} of props.methods.slice(0, 3)) {
    const button = make("button", {type: "button", "data-method": method, "data-second": "1"}, `Compare with ${title}`);
    button.addEventListener("click", () => explain(...(chosen[1] === method ? [chosen[0]] : [chosen[0], method])));
    row.append(button);
  }
  if (props.methods.length > 3) row.append(rest);
}

actions.why = () => explain(...(chosen.length ? [] : [props.offered]));
find(".divider").addEventListener("input", divide);
