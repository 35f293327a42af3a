"""Which preset is trained here, and what every script shares."""

import json
import os
import time
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foley.configs import TINY

TRAINED = TINY


class TrainingBudget:
    """A run's wall time, and how far it has come."""

    def __init__(self, minutes: float, max_steps: int | None = None) -> None:
        self.start = time.monotonic()
        self.seconds = 60 * minutes
        self.max_steps = max_steps

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    def progress(self, step: int) -> float:
        """0 .. 1, by time or by steps, whichever is further."""
        by_time = self.elapsed / self.seconds
        by_steps = step / self.max_steps if self.max_steps else 0.0
        return min(1.0, max(by_time, by_steps))


def learning_rate(progress: float, peak: float, step: int, warm_up: int = 100) -> float:
    """Linear warm-up, then a cosine to a fiftieth."""
    cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())
    return peak * min(1.0, (step + 1) / warm_up) * (0.02 + 0.98 * cosine)


class WeightAverage:
    """Exponential moving average of a module's parameters, with a warm-up."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.live = list(module.parameters())
        self.mean = [p.detach().clone() for p in self.live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.mean, [p.detach() for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the live parameters and their mean; call again to undo."""
        for live, mean in zip(self.live, self.mean, strict=True):
            kept = live.detach().clone()
            live.copy_(mean)
            mean.copy_(kept)


def set_up(seed: int) -> torch.device:
    """The device, with the arithmetic that training uses."""
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
    """Write weights; in half precision where they would not fit a file of 16 MB."""
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    if half:
        kept = {k: v.half() if v.is_floating_point() else v for k, v in kept.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(kept, path)


def load_state(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The weights of a file."""
    return load_file(path, device=str(device))


def load_compile_cache(*folders: Path | None) -> None:
    """Take over what earlier runs on the same kind of machine compiled and left in folders."""
    for folder in folders if torch.cuda.is_available() else ():
        for path in sorted(folder.glob("*.compiled")) if folder else ():
            try:
                torch.compiler.load_cache_artifacts(zlib.decompress(path.read_bytes()))
            except Exception as error:  # noqa: BLE001 - of another version: compiled again, then
                print(f"{path.name} is of no use here: {error}", flush=True)


def save_compile_cache(path: Path) -> None:
    """Keep what was compiled: a compilation costs a minute or two of each run."""
    artifacts = torch.compiler.save_cache_artifacts()
    if artifacts is not None:
        packed = zlib.compress(artifacts[0])
        path.write_bytes(packed)
        print(f"compiled code: {len(packed) / 1e6:.1f} MB", flush=True)


def hardware_name() -> str:
    """What this runs on."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def write_record(path: Path, **values: object) -> None:
    """Print a run's record as its last line, and write it."""
    commit = os.environ.get("TRAINING_COMMIT")  # where it runs there is no repository
    values = {"commit": commit, "hardware": hardware_name(), "torch": torch.__version__} | values
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=1) + "\n")
    print(json.dumps(values), flush=True)
