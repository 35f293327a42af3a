// The keyboard. Letters and arrows act unless somebody types or moves a slider.

const FRAME_SECONDS = 0.04;
const ZOOM_STEP = 0.1;
const TYPED = "input:not([type=range], [type=checkbox], [type=file]), textarea, [contenteditable=true]";

/** Call the actions for keys. */
export function bindKeys(actions) {
  const plain = {
    " ": actions.play, l: actions.loop, i: actions.selectFrom, o: actions.selectTo, Escape: actions.clearSelection,
    c: actions.cue, m: actions.mute, s: actions.solo, a: actions.back, r: () => actions.again(), d: () => actions.download(),
    "+": () => actions.zoomBy(ZOOM_STEP), "=": () => actions.zoomBy(ZOOM_STEP), "-": () => actions.zoomBy(-ZOOM_STEP), 0: actions.zoomAll,
    Home: () => actions.seek(0), End: actions.end, ",": () => actions.seekOnset(-1), ".": () => actions.seekOnset(1),
  };
  const arrows = {
    ArrowLeft: (step) => actions.seekBy(-step), ArrowRight: (step) => actions.seekBy(step),
    ArrowUp: () => actions.moveTrack(-1), ArrowDown: () => actions.moveTrack(1),
  };
  const control = {
    Enter: actions.generate, z: actions.undo, Z: actions.redo, y: actions.redo, s: actions.save,
  };
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.altKey) return;
    const target = event.composedPath()[0];
    const types = target.matches?.(TYPED);
    let action;
    if (event.ctrlKey || event.metaKey) {
      // A text field undoes its own typing.
      if (!(types && event.key.toLowerCase() === "z")) action = control[event.shiftKey && event.key === "z" ? "Z" : event.key];
    } else if (types) return;
    else if (event.key === " " && target.matches?.("button, summary, select, input")) return;
    else if (arrows[event.key]) {
      if (target.matches?.("input[type=range], select")) return;
      action = () => arrows[event.key](event.shiftKey ? 1 : FRAME_SECONDS);
    } else if (/^[1-9]$/.test(event.key)) action = () => actions.take(Number(event.key));
    else if (target.matches?.("select")) return;
    else action = plain[event.key] ?? plain[event.key.toLowerCase()];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
