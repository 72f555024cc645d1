"use strict";

const at = (id) => document.getElementById(id);
const [stage, picture, film, seen, problem] = ["stage", "picture", "film", "seen", "problem"].map(at);
const LIVE_PAUSE_MS = 120; // between two frames of the camera
const MOST_BOXES = 8; // that are listed; all are drawn
const MEASURES = { classify: "right", detect: "mAP@0.5", segment: "mIoU" };
let about = null;
let asking = null; // the AbortController of the question under way
let stream = null; // the camera, while it is on
let starting = false;

// Names come from files: they are only ever text, never markup.
function element(tag, parts = [], properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...parts);
  return made;
}

const share = (value) => `${(100 * value).toFixed(1)}\u00a0%`;
const ms = (value) => `${value < 100 ? value.toPrecision(3) : Math.round(value)} ms`;
const sides = (width, height) => `${width}\u00a0×\u00a0${height}`;
const bytes = (value) => (value < 1e6 ? `${Math.round(value / 1e3)} kB` : `${(value / 1e6).toFixed(1)} MB`);
const count = (value) => (value < 1e6 ? `${Math.round(value / 1e3)} thousand` : `${(value / 1e6).toFixed(2)} million`);

function say(line) {
  problem.textContent = line;
  problem.hidden = !line;
}

// ---- what is known of the files

async function begin() {
  about = await (await fetch("/about")).json();
  const { models } = about;
  const first = models[0];
  const names = different(models.map((model) => model.name));
  document.title = `${names.join(" and ")} · mobilefit demo`;
  at("name").textContent = names.join(" and ");
  at("facts").textContent = different(models.map(facts)).join("\n");
  at("models").classList.toggle("drawings", first.task !== "classify");
  at("models").replaceChildren(...models.map((model) => card(model, names.length > 1)));
  const all = at("all");
  all.hidden = false;
  all.querySelector("summary").textContent = `The ${first.classes.length} classes`;
  all.querySelector("ul").replaceChildren(...first.classes.map((name) => element("li", [name])));
}

const different = (values) => [...new Set(values)];

function facts(model) {
  return [
    `input ${sides(model.input.width, model.input.height)}`, `${model.classes.length} classes`,
    `${count(model.params)} weights`, `${count(model.madds)} multiply-adds`,
  ].join(" · ");
}

function card(model, named) {
  const { latency } = model;
  const { accuracy } = model;
  const good = accuracy ? ` · ${share(accuracy.value)} ${MEASURES[model.task]} on ${accuracy.images}` : "";
  const settled = latency.stable ? "" : " (not settled: the machine was busy)";
  const threads = `${latency.threads} thread${latency.threads === 1 ? "" : "s"}`;
  const spread = `median, p10–p90 ${latency.p10_ms.toPrecision(3)}–${ms(latency.p90_ms)}, ${threads}${settled}`;
  return element("section", [
    element("header", [
      element("h2", [named ? `${model.name}, ${model.numbers}` : model.numbers]),
      element("span", [element("b", [ms(latency.median_ms)])], { className: "latency" }),
    ]),
    element("p", [`${spread} · ${model.file}, ${bytes(model.bytes)}${good}`], { className: "note", title: latency.device }),
    element("img", [], { className: "drawn", hidden: true, alt: `What ${model.file} found in the image` }),
    element("ol"),
    element("p", ["No image yet."], { className: "note run" }),
  ], { className: "model" });
}

// ---- an image and its answer

async function ask(blob, name = "") {
  const live = !name;
  asking?.abort();
  const mine = (asking = new AbortController());
  const cards = [...document.querySelectorAll(".model")];
  if (!live) cards.forEach((section) => section.classList.add("waiting"));
  try {
    const response = await fetch("/predict", {
      method: "POST", body: blob, signal: mine.signal, headers: { "Content-Type": "application/octet-stream" },
    });
    const answer = await response.json();
    if (mine !== asking) return;
    if (!response.ok) {
      refuse(live ? answer.problem : `${name}: ${answer.problem}`);
      return;
    }
    say("");
    answer.models.forEach((found, i) => show(cards[i], found, answer.decode_ms));
  } catch (error) {
    if (mine === asking && error.name !== "AbortError") refuse("The server does not answer. Is it still running?");
  } finally {
    if (mine === asking) cards.forEach((section) => section.classList.remove("waiting"));
  }
}

function refuse(line) {
  stop();
  say(line);
  empty();
  clear();
}

function clear() {
  for (const section of document.querySelectorAll(".model")) {
    section.classList.remove("waiting");
    section.querySelector("ol").replaceChildren();
    section.querySelector(".drawn").hidden = true;
    section.querySelector(".run").textContent = "No image yet.";
  }
}

function show(section, found, decodeMs) {
  const drawn = section.querySelector(".drawn");
  drawn.hidden = !found.drawn;
  if (found.drawn) drawn.src = found.drawn;
  const boxes = about.models[0].task === "detect" ? found.classes.length : null;
  section.querySelector("ol").replaceChildren(...found.classes.slice(0, MOST_BOXES).map((row) => {
    const bar = element("i");
    bar.style.width = `${100 * row.share}%`;
    return element("li", [bar, element("span", [row.class]), element("span", [share(row.share)])]);
  }));
  const number = boxes === null ? "" : boxes === 0 ? "Nothing was found. " : `${boxes} found. `;
  section.querySelector(".run").textContent =
    `${number}This image ran in ${ms(found.run_ms)}, handing it over included, and was decoded in ${ms(decodeMs)}.`;
}

// What the network sees of the upright image: its central square, or all of it.
function frame(width, height) {
  const { crop_fraction: part, fit, input } = about.models[0];
  at("legend").hidden = false;
  if (fit === "stretch") {
    at("legend").textContent = `${sides(width, height)}; the network sees all of it at ${sides(input.width, input.height)}.`;
    return;
  }
  const side = part * Math.min(width, height);
  const box = { left: (width - side) / 2 / width, top: (height - side) / 2 / height, width: side / width, height: side / height };
  for (const [edge, value] of Object.entries(box)) seen.style[edge] = `${100 * value}%`;
  seen.hidden = false;
  at("legend").textContent = `${sides(width, height)}; the network sees the square at ${sides(input.width, input.height)}.`;
}

function fill(shown) {
  at("drop").classList.add("filled");
  at("hint").hidden = true;
  stage.hidden = false;
  picture.hidden = shown !== picture;
  film.hidden = shown !== film;
}

function take(file) {
  if (!file || !about) return;
  stop();
  asking?.abort();
  asking = null;
  say("");
  empty();
  clear();
  if (file.size > about.max_bytes) {
    refuse(`${file.name} has ${bytes(file.size)}, the most that is taken is ${bytes(about.max_bytes)}.`);
    return;
  }
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  ask(file, file.name || "the image");
}

function empty() {
  at("drop").classList.remove("filled");
  for (const part of [stage, seen, at("legend")]) part.hidden = true;
  at("hint").hidden = false;
}

picture.addEventListener("load", () => {
  if (!problem.hidden) return; // shown here, but refused there
  picture.classList.toggle("small", Math.max(picture.naturalWidth, picture.naturalHeight) < 200);
  fill(picture);
  frame(picture.naturalWidth, picture.naturalHeight);
});

picture.addEventListener("error", () => {
  at("legend").textContent = "This browser shows no preview of this image.";
  at("legend").hidden = !problem.hidden;
});

// ---- the camera

async function start() {
  if (!navigator.mediaDevices?.getUserMedia) {
    say("The camera works at localhost or over https only.");
    return;
  }
  starting = true; // until the visitor has answered the browser's question
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    say({
      NotFoundError: "There is no camera here.",
      NotAllowedError: "The camera is blocked for this page; the browser's address bar lets you allow it.",
      NotReadableError: "The camera is used by another program.",
    }[error.name] ?? `The camera does not start: ${error.message}`);
    return;
  } finally {
    starting = false;
  }
  say("");
  at("models").setAttribute("aria-live", "off"); // not several times a second
  at("camera").textContent = "Stop the camera";
  at("camera").setAttribute("aria-pressed", "true");
  film.srcObject = stream;
  await film.play();
  fill(film);
  frame(film.videoWidth, film.videoHeight);
  watch(stream);
}

// One frame at a time: the next is taken when the last is answered.
async function watch(mine) {
  const canvas = element("canvas", [], { width: film.videoWidth, height: film.videoHeight });
  while (stream === mine) {
    canvas.getContext("2d").drawImage(film, 0, 0);
    const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
    if (stream === mine) await ask(blob);
    await new Promise((done) => setTimeout(done, LIVE_PAUSE_MS));
  }
}

// The last picture stays, as do its classes.
function stop() {
  if (!stream) return;
  film.pause();
  for (const track of stream.getTracks()) track.stop();
  stream = null;
  at("models").setAttribute("aria-live", "polite");
  at("camera").textContent = "Use the camera";
  at("camera").setAttribute("aria-pressed", "false");
}

// ---- what the visitor does

at("camera").addEventListener("click", () => (stream ? stop() : starting || start())); // not disabled: that would lose the focus
at("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // the same file again is a new choice
});
addEventListener("paste", (event) => take(event.clipboardData.files[0]));
let depth = 0; // enter and leave come for every element under the pointer
addEventListener("dragenter", () => at("drop").classList.toggle("over", ++depth > 0));
addEventListener("dragleave", () => at("drop").classList.toggle("over", --depth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});
begin().catch(() => say("The server does not answer. Is it still running?"));
