"""Scaling of frames to the encoders' sizes, bit-identical to the reference."""

# H, W source height and width, S output side

import numpy as np
import torch
import torch.nn.functional as F
from av import VideoFrame
from av.sidedata.sidedata import SideData
from torch import Tensor

# One of the eight orientations of a picture: (swap rows and columns, mirror columns, mirror rows)
Orientation = tuple[bool, bool, bool]
UPRIGHT: Orientation = (False, False, False)


def rgb_view(frame: VideoFrame) -> Tensor:
    """The pixels of an rgb24 frame as uint8 [H, W, 3], a view of the frame's memory."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    # Rows may end in padding.
    pixels = torch.from_numpy(rows[: frame.height, : frame.width * 3])
    return pixels.view(frame.height, frame.width, 3)


def stretch(image: Tensor, size: int) -> Tensor:
    """The image stretched to uint8 [S, S, 3], bilinear with antialiasing.

    Args:
        image: uint8 [H, W, 3]. The aspect ratio is not kept.
        size: S, in pixels.

    Source: specification, section 7. Pillow's filter has finer weights. On real frames it differs
    by one level in about one value in a thousand.
    """
    return _resize(image, (size, size), "bilinear")


def fit_and_crop(image: Tensor, size: int) -> Tensor:
    """The middle square of the image as uint8 [S, S, 3], its short side scaled to S.

    Args:
        image: uint8 [H, W, 3].
        size: S, in pixels.

    Source: specification, section 6: bicubic with antialiasing, in uint8 arithmetic throughout.
    The long side is rounded down, the offset of the crop is rounded half to even.
    """
    height, width = image.shape[:2]
    scaled = _resize(image, fitted_size(height, width, size), "bicubic")
    top, left = (round((side - size) / 2) for side in scaled.shape[:2])
    return scaled[top : top + size, left : left + size]  # [S, S, 3]


def fitted_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in pixels after the short side is scaled to `size`."""
    if width <= height:
        return int(size * height / width), size
    return size, int(size * width / height)


def _resize(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    # A [1, 3, H, W] view of the image is channels_last, for which torch has vectorized uint8 code.
    # The result is so too only if the first stride is that of a whole image, as it is here. Else it
    # has planes, and to copy them into rows of pixels takes longer than to scale.
    planes = image.unsqueeze(0).permute(0, 3, 1, 2)
    scaled = F.interpolate(planes, size=size, mode=mode, antialias=True)
    return scaled.permute(0, 2, 3, 1).squeeze(0)


def orientation_of(frame: VideoFrame) -> Orientation:
    """The orientation to apply to a frame for display; phones store portrait clips rotated."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return UPRIGHT
    # x' = a x + c y, y' = b x + d y in 16.16 fixed point, rows (a b u) (c d v) (x y w)
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), "=i4").tolist()
    if abs(b) > abs(a):
        return True, c < 0, b < 0
    return False, a < 0, d < 0


def apply_orientation(image: Tensor, orientation: Orientation) -> Tensor:
    """The image [S, S, 3] as it is displayed.

    Args:
        image: [S, S, 3] as it is stored.
        orientation: of its frame, by `orientation_of`.
    """
    swap, mirror_columns, mirror_rows = orientation
    if swap:
        image = image.transpose(0, 1)
    mirrored = [axis for axis, mirror in ((1, mirror_columns), (0, mirror_rows)) if mirror]
    return image.flip(mirrored) if mirrored else image
