// The list of clips. clips.js calls pretrackGallery once. The page's scripts (this, player, draw, input)
// share one global scope. Texts from the data are only ever set as text, never as HTML.
"use strict";

const byId = (id) => document.getElementById(id);
const CARDS_AT_ONCE = 60;
const STEPS = 100; // of the filters' sliders
const percent = (part) => (part === null ? "?" : `${(100 * part).toFixed(part && part < 0.0995 ? 1 : 0)}%`);
const pluralise = (number, noun) => `${number.toLocaleString("en-GB")} ${noun}${number === 1 ? "" : "s"}`;

let gallery = null;
let listed = [];
let filters = [];
let sources = new Set();

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// ---- dark and light -------------------------------------------------------------------------------------------------------

function remembered(value) {
  try { // a browser may store nothing for pages from disk
    if (value) localStorage.setItem("pretrack-theme", value);
    return localStorage.getItem("pretrack-theme");
  } catch { return null; }
}

function switchTheme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  remembered(root.dataset.theme);
}

// ---- the list -------------------------------------------------------------------------------------------------------------

function begin(data) {
  gallery = data;
  gallery.byKey = new Map(data.clips.map((clip, number) => [clip.key, number]));
  const frames = data.clips.reduce((sum, clip) => sum + clip.frames, 0);
  const both = data.against ? ` against ${data.against}` : "";
  byId("about").textContent =
    `${data.out} · snapshot ${data.snapshot}${both} · ${pluralise(data.clips.length, "clip")}, ${pluralise(frames, "frame")}`;
  document.title = `Gallery of ${data.out}`;
  const notes = data.changes.length ? [`From ${data.snapshot} to ${data.against}: ${data.changes.join(", ")}`] : [];
  byId("notes").replaceChildren(...[...notes, ...data.notes].map((note) => element("li", { textContent: note })));
  const terms = new Set(data.clips.filter((clip) => clip.terms).map((clip) => `${clip.source}: ${clip.terms}`));
  byId("terms").replaceChildren(...[...terms].sort().map((text) => element("li", { textContent: text })));
  fillChips();
  filters = [
    filterBy("visible", "visible_fraction", "Visible", "Mean visibility of a clip's points"),
    filterBy("motion", "motion", "Motion", "How far a clip's median point gets from its anchor while visible, as a fraction of the frame's diagonal"),
  ];
  for (const id of ["search", "sort"]) byId(id).addEventListener("input", list);
  byId("clear").addEventListener("click", clearFilters);
  list();
  follow();
}

function fillChips() {
  const counts = new Map();
  for (const clip of gallery.clips) {
    const name = `${clip.source} · ${clip.split}`;
    counts.set(name, (counts.get(name) ?? 0) + 1);
  }
  if (counts.size < 2) return;
  byId("chips").replaceChildren(...[...counts].sort().map(([name, count]) => {
    const chip = element("button", { type: "button", className: "chip" }, `${name} `, element("small", { textContent: count }));
    chip.setAttribute("aria-pressed", "false");
    chip.addEventListener("click", () => {
      if (!sources.delete(name)) sources.add(name);
      chip.setAttribute("aria-pressed", String(sources.has(name)));
      list();
    });
    return chip;
  }));
}

// Two sliders on one line, with a histogram of the clips behind them.
function filterBy(id, field, label, meaning) {
  const values = gallery.clips.map((clip) => clip[field] ?? 0);
  const least = field === "motion" ? 0 : Math.floor(Math.min(...values) * 20) / 20;
  const most = field === "motion" ? Math.max(Math.ceil(Math.max(...values) * 50) / 50, 0.02) : 1;
  const span = Math.max(most - least, 1e-6);
  const said = element("b");
  const inputs = ["from", "to"].map((end) => {
    const input = element("input", { type: "range", min: 0, max: STEPS, value: end === "from" ? 0 : STEPS });
    input.setAttribute("aria-label", `${label}, ${end}`);
    return input;
  });
  const two = element("div", { className: "two" }, histogram(values.map((value) => (value - least) / span)), ...inputs);
  byId(id).title = meaning;
  byId(id).replaceChildren(element("div", { className: "said" }, element("span", { textContent: label }), said), two);
  const filter = {
    ends: () => inputs.map((input) => Number(input.value)).sort((a, b) => a - b),
    has(clip) {
      const [low, high] = filter.ends();
      const step = ((clip[field] ?? 0) - least) / span * STEPS;
      return (low === 0 || step >= low) && (high === STEPS || step <= high);
    },
    reset() { inputs[0].value = 0; inputs[1].value = STEPS; filter.say(); },
    active: () => filter.ends().join() !== `0,${STEPS}`,
    say() { said.textContent = filter.ends().map((end) => percent(least + span * end / STEPS)).join("–"); },
  };
  for (const input of inputs) input.addEventListener("input", () => { filter.say(); list(); });
  filter.say();
  return filter;
}

function svg(tag, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function histogram(places, bins = 30) {
  const counts = new Array(bins).fill(0);
  for (const place of places) counts[Math.max(0, Math.min(bins - 1, Math.floor(place * bins)))] += 1;
  const top = Math.max(...counts, 1);
  const d = counts.map((count, bin) => count && `M${bin} ${1 - count / top}h.85V1h-.85z`).filter(Boolean).join("");
  const chart = svg("svg", { viewBox: `0 0 ${bins} 1`, preserveAspectRatio: "none", "aria-hidden": "true" });
  chart.append(svg("path", { d }));
  return chart;
}

function clearFilters() {
  byId("search").value = "";
  sources.clear();
  for (const chip of byId("chips").children) chip.setAttribute("aria-pressed", "false");
  for (const filter of filters) filter.reset();
  list();
}

function list() {
  const words = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  listed = gallery.clips.filter((clip) => {
    const text = `${clip.key} ${clip.video_id} ${clip.dataset} ${clip.source} ${clip.split}`.toLowerCase();
    return words.every((word) => text.includes(word)) && filters.every((filter) => filter.has(clip))
      && (!sources.size || sources.has(`${clip.source} · ${clip.split}`));
  });
  const order = byId("sort").value;
  if (order) {
    const sign = order.endsWith("+") ? 1 : -1;
    const figure = (clip) => sign * (clip[order.slice(0, -1)] ?? sign * 1e9); // clips without it come last
    listed.sort((a, b) => figure(a) - figure(b));
  }
  const all = gallery.clips.length;
  byId("found").textContent = listed.length === all ? pluralise(all, "clip")
    : listed.length ? `${listed.length.toLocaleString("en-GB")} of ${pluralise(all, "clip")}` : "No clips match.";
  byId("clear").hidden = !(words.length || sources.size || filters.some((filter) => filter.active()));
  byId("cards").replaceChildren();
  showMore();
}

function showMore() {
  const cards = byId("cards");
  cards.append(...listed.slice(cards.childElementCount, cards.childElementCount + CARDS_AT_ONCE).map(card));
  end.disconnect();
  if (cards.childElementCount < listed.length) end.observe(byId("more")); // an observer reports only changes
}

const end = new IntersectionObserver((seen) => seen.at(-1).isIntersecting && showMore(), { rootMargin: "800px" });

function card(clip) {
  const made = byId("card").content.firstElementChild.cloneNode(true);
  made.href = hashOf(clip);
  made.title = clip.key;
  made.querySelector("img").src = `clips/${clip.file}.jpg`;
  made.querySelector(".name").textContent = clip.video_id;
  const other = clip.against;
  const visible = other ? `${percent(clip.visible_fraction)} → ${percent(other.visible_fraction)}` : percent(clip.visible_fraction);
  made.querySelector(".facts").textContent = `${clip.source} · ${clip.split}\n`
    + `${framesOf(clip)}, motion\u00a0${percent(clip.motion)}\nvisible ${visible}${inliersOf(clip)}`;
  made.querySelector("i").style.width = `${100 * (clip.visible_fraction ?? 0)}%`;
  return made;
}

const pixels = (number) => `${number.toPrecision(2)} px`;
const inliersOf = (clip) => clip.epipolar_inliers === null ? "" : `, inliers\u00a0${percent(clip.epipolar_inliers)}`;

const framesOf = (clip) => `frames ${clip.first}–${clip.last}`; // numbered as in the source

const hashOf = (clip) => `#clip=${encodeURIComponent(clip.key)}`;

// The address names the open clip, so that it can be bookmarked, shared and left with "back".
function follow() {
  let key = null;
  try {
    key = location.hash.startsWith("#clip=") ? decodeURIComponent(location.hash.slice(6)) : null;
  } catch { /* a truncated address */ }
  const number = key === null ? undefined : gallery.byKey.get(key);
  if (number === undefined) shutClip();
  else openClip(gallery.clips[number]);
}

const theme = remembered();
if (theme) document.documentElement.dataset.theme = theme;
byId("theme").addEventListener("click", switchTheme);
addEventListener("hashchange", () => gallery && follow());

function pretrackGallery(data) {
  shown.anchor = data.anchor;
  begin(data);
}
