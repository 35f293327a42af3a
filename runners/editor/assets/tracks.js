// The rows of the tracks: their controls, and their lanes with cues and parts that were made again.

import { addCue, choose, findPlace, makeId, moveCue } from "./project.js";
import { Lane } from "./timeline.js";

const CUE = "rgba(46, 160, 90, 0.28)";
const SPOT = "rgba(150, 90, 200, 0.30)";
const NUDGE_SECONDS = 0.05;

/** Make an element. Names with a hyphen, role and for are attributes, others are properties. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role" || key === "for") element.setAttribute(key, value);
    else element[key] = value;
  }
  element.append(...children);
  return element;
}

/** Show a value in a control, unless somebody is typing there. */
export function show(control, value) {
  if (document.activeElement === control && control.matches("[type=text], [type=number]")) return;
  if (control.value !== `${value}`) control.value = value;
}

export const describeGain = (value) => `${value > 0 ? "+" : ""}${value} dB`;
const describePan = (value) => (value === 0 ? "centre" : `${Math.round(Math.abs(value) * 100)} % ${value < 0 ? "L" : "R"}`);

/** All rows; they follow the project. */
export class Tracks {
  constructor(box, store, timeline, { onGenerate }) {
    this._box = box;
    this._store = store;
    this._timeline = timeline;
    this._onGenerate = onGenerate;
    this._rows = new Map();
  }

  /** Follow the project: rows, their values, and the regions of their lanes. */
  update(project, sounds) {
    for (const [id, row] of this._rows) {
      if (project.tracks.some((track) => track.id === id)) continue;
      this._timeline.remove(row.lane);
      row.element.remove();
      this._rows.delete(id);
    }
    project.tracks.forEach((track, index) => {
      let row = this._rows.get(track.id);
      if (!row) {
        row = new Row(track.id, this._store, this._timeline, this._onGenerate);
        this._rows.set(track.id, row);
      }
      if (this._box.children[index] !== row.element) this._box.insertBefore(row.element, this._box.children[index] ?? null);
      row.update(track, index, project, sounds);
    });
  }

  focusPrompt(id) {
    this._rows.get(id)?.prompt.focus();
  }
}

class Row {
  constructor(id, store, timeline, onGenerate) {
    this._id = id;
    this._store = store;
    this._timeline = timeline;
    this._shown = {};
    const edit = (group, work) => store.change((project) => {
      const track = project.tracks.find((one) => one.id === id);
      if (track) work(track, project);
    }, group && `${group}-${id}`);
    this._edit = edit;
    this.prompt = make("input", { type: "text", maxLength: 2000, placeholder: "What should be heard" });
    this.prompt.oninput = () => edit("prompt", (track) => { track.prompt = this.prompt.value; });
    this._mute = make("button", { type: "button", textContent: "M", title: "Mute" });
    this._mute.onclick = () => edit(undefined, (track) => { track.mute = !track.mute; if (track.mute) track.solo = false; });
    this._solo = make("button", { type: "button", textContent: "S", title: "Solo" });
    this._solo.onclick = () => edit(undefined, (track) => { track.solo = !track.solo; if (track.solo) track.mute = false; });
    this._remove = make("button", { type: "button", textContent: "×" });
    this._remove.onclick = () => store.change((project) => {
      project.tracks = project.tracks.filter((one) => one.id !== id);
      if (project.selected === id) project.selected = project.tracks[0].id;
    });
    this._gain = make("input", { type: "range", min: -60, max: 24, step: 0.5 });
    this._gain.oninput = () => edit("gain", (track) => { track.gain_db = Number(this._gain.value); });
    this._gainText = make("output");
    this._pan = make("input", { type: "range", min: -1, max: 1, step: 0.05 });
    this._pan.oninput = () => edit("pan", (track) => { track.pan = Number(this._pan.value); });
    this._panText = make("output");
    this._seed = make("input", { type: "number", className: "seed", min: 0, step: 1, placeholder: "seed" });
    this._seed.oninput = () => edit("seed", (track) => { track.seed = this._seed.value; });
    this._take = make("select");
    this._take.onchange = () => edit(undefined, (track) => choose(track, this._take.value || null));
    this._make = make("button", { type: "button", textContent: "Make", title: "Make this track's sound" });
    this._make.onclick = () => onGenerate(id);
    const wave = make("div");
    this.element = make(
      "div", { className: "row track", "data-track": id, role: "group" },
      make("div", { className: "head" },
        make("div", { className: "line" }, this.prompt, this._mute, this._solo, this._remove),
        make("div", { className: "line" }, make("label", { textContent: "Gain" }), this._gain, this._gainText),
        make("div", { className: "line" }, make("label", { textContent: "Pan" }), this._pan, this._panText),
        make("div", { className: "line" }, this._seed, this._take, this._make)),
      make("div", { className: "lane" }, wave, make("div", { className: "playhead" })));
    const select = () => { if (store.project.selected !== id) store.change((project) => { project.selected = id; }, null); };
    this.element.addEventListener("pointerdown", select);
    this.element.addEventListener("focusin", select);
    wave.addEventListener("dblclick", (event) => this._nextTake(event.clientX - wave.getBoundingClientRect().left));
    this._wave = wave;
    this.lane = null;
  }

  /** Hear the next take of the part that lies at a place of the lane. */
  _nextTake(x) {
    const seconds = this._timeline.view.start + x / this._timeline.pixelsPerSecond;
    const own = this._store.project.tracks.find((one) => one.id === this._id);
    if (findPlace(own, seconds) === own) return;
    this._edit(undefined, (track) => {
      const spot = findPlace(track, seconds);
      const ids = [null, ...spot.takes.map((take) => take.id)];
      choose(spot, ids[(ids.indexOf(spot.chosen) + 1) % ids.length]);
    });
  }

  update(track, index, project, sounds) {
    if (this.lane === null) this._makeLane();
    const name = `Track ${index + 1}`;
    if (this._shown.name !== name) this._label(name);
    this.element.setAttribute("aria-current", `${project.selected === track.id}`);
    show(this.prompt, track.prompt);
    show(this._gain, track.gain_db);
    show(this._pan, track.pan);
    show(this._seed, track.seed);
    this._gainText.value = describeGain(track.gain_db);
    this._panText.value = describePan(track.pan);
    this._mute.setAttribute("aria-pressed", `${track.mute}`);
    this._solo.setAttribute("aria-pressed", `${track.solo}`);
    this._remove.disabled = project.tracks.length === 1;
    this._listTakes(track);
    this._showSound(track, project, sounds);
    this._showRegions(track, project);
  }

  _label(name) {
    this._shown.name = name;
    this.element.setAttribute("aria-label", name);
    for (const [control, label] of [
      [this.prompt, "prompt"], [this._mute, "mute"], [this._solo, "solo"], [this._remove, "remove"],
      [this._gain, "gain"], [this._pan, "pan"], [this._seed, "seed"], [this._take, "take"], [this._make, "make"],
    ]) control.setAttribute("aria-label", `${name}: ${label}`);
  }

  _listTakes(track) {
    const key = track.takes.map((take) => take.id).join();
    if (this._shown.takes !== key) {
      this._shown.takes = key;
      const options = track.takes.map((take, n) => make("option", { value: take.id, textContent: `Take ${n + 1} · ${take.seed}` }));
      this._take.replaceChildren(...(options.length ? options : [make("option", { value: "", textContent: "no take" })]));
    }
    this._take.disabled = !track.takes.length;
    show(this._take, track.chosen ?? "");
  }

  _showSound(track, project, sounds) {
    const key = JSON.stringify([track.chosen, sounds.samples.has(track.chosen), sounds.growing.get(track.id)?.length, project.duration, track.spots.map((spot) => [spot.start, spot.stop, spot.chosen])]);
    if (this._shown.sound === key) return;
    this._shown.sound = key;
    this._shown.regions = null;
    const sound = sounds.compose(track);
    // While it loads, the library would add regions later, and then say that they are new.
    const loading = (this._loading = {});
    this.lane.show(sound?.[0] ?? null, project.duration || 1).then(() => {
      if (loading !== this._loading) return;
      this._loading = null;
      const latest = this._store.project.tracks.find((one) => one.id === this._id);
      if (latest) this._showRegions(latest, this._store.project);
      this.lane.zoom(this._timeline.zoom === 0 ? 0 : this._timeline.pixelsPerSecond);
      this.lane.scroll = this._timeline.mix.scroll;
    });
  }

  _showRegions(track, project) {
    const key = JSON.stringify([track.cues, track.spots.map((spot) => [spot, spot.takes.length]), project.duration]);
    if (this._shown.regions === key || !project.duration || this._loading) return;
    const ids = [...track.spots, ...track.cues].map(({ id }) => id).join();
    const isSame = this._shown.regions !== null && this._shown.ids === ids;
    Object.assign(this._shown, { regions: key, ids });
    if (isSame) return this._moveRegions(track);
    this._drawing = true;
    const focused = this.lane.regions.getRegions().find((region) => region.element?.matches(":focus"))?.id;
    this.lane.regions.clearRegions();
    for (const spot of track.spots) {
      const region = this.lane.regions.addRegion({ id: spot.id, start: spot.start, end: spot.stop, color: SPOT, drag: false, resize: false, content: describeSpot(spot) });
      region.element?.setAttribute("data-spot", spot.id);
      if (region.element) region.element.style.pointerEvents = "none"; // cues are drawn over it
    }
    for (const cue of track.cues) {
      const region = this.lane.regions.addRegion({ id: cue.id, start: cue.start, end: cue.stop, color: CUE, content: cue.prompt, minLength: 0.1 });
      this._makeOperable(region, cue);
      if (region.element) describeCue(region.element, cue);
      if (cue.id === focused) setTimeout(() => region.element?.focus()); // the library shows it later
    }
    this._drawing = false;
  }

  /** Follow changes of the same regions in place: one that has the focus keeps it for the next key. */
  _moveRegions(track) {
    const regions = new Map(this.lane.regions.getRegions().map((region) => [region.id, region]));
    for (const spot of track.spots) showText(regions.get(spot.id), describeSpot(spot));
    for (const cue of track.cues) {
      const region = regions.get(cue.id);
      if (region.start !== cue.start || region.end !== cue.stop) region.setOptions({ start: cue.start, end: cue.stop });
      showText(region, cue.prompt);
      describeCue(region.element, cue);
    }
  }

  /** Let keys move and remove a cue, and readers name it. */
  _makeOperable(region, { id }) {
    const { element } = region;
    if (!element) return;
    element.tabIndex = 0;
    element.setAttribute("role", "slider");
    element.setAttribute("data-cue", id);
    element.addEventListener("keydown", (event) => {
      const cue = this._store.project.tracks.find((one) => one.id === this._id)?.cues.find((one) => one.id === id);
      if (!cue) return;
      const step = { ArrowLeft: -NUDGE_SECONDS, ArrowRight: NUDGE_SECONDS }[event.key];
      if (step) this._change(cue.id, cue.start + (event.shiftKey ? 0 : step), cue.stop + step);
      else if (event.key === "Delete" || event.key === "Backspace") this._edit("cue", (track) => { track.cues = track.cues.filter((one) => one.id !== cue.id); });
      else if (event.key === "Enter") document.querySelector(`[data-name="${cue.id}"]`)?.focus();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
  }

  _change(id, start, stop) {
    this._edit(`cue-${id}`, (track, project) => moveCue(track, id, start, stop, project.duration));
  }

  _makeLane() {
    this.lane = this._timeline.add(new Lane(this._wave, { height: matchMedia("(max-width: 760px)").matches ? 64 : 120 }));
    const { regions } = this.lane;
    regions.enableDragSelection({ color: CUE }, 4);
    regions.on("region-created", (region) => {
      if (this._drawing) return;
      const { snap } = this._timeline;
      const [start, stop] = [region.start, this._timeline.findDrawnStop(region)].map((seconds) => snap.call(this._timeline, seconds));
      this._shown.regions = null; // what was drawn is no cue yet
      const id = makeId();
      this._edit(null, () => {});
      this._edit(undefined, (track, project) => addCue(track, { id, start, stop, prompt: track.prompt || "sound" }, project.duration));
      nameCue(id);
    });
    regions.on("region-updated", (region, side) => {
      if (this._drawing) return;
      const { _timeline: timeline } = this;
      const length = region.end - region.start;
      let [start, stop] = [region.start, region.end];
      if (side === "start") start = timeline.snap(start);
      else if (side === "end") stop = timeline.snap(stop);
      else [start, stop] = [timeline.snap(start), timeline.snap(start) + length];
      this._shown.regions = null;
      this._change(region.id, start, stop);
    });
  }
}

const describeSpot = (spot) => `${spot.takes.findIndex((take) => take.id === spot.chosen) + 1} of ${spot.takes.length}`;

function showText(region, text) {
  if (region.content?.textContent !== text) region.setContent(text);
}

/** Let readers name a cue, and say where it is. */
function describeCue(element, cue) {
  element.setAttribute("aria-label", `Cue ${cue.prompt}, ${cue.start} to ${cue.stop} s`);
  element.setAttribute("aria-valuenow", `${cue.start}`);
  element.setAttribute("aria-valuetext", `${cue.start} to ${cue.stop} seconds`);
}

/** Let somebody type the prompt of a cue. */
export function nameCue(id) {
  const field = document.querySelector(`[data-name="${id}"]`);
  field?.focus();
  field?.select();
}

/** The cues of the selected track as a list: the same as the regions, for typing. */
export function listCues(box, store) {
  const track = store.selected;
  const number = store.project.tracks.indexOf(track) + 1;
  const key = JSON.stringify([track.id, number, track.cues.map((cue) => cue.id)]);
  const edit = (group, work) => store.change((project) => work(project.tracks.find((one) => one.id === track.id), project), group);
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.replaceChildren(make("h2", { textContent: `Cues of track ${number}` }));
    if (!track.cues.length) box.append(make("p", { className: "quiet", textContent: "None. Drag on the track's lane, or select a range and press C: another prompt holds there." }));
    for (const cue of track.cues) {
      const field = (label, name, properties) => make("input", { ...properties, "aria-label": `${label} of cue`, "data-field": name, "data-cue-row": cue.id });
      const start = field("Start", "start", { type: "number", min: 0, step: 0.01 });
      const stop = field("Stop", "stop", { type: "number", min: 0, step: 0.01 });
      const prompt = field("Prompt", "prompt", { type: "text", maxLength: 2000, "data-name": cue.id });
      const remove = make("button", { type: "button", textContent: "Remove", "aria-label": "Remove cue" });
      start.onchange = () => edit(`cue-${cue.id}`, (one, project) => moveCue(one, cue.id, Number(start.value), find(one).stop, project.duration));
      stop.onchange = () => edit(`cue-${cue.id}`, (one, project) => moveCue(one, cue.id, find(one).start, Number(stop.value), project.duration));
      prompt.oninput = () => edit(`name-${cue.id}`, (one) => { find(one).prompt = prompt.value; });
      remove.onclick = () => edit(undefined, (one) => { one.cues = one.cues.filter((other) => other.id !== cue.id); });
      const find = (one) => one.cues.find((other) => other.id === cue.id);
      box.append(make("div", { className: "cue" }, start, stop, prompt, remove));
    }
  }
  for (const input of box.querySelectorAll("[data-field]")) {
    const cue = track.cues.find((one) => one.id === input.dataset.cueRow);
    show(input, cue[input.dataset.field]);
  }
}
