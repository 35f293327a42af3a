"""Scenes that somebody drives: hammers, sticks, hands, doors, pendulums and steps."""

# Lengths are metres, times seconds, angles radians where the simulation has them.

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import mujoco

from training.rendered.loose import IMMOVABLE
from training.rendered.world import HingeRelease, Part, World

Strike = tuple[float, float]  # when it lands, and the angle from which it comes


@dataclass(frozen=True)
class Arm:
    """A hinge that strikes when its angle is 0.

    Attributes:
        joint: its name.
        inertia: kg m2 about the hinge, for the strength of the drive.
        strikes: in order of time.
    """

    joint: str
    inertia: float
    strikes: Sequence[Strike]


def plan_strikes(
    world: World, length: float, gaps: tuple[float, float], throw: float
) -> list[Strike]:
    """Return strikes until after the end of the clip, in a beat or freely."""
    at, regular, beat = world.uniform(0.3, 0.7), world.rng.random() < 0.5, world.uniform(*gaps)
    strikes = []
    while at < length + 0.5:
        strikes.append((at, throw * world.uniform(0.35, 1)))
        at += beat if regular else world.uniform(gaps[0], gaps[1] * 1.3)
    return strikes


def _wanted_angle(strikes: Sequence[Strike], seconds: float, slowest_fall: float) -> float:
    """Return the angle of an arm: it is raised after a strike and comes down to the next."""
    before = -1.0
    for at, throw in strikes:
        if seconds < at:
            gap = min(at - before, 1.0)
            rise, fall = 0.55 * gap, min(0.4 * gap, slowest_fall)
            up, down = min((seconds - before) / rise, 1.0), min((at - seconds) / fall, 1.0)
            return throw * min(math.sin(0.5 * math.pi * up), 1 - (1 - down) ** 2)
        before = at
    return 0.0


def drive(
    world: World, arms: Sequence[Arm], stiffness: float, falls: tuple[float, float] = (0.2, 0.4)
) -> None:
    """Push hinges towards their plans; what the simulation makes of it is the label.

    Args:
        world: that the arms are in.
        arms: to drive.
        stiffness: 1 / s, of the drive.
        falls: limits of the time in which an arm comes down, unless a next strike is soon due.
    """
    slowest_fall = world.uniform(*falls)

    def control(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        for arm in arms:
            now = _wanted_angle(arm.strikes, seconds, slowest_fall)
            soon = _wanted_angle(arm.strikes, seconds + 0.002, slowest_fall)
            hinge = model.joint(arm.joint)
            position, speed = data.qpos[hinge.qposadr[0]], data.qvel[hinge.dofadr[0]]
            spring = stiffness * stiffness * (now - position)
            damper = 1.6 * stiffness * ((soon - now) / 0.002 - speed)
            data.qfrc_applied[hinge.dofadr[0]] = arm.inertia * (spring + damper)

    world.controls.append(control)
    world.rubs = False


def draw_skin_colour(world: World) -> tuple[float, float, float]:
    """Return a colour of skin, RGB in 0 .. 1."""
    return world.uniform(0.35, 0.92), world.uniform(0.28, 0.68), world.uniform(0.2, 0.55)


def hammer(world: World, length: float) -> None:
    """A hammer hits a block; sometimes a fist holds it."""
    block = world.pick_material("wood", "metal", "stone", "plastic", "metal", "glass")
    head = world.pick_material("metal", "wood", "stone")
    reach, radius, half_head = (
        world.uniform(0.28, 0.42),
        world.uniform(0.025, 0.04),
        world.uniform(0.05, 0.08),
    )
    high, wide, base = world.uniform(0.05, 0.14), world.uniform(0.1, 0.22), 0.0
    look = world.look(block)
    if world.rng.random() < 0.5:
        geom = world.box((wide, wide * 0.8, high), look, material=block)
    else:
        geom = (
            f'<geom type="cylinder" size="{wide:.3f} {high:.3f}" material="{look}" '
            f"{world.physics(block, 0.6)}/>"
        )
    if world.rng.random() < 0.5:  # on a bench
        base, bench = world.uniform(0.2, 0.5), world.look("wood")
        geoms = world.box((0.55, 0.35, 0.03), bench, (0, 0, base - 0.03))
        geoms += world.box((0.06, 0.06, base / 2 - 0.03), bench, (0, 0, base / 2 - 0.03))
        world.add_fixed(geoms, Part("wood", 0.35, 0.8, moves=False))
    part = Part(block, 1.1, min(1, wide * 4), moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geom, part, (0, 0, base + high))
    handle = world.look("wood")
    geoms = world.decoration("capsule", (0.014,), handle, (0, 0, 0, reach, 0, 0)) + (
        f'<geom type="cylinder" size="{radius:.3f} {half_head:.3f}" pos="{reach:.3f} 0 0" '
        f'material="{world.look(head)}" {world.physics(head, 0.4)}/>'
    )
    pivot, inertia = -reach, 0.12
    if world.rng.random() < 0.5:  # a forearm and a fist
        skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
        arm = 0.3
        pivot, inertia = -reach - arm + 0.1, 0.2
        held = geoms
        geoms = world.decoration(
            "capsule", (0.045,), world.look(None), (-0.02, 0, 0, arm - 0.06, 0, 0), 100
        )
        geoms += world.decoration(
            "capsule", (0.032,), skin, (arm - 0.1, 0, 0, arm - 0.02, 0, 0), 100
        )
        geoms += world.decoration("ellipsoid", (0.055, 0.045, 0.05), skin, (arm, 0, 0), 100)
        for k in range(4):
            ends = (
                arm + 0.035 - 0.022 * k,
                -0.04,
                0.02,
                arm + 0.04 - 0.022 * k,
                -0.035,
                -0.03,
            )
            geoms += world.decoration("capsule", (0.013,), skin, ends, 10)
        geoms += f'<body pos="{arm - 0.1:.3f} 0 0">{held}</body>'
    joint, name = world.name("joint"), world.name("thing")
    world.add_body(
        f'<body name="{name}" pos="{pivot:.4f} 0 {base + 2 * high + half_head:.4f}" gravcomp="1">'
        f'<joint name="{joint}" type="hinge" axis="0 -1 0" armature=".002"/>{geoms}</body>'
    )
    world.parts[name] = Part(head, 0.4, 0.3, moves=True, effective_mass=0.6)
    strikes = plan_strikes(world, length, (0.4, 1.1), world.uniform(0.5, 1.1))
    drive(world, [Arm(joint, inertia, strikes)], 45)
    world.actions.append(("strike", block))
    world.azimuth, world.elevation = (55, 125), (-30, -6)


def drum(world: World, length: float) -> None:
    """One or two sticks hit a drum."""
    radius, high, base = (
        world.uniform(0.15, 0.3),
        world.uniform(0.06, 0.18),
        world.uniform(0.2, 0.5),
    )
    shell = world.look(world.pick_material("wood", "metal", "plastic"))
    white = world.uniform(0.7, 0.95)
    skin = world.look(
        "skin", texture=world.pick("flat", "noise"), colour=(white, white, world.uniform(0.6, 0.9))
    )
    legs = world.look("metal")
    geoms = (
        f'<geom type="cylinder" size="{radius * 0.96:.3f} {high:.3f}" material="{skin}" '
        f"{world.physics('skin', 0.7)}/>"
    )
    geoms += world.decoration("cylinder", (radius, high * 0.97), shell, (0, 0, 0))
    for k in range(3):
        x, y = math.cos(2.1 * k + 0.5), math.sin(2.1 * k + 0.5)
        ends = (
            0.7 * radius * x,
            0.7 * radius * y,
            -high,
            1.1 * radius * x,
            1.1 * radius * y,
            -high - base,
        )
        geoms += world.decoration("capsule", (0.012,), legs, ends)
    part = Part("skin", 1.3, min(1, (radius - 0.1) * 5), moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geoms, part, (0, 0, base + high))
    top, wood, arms = base + 2 * high, world.look("wood"), []
    for k in range(int(world.rng.integers(1, 3))):
        name, joint = world.name("thing"), world.name("joint")
        reach, thick, tip = (
            world.uniform(0.3, 0.4),
            world.uniform(0.008, 0.013),
            world.uniform(0.013, 0.02),
        )
        tilt = math.radians(world.uniform(4, 10))
        turn = world.uniform(25, 60) if k == 0 else world.uniform(110, 150)
        across, down = reach * math.cos(tilt), reach * math.sin(tilt)
        x = (0.3 if k else -0.3) * radius * world.uniform(0.3, 1)
        at_x = x - across * math.cos(math.radians(turn))
        at_y = -0.03 - across * math.sin(math.radians(turn))
        stick = (-0.06, 0, down * 0.06 / across, across, 0, -down)
        world.add_body(
            f'<body name="{name}" pos="{at_x:.4f} {at_y:.4f} {top + tip + down:.4f}" '
            f'euler="0 0 {turn:.1f}" gravcomp="1">'
            f'<joint name="{joint}" type="hinge" axis="0 -1 0" armature=".0008"/>'
            + world.decoration("capsule", (thick,), wood, stick, 600)
            + f'<geom type="sphere" size="{tip:.4f}" pos="{across:.4f} 0 {-down:.4f}" '
            f'material="{wood}" {world.physics("wood", 0.5)}/></body>'
        )
        world.parts[name] = Part("wood", 0.25, 0.1, moves=True, effective_mass=0.08)
        strikes = plan_strikes(world, length, (0.25, 0.8), world.uniform(0.4, 0.8))
        arms.append(Arm(joint, 0.006, strikes))
    drive(world, arms, 60)
    world.actions.append(("tap", "skin"))
    world.azimuth, world.elevation = (30, 150), (-40, -12)


def clap(world: World, length: float) -> None:
    """Two hands on forearms meet in the middle."""
    skin = world.look("skin", texture="flat", colour=draw_skin_colour(world))
    sleeve, high, reach = world.look(None), world.uniform(0.5, 0.8), 0.34
    strikes = plan_strikes(world, length, (0.35, 0.9), world.uniform(0.5, 0.9))
    arms = []
    for side in (-1, 1):
        joint, name = world.name("joint"), world.name("thing")
        geoms = (
            f'<geom type="box" size=".05 .024 .045" pos="{reach:.3f} 0 0" material="{skin}" '
            f"{world.physics('skin', 0.25)}/>"
        )
        for k in range(4):
            ends = (
                reach + 0.05,
                0,
                0.03 - 0.022 * k,
                reach + 0.13 - 0.012 * abs(k - 1),
                0,
                0.034 - 0.024 * k,
            )
            geoms += world.decoration("capsule", (0.011,), skin, ends, 100)
        thumb = (reach - 0.02, 0, 0.03, reach + 0.05, 0, 0.075)
        geoms += world.decoration("capsule", (0.012,), skin, thumb, 100)
        geoms += world.decoration("capsule", (0.036,), sleeve, (0, 0, 0, reach - 0.06, 0, 0), 100)
        wrist = (reach - 0.1, 0, 0, reach - 0.03, 0, 0)
        geoms += world.decoration("capsule", (0.027,), skin, wrist, 100)
        world.add_body(
            f'<body name="{name}" pos="{side * 0.0235:.4f} -.2 {high:.3f}" euler="0 0 90" '
            f'gravcomp="1"><joint name="{joint}" type="hinge" axis="0 0 {-side}" '
            f'armature=".004"/>{geoms}</body>'
        )
        world.parts[name] = Part("skin", 1.0, 0.15, moves=True, effective_mass=0.4)
        arms.append(Arm(joint, 0.09, strikes))
    drive(world, arms, 40)
    world.actions.append(("clap", "skin"))
    world.azimuth, world.elevation = (60, 120), (-45, -10)


def cradle(world: World, length: float) -> None:
    """Balls on threads knock against one another."""
    count, radius, drop = (
        int(world.rng.integers(3, 6)),
        world.uniform(0.05, 0.08),
        world.uniform(0.4, 0.7),
    )
    material = world.pick_material("metal", "glass", "stone", "wood")
    look, frame, high = world.look(material), world.look(None), drop + world.uniform(0.1, 0.3)
    for k in range(count):
        name, joint = world.name("thing"), world.name("joint")
        x = (k - (count - 1) / 2) * 2.02 * radius
        threads = "".join(
            world.decoration("capsule", (0.004,), frame, (0, side * 0.15, 0, 0, 0, -drop), 1)
            for side in (-1, 1)
        )
        world.add_body(
            f'<body name="{name}" pos="{x:.4f} 0 {high:.4f}">'
            f'<joint name="{joint}" type="hinge" axis="0 1 0" damping="0.0005"/>'
            f'<geom type="sphere" size="{radius:.4f}" pos="0 0 {-drop:.4f}" material="{look}" '
            f"{world.physics(material, 0.9)}/>{threads}</body>"
        )
        world.parts[name] = Part(material, 1.0, (radius - 0.03) * 6, moves=True)
        first = k == 0
        angle, seconds = (world.uniform(0.6, 1.0), world.uniform(0.2, 0.6)) if first else (0.0, 0.0)
        world.hinges.append(HingeRelease(joint, angle, seconds))
    edge = (count + 1) * radius + 0.1
    geoms = ""
    for side in (-1, 1):
        y = side * 0.15
        geoms += world.decoration("capsule", (0.012,), frame, (-edge, y, high, edge, y, high))
        for end in (-edge, edge):
            geoms += world.decoration("capsule", (0.012,), frame, (end, y, 0, end, y, high))
    world.add_fixed(geoms, Part("metal", 0.35, 0.8, moves=False))
    world.rubs = False
    world.actions.append(("pendulum", material))
    world.azimuth, world.elevation = (62, 118), (-22, -4)


def pendulum(world: World, length: float) -> None:
    """A bob swings against a block; it is pushed again when it has lost its swing."""
    radius, drop = world.uniform(0.06, 0.14), world.uniform(0.5, 0.9)
    material, block = world.pick_material(), world.pick_material()
    high, frame = drop + radius + world.uniform(0.1, 0.3), world.look(None)
    name, joint = world.name("thing"), world.name("joint")
    if world.rng.random() < 0.5:
        bob = (
            f'<geom type="sphere" size="{radius:.3f}" pos="0 0 {-drop:.3f}" '
            f'material="{world.look(material)}" {world.physics(material, 0.75)}/>'
        )
    else:
        sides = (radius, radius, radius)
        bob = world.box(
            sides, world.look(material), (0, 0, -drop), material=material, restitution=0.7
        )
    world.add_body(
        f'<body name="{name}" pos="0 0 {high:.4f}">'
        f'<joint name="{joint}" type="hinge" axis="0 1 0" damping="0.001"/>{bob}'
        + world.decoration("capsule", (0.008,), frame, (0, 0, 0, 0, 0, -drop), 10)
        + "</body>"
    )
    world.parts[name] = Part(material, 1.0, (radius - 0.03) * 6, moves=True)
    world.hinges.append(HingeRelease(joint, -world.uniform(0.6, 1.3), world.uniform(0, 0.5)))
    half = (world.uniform(0.05, 0.15), world.uniform(0.12, 0.3))
    tall = high - drop + world.uniform(0.1, 0.3)
    geoms = world.box((*half, tall / 2), world.look(block), material=block, restitution=0.85)
    part = Part(block, 0.9, 0.8, moves=False, effective_mass=IMMOVABLE)
    # The bob hangs at rest against the block: to its right, where positive angles would go.
    world.add_fixed(geoms, part, (-radius - half[0] - 0.002, 0, tall / 2))
    stand = world.decoration("capsule", (0.02,), frame, (0, 0, high, 0, 0.5, high))
    stand += world.decoration("capsule", (0.025,), frame, (0, 0.5, 0, 0, 0.5, high))
    world.add_fixed(stand, Part("metal", 0.35, 0.8, moves=False))
    strength, pushes = world.uniform(5, 9), {"still": 0.0, "pushed": -1.0}

    def push(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        hinge = model.joint(joint)
        slow = abs(data.qvel[hinge.dofadr[0]]) < 0.25
        pushes["still"] = pushes["still"] + 0.0005 if slow else 0.0
        if pushes["still"] > 0.25:
            pushes["still"], pushes["pushed"] = 0.0, seconds
        since = seconds - pushes["pushed"]
        torque = 0.0
        if seconds > 0.5 and 0 <= since < 0.25:
            mass = model.body_mass[model.body(name).id]
            torque = -strength * 1.6 * drop * drop * mass * math.sin(math.pi * since / 0.25)
        data.qfrc_applied[hinge.dofadr[0]] = torque

    world.controls.append(push)
    world.rubs = False
    world.actions.append(("pendulum", material))
    world.azimuth, world.elevation = (62, 118), (-22, -4)


def door(world: World, length: float) -> None:
    """A door or a lid swings shut against its frame, again and again."""
    material = world.pick_material("wood", "wood", "metal", "plastic", "glass")
    look, frame = world.look(material), world.look(world.pick_material("wood", "metal", "stone"))
    wide, tall, thick = world.uniform(0.3, 0.5), world.uniform(0.5, 0.9), 0.02
    posts = world.box((0.04, 0.05, tall + 0.08), frame, (2 * wide + 0.045, 0, tall + 0.06))
    posts += world.box((0.04, 0.05, tall + 0.08), frame, (-0.06, 0, tall + 0.06))
    posts += world.box((wide + 0.08, 0.05, 0.04), frame, (wide, 0, 2 * tall + 0.13))
    # The stop stands behind the door's free edge.
    posts += world.box((0.03, 0.02, tall), frame, (2 * wide - 0.02, thick + 0.0205, tall + 0.05))
    world.add_fixed(posts, Part("wood", 0.4, 0.9, moves=False, effective_mass=IMMOVABLE))
    joint, name = world.name("joint"), world.name("thing")
    leaf = (
        f'<geom type="box" size="{wide:.3f} {thick} {tall:.3f}" pos="{wide:.3f} 0 0" '
        f'material="{look}" {world.physics(material, 0.2)}/>'
    )
    knob = world.decoration("sphere", (0.03,), frame, (2 * wide - 0.08, -0.05, 0), 100)
    world.add_body(
        f'<body name="{name}" pos="0 0 {tall + 0.05:.3f}" gravcomp="1">'
        f'<joint name="{joint}" type="hinge" axis="0 0 -1" armature=".02"/>{leaf}{knob}</body>'
    )
    world.parts[name] = Part(material, 1.0, 0.8, moves=True, effective_mass=1.5)
    strikes = plan_strikes(world, length, (0.9, 2.0), world.uniform(0.5, 1.2))
    drive(world, [Arm(joint, 0.6, strikes)], 30)
    world.actions.append(("strike", material))
    world.azimuth, world.elevation = (60, 120), (-20, -4)


@dataclass
class Gait:
    """Where the hips and feet of somebody who walks are.

    Attributes:
        start: where the hips begin, along x.
        stride: of one step.
        seconds: of one step.
    """

    start: float
    stride: float
    seconds: float
    thigh: float = 0.42
    shin: float = 0.42
    hip_height: float = 0.80
    standing_share: float = 0.58
    joints: dict[str, tuple[int, int]] = field(default_factory=dict)

    def angles(self, time: float) -> dict[str, float]:
        """Return the wanted position of each joint by inverse kinematics."""
        hip_x = self.start + self.stride * time / self.seconds
        hip_z = 0.012 * math.sin(2 * math.pi * time / self.seconds)
        wanted = {"px": hip_x, "pz": hip_z}
        for leg in (0, 1):
            phase = time / self.seconds / 2 + 0.5 * leg
            cycle, part = math.floor(phase), phase - math.floor(phase)
            foot_x = self.start + self.stride * 2 * (cycle + 0.75 - 0.5 * leg)
            foot_z = pitch = 0.0
            if part >= self.standing_share:
                share = (part - self.standing_share) / (1 - self.standing_share)
                foot_x += 2 * self.stride * share * share * (3 - 2 * share)
                foot_z = 0.12 * math.sin(math.pi * share**1.2)
                pitch = -0.15 * math.sin(2 * math.pi * share)
            across, down = foot_x - hip_x, -self.hip_height - hip_z + foot_z
            reach = min(math.hypot(across, down), self.thigh + self.shin - 0.002)
            at_hip = math.acos((self.thigh**2 + reach**2 - self.shin**2) / (2 * self.thigh * reach))
            at_knee = math.acos(
                (self.thigh**2 + self.shin**2 - reach**2) / (2 * self.thigh * self.shin)
            )
            hip, knee = math.atan2(across, -down) + at_hip, at_knee - math.pi
            wanted |= {f"hip{leg}": hip, f"knee{leg}": knee, f"ankle{leg}": pitch - hip - knee}
        return wanted

    def push(self, time: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Drive the joints towards `angles`."""
        now, soon = self.angles(time), self.angles(time + 0.002)
        if not self.joints:
            for name, value in now.items():
                joint = model.joint(name)
                self.joints[name] = joint.qposadr[0], joint.dofadr[0]
                data.qpos[joint.qposadr[0]] = value
        for name, value in now.items():
            position, speed = self.joints[name]
            rate = 60.0 if name[0] == "p" else 40.0
            inertia = {"p": 60.0, "h": 0.4, "k": 0.25, "a": 0.05}[name[0]]
            spring = rate * rate * (value - data.qpos[position])
            damper = 1.8 * rate * ((soon[name] - value) / 0.002 - data.qvel[speed])
            data.qfrc_applied[speed] = inertia * (spring + damper)


def walk(world: World, length: float) -> None:
    """Somebody walks by, on two legs with feet."""
    stride, seconds = world.uniform(0.4, 0.6), world.uniform(0.45, 0.75)
    gait = Gait(-stride * length / seconds / 2, stride, seconds)
    sole = world.pick_material("skin", "plastic", "wood")
    shoe, trouser, shirt = world.look(sole), world.look(None), world.look(None)

    def leg(index: int, side: int) -> str:
        return (
            f'<body name="thigh{index}" pos="0 {side * 0.1} 0">'
            f'<joint name="hip{index}" type="hinge" axis="0 -1 0" armature=".02"/>'
            + world.decoration("capsule", (0.065,), trouser, (0, 0, 0, 0, 0, -gait.thigh), 500)
            + f'<body name="shin{index}" pos="0 0 {-gait.thigh}">'
            f'<joint name="knee{index}" type="hinge" axis="0 -1 0" armature=".02"/>'
            + world.decoration("capsule", (0.05,), trouser, (0, 0, 0, 0, 0, -gait.shin), 500)
            + f'<body name="foot{index}" pos="0 0 {-gait.shin}">'
            f'<joint name="ankle{index}" type="hinge" axis="0 -1 0" armature=".01"/>'
            f'<geom type="box" size=".12 .045 .022" pos=".05 0 -.045" material="{shoe}" '
            # A soft sole, or the foot chatters on the floor.
            'priority="2" solref=".015 1" friction=".8 .003 .0008" density="500"/>'
            + world.decoration("ellipsoid", (0.13, 0.05, 0.05), shoe, (0.05, 0, -0.03), 100)
            + "</body></body></body>"
        )

    name = world.name("thing")
    world.add_body(
        f'<body name="{name}" pos="0 0 {gait.hip_height + 0.067}" gravcomp="1">'
        '<joint name="px" type="slide" axis="1 0 0" armature="50"/>'
        '<joint name="pz" type="slide" axis="0 0 1" armature="50"/>'
        + world.decoration("box", (0.1, 0.15, 0.1), trouser, (0, 0, 0.05))
        + world.decoration("capsule", (0.14,), shirt, (0, 0, 0.15, 0, 0, 0.5))
        + f"{leg(0, -1)}{leg(1, 1)}</body>"
    )
    for body in (name, "thigh0", "thigh1", "shin0", "shin1"):
        world.parts[body] = Part(sole, 0.0, 0.5, moves=True)
    for index in (0, 1):
        world.parts[f"foot{index}"] = Part(sole, 0.5, 0.5, moves=True, effective_mass=0.7)
    world.controls.append(gait.push)
    world.rubs = False
    world.actions.append(("tap", None))
    world.azimuth, world.elevation = (65, 115), (-16, -3)


DRIVEN = {
    scene.__name__: scene
    for scene in (hammer, drum, clap, cradle, pendulum, door, walk)
}  # fmt: skip
