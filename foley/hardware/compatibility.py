"""What runs with what: versions, drivers and memory, as data. `foley doctor` compares with it."""

from dataclasses import dataclass

Version = tuple[int, ...]

PYTHONS: tuple[Version, ...] = ((3, 11), (3, 12))

# Least versions of what is imported; the upper ends are those that the tests ran with.
PACKAGES: dict[str, str] = {
    "torch": "2.8",
    "transformers": "5.0",
    "diffusers": "0.36",
    "safetensors": "0.6",
    "huggingface_hub": "1.0",
    "av": "16",
    "numpy": "2.0",
}
SERVING_PACKAGES: dict[str, str] = {"bentoml": "1.4.39"}
# Versions that cannot be installed or do not work, and why.
REFUSED: dict[str, dict[str, str]] = {
    "bentoml": {"1.4.40": "it asks for a certifi that was never published; install 1.4.39"}
}

# The CUDA that PyTorch's default build carries, by the first version that does.
TORCH_CUDA: tuple[tuple[Version, str], ...] = (
    ((2, 8), "12.8"),
    ((2, 11), "13.0"),
    ((2, 15), "13.2"),
)

# Least driver for each major version of CUDA: NVIDIA's minor-version compatibility.
DRIVERS: dict[int, str] = {12: "525.60.13", 13: "580.65.06"}


@dataclass(frozen=True, kw_only=True)
class FlashWheel:
    """A wheel that the flash-attention project publishes."""

    version: str
    torch: Version
    cuda: int  # major version
    pythons: tuple[Version, ...]

    def name(self, python: Version) -> str:
        """The wheel's file name for a Python."""
        tag = "cp" + "".join(map(str, python))
        torch = ".".join(map(str, self.torch))
        return (
            f"flash_attn-{self.version}+cu{self.cuda}torch{torch}cxx11abiTRUE-"
            f"{tag}-{tag}-linux_x86_64.whl"
        )


# The newest PyTorch that has one; later ones need none (PyTorch's own kernels are used) or a build.
FLASH_WHEEL = FlashWheel(version="2.8.3", torch=(2, 8), cuda=12, pythons=((3, 11), (3, 12)))
FLASH_CAPABILITY: Version = (8, 0)  # bfloat16 kernels: Ampere and later

# Weights as they lie on the GPU (transformer in bfloat16, the rest in float32) and 4 GB to work in.
# The weights are counted, the 4 GB an estimate; a service of xxl took 16.1 GB of an H100 at most.
GPU_BYTES: dict[str, int] = {"xl": 12_700_000_000, "xxl": 17_200_000_000}
# What a download takes: the sums of foley/weights/sources.py, with room for the tokenizer.
DISK_BYTES: dict[str, int] = {"xl": 10_600_000_000, "xxl": 15_100_000_000}


def parse(text: str) -> Version:
    """The leading numbers of a version, such as (2, 8, 0) of 2.8.0+cu128."""
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
