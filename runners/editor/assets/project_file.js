// Projects as files: JSON that the editor and `foley generate --project` read.

import { listMixOptions, listParts, makeId, makeProject, makeTrack, MAX_TRACKS, toLayer } from "./project.js";

const VERSION = 1;

/** Save a project into the person's folder of downloads. */
export function writeProject(project) {
  const text = JSON.stringify(describeProject(project), null, 2);
  saveFile(new Blob([text], { type: "application/json" }), `${project.clip.replace(/\.[^.]*$/, "") || "foley"}.foley.json`);
}

/** The content of a project's file. */
export function describeProject(project) {
  const layers = project.tracks.map((track) => toLayer(track, project.negative));
  const mix = listMixOptions(project, true);
  let request = { layers };
  if (layers.length === 1 && !layers[0].prompt.trim()) {
    // A layer has a prompt. Without one the picture alone decides, and the mix has gain and pan.
    const { gain_db, pan, mute, solo, ...rest } = layers[0];
    request = rest;
    Object.assign(mix, gain_db ? { gain_db } : {}, pan ? { pan } : {});
  }
  if (project.steps !== "") request.num_inference_steps = Number(project.steps);
  const parts = project.tracks.flatMap((track, n) => listParts(track).map((part) => ({ layer: n + 1, ...part })));
  return { foley_project: VERSION, clip: project.clip, request, mix, ...(parts.length ? { parts } : {}) };
}

/** Read a project's file; its sounds are made again by their seeds. */
export async function readProject(file) {
  let content;
  try {
    content = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is no project: it is not JSON.`);
  }
  if (content?.foley_project !== VERSION) throw new Error(`${file.name} is no project of this editor, version ${VERSION}.`);
  const { request = {}, mix = {}, parts = [] } = content;
  const layers = request.layers ?? [{ ...request, gain_db: mix.gain_db, pan: mix.pan }];
  if (!Array.isArray(layers) || !layers.length || layers.length > MAX_TRACKS) throw new Error(`${file.name} must hold 1 to ${MAX_TRACKS} layers.`);
  const project = makeProject();
  project.clip = `${content.clip ?? ""}`;
  project.steps = request.num_inference_steps ?? "";
  project.loudness = mix.loudness_lufs ?? "";
  project.negative = layers[0].negative_prompt ?? "";
  project.original = {
    mode: mix.original_sound ?? "drop", gain_db: mix.original_gain_db ?? 0, depth_db: mix.duck_depth_db ?? 12, release_ms: mix.duck_release_ms ?? 300,
  };
  project.tracks = layers.map((layer) => ({
    ...makeTrack(`${layer.prompt ?? ""}`),
    seed: layer.seed ?? "", gain_db: Number(layer.gain_db ?? 0), pan: Number(layer.pan ?? 0), mute: !!layer.mute, solo: !!layer.solo,
    cues: (layer.cues ?? []).map((cue) => ({ id: makeId(), start: Number(cue.start_seconds), stop: Number(cue.stop_seconds), prompt: `${cue.prompt}` })),
  }));
  for (const { layer = 1, ...part } of parts) {
    if (!project.tracks[layer - 1]) throw new Error(`${file.name} has a part of layer ${layer}, and there are ${layers.length} layers.`);
    project.tracks[layer - 1].remake.push(part);
  }
  project.selected = project.tracks[0].id;
  return project;
}

/** Offer a file for download. */
export function saveFile(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}
