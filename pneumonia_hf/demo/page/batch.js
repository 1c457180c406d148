// The list of a batch: chips filter it, headings sort it, and a row opens its X-ray in the viewer,
// above which a bar (#batch-bar) goes on to the next. The viewer is asked by the event "xray-open" of
// the document with {row, name}; it says "xray-start" whenever it opens anything.
// The value: {rows, total, skipped, done} as of ShownBatch.describe, {fault}, both of a batch that was
// broken off, or null.
const names = {PNEUMONIA: "pneumonia", REFER: "unsure", REFUSED: "refused", "": "not readable", NORMAL: "normal"};
const order = Object.keys(names);  // of need of attention
const headings = {file: "File", probability: "Probability", decision: "Decision", warnings: "Warnings"};
const most = 50;  // of the skipped files, that are listed
const state = {chip: null, column: null, down: false, open: null};
const bar = () => document.querySelector("#batch-bar .bar");
const openable = () => all("tbody tr").filter((row) => row.querySelector(".open"));
const count = (number, thing) => `${number} ${thing}${number === 1 ? "" : "s"}`;

function compare(one, other) {
  const attention = order.indexOf(one.decision) - order.indexOf(other.decision);
  if (state.column === "probability") return (one.probability ?? -1) - (other.probability ?? -1);
  if (state.column && state.column !== "decision")
    return one[state.column].localeCompare(other[state.column], undefined, {numeric: true});
  return attention || other.probability - one.probability;
}

function addStatus(list, {rows, total, skipped, done}) {
  const part = `${rows.length} of ${count(total, "file")}`, torn = rows.filter((row) => !row.decision).length;
  const ended = `${count(total - torn, "X-ray")} analysed${torn ? `, ${count(torn, "file")} not readable` : ""}.`;
  const text = !done ? `Analysing: ${part} done.` : rows.length < total ? `Stopped: ${part} analysed.` : ended;
  list.append(make("p", {role: "status"}, text));
  if (!done) list.append(make("progress", {max: total, value: rows.length, "aria-label": "done"}));
  const chips = make("div", {class: "chips", role: "group", "aria-label": "Show only"});
  const number = (decision) => rows.filter((row) => decision === null || row.decision === decision).length;
  for (const decision of [null, ...order.filter(number)]) {
    const label = decision === null ? `all ${rows.length}` : `${number(decision)} ${names[decision]}`;
    const chip = make("button", {type: "button", "aria-pressed": state.chip === decision}, label);
    chip.addEventListener("click", () => { state.chip = decision; render(); });
    chips.append(chip);
  }
  list.append(chips);
  if (!skipped.length) return;
  const lines = skipped.slice(0, most).map(([name, why]) => `${name}: ${why}`);
  if (skipped.length > most) lines.push(`and ${count(skipped.length - most, "other file")}`);
  list.append(make("details", {class: "skipped", open: ""}, make("summary", {}, `${count(skipped.length, "file")} in zip files skipped`),
                   make("ul", {}, ...lines.map((line) => make("li", {}, line)))));
}

function addRow(row) {
  const file = row.decision ? make("button", {type: "button", class: "open"}, row.file) : row.file;
  const badge = make("span", {class: `badge ${row.decision.toLowerCase()}`}, row.words);
  const cells = [row.image ? make("img", {src: row.image, alt: ""}) : "", file, row.percent, badge, row.warnings];
  return make("tr", {"data-index": row.index}, ...cells.map((cell) => make("td", {}, cell)));
}

function render() {
  const list = find(".list"), value = props.value;
  if (!list) return;
  const focused = document.activeElement.textContent, within = list.contains(document.activeElement);
  list.replaceChildren();
  if (!value) return;
  if (value.fault) list.append(make("p", {role: "alert"}, value.fault));
  if (!value.rows?.length && value.fault) return;
  const rows = value.rows.map((row, index) => ({...row, index}));
  if (!rows.some((row) => row.decision === state.chip)) state.chip = null;
  addStatus(list, {...value, rows});
  const sorted = rows.filter((row) => state.chip === null || row.decision === state.chip).sort(compare);
  if (state.down) sorted.reverse();
  const head = make("tr", {}, make("th", {scope: "col"}, "X-ray"), ...Object.entries(headings).map(([column, title]) => {
    const button = make("button", {type: "button"}, title);
    button.addEventListener("click", () => {
      state.down = state.column === column ? !state.down : column === "probability";
      state.column = column;
      render();
    });
    const is = state.column !== column ? "none" : state.down ? "descending" : "ascending";
    return make("th", {scope: "col", "aria-sort": is}, button);
  }));
  const table = make("table", {class: "batch"}, make("thead", {}, head), make("tbody", {}, ...sorted.map(addRow)));
  list.append(make("div", {class: "wide"}, table));
  if (within) all("button").find((one) => one.textContent === focused)?.focus();
}

// Calls `act` when an element is on the screen, as it is after its tab has opened.
function whenShown(look, act, tries = 60) {
  const found = look();
  if (found && found.offsetParent) act(found);
  else if (tries) setTimeout(whenShown, 50, look, act, tries - 1);
}

function open(row) {
  if (!row) return;
  const name = row.querySelector(".open").textContent, was = document.activeElement;
  document.dispatchEvent(new CustomEvent("xray-open", {detail: {row: Number(row.dataset.index), name}}));
  showTab("X-ray");
  state.open = row.dataset.index;
  const rows = openable(), place = rows.indexOf(row);
  bar().hidden = false;
  bar().querySelector("span").textContent =
    `${name}: ${place + 1} of ${rows.length}`;
  bar().querySelector("[data-step='-1']").disabled = place === 0;
  bar().querySelector("[data-step='1']").disabled = place === rows.length - 1;
  if (was.matches("#viewer .stage")) return;  // which keeps the focus
  const usual = () => bar().querySelector("[data-step='1']:enabled") || bar().querySelector("button:enabled");
  whenShown(() => bar().contains(was) && !was.disabled ? was : usual(), (button) => button.focus());
}

function step(by) {
  const rows = openable();
  open(rows[rows.findIndex((row) => row.dataset.index === state.open) + by]);
}

function back() {
  showTab("Batch");
  whenShown(() => find(`tr[data-index="${state.open}"] .open`), (button) => button.focus());
}

element.addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (row && row.querySelector(".open")) open(row);
});
element.addEventListener("keydown", (event) => {
  const by = {ArrowDown: 1, ArrowUp: -1}[event.key];
  if (!by || !event.target.classList.contains("open")) return;
  const rows = openable(), next = rows[rows.indexOf(event.target.closest("tr")) + by];
  if (next) next.querySelector(".open").focus();
  event.preventDefault();
});
document.addEventListener("click", (event) => {
  const button = event.target.closest("#batch-bar button");
  if (button) button.dataset.step ? step(Number(button.dataset.step)) : back();
});
document.addEventListener("keydown", (event) => {
  const inBar = event.target.closest?.("#batch-bar");
  if (bar().hidden || !(inBar || event.target.matches?.("#viewer .stage"))) return;
  const by = {PageDown: 1, PageUp: -1, ...(inBar && {ArrowRight: 1, ArrowLeft: -1})}[event.key];
  if (by) { event.preventDefault(); step(by); }
  else if (event.key === "Escape") back();
});
document.addEventListener("xray-start", () => { bar().hidden = true; });
watch("value", render);
render();
