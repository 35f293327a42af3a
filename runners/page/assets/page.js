// The player, the copy buttons and what the page's framework leaves to do. No state of its own:
// everything is found by class or data attribute, so that it works on whatever is shown now.
(() => {
  const within = (node, selector) => node?.closest?.(selector);

  // Listen to another track, at the place where this one is.
  function switchTrack(player, choice) {
    const video = player.querySelector("video");
    const { currentTime, paused, ended, playbackRate } = video;
    holdPicture(video);
    video.src = choice.dataset.media;
    video.currentTime = currentTime; // honoured as soon as the new source knows its length
    video.playbackRate = playbackRate;
    if (!paused && !ended) video.play();
    for (const part of player.querySelectorAll("[data-of]")) {
      part.hidden = part.dataset.of !== choice.value;
    }
  }

  // The picture stays while the next source loads.
  function holdPicture(video) {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    canvas.width = video.videoWidth;
    canvas.height = video.videoHeight;
    canvas.getContext("2d").drawImage(video, 0, 0);
    video.poster = canvas.toDataURL("image/jpeg", 0.9);
  }

  function showPlace(video) {
    const player = within(video, "[data-player]");
    if (!player) return;
    const seek = player.querySelector(".foley-seek");
    seek.value = video.currentTime;
    const share = Math.min(1, video.currentTime / Number(seek.max));
    player.querySelector(".foley-timeline").style.setProperty("--place", share);
  }

  function follow(video) {
    showPlace(video);
    if (!video.paused && !video.ended && video.isConnected) {
      requestAnimationFrame(() => follow(video));
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
    showPlace(video);
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
  // Events of media do not bubble: they are caught on the way down.
  for (const name of ["seeked", "timeupdate", "loadedmetadata"]) {
    document.addEventListener(name, (event) => showPlace(event.target), true);
  }
  document.addEventListener("play", (event) => follow(event.target), true);
  // The framework writes names above groups and the clip, and does not say whose they are.
  function nameParts() {
    document.querySelector("#clip video:not([aria-label])")?.setAttribute("aria-label", "Clip");
    const more = document.querySelector("#more-button:not([aria-expanded])");
    if (more) showMore(["negative_prompt", "num_inference_steps", "guidance_scale", "solver", "trim"]
      .some((name) => new URLSearchParams(location.search).has(name)));
    for (const group of document.querySelectorAll("fieldset:not([aria-label]):not(:has(legend))")) {
      const name = group.querySelector("[data-testid=block-info]")?.textContent.trim();
      if (name) group.setAttribute("aria-label", name);
    }
  }
  // Progress and a new result may come below what the screen shows.
  let shown = null;
  let working = false;
  new MutationObserver(() => {
    nameParts();
    const progress = document.querySelector("#progress p");
    if (progress && !working) progress.parentElement.scrollIntoView({ block: "nearest" });
    working = Boolean(progress);
    const player = document.querySelector("#result [data-player]");
    if (!player || player === shown) return;
    shown = player;
    const top = player.getBoundingClientRect().top;
    if (top < 0 || top > window.innerHeight / 2) player.scrollIntoView();
  }).observe(document, { childList: true, subtree: true });
  // A container that this browser does not play: the sound alone, which every browser plays.
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
