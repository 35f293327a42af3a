"""Write held-out clips of the generator as NAME.mp4 and NAME.json, for `benchmarks.quality.sync`.

    python -m benchmarks.quality.make_clips DIR [--count 8] [--seconds 4] [--unseen-style]

With --with-sound, the program also writes the exact sound as NAME.wav.
"""

import argparse
import json
import wave
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.quality.held_out import HELD_OUT_SEED
from training import clips, labels
from training.scene import FPS, PLAIN, UNSEEN

_SCENES_AT_ONCE = 1


def write_clip(path: Path, pictures: torch.Tensor, crf: int) -> None:
    """Write an H.264 file at 25 fps.

    Args:
        path: to write.
        pictures: uint8 [n, 3, H, W].
        crf: quality of the coder; a higher value gives a smaller file.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = (
            pictures.shape[3],
            pictures.shape[2],
            "yuv420p",
        )
        for picture in pictures.permute(0, 2, 3, 1).numpy():
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_sound(path: Path, waveform: torch.Tensor) -> None:
    """Write a waveform [S] in [-1, 1] as a 16-bit file at 48 kHz."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes((waveform.clamp(-1, 1) * 32767).short().numpy().tobytes())


def main() -> None:
    """Write a folder of clips."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--unseen-style", action="store_true", help="pencil on paper, which training never uses"
    )
    parser.add_argument(
        "--crf", type=int, default=18, help="quality of H.264; a higher value is coarser"
    )
    parser.add_argument("--with-sound", action="store_true")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    style = UNSEEN if args.unseen_style else PLAIN
    for index in range(args.first, args.first + args.count):
        batch = clips.make_batch(
            HELD_OUT_SEED, index, _SCENES_AT_ONCE, args.seconds, style, quiet=True
        )
        name = f"{'unseen' if args.unseen_style else 'clip'}{index:04d}"
        write_clip(args.folder / f"{name}.mp4", batch.pictures()[0], args.crf)
        if args.with_sound:
            write_sound(args.folder / f"{name}.wav", batch.waveform()[0])
        events, unscored = (
            [{"time": round(seconds, 4)} for seconds in times]
            for times in (batch.hits["seconds"].tolist(), labels.find_shoves(batch)[0])
        )
        description = {"events": events, "unscored": unscored, "prompt": batch.prompts[0]}
        (args.folder / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")
        print(name, len(events), "events", repr(batch.prompts[0]), flush=True)


if __name__ == "__main__":
    main()
