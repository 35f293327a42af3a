// The player, the copy buttons, and accessibility that Gradio lacks. The script finds elements by
// class or data attribute at each event, because Gradio replaces them.
(() => {
  const within = (node, selector) => node?.closest?.(selector);

  // Uploads carry the API key, which the page asks for before it takes a file.
  const fetchWithoutKey = window.fetch;
  window.fetch = (target, options = {}) => {
    const url = new URL(target?.url ?? target, location.href);
    const key = document.querySelector("#api-key input")?.value;
    const uploads = url.origin === location.origin && url.pathname.endsWith("/gradio_api/upload");
    if (!key || !uploads) return fetchWithoutKey(target, options);
    const headers = new Headers(options.headers);
    headers.set("X-Api-Key", key);
    return fetchWithoutKey(target, { ...options, headers });
  };

  // Play another track from the current position.
  function switchTrack(player, choice) {
    const video = player.querySelector("video");
    const { currentTime, paused, ended, playbackRate } = video;
    holdFrame(video);
    video.src = choice.dataset.media;
    video.currentTime = currentTime; // takes effect when the new source's metadata has loaded
    video.playbackRate = playbackRate;
    if (!paused && !ended) video.play();
    for (const part of player.querySelectorAll("[data-of]")) {
      part.hidden = part.dataset.of !== choice.value;
    }
  }

  // Show the current frame while the next source loads.
  function holdFrame(video) {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    video.poster = canvas.toDataURL("image/jpeg", 0.9);
  }

  function showPosition(video) {
    const player = within(video, "[data-player]");
    if (!player) return;
    const seek = player.querySelector(".foley-seek");
    seek.value = video.currentTime;
    const share = Math.min(1, video.currentTime / Number(seek.max));
    player.querySelector(".foley-timeline").style.setProperty("--position", share);
  }

  function follow(video) {
    showPosition(video);
    if (!video.paused && !video.ended && video.isConnected) {
      requestAnimationFrame(() => follow(video));
    }
  }

  // The sound that is being made, once some of it is there.
  let beginning = null;
  let loading = null;
  function showBeginning() {
    const said = document.querySelector("#pieces [data-pieces]");
    if (said === null && beginning === null) return;
    loading ??= import(new URL("modules/page/beginning.js", document.baseURI)).then(({ Beginning }) => {
      beginning = new Beginning(document.querySelector("[data-beginning]"));
      showBeginning();
    });
    if (beginning === null) return;
    const { result, startSeconds } = said?.dataset ?? {};
    if (said === null) beginning.end();
    else if (!result) {
      const addresses = [...said.querySelectorAll("a")].map((link) => link.href);
      beginning.show(addresses, Number(startSeconds));
    } else {
      const player = document.querySelector(`#result [data-player][aria-label="Result ${result}"]`);
      if (player) beginning.end(player.querySelector("video"));
    }
  }

  async function copy(button, text) {
    const before = button.textContent;
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Select the text and copy it";
    }
    setTimeout(() => { button.textContent = before; }, 2000);
  }

  document.addEventListener("change", (event) => {
    const choice = within(event.target, "[data-track]");
    if (choice) switchTrack(within(choice, "[data-player]"), choice);
  });
  document.addEventListener("input", (event) => {
    const seek = within(event.target, ".foley-seek");
    if (!seek) return;
    const video = within(seek, "[data-player]").querySelector("video");
    video.currentTime = Number(seek.value);
    showPosition(video);
  });
  function showMore(open) {
    document.body.classList.toggle("foley-more", open);
    document.querySelector("#more-button")?.setAttribute("aria-expanded", open);
  }

  document.addEventListener("click", (event) => {
    if (within(event.target, "#more-button")) {
      showMore(!document.body.classList.contains("foley-more"));
    }
    const button = within(event.target, "[data-copy], [data-copy-link]");
    if (!button) return;
    const beside = button.parentElement;
    copy(button, "copyLink" in button.dataset
      ? beside.querySelector("a").href
      : beside.querySelector("code").textContent);
  });
  // Ctrl+Enter makes the sound, and Space plays or pauses it, unless the focus is on something that
  // takes the key itself.
  const TAKES_SPACE = "input, textarea, select, button, summary, a, video, audio, [contenteditable]";
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      const start = document.querySelector("#start");
      if (!start || start.disabled) return;
      event.preventDefault();
      start.click();
    } else if (event.key === " " && !event.repeat && !within(event.target, TAKES_SPACE)) {
      if (beginning?.isShown) {
        event.preventDefault();
        beginning.toggle();
        return;
      }
      const video = document.querySelector("#result [data-player] video");
      if (!video) return;
      event.preventDefault();
      if (video.paused) video.play(); else video.pause();
    }
  });
  // Media events do not bubble, so they are handled in the capturing phase.
  for (const name of ["seeked", "timeupdate", "loadedmetadata"]) {
    document.addEventListener(name, (event) => showPosition(event.target), true);
  }
  document.addEventListener("play", (event) => follow(event.target), true);
  // Gradio shows names of groups and of the clip without linking them to their elements.
  function labelElements() {
    document.querySelector("#clip video:not([aria-label])")?.setAttribute("aria-label", "Clip");
    const more = document.querySelector("#more-button:not([aria-expanded])");
    if (more) showMore(["negative_prompt", "num_inference_steps", "guidance_scale", "solver", "trim",
      "start_seconds", "original_sound", "loudness_lufs"]
      .some((name) => new URLSearchParams(location.search).has(name)));
    for (const group of document.querySelectorAll("fieldset:not([aria-label]):not(:has(legend))")) {
      const name = group.querySelector("[data-testid=block-info]")?.textContent.trim();
      if (name) group.setAttribute("aria-label", name);
    }
  }
  // Scroll to the progress, an error beside the button and a new result, which may be outside the
  // screen.
  let shown = null;
  let working = false;
  let failed = false;
  new MutationObserver(() => {
    labelElements();
    showBeginning();
    const progress = document.querySelector("#progress p");
    if (progress && !working) progress.parentElement.scrollIntoView({ block: "nearest" });
    working = Boolean(progress);
    const error = document.querySelector("#error-start .foley-error");
    if (error && !failed) {
      const { top, bottom } = error.getBoundingClientRect();
      // What the error offers stands below it.
      if (top < 0 || bottom > 0.8 * window.innerHeight) error.scrollIntoView({ block: "center" });
    }
    failed = Boolean(error);
    const player = document.querySelector("#result [data-player]");
    if (!player || player === shown) return;
    shown = player;
    const top = player.getBoundingClientRect().top;
    if (top < 0 || top > window.innerHeight / 2) player.scrollIntoView();
  }).observe(document, { childList: true, subtree: true });
  // If the browser cannot play the container, play the wav file, which every browser plays.
  document.addEventListener("error", (event) => {
    const player = within(event.target, "[data-player]");
    if (!player || event.target.tagName !== "VIDEO") return;
    const chosen = player.querySelector("[data-track]:checked");
    const wav = player.querySelector(`.foley-downloads[data-of="${chosen.value}"] a[href$=".wav"]`);
    if (wav && chosen.dataset.media !== wav.getAttribute("href")) {
      chosen.dataset.media = wav.getAttribute("href");
      switchTrack(player, chosen);
    }
  }, true);
})();
