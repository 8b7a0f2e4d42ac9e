// Keeps the page live: asks for its changing part every two seconds, and changes only what differs, so that nothing
// flickers and focus, selection and scroll stay where they are. Without this file the page reloads itself instead.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 10000;

function alike(a, b) {
  return a.nodeType === b.nodeType && a.nodeName === b.nodeName && (a.id || "") === (b.id || "");
}

function become(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  const olds = [...old.childNodes];
  const news = [...fresh.childNodes];
  news.forEach((child, at) => {
    if (at >= olds.length) old.append(child);
    else if (alike(olds[at], child)) become(olds[at], child);
    else olds[at].replaceWith(child);
  });
  olds.slice(news.length).forEach((child) => child.remove());
}

let failures = 0;

async function refresh() {
  if (document.hidden) return;
  const live = document.getElementById("live");
  try {
    const answer = await fetch("/live" + location.search, { signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!answer.ok) throw new Error("HTTP " + answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("live");
    if (!fresh) throw new Error("no page");
    become(live, fresh);
    failures = 0;
  } catch {
    failures += 1;
    if (failures === 2 && !document.getElementById("away")) {
      const away = document.createElement("div");
      away.id = "away";
      away.className = "banner";
      away.setAttribute("role", "alert");
      away.textContent = "The dashboard does not answer. What stands here is the last that it said; it is asked again.";
      live.prepend(away);
      live.classList.add("stale");
    }
  }
}

async function turn() {
  await refresh();
  setTimeout(turn, EVERY_MS);
}

setTimeout(turn, EVERY_MS);
document.addEventListener("visibilitychange", refresh);
