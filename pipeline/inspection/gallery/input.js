// Mouse, touch and keys.
"use strict";

const SPEEDS = [1, 2, 5, 10, 15, 25, 50];

function listen(view) {
  let drag = null;
  view.canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, t: shown.t, moved: false };
    view.canvas.setPointerCapture(event.pointerId);
  });
  view.canvas.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const way = event.clientX - drag.x;
    if (Math.abs(way) > 6 && !drag.moved) { drag.moved = true; pause(); }
    if (drag.moved) seek(drag.t + Math.round(way / view.canvas.clientWidth * shown.frames));
  });
  view.canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) pick(view, event);
    drag = null;
  });
  view.canvas.addEventListener("pointercancel", () => { drag = null; });
}

function pick(view, event) {
  const box = view.canvas.getBoundingClientRect();
  const [side] = view.sides;
  const place = [(event.clientX - box.left) / box.width * side.width, (event.clientY - box.top) / box.height * side.height];
  const reach = 14 / box.width * side.width;
  let best = null;
  if (shown.t < side.frames.length) {
    for (const row of anchorsOf(side)) {
      for (const n of pointsOf(side)) {
        const [x, y] = at(side, row, shown.t, n);
        const distance = Math.hypot(x - place[0], y - place[1]);
        if (distance < (best?.distance ?? reach)) best = { row, n, distance };
      }
    }
  }
  if (!best && !shown.picked) { toggle(); return; }
  shown.picked = best && shown.clip.sides.map((other) => counterpart(side, best.row, best.n, other)).filter(Boolean);
  seek(shown.t);
}

// The same point in the other snapshot; in another grid, the point that starts nearest to it.
function counterpart(from, row, n, side) {
  const start = from.anchors[row];
  const otherRow = side.anchors.indexOf(start);
  if (otherRow < 0) return null;
  if (side.points === from.points) return { side, row: otherRow, n };
  const [x, y] = at(from, row, start, n).map((part) => part * side.width / from.width);
  const far = (point) => Math.hypot(at(side, otherRow, start, point)[0] - x, at(side, otherRow, start, point)[1] - y);
  let nearest = 0;
  for (let point = 1; point < side.points; point += 1) if (far(point) < far(nearest)) nearest = point;
  return { side, row: otherRow, n: nearest };
}

let last = 0;

function tick(now) {
  if (!shown.playing) return;
  const steps = Math.floor((now - last) / 1000 * shown.speed);
  if (steps > 0) {
    last += steps * 1000 / shown.speed;
    seek((shown.t + steps) % shown.frames);
  }
  requestAnimationFrame(tick);
}

function playState(playing) {
  shown.playing = playing;
  byId("play").textContent = playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
}

function pause() { playState(false); }

function toggle() {
  if (!shown.clip) return;
  playState(!shown.playing);
  last = performance.now();
  if (shown.playing) requestAnimationFrame(tick);
}

function step(by) {
  pause();
  if (shown.clip) seek(shown.t + by);
}

function go(by) {
  const next = listed[listed.indexOf(shown.entry) + by];
  if (next && listed.includes(shown.entry)) location.replace(hashOf(next));
}

function focusCard(by) {
  const cards = [...byId("cards").children];
  const now = cards.indexOf(document.activeElement);
  cards[now < 0 ? 0 : Math.max(0, Math.min(cards.length - 1, now + by))]?.focus();
}

function hurry(by) {
  const now = SPEEDS.indexOf(shown.speed);
  shown.speed = SPEEDS[Math.max(0, Math.min(SPEEDS.length - 1, now + by))];
  byId("speed").value = shown.speed;
}

const IN_CLIP = {
  " ": toggle,
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  Home: () => step(-shown.frames),
  End: () => step(shown.frames),
  j: () => go(1),
  k: () => go(-1),
  a: () => nextOf("anchors"),
  c: () => nextOf("colours"),
  h: () => { shown.hidden = !shown.hidden; refresh(); },
  "[": () => hurry(-1),
  "]": () => hurry(1),
};
const IN_LIST = { j: () => focusCard(1), k: () => focusCard(-1), "/": () => byId("search").focus() };
const ANYWHERE = { d: switchTheme, "?": () => byId("help").showModal() };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || !gallery) return;
  if (event.target.matches("input[type=search], select")) return;
  const does = (byId("player").open ? IN_CLIP : IN_LIST)[event.key] ?? ANYWHERE[event.key];
  const ownArrows = event.target.matches("input[type=range]:not(#frame)");
  const ownSpace = event.key === " " && event.target.matches("button:not(#play), input[type=checkbox]");
  if (!does || ownSpace || (ownArrows && /^(Arrow|Home|End)/.test(event.key))) return;
  event.preventDefault();
  does();
});

byId("close").addEventListener("click", () => { location.hash = "all"; });
byId("player").addEventListener("cancel", (event) => { event.preventDefault(); location.hash = "all"; });
byId("player").addEventListener("close", () => { if (shown.entry) location.hash = "all"; });
byId("earlier").addEventListener("click", () => go(-1));
byId("later").addEventListener("click", () => go(1));
byId("back").addEventListener("click", () => step(-1));
byId("on").addEventListener("click", () => step(1));
byId("play").addEventListener("click", toggle);
byId("help-open").addEventListener("click", () => byId("help").showModal());
byId("frame").addEventListener("input", (event) => { pause(); if (shown.clip) seek(Number(event.target.value)); });
byId("speed").append(...SPEEDS.map((speed) => element("option", { value: speed, textContent: `${speed} frames/s` })));
byId("speed").addEventListener("input", (event) => { shown.speed = Number(event.target.value); });
for (const id of ["tail", "least"]) byId(id).addEventListener("input", (event) => { shown[id] = Number(event.target.value); refresh(); });
for (const id of ["hidden", "faint"]) byId(id).addEventListener("input", (event) => { shown[id] = event.target.checked; refresh(); });
addEventListener("resize", refresh);
