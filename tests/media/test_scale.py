from pathlib import Path

import numpy as np
import pytest
import torch
from av import VideoFrame
from PIL import Image
from safetensors.torch import load_file

from foley.media.scale import apply_orientation, fit_and_crop, rgb_view, stretch

GOLDEN = Path(__file__).parents[1] / "assets/golden"


@pytest.mark.parametrize("image", ["im0", "im1"])
def test_stretch_equals_the_reference(image: str) -> None:
    tensors = load_file(GOLDEN / "preprocess_siglip.safetensors")
    scaled = stretch(tensors[f"{image}.in"], 512)
    assert torch.equal(scaled.permute(2, 0, 1), tensors[f"{image}.siglip_u8"])


@pytest.mark.parametrize("image", ["im0", "im1", "im2"])
def test_fit_and_crop_equals_the_reference(image: str) -> None:
    tensors = load_file(GOLDEN / "preprocess_sync.safetensors")
    scaled = fit_and_crop(tensors[f"{image}.in"], 224)
    assert torch.equal(scaled.permute(2, 0, 1), tensors[f"{image}.sync_u8"])


def test_what_is_scaled_has_rows_of_pixels() -> None:
    """Planes of colours would be copied for each frame, which takes longer than scaling."""
    image = torch.zeros((24, 32, 3), dtype=torch.uint8)
    assert stretch(image, 16).is_contiguous()
    assert fit_and_crop(image, 16).stride() == (3 * 21, 3, 1)


def test_shrinking_is_within_one_level_of_pillow() -> None:
    torch.manual_seed(0)
    image = torch.randint(256, (360, 640, 3), dtype=torch.uint8)
    pillow = Image.fromarray(image.numpy()).resize((128, 128), Image.Resampling.BILINEAR)
    difference = stretch(image, 128).int() - torch.from_numpy(np.array(pillow)).int()
    assert difference.abs().max() <= 1
    assert difference.ne(0).float().mean() < 0.003  # measured: 0.0013


@pytest.mark.parametrize(("width", "height"), [(64, 4), (33, 7), (1, 1), (5, 3)])
def test_rows_are_read_without_their_padding(width: int, height: int) -> None:
    pixels = np.arange(width * height * 3, dtype=np.uint8).reshape(height, width, 3)
    frame = VideoFrame.from_ndarray(pixels, format="rgb24")
    assert np.array_equal(rgb_view(frame).numpy(), pixels)


def test_all_eight_orientations_differ_and_keep_the_pixels() -> None:
    image = torch.arange(27, dtype=torch.uint8).reshape(3, 3, 3)
    ways = [(a, b, c) for a in (False, True) for b in (False, True) for c in (False, True)]
    results = [apply_orientation(image, way) for way in ways]
    assert len({tuple(result.flatten().tolist()) for result in results}) == 8
    assert all(torch.equal(r.flatten().sort().values, image.flatten()) for r in results)
