// A pasted image is taken as an upload.
() => {
  document.addEventListener("paste", (event) => {
    const file = [...event.clipboardData.files].find((one) => one.type.startsWith("image/"));
    const input = document.querySelector("#xray-file input[type=file]");
    if (!file || !input) return;
    const held = new DataTransfer();
    held.items.add(file);
    input.files = held.files;
    input.dispatchEvent(new Event("change", {bubbles: true}));
  });
}
