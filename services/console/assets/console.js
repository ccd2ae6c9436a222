// Fetches the page again every second while it is visible, and changes what differs. What the
// server sends is HTML with all text escaped; it is parsed without running anything.
"use strict";

const EVERY_MS = 1000;
const pause = document.getElementById("pause");
const unreachable = document.getElementById("unreachable");
let failedSince = null;

// Adds the browser's time to times of the server, which are in UTC.
function localize(root) {
  const zone = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit",
    hourCycle: "h23" });
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    const isToday = at.toDateString() === new Date().toDateString();
    const day = isToday ? "" : at.toLocaleDateString() + " ";
    time.textContent = `${day}${zone.format(at)} (${time.textContent})`;
  }
}

// Makes `old` equal to `fresh`, and leaves nodes alone that do not differ: focus, selection and
// scroll positions stay.
function update(old, fresh) {
  if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  // What somebody types stays.
  if (old.matches("form")) return;
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, index) => (index < before.length ? update(before[index], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

async function refresh() {
  try {
    const response = await fetch(location.href, { cache: "no-store", redirect: "error" });
    if (response.status === 401 || response.status === 403) return location.reload();
    if (!response.ok) throw new Error(`HTTP status ${response.status}`);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    const main = fresh.querySelector("main");
    localize(main);
    update(document.querySelector("main"), document.adoptNode(main));
    failedSince = null;
    unreachable.textContent = "";
  } catch (error) {
    failedSince ??= new Date();
    unreachable.textContent =
      `The console has not answered since ${failedSince.toLocaleTimeString()}; all figures are out of date. (${error.message})`;
  }
}

function isPaused() {
  return document.hidden || pause.getAttribute("aria-pressed") === "true";
}

async function run() {
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
    if (!isPaused()) await refresh();
  }
}

localize(document);
if (document.querySelector("main[data-live]") && pause) {
  pause.addEventListener("click", () => {
    const isPressed = pause.getAttribute("aria-pressed") === "true";
    pause.setAttribute("aria-pressed", String(!isPressed));
    pause.textContent = isPressed ? "Pause" : "Continue";
  });
  run();
}
