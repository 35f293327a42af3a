"""Write clips of a material and an action that `tiny` has never met, for `foley train`.

    python -m benchmarks.quality.adapter_clips DIR [--count 30]

Rubber things are shaken, dropped, tapped and struck; every second one is a rattle. Each clip is
NAME.mov with the exact sound, and NAME.txt. The prompts say latex: the generator's prompts use
rubber as another word for plastic, so the text encoder gives both nearly the same features, and no
adapter of the transformer could tell them apart.
"""

import argparse
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from training import clips
from training.materials import RUBBER
from training.scene import FPS, HELD_OUT

SECONDS = 4.0
ACTIONS = (HELD_OUT, "bounce", HELD_OUT, "tap", HELD_OUT, "strike")
TRAINING_SEED = 2525
TESTING_SEED = 3535
_PROMPTS = {
    HELD_OUT: ("latex rattle", "a latex rattle is shaken", "shaking a latex box"),
    "bounce": ("latex ball bouncing", "a latex ball", "latex dropped on the floor"),
    "tap": ("tapping latex", "latex taps", "a finger on latex"),
    "strike": ("hitting latex", "latex struck with a stick", "latex impacts"),
}


def draw_clip(seed: int, index: int) -> clips.Batch:
    """Return a clip, and the prompt that names its sound.

    Args:
        seed: of all clips.
        index: of this one.
    """
    action = ACTIONS[index % len(ACTIONS)]
    batch = clips.make_batch(seed, index, 1, SECONDS, action=action, quiet=True, material=RUBBER)
    rng = np.random.default_rng((seed, index, 1))
    batch.prompts = [str(rng.choice(_PROMPTS[action]))]
    return batch


def write_clip(path: Path, pictures: Tensor, waveform: Tensor) -> None:
    """Write H.264 at 25 fps with the sound as PCM, in a MOV file.

    Args:
        path: to write.
        pictures: uint8 [n, 3, H, W].
        waveform: [S] in [-1, 1], 48 kHz.
    """
    with av.open(str(path), "w", format="mov") as container:
        video = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        video.width, video.height, video.pix_fmt = pictures.shape[3], pictures.shape[2], "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        for picture in pictures.permute(0, 2, 3, 1).numpy():
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(video.encode(image))
        container.mux(video.encode())
        samples = (waveform.clamp(-1, 1) * 32767).short().numpy()[None]
        sound = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        sound.sample_rate = 48_000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())


def write_clips(folder: Path, count: int) -> None:
    """Write clips to learn from.

    Args:
        folder: is made.
        count: number of clips.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        batch = draw_clip(TRAINING_SEED, index)
        path = folder / f"clip{index:02d}.mov"
        with torch.inference_mode():
            write_clip(path, batch.pictures()[0], batch.waveform()[0])
        path.with_suffix(".txt").write_text(batch.prompts[0] + "\n")


def main() -> None:
    """Write a folder of clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=30)
    args = parser.parse_args()
    write_clips(args.folder, args.count)


if __name__ == "__main__":
    main()
