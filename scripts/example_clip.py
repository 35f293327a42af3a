"""Write examples/hammer.mp4, a clip whose hits can be seen, and their times to hammer.json.

MUJOCO_GL=osmesa python -m scripts.example_clip
"""

import json

import av

from scripts.local_service import ROOT
from training.rendered.clip import make_clip
from training.scene import FPS

CLIP = ROOT / "examples" / "hammer.mp4"
SEED, KIND, SECONDS, SIZE = (77, 4), "hammer", 5.0, 480


def main() -> None:
    """Simulate, draw and encode the clip."""
    made = make_clip(SEED, SECONDS, kind=KIND, size=SIZE)
    assert made.pictures is not None
    with av.open(str(CLIP), "w", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "20"})
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for picture in made.pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        container.mux(stream.encode())
    contacts = [round(event.seconds, 3) for event in made.events if event.scored]
    CLIP.with_suffix(".json").write_text(json.dumps({"contacts": contacts}) + "\n")


if __name__ == "__main__":
    main()
