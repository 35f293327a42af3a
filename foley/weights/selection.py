"""Which model, from which folder, on which device: what the words of a user come to."""

from pathlib import Path

import torch

from foley.configs import PRESETS, TINY, Preset
from foley.errors import CheckpointError, ConfigError, DeviceError
from foley.hardware.compatibility import GPU_BYTES
from foley.weights.components import Components
from foley.weights.detection import DESCRIPTION_FILE, has_official_files
from foley.weights.hub import default_folder
from foley.weights.loading import load_components
from foley.weights.manifest import missing_files
from foley.weights.sources import FILES

EMBEDDED_WEIGHTS = Path(__file__).parent / "tiny"


def load(name: str, weights: Path | None, device: torch.device) -> Components:
    """The model of a preset's name.

    Args:
        name: tiny, xl, xxl or auto.
        weights: folder of the weights; without it, the one that `foley download` fills.
        device: that it will run on; safetensors go straight there.

    Raises:
        ConfigError: unknown preset, or weights needed and not there.
        CheckpointError: the weights are missing or do not fit.
    """
    if weights is not None:
        return load_components(weights, choose_preset(name, weights), device=str(device))
    if name == "auto":
        name = largest_downloaded(device)
    if name == TINY.name:
        return load_embedded()
    preset, folder = known(name), default_folder()
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


def largest_downloaded(device: torch.device) -> str:
    """The largest preset that was downloaded whole and fits the GPU; tiny where there is none."""
    if device.type == "cuda":
        _, num_bytes = torch.cuda.mem_get_info(device)
        for name in ("xxl", "xl"):
            if num_bytes >= GPU_BYTES[name] and not missing_files(FILES[name], default_folder()):
                return name
    return TINY.name


def choose_device(name: str) -> torch.device:
    """The device of that name; auto is the first GPU, or else the CPU.

    Raises:
        DeviceError: unknown, or not there.
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


def known(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is not known; there are {', '.join(PRESETS)} and auto")
    return PRESETS[name]


def choose_preset(name: str, weights: Path) -> Preset | None:
    """The preset of that name; auto is the largest whose files lie in the directory.

    None stands for what the directory's own description says.

    Raises:
        ConfigError: unknown name.
        CheckpointError: auto, and the directory holds no model.
    """
    if name != "auto":
        return known(name)
    if (weights / DESCRIPTION_FILE).is_file():
        return None
    for preset in (PRESETS["xxl"], PRESETS["xl"]):
        if has_official_files(preset, weights):
            return preset
    raise CheckpointError(f"{weights} holds neither the official files nor a converted model")


def load_embedded() -> Components:
    """The model in the package.

    Raises:
        CheckpointError: it is missing or does not fit.
    """
    if not (EMBEDDED_WEIGHTS / DESCRIPTION_FILE).is_file():
        raise CheckpointError(
            f"{EMBEDDED_WEIGHTS} holds no {DESCRIPTION_FILE}: foley was installed without its "
            "small model; install it again"
        )
    return load_components(EMBEDDED_WEIGHTS, TINY)
