"""Other takes of rendered clips: the same events from another lens, camera, editing and sound.

To simulate a clip costs a thousand times what a new take of it costs, and a model that sees the
same pictures often knows them by heart. Takes are made on the training's device. Their labels move
with the pictures.
"""

# B clips, n frames, E hits of the whole batch, H = W pixels, K sprites

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training import labels
from training.clips import Batch
from training.render import choose_frames_at_once, degrade
from training.revoice import revoice
from training.scene import FPS, LAYERS, SEEN_AFTER
from training.sound import noise_table

_FRICTION = LAYERS.index("friction")
PLAIN_SHARE = 0.2  # of the takes show the clip as it was rendered
CUT_SHARE, SPLICE_SHARE = 0.2, 0.2  # of the takes: to another view of a scene, to another scene
_BLUR_SHARES = (0.8, 0.1, 0.1)  # of the takes: as they are, blurred, sharpened
SMALLEST_VIEW = 0.55  # of the picture's side
_MARGIN = 0.92  # hits stay within this share of the view
_BEGINS_AFTER = 0.04  # s after a cut in which a hit cannot be seen


@dataclass(frozen=True)
class _View:
    """A part of the picture, and the frames that show it.

    Attributes:
        first, last: frames, the last one excluded.
        centre: x and y in -1 .. 1.
        side: of the part, relative to the whole.
        mirrored: whether left is right.
    """

    first: int
    last: int
    centre: np.ndarray
    side: float
    mirrored: bool


def _between(rng: np.random.Generator, low: float, high: float, share: float) -> float:
    """A number between two limits in this share of all cases, otherwise 0."""
    value = rng.uniform(low, high)
    return float(value) if rng.random() < share else 0.0


def _choose_view(rng: np.random.Generator, first: int, last: int, spots: np.ndarray) -> _View:
    """A part of the picture that contains all spots [E, 2]."""
    side = float(rng.choice((1.0, rng.uniform(SMALLEST_VIEW, 1.0)), p=(0.3, 0.7)))
    low, high = (spots.min(0), spots.max(0)) if len(spots) else (np.zeros(2), np.zeros(2))
    side = min(1.0, max(side, float((high - low).max()) / 2 / _MARGIN))
    room, reach = 1 - side, _MARGIN * side
    lowest = np.clip(high - reach, -room, room)
    highest = np.clip(low + reach, -room, room)
    centre = rng.uniform(np.minimum(lowest, highest), np.maximum(lowest, highest))
    return _View(first, last, centre, side, bool(rng.random() < 0.5))


def _choose_views(
    rng: np.random.Generator, count: int, frames: np.ndarray, spots: np.ndarray
) -> list[_View]:
    """One view, or two with a cut between them.

    Args:
        rng: of the take.
        count: frames of the clip.
        frames: [E], when its hits are.
        spots: [E, 2], where.
    """
    if rng.random() >= CUT_SHARE or count < 16:
        return [_choose_view(rng, 0, count, spots)]
    cut = int(rng.integers(6, count - 6))
    before = frames < cut
    return [
        _choose_view(rng, 0, cut, spots[before]),
        _choose_view(rng, cut, count, spots[~before]),
    ]


def _choose_colours(rng: np.random.Generator) -> np.ndarray:
    """A matrix [3, 3] of hue, saturation and the gain of each colour."""
    angle = rng.normal(0, 0.08)
    # A rotation about the line of greys, which stay.
    across = np.roll(np.eye(3), 1, 1) - np.roll(np.eye(3), -1, 1)
    turned = np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) / 3 + np.sin(angle) / 3**0.5 * across
    saturated = turned + rng.uniform(0, 0.6) ** 2 * (1 / 3 - turned)
    gain = np.exp(rng.normal(0, 0.1, 3) + rng.normal(0, 0.15))
    return gain[:, None] * saturated


@dataclass(frozen=True)
class _Lens:
    """How one take is exposed; numbers as `_expose` uses them.

    Attributes:
        bend: of straight lines; below 0 like a barrel.
        shake: [n, 2], how far the camera is off, relative to half the picture.
        grade: noise, blur and quantisation, [3].
        colours: what red, green and blue become, [3, 3].
        drift: of the exposure over the clip.
        contrast, gamma: of the light.
        blur: how far the whole picture is blurred, up to 1; below 0 its edges are sharpened.
        haze: how far what is out of focus is blurred, 0 .. 1.
        near: 1 where near things are below in the picture, otherwise -1.
        focus: height in the picture that is sharp, -1 .. 1.
        grain: offset of the noise.
    """

    bend: float
    shake: np.ndarray
    grade: tuple[float, float, float]
    colours: np.ndarray
    drift: float
    contrast: float
    gamma: float
    blur: float
    haze: float
    near: float
    focus: float
    grain: int


def _choose_lens(rng: np.random.Generator, count: int, spots: np.ndarray) -> _Lens:
    """A lens for a clip of so many frames that is sharp where hits [E, 2] are."""
    rates, phases = rng.uniform(0.3, 3.5, (4, 2)), rng.uniform(0, 6.3, (4, 2))
    waves = np.sin(2 * np.pi * rates * (np.arange(count) / FPS)[:, None, None] + phases).mean(1)
    return _Lens(
        bend=rng.normal(0, 0.04),
        shake=waves * _between(rng, 0.005, 0.025, 0.5),
        grade=(
            abs(rng.normal(0, 0.012)),
            _between(rng, 0.2, 1, 0.4),
            _between(rng, 0.02, 0.2, 0.6),
        ),
        colours=_choose_colours(rng),
        drift=_between(rng, -0.25, 0.25, 0.2),
        contrast=rng.uniform(0.7, 1.25),
        gamma=rng.uniform(0.7, 1.35),
        blur=float(rng.choice((0, rng.uniform(0.2, 1), -rng.uniform(0.3, 1.5)), p=_BLUR_SHARES)),
        haze=_between(rng, 0.5, 1.0, 0.25),
        near=float(rng.choice((1.0, -1.0), p=(0.8, 0.2))),
        focus=float(spots[:, 1].mean()) if len(spots) else 0.0,
        grain=int(rng.integers(2**20)),
    )


def film(batch: Batch, rng: np.random.Generator) -> Batch:
    """Another take of each clip.

    The view, its side, lens, focus, exposure, colours, noise and compression are chosen by chance;
    in some takes a cut leads to another view of the scene. The times of the events stay.

    Args:
        batch: of rendered clips, whose `drawn` has the pictures.
        rng: of the takes.
    """
    assert batch.drawn is not None
    device, count = batch.drawn.device, batch.drawn.shape[1]
    owner = batch.owner.cpu().numpy()
    frames, spots = (batch.hits[name].cpu().numpy() for name in ("seconds", "screen"))
    frames, turned = frames * FPS, spots.copy()
    places = np.tile(np.array((0, 0, 1, 1), np.float32), (len(batch), count, 1))
    lenses, plain = [], rng.random(len(batch)) < PLAIN_SHARE
    for clip in range(len(batch)):
        mine = np.flatnonzero(owner == clip)
        lenses.append(_choose_lens(rng, count, spots[mine]))
        if plain[clip]:
            continue
        for view in _choose_views(rng, count, frames[mine], spots[mine]):
            sign = -1.0 if view.mirrored else 1.0
            places[clip, view.first : view.last] = (*view.centre, view.side, sign)
            inside = mine[(frames[mine] >= view.first) & (frames[mine] < view.last)]
            turned[inside] = (spots[inside] - view.centre) / view.side * (sign, 1.0)
    moved = torch.from_numpy(places).to(device)
    # All clips, so that the tensors of all batches have the same sizes.
    pictures = _expose(batch.drawn, moved, lenses)
    untouched = torch.from_numpy(plain).to(device)
    pictures[untouched] = batch.drawn[untouched]
    sprites = batch.frames["sprites"].clone()
    at = moved[:, :, None]
    sprites[..., 0] = (at[..., 3] * (sprites[..., 0] - at[..., 0]) / at[..., 2]).clamp(-2, 2)
    sprites[..., 1] = ((sprites[..., 1] - at[..., 1]) / at[..., 2]).clamp(-2, 2)
    sprites[..., 2:4] /= at[..., 2:3]
    hits = batch.hits | {"screen": torch.from_numpy(turned).to(batch.hits["screen"])}
    return replace(batch, drawn=pictures, hits=hits, frames=batch.frames | {"sprites": sprites})


def _expose(pictures: Tensor, places: Tensor, lenses: list[_Lens]) -> Tensor:
    """The frames of takes, uint8 [B, n, 3, H, W].

    Args:
        pictures: uint8 [B, n, 3, H, W].
        places: centre in x and y, side and mirror of the view in each frame, [B, n, 4].
        lenses: one a clip.
    """
    device, size, count = pictures.device, pictures.shape[-1], pictures.shape[1]
    line = (torch.arange(size, device=device) + 0.5) / size * 2 - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    plain, round_ = torch.stack((x, y), -1), (x * x + y * y - 1)[..., None]  # [H, W, ...]

    def gather(name: str) -> Tensor:
        """The numbers of the lenses for each frame, [B * n, ...]."""
        values = np.array([getattr(lens, name) for lens in lenses], np.float32)
        return torch.from_numpy(values).to(device).repeat_interleave(count, 0)

    def gather_wide(name: str) -> Tensor:
        return gather(name)[:, None, None, None]

    shake = np.concatenate([lens.shake for lens in lenses]).astype(np.float32)
    centre = places[..., :2].flatten(0, 1) + torch.from_numpy(shake).to(device)
    side, sign = places[..., 2].flatten(), places[..., 3].flatten()
    scale = torch.stack((side * sign, side), -1)[:, None, None]  # [B * n, 1, 1, 2]
    bend, grade, colours = gather_wide("bend"), gather("grade"), gather("colours")
    over = torch.linspace(-1, 1, count, device=device).repeat(len(lenses))[:, None, None, None]
    drift = 1 + gather_wide("drift") * over
    contrast, gamma, blur = (gather_wide(name) for name in ("contrast", "gamma", "blur"))
    near, focus, haze = (gather_wide(name) for name in ("near", "focus", "haze"))
    table = noise_table(device)
    grain = gather("grain").long() + torch.arange(count, device=device).repeat(len(lenses))
    first = (grain * 7919 % (len(table) - 3 * size * size)).int()
    flat, parts = pictures.flatten(0, 1), []
    at_once = choose_frames_at_once(device)
    for start in range(0, len(flat), at_once):
        part = slice(start, start + at_once)
        grid = plain * (1 + bend[part] * round_) * scale[part] + centre[part, None, None]
        picture = flat[part].float() / 255
        picture = F.grid_sample(picture, grid, "bilinear", "reflection", align_corners=False)
        far = (1.5 * near[part] * (focus[part] - y) - 0.3).clamp(0, 1)  # [F, 1, H, W]
        soft = F.interpolate(F.avg_pool2d(picture, 4), size, mode="bilinear")
        # What is out of focus is at least as blurred as what is sharp, and passes into it.
        picture = torch.lerp(picture, soft, blur[part] + (1 - blur[part]) * haze[part] * far)
        picture = torch.einsum("fij,fjhw->fihw", colours[part], picture)
        picture = picture.clamp(1e-4, 1.5) ** gamma[part] * drift[part]
        picture = 0.5 + contrast[part] * (picture - 0.5)
        parts.append(degrade(picture, grade[part], table, first[part]))
    return torch.cat(parts).unflatten(0, (-1, count))


def splice(batch: Batch, rng: np.random.Generator) -> Batch:
    """Some clips go on, after a cut, as other clips of the batch; the cut itself is not heard.

    Args:
        batch: of rendered clips, whose `drawn` has the pictures. Clips with other continuous
            sounds than rubbing are left alone.
        rng: of the cuts.
    """
    assert batch.drawn is not None
    chosen = [clip for clip in range(len(batch)) if rng.random() < SPLICE_SHARE]
    kinds = batch.layers["kind"]
    hums = ((kinds >= 0) & (kinds != _FRICTION)).any(1).cpu()
    chosen = [clip for clip in chosen if not hums[clip]]  # slots of one kind can be joined
    count = batch.drawn.shape[1]
    if len(chosen) < 2 or count < 32:
        return batch
    device, cut = batch.drawn.device, int(rng.integers(12, count - 12))
    source = torch.arange(len(batch), device=device)
    here = torch.tensor(chosen, device=device)
    source[here] = here.roll(-1)
    target = torch.empty_like(source)
    target[source] = torch.arange(len(batch), device=device)

    def join(values: Tensor, at: int) -> Tensor:
        return torch.cat((values[:, :at], values[source, at:]), 1)

    frames = {name: join(value, cut) for name, value in batch.frames.items()}
    still = dict(batch.still)
    still["sounding"] = torch.maximum(still["sounding"], still["sounding"][source])
    seconds, moment = batch.hits["seconds"], cut / FPS
    later, spliced = seconds >= moment, source[batch.owner] != batch.owner
    unseen = (seconds > moment - SEEN_AFTER / FPS) & (seconds < moment + _BEGINS_AFTER)
    kept = ~(spliced & unseen)
    owner = torch.where(later, target[batch.owner], batch.owner)
    layers = dict(batch.layers)
    kind, level = layers["kind"], layers["level"]
    layers["kind"] = torch.where(kind >= 0, kind, kind[source])
    layers["level"] = torch.cat((level[:, :, : 2 * cut], level[source][:, :, 2 * cut :]), 2)
    prompts = list(batch.prompts)
    for clip, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True):
        first, second = batch.prompts[clip], batch.prompts[other]
        both = ", ".join(dict.fromkeys(text for text in (first, second) if text))
        prompts[clip] = str(rng.choice((first, second, both), p=(0.4, 0.3, 0.3)))
    return replace(
        batch,
        frames=frames,
        still=still,
        hits={name: value[kept] for name, value in batch.hits.items()},
        owner=owner[kept],
        layers=layers,
        prompts=prompts,
        drawn=join(batch.drawn, cut),
    )


def sound_anew(batch: Batch, rng: np.random.Generator) -> Batch:
    """The same events and levels of slightly other things: pitches, decays, modes and noise."""
    owner, hits = batch.owner, dict(batch.hits)

    def factors(low: float, high: float, *shape: int) -> Tensor:
        drawn = np.exp(rng.uniform(np.log(low), np.log(high), (len(batch), *shape)))
        return torch.from_numpy(drawn).float().to(owner.device)[owner]

    hits["hz"] = hits["hz"] * factors(0.94, 1.06, 1)
    hits["rates"] = hits["rates"] * factors(0.85, 1.18, 1)
    hits["gains"] = hits["gains"] * factors(0.75, 1.33, hits["gains"].shape[1])
    offset = rng.integers(2**20, size=len(owner))
    hits["offset"] = torch.from_numpy(offset).to(hits["offset"])
    return replace(batch, hits=hits)


def take_again(batch: Batch, frames: int, rng: np.random.Generator) -> Batch:
    """A part of a batch of rendered clips as other takes.

    Args:
        batch: of clips of at least as many frames.
        frames: length of the part, at 25 fps.
        rng: of the takes.
    """
    first = int(rng.integers(batch.frames["light"].shape[1] - frames + 1))
    part = labels.crop(batch, first, frames)
    return sound_anew(revoice(splice(film(part, rng), rng), rng), rng)
