"""Run the physics of a world: the states that are drawn, and every contact force."""

# n drawn moments, C contacts of the whole run, q positions of the model

from dataclasses import dataclass

import mujoco
import numpy as np

from training.rendered.world import HIDDEN_HEIGHT, TIME_STEP, World

RUB_STEPS = 10  # rubbing is looked at every 5 ms
HIDDEN_AFTER_SECONDS = 0.5  # what is released later than this is not seen before
_EMPTY = ((0, 2), (0,), (0,), (0, 3), (0, 6))  # shapes of geoms, forces, speeds, points, rubs


@dataclass
class Motion:
    """What happened.

    Attributes:
        model, data: MuJoCo's; `data` is scratch space from here on.
        seconds: length of the clip.
        moments: [n], the times of the drawn states.
        positions: [n, q], the drawn states.
        places: [n, bodies, 3], where the bodies are then, metres.
        steps: int [C], the time step of each contact.
        pairs: int [C, 2], the bodies that touch, the lower number first.
        forces: [C], along the contact's normal, newtons.
        speeds: [C], at which the surfaces approach there, m/s; negative where they part.
        points: [C, 3], where they touch.
        rubs: rows of (seconds, body, body, sliding m/s, moving m/s, newtons).
    """

    model: mujoco.MjModel
    data: mujoco.MjData
    seconds: float
    moments: np.ndarray
    positions: np.ndarray
    places: np.ndarray
    steps: np.ndarray
    pairs: np.ndarray
    forces: np.ndarray
    speeds: np.ndarray
    points: np.ndarray
    rubs: np.ndarray

    def name_of(self, body: int) -> str:
        """Return the name of a body; the floor is "world"."""
        return self.model.body(body).name or "world"

    def place_all(self, moment: int) -> None:
        """Put `data` into the state of a drawn moment."""
        self.data.qpos[:] = self.positions[moment]
        mujoco.mj_kinematics(self.model, self.data)


class _Held:
    """Free bodies that wait for their release: they touch nothing, and later ones are hidden."""

    def __init__(self, world: World, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        self._model, self._data = model, data
        self._start = data.qpos.copy()
        self._waiting = {}
        self.pushed = []
        for name, release in world.releases.items():
            joint, body = model.joint(name), model.body(name).id
            first = model.body_geomadr[body]
            geoms = slice(first, first + model.body_geomnum[body])
            place, speed = joint.qposadr[0], joint.dofadr[0]
            if world.resting and release.seconds <= 0:
                self.pushed.append((speed, release))
                continue
            touches = model.geom_contype[geoms].copy(), model.geom_conaffinity[geoms].copy()
            self._waiting[name] = place, speed, release, geoms, touches
            if release.seconds > 0:
                model.geom_contype[geoms] = model.geom_conaffinity[geoms] = 0

    def step(self, seconds: float, hide: bool) -> None:
        """Release what is due and hold the rest."""
        data = self._data
        for name in list(self._waiting):
            place, speed, release, geoms, touches = self._waiting[name]
            data.qpos[place : place + 7] = self._start[place : place + 7]
            if seconds >= release.seconds:
                data.qvel[speed : speed + 3] = release.velocity
                data.qvel[speed + 3 : speed + 6] = release.spin
                self._model.geom_contype[geoms], self._model.geom_conaffinity[geoms] = touches
                del self._waiting[name]
            else:
                data.qvel[speed : speed + 6] = 0
                if hide and release.seconds > HIDDEN_AFTER_SECONDS:
                    data.qpos[place + 2] = HIDDEN_HEIGHT

    def push(self) -> None:
        """Give what rests at the start its first speed."""
        for speed, release in self.pushed:
            self._data.qvel[speed : speed + 3] = release.velocity
            self._data.qvel[speed + 3 : speed + 6] = release.spin


def _rub_rows(
    seconds: float, model: mujoco.MjModel, data: mujoco.MjData, live: np.ndarray
) -> np.ndarray:
    """Return how fast the bodies of each pressed contact slide over each other, [contacts, 6]."""
    contact = data.contact
    forces = data.efc_force[contact.efc_address[live]]
    pressed = forces > 0
    bodies = model.geom_bodyid[contact.geom[live][pressed]]  # [contacts, 2]
    points, normals = contact.pos[live][pressed], contact.frame[live][pressed, :3]
    turning, moving = np.split(data.cvel[bodies], 2, axis=-1)  # [contacts, 2, 3] each
    arms = points[:, None] - data.subtree_com[model.body_rootid[bodies]]
    speeds = moving + np.cross(turning, arms)
    relative = speeds[:, 1] - speeds[:, 0]
    along = (relative * normals).sum(-1, keepdims=True)
    sliding = np.linalg.norm(relative - normals * along, axis=-1)
    fastest = np.linalg.norm(moving, axis=-1).max(-1)
    when = np.full(len(bodies), seconds)
    return np.column_stack((when, bodies, sliding, fastest, forces[pressed]))


def simulate(world: World, xml: str, seconds: float, moments: np.ndarray) -> Motion:
    """Return the motion of a world.

    Args:
        world: that `xml` was written from.
        xml: MJCF.
        seconds: length of the clip.
        moments: rising times in 0 .. `seconds` at which it is drawn, [n].
    """
    model = mujoco.MjModel.from_xml_string(xml, world.files)
    data = mujoco.MjData(model)
    hinges = {
        hinge.joint: (
            model.joint(hinge.joint).qposadr[0],
            model.joint(hinge.joint).dofadr[0],
            hinge,
        )
        for hinge in world.hinges
    }
    for place, _, hinge in hinges.values():
        data.qpos[place] = hinge.angle
    held = _Held(world, model, data)
    for _ in range(round(world.settle_seconds / TIME_STEP)):
        for control in world.controls:
            control(0.0, model, data)
        held.step(-1.0, hide=False)
        mujoco.mj_step(model, data)
        data.qvel[:] *= 0.999
    if world.settle_seconds:
        data.qvel[:] = 0
        data.time = 0
    held.push()
    positions: list[np.ndarray] = []
    places: list[np.ndarray] = []
    # Raw, a list each, and put together at the end: numpy on each step takes longer than the step.
    steps: list[int] = []
    touched: list[int] = []
    geoms, forces, speeds, points, rubs = ([np.zeros(shape)] for shape in _EMPTY)
    due = np.rint(moments / TIME_STEP).astype(int)
    for step in range(round(seconds / TIME_STEP)):
        now = step * TIME_STEP
        for control in world.controls:
            control(now, model, data)
        held.step(now, hide=not world.resting)
        for joint in list(hinges):
            place, speed, hinge = hinges[joint]
            if now >= hinge.seconds:
                del hinges[joint]
            else:
                data.qpos[place], data.qvel[speed] = hinge.angle, 0
        while len(positions) < len(due) and step >= due[len(positions)]:
            mujoco.mj_kinematics(model, data)
            positions.append(data.qpos.copy())
            places.append(data.xpos.copy())
        mujoco.mj_step(model, data)
        if not data.ncon:
            continue
        contact = data.contact
        live = contact.efc_address >= 0
        rows = contact.efc_address[live]
        touched.append(len(rows))
        steps.append(step)
        geoms.append(contact.geom[live])
        forces.append(data.efc_force[rows])
        speeds.append(-data.efc_vel[rows])
        points.append(contact.pos[live])
        if world.rubs and step % RUB_STEPS == 0:
            rubs.append(_rub_rows(now, model, data, live))
    while len(positions) < len(due):
        positions.append(data.qpos.copy())
        places.append(data.xpos.copy())
    return Motion(
        model,
        data,
        seconds,
        moments,
        np.array(positions),
        np.array(places),
        np.repeat(np.array(steps, int), np.array(touched, int)),
        np.sort(model.geom_bodyid[np.concatenate(geoms).astype(int)], 1).astype(int),
        np.concatenate(forces),
        np.concatenate(speeds),
        np.concatenate(points),
        np.concatenate(rubs),
    )
