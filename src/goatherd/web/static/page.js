// The page's only script: times in the reader's zone, ages, copying, and updates by polling.
"use strict";
(() => {
  const root = document.documentElement;
  const body = document.body;
  const live = document.getElementById("live");
  const announce = document.getElementById("announce");
  const sections = document.querySelectorAll("main > *");
  const shown = new Map([...sections].map((one) => [one.id, one.innerHTML])); // as the server sent them
  let offset = 0; // how far the server's clock, which counts, is ahead of the reader's
  let isConnected = true;
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
    if (!body.dataset.poll) return; // a file shows what was so when it was written
    const now = Date.now() + offset;
    for (const one of document.querySelectorAll("time.age")) {
      const text = age(now - Date.parse(one.dateTime));
      if (one.textContent !== text) one.textContent = text;
    }
    tellLive(now);
  }

  function tellLive(now) {
    const readAt = Number(body.dataset.read);
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
  function replace(section, html) {
    const focused = section.contains(document.activeElement) ? document.activeElement : null;
    const list = focused && [...section.querySelectorAll("a,button,select,summary")];
    const place = focused ? list.indexOf(focused) : -1;
    const open = [...section.querySelectorAll("details[open]")].map((one) => one.id);
    section.innerHTML = html;
    for (const one of open) document.getElementById(one)?.setAttribute("open", "");
    localTimes(section);
    markTarget();
    if (place >= 0) section.querySelectorAll("a,button,select,summary")[place]?.focus({ preventScroll: true });
  }

  // Shows what has changed, except in a section in which the reader has selected text.
  function show(page) {
    document.title = page.title;
    Object.assign(body.dataset, page.body.dataset);
    for (const section of sections) {
      const { className, innerHTML } = page.getElementById(section.id);
      section.className = className;
      if (shown.get(section.id) === innerHTML || hasSelection(section)) continue;
      replace(section, innerHTML);
      shown.set(section.id, innerHTML);
    }
  }

  let etag = "";
  let newest = document;
  async function poll() {
    try {
      const options = { headers: { "If-None-Match": etag }, redirect: "manual", signal: AbortSignal.timeout(10000) };
      const answer = await fetch(location.pathname + location.search, options);
      const page = answer.ok && new DOMParser().parseFromString(await answer.text(), "text/html");
      // Another page instead, such as the login of a proxy.
      if (answer.type === "opaqueredirect" || (page && !page.getElementById("state"))) return location.reload();
      isConnected = answer.ok || answer.status === 304;
      if (page) [newest, etag] = [page, answer.headers.get("ETag") ?? ""];
      const ahead = Date.parse(answer.headers.get("Date")) - Date.now();
      if (Math.abs(ahead - offset) > 1500) offset = ahead; // the header has whole seconds
      if (newest !== document) show(newest);
    } catch {
      isConnected = false;
    }
    ages();
    setTimeout(poll, Number(body.dataset.poll));
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

  if (body.dataset.poll) poll();
})();
