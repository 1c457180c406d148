// Last: what the parts have defined is put on the page.
addTools();
addExamples();
addMethods();
setMode("empty");
// gradio's tabs take no arrow keys.
document.addEventListener("keydown", (event) => {
  const tabs = [...document.querySelectorAll("[role=tab]")].filter((one) => one.offsetParent);
  const at = tabs.indexOf(document.activeElement), step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (at < 0 || !step) return;
  const next = tabs[(at + step + tabs.length) % tabs.length];
  next.focus();
  next.click();
});
// The tables of About scroll on a phone, and so must take the focus.
new MutationObserver(() => {
  for (const table of document.querySelectorAll("#about table:not([tabindex])")) table.tabIndex = 0;
}).observe(document.body, {childList: true, subtree: true});
document.addEventListener("click", (event) => {
  const link = event.target.closest("#header a[href='#about']");
  if (!link) return;
  event.preventDefault();
  showTab("About");
});
if (window.matchMedia("(max-width: 640px)").matches) find(".more").open = false;
