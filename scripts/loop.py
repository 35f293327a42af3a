"""Draw docs/images/hammer.webp: the example clip above the waveform of its new sound, as a loop.

python -m scripts.loop
"""

import itertools
import json

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from foley import FoleyPipeline
from foley.media.source import MediaLimits, open_video
from scripts.demo import CLIP, CONTACTS, PROMPT
from scripts.local_service import ROOT

PICTURE = ROOT / "docs" / "images" / "hammer.webp"
SEED = 11
EVERY = 2  # frames of the clip for one of the loop
SIZE, WAVE_HEIGHT = 320, 80
BACKGROUND, WAVE, CONTACT, HEAD = "#ffffff", "#2c3e50", "#1a9850", "#e66101"


def main() -> None:
    """Generate the sound with `tiny`, and draw the loop."""
    generation = FoleyPipeline.from_preset("tiny", device="cpu")(CLIP, PROMPT, seed=SEED)
    seconds = generation.duration_seconds
    wave = draw_wave(generation.waveforms[0, 0].numpy(), seconds)
    with open_video(CLIP, MediaLimits()) as (container, _):
        pictures = [*container.decode(video=0)][::EVERY]
    frames = []
    for picture in pictures:
        frame = Image.new("RGB", (SIZE, SIZE + WAVE_HEIGHT), BACKGROUND)
        frame.paste(picture.to_image(width=SIZE, height=SIZE))
        frame.paste(wave, (0, SIZE))
        x = SIZE * float(picture.time or 0) / seconds
        ImageDraw.Draw(frame).line((x, SIZE, x, SIZE + WAVE_HEIGHT), HEAD, 2)
        frames.append(frame)
    frames[0].save(
        PICTURE,
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 * seconds / len(frames)),
        loop=0,
        quality=60,
        method=6,
    )


def draw_wave(samples: NDArray[np.float32], seconds: float) -> Image.Image:
    """Return the waveform, with a mark at each contact.

    Args:
        samples: float32 [S].
        seconds: its length.
    """
    image = Image.new("RGB", (SIZE, WAVE_HEIGHT), BACKGROUND)
    canvas = ImageDraw.Draw(image)
    edges = np.linspace(0, len(samples), SIZE + 1).astype(int)
    middle = WAVE_HEIGHT / 2
    for x, (first, last) in enumerate(itertools.pairwise(edges)):
        part = samples[first:last]
        canvas.line((x, middle - middle * part.max(), x, middle - middle * part.min()), WAVE)
    for contact in json.loads(CONTACTS.read_text())["contacts"]:
        x = SIZE * contact / seconds
        canvas.polygon([(x - 4, 0), (x + 4, 0), (x, 7)], CONTACT)
    return image


if __name__ == "__main__":
    main()
