// Requests to the server: one of a kind at a time, and of those that wait the last. Answers to a request
// that has been cancelled are dropped.
const channels = {}, receivers = {};
let asked = 0;

function ask(kind, data) {
  const channel = channels[kind] ??= {};
  const request = {...data, number: ++asked};
  channel.wanted = asked;
  if (channel.running) { channel.next = request; stop(kind); }
  else send(kind, request);
}

function send(kind, request) {
  channels[kind].running = request.number;
  channels[kind].next = null;
  trigger(kind, request);
}

function cancel(...kinds) {
  for (const kind of kinds) { Object.assign(channels[kind] ??= {}, {wanted: 0, next: null}); stop(kind); }
  wait(null);
}

// Maps take seconds: the server stops one that is no longer wanted.
function stop(kind) {
  if (kind === "explain" && channels[kind].running) trigger("stop", {number: channels[kind].running});
}

// `live` kinds show what comes while they wait for the last answer, since the hand still moves.
const live = ["mask", "simulate"];
document.addEventListener("xray-answer", ({detail: {kind, ...answer}}) => {
  const channel = channels[kind];
  if (!channel || !element.isConnected) return;
  const is = answer.number === undefined ? channel.running : answer.number;  // undefined: it failed
  if (is !== channel.running) return;
  const wanted = channel.wanted === is || (live.includes(kind) && channel.wanted);
  channel.running = null;
  if (channel.next) send(kind, channel.next);
  if (wanted) receivers[kind](answer);
});

function wait(text) {
  find(".wait").hidden = !text;
  find(".wait span").textContent = text || "";
}
