// Draws the open clip.
"use strict";

const narrow = matchMedia("(max-width: 760px)");
const ANCHOR_HUES = [205, 35, 140, 320, 265, 60, 0, 175];

// Positions have pixel centres at integers; the canvas has them at halves.
const at = (side, row, t, n) => {
  const index = 2 * ((row * side.frames.length + t) * side.points + n);
  return [side.positions[index] / side.units + 0.5, side.positions[index + 1] / side.units + 0.5];
};
const value = (side, which, row, t, n) => side[which][(row * side.frames.length + t) * side.points + n] / 255;
const seen = (side, row, t, n) => value(side, "visibility", row, t, n) * 100 >= shown.least;

// A score in pixels, null if there is none. Planes: epipolar, reprojection, cycle; codes as in KEY.scores.zst.
function score(side, plane, row, n) {
  const code = side.scores[(plane * side.anchors.length + row) * side.points + n];
  return code ? 2 ** ((code - 128) / 16) : null;
}

// The larger of epipolar and reprojection error; the cycle error where cameras say nothing.
function errorOf(side, row, n) {
  const [epipolar, reprojection, cycle] = [0, 1, 2].map((plane) => score(side, plane, row, n));
  return epipolar === null && reprojection === null ? cycle : Math.max(epipolar ?? 0, reprojection ?? 0);
}

// From blue (0.25 px and less) over green and yellow to red (8 px and more), in octaves; grey without a score.
function errorColour(error) {
  if (error === null) return "hsl(0 0% 60%)";
  const part = Math.max(0, Math.min(1, (Math.log2(error) + 2) / 5));
  return `hsl(${210 - 210 * part} 95% 58%)`;
}

function colour(side, row, t, n) {
  if (shown.colour === "error") return errorColour(errorOf(side, row, n));
  if (shown.colour === "anchor") return `hsl(${ANCHOR_HUES[row % ANCHOR_HUES.length]} 90% 60%)`;
  if (shown.colour === "confidence") return `hsl(${15 + 180 * value(side, "confidence", row, t, n)} 95% 58%)`;
  const last = Math.max(1, side.columns - 1);
  return `hsl(${310 * (n % side.columns) / last} 95% ${48 + 24 * Math.floor(n / side.columns) / last}%)`;
}

// Two pictures are placed side by side, or one above the other if that makes them much larger.
function lay() {
  const stage = byId("stage");
  const { width, height } = shown.clip.sides[0];
  const two = shown.views.length > 1;
  const beside = Math.min(stage.clientWidth / 2 / width, stage.clientHeight / height);
  const above = Math.min(stage.clientWidth / width, (stage.clientHeight / 2 - 30) / height);
  stage.classList.toggle("above", two && (narrow.matches || above > 1.25 * beside));
}

function fit(view) {
  const [side] = view.sides;
  const rows = byId("stage").classList.contains("above") ? shown.views.length : 1;
  const available = byId("stage").clientHeight / rows - view.caption.offsetHeight - 16;
  const height = narrow.matches ? innerHeight * (rows > 1 ? 0.3 : 0.5) : Math.max(available, 120); // the slider stays in sight
  const scale = Math.min(view.element.clientWidth / side.width, height / side.height);
  const ratio = devicePixelRatio || 1;
  view.canvas.style.width = `${side.width * scale}px`;
  view.canvas.style.height = `${side.height * scale}px`;
  view.canvas.width = Math.max(1, Math.round(side.width * scale * ratio));
  view.canvas.height = Math.max(1, Math.round(side.height * scale * ratio));
  view.ratio = ratio;
}

function draw(view) {
  const context = view.canvas.getContext("2d");
  const [first] = view.sides;
  const scale = view.canvas.width / first.width;
  const image = first.frames[Math.min(shown.t, first.frames.length - 1)];
  context.fillStyle = "#000";
  context.fillRect(0, 0, view.canvas.width, view.canvas.height);
  if (image.naturalWidth) context.drawImage(image, 0, 0, view.canvas.width, view.canvas.height);
  if (view.sides.length > 1) drawDifferences(context, view, scale);
  view.sides.forEach((side, number) => {
    if (shown.t >= side.frames.length) return;
    const to = view.canvas.width / side.width;
    const across = Math.ceil(side.columns / shown.every);
    const radius = view.ratio * Math.max(1.6, Math.min(4, 0.14 * view.canvas.width / view.ratio / across));
    for (const [row, n] of tracksOf(side)) drawTrack(context, side, row, n, to, radius, number === 1);
  });
}

function drawTrack(context, side, row, n, scale, radius, square) {
  const { t } = shown;
  const visible = seen(side, row, t, n);
  if (!visible && !shown.hidden) return;
  const [x, y] = at(side, row, t, n).map((part) => part * scale);
  const strength = shown.faint ? 0.25 + 0.75 * value(side, "confidence", row, t, n) : 1;
  context.strokeStyle = context.fillStyle = colour(side, row, t, n);
  context.lineWidth = radius * 0.5;
  if (visible) {
    for (let from = Math.max(0, t - shown.tail); from < t; from += 1) {
      if (!seen(side, row, from, n)) continue;
      context.globalAlpha = strength * (0.15 + 0.75 * (1 - (t - from - 1) / Math.max(1, shown.tail)));
      context.beginPath();
      context.moveTo(...at(side, row, from, n).map((part) => part * scale));
      context.lineTo(...at(side, row, from + 1, n).map((part) => part * scale));
      context.stroke();
    }
  }
  context.globalAlpha = strength;
  context.beginPath();
  if (square) context.rect(x - radius * 0.85, y - radius * 0.85, radius * 1.7, radius * 1.7);
  else context.arc(x, y, visible ? radius : radius * 0.85, 0, 2 * Math.PI);
  if (visible) {
    context.fill();
    context.lineWidth = Math.max(1, radius * 0.28);
    context.strokeStyle = "rgb(0 0 0 / .75)";
  }
  context.stroke();
  context.globalAlpha = 1;
}

// If both snapshots follow the same points: a line from a point in one to the same point in the other.
function drawDifferences(context, view, scale) {
  const [a, b] = view.sides;
  if (a.points !== b.points || shown.t >= Math.min(a.frames.length, b.frames.length)) return;
  context.strokeStyle = "#fff";
  context.lineWidth = view.ratio;
  for (const [row, n] of tracksOf(a)) {
    const other = b.anchors.indexOf(a.anchors[row]);
    if (other < 0 || !seen(a, row, shown.t, n) || !seen(b, other, shown.t, n)) continue;
    context.beginPath();
    context.moveTo(...at(a, row, shown.t, n).map((part) => part * scale));
    context.lineTo(...at(b, other, shown.t, n).map((part) => part * view.canvas.width / b.width));
    context.stroke();
  }
}

// The fraction of visible points of the chosen anchors over time.
function drawCurve() {
  const [side] = shown.clip.sides;
  const rows = anchorsOf(side);
  const parts = side.frames.map((_, t) => {
    let visible = 0;
    for (const row of rows) for (let n = 0; n < side.points; n += 1) visible += seen(side, row, t, n);
    return visible / Math.max(1, rows.length * side.points);
  });
  shown.visible = parts;
  const last = Math.max(1, parts.length - 1);
  byId("curve").setAttribute("viewBox", `0 0 ${last} 1.04`);
  byId("curve").firstElementChild.setAttribute("d", `M0 1.1${parts.map((part, t) => `L${t} ${1.02 - part}`).join("")}L${last} 1.1z`);
}
