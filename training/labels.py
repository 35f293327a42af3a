"""Targets for the visual encoders: contacts, their force and place, and continuous sounds."""

# B clips, n frames, G segments, F = 8 tubelets of 2 frames, P = 14 x 14 patches, K sprites

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from foley.configs import SYNC_SEGMENT_FRAMES, SYNC_SEGMENT_STRIDE
from training.clips import Batch
from training.scene import FPS, LATENT_RATE, LAYERS

BINS = 4  # of 20 ms in the 80 ms of a token
GRID = 14
NUM_KINDS = 8  # seven materials and the bang of light
_FRICTION = LAYERS.index("friction")
_MIN_RUBBING = 0.2  # level of the friction sound after the start of a slide


def group_by_tubelet(values: Tensor) -> Tensor:
    """The values for each token of each segment, [B * G, 8, ...].

    Args:
        values: for each tubelet, [B, n / 2, ...].
    """
    windows = values.unfold(1, SYNC_SEGMENT_FRAMES // 2, SYNC_SEGMENT_STRIDE // 2)  # [B, G, .., 8]
    return windows.movedim(-1, 2).flatten(0, 1)


def onset_curve(batch: Batch, step_seconds: float, count: int, width_seconds: float) -> Tensor:
    """Triangles around the hits, and the hits' force, [B, 2, count].

    Args:
        batch: the clips.
        step_seconds: width of a cell of the time grid.
        count: number of cells.
        width_seconds: half of a triangle's base.
    """
    device = batch.reverb.device
    centres = (torch.arange(count, device=device) + 0.5) * step_seconds
    away = (batch.hits["seconds"][:, None] - centres).abs()
    triangle = (1 - away / width_seconds).clamp_min(0)  # [E, count]
    curve = torch.zeros(len(batch), 2, count, device=device)
    index = batch.owner[:, None].expand_as(triangle)
    curve[:, 0].scatter_reduce_(0, index, triangle, "amax")
    force = batch.hits["force"][:, None] * (triangle > 0)
    curve[:, 1].scatter_reduce_(0, index, force, "amax")
    return curve


def layer_levels(batch: Batch, count: int) -> Tensor:
    """The level of each continuous sound over the clip, [B, 7, count]."""
    kinds = F.one_hot(batch.layers["kind"] + 1, len(LAYERS) + 1)[..., 1:].float()  # [B, 3, 7]
    levels = torch.einsum("bka,bkl->bla", batch.layers["level"], kinds)
    return F.adaptive_avg_pool1d(levels, count)


def material_share(batch: Batch) -> Tensor:
    """1 for each kind of hit that a clip contains, otherwise 0, [B, 8]."""
    share = torch.zeros(len(batch), NUM_KINDS, device=batch.reverb.device)
    share[batch.owner, batch.hits["material"].long()] = 1.0
    return share


def screen_places(batch: Batch) -> Tensor:
    """The places of the sprites on the screen, [B, n, K, 2] in -1 to 1."""
    camera, sprites = batch.frames["camera"], batch.frames["sprites"]
    away = sprites[..., :2] - camera[:, :, None, :2]
    cos, sin = camera[:, :, None, 3].cos(), camera[:, :, None, 3].sin()
    x = cos * away[..., 0] + sin * away[..., 1]
    y = -sin * away[..., 0] + cos * away[..., 1]
    return torch.stack((x, y), -1) * camera[:, :, None, 2:3]


def dense_maps(batch: Batch) -> Tensor:
    """Contact, presence, and velocity in x and y for each tubelet and patch, [B, n / 2, P, 4]."""
    device = batch.reverb.device
    line = (torch.arange(GRID, device=device) + 0.5) / GRID * 2 - 1
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).flatten(0, 1)  # [P, 2]
    places = screen_places(batch)
    tubelets = places.unflatten(1, (-1, 2))
    centre, speed = tubelets.mean(2), (tubelets[:, :, 1] - tubelets[:, :, 0]) * FPS
    half = batch.frames["sprites"][:, ::2, :, 2:4].mean(-1).clamp(0.05, 0.3)
    away = (centre[:, :, :, None] - grid).square().sum(-1)  # [B, n / 2, K, P]
    sounding = batch.still["sounding"][:, None, :, None] * batch.frames["sprites"][:, ::2, :, 5:6]
    presence = sounding * torch.exp(-0.5 * away / half[..., None] ** 2)
    share = presence / presence.sum(2, keepdim=True).clamp_min(1e-3)
    velocity = torch.einsum("bnkp,bnkd->bnpd", share * presence, speed.clamp(-4, 4)) / 2

    count = places.shape[1] // 2
    moments = (torch.arange(count, device=device) + 0.5) * 2 / FPS
    near = (1 - (batch.hits["seconds"][:, None] - moments).abs() / 0.06).clamp(0, 1)  # [E, n / 2]
    spot = torch.exp(-0.5 * (batch.hits["screen"][:, None] - grid).square().sum(-1) / 0.1**2)
    contact = torch.zeros(len(batch), count, GRID * GRID, device=device)
    contact.index_add_(0, batch.owner, near[:, :, None] * spot[:, None])
    parts = (contact.clamp(max=1)[..., None], presence.amax(2)[..., None], velocity)
    return torch.cat(parts, -1)


def crop(batch: Batch, first_frame: int, num_frames: int) -> Batch:
    """The part of a batch that begins at a frame. Hits outside it are left out.

    Args:
        batch: the clips.
        first_frame: of the part.
        num_frames: length of the part.
    """
    last = first_frame + num_frames
    start, stop = first_frame / FPS, last / FPS
    inside = (batch.hits["seconds"] >= start) & (batch.hits["seconds"] < stop)
    hits = {name: value[inside] for name, value in batch.hits.items()}
    hits["seconds"] = hits["seconds"] - start
    layers = dict(batch.layers)
    layers["level"] = layers["level"][:, :, 2 * first_frame : 2 * last]
    frames = {name: value[:, first_frame:last] for name, value in batch.frames.items()}
    return Batch(
        frames,
        batch.still,
        hits,
        batch.owner[inside],
        layers,
        batch.reverb,
        batch.prompts,
        num_frames / FPS,
        None if batch.drawn is None else batch.drawn[:, first_frame:last],
    )


def drop_late_hits(batch: Batch, seconds: float) -> Batch:
    """The batch without the hits at or after `seconds`."""
    before = batch.hits["seconds"] < seconds
    hits = {name: value[before] for name, value in batch.hits.items()}
    return replace(batch, hits=hits, owner=batch.owner[before])


def find_shoves(batch: Batch) -> list[list[float]]:
    """The times in seconds at which objects start to slide, for each clip, in order.

    A friction sound starts there, softly or clearly. Half of these times are onsets of the exact
    sound, and none is a contact.
    """
    level = (batch.layers["level"] * (batch.layers["kind"] == _FRICTION)[..., None]).amax(1)
    before, after = F.pad(level, (1, 0))[:, :-1], F.pad(level, (0, 2))[:, 2:]
    begins = (before < _MIN_RUBBING / 4) & (level >= _MIN_RUBBING / 4) & (after >= _MIN_RUBBING)
    begins[:, 0] = False  # the slide may have started before the clip
    found: list[list[float]] = [[] for _ in range(len(batch))]
    for clip, frame in begins.nonzero().tolist():
        found[clip].append((frame + 0.5) / LATENT_RATE)
    return found
