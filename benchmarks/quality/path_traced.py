"""Draw held-out rendered clips by another renderer, Blender's Cycles, which no training uses.

    pip install --no-deps --target FOLDER bpy==5.0.1
    PYTHONPATH=FOLDER python -m benchmarks.quality.path_traced DIR [--count 12] [--seconds 4]

The scenes, their physics and their cameras are made as those of `training.rendered`; light,
surfaces and pictures are Cycles' own. Writes NAME.mp4, NAME.json and the exact sound as NAME.wav,
for `benchmarks.quality.sync`. Blender is under the GPL; nothing of it is part of the project.
"""

# n frames, S pixels a side, P pixels of a texture a side

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from PIL import Image

from benchmarks.quality.make_clips import write_clip, write_sound
from training.rendered.camera import Camera
from training.rendered.clip import MEASURED, RenderedClip, list_unscored, make_clip
from training.rendered.simulate import Motion
from training.rendered.stream import collate

SEED = 913  # of no training and of no other measurement
_SHOWN_GROUPS = 3  # MuJoCo draws the geoms of the groups below it


class CyclesDrawer:
    """Draws the frames of a simulated clip by Cycles, as `training.rendered.draw.draw_frames` does.

    Args:
        samples: paths of a pixel.
        threads: of the renderer.
    """

    def __init__(self, samples: int, threads: int) -> None:
        self._samples, self._threads = samples, threads

    def __call__(
        self, motion: Motion, camera: Camera, rng: np.random.Generator, size: int, _: np.ndarray
    ) -> np.ndarray:
        """Return the frames, uint8 RGB [n, S, S, 3]; they are not blurred by motion.

        Args:
            motion: of the clip.
            camera: one view a frame.
            rng: of light, lens and tones.
            size: pixels a side.
            _: moments of an exposure, which are not used.
        """
        import bpy  # type: ignore[import-not-found]

        bpy.ops.wm.read_factory_settings(use_empty=True)
        scene = bpy.context.scene
        self._set_up(scene, rng, size)
        shown = _list_shown(motion.model)
        surfaces: dict[int, Any] = {}
        things = [_add_thing(bpy, motion.model, geom, surfaces) for geom in shown]
        eye = _add_camera(bpy, camera, rng)
        _add_light(bpy, motion.model, rng)
        frames = np.empty((len(camera.views), size, size, 3), np.uint8)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "frame.png"
            scene.render.filepath = str(file)
            for index, view in enumerate(camera.views):
                motion.place_all(index)
                for thing, geom in zip(things, shown, strict=True):
                    _place(thing, motion.data.geom_xpos[geom], motion.data.geom_xmat[geom])
                right, up, forward = view.axes
                _place(eye, view.place, np.stack((right, up, -forward), 1))
                scene.cycles.seed = index
                bpy.ops.render.render(write_still=True)
                frames[index] = np.asarray(Image.open(file).convert("RGB"))
        return frames

    def _set_up(self, scene: Any, rng: np.random.Generator, size: int) -> None:
        import addon_utils  # type: ignore[import-not-found]

        addon_utils.enable("cycles")
        render, cycles = scene.render, scene.cycles
        render.engine = "CYCLES"
        render.resolution_x = render.resolution_y = size
        render.resolution_percentage = 100
        render.threads_mode, render.threads = "FIXED", self._threads
        render.use_persistent_data = True
        render.image_settings.file_format = "PNG"
        cycles.device, cycles.samples = "CPU", self._samples
        cycles.use_adaptive_sampling = False
        # Its best quality takes four times as long as the tracing.
        cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
        cycles.denoising_quality, cycles.denoising_prefilter = "FAST", "NONE"
        cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces = 4, 2, 2
        cycles.caustics_reflective = cycles.caustics_refractive = False
        scene.view_settings.view_transform = str(rng.choice(("Standard", "AgX")))


def _list_shown(model: mujoco.MjModel) -> list[int]:
    """Return the geoms that MuJoCo would draw."""
    return [
        geom
        for geom in range(model.ngeom)
        if model.geom_group[geom] < _SHOWN_GROUPS
        and (model.geom_matid[geom] >= 0 or model.geom_rgba[geom, 3] > 0)
    ]


def _place(thing: Any, place: np.ndarray, turn: np.ndarray) -> None:
    """Move an object to a place [3] and a turn [3, 3], without changing its size."""
    from mathutils import Matrix  # type: ignore[import-not-found]

    rotation = Matrix(np.reshape(turn, (3, 3)).tolist())
    thing.location = place.tolist()
    thing.rotation_quaternion = rotation.to_quaternion()


def _read_texture(model: mujoco.MjModel, texture: int) -> np.ndarray:
    """Return a texture of a model in 0 .. 1, float32 [P, P, 3]; of a cube, one of its faces."""
    width, channels = int(model.tex_width[texture]), int(model.tex_nchannel[texture])
    first = int(model.tex_adr[texture])
    height = min(int(model.tex_height[texture]), width)
    data = model.tex_data[first : first + width * height * channels]
    pixels: np.ndarray = data.reshape(height, width, channels)[..., :3]
    return pixels.astype(np.float32) / 255


def _make_surface(bpy: Any, model: mujoco.MjModel, material: int, *, flat: bool) -> Any:
    """Return a surface that looks as a material of a model, with its texture from all sides."""
    surface = bpy.data.materials.new("surface")
    surface.use_nodes = True
    tree = surface.node_tree
    shader = tree.nodes["Principled BSDF"]
    specular = float(model.mat_specular[material])
    shader.inputs["Roughness"].default_value = float(np.clip(0.75 - 0.6 * specular, 0.15, 0.8))
    if math.isclose(specular, 0.8, abs_tol=1e-3):  # what `looks` gives to metal
        shader.inputs["Metallic"].default_value = 0.9
    if model.mat_rgba[material, 3] < 0.99:
        shader.inputs["Transmission Weight"].default_value = 0.85
        shader.inputs["IOR"].default_value = 1.3
    textures = [int(index) for index in model.mat_texid[material] if index >= 0]
    if not textures:
        shader.inputs["Base Color"].default_value = model.mat_rgba[material].tolist()
        return surface
    pixels = _read_texture(model, textures[0])
    image = bpy.data.images.new("texture", pixels.shape[1], pixels.shape[0])
    opaque = np.ones((*pixels.shape[:2], 4), np.float32)
    opaque[..., :3] = pixels[::-1]
    image.pixels.foreach_set(opaque.ravel())
    image.pack()
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image, node.projection, node.projection_blend = image, "BOX", 0.2
    coordinates, mapping = (
        tree.nodes.new(kind) for kind in ("ShaderNodeTexCoord", "ShaderNodeMapping")
    )
    scale = float(model.mat_texrepeat[material, 0]) if flat else 0.5
    mapping.inputs["Scale"].default_value = (scale,) * 3
    tree.links.new(coordinates.outputs["Object"], mapping.inputs["Vector"])
    tree.links.new(mapping.outputs["Vector"], node.inputs["Vector"])
    tree.links.new(node.outputs["Color"], shader.inputs["Base Color"])
    return surface


def _add_thing(bpy: Any, model: mujoco.MjModel, geom: int, surfaces: dict[int, Any]) -> Any:
    """Add an object of a geom's shape and look, and return it."""
    kind = mujoco.mjtGeom(int(model.geom_type[geom])).name.removeprefix("mjGEOM_").lower()
    size = model.geom_size[geom].tolist()
    thing = _SHAPES[kind](bpy, model, geom)
    scales = {"sphere": size[:1] * 3, "ellipsoid": size, "box": size}
    thing.scale = scales.get(kind, (1, 1, 1))
    if kind == "box":
        edge = thing.modifiers.new("edge", "BEVEL")
        edge.width, edge.segments = 0.03, 1
    elif kind != "plane":
        smooth = kind != "mesh" or len(thing.data.vertices) > 60
        thing.data.polygons.foreach_set("use_smooth", [smooth] * len(thing.data.polygons))
    material = int(model.geom_matid[geom])
    if material >= 0 and material not in surfaces:
        surfaces[material] = _make_surface(bpy, model, material, flat=kind == "plane")
    thing.data.materials.clear()
    if material >= 0:
        thing.data.materials.append(surfaces[material])
    thing.rotation_mode = "QUATERNION"
    return thing


def _add_plane(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    bpy.ops.mesh.primitive_plane_add(size=2 * float(model.geom_size[geom, 0]))
    return bpy.context.object


def _add_ball(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    bpy.ops.mesh.primitive_uv_sphere_add(segments=32, ring_count=16, radius=1)
    return bpy.context.object


def _add_box(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    bpy.ops.mesh.primitive_cube_add(size=2)
    return bpy.context.object


def _add_cylinder(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    radius, half = model.geom_size[geom, :2].tolist()
    bpy.ops.mesh.primitive_cylinder_add(radius=radius, depth=2 * half, vertices=40)
    return bpy.context.object


def _add_capsule(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    radius, half = model.geom_size[geom, :2].tolist()
    parts = [_add_cylinder(bpy, model, geom)]
    for end in (-half, half):
        bpy.ops.mesh.primitive_uv_sphere_add(
            segments=24, ring_count=12, radius=radius, location=(0, 0, end)
        )
        parts.append(bpy.context.object)
    bpy.ops.object.select_all(action="DESELECT")
    for part in parts:
        part.select_set(True)
    bpy.context.view_layer.objects.active = parts[0]
    bpy.ops.object.join()
    return parts[0]


def _add_mesh(bpy: Any, model: mujoco.MjModel, geom: int) -> Any:
    number = int(model.geom_dataid[geom])
    first, count = int(model.mesh_vertadr[number]), int(model.mesh_vertnum[number])
    face, faces = int(model.mesh_faceadr[number]), int(model.mesh_facenum[number])
    mesh = bpy.data.meshes.new("mesh")
    mesh.from_pydata(
        model.mesh_vert[first : first + count].tolist(),
        [],
        model.mesh_face[face : face + faces].tolist(),
    )
    thing = bpy.data.objects.new("mesh", mesh)
    bpy.context.scene.collection.objects.link(thing)
    return thing


_SHAPES: dict[str, Callable[[Any, mujoco.MjModel, int], Any]] = {
    "plane": _add_plane,
    "sphere": _add_ball,
    "ellipsoid": _add_ball,
    "box": _add_box,
    "cylinder": _add_cylinder,
    "capsule": _add_capsule,
    "mesh": _add_mesh,
}


def _add_camera(bpy: Any, camera: Camera, rng: np.random.Generator) -> Any:
    """Add a lens of the camera's field of view, sometimes with little depth of field."""
    lens = bpy.data.cameras.new("eye")
    eye = bpy.data.objects.new("eye", lens)
    bpy.context.scene.collection.objects.link(eye)
    bpy.context.scene.camera = eye
    lens.sensor_fit, lens.angle = "VERTICAL", 2 * math.atan(camera.tangent)
    lens.clip_start = 0.01
    if rng.random() < 0.4:
        lens.dof.use_dof, lens.dof.focus_distance = True, camera.distance
        lens.dof.aperture_fstop = float(rng.uniform(1.4, 5.6))
    eye.rotation_mode = "QUATERNION"
    return eye


def _add_light(bpy: Any, model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Add a sun from where the model's first light shines, and an even sky."""
    from mathutils import Vector

    sun = bpy.data.lights.new("sun", "SUN")
    sun.energy, sun.angle = float(rng.uniform(2, 5)), math.radians(rng.uniform(1, 10))
    sun.color = rng.uniform(0.85, 1, 3).tolist()
    thing = bpy.data.objects.new("sun", sun)
    thing.rotation_mode = "QUATERNION"
    thing.rotation_quaternion = Vector(model.light_dir[0].tolist()).to_track_quat("-Z", "Y")
    bpy.context.scene.collection.objects.link(thing)
    world = bpy.data.worlds.new("sky")
    bpy.context.scene.world = world
    world.use_nodes = True
    sky = world.node_tree.nodes["Background"].inputs
    sky["Color"].default_value = (*rng.uniform(0.3, 0.9, 3).tolist(), 1)
    sky["Strength"].default_value = float(rng.uniform(0.4, 1.0))


def write_labelled(folder: Path, name: str, clip: RenderedClip) -> None:
    """Write the pictures, the events, the prompt and the exact sound of a clip.

    Args:
        folder: to write to.
        name: of the files.
        clip: with pictures.
    """
    assert clip.pictures is not None
    pictures = torch.from_numpy(clip.pictures).permute(0, 3, 1, 2)
    write_clip(folder / f"{name}.mp4", pictures, 18)
    write_sound(folder / f"{name}.wav", collate([clip]).waveform()[0])
    scored = [{"time": round(event.seconds, 4)} for event in clip.events if event.scored]
    unscored = [{"time": round(seconds, 4)} for seconds in list_unscored(clip)]
    description = {"events": scored, "unscored": unscored, "prompt": clip.scene.prompt}
    (folder / f"{name}.json").write_text(json.dumps(description, indent=1) + "\n")


def main() -> None:
    """Write a folder of clips, one of each kind of scene in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    draw = CyclesDrawer(args.samples, args.threads)
    kinds = sorted(MEASURED)
    for index in range(args.first, args.first + args.count):
        start = time.monotonic()
        # Seven is no divisor of the number of kinds, so that a few clips are of kinds unlike.
        kind = kinds[7 * index % len(kinds)]
        clip = make_clip((SEED, index), args.seconds, kind=kind, size=args.size, draw=draw)
        name = f"{index:02d}_{clip.kind}"
        write_labelled(args.folder, name, clip)
        seen = sum(event.scored for event in clip.events)
        print(f"{name}: {seen} events, {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
