"""Scenes of loose things: they fall, bounce, roll, slide, topple and knock one another over."""

# Lengths are metres, times seconds. `length` is the clip's length in seconds.

import math

import mujoco

from training.rendered.world import Part, Release, World

IMMOVABLE = 1e9  # an effective mass that no impact moves


def drop(world: World, length: float) -> None:
    """Things fall on the floor one after another."""
    count = int(world.rng.integers(1, 5))
    usual = world.pick_material()
    seconds = world.uniform(0, 0.4)
    world.add_back_wall()
    for _ in range(count):
        material = usual if world.rng.random() < 0.6 else world.pick_material()
        at = (world.uniform(-0.45, 0.45), world.uniform(-0.4, 0.4), world.uniform(0.7, 1.5))
        velocity = (world.uniform(-0.3, 0.3), world.uniform(-0.3, 0.3), 0)
        world.add_free(
            world.pick_shape(),
            material,
            world.uniform(0.09, 0.22),
            at,
            release=Release(seconds, velocity, world.rng.normal(0, 2.5, 3)),
        )
        seconds += world.uniform(0.35, max(0.4, (length - 1) / count))
    world.actions.append(("bounce", usual))


def bounce(world: World, length: float) -> None:
    """Balls bounce well, one after another."""
    material = world.pick_material("plastic", "plastic", "skin", "wood", "glass", "metal")
    seconds = world.uniform(0, 0.3)
    world.add_back_wall()
    for _ in range(int(world.rng.integers(1, 4))):
        at = (world.uniform(-0.7, 0.7), world.uniform(-0.5, 0.5), world.uniform(0.8, 1.8))
        velocity = (world.uniform(-0.35, 0.35), world.uniform(-0.3, 0.3), world.uniform(-0.5, 1))
        world.add_free(
            "ball",
            material,
            world.uniform(0.06, 0.18),
            at,
            restitution=world.uniform(0.7, 0.9),
            release=Release(seconds, velocity, world.rng.normal(0, 2, 3)),
        )
        seconds += world.uniform(0.5, max(0.8, length / 2))
    world.actions.append(("bounce", material))


def table(world: World, length: float) -> None:
    """Things roll over the edge of a table."""
    height, half_x, half_y = (
        world.uniform(0.45, 0.8),
        world.uniform(0.5, 0.8),
        world.uniform(0.25, 0.45),
    )
    top = world.pick_material("wood", "wood", "metal", "stone", "plastic")
    look = world.look(top)
    geoms = world.box((half_x, half_y, 0.025), look, (0, 0, height - 0.025), material=top)
    for x in (-1, 1):
        for y in (-1, 1):
            at = (x * (half_x - 0.06), y * (half_y - 0.06), height / 2)
            geoms += world.box((0.03, 0.03, height / 2 - 0.02), look, at, material=top)
    world.add_fixed(geoms, Part(top, 0.5, 0.8, moves=False))
    material, seconds = world.pick_material(), world.uniform(0, 0.3)
    for _ in range(int(world.rng.integers(1, 4))):
        half = world.uniform(0.06, 0.12)
        shape = world.pick("ball", "ball", "cylinder", "can")
        below = half * (0.6 if shape == "can" else 1)
        speed = world.uniform(0.6, 1.5)
        at = (-half_x + 0.15, world.uniform(-half_y / 2, half_y / 2), height + below + 0.002)
        world.add_free(
            shape,
            material,
            half,
            at,
            turn=(0, 0, 0) if shape == "ball" else (90, 0, 0),
            release=Release(seconds, (speed, 0, 0), (0, speed / half, 0)),
        )
        seconds += world.uniform(0.6, 1.3)
    world.actions.append(("bounce", material))
    world.azimuth, world.elevation = (40, 140), (-28, -8)


def dominoes(world: World, length: float) -> None:
    """A row of blocks topples, pushed or hit by a ball."""
    count, height = int(world.rng.integers(5, 13)), world.uniform(0.14, 0.24)
    thick, wide = height * world.uniform(0.1, 0.16), height * world.uniform(0.35, 0.5)
    gap, bend = height * world.uniform(0.55, 0.8), world.uniform(-6, 6)
    material = world.pick_material("wood", "plastic", "stone", "wood")
    looks = [world.look(material) for _ in range(int(world.rng.integers(1, 4)))]
    world.resting = True
    pushed = world.rng.random() < 0.5
    turn, x, y = 0.0, -count * gap / 2, 0.0
    for index in range(count):
        release = Release(0)
        if index == 0 and pushed:
            release = Release(world.uniform(0.2, 0.8), (2.4 * height, 0, 0), (0, 2.4, 0))
        half = (thick, wide, height)
        part = Part(material, 1.0, 0.35, moves=True)
        world.add_block(half, looks[index % len(looks)], (x, y, height), part, release, turn)
        turn += bend
        x += gap * math.cos(math.radians(turn))
        y += gap * math.sin(math.radians(turn))
    if not pushed:
        radius, speed = height * 0.45, world.uniform(1.0, 1.6)
        start = -count * gap / 2 - 0.1 - height - speed * world.uniform(0.3, 0.9)
        _roll_ball(world, world.pick_material(), radius, (start, 0), speed)
    world.actions.append(("strike", material))
    world.azimuth, world.elevation = (50, 130), (-40, -12)


def _roll_ball(
    world: World, material: str, radius: float, at: tuple[float, float], speed: float
) -> None:
    """Add a ball that rolls over the floor from the start of the clip."""
    world.add_free(
        "ball",
        material,
        radius,
        (*at, radius + 0.001),
        release=Release(0, (speed, 0, 0), (0, speed / radius, 0)),
    )


def wall_ball(world: World, length: float) -> None:
    """Balls are thrown against a wall and come back over the floor."""
    wall = world.pick_material("stone", "wood", "metal", "plastic")
    look = world.look(wall, floor=True)
    geoms = world.box((0.06, 2.2, 1.4), look, material=wall, restitution=0.93)
    part = Part(wall, 0.35, 0.8, moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geoms, part, (0.9, 0, 1.4))
    material = world.pick_material("plastic", "skin", "plastic", "wood")
    ball = world.look(material)
    if world.rng.random() < 0.4:
        ball = world.look("plastic", texture="noise", colour=(0.8, 0.9, 0.2))
    seconds = world.uniform(0, 0.3)
    for _ in range(int(world.rng.integers(2, 5))):
        velocity = (world.uniform(3, 5.5), world.uniform(-0.5, 0.5), world.uniform(0.5, 2.5))
        world.add_free(
            "ball",
            material,
            world.uniform(0.08, 0.15),
            (-1.5, world.uniform(-0.5, 0.5), world.uniform(0.4, 1.1)),
            restitution=world.uniform(0.7, 0.88),
            release=Release(seconds, velocity, world.rng.normal(0, 6, 3)),
            look=ball,
        )
        seconds += world.uniform(0.6, 1.4)
    world.actions.append(("bounce", material))
    world.azimuth, world.elevation = (25, 72), (-22, -5)


def slide(world: World, length: float) -> None:
    """Things are shoved over the floor: they rub, stop, or knock against a block."""
    material, block = world.pick_material(), world.pick_material("wood", "stone", "metal")
    geoms = world.box((0.08, 0.5, 0.18), world.look(block), material=block, restitution=0.8)
    part = Part(block, 0.6, 0.8, moves=False, effective_mass=IMMOVABLE)
    world.add_fixed(geoms, part, (0.9, 0, 0.18))
    seconds = world.uniform(0.1, 0.5)
    for index in range(int(world.rng.integers(1, 4))):
        half = world.uniform(0.08, 0.15)
        sides = (
            half * world.uniform(0.8, 1.4),
            half * world.uniform(0.8, 1.2),
            half * world.uniform(0.3, 0.6),
        )
        name = world.name("thing")
        geom = (
            f'<geom type="box" size="{sides[0]:.4f} {sides[1]:.4f} {sides[2]:.4f}" '
            f'material="{world.look(material)}" {world.physics(material, 0.15)} priority="1"/>'
        )
        friction = f'friction="{world.uniform(0.12, 0.4):.2f} .003 .0008"'
        start = geom.index('friction="')
        stop = geom.index('"', start + 10) + 1
        geom = geom[:start] + friction + geom[stop:]
        world.add_body(
            f'<body name="{name}" pos="-.9 {-0.42 + 0.42 * index:.3f} {sides[2] + 0.0005:.4f}" '
            f'euler="0 0 {world.uniform(-15, 15):.1f}"><freejoint name="{name}"/>{geom}</body>'
        )
        world.parts[name] = Part(material, 1.0, min(1, half * 5), moves=True)
        world.releases[name] = Release(seconds, (world.uniform(1.8, 3.5), 0, 0))
        seconds += world.uniform(0.7, 1.4)
    world.actions.append(("slide", material))
    world.azimuth, world.elevation = (50, 130), (-40, -15)


def pins(world: World, length: float) -> None:
    """A ball rolls into standing things."""
    material = world.pick_material("wood", "plastic", "glass", "metal")
    shape = "bottle" if world.unseen else world.pick("can", "box", "cylinder", "cup")
    count, half = int(world.rng.integers(2, 7)), world.uniform(0.1, 0.18)
    look = world.look(material)
    world.resting = True
    placed, row = 0, 1
    while placed < count:
        for column in range(min(row, count - placed)):
            at = (0.2 + row * half * 2.5, (column - (row - 1) / 2) * half * 2.9, 0)
            world.add_free(shape, material, half, at, release=Release(0), look=look, standing=True)
            placed += 1
        row += 1
    radius, speed = world.uniform(0.09, 0.16), world.uniform(1.5, 3.2)
    ball = world.pick_material("wood", "plastic", "stone", "metal")
    start = (-0.2 - speed * world.uniform(0.3, 0.9), world.uniform(-0.06, 0.06))
    _roll_ball(world, ball, radius, start, speed)
    if world.rng.random() < 0.6 and length > 4:
        start = (-1.0 - speed * world.uniform(1.3, 2.0), world.uniform(-0.25, 0.25))
        _roll_ball(world, world.pick_material("wood", "plastic", "stone"), radius, start, speed)
    world.actions.append(("strike", material))
    world.azimuth, world.elevation = (40, 140), (-35, -12)


def stairs(world: World, length: float) -> None:
    """Balls or stones come down steps."""
    step = world.pick_material("wood", "stone", "metal")
    look, count = world.look(step, floor=True), int(world.rng.integers(4, 7))
    deep, high = world.uniform(0.22, 0.32), world.uniform(0.12, 0.18)
    geoms = "".join(
        world.box(
            (deep / 2 * (count - k), 0.5, high / 2),
            look,
            (-deep * k / 2, 0, high * k + high / 2),
            material=step,
        )
        for k in range(count)
    )
    world.add_fixed(geoms, Part(step, 0.4, 0.8, moves=False, effective_mass=IMMOVABLE))
    material = world.pick_material("plastic", "wood", "skin", "metal", "plastic")
    seconds = world.uniform(0, 0.3)
    for _ in range(int(world.rng.integers(1, 3))):
        half, speed = world.uniform(0.08, 0.13), world.uniform(0.6, 1.0)
        at = (
            -deep * count / 2 + 0.3 * deep,
            world.uniform(-0.25, 0.25),
            high * count + half + world.uniform(0, 0.12),
        )
        world.add_free(
            world.pick("ball", "ball", "ball", "rock"),
            material,
            half,
            at,
            restitution=world.uniform(0.3, 0.55),
            release=Release(seconds, (speed, 0, 0), (0, speed / half, 0)),
        )
        seconds += world.uniform(1.0, 2.0)
    world.actions.append(("bounce", material))
    world.azimuth, world.elevation = (55, 125), (-25, -6)


def tower(world: World, length: float) -> None:
    """A stack of blocks is knocked over by something thrown."""
    material, half = world.pick_material("wood", "plastic", "wood"), world.uniform(0.08, 0.13)
    looks = [world.look(material) for _ in range(3)]
    world.settle_seconds, world.resting = 0.4, True
    for level in range(int(world.rng.integers(3, 6))):
        sides = (half * world.uniform(0.8, 1.1), half * world.uniform(0.8, 1.1), half)
        at = (
            world.uniform(-0.01, 0.01),
            world.uniform(-0.01, 0.01),
            half * (2 * level + 1) + 0.001 * level,
        )
        part = Part(material, 1.0, half * 4, moves=True)
        world.add_block(sides, looks[level % 3], at, part, Release(0), world.uniform(-20, 20))
    velocity = (world.uniform(3.5, 5), 0, world.uniform(0.5, 1.3))
    world.add_free(
        "ball",
        world.pick_material("metal", "stone"),
        world.uniform(0.08, 0.12),
        (-1.6, 0, world.uniform(0.3, 0.6)),
        release=Release(world.uniform(0.4, 1.2), velocity),
    )
    world.actions.append(("strike", material))
    world.azimuth = (40, 140)


def pour(world: World, length: float) -> None:
    """A tray of things is tipped over."""
    world.settle_seconds, world.resting = 1.5, True
    half, high, lift = (
        world.uniform(0.16, 0.24),
        world.uniform(0.14, 0.22),
        world.uniform(0.5, 0.8),
    )
    material, tray = world.pick_material(), world.pick_material("wood", "plastic", "metal")
    look, joint, name = world.look(tray), world.name("joint"), world.name("thing")
    thin = 0.012
    walls = (
        ((half, half, thin), (-half, 0, thin)),
        ((thin, half, high), (-2 * half, 0, high)),
        ((thin, half, high * 0.8), (0, 0, high * 0.8)),
        ((half, thin, high), (-half, half, high)),
        ((half, thin, high), (-half, -half, high)),
    )
    geoms = "".join(world.box(size, look, at, material=tray) for size, at in walls)
    world.add_body(
        f'<body name="{name}" pos="0 0 {lift:.3f}" gravcomp="1">'
        f'<joint name="{joint}" type="hinge" axis="0 1 0" armature="2"/>{geoms}</body>'
    )
    world.parts[name] = Part(tray, 0.5, 0.6, moves=False, effective_mass=IMMOVABLE)
    start, taken = world.uniform(0.5, 1), world.uniform(0.8, 2.0)
    angle = world.uniform(1.9, 2.3)

    def tip(seconds: float, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        share = min(max((seconds - start) / taken, 0), 1)
        hinge = model.joint(joint)
        position, speed = data.qpos[hinge.qposadr[0]], data.qvel[hinge.dofadr[0]]
        wanted = angle * share * share * (3 - 2 * share)
        data.qfrc_applied[hinge.dofadr[0]] = 8000 * (wanted - position) - 400 * speed

    world.controls.append(tip)
    size, shape = half * 0.26, world.pick("ball", "box", "rock", "cylinder", "can")
    for index in range(int(world.rng.integers(3, 8))):
        at = (
            -half + (index % 2 - 0.5) * half * 0.9,
            (index // 2 % 2 - 0.5) * half * 0.9,
            lift + 0.03 + 1.5 * size + (index // 4) * 3.4 * size,
        )
        world.add_free(shape, material, size * world.uniform(0.7, 1), at, release=Release(0))
    world.actions.append(("bounce", material))
    world.azimuth, world.elevation = (45, 135), (-30, -8)


LOOSE = {
    scene.__name__: scene
    for scene in (
        drop, bounce, table, dominoes, wall_ball, slide, pins, stairs, tower, pour
    )
}  # fmt: skip
