// Shows the masked X-ray, and reports the box that is dragged on it as shares of the sides.
// The value: {image: address}, or null. The event "select" carries {box: [left, top, right, bottom]}.
let start = null;
const find = (selector) => element.querySelector(selector);

function render() {
  const stage = find(".stage"), value = props.value;
  if (!stage) return;
  stage.replaceChildren();
  if (!value) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = 'Upload an X-ray under "Image" first.';
    stage.append(empty);
    return;
  }
  const image = document.createElement("img");
  image.src = value.image;
  image.draggable = false;
  image.alt = "The X-ray with the masked part";
  const box = document.createElement("div");
  box.className = "box";
  box.hidden = true;
  stage.append(image, box);
}

function place(event) {
  const frame = find(".stage img").getBoundingClientRect();
  const share = (at, from, length) => Math.min(1, Math.max(0, (at - from) / length));
  return [share(event.clientX, frame.left, frame.width), share(event.clientY, frame.top, frame.height)];
}

function span(event) {
  const [x, y] = place(event);
  return [Math.min(start[0], x), Math.min(start[1], y), Math.max(start[0], x), Math.max(start[1], y)];
}

element.addEventListener("pointerdown", (event) => {
  if (!event.target.closest(".stage") || !find(".stage img")) return;
  event.preventDefault();
  start = place(event);
});
window.addEventListener("pointermove", (event) => {
  if (!start) return;
  const [left, top, right, bottom] = span(event), box = find(".box");
  box.hidden = false;
  Object.assign(box.style, {
    left: `${100 * left}%`, top: `${100 * top}%`,
    width: `${100 * (right - left)}%`, height: `${100 * (bottom - top)}%`,
  });
});
window.addEventListener("pointerup", (event) => {
  if (!start) return;
  const box = span(event);
  start = null;
  if (box[2] - box[0] > 0.02 && box[3] - box[1] > 0.02) trigger("select", {box});
});
watch("value", render);
render();
