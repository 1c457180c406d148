// Where X-rays come from: dropped, pasted, chosen, or an example; at any time.
let uploads = 0;

async function open(file) {
  if (!file) return;
  const turn = ++uploads;
  start(`Reading ${file.name}`);
  try {
    const {path} = await upload(file);
    if (turn === uploads) request({path, example: -1}, file.name);
  } catch (error) {
    if (turn !== uploads) return;
    wait(null);
    restore();
    say('<div class="answer"><p class="fault" role="alert">The file could not be uploaded; it may be larger than this app allows.</p></div>');
  }
}

function start(text) {
  document.dispatchEvent(new CustomEvent("xray-start"));
  cancel("analyse", "explain", "mask", "simulate", "attribute", "report");
  setMode("view");
  stage.focus({preventScroll: true});
  wait(text);
}

const names = {};  // of the files, by request: an answer brings its own name back
function request(data, name, note) {
  ask("analyse", {row: -1, ...data});
  names[asked] = [name, note];
}

receivers.analyse = ({number, answer, image, width, height, view: position, side, scored, map}) => {
  cancel("explain", "mask", "report");  // of the X-ray before, asked for while this one was read
  if (number === undefined) return restore();
  say(answer);
  const [name, note] = names[number];
  showMaps([]);
  Object.assign(view, usual);
  shown = image ? {number, name, image, width, height, scored, said: [name, note, position, side && `side ${side}`]} : null;
  setMode(image ? "view" : "empty");
  if (!shown) return;
  showImage(image);
  if (map) explain(map);
};

// On a phone a fault would stand below the examples, out of sight.
function say(answer) {
  find("#answer").innerHTML = answer;
  find("#answer .fault")?.scrollIntoView({block: "nearest"});
}

// The mode of what is shown, when nothing new has come.
function restore() {
  if (!shown) setMode("empty");
  else if (shown.simulated) setMode("opacity");
  else showImage(shown.image);  // without a part that was hidden
}

function showImage(image) {
  xray.src = image;
  film.hidden = false;
  layOut();
}

function setMode(mode) {
  if (mode === "empty") shown = null;
  workspace.dataset.mode = mode;
  find(".welcome").hidden = Boolean(shown) || mode === "opacity";
  film.hidden = !find(".welcome").hidden;
  for (const name of ["hide", "opacity"]) find(`.modes [data-do=${name}]`).setAttribute("aria-pressed", mode === name);
  for (const name of ["hide", "opacity"]) find(`.panel.${name}`).hidden = mode !== name;
  find(".more").hidden = !shown;
  find(".intro").hidden = Boolean(shown) || mode !== "empty" || find("#answer").childElementCount > 0;
  const scored = Boolean(shown && shown.scored);
  for (const name of ["why", "hide"]) find(`.modes [data-do=${name}]`).disabled = !scored || mode === "opacity" || Boolean(shown.simulated);
  if (mode === "hide") find(".modes [data-do=why]").disabled = true;  // a map is of the whole X-ray
  find(".reports").hidden = !shown || mode !== "view";
  find("#answer").hidden = mode === "opacity" || mode === "hide";
  find(".region").hidden = true;
  find(".name").textContent = shown ? shown.said.filter(Boolean).join(" · ") : "";
  draw();
}

function addExamples() {
  const minutes = Math.ceil(props.kept * 1.25 / 60);
  // An upload that breaks off stays for an hour, as does what is in memory.
  find(".privacy").textContent = "JPEG, PNG, TIFF, BMP, WebP or DICOM. Deleted from the server's disk and memory within "
    + `${minutes > 60 ? `${minutes} minutes` : "an hour"}; never stored or sent elsewhere.`;
  const list = find(".examples");
  props.examples.forEach(({title, note, image}, number) => {
    const button = make("button", {type: "button"}, make("img", {src: image, alt: ""}), make("b", {}, title), make("span", {}, note));
    button.addEventListener("click", () => { ++uploads; start(`Reading ${title}`); request({path: null, example: number}, title, note); });
    list.append(make("li", {}, button));
  });
  const dot = make("span", {class: "dot"}), picture = make("span", {class: "with-dot"}, make("img", {src: props.phantom, alt: ""}), dot);
  const button = make("button", {type: "button", "data-do": "opacity"}, picture, make("b", {}, "What if there were pneumonia?"), make("span", {}, "put it there yourself"));
  list.append(make("li", {}, button));
}

actions.choose = () => find(".file").click();
actions.cancel = () => { ++uploads; cancel("analyse", "explain", "report"); restore(); syncMaps(); };
find(".file").addEventListener("change", ({target}) => { open(target.files[0]); target.value = ""; });
stage.addEventListener("dragover", (event) => { event.preventDefault(); stage.classList.add("over"); });
for (const name of ["dragleave", "drop"]) stage.addEventListener(name, () => stage.classList.remove("over"));
stage.addEventListener("drop", (event) => { event.preventDefault(); open(event.dataTransfer.files[0]); });
// An X-ray of the batch: batch.js asks for it by its row.
document.addEventListener("xray-open", ({detail: {row, name}}) => {
  ++uploads;
  start(`Reading ${name}`);
  request({path: null, example: -1, row}, name);
});
document.addEventListener("paste", (event) => {
  const file = event.clipboardData.files[0];
  if (file && element.isConnected && element.offsetParent) open(file);
});
for (const kind of ["html", "pdf"])
  actions[kind] = () => { wait("Writing the report"); ask("report", {format: kind, of: shown.number, methods: view.showMap ? mapsShown() : [], window: view.window, level: view.level, invert: view.invert, strength: view.strength}); };
receivers.report = ({number, file}) => {
  wait(null);
  if (number !== undefined) document.dispatchEvent(new CustomEvent("save-file", {detail: file}));
};
