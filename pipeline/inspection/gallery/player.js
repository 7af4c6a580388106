// One open clip: loading it, and its page except the drawing. clips/NUMBER.js calls pretrackClip.
"use strict";

const KEPT_CLIPS = 6;
const MOST_POINTS = 144; // shown at first: more would hide the picture

const shown = {
  entry: null, clip: null, frames: 0, t: 0, anchor: 0, colour: "point", every: 0, tail: 6, least: 50, hidden: true, faint: true,
  over: false, speed: 10, playing: false, picked: null, views: [], visible: [],
};
const loaded = new Map();
const waiting = new Map();

function loadClip(file) {
  if (!loaded.has(file)) {
    const script = element("script", { src: `clips/${file}.js` });
    loaded.set(file, new Promise((resolve, reject) => {
      waiting.set(file, resolve);
      script.onerror = () => { loaded.delete(file); reject(new Error("cannot be loaded")); };
      document.head.append(script);
    }).then(unpacked).finally(() => script.remove()));
    if (loaded.size > KEPT_CLIPS) loaded.delete(loaded.keys().next().value);
  }
  return loaded.get(file);
}

const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

async function unpacked(clip) {
  for (const side of clip.sides) {
    side.positions = new Int16Array(bytes(side.positions).buffer);
    side.visibility = bytes(side.visibility);
    side.confidence = bytes(side.confidence);
    side.scores = bytes(side.scores);
    side.frames = side.frames ? await Promise.all(side.frames.map(picture)) : clip.sides[0].frames;
    side.columns = Math.max(1, Math.round(Math.sqrt(side.points)));
  }
  return clip;
}

async function picture(frame) {
  const image = new Image();
  image.src = `data:image/jpeg;base64,${frame}`;
  await image.decode().catch(() => {}); // one that cannot be shown stays black
  return image;
}

async function openClip(entry) {
  if (shown.entry === entry) return;
  pause();
  Object.assign(shown, { entry, clip: null, picked: null, views: [] });
  byId("name").textContent = entry.video_id;
  byId("place").textContent = `${entry.source} · ${entry.split} · ${framesOf(entry)}`;
  byId("stage").replaceChildren(element("p", { textContent: "Loading …" }));
  if (!byId("player").open) byId("player").showModal();
  document.body.style.overflow = "hidden";
  byId("play").focus();
  const index = listed.indexOf(entry);
  byId("earlier").disabled = index <= 0;
  byId("later").disabled = index < 0 || index === listed.length - 1;
  try {
    const clip = await loadClip(entry.file);
    if (shown.entry === entry) showClip(clip);
  } catch (error) {
    if (shown.entry === entry) byId("stage").replaceChildren(element("p", { textContent: `clips/${entry.file}.js ${error.message}` }));
  }
}

function showClip(clip) {
  shown.clip = clip;
  shown.frames = Math.max(...clip.sides.map((side) => side.frames.length));
  shown.t = Math.floor(shown.frames / 2);
  shown.anchor = Math.min(shown.anchor, anchorFrames().length - 1);
  const columns = Math.max(...clip.sides.map((side) => side.columns));
  shown.every = Math.max(1, Math.ceil(columns / Math.sqrt(MOST_POINTS)));
  byId("frame").max = shown.frames - 1;
  fillFacts();
  arrange();
}

function shutClip() {
  pause();
  shown.entry = null;
  shown.clip = null;
  document.body.style.overflow = "";
  if (byId("player").open) byId("player").close();
}

// Clips of two snapshots may differ in their anchors: those of either can be chosen, by their frames.
const anchorFrames = () => [...new Set(shown.clip.sides.flatMap((side) => side.anchors))].sort((a, b) => a - b);

function anchorsOf(side) {
  if (shown.anchor < 0) return side.anchors.map((_, row) => row);
  const row = side.anchors.indexOf(anchorFrames()[shown.anchor]);
  return row < 0 ? [] : [row];
}

function pointsOf(side) {
  const numbers = [];
  for (let n = 0; n < side.points; n += 1) {
    if (n % side.columns % shown.every === 0 && Math.floor(n / side.columns) % shown.every === 0) numbers.push(n);
  }
  return numbers;
}

// [row, n] of what is drawn of a side: one track if one was picked.
function tracksOf(side) {
  if (shown.picked) return shown.picked.filter((one) => one.side === side).map(({ row, n }) => [row, n]);
  return anchorsOf(side).flatMap((row) => pointsOf(side).map((n) => [row, n]));
}

function arrange() {
  const { sides } = shown.clip;
  const together = shown.over && sides.length > 1;
  const drawn = together ? [[sides[0], sides[1]]] : sides.map((side) => [side]);
  const before = anchorFrames();
  segments("anchors", [...before.map((frame, number) => [number, String(frame)]), [-1, "all"]], shown.anchor, (value) => {
    shown.anchor = value;
    shown.picked = null;
    refresh();
  });
  const colours = [["point", "point"], ["anchor", "anchor"], ["confidence", "confidence"], ["error", "error"]];
  segments("colours", colours, shown.colour, (value) => {
    shown.colour = value;
    refresh();
  });
  segments("every", [...new Set([1, 2, 3, 4, shown.every])].map((every) => [every, ["all", "every 2nd", "3rd"][every - 1] ?? `${every}th`]),
    shown.every, (value) => { shown.every = value; shown.picked = null; refresh(); });
  compareSwitch(sides.length > 1);
  shown.views = drawn.map((of) => {
    const canvas = element("canvas");
    const caption = element("figcaption", {
      textContent: of.map((side, number) => `${together ? ["● ", "■ "][number] : ""}${side.snapshot} · ${side.tracker} · ${side.points} points`).join("   "),
    });
    const view = { sides: of, canvas, caption, element: element("figure", { className: "view" }, canvas, caption) };
    listen(view);
    return view;
  });
  byId("stage").replaceChildren(...shown.views.map((view) => view.element));
  refresh();
}

function compareSwitch(wanted) {
  byId("compare")?.remove();
  if (!wanted) return;
  const box = element("fieldset", { id: "compare" }, element("legend", { textContent: "Compare" }),
    element("div", { className: "segments", id: "layout" }));
  byId("anchors").parentElement.before(box);
  segments("layout", [[false, "side by side"], [true, "overlaid"]], shown.over, (value) => { shown.over = value; arrange(); });
}

function segments(id, choices, chosen, choose) {
  byId(id).replaceChildren(...choices.map(([value, label]) => {
    const button = element("button", { type: "button", textContent: label });
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => {
      for (const other of byId(id).children) other.setAttribute("aria-pressed", String(other === button));
      choose(value);
    });
    return button;
  }));
}

function nextOf(id) {
  const buttons = [...byId(id).children];
  const now = buttons.findIndex((button) => button.getAttribute("aria-pressed") === "true");
  buttons[(now + 1) % buttons.length]?.click();
}

function fillFacts() {
  const { entry, clip } = shown;
  const [width, height] = clip.source_size;
  const facts = [["clip", entry.key], ["dataset", entry.dataset], ["sequence", clip.sequence],
    ["stored", `${entry.width} × ${entry.height}`], ["source", `${width} × ${height}`],
    ["visible", percent(entry.visible_fraction)], ["motion", `${percent(entry.motion)} of the diagonal`], ...scoreFacts(entry),
    ["terms", entry.terms]];
  byId("facts").replaceChildren(...facts.filter(([, text]) => text).flatMap(([name, text]) =>
    [element("dt", { textContent: name }), element("dd", { textContent: text })]));
}

function scoreFacts(entry) {
  const inliers = entry.epipolar_inliers === null ? "" : `, ${percent(entry.epipolar_inliers)} within 2 px`;
  const error = (name) => entry[name] === null ? "" : pixels(entry[name]);
  return [["turn", entry.turn === null ? "" : `${entry.turn.toFixed(0)}°`], ["epipolar", error("epipolar_px") + inliers],
    ["reprojection", error("reprojection_px")], ["cycle", error("cycle_px")]];
}

function refresh() {
  if (!shown.clip) return;
  byId("scale").hidden = shown.colour !== "error";
  byId("scale").replaceChildren(...["≤ 0.25 px", "1 px", "2 px", "≥ 8 px", "none"].map((text, number) =>
    element("span", { textContent: text, style: `color: ${errorColour([0.25, 1, 2, 8, null][number])}` })));
  lay();
  for (const view of shown.views) fit(view);
  drawCurve();
  seek(shown.t);
  byId("tail").value = shown.tail;
  byId("tail-said").textContent = pluralise(shown.tail, "frame");
  byId("least").value = shown.least;
  byId("least-said").textContent = `${shown.least}%`;
  byId("hidden").checked = shown.hidden;
  byId("faint").checked = shown.faint;
  byId("speed").value = shown.speed;
}

function seek(t) {
  const { frames, clip } = shown;
  shown.t = Math.max(0, Math.min(frames - 1, t));
  byId("frame").value = shown.t;
  const time = clip.times?.[shown.t];
  const anchor = clip.sides.some((side) => side.anchors.includes(shown.t)) ? " · anchor" : "";
  const position = `${shown.t + 1} / ${frames} · source frame ${clip.numbers[shown.t] ?? "?"}${time === undefined ? "" : ` · ${time.toFixed(2)} s`}${anchor}`;
  byId("when").textContent = position;
  byId("frame").setAttribute("aria-valuetext", position);
  const owner = clip.sides.length > 1 ? `${clip.sides[0].snapshot}: ` : "";
  byId("curve-said").textContent = shown.t < shown.visible.length ? `${owner}${percent(shown.visible[shown.t])} of the points are visible` : "";
  for (const view of shown.views) draw(view);
  sayPicked();
}

function sayPicked() {
  const { t } = shown;
  byId("picked").textContent = (shown.picked ?? []).filter(({ side }) => t < side.frames.length).map(({ side, row, n }) => {
    const [x, y] = at(side, row, t, n).map((part) => (part - 0.5).toFixed(1));
    const [visible, sure] = ["visibility", "confidence"].map((which) => percent(value(side, which, row, t, n)));
    const errors = ["epipolar", "reprojection", "cycle"].map((name, plane) => [name, score(side, plane, row, n)]);
    const scored = errors.filter(([, error]) => error !== null).map(([name, error]) => `${name} ${pixels(error)}`).join(", ");
    return `${side.snapshot}: point ${n} from frame ${side.anchors[row]}\nx ${x}, y ${y}\nvisible ${visible}, confidence ${sure}`
      + (scored && `\n${scored}`);
  }).join("\n\n");
}

function pretrackClip(file, data) {
  waiting.get(file)?.(data);
  waiting.delete(file);
}
