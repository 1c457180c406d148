// The table of a batch: chips filter it, headings sort it, and a row opens its X-ray in the viewer,
// above which a bar (#batch-bar) goes on to the next. The viewer is asked by the event "xray-open" of
// the document with {row, name}; it says "xray-start" whenever it opens anything.
const state = {chip: "", column: 0, down: false, open: null};
const all = (selector) => [...element.querySelectorAll(selector)];
const bar = () => document.querySelector("#batch-bar .bar");
const listed = () => all("tbody tr").filter((row) => !row.hidden);
const openable = () => listed().filter((row) => row.querySelector(".open"));

function compare(one, other) {
  const [a, b] = [one, other].map((row) => row.cells[state.column].dataset.value);
  return state.column === 2 || state.column === 3 ? a - b : a.localeCompare(b, undefined, {numeric: true});
}

function apply() {
  const body = element.querySelector("tbody");
  if (!body) return;
  if (!all(`[data-chip="${state.chip}"]`).length) state.chip = "";
  if (state.column) {  // otherwise as it came: by need of attention
    const sorted = all("tbody tr").sort(compare);
    body.append(...(state.down ? sorted.reverse() : sorted));
  }
  for (const row of all("tbody tr"))
    row.hidden = state.chip !== "" && (row.dataset.decision || "none") !== state.chip;
  for (const chip of all("[data-chip]"))
    chip.setAttribute("aria-pressed", String(chip.dataset.chip === state.chip));
  for (const button of all("[data-column]")) {
    const sorted = Number(button.dataset.column) === state.column;
    button.closest("th").setAttribute("aria-sort", !sorted ? "none" : state.down ? "descending" : "ascending");
  }
}

// Calls `act` when an element is on the screen, as it is after its tab has opened.
function whenShown(find, act, tries = 60) {
  const found = find();
  if (found && found.offsetParent) act(found);
  else if (tries) setTimeout(whenShown, 50, find, act, tries - 1);
}

function showTab(name) {
  [...document.querySelectorAll("[role=tab]")].find((one) => one.textContent.trim() === name).click();
}

function open(row) {
  if (!row) return;
  const name = row.querySelector(".open").textContent;
  document.dispatchEvent(new CustomEvent("xray-open", {detail: {row: Number(row.dataset.index), name}}));
  showTab("X-ray");
  state.open = row.dataset.index;
  const rows = openable(), place = rows.indexOf(row);
  bar().hidden = false;
  bar().querySelector("span").textContent =
    `${name}: ${place + 1} of ${rows.length}`;
  bar().querySelector("[data-step='-1']").disabled = place === 0;
  bar().querySelector("[data-step='1']").disabled = place === rows.length - 1;
  if (!bar().contains(document.activeElement) || document.activeElement.disabled)
    whenShown(() => bar().querySelector("[data-step='1']:enabled") || bar().querySelector("button:enabled"),
              (button) => button.focus());
}

function step(by) {
  const rows = openable();
  open(rows[rows.findIndex((row) => row.dataset.index === state.open) + by]);
}

function back() {
  showTab("Batch");
  whenShown(() => element.querySelector(`tr[data-index="${state.open}"] .open`), (button) => button.focus());
}

element.addEventListener("click", (event) => {
  const button = event.target.closest("button"), row = event.target.closest("tbody tr");
  if (button && button.dataset.chip !== undefined) {
    state.chip = button.dataset.chip;
    apply();
  } else if (button && button.dataset.column) {
    const column = Number(button.dataset.column);
    state.down = state.column === column ? !state.down : column === 2;
    state.column = column;
    apply();
  } else if (row && row.querySelector(".open")) open(row);
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
  if (!event.target.closest || !event.target.closest("#batch-bar")) return;
  if (event.key === "ArrowRight") step(1);
  else if (event.key === "ArrowLeft") step(-1);
  else if (event.key === "Escape") back();
});
document.addEventListener("xray-start", () => { bar().hidden = true; });
watch("value", apply);
apply();
