"""A MuJoCo world that is built piece by piece, with what its sound needs to know of each body."""

# Lengths are metres, times seconds, angles degrees where MJCF is written.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import mujoco
import numpy as np

from training.rendered.looks import (
    FLOORS,
    SUBSTANCES,
    TEXTURES,
    UNSEEN_TEXTURES,
    draw_colours,
    draw_texture,
)

TIME_STEP = 0.0005
MATERIALS = tuple(SUBSTANCES)
SHAPES = ("ball", "box", "cylinder", "capsule", "rock", "can", "cup", "dumbbell")
UNSEEN_SHAPES = ("bottle", "toy", "wedge")  # kept for evaluation
HIDDEN_HEIGHT = 60.0  # where bodies wait that are released later

Vector = Sequence[float] | np.ndarray
Control = Callable[[float, mujoco.MjModel, mujoco.MjData], None]


@dataclass(frozen=True)
class Part:
    """What sounds when a body is hit.

    Attributes:
        material: a key of `SUBSTANCES`.
        ring: how much of it sounds, 0 (nothing) to about 1.
        size: 0 (small, high) to 1 (large, low).
        moves: whether the body moves; what is fixed counts as infinitely heavy.
        effective_mass: kg that an impact moves, where it is not the body's own mass.
        linked: whether it hangs on others, which push it too while it hits, so that only the speed
            with which the surfaces meet tells how hard that is.
    """

    material: str
    ring: float
    size: float
    moves: bool
    effective_mass: float | None = None
    linked: bool = False


@dataclass(frozen=True)
class Release:
    """When a free body is let go, and how fast it is then."""

    seconds: float
    velocity: Vector = (0, 0, 0)
    spin: Vector = (0, 0, 0)


@dataclass(frozen=True)
class HingeRelease:
    """When a hinge that is held at an angle (radians) is let go."""

    joint: str
    angle: float
    seconds: float


@dataclass(frozen=True)
class Hum:
    """A continuous sound that follows how fast bodies move on the average.

    Attributes:
        sound: of `training.scene.LAYERS`.
        bodies: their names.
        idle: level at rest, 0 .. 1.
        full_speed: m/s at which the level is 1.
        power: of the speed.
    """

    sound: str
    bodies: tuple[str, ...]
    idle: float
    full_speed: float
    power: float = 1.0


def write_numbers(values: Sequence[float] | np.ndarray) -> str:
    """Return numbers as MJCF has them, separated by spaces."""
    return " ".join(f"{value:.5g}" for value in np.ravel(np.asarray(values, float)))


def contact_spring(restitution: float, half_period_ms: float = 6.0) -> str:
    """Return MuJoCo's direct stiffness and damping of a contact with this restitution, 0 .. 1."""
    rate = math.pi / (half_period_ms * 1e-3)
    decay = -math.log(max(restitution, 0.02))
    damping = decay / math.hypot(math.pi, decay)
    return f"{-rate * rate:.0f} {-2 * damping * rate:.1f}"


@dataclass
class World:
    """Bodies, looks and motions of one scene.

    Attributes:
        rng: source of every choice.
        unseen: whether shapes and textures are those that are kept for evaluation.
        parts: what sounds, by the body's name; "world" is the floor.
        releases: how bodies begin to move, by name.
        controls: functions of the time that push joints, called before each step.
        actions: (action, material) of each sounding thing, for the prompt.
        hums: continuous sounds of what moves, one at most.
        textures: their names, for the prompt.
        settle_seconds: simulated before the clip begins.
        azimuth, elevation: from where the camera may look, degrees.
        air: density that slows things down, kg / m3.
        integrator: MuJoCo's.
    """

    rng: np.random.Generator
    unseen: bool = False
    parts: dict[str, Part] = field(default_factory=dict)
    releases: dict[str, Release] = field(default_factory=dict)
    hinges: list[HingeRelease] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    actions: list[tuple[str, str | None]] = field(default_factory=list)
    hums: list[Hum] = field(default_factory=list)
    textures: list[str] = field(default_factory=list)
    settle_seconds: float = 0.0
    resting: bool = False  # whether bodies rest on one another from the start
    rubs: bool = True  # whether rubbing sounds
    azimuth: tuple[float, float] = (0, 360)
    elevation: tuple[float, float] = (-35, -8)
    air: float = 0.0
    integrator: str = "implicitfast"
    files: dict[str, bytes] = field(default_factory=dict)
    _assets: list[str] = field(default_factory=list)
    _bodies: list[str] = field(default_factory=list)
    _scenery: list[str] = field(default_factory=list)
    _surfaces: list[str] = field(default_factory=list)
    _count: int = 0

    # -- choices

    def uniform(self, low: float, high: float) -> float:
        """Return a number between two limits."""
        return float(self.rng.uniform(low, high))

    def pick(self, *options: str) -> str:
        """Return one of several names; a name that is given twice is twice as likely."""
        return str(self.rng.choice(options))

    def pick_material(self, *options: str) -> str:
        """Return one of these materials, or of all."""
        return self.pick(*(options or MATERIALS))

    def pick_shape(self) -> str:
        """Return a shape of a loose thing."""
        return self.pick(*(UNSEEN_SHAPES if self.unseen else SHAPES))

    def name(self, prefix: str) -> str:
        """Return a new name."""
        self._count += 1
        return f"{prefix}{self._count}"

    # -- looks

    def look(
        self,
        material: str | None,
        *,
        floor: bool = False,
        texture: str | None = None,
        colour: Sequence[float] | None = None,
    ) -> str:
        """Add a look and return its name.

        Args:
            material: whose usual look is likely; None for any look.
            floor: whether it covers a large plane.
            texture: of `TEXTURES`; chosen where absent.
            colour: RGB in 0 .. 1; chosen where absent.
        """
        rng = self.rng
        first, second, usual = draw_colours(rng, material, 0.75)
        if texture is None and self.unseen and rng.random() < 0.7:
            texture = self.pick(*UNSEEN_TEXTURES)
        if texture is None:
            options: tuple[str, ...] = FLOORS if floor else TEXTURES
            if material and (floor or usual):
                substance = SUBSTANCES[material]
                options = substance.floors if floor else substance.textures
            texture = self.pick(*options)
        if colour is not None:
            first, second = np.array(colour), np.array(colour) * 0.8
        if floor and rng.random() < 0.6:
            second = np.clip(first * rng.uniform(0.6, 0.9), 0, 1)
        image, look = self.name("texture"), self.name("look")
        self.files[f"{image}.png"] = draw_texture(
            rng, texture, first, second, 256 if floor else 128
        )
        kind = "2d" if floor else "cube"
        self._assets.append(f'<texture name="{image}" type="{kind}" file="{image}.png"/>')
        substance = SUBSTANCES[material or "plastic"]
        alpha = rng.uniform(0.35, 0.6) if material == "glass" and usual and not floor else 1.0
        reflection = rng.uniform(0.05, 0.25) if floor and rng.random() < 0.12 else 0.0
        repeat = rng.uniform(1, 4) if floor else 1.0
        self._assets.append(
            f'<material name="{look}" texture="{image}" texrepeat="{repeat:.2f} {repeat:.2f}" '
            f'texuniform="{"true" if floor else "false"}" specular="{substance.specular}" '
            f'shininess="{substance.shininess}" reflectance="{reflection:.2f}" '
            f'rgba="1 1 1 {alpha:.2f}"/>'
        )
        return look

    def image_look(self, image: bytes, repeat: str) -> str:
        """Add a look that shows an image and return its name.

        Args:
            image: a PNG file.
            repeat: how often it is repeated along both sides of a surface.
        """
        texture, look = self.name("texture"), self.name("look")
        self.files[f"{texture}.png"] = image
        self._assets.append(f'<texture name="{texture}" type="2d" file="{texture}.png"/>')
        self._assets.append(
            f'<material name="{look}" texture="{texture}" texrepeat="{repeat} {repeat}" '
            'specular=".1" shininess=".1"/>'
        )
        return look

    def physics(self, material: str, restitution: float | None = None) -> str:
        """Return the contact attributes of a geom of this material."""
        substance = SUBSTANCES[material]
        if restitution is None:
            restitution = substance.restitution * self.uniform(0.85, 1.15)
        friction = substance.friction * self.uniform(0.8, 1.2)
        return (
            f'solref="{contact_spring(min(restitution, 0.93))}" '
            f'friction="{friction:.2f} .003 .0008" density="{substance.density}"'
        )

    # -- geoms

    def box(
        self,
        half: Vector,
        look: str,
        at: Vector = (0, 0, 0),
        *,
        material: str = "wood",
        restitution: float = 0.9,
        extra: str = "",
    ) -> str:
        """Return a box geom; half sides and place in metres."""
        substance = SUBSTANCES[material]
        return (
            f'<geom type="box" size="{write_numbers(half)}" pos="{write_numbers(at)}" '
            f'material="{look}" solref="{contact_spring(restitution)}" '
            f'friction="{substance.friction:.2f} .003 .0008" '
            f'density="{substance.density}" {extra}/>'
        )

    def decoration(
        self, kind: str, size: Vector, look: str, ends: Vector, density: float = 400
    ) -> str:
        """Return a geom that touches nothing; `ends` is its place, or both ends of a capsule."""
        where = "fromto" if len(ends) == 6 else "pos"
        return (
            f'<geom type="{kind}" size="{write_numbers(size)}" {where}="{write_numbers(ends)}" '
            f'material="{look}" density="{density}" contype="0" conaffinity="0"/>'
        )

    def _turned_mesh(self, profile: Sequence[tuple[float, float]], sides: int = 20) -> str:
        """Add a mesh made by turning a profile of (radius, height) and return its name."""
        angles = np.linspace(0, 2 * np.pi, sides, endpoint=False)
        points = [(r * np.cos(a), r * np.sin(a), z) for r, z in profile for a in angles]
        faces: list[tuple[int, int, int]] = []
        for ring in range(len(profile) - 1):
            for side in range(sides):
                low, high = ring * sides, (ring + 1) * sides
                after = (side + 1) % sides
                faces.append((low + side, low + after, high + side))
                faces.append((low + after, high + after, high + side))
        name = self.name("mesh")
        self._assets.append(
            f'<mesh name="{name}" vertex="{write_numbers(np.array(points))}" '
            f'face="{" ".join(map(str, np.ravel(faces)))}" inertia="shell"/>'
        )
        return name

    def shape(
        self, shape: str, material: str, half: float, restitution: float | None, look: str | None
    ) -> tuple[str, float]:
        """Return the geoms of a loose thing, and how far it reaches below its centre.

        Args:
            shape: of `SHAPES` or `UNSEEN_SHAPES`.
            material: of the thing.
            half: about half its height, metres.
            restitution: 0 .. 1; the material's where absent.
            look: a name that `look` returned; a new one where absent.
        """
        look = look or self.look(material)
        contact = self.physics(material, restitution)
        build = _SHAPES[shape]
        return build(self, half, f'material="{look}"', contact)

    # -- bodies

    def add_body(self, xml: str) -> None:
        """Add a body as MJCF."""
        self._bodies.append(xml)

    def add_free(
        self,
        shape: str,
        material: str,
        half: float,
        at: Vector,
        *,
        release: Release,
        turn: Vector | None = None,
        restitution: float | None = None,
        look: str | None = None,
        standing: bool = False,
    ) -> str:
        """Add a thing that moves freely and return its name; `standing` puts it on its base."""
        name = self.name("thing")
        geoms, below = self.shape(shape, material, half, restitution, look)
        if turn is None:
            turn = (0, 0, 0) if standing else self.rng.uniform(-180, 180, 3)
        height = at[2] + (below + 0.0005 if standing else 0)
        self.add_body(
            f'<body name="{name}" pos="{write_numbers((at[0], at[1], height))}" '
            f'euler="{write_numbers(turn)}"><freejoint name="{name}"/>{geoms}</body>'
        )
        size = float(np.clip((half - 0.03) / 0.17, 0, 1))
        self.parts[name] = Part(material, 1.0, size, moves=True)
        self.releases[name] = release
        return name

    def add_scenery(self, geom: str) -> None:
        """Add a geom that stands in the world, as MJCF."""
        self._scenery.append(geom)

    def add_surface(self, flex: str) -> None:
        """Add a surface between bodies, as MJCF."""
        self._surfaces.append(flex)

    def add_block(
        self, half: Vector, look: str, at: Vector, part: Part, release: Release, turn: float = 0.0
    ) -> str:
        """Add a free box that begins where it stands and return its name."""
        name = self.name("thing")
        geom = self.box(half, look, material=part.material, restitution=0.35)
        self.add_body(
            f'<body name="{name}" pos="{write_numbers(at)}" euler="0 0 {turn:.2f}">'
            f'<freejoint name="{name}"/>{geom}</body>'
        )
        self.parts[name] = part
        self.releases[name] = release
        return name

    def add_fixed(self, geoms: str, part: Part, at: Vector = (0, 0, 0)) -> str:
        """Add a body that never moves and return its name."""
        name = self.name("fixed")
        self.add_body(f'<body name="{name}" pos="{write_numbers(at)}">{geoms}</body>')
        self.parts[name] = part
        return name

    def add_floor(self) -> None:
        """Add the floor that everything stands on."""
        material = str(
            self.rng.choice(
                ("wood", "stone", "plastic", "skin", "metal"), p=(0.35, 0.35, 0.15, 0.1, 0.05)
            )
        )
        look = self.look(material, floor=True)
        self._scenery.append(
            f'<geom name="floor" type="plane" size="25 25 .1" material="{look}" '
            f'solref="{contact_spring(0.93)}" friction="{self.uniform(0.4, 0.8):.2f} .003 .0008" '
            'condim="3"/>'
        )
        self.parts["world"] = Part(material, 0.3, 0.9, moves=False)

    def add_back_wall(self) -> None:
        """Add, half of the time, a wall behind the scene that nothing touches."""
        if self.rng.random() < 0.5:
            look = self.look(None, floor=True)
            at = (0, 1.5 + self.uniform(0, 1), 2.5)
            self._scenery.append(self.decoration("box", (6, 0.05, 2.5), look, at))
            self.azimuth = (50, 130)

    def add_distractor(self) -> None:
        """Add a thing that drifts through the air and touches nothing."""
        name, look = self.name("silent"), self.look(None)
        kind, half = self.pick("sphere", "box", "capsule"), self.uniform(0.05, 0.15)
        sizes: tuple[float, ...] = (half,) if kind == "sphere" else (half / 2, half)
        sizes = (half, half, half) if kind == "box" else sizes
        at = (self.uniform(-1, 1), self.uniform(-0.8, 0.8), self.uniform(0.2, 1.0))
        joints = [self.name("joint") for _ in "xyz"]
        xml = "".join(
            f'<joint name="{joint}" type="slide" axis="{axis}"/>'
            for joint, axis in zip(joints, ("1 0 0", "0 1 0", "0 0 1"), strict=True)
        )
        geom = self.decoration(kind, sizes, look, (0, 0, 0))
        self.add_body(
            f'<body name="{name}" pos="{write_numbers(at)}" gravcomp="1">{xml}{geom}</body>'
        )
        reach = self.rng.uniform(0.1, 0.6, 3) * (1, 1, 0.4)
        rates, phases = self.rng.uniform(0.5, 5, 3), self.rng.uniform(0, 6.3, 3)

        def drift(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
            wanted = reach * np.sin(rates * seconds + phases)
            for joint, value in zip(joints, wanted, strict=True):
                data.qpos[model.joint(joint).qposadr[0]] = value
                data.qvel[model.joint(joint).dofadr[0]] = 0

        self.controls.append(drift)

    # -- the model

    def _sky(self) -> tuple[str, np.ndarray]:
        rng = self.rng
        colours = rng.uniform(0.1, 0.95, (2, 3))
        if rng.random() < 0.5:
            colours[0] = np.array((0.45, 0.6, 0.85)) * rng.uniform(0.7, 1.15)
            colours[1] = rng.uniform(0.5, 0.95)
        colours = np.clip(colours, 0, 1)
        if rng.random() < 0.35:
            pattern = self.pick("noise", "marble", "flat")
            self.files["sky.png"] = draw_texture(rng, pattern, colours[0], colours.mean(0), 256)
            return '<texture type="skybox" file="sky.png"/>', colours
        return (
            f'<texture type="skybox" builtin="gradient" rgb1="{write_numbers(colours[0])}" '
            f'rgb2="{write_numbers(colours[1])}" width="256" height="256"/>',
            colours,
        )

    def _lights(self) -> str:
        lights = []
        for index in range(1 if self.rng.random() < 0.7 else 2):
            around, up = self.uniform(0, 2 * np.pi), self.uniform(0.55, 1.4)
            towards = np.array(
                (math.cos(around) * math.cos(up), math.sin(around) * math.cos(up), math.sin(up))
            )
            at = towards * self.uniform(3.5, 6)
            colour = np.clip(self.uniform(0.55, 0.9) + self.rng.normal(0, 0.05, 3), 0.2, 0.9)
            kind, cone = "directional", ""
            if self.rng.random() < 0.25:
                cutoff, exponent = self.uniform(45, 75), self.uniform(1, 8)
                kind, cone = "spot", f'cutoff="{cutoff:.0f}" exponent="{exponent:.1f}"'
            lights.append(
                f'<light type="{kind}" pos="{write_numbers(at)}" dir="{write_numbers(-at)}" '
                f'diffuse="{write_numbers(colour / (1 + index))}" specular=".3 .3 .3" '
                f'castshadow="{"true" if index == 0 else "false"}" {cone}/>'
            )
        return "".join(lights)

    def xml(self, field_of_view: float) -> str:
        """Return the whole scene as MJCF; the field of view is vertical, degrees."""
        skybox, sky = self._sky()
        lights = self._lights()
        ambient, head = self.uniform(0.28, 0.5), self.uniform(0.1, 0.35)
        air = f'density="{self.air}" viscosity=".000018" ' if self.air else ""
        surfaces = f"<deformable>{''.join(self._surfaces)}</deformable>" if self._surfaces else ""
        return (
            '<mujoco><compiler angle="degree" autolimits="true"/>'
            f'<option timestep="{TIME_STEP}" integrator="{self.integrator}" cone="elliptic" '
            f'{air}impratio="1" gravity="0 0 -9.81"/>'
            f'<visual><global offwidth="640" offheight="640" fovy="{field_of_view:.1f}"/>'
            '<quality shadowsize="1024" offsamples="4"/>'
            f'<rgba haze="{write_numbers(sky.mean(0))} 1"/>'
            f'<headlight ambient="{write_numbers([ambient] * 3)}" '
            f'diffuse="{write_numbers([head] * 3)}" specular=".05 .05 .05"/>'
            '<map znear="0.01" zfar="40" shadowclip="1.6"/></visual>'
            '<default><geom solimp=".98 .99 .001"/></default>'
            f"<asset>{skybox}{''.join(self._assets)}</asset>"
            f'<worldbody>{lights}<body name="camera" mocap="true">'
            f'<camera name="camera" fovy="{field_of_view:.1f}"/></body>'
            f"{''.join(self._scenery)}{''.join(self._bodies)}</worldbody>{surfaces}</mujoco>"
        )


def _geom(kind: str, size: Vector, rest: str, at: Vector = (0, 0, 0)) -> str:
    return f'<geom type="{kind}" size="{write_numbers(size)}" pos="{write_numbers(at)}" {rest}/>'


def _ball(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    return _geom("sphere", (half,), f'{look} {contact} condim="6"'), half


def _box(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    sides = half * world.rng.uniform(0.6, 1.2, 3)
    return _geom("box", sides, f"{look} {contact}"), float(sides[2])


def _cylinder(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    radius, height = half * world.uniform(0.6, 1), half * world.uniform(0.5, 1.4)
    return _geom("cylinder", (radius, height), f'{look} {contact} condim="6"'), height


def _capsule(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    radius, length = half * world.uniform(0.3, 0.5), half * world.uniform(0.8, 1.5)
    return _geom("capsule", (radius, length), f'{look} {contact} condim="6"'), radius + length


def _hull(world: World, points: np.ndarray, look: str, contact: str) -> tuple[str, float]:
    name = world.name("mesh")
    world._assets.append(f'<mesh name="{name}" vertex="{write_numbers(points)}"/>')
    return f'<geom type="mesh" mesh="{name}" {look} {contact}/>', float(-points[:, 2].min())


def _rock(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    rng = world.rng
    points = rng.normal(size=(int(rng.integers(14, 40)), 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    points *= half * rng.uniform(0.7, 1.2, 3) * rng.uniform(0.88, 1, (len(points), 1))
    return _hull(world, points, look, contact)


def _wedge(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    x, y, z = half * world.rng.uniform(0.7, 1.2, 3)
    corners = [(-x, -y, -z), (x, -y, -z), (-x, y, -z), (x, y, -z), (-x, -y, z), (-x, y, z)]
    return _hull(world, np.array(corners), look, contact)


_PROFILES = {
    "bottle": (0.42, 1.3, ((0, -1), (0.95, -1), (1, -0.9), (1, 0.1), (0.85, 0.35), (0.4, 0.6),
                           (0.36, 0.95), (0.42, 0.97), (0.42, 1), (0, 1))),
    "can": (0.6, 0.95, ((0, -1), (0.9, -1), (1, -0.9), (1, 0.88), (0.93, 0.95), (0.93, 1),
                        (0.86, 1), (0.85, 0.95), (0, 0.95))),
    "cup": (0.7, 0.75, ((0, -1), (0.7, -1), (0.75, -0.95), (1, 1), (0.93, 1), (0.68, -0.85),
                        (0, -0.85))),
}  # fmt: skip


def _vessel(kind: str) -> Callable[[World, float, str, str], tuple[str, float]]:
    """Return a builder of a turned thing that touches as a cylinder."""
    width, height, profile = _PROFILES[kind]

    def build(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
        radius, reach = half * width, half * height
        mesh = world._turned_mesh([(r * radius, z * reach) for r, z in profile])
        touching = f'rgba="0 0 0 0" group="3" {contact} condim="6"'
        seen = f'mesh="{mesh}" {look} contype="0" conaffinity="0" mass="0"'
        return (
            _geom("cylinder", (radius * 0.95, reach), touching) + f'<geom type="mesh" {seen}/>',
            reach,
        )

    return build


def _toy(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    thin, long = half * world.uniform(0.3, 0.45), half * world.uniform(0.8, 1.1)
    rest = f"{look} {contact}"
    upright = _geom("box", (thin, thin, long), rest)
    return upright + _geom("box", (long, thin, thin), rest, (0, 0, long * 0.3)), long


def _dumbbell(world: World, half: float, look: str, contact: str) -> tuple[str, float]:
    rest = f"{look} {contact}"
    ends = "".join(_geom("sphere", (half * 0.45,), rest, (0, 0, s * half)) for s in (-1, 1))
    return _geom("capsule", (half * 0.2, half), rest) + ends, half * 1.45


_SHAPES: dict[str, Callable[[World, float, str, str], tuple[str, float]]] = {
    "ball": _ball,
    "box": _box,
    "cylinder": _cylinder,
    "capsule": _capsule,
    "rock": _rock,
    "wedge": _wedge,
    "bottle": _vessel("bottle"),
    "can": _vessel("can"),
    "cup": _vessel("cup"),
    "toy": _toy,
    "dumbbell": _dumbbell,
}
