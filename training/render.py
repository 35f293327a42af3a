"""Drawing of a batch of scenes as pictures of 224 x 224 at 25 fps."""

# B clips, F frames of the whole batch, K sprites, H = W = 224, P = 256 texture pixels a side

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from training.sound import noise_table

SIZE = 224
TEXTURE_SIZE = 256
_CLIPS_AT_ONCE = 64


def choose_frames_at_once(device: torch.device) -> int:
    """How many frames are drawn together; more than a few leave the cache of a CPU."""
    return 256 if device.type == "cuda" else 4


def draw(frames: dict[str, Tensor], still: dict[str, Tensor], fast: bool = False) -> Tensor:
    """The pictures, uint8 [B, n, 3, H, W].

    Args:
        frames: per-frame arrays [B, n, ...] of the scenes.
        still: per-clip arrays [B, ...] of the scenes.
        fast: compile the drawing, which pays off for many frames; B is at most 64.
    """
    batch, count = frames["light"].shape[:2]
    textures = backdrop_textures(still["backdrop"])
    flat = {name: value.flatten(0, 1) for name, value in frames.items()}
    owner = torch.arange(batch, device=textures.device).repeat_interleave(count)
    if fast:  # one shape, so that it is compiled only once
        textures = torch.nn.functional.pad(textures, (0, 0) * 3 + (0, _CLIPS_AT_ONCE - batch))
    paint, spoil = (_compile(_paint), _compile(degrade)) if fast else (_paint, degrade)
    table = noise_table(textures.device)
    room = len(table) - SIZE * SIZE * 3
    at_once = choose_frames_at_once(textures.device)
    number = torch.arange(len(owner) + at_once, device=textures.device)
    grain = (number * 7919 % room).int()
    parts = []
    for start in range(0, len(owner), at_once):
        part = slice(start, start + at_once)
        missing = at_once - len(owner[part]) if fast else 0

        def pad(value: Tensor, part: slice = part, missing: int = missing) -> Tensor:
            value = value[part]
            return torch.cat((value, value[-1:].expand(missing, *value.shape[1:])))

        clip = pad(owner)
        picture = paint(
            textures,
            clip,
            *(pad(flat[name]) for name in ("sprites", "camera", "effect", "rings", "light")),
            *(still[name][clip] for name in ("looks", "effect_look", "grade")),
        )
        first = grain[start : start + len(clip)]
        picture = spoil(picture, still["grade"][clip], table, first)
        parts.append(picture[: at_once - missing])
    return torch.cat(parts).unflatten(0, (batch, count))


def backdrop_textures(backdrop: Tensor) -> Tensor:
    """Periodic textures [B, 4, P, P]: a backdrop in colour, and a grey noise of variance 1.

    The spectra fall as a power of frequency, like those of photographs. Some backdrops are divided
    into regions with hard edges, like those of occlusions.

    Args:
        backdrop: [B, 8], see `training.scene.BACKDROP`.
    """
    device, batch = backdrop.device, len(backdrop)
    ky = torch.fft.fftfreq(TEXTURE_SIZE, device=device)[:, None]
    kx = torch.fft.rfftfreq(TEXTURE_SIZE, device=device)[None]
    radius = torch.sqrt(kx**2 + ky**2).clamp_min(1 / TEXTURE_SIZE)
    size = 4 * TEXTURE_SIZE**2
    index = backdrop[:, 7:].long() + torch.arange(size, device=device)
    white = noise_table(device)[index].view(batch, 4, TEXTURE_SIZE, TEXTURE_SIZE)
    slope = backdrop[:, :1].repeat(1, 4)
    slope[:, 3] = 0.7
    field = torch.fft.irfft2(torch.fft.rfft2(white) * radius ** -slope[:, :, None, None])
    field = field - field.mean((2, 3), keepdim=True)
    field = field / field.std((2, 3), keepdim=True)
    base, contrast, colour, cut = (
        backdrop[:, part, None, None]
        for part in (slice(1, 4), slice(4, 5), slice(5, 6), slice(6, 7))
    )
    grey = field[:, :1]
    mixed = (1 - colour) * grey + colour * field[:, :3]
    steps = torch.floor(2.5 * grey)
    regions = torch.cat([torch.sin(k * steps + k) for k in (3.1, 5.3, 7.7)], dim=1)
    mixed = (1 - cut) * mixed + 1.5 * cut * regions
    picture = (base + contrast * mixed).clamp(0, 1)
    return torch.cat((picture, field[:, 3:]), dim=1)


@cache
def _compile(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False)


def _sample(textures: Tensor, clip: Tensor, channel: int, u: Tensor, v: Tensor) -> Tensor:
    """Bilinear samples [F, H, W] at periodic coordinates; 1 is the side of the texture."""
    x, y = u * TEXTURE_SIZE, v * TEXTURE_SIZE
    left, top = x.floor(), y.floor()
    wx, wy = x - left, y - top
    mask = TEXTURE_SIZE - 1
    x0, y0 = left.int() & mask, top.int() & mask
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    flat = textures.flatten()
    base = ((clip.int() * 4 + channel) * TEXTURE_SIZE)[:, None, None]

    def at(row: Tensor, column: Tensor) -> Tensor:
        return flat[(base + row) * TEXTURE_SIZE + column]

    upper = at(y0, x0) * (1 - wx) + at(y0, x1) * wx
    lower = at(y1, x0) * (1 - wx) + at(y1, x1) * wx
    return upper * (1 - wy) + lower * wy


def _paint(
    textures: Tensor,
    clip: Tensor,
    sprites: Tensor,
    camera: Tensor,
    effect: Tensor,
    rings: Tensor,
    light: Tensor,
    looks: Tensor,
    effect_look: Tensor,
    grade: Tensor,
) -> Tensor:
    """Pictures [F, 3, H, W], about 0 to 1, before noise and compression."""

    def at(values: Tensor, index: int) -> Tensor:
        return values[:, index, None, None]

    line = (torch.arange(SIZE, device=clip.device) + 0.5) / SIZE * 2 - 1
    sx, sy = line[None, None, :], line[None, :, None]
    sx = sx * (1 + at(camera, 4) * sy)  # the camera's tilt
    cos, sin = torch.cos(at(camera, 3)), torch.sin(at(camera, 3))
    zoomed_x, zoomed_y = sx / at(camera, 2), sy / at(camera, 2)
    x = at(camera, 0) + cos * zoomed_x - sin * zoomed_y  # world coordinates [F, H, W]
    y = at(camera, 1) + sin * zoomed_x + cos * zoomed_y

    depth = at(camera, 7)
    u = at(camera, 5) + 0.3 * (x - (1 - depth) * at(camera, 0))
    v = at(camera, 6) + 0.3 * (y - (1 - depth) * at(camera, 1))
    red, green, blue = (_sample(textures, clip, channel, u, v) for channel in range(3))
    sketch = at(grade, 5)
    paper = 0.9 + 0.04 * _sample(textures, clip, 3, 2 * u, 2 * v)
    red, green, blue = (c + sketch * (paper - c) for c in (red, green, blue))

    for k in range(sprites.shape[1]):
        sprite, look = sprites[:, k], looks[:, k]
        dx, dy = x - at(sprite, 0), y - at(sprite, 1)
        cos, sin = torch.cos(at(sprite, 4)), torch.sin(at(sprite, 4))
        hx, hy = at(sprite, 2), at(sprite, 3)
        lx, ly = (cos * dx + sin * dy) / hx, (cos * dy - sin * dx) / hy  # -1 .. 1 inside
        small = torch.minimum(hx, hy)
        shape = at(look, 0)
        ellipse = (torch.sqrt(lx * lx + ly * ly + 1e-9) - 1) * small
        box = torch.maximum((lx.abs() - 1) * hx, (ly.abs() - 1) * hy)
        qx = ((lx.abs() - 1) * hx + small).clamp_min(0)
        qy = ((ly.abs() - 1) * hy + small).clamp_min(0)
        capsule = torch.sqrt(qx * qx + qy * qy + 1e-9) - small
        triangle = torch.maximum(ly - 1, 0.89 * lx.abs() * 1.0 - 0.45 * ly - 0.45) * small
        distance = torch.where(shape < 0.5, ellipse, box)
        distance = torch.where(shape > 1.5, capsule, distance)
        distance = torch.where(shape > 2.5, triangle, distance)
        soft = at(look, 11)
        cover = at(sprite, 5) * (0.5 - distance / soft).clamp(0, 1)
        pattern, frequency = at(look, 7), at(look, 8)
        stripes = torch.sin(frequency * lx)
        checker = stripes * torch.sin(frequency * ly)
        noise = _sample(textures, clip, 3, at(look, 12) + 0.25 * lx, at(look, 13) + 0.25 * ly)
        mix = torch.where(pattern > 0.5, 0.5 + 0.5 * stripes, 0.0)
        mix = torch.where(pattern > 1.5, 0.5 + 0.5 * checker.sign(), mix)
        mix = torch.where(pattern > 2.5, (0.5 + 0.35 * noise).clamp(0, 1), mix)
        shade = 1 + at(look, 9) * (-0.35 * lx - 0.5 * ly)  # lit from the upper left
        border = ((distance + 2.5 * soft) / soft).clamp(0, 1)
        dark = shade * (1 - at(look, 10) * border)
        hatch = (torch.sin(60 * (dx + dy)) > 0.3).float() * (0.4 + 0.4 * at(look, 9))
        pencil = 0.9 - torch.maximum(0.8 * border, hatch * at(look, 1))
        channels = []
        for behind, first, second in ((red, 1, 4), (green, 2, 5), (blue, 3, 6)):
            colour = (at(look, first) * (1 - mix) + at(look, second) * mix) * dark
            colour = colour + sketch * (pencil - colour)
            channels.append(behind + cover * (colour - behind))
        red, green, blue = channels

    stretch_u = at(effect_look, 0) * x + at(effect, 0)
    stretch_v = at(effect_look, 1) * y + at(effect, 1)
    field = _sample(textures, clip, 3, stretch_u, stretch_v)
    cover = at(effect, 3) * (0.5 + (field - at(effect, 2)) / at(effect_look, 8)).clamp(0, 1)
    mask, where, width = (at(effect_look, i) for i in (5, 6, 7))
    band = ((width - (x - where).abs()) / 0.1).clamp(0, 1)
    flame = band * ((y - 0.1 + 0.5 * (x - where).abs() / width) / 0.5).clamp(0, 1)
    cover = cover * torch.where(mask > 1.5, flame, torch.where(mask > 0.5, band, 1.0))
    red, green, blue = (
        c + cover * (at(effect_look, 2 + i) - c) for i, c in enumerate((red, green, blue))
    )

    for ring in range(rings.shape[1]):
        r = rings[:, ring]
        away = torch.sqrt((x - at(r, 0)) ** 2 + 2 * (y - at(r, 1)) ** 2 + 1e-9)
        glow = at(r, 3) * torch.exp(-(((away - at(r, 2)) / 0.03) ** 2))
        red, green, blue = (c + 0.6 * glow for c in (red, green, blue))

    gain, warmth, white = at(light, 0), at(light, 1), at(light, 2)
    edge = 1 - at(grade, 4) * 0.5 * (sx * sx + sy * sy)
    colours = (red * (1 + warmth), green, blue * (1 - warmth))
    levels = [(0.5 + at(grade, 3) * (c * gain * edge - 0.5)) + white for c in colours]
    return torch.stack(levels, 1)


def degrade(picture: Tensor, grade: Tensor, table: Tensor, first: Tensor) -> Tensor:
    """Pictures in uint8 with blur and noise of a camera and the quantisation of a video coder.

    `first` [F] is the offset of each picture's noise in `table`.
    """
    noise, blur, quality = grade[:, 0], grade[:, 1], grade[:, 2]

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    soft = torch.nn.functional.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    picture = torch.lerp(picture, soft, each(blur))
    pixel = torch.arange(SIZE * SIZE * 3, device=picture.device, dtype=torch.int32)
    picture = picture + each(noise) * table[first[:, None] + pixel].view_as(picture)
    basis = _cosine_basis(picture.device)  # [64, 64]
    blocks = picture.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)
    waves = blocks.flatten(-2) @ basis.T  # [F, 3, h, w, 64]
    order = torch.arange(8, device=picture.device)
    sums = (order[:, None] + order).flatten()
    step = (quality[:, None] * (0.3 + 0.35 * sums)).clamp_min(1e-4)[:, None, None, None]
    waves = torch.round(waves / step) * step
    blocks = (waves @ basis).unflatten(-1, (8, 8))
    picture = blocks.transpose(-3, -2).flatten(-2).flatten(-3, -2)
    return (picture.clamp(0, 1) * 255).round().to(torch.uint8)


def _cosine_basis(device: torch.device) -> Tensor:
    """The matrix [64, 64] of the orthonormal cosine transform of blocks of 8 x 8."""
    k, n = torch.arange(8.0, device=device)[:, None], torch.arange(8.0, device=device)[None]
    basis = torch.cos(math.pi * (n + 0.5) * k / 8) * 0.5
    basis[0] *= math.sqrt(0.5)
    return torch.kron(basis, basis)
