// What is edited: one plain object that is saved as JSON, and its earlier states.
//
// A project holds no samples. `sounds.js` has those, by the ids of takes.
//
//   track  one layer: prompt, seed, gain_db, pan, mute, solo, cues, takes, chosen, spots
//   take   one sound of the whole clip for a track: {id, seed, prompt}
//   spot   a part of a track that was made again: {id, start, stop, takes, chosen}; while nothing
//          is chosen there, the track's take is heard. Its takes have what they were made with, too
//   remake parts of a project's file that have no sound yet: {start, stop, prompt, seed, ...}

export const MAX_TRACKS = 8;
export const MIN_CUE_SECONDS = 0.1;
export const MIN_RANGE_SECONDS = 0.1;
export const CROSSFADE_SECONDS = 0.01;
const MAX_UNDO = 100;
const KEPT = ["gain_db", "pan", "mute", "solo"];

export const makeId = () => crypto.getRandomValues(new Uint32Array(2)).join("-");

export function makeTrack(prompt = "") {
  return {
    id: makeId(), prompt, seed: "", gain_db: 0, pan: 0, mute: false, solo: false,
    cues: [], takes: [], chosen: null, before: null, spots: [], remake: [],
  };
}

export function makeProject() {
  const track = makeTrack();
  return {
    clip: "", duration: 0, negative: "", steps: "", loudness: "",
    original: { mode: "drop", gain_db: 0, depth_db: 12, release_ms: 300 },
    tracks: [track], selected: track.id, selection: null, format: "mp4",
  };
}

/** The project, its listeners, and what can be undone. */
export class Store {
  constructor() {
    this.project = makeProject();
    this._listeners = [];
    this._past = [];
    this._future = [];
    this._group = null;
  }

  onChange(listener) {
    this._listeners.push(listener);
  }

  /**
   * Change the project.
   *
   * @param {(project: object) => void} edit changes it in place.
   * @param {string|null} group edits of the same group in a row are undone together; null cannot
   *   be undone, such as what is selected.
   */
  change(edit, group = makeId()) {
    if (group !== null && group !== this._group) {
      this._past = [...this._past, structuredClone(this.project)].slice(-MAX_UNDO);
      this._future = [];
    }
    if (group !== null) this._group = group;
    edit(this.project);
    this._tell();
  }

  replace(project) {
    this.project = project;
    this._past = [];
    this._future = [];
    this._group = null;
    this._tell();
  }

  get canUndo() {
    return this._past.length > 0;
  }

  get canRedo() {
    return this._future.length > 0;
  }

  undo() {
    this._move(this._past, this._future);
  }

  redo() {
    this._move(this._future, this._past);
  }

  get selected() {
    return this.project.tracks.find((track) => track.id === this.project.selected) ?? this.project.tracks[0];
  }

  _move(from, to) {
    if (!from.length) return;
    to.push(structuredClone(this.project));
    this.project = from.pop();
    this._group = null;
    this._tell();
  }

  _tell() {
    for (const listener of this._listeners) listener(this.project);
  }
}

/** The tracks that are heard: with a solo, only those; never the muted ones. */
export function listAudible(project) {
  const hasSolo = project.tracks.some((track) => track.solo);
  return project.tracks.filter((track) => !track.mute && (!hasSolo || track.solo));
}

/** Where the keys for takes act: the spot at a position, else the whole track. */
export function findPlace(track, seconds) {
  return track.spots.findLast((spot) => spot.start <= seconds && seconds < spot.stop) ?? track;
}

/** Choose a take of a track or a spot; null is the track's own take. */
export function choose(place, id) {
  if (place.chosen === id) return;
  place.before = place.chosen;
  place.chosen = id;
}

/** Add a take of a range of a track; one of the same range joins its takes. */
export function addSpotTake(track, { start, stop }, take) {
  let spot = track.spots.find((one) => Math.abs(one.start - start) < 0.002 && Math.abs(one.stop - stop) < 0.002);
  if (!spot) {
    spot = { id: makeId(), start, stop, takes: [], chosen: null, before: null };
    track.spots.push(spot); // it lies over the earlier ones
  }
  spot.takes.push(take);
  choose(spot, take.id);
}

/** The ids of all takes, of which the sounds must be kept. */
export function listTakeIds(project) {
  return project.tracks.flatMap((track) => [
    ...track.takes.map((take) => take.id),
    ...track.spots.flatMap((spot) => spot.takes.map((take) => take.id)),
  ]);
}

/** Add a cue, shortened to the room between its neighbours; returns whether there was any. */
export function addCue(track, cue, duration) {
  const start = Math.max(0, Math.max(...track.cues.filter((other) => other.start <= cue.start).map((other) => other.stop), cue.start));
  const stop = Math.min(duration, ...track.cues.filter((other) => other.start > start).map((other) => other.start), cue.stop);
  if (stop - start < MIN_CUE_SECONDS) return false;
  track.cues = sortCues([...track.cues, { ...cue, start: round(start), stop: round(stop) }]);
  return true;
}

/** Move a cue; it stops at its neighbours and keeps its least length. */
export function moveCue(track, id, start, stop, duration) {
  const cue = track.cues.find((other) => other.id === id);
  const others = track.cues.filter((other) => other.id !== id);
  const least = Math.max(0, ...others.filter((other) => other.start < cue.start).map((other) => other.stop));
  const most = Math.min(duration, ...others.filter((other) => other.start > cue.start).map((other) => other.start));
  const kept = cue.stop - cue.start;
  const isMoved = Math.abs(stop - start - kept) < 1e-3;
  start = Math.min(Math.max(start, least), most - (isMoved ? kept : MIN_CUE_SECONDS));
  stop = isMoved ? start + kept : Math.max(Math.min(stop, most), start + MIN_CUE_SECONDS);
  cue.start = round(start);
  cue.stop = round(stop);
}

function sortCues(cues) {
  return cues.sort((one, other) => one.start - other.start);
}

export const round = (seconds) => Math.round(seconds * 1000) / 1000;

/** A track as the service takes it. */
export function toLayer(track, negative) {
  const cues = track.cues.map((cue) => ({ start_seconds: cue.start, stop_seconds: cue.stop, prompt: cue.prompt }));
  const take = track.takes.find((one) => one.id === track.chosen);
  const seed = track.seed === "" ? take?.seed : Number(track.seed);
  return {
    prompt: track.prompt,
    ...(negative ? { negative_prompt: negative } : {}),
    ...(cues.length ? { cues } : {}),
    ...(seed === undefined ? {} : { seed }),
    ...Object.fromEntries(KEPT.filter((name) => track[name]).map((name) => [name, track[name]])),
  };
}

/** The parts of a track that are heard in place of its take, in the order of their making. */
export function listParts(track) {
  const made = track.spots.filter((spot) => spot.chosen !== null).map(({ start, stop, takes, chosen }) => {
    const { prompt, negative_prompt, cues, seed } = takes.find((take) => take.id === chosen);
    return { start_seconds: start, stop_seconds: stop, prompt, negative_prompt, cues, seed };
  });
  return [...made, ...(track.remake ?? [])];
}

/** The options of the finished sound, by the service's names. */
export function listMixOptions(project, hasOriginal) {
  const { mode, gain_db, depth_db, release_ms } = project.original;
  const isMixed = hasOriginal && mode !== "drop";
  return {
    ...(isMixed ? { original_sound: mode, original_gain_db: gain_db } : {}),
    ...(isMixed && mode === "duck" ? { duck_depth_db: depth_db, duck_release_ms: release_ms } : {}),
    ...(project.loudness === "" ? {} : { loudness_lufs: Number(project.loudness) }),
  };
}
