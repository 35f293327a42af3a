"""Choose a model, its folder and a device from the names that a user gives."""

from pathlib import Path

import torch

from foley.configs import PRESETS, TINY, Preset
from foley.errors import CheckpointError, ConfigError, DeviceError
from foley.weights.components import Components
from foley.weights.detection import DESCRIPTION_FILE, has_official_files
from foley.weights.hub import default_folder
from foley.weights.loading import load_components
from foley.weights.manifest import missing_files
from foley.weights.sources import FILES, LEAST_GPU_BYTES

EMBEDDED_WEIGHTS = Path(__file__).parent / "tiny"


def load_preset(name: str, weights: Path | None, device: torch.device) -> Components:
    """Load the model of a preset.

    Args:
        name: tiny, xl, xxl or auto.
        weights: folder of the weights; None for the one that `foley download` fills.
        device: where the weights are put.

    Raises:
        ConfigError: the preset is unknown, or its weights were not downloaded.
        CheckpointError: weights are missing, changed, or do not fit.
    """
    if weights is not None:
        return load_components(weights, choose_preset(name, weights), device=str(device))
    if name == "auto":
        name = find_largest_preset(device)
    if name == TINY.name:
        return load_embedded()
    preset, folder = find_preset(name), default_folder()
    if not has_official_files(preset, folder):
        raise ConfigError(
            f"preset {name} needs weights, and {folder} has none; run `foley download {name}`, or "
            "name their folder"
        )
    if missing := missing_files(FILES[name], folder):
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of the files of {name} (first: {missing[0].place}), or "
            f"they changed; run `foley download {name}` again"
        )
    return load_components(folder, preset, device=str(device))


def find_largest_preset(device: torch.device) -> str:
    """Return the name of the largest preset that is downloaded and fits the GPU, or tiny."""
    if device.type == "cuda":
        _, num_bytes = torch.cuda.mem_get_info(device)
        folder = default_folder()
        for name in ("xxl", "xl"):
            if num_bytes >= LEAST_GPU_BYTES and not missing_files(FILES[name], folder):
                return name
    return TINY.name


def choose_device(name: str) -> torch.device:
    """Return the device of a name; auto is the first GPU, or the CPU if there is none.

    Args:
        name: auto, cpu, cuda or cuda:N.

    Raises:
        DeviceError: the name is unknown, or there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device {name!r} is not known; use auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name} is not there: PyTorch {torch.__version__} sees "
            f"{torch.cuda.device_count()} CUDA devices; check the driver, or use cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:N")
    return device


def find_preset(name: str) -> Preset:
    """Return the preset of a name.

    Args:
        name: tiny, xl or xxl.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; there are {', '.join(PRESETS)} and auto")
    return PRESETS[name]


def choose_preset(name: str, weights: Path) -> Preset | None:
    """Return the preset to load from a folder; None for the one that its `foley.json` states.

    Args:
        name: tiny, xl, xxl, or auto for the largest preset that the folder holds.
        weights: the folder.

    Raises:
        ConfigError: the name is unknown.
        CheckpointError: the name is auto, and the folder holds no model.
    """
    if name != "auto":
        return find_preset(name)
    if (weights / DESCRIPTION_FILE).is_file():
        return None
    for preset in (PRESETS["xxl"], PRESETS["xl"]):
        if has_official_files(preset, weights):
            return preset
    raise CheckpointError(f"{weights} holds neither the official files nor a converted model")


def load_embedded() -> Components:
    """Load the model in the package.

    Raises:
        CheckpointError: the package was installed without it.
    """
    if not (EMBEDDED_WEIGHTS / DESCRIPTION_FILE).is_file():
        raise CheckpointError(
            f"{EMBEDDED_WEIGHTS} holds no {DESCRIPTION_FILE}: foley was installed without its "
            "small model; install it again"
        )
    return load_components(EMBEDDED_WEIGHTS, TINY)
