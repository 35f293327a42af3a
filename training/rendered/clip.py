"""One rendered clip as a `training.scene.Scene`, so that drawn and rendered clips train alike."""

# n frames at 25 fps, K sprites, E hits, A latent frames, S pixels a side

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from training import scene, text
from training.materials import (
    MATERIALS,
    NUM_MODES,
    Voice,
    draw_voice,
    hit_level,
)
from training.rendered import camera, contacts, simulate
from training.rendered.backdrop import add_backdrop, place_backdrop
from training.rendered.chain import CHAIN
from training.rendered.daily import DAILY
from training.rendered.driven import DRIVEN
from training.rendered.loose import LOOSE
from training.rendered.moving import MOVING, measure_hum
from training.rendered.sheets import SHEETS
from training.rendered.wet import WET
from training.rendered.world import HIDDEN_HEIGHT, TIME_STEP, Hum, World

MEASURED = LOOSE | DRIVEN  # what held-out clips show, since figures are of these
KINDS = MEASURED | DAILY | MOVING | WET | CHAIN | SHEETS
ATTEMPTS = 12
LEAST_SEEN = 0.85
DISTRACTOR_SHARE = 0.3  # of the clips show a thing that moves and touches nothing
NUM_HITS = (2, 48)  # of a clip: fewer say too little, more are a blur
TOGETHER_SECONDS = 0.03  # impacts this near are heard as one
LEAST_SEEN_FORCE = 0.07  # softer impacts cannot be told from rubbing and chatter
RUBS_NEAR_SECONDS = 0.06
RUBS_HEARD = 0.02  # level of rubbing
BLURRED_SHARE = 0.5  # of the varied clips show motion blur
_HIT_SHAPES: dict[str, tuple[int, ...]] = dict.fromkeys(("hz", "rates", "gains"), (NUM_MODES,))
_HIT_SHAPES |= {
    "screen": (2,),
    "seconds": (),
    "force": (),
    "material": (),
    "size": (),
    "level": (),
    "noise": (),
    "noise_hz": (),
    "noise_rate": (),
    "chirp": (),
    "attack": (),
    "offset": (),
}
SHUTTER_SECONDS = (0.01, 0.04)  # for which a frame of such a clip is exposed
EXPOSURES = 5  # moments that such a frame is the mean of
# Draws frames, as `training.rendered.draw.draw_frames` does.
Drawer = Callable[
    [simulate.Motion, camera.Camera, np.random.Generator, int, np.ndarray], np.ndarray
]


@dataclass(frozen=True)
class Event:
    """Impacts that are heard as one.

    Attributes:
        seconds: when.
        force: of the strongest, 0.02 .. 1.
        material: of what rings most.
        scored: whether a listener must hear it and a viewer can see it.
    """

    seconds: float
    force: float
    material: str
    scored: bool


@dataclass
class RenderedClip:
    """A clip and its labels.

    Attributes:
        scene: numbers as for a drawn clip; its sprites are the moving bodies, for dense labels.
        pictures: uint8 RGB [n, S, S, 3]; None where it was not drawn.
        events: in order of time.
        kind: which of `KINDS`.
    """

    scene: scene.Scene
    pictures: np.ndarray | None
    events: list[Event]
    kind: str


def make_clip(
    seed: tuple[int, ...],
    seconds: float,
    *,
    kind: str | None = None,
    shares: Mapping[str, float] | None = None,
    unseen: bool = False,
    varied: bool = False,
    size: int | None = 224,
    draw: Drawer | None = None,
) -> RenderedClip:
    """Return the clip of a seed: the same numbers on every machine, drawn alike on every renderer.

    Args:
        seed: of everything.
        seconds: length, a multiple of 1 / 25.
        kind: which of `KINDS`; `shares` decide where absent.
        shares: how often each of `KINDS` is tried, in sum 1; `MEASURED` alone, all alike, where
            absent.
        unseen: whether shapes and textures are those that training never uses.
        varied: whether motion is blurred in some clips and things stand behind the scene in most,
            as in training; the events stay the same.
        size: pixels a side; None for the numbers alone.
        draw: another renderer; MuJoCo draws where absent.

    Raises:
        RuntimeError: no attempt gave a scene that can be seen and heard.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*seed, attempt))
        chosen = kind or _choose_kind(rng, shares)
        extras = np.random.default_rng((*seed, attempt, 1)) if varied else None
        try:
            clip = _try_clip(rng, seconds, chosen, unseen, extras, size, draw)
        except (ValueError, FloatingPointError):  # nothing hits, or MuJoCo refuses the mesh
            continue
        if clip is not None:
            return clip
    raise RuntimeError(f"no scene of seed {seed} can be seen and heard in {ATTEMPTS} attempts")


def _choose_kind(rng: np.random.Generator, shares: Mapping[str, float] | None) -> str:
    if shares is None:
        return str(rng.choice(list(MEASURED)))
    return str(rng.choice(list(shares), p=list(shares.values())))


def _try_clip(
    rng: np.random.Generator,
    seconds: float,
    kind: str,
    unseen: bool,
    extras: np.random.Generator | None,
    size: int | None,
    draw: Drawer | None,
) -> RenderedClip | None:
    world = World(rng, unseen=unseen)
    world.add_floor()
    KINDS[kind](world, seconds)
    if rng.random() < DISTRACTOR_SHARE:
        world.add_distractor()
    exposed, behind = 0.0, list[str]()
    if extras is not None:
        exposed = extras.uniform(*SHUTTER_SECONDS) if extras.random() < BLURRED_SHARE else 0.0
        behind = add_backdrop(world, extras) if size is not None else []
    field_of_view = world.uniform(24, 62)
    moments = scene.draw_frame_times(rng, round(seconds * scene.FPS))
    # What is shown at the end may have been taken after it.
    moments = np.minimum(moments, seconds - TIME_STEP)
    shown, frames, exposures = _expose(moments, exposed, seconds)
    motion = simulate.simulate(world, world.xml(field_of_view), seconds, shown)
    blurred = motion.positions[exposures]
    motion = replace(
        motion, moments=moments, positions=motion.positions[frames], places=motion.places[frames]
    )
    impacts = contacts.find_impacts(world, motion)
    view = camera.place_camera(world, motion, impacts, field_of_view, scene.FPS)
    if view.seen < (0.6 if kind == "pour" else LEAST_SEEN):
        return None
    sounds = _Sounds(world, motion, view)
    for impact in impacts:
        sounds.add(impact)
    least, most = (0, NUM_HITS[1]) if world.hums else NUM_HITS
    if not least <= len(sounds.groups) <= most:
        return None
    pictures = None
    if size is not None:
        if draw is None:
            from training.rendered.draw import draw_frames

            draw = draw_frames
        if extras is not None:
            place_backdrop(motion.model, behind, view, extras)
        pictures = draw(motion, view, rng, size, blurred)
    return RenderedClip(sounds.scene(seconds), pictures, sounds.events(), kind)


def list_unscored(clip: RenderedClip) -> list[float]:
    """Return when, in seconds, a sound of a clip may or may not begin.

    That is at events that cannot be seen or that a louder one masks, and while something rubs.
    """
    rest = [event.seconds for event in clip.events if not event.scored]
    rubbing = clip.scene.layers["level"].max(0) > RUBS_HEARD
    return rest + [frame / scene.LATENT_RATE for frame in rubbing.nonzero()[0][::5].tolist()]


def _expose(
    moments: np.ndarray, exposed: float, seconds: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return when a clip is looked at, and which of these times belong to a frame.

    Args:
        moments: of the frames, [n].
        exposed: how long each is exposed, 0 for a moment.
        seconds: length of the clip.

    Returns:
        All times, rising; the index of each frame's own time, [n]; those of its exposures, [n, X].
    """
    spread = np.linspace(-0.5, 0.5, EXPOSURES) if exposed else np.zeros(1)
    all_times = np.clip(moments[:, None] + exposed * spread, 0, seconds - TIME_STEP)
    shown, index = np.unique(np.concatenate((moments, all_times.ravel())), return_inverse=True)
    return shown, index[: len(moments)], index[len(moments) :].reshape(len(moments), -1)


@dataclass(frozen=True)
class _Heard:
    """One impact that is heard: when, how hard, what of, and whether it is seen."""

    seconds: float
    force: float
    material: str
    seen: bool


class _Sounds:
    """Collects what a clip sounds like.

    What happens outside the picture makes no sound; what is hidden for a moment does.
    """

    def __init__(self, world: World, motion: simulate.Motion, view: camera.Camera) -> None:
        self._world, self._motion, self._view = world, motion, view
        self._rubs = contacts.rub_levels(world, motion)  # [2, A]
        self._voices: dict[int, Voice] = {}
        self._rows: list[dict[str, object]] = []
        self.groups: list[list[_Heard]] = []

    def add(self, impact: contacts.Impact) -> None:
        """Add an impact, unless it is too soft or outside the picture."""
        world, motion = self._world, self._motion
        force = contacts.force_of(world, motion, impact, self._view.scale / 1.4)
        if not force or (force < LEAST_SEEN_FORCE and self._rubs_near(impact.seconds)):
            return
        seen, screen = camera.sees(motion, self._view, impact, scene.FPS)
        if np.abs(screen).max() >= 0.97:
            return
        parts = [(contacts.part_of(world, motion, body), body) for body in impact.bodies]
        (main, first), (other, second) = sorted(parts, key=lambda item: -item[0].ring)
        if main.ring == 0:
            return
        heard = _Heard(impact.seconds, force, main.material, seen)
        if self.groups and heard.seconds - self.groups[-1][0].seconds < TOGETHER_SECONDS:
            self.groups[-1].append(heard)
        else:
            self.groups.append([heard])
        share = 0.7 * min(other.ring / main.ring, 1.0)
        for part, body, gain in ((main, first, 1.0), (other, second, share)):
            if gain >= 0.05 and len(self._rows) < scene.MAX_HITS:
                self._rows.append(
                    self._row(impact, force, part.size, part.material, body, gain, screen)
                )

    def _rubs_near(self, seconds: float) -> bool:
        frame, reach = (
            int(seconds * scene.LATENT_RATE),
            round(RUBS_NEAR_SECONDS * scene.LATENT_RATE),
        )
        near = self._rubs[:, max(frame - reach, 0) : frame + reach + 1]
        return bool((near > RUBS_HEARD).any())

    def _row(
        self,
        impact: contacts.Impact,
        force: float,
        size: float,
        material: str,
        body: int,
        gain: float,
        screen: np.ndarray,
    ) -> dict[str, object]:
        rng = self._world.rng
        if body not in self._voices:
            self._voices[body] = draw_voice(rng, MATERIALS.index(material), size)
        voice = self._voices[body]
        row = {"screen": screen, "seconds": impact.seconds, "force": force}
        row |= scene.describe_hit(voice, force, rng)
        return row | {"level": hit_level(force) * gain}

    def _hum_level(self, hum: Hum, count: int) -> np.ndarray:
        """Return the level of a hum at 50 Hz, [A]."""
        motion = self._motion
        bodies = [motion.model.body(body).id for body in hum.bodies]
        places = motion.places[:, bodies]  # [n, bodies, 3]
        # Two frames of a slow camera are one moment.
        moments, first = np.unique(motion.moments, return_index=True)
        speeds = np.linalg.norm(np.gradient(places[first], moments, axis=0), axis=-1).mean(1)
        grid = (np.arange(count) + 0.5) / scene.LATENT_RATE
        return measure_hum(hum, np.interp(grid, moments, speeds))

    def events(self) -> list[Event]:
        """Return what is heard, impacts within 30 ms as one."""
        tops = [max(group, key=lambda heard: heard.force) for group in self.groups]
        times = [
            next(h.seconds for h in group if h.force >= 0.4 * top.force)
            for group, top in zip(self.groups, tops, strict=True)
        ]
        events = []
        for index, top in enumerate(tops):
            # A soft hit close to a harder one is not told apart by ear.
            masked = any(
                other != index
                and (
                    (top.force < 0.33 * tops[other].force and 0 <= times[index] - at < 0.12)
                    or (top.force < 0.6 * tops[other].force and abs(times[index] - at) < 0.07)
                )
                for other, at in enumerate(times)
            )
            scored = top.seen and not masked and top.force >= LEAST_SEEN_FORCE
            events.append(Event(times[index], top.force, top.material, scored))
        return events

    def scene(self, seconds: float) -> scene.Scene:
        """Return the numbers of the clip."""
        rng, motion, view = self._world.rng, self._motion, self._view
        hits = {
            name: np.array([row[name] for row in self._rows], np.float32).reshape(-1, *shape)
            for name, shape in _HIT_SHAPES.items()
        }
        count = round(seconds * scene.LATENT_RATE)
        kinds, levels = np.full(scene.MAX_LAYERS, -1), np.zeros((scene.MAX_LAYERS, count))
        pitch = np.array((rng.uniform(0.4, 1), rng.uniform(0, 0.2), 0))
        for index, level in enumerate(self._rubs):
            if level.max() > RUBS_HEARD:
                kinds[index], levels[index] = scene.LAYERS.index("friction"), level[:count]
        for hum in self._world.hums:
            kinds[2], levels[2] = scene.LAYERS.index(hum.sound), self._hum_level(hum, count)
            pitch[2] = rng.uniform(0, 1)
        layers = {
            "kind": kinds,
            "level": levels.astype(np.float32),
            "pitch": pitch.astype(np.float32),
            "offset": rng.integers(2**21, size=scene.MAX_LAYERS),
        }
        frames, still = _empty_drawing(len(view.views))
        humming = {body for hum in self._world.hums for body in hum.bodies}
        moving = [
            body
            for body in range(1, motion.model.nbody)
            if (part := self._world.parts.get(motion.name_of(body)))
            and part.moves
            and (part.ring or motion.name_of(body) in humming)
        ][: scene.MAX_SPRITES]
        for moment in range(len(view.views)):
            x, y, depth = view.project(motion.places[moment][moving], moment).T
            hidden = motion.places[moment][moving][:, 2] > HIDDEN_HEIGHT / 2
            frames["sprites"][moment, : len(moving), 0] = np.clip(x, -2, 2)
            frames["sprites"][moment, : len(moving), 1] = np.clip(y, -2, 2)
            half = 0.1 / np.maximum(depth, 0.1) / view.tangent
            frames["sprites"][moment, : len(moving), 2:4] = half[:, None]
            frames["sprites"][moment, : len(moving), 5] = ~hidden & (depth > 0)
        still["sounding"][: len(moving)] = 1
        reverb = np.array((rng.uniform(0.08, 0.3), 0.0))
        if rng.random() < 0.4:
            reverb[1] = rng.uniform(0.01, 0.05)
        prompt = text.describe(rng, self._world.actions, self._world.textures)
        return scene.Scene(frames, still, hits, layers, reverb.astype(np.float32), prompt, seconds)


def _empty_drawing(count: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return a drawn scene's arrays for a clip whose pictures are made elsewhere."""
    camera_track = np.zeros((count, len(scene.CAMERA)), np.float32)
    camera_track[:, 2] = 1  # zoom
    frames = {
        "sprites": np.zeros((count, scene.MAX_SPRITES, len(scene.SPRITE)), np.float32),
        "camera": camera_track,
        "effect": np.zeros((count, len(scene.EFFECT)), np.float32),
        "rings": np.zeros((count, 2, 4), np.float32),
        "light": np.zeros((count, 3), np.float32),
    }
    still = {
        "looks": np.zeros((scene.MAX_SPRITES, len(scene.LOOK)), np.float32),
        "effect_look": np.zeros(len(scene.EFFECT_LOOK), np.float32),
        "grade": np.zeros(len(scene.GRADE), np.float32),
        "backdrop": np.zeros(len(scene.BACKDROP), np.float32),
        "sounding": np.zeros(scene.MAX_SPRITES, np.float32),
    }
    return frames, still
