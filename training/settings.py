"""The trained preset, and the functions that all training scripts share."""

import json
import os
import time
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foley.atomic import atomic_path
from foley.configs import TINY

TRAINED = TINY


class TrainingBudget:
    """The time limit of a run.

    Args:
        minutes: of wall time, from now on.
        max_steps: a further limit; None for none.
    """

    def __init__(self, minutes: float, max_steps: int | None = None) -> None:
        self.start = time.monotonic()
        self.seconds = 60 * minutes
        self.max_steps = max_steps

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        """The share of the limit that is used, 0 to 1, by time or by steps."""
        by_time = self.elapsed / self.seconds
        by_steps = step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(by_time, by_steps))


def learning_rate(progress: float, peak: float, step: int, warm_up: int = 100) -> float:
    """The learning rate: a linear warm-up, then a cosine down to a fiftieth of the peak.

    Args:
        progress: share of the run, 0 to 1.
        peak: largest rate.
        step: number of this step, from 0.
        warm_up: steps of the warm-up.
    """
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine)


class WeightAverage:
    """An exponential moving average of a module's parameters.

    Args:
        module: whose parameters are averaged.
        decay: of the average, after a warm-up with less.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = list(module.parameters())
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current parameters to the average."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters and their average; a second call undoes it."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


def set_up(seed: int) -> torch.device:
    """Set the seed and the arithmetic of training; returns the device."""
    torch.manual_seed(seed)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = 64
        torch.fx.experimental._config.use_duck_shape = False  # equal sizes may differ later
        return torch.device("cuda")
    return torch.device("cpu")


def save_state(path: Path, state: dict[str, Tensor], *, half: bool = False) -> None:
    """Write weights to a safetensors file, with `half` in half precision."""
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if half:
        kept = {k: v.half() if v.is_floating_point() else v for k, v in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another training may wait for the file.
    with atomic_path(path) as part:
        save_file(kept, part)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read the weights of a file."""
    return load_file(path, device=str(device))


def load_compile_cache(*folders: Path | None) -> None:
    """Load the code that earlier runs on the same kind of machine compiled, from these folders."""
    for folder in folders if torch.cuda.is_available() else ():
        for path in sorted(folder.glob("*.compiled")) if folder else ():
            try:
                torch.compiler.load_cache_artifacts(zlib.decompress(path.read_bytes()))
            except Exception as error:  # noqa: BLE001 - the code is compiled again
                print(f"{path.name} cannot be used here: {error}", flush=True)


def save_compile_cache(path: Path) -> None:
    """Write the compiled code, which saves later runs a minute or two."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        packed = zlib.compress(artifacts[0])
        path.write_bytes(packed)
        print(f"compiled code: {len(packed) / 1e6:.1f} MB", flush=True)


def hardware_name() -> str:
    """The name of the GPU, or cpu."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def write_record(path: Path, **values: object) -> None:
    """Write a run's record, and print it as one line of JSON."""
    commit = os.environ.get("TRAINING_COMMIT")  # the machine that trains may have no repository
    values = {"commit": commit, "hardware": hardware_name(), "torch": torch.__version__} | values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values), flush=True)
