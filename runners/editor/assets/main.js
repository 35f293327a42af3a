// The editor: wires the project, the service, the player and the timeline together.

import { ApiError, fetchFile, fetchModel, finish, generate, useKey } from "./api.js";
import { FrameStrip } from "./frames.js";
import { bindKeys } from "./keys.js";
import * as kept from "./keep.js";
import { Player } from "./player.js";
import {
  addCue, addSpotTake, choose, findPlace, listAudible, listMixOptions, listTakeIds, makeId, makeProject, makeTrack, MAX_TRACKS, MIN_RANGE_SECONDS, round, Store, toLayer,
} from "./project.js";
import { readProject, saveFile, writeProject } from "./project_file.js";
import { decibels, decode, encodeWav, factor, MAX_PEAK_DBTP, placeOriginal, SAMPLE_RATE, Sounds, sumTracks, toStereo } from "./sounds.js";
import { Timeline } from "./timeline.js";
import { describeGain, listCues, make, nameCue, show, Tracks } from "./tracks.js";

const KEEP_MS = 400;
const MIX_MS = 60;
const STAGES = {
  upload: "Sending the clip", decode_video: "Reading the picture", queue: "Waiting for a turn", encode: "Looking at the picture",
  sample: "Making the sound", decode_audio: "Making the sound", mux: "Writing the files",
};
const $ = (id) => document.getElementById(id);

const store = new Store();
const sounds = new Sounds();
const player = new Player($("picture"));
const frames = new FrameStrip($("frames"));
const timeline = new Timeline($("timeline"), { mix: $("mix"), overview: $("overview"), original: $("original-wave") });
const tracks = new Tracks($("tracks"), store, timeline, { onGenerate: (id) => generateTracks([id]) });
const analysis = new Worker(new URL("analysis.js", import.meta.url), { type: "module" });

/** What is open beside the project: the clip, its own sound, and the mix that is heard. */
const open = { clip: null, url: null, original: null, effect: null, mix: null, gainDb: 0 };
let work = null; // the request that runs: an AbortController
let wantsSelection = false; // whether a loop was asked for

// ---- Messages

function showError(error) {
  if (error?.name === "AbortError") return;
  const isKey = error instanceof ApiError && error.code === "unauthorized";
  if (isKey) {
    $("key-field").hidden = false;
    $("key").focus();
  }
  $("error").textContent = isKey ? "This service asks for a key. Type it above, and try again." : error.message;
  $("error").hidden = false;
  if (!(error instanceof ApiError) && !(error instanceof UserError)) console.error(error);
}

/** A mistake that the person at the page can mend. */
class UserError extends Error {}

function hideMessages() {
  $("error").hidden = true;
  $("notice").hidden = true;
}

function showNotices(notices) {
  $("notice").textContent = notices.join(" ");
  $("notice").hidden = !notices.length;
}

function showWork(text, share = null) {
  $("work-text").textContent = text;
  // A bar without a value moves all the time, and takes time of the cores that the model needs.
  $("work-bar").hidden = !text;
  $("work-bar").value = share ?? 0;
}

/** Run one piece of work with its progress and its error in view; one at a time. */
async function during(text, task) {
  if (work !== null) return;
  work = new AbortController();
  hideMessages();
  showWork(text);
  update();
  try {
    await task(work.signal);
  } catch (error) {
    if (player.isWaiting) player.pause(); // for what does not come
    showError(error);
  } finally {
    work = null;
    sounds.growing.clear();
    showWork("");
    update();
  }
}

// ---- The clip

async function openClip(file) {
  await during("Reading the clip", async () => {
    await showClip(file);
    await kept.keepFile("clip", file).catch(warnNotKept);
    const isSame = store.project.clip === file.name && Math.abs(store.project.duration - $("picture").duration) < 0.05;
    store.change((project) => {
      project.clip = file.name;
      project.duration = round($("picture").duration || 0);
      project.selection = null;
      if (!isSame) for (const track of project.tracks) Object.assign(track, { takes: [], spots: [], chosen: null, before: null });
    }, null);
    if (!$("picture").videoWidth) showNotices(["This browser cannot show this clip. Its sound can be made all the same."]);
  });
}

async function showClip(file) {
  player.pause();
  if (open.url) URL.revokeObjectURL(open.url);
  open.clip = file;
  open.url = URL.createObjectURL(file);
  const picture = $("picture");
  const arrived = new Promise((resolve) => {
    picture.onloadeddata = resolve;
    picture.onerror = resolve;
  });
  picture.src = open.url;
  picture.load();
  frames.load(open.url);
  const [original] = await Promise.all([decode(file), arrived]);
  open.original = original;
  player.seek(0);
}

// ---- The mix: what is heard, measured and downloaded

let mixKey = "";
let mixTimer = 0;
let mixing = 0;

function planMix(project) {
  const key = JSON.stringify([
    project.duration, project.original, project.loudness, open.url,
    project.tracks.map(({ id, gain_db, pan, mute, solo, chosen, spots }) => [gain_db, pan, mute, solo, chosen, sounds.samples.has(chosen), sounds.growing.get(id)?.length, spots.map((spot) => [spot.start, spot.stop, spot.chosen])]),
  ]);
  if (key === mixKey) return;
  mixKey = key;
  clearTimeout(mixTimer);
  document.body.dataset.mix = "changing";
  mixTimer = setTimeout(makeMix, MIX_MS);
}

async function makeMix() {
  const { project } = store;
  const id = ++mixing;
  const key = mixKey;
  const numSamples = Math.round(project.duration * SAMPLE_RATE);
  $("timeline").toggleAttribute("data-empty", !numSamples);
  if (!numSamples) {
    Object.assign(open, { mix: null, effect: null, gainDb: 0 });
    player.clear();
    timeline.clear();
    showZoom();
    showMeter({ lufs: null, peak: 0 }, 0);
    update();
    document.body.dataset.mix = "ready";
    return;
  }
  const effect = sumTracks(project, sounds, numSamples);
  let mix = effect;
  if (open.original !== null && project.original.mode !== "drop") {
    const own = placeOriginal(open.original, project, effect);
    mix = effect.map((channel, index) => channel.map((value, n) => value + own[index][n]));
  }
  const available = findAvailable(project);
  if (available < project.duration) {
    await showBeginning(mix, project.duration, available);
    return;
  }
  const measured = await measure(mix, id);
  if (id !== mixing) return; // it has changed again
  let gainDb = project.loudness === "" || measured.lufs === null ? 0 : Number(project.loudness) - measured.lufs;
  gainDb = Math.min(gainDb, MAX_PEAK_DBTP - decibels(measured.peak || 1e-9));
  if (project.loudness === "") gainDb = Math.min(0, gainDb);
  const gain = factor(gainDb);
  if (gainDb) mix = mix.map((channel) => channel.map((value) => value * gain));
  Object.assign(open, { effect, mix, gainDb });
  timeline.onsets = measured.onsets;
  player.setSound(mix, project.duration);
  showMeter(measured, gainDb);
  const isSilent = measured.peak === 0;
  await timeline.showMix(isSilent ? null : mix[0].map((value, n) => (value + mix[1][n]) / 2), project.duration);
  timeline.select(store.project.selection);
  update();
  if (key === mixKey) document.body.dataset.mix = "ready"; // else it is being made again
}

/** Play and draw a mix of which only the beginning is made. It is measured when it is complete. */
async function showBeginning(mix, duration, available) {
  const gain = Math.min(1, factor(MAX_PEAK_DBTP) / findPeak(mix));
  const heard = mix.map((channel) => channel.map((value) => value * gain));
  player.setSound(heard, duration, available);
  if (available) await timeline.showMix(heard[0], duration, { isWhole: false });
}

const findPeak = (channels) => channels.reduce((most, channel) => channel.reduce((high, value) => Math.max(high, Math.abs(value)), most), 1e-9);

/** How many seconds from the start are made of what is heard. */
function findAvailable(project) {
  const growing = listAudible(project).filter((track) => sounds.samples.get(track.chosen) === undefined && sounds.growing.has(track.id));
  return Math.min(project.duration, ...growing.map((track) => sounds.growing.get(track.id).length / SAMPLE_RATE));
}

function measure(channels, id) {
  return new Promise((resolve) => {
    const listen = ({ data }) => {
      if (data.id !== id) return;
      analysis.removeEventListener("message", listen);
      resolve(data);
    };
    analysis.addEventListener("message", listen);
    analysis.postMessage({ id, channels, sampleRate: SAMPLE_RATE });
  });
}

function showMeter({ lufs, peak }, gainDb) {
  $("lufs").textContent = lufs === null ? "–" : `${(lufs + gainDb).toFixed(1)} LUFS`;
  $("peak").textContent = peak ? `${(decibels(peak) + gainDb).toFixed(1)} dBTP` : "–";
  $("mix-gain").textContent = gainDb ? describeGain(Number(gainDb.toFixed(1))) : "0 dB";
}

// ---- Making sounds

async function generateTracks(ids) {
  const { project } = store;
  const chosen = project.tracks.filter((track) => ids.includes(track.id));
  await during("Sending the clip", async (signal) => {
    if (open.clip === null) throw new UserError("There is no clip yet. Open one first.");
    const nameless = chosen.find((track) => !track.prompt.trim());
    if (nameless && chosen.length > 1) {
      tracks.focusPrompt(nameless.id);
      throw new UserError(`Track ${project.tracks.indexOf(nameless) + 1} has no prompt. Say what should be heard, or remove the track.`);
    }
    const isLayered = chosen.length > 1;
    expectSounds(chosen);
    const result = await ask(makeRequest(chosen), signal, isLayered ? undefined : (event) => hearPiece(chosen[0].id, event, signal));
    const files = chosen.map((_, n) => result.files.find((file) => (isLayered ? file.layer === n + 1 : !file.layer)));
    const takes = await Promise.all(files.map((file) => fetchTake(file)));
    store.change((latest) => {
      sounds.growing.clear();
      chosen.forEach(({ id, prompt }, n) => {
        const track = latest.tracks.find((one) => one.id === id);
        if (!track) return;
        track.takes.push({ id: takes[n].id, seed: takes[n].seed, prompt });
        choose(track, takes[n].id);
        for (const spot of track.spots) choose(spot, null);
      });
      if (!latest.duration) latest.duration = result.duration_seconds;
    });
    showNotices(result.notices);
    await makeMissingParts(ids, signal);
  });
}

/** Where nothing is heard yet, let Play wait for the sounds that are asked for. */
function expectSounds(chosen) {
  const { project } = store;
  const isHeard = listAudible(project).some((track) => sounds.compose(track) !== null) || (open.original !== null && project.original.mode !== "drop");
  if (isHeard) return;
  for (const { id } of chosen) sounds.append(id, new Float32Array(0), Math.round(project.duration * SAMPLE_RATE));
  update();
  clearTimeout(mixTimer); // who presses Play at once would hear the silence that was there before
  makeMix();
}

/** Hear a piece of a long sound while the rest is made. What is kept comes with the result. */
async function hearPiece(trackId, { url }, signal) {
  const samples = await decode(await fetchFile(url));
  if (samples === null || signal.aborted) return;
  sounds.append(trackId, samples[0], Math.round(store.project.duration * SAMPLE_RATE));
  update();
}

/** Make the selection of the selected track again; the rest of the track stays as it is. */
async function makeAgain() {
  const { project, selected: track } = store;
  await during("Sending the clip and the track", async (signal) => {
    const { selection } = project;
    if (sounds.compose(track) === null) throw new UserError("This track has no sound yet. Generate it first.");
    if (selection === null) throw new UserError("Nothing is selected. Drag over the mix, or press I and O.");
    if (selection.stop - selection.start < MIN_RANGE_SECONDS) throw new UserError(`The selection lasts less than ${MIN_RANGE_SECONDS} s. Select more.`);
    const { prompt, negative_prompt, cues } = toLayer(track, project.negative);
    await makePart(track, { start_seconds: selection.start, stop_seconds: selection.stop, prompt, negative_prompt, cues }, signal);
  });
}

/** Make a range of a track again, over what the track sounds like. */
async function makePart(track, { start_seconds, stop_seconds, ...options }, signal) {
  const edit = { source: "file", ranges: [{ start_seconds, stop_seconds }] };
  const { steps } = store.project;
  const fields = { clip: open.clip, edit_source: encodeWav(sounds.compose(track)), edit, ...options, format: "wav", num_inference_steps: steps };
  const result = await ask(fields, signal);
  const take = await fetchTake(result.files[0]);
  store.change((latest) => {
    const same = latest.tracks.find((one) => one.id === track.id);
    if (same) addSpotTake(same, { start: start_seconds, stop: stop_seconds }, { ...options, ...take });
  });
  showNotices(result.notices);
}

/** Make the parts again that a project's file has, and forget that they are missing. */
async function makeMissingParts(ids, signal) {
  for (const id of ids) {
    const find = () => store.project.tracks.find((track) => track.id === id);
    while (find()?.remake?.length) {
      await makePart(find(), find().remake[0], signal);
      store.change(() => { find()?.remake.shift(); }, null);
    }
  }
}

/** Save what is heard as a file of the service, which has the picture, the marks and the metadata. */
async function download() {
  await during("Mixing", async (signal) => {
    if (open.clip === null) throw new UserError("There is no clip yet. Open one first.");
    if (open.mix === null || document.body.dataset.mix !== "ready") throw new UserError("There is nothing to download yet. Generate a sound first.");
    const { project } = store;
    // A file over full scale would be clipped: it is sent lower, and raised by the service.
    const peak = Math.max(1, findPeak(open.effect));
    const sound = peak > 1 ? open.effect.map((channel) => channel.map((value) => value / peak)) : open.effect;
    const response = await finish({
      clip: open.clip, sound: encodeWav(sound), gain_db: peak > 1 ? decibels(peak) : undefined, format: project.format, channels: "stereo", true_peak_dbtp: MAX_PEAK_DBTP,
      prompt: project.tracks.map((track) => track.prompt).filter(Boolean).join(", ").slice(0, 2000),
      ...listMixOptions(project, open.original !== null),
    }, signal);
    const suffix = /\.(\w+)"?$/.exec(response.headers.get("content-disposition") ?? "")?.[1] ?? project.format;
    saveFile(await response.blob(), `${project.clip.replace(/\.[^.]*$/, "")}.foley.${suffix}`);
    showNotices(JSON.parse(response.headers.get("x-foley-notices") ?? "[]"));
  });
}

/** The form of a request for these tracks. */
function makeRequest(chosen) {
  const { project } = store;
  const fields = { clip: open.clip, format: "wav", num_inference_steps: project.steps };
  const layers = chosen.map((track) => {
    const { prompt, negative_prompt, cues, seed } = toLayer(track, project.negative);
    return { prompt, negative_prompt, cues, seed: track.seed === "" ? undefined : seed };
  });
  // One sound alone comes in pieces, if it is long.
  return layers.length > 1 ? { ...fields, layers } : { ...fields, ...layers[0], pieces: true };
}

/** Send a request, show its progress, and return its result. */
async function ask(fields, signal, onSound = async () => {}) {
  let heard = Promise.resolve(); // the pieces, one after another
  for await (const { name, data } of generate(fields, signal)) {
    if (name === "sound") heard = heard.then(() => onSound(data)).catch(() => {}); // the result has it too
    if (name === "result") {
      await heard;
      return data;
    }
    if (name !== "progress") continue;
    const parts = [STAGES[data.stage] ?? data.stage];
    if (data.queue_position) parts.push(`number ${data.queue_position} in the queue`);
    if (data.num_steps) parts.push(`step ${data.step} of ${data.num_steps}`);
    if (data.seconds_left) parts.push(`${Math.ceil(data.seconds_left)} s left`);
    showWork(parts.join(", "), data.num_steps ? data.step / data.num_steps : null);
  }
  throw new ApiError("broken", "The service sent no result.");
}

/** Fetch a file of a result as a take, and keep it. */
async function fetchTake(file) {
  const blob = await fetchFile(file.url);
  const id = makeId();
  await sounds.add(id, blob);
  keeping = Promise.all([keeping, kept.keepFile(id, blob).catch(warnNotKept)]);
  return { id, seed: file.seed };
}

function warnNotKept() {
  showNotices(["This browser has no room left to keep the work. Save the project, and download the result."]);
}

// ---- The screen

function update() {
  const { project } = store;
  const hasClip = open.clip !== null;
  $("no-clip").hidden = hasClip;
  $("generate").disabled = work !== null;
  $("generate-track").disabled = work !== null;
  $("again").disabled = work !== null || project.selection === null || !store.selected.takes.length;
  $("generate-track").hidden = project.tracks.length === 1;
  $("generate").textContent = project.tracks.length === 1 ? "Generate" : "Generate all";
  $("cancel").hidden = work === null;
  $("download").disabled = work !== null || open.mix === null;
  $("play").disabled = !project.duration;
  $("undo").disabled = !store.canUndo;
  $("redo").disabled = !store.canRedo;
  $("add-track").disabled = project.tracks.length >= MAX_TRACKS;
  $("add-cue").disabled = project.selection === null;
  $("clear-selection").disabled = project.selection === null;
  show($("negative"), project.negative);
  show($("steps"), project.steps);
  show($("loudness"), project.loudness);
  show($("format"), project.format);
  show($("from"), project.selection?.start ?? "");
  show($("to"), project.selection?.stop ?? "");
  const { original } = project;
  $("original-row").hidden = open.original === null;
  show($("original"), original.mode);
  for (const [id, value, text] of [
    ["original-gain", original.gain_db, describeGain(original.gain_db)],
    ["duck-depth", original.depth_db, `${original.depth_db} dB`],
    ["duck-release", original.release_ms, `${original.release_ms} ms`],
  ]) {
    show($(id), value);
    document.querySelector(`output[for="${id}"]`).value = text;
  }
  for (const line of document.querySelectorAll("[data-duck]")) line.hidden = original.mode !== "duck";
  if (project.duration) tracks.update(project, sounds);
  else tracks.update({ ...project, duration: 0 }, sounds);
  listCues($("cues"), store);
  showOriginal(project);
  timeline.select(project.selection);
  const isLooping = wantsSelection && project.selection !== null;
  $("loop").setAttribute("aria-pressed", `${isLooping}`);
  const loop = isLooping ? project.selection : null;
  if (JSON.stringify(loop) !== JSON.stringify(player.loop)) player.setLoop(loop);
  planMix(project);
}

let shownOriginal = "";

function showOriginal(project) {
  const key = `${open.url} ${project.duration}`;
  if (open.original === null || !project.duration || shownOriginal === key) return;
  shownOriginal = key;
  const padded = new Float32Array(Math.round(project.duration * SAMPLE_RATE));
  padded.set(toStereo(open.original)[0].subarray(0, padded.length));
  timeline.original.show(padded, project.duration);
}

function describeTime(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(3).padStart(6, "0")}`;
}

let isDrawing = false;

/** Draw the position: once, or for each frame while it plays. A page at rest leaves the cores to the model. */
function drawPosition() {
  if (isDrawing) return;
  isDrawing = true;
  requestAnimationFrame(() => {
    isDrawing = false;
    player.follow();
    const { position } = player;
    const text = describeTime(position);
    if ($("time").value !== text) $("time").value = text;
    timeline.showPlayhead(position, player.isPlaying);
    if (player.isPlaying && !player.isWaiting) drawPosition();
  });
}

function selectRange(start, stop) {
  store.change((project) => {
    const [from, to] = [Math.max(0, Math.min(start, stop)), Math.min(project.duration, Math.max(start, stop))];
    project.selection = to - from < 0.02 ? null : { start: round(from), stop: round(to) };
  }, null);
}

// ---- What can be done, by buttons and keys

const actions = {
  play: () => player.toggle(),
  seekBy: (seconds) => player.seek(player.position + seconds),
  seek: (seconds) => player.seek(seconds),
  end: () => player.seek(store.project.duration),
  seekOnset(step) {
    const onset = timeline.findOnset(player.position, step);
    if (onset !== undefined) player.seek(onset);
  },
  loop: () => { wantsSelection = !wantsSelection; update(); },
  selectFrom: () => selectRange(player.position, store.project.selection?.stop > player.position ? store.project.selection.stop : store.project.duration),
  selectTo: () => selectRange(store.project.selection?.start < player.position ? store.project.selection.start : 0, player.position),
  clearSelection: () => store.change((project) => { project.selection = null; }, null),
  zoomBy: (step) => { timeline.setZoom(timeline.zoom + step, player.position); showZoom(); },
  zoomAll: () => { timeline.setZoom(0, player.position); showZoom(); },
  moveTrack(step) {
    const { project } = store;
    const index = project.tracks.indexOf(store.selected) + step;
    if (project.tracks[index]) store.change((latest) => { latest.selected = latest.tracks[index].id; }, null);
  },
  mute: () => editSelected(undefined, (track) => { track.mute = !track.mute; if (track.mute) track.solo = false; }),
  solo: () => editSelected(undefined, (track) => { track.solo = !track.solo; if (track.solo) track.mute = false; }),
  take(number) {
    const place = findPlace(store.selected, player.position);
    const ids = place === store.selected ? place.takes.map((take) => take.id) : [null, ...place.takes.map((take) => take.id)];
    if (number <= ids.length) editSelected(undefined, (track) => choose(findPlace(track, player.position), ids[number - 1]));
  },
  back: () => editSelected(undefined, (track) => {
    const place = findPlace(track, player.position);
    if (place !== track || place.before !== null) choose(place, place.before);
  }),
  cue() {
    const { selection } = store.project;
    if (selection === null) return;
    const id = makeId();
    let isAdded = false;
    editSelected(undefined, (track, project) => { isAdded = addCue(track, { id, ...selection, prompt: track.prompt || "sound" }, project.duration); });
    if (isAdded) nameCue(id);
    else showError(new UserError("There is no room for a cue of 0.1 s here. Select another range."));
  },
  generate: () => generateTracks(store.project.tracks.map((track) => track.id)),
  again: makeAgain,
  download,
  generateTrack: () => generateTracks([store.selected.id]),
  cancel: () => work?.abort(),
  undo: () => store.undo(),
  redo: () => store.redo(),
  save: () => writeProject(store.project),
};

function editSelected(group, edit) {
  const { id } = store.selected;
  store.change((project) => edit(project.tracks.find((track) => track.id === id), project), group && `${group}-${id}`);
}

function showZoom() {
  $("zoom").value = Math.round(timeline.zoom * 100);
}

function bind() {
  const click = {
    play: actions.play, loop: actions.loop, generate: actions.generate, "generate-track": actions.generateTrack, again: actions.again, cancel: actions.cancel,
    undo: actions.undo, redo: actions.redo, "save-project": actions.save, "clear-selection": actions.clearSelection, "add-cue": actions.cue,
    download: actions.download,
    "add-track": () => store.change((project) => { const track = makeTrack(); project.tracks.push(track); project.selected = track.id; }),
    "new-project": startAnew,
  };
  for (const [id, action] of Object.entries(click)) $(id).addEventListener("click", action);
  $("clip-file").onchange = () => { const [file] = $("clip-file").files; if (file) openClip(file); $("clip-file").value = ""; };
  $("project-file").onchange = () => { const [file] = $("project-file").files; if (file) openProject(file); $("project-file").value = ""; };
  $("key-field").onsubmit = (event) => { event.preventDefault(); $("key").blur(); };
  $("key").onchange = () => { useKey($("key").value); hideMessages(); showModel(); };
  const field = (id, name) => { $(id).oninput = () => store.change((project) => { project[name] = $(id).value; }, name); };
  field("negative", "negative");
  field("steps", "steps");
  field("loudness", "loudness");
  field("format", "format");
  $("original").onchange = () => store.change((project) => { project.original.mode = $("original").value; });
  for (const [id, name] of [["original-gain", "gain_db"], ["duck-depth", "depth_db"], ["duck-release", "release_ms"]]) {
    $(id).oninput = () => store.change((project) => { project.original[name] = Number($(id).value); }, id);
  }
  const readSelection = () => {
    if ($("from").value !== "" && $("to").value !== "") selectRange(Number($("from").value), Number($("to").value));
  };
  $("from").onchange = readSelection;
  $("to").onchange = readSelection;
  $("snap").onchange = () => { timeline.snaps = $("snap").checked; };
  $("zoom").oninput = () => timeline.setZoom($("zoom").value / 100, player.position);
  timeline.addEventListener("seek", ({ detail }) => player.seek(detail.seconds));
  timeline.addEventListener("select", ({ detail }) => selectRange(detail.start, detail.stop));
  timeline.addEventListener("zoom", showZoom);
  timeline.addEventListener("view", () => {
    const { start, stop } = timeline.view;
    if (store.project.duration) frames.show(start, stop);
    drawPosition();
  });
  player.addEventListener("state", () => { $("play").textContent = player.isPlaying ? "Pause" : "Play"; });
  for (const name of ["state", "move"]) player.addEventListener(name, drawPosition);
  const stage = document.querySelector(".stage");
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      stage.classList.toggle("drop", name === "dragover");
      const file = name === "drop" ? event.dataTransfer.files[0] : null;
      if (file) (file.name.endsWith(".json") ? openProject : openClip)(file);
    });
  }
  bindKeys(actions);
}

async function openProject(file) {
  await during("Reading the project", async () => {
    const project = await readProject(file);
    const isOpen = open.clip !== null && open.clip.name === project.clip;
    project.duration = isOpen ? store.project.duration : 0;
    if (!isOpen) closeClip();
    sounds.clear();
    store.replace(project);
    showNotices([isOpen ? "Generate makes its sounds again." : `Open its clip, ${project.clip || "a video"}, then Generate makes its sounds again.`]);
  }).catch(showError);
}

function closeClip() {
  player.pause();
  $("picture").removeAttribute("src");
  $("picture").load();
  frames.clear();
  Object.assign(open, { clip: null, url: null, original: null, mix: null, effect: null });
}

async function startAnew() {
  if (listTakeIds(store.project).length && !confirm("Forget the clip, the tracks and their sounds?")) return;
  closeClip();
  sounds.clear();
  await kept.forgetAll().catch(() => {});
  hideMessages();
  store.replace(makeProject());
}

// ---- What is kept

let keepTimer = 0;
let keeping = Promise.resolve(); // files of takes, which are heard before they are kept

function planKeeping() {
  clearTimeout(keepTimer);
  document.body.dataset.kept = "changing";
  keepTimer = setTimeout(keepNow, KEEP_MS);
}

async function keepNow() {
  await keeping;
  await kept.keepProject(structuredClone(store.project)).catch(warnNotKept);
  document.body.dataset.kept = "yes";
}

async function restore() {
  const project = await kept.loadProject();
  if (!project) return;
  const clip = await kept.loadFile("clip");
  for (const id of listTakeIds(project)) {
    const blob = await kept.loadFile(id);
    if (blob) await sounds.add(id, blob);
  }
  if (clip) await showClip(clip);
  store.replace(project);
  await kept.dropFiles(["clip", ...listTakeIds(project)]);
}

async function showModel() {
  try {
    const model = await fetchModel();
    $("model").textContent = `${model.name ?? model.preset ?? model.id}: ${model.about ?? ""}`;
    $("prompts").replaceChildren(...(model.prompts ?? []).map((prompt) => {
      const chip = make("button", { type: "button", textContent: prompt });
      chip.onclick = () => editSelected(undefined, (track) => { track.prompt = prompt; });
      return chip;
    }));
  } catch (error) {
    if (error.code === "unauthorized") $("key-field").hidden = false;
    else $("model").textContent = error.message;
  }
}

store.onChange(() => { update(); planKeeping(); });
bind();
restore().catch(() => {}).finally(() => {
  update();
  document.body.dataset.ready = "yes";
});
showModel();
drawPosition();
window.foleyEditor = { store, open, player, sounds, timeline, actions };
