// The gallery's page. clips.js calls pretrackGallery once, clips/NUMBER.js pretrackClip when its clip is opened.
// Texts from the data are only ever set as text, never as HTML.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const CARDS_AT_ONCE = 60;
  const KEPT_CLIPS = 6;
  const STEPS = 100; // of the filters' sliders
  const SPEEDS = [1, 2, 5, 10, 15, 25, 50];
  const narrow = matchMedia("(max-width: 760px)");
  const MOST_POINTS = 144; // drawn at first; more hide the picture
  const ANCHOR_HUES = [205, 35, 140, 320, 265, 60, 0, 175];
  const percent = (part) => (part === null ? "?" : `${(100 * part).toFixed(part && part < 0.0995 ? 1 : 0)}%`);
  const counted = (number, noun) => `${number.toLocaleString("en-GB")} ${noun}${number === 1 ? "" : "s"}`;

  let gallery = null;
  let found = [];
  let filters = [];
  let sources = new Set();

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  // ---- dark and light -------------------------------------------------------------------------------------------------------

  function remembered(value) {
    try { // a browser may keep nothing for files
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
      `${data.out} · snapshot ${data.snapshot}${both} · ${counted(data.clips.length, "clip")}, ${counted(frames, "frame")}`;
    document.title = `Gallery of ${data.out}`;
    const notes = data.changes.length ? [`From ${data.snapshot} to ${data.against}: ${data.changes.join(", ")}`] : [];
    byId("notes").replaceChildren(...[...notes, ...data.notes].map((note) => element("li", { textContent: note })));
    const terms = new Set(data.clips.filter((clip) => clip.terms).map((clip) => `${clip.source}: ${clip.terms}`));
    byId("terms").replaceChildren(...[...terms].sort().map((text) => element("li", { textContent: text })));
    fillChips();
    filters = [
      filterBy("visible", "visible_fraction", "Visible", "Mean visibility of a clip's points"),
      filterBy("motion", "motion", "Motion", "How far a clip's median point gets from its anchor while visible, as a part of the frame's diagonal"),
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
        const place = ((clip[field] ?? 0) - least) / span * STEPS;
        return (low === 0 || place >= low) && (high === STEPS || place <= high);
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
    found = gallery.clips.filter((clip) => {
      const text = `${clip.key} ${clip.video_id} ${clip.dataset} ${clip.source} ${clip.split}`.toLowerCase();
      return words.every((word) => text.includes(word)) && filters.every((filter) => filter.has(clip))
        && (!sources.size || sources.has(`${clip.source} · ${clip.split}`));
    });
    const order = byId("sort").value;
    if (order) {
      const sign = order.endsWith("+") ? 1 : -1;
      found.sort((a, b) => sign * ((a[order.slice(0, -1)] ?? 0) - (b[order.slice(0, -1)] ?? 0)));
    }
    const all = gallery.clips.length;
    byId("found").textContent = found.length === all ? counted(all, "clip")
      : found.length ? `${found.length.toLocaleString("en-GB")} of ${counted(all, "clip")}` : "No clip is like that.";
    byId("clear").hidden = !(words.length || sources.size || filters.some((filter) => filter.active()));
    byId("cards").replaceChildren();
    showMore();
  }

  function showMore() {
    const cards = byId("cards");
    cards.append(...found.slice(cards.childElementCount, cards.childElementCount + CARDS_AT_ONCE).map(card));
    end.disconnect();
    if (cards.childElementCount < found.length) end.observe(byId("more")); // anew, or it stays silent while the end is in sight
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
      + `${framesOf(clip)}, motion\u00a0${percent(clip.motion)}\nvisible ${visible}`;
    made.querySelector("i").style.width = `${100 * (clip.visible_fraction ?? 0)}%`;
    return made;
  }

  const framesOf = (clip) => `frames ${clip.first}–${clip.last}`; // as the source counts them

  const hashOf = (clip) => `#clip=${encodeURIComponent(clip.key)}`;

  // The address says which clip is open, so that it can be kept, shared and gone back from.
  function follow() {
    let key = null;
    try {
      key = location.hash.startsWith("#clip=") ? decodeURIComponent(location.hash.slice(6)) : null;
    } catch { /* an address that somebody cut short */ }
    const number = key === null ? undefined : gallery.byKey.get(key);
    if (number === undefined) shut();
    else open(gallery.clips[number]);
  }

  // ---- one clip -------------------------------------------------------------------------------------------------------------

  const shown = {
    entry: null, clip: null, frames: 0, t: 0, anchor: 0, colour: "point", every: 0, tail: 6, least: 50, hidden: true, faint: true,
    over: false, speed: 10, playing: false, picked: null, views: [], visible: [],
  };
  const loaded = new Map();
  const waiting = new Map();

  function load(file) {
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

  async function open(entry) {
    if (shown.entry === entry) return;
    pause();
    Object.assign(shown, { entry, clip: null, picked: null, views: [] });
    byId("name").textContent = entry.video_id;
    byId("place").textContent = `${entry.source} · ${entry.split} · ${framesOf(entry)}`;
    byId("stage").replaceChildren(element("p", { textContent: "Loading …" }));
    if (!byId("player").open) byId("player").showModal();
    document.body.style.overflow = "hidden";
    byId("play").focus();
    const place = found.indexOf(entry);
    byId("earlier").disabled = place <= 0;
    byId("later").disabled = place < 0 || place === found.length - 1;
    try {
      const clip = await load(entry.file);
      if (shown.entry === entry) start(clip);
    } catch (error) {
      if (shown.entry === entry) byId("stage").replaceChildren(element("p", { textContent: `clips/${entry.file}.js ${error.message}` }));
    }
  }

  function start(clip) {
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

  function shut() {
    pause();
    shown.entry = null;
    shown.clip = null;
    document.body.style.overflow = "";
    if (byId("player").open) byId("player").close();
  }

  // Clips of two snapshots may have other anchors: those of either can be chosen, by their frames.
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
    segments("colours", [["point", "point"], ["anchor", "anchor"], ["confidence", "confidence"]], shown.colour, (value) => {
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
      ["visible", percent(entry.visible_fraction)], ["motion", `${percent(entry.motion)} of the diagonal`], ["terms", entry.terms]];
    byId("facts").replaceChildren(...facts.filter(([, text]) => text).flatMap(([name, text]) =>
      [element("dt", { textContent: name }), element("dd", { textContent: text })]));
  }

  // ---- drawing --------------------------------------------------------------------------------------------------------------

  // Positions have pixel centres at whole numbers; the canvas has them at halves.
  const at = (side, row, t, n) => {
    const place = 2 * ((row * side.frames.length + t) * side.points + n);
    return [side.positions[place] / side.units + 0.5, side.positions[place + 1] / side.units + 0.5];
  };
  const value = (side, which, row, t, n) => side[which][(row * side.frames.length + t) * side.points + n] / 255;
  const seen = (side, row, t, n) => value(side, "visibility", row, t, n) * 100 >= shown.least;

  function colour(side, row, t, n) {
    if (shown.colour === "anchor") return `hsl(${ANCHOR_HUES[row % ANCHOR_HUES.length]} 90% 60%)`;
    if (shown.colour === "confidence") return `hsl(${15 + 180 * value(side, "confidence", row, t, n)} 95% 58%)`;
    const last = Math.max(1, side.columns - 1);
    return `hsl(${310 * (n % side.columns) / last} 95% ${48 + 24 * Math.floor(n / side.columns) / last}%)`;
  }

  function refresh() {
    if (!shown.clip) return;
    lay();
    for (const view of shown.views) fit(view);
    drawCurve();
    seek(shown.t);
    byId("tail").value = shown.tail;
    byId("tail-said").textContent = counted(shown.tail, "frame");
    byId("least").value = shown.least;
    byId("least-said").textContent = `${shown.least}%`;
    byId("hidden").checked = shown.hidden;
    byId("faint").checked = shown.faint;
    byId("speed").value = shown.speed;
  }

  // Two pictures lie beside each other or one above the other, beside unless that makes them much smaller.
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
    const room = byId("stage").clientHeight / rows - view.caption.offsetHeight - 16;
    const height = narrow.matches ? innerHeight * (rows > 1 ? 0.3 : 0.5) : Math.max(room, 120); // the slider stays in sight
    const scale = Math.min(view.element.clientWidth / side.width, height / side.height);
    const ratio = devicePixelRatio || 1;
    view.canvas.style.width = `${side.width * scale}px`;
    view.canvas.style.height = `${side.height * scale}px`;
    view.canvas.width = Math.max(1, Math.round(side.width * scale * ratio));
    view.canvas.height = Math.max(1, Math.round(side.height * scale * ratio));
    view.ratio = ratio;
  }

  function seek(t) {
    const { frames, clip } = shown;
    shown.t = Math.max(0, Math.min(frames - 1, t));
    byId("frame").value = shown.t;
    const time = clip.times?.[shown.t];
    const anchor = clip.sides.some((side) => side.anchors.includes(shown.t)) ? " · anchor" : "";
    const said = `${shown.t + 1} / ${frames} · source frame ${clip.numbers[shown.t] ?? "?"}${time === undefined ? "" : ` · ${time.toFixed(2)} s`}${anchor}`;
    byId("when").textContent = said;
    byId("frame").setAttribute("aria-valuetext", said);
    const whose = clip.sides.length > 1 ? `${clip.sides[0].snapshot}: ` : "";
    byId("curve-said").textContent = shown.t < shown.visible.length ? `${whose}${percent(shown.visible[shown.t])} of the points are visible` : "";
    for (const view of shown.views) draw(view);
    sayPicked();
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

  // Where both snapshots followed the same points: a line from where one has it to where the other has.
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

  // How much of the chosen anchor is visible, over time.
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

  function sayPicked() {
    const { t } = shown;
    byId("picked").textContent = (shown.picked ?? []).filter(({ side }) => t < side.frames.length).map(({ side, row, n }) => {
      const [x, y] = at(side, row, t, n).map((part) => (part - 0.5).toFixed(1));
      const [visible, sure] = ["visibility", "confidence"].map((which) => percent(value(side, which, row, t, n)));
      return `${side.snapshot}: point ${n} from frame ${side.anchors[row]}\nx ${x}, y ${y}\nvisible ${visible}, confidence ${sure}`;
    }).join("\n\n");
  }

  // ---- mouse, touch, keys ---------------------------------------------------------------------------------------------------

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

  // The same point on another side, or, of another grid, the one that starts nearest.
  function counterpart(from, row, n, side) {
    const start = from.anchors[row];
    const there = side.anchors.indexOf(start);
    if (there < 0) return null;
    if (side.points === from.points) return { side, row: there, n };
    const [x, y] = at(from, row, start, n).map((part) => part * side.width / from.width);
    const far = (point) => Math.hypot(at(side, there, start, point)[0] - x, at(side, there, start, point)[1] - y);
    let nearest = 0;
    for (let point = 1; point < side.points; point += 1) if (far(point) < far(nearest)) nearest = point;
    return { side, row: there, n: nearest };
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
    const next = found[found.indexOf(shown.entry) + by];
    if (next && found.includes(shown.entry)) location.replace(hashOf(next));
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

  byId("theme").addEventListener("click", switchTheme);
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
  byId("speed").append(...SPEEDS.map((speed) => element("option", { value: speed, textContent: `${speed} a second` })));
  byId("speed").addEventListener("input", (event) => { shown.speed = Number(event.target.value); });
  for (const id of ["tail", "least"]) byId(id).addEventListener("input", (event) => { shown[id] = Number(event.target.value); refresh(); });
  for (const id of ["hidden", "faint"]) byId(id).addEventListener("input", (event) => { shown[id] = event.target.checked; refresh(); });
  addEventListener("resize", refresh);
  addEventListener("hashchange", () => gallery && follow());
  const theme = remembered();
  if (theme) document.documentElement.dataset.theme = theme;

  window.pretrackGallery = (data) => { shown.anchor = data.anchor; begin(data); };
  window.pretrackClip = (file, data) => { waiting.get(file)?.(data); waiting.delete(file); };
})();
