// Last: what the parts have defined is put on the page.
addTools();
addExamples();
addMethods();
setMode("empty");
if (window.matchMedia("(max-width: 640px)").matches) find(".more").open = false;
