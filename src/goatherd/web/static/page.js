// The page's only script: times in the reader's zone, ages, copying, and updates by server-sent events.
"use strict";
(() => {
  const root = document.documentElement;
  const body = document.body;
  const live = document.getElementById("live");
  const announce = document.getElementById("announce");
  let offset = Number(body.dataset.now) - Date.now(); // the server's clock counts, not the reader's
  let readAt = Number(body.dataset.read);
  let isConnected = false;
  root.classList.add("js");

  function local(date) {
    const two = (number) => String(number).padStart(2, "0");
    const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
    return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  }

  // As `format_age` in render.py.
  function age(ms) {
    const s = Math.abs(ms) / 1000;
    const steps = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
    if (s < 1) return "now";
    const [size, unit] = steps.find(([one]) => s >= one * (one === 86400 ? 2 : 1)) || [1, "s"];
    const text = `${Math.floor(s / size)} ${unit}`;
    return ms < 0 ? `in ${text}` : `${text} ago`;
  }

  function ages() {
    if (!body.dataset.events) return; // a file shows what was so when it was written
    const now = Date.now() + offset;
    for (const one of document.querySelectorAll("time.age")) {
      const text = age(now - Date.parse(one.dateTime));
      if (one.textContent !== text) one.textContent = text;
    }
    tellLive(now);
  }

  function tellLive(now) {
    const since = age(Math.max(0, now - readAt));
    const isLate = now - readAt > 3 * Number(body.dataset.interval) + 5000;
    const text = isConnected ? `last update ${since === "now" ? "now" : since}` : `connection lost; last update ${since}`;
    live.className = isConnected && !isLate ? "live on" : "live off";
    live.textContent = text;
    // A screen reader hears of a change, not of every second.
    const message = isConnected ? "" : "connection lost";
    if (announce.textContent !== message) announce.textContent = message;
  }

  function localTimes(within) {
    for (const one of within.querySelectorAll("time:not(.age)")) one.textContent = local(new Date(one.dateTime));
  }

  function hasSelection(within) {
    const found = document.getSelection();
    return found && !found.isCollapsed && within.contains(found.anchorNode);
  }

  // `:target` matches no element that came after the reader followed the link to it.
  function markTarget() {
    for (const one of document.querySelectorAll(".target")) one.classList.remove("target");
    document.getElementById(location.hash.slice(1))?.classList.add("target");
  }

  // Replaces a section, and keeps what the reader had focused, opened and linked to.
  function show(id, html) {
    const section = document.getElementById(id);
    if (!section || hasSelection(section)) return false;
    const focused = section.contains(document.activeElement) ? document.activeElement : null;
    const list = focused && [...section.querySelectorAll("a,button,select,summary")];
    const place = focused ? list.indexOf(focused) : -1;
    const open = [...section.querySelectorAll("details[open]")].map((one) => one.id);
    section.innerHTML = html;
    for (const one of open) document.getElementById(one)?.setAttribute("open", "");
    localTimes(section);
    markTarget();
    if (place >= 0) section.querySelectorAll("a,button,select,summary")[place]?.focus({ preventScroll: true });
    return true;
  }

  const waiting = new Map();
  function showAll(sections) {
    for (const [id, html] of Object.entries(sections)) waiting.set(id, html);
    for (const [id, html] of waiting) if (show(id, html)) waiting.delete(id);
    ages();
  }

  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button.copy");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
    } catch {
      const area = document.createElement("textarea");
      area.value = button.dataset.copy;
      button.after(area);
      area.select();
      document.execCommand("copy");
      area.remove();
      button.focus();
    }
    button.classList.add("copied");
    setTimeout(() => button.classList.remove("copied"), 1500);
  });

  addEventListener("hashchange", markTarget);
  document.getElementById("zone").textContent = Intl.DateTimeFormat().resolvedOptions().timeZone;
  localTimes(document);
  ages();
  setInterval(ages, 1000);

  if (!body.dataset.events) return;
  const events = new EventSource(body.dataset.events);
  events.onopen = () => { isConnected = true; ages(); };
  events.onerror = () => {
    isConnected = false;
    ages();
    // The server has answered with an error, such as a session that has ended: the browser does not try again.
    if (events.readyState === EventSource.CLOSED) setTimeout(() => location.reload(), 5000);
  };
  events.addEventListener("view", (event) => {
    const data = JSON.parse(event.data);
    readAt = data.read;
    offset = data.now - Date.now();
    isConnected = true;
    document.title = data.title;
    document.getElementById("state").className = data.state;
    showAll(data.parts);
  });
})();
