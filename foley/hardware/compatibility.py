"""Which versions of Python, packages, CUDA and drivers work together, as data."""

from dataclasses import dataclass

Version = tuple[int, ...]

PYTHONS: tuple[Version, ...] = ((3, 11), (3, 12))

# The lowest versions that the core tests pass on (`make test-lowest`), as in pyproject.toml.
PACKAGES: dict[str, str] = {
    "torch": "2.8",
    "transformers": "5.6",
    "diffusers": "0.36",
    "safetensors": "0.6.1",
    "huggingface_hub": "1.31",
    "av": "18.1",
    "numpy": "2.0",
}
SERVING_PACKAGES: dict[str, str] = {"bentoml": "1.4.39"}
# The first versions that are not admitted.
LIMITS: dict[str, str] = {"huggingface_hub": "3", "bentoml": "1.5"}
# Single versions that cannot be installed or do not work, and why.
REFUSED: dict[str, dict[str, str]] = {
    "bentoml": {"1.4.40": "it asks for a certifi that was never published; install 1.4.39"}
}

# The CUDA version of PyTorch's default build, by the first PyTorch version that has it.
TORCH_CUDA: tuple[tuple[Version, str], ...] = (
    ((2, 8), "12.8"),
    ((2, 11), "13.0"),
    ((2, 15), "13.2"),
)

# The lowest driver for each major version of CUDA. Source: NVIDIA's minor-version compatibility.
DRIVERS: dict[int, str] = {12: "525.60.13", 13: "580.65.06"}


@dataclass(frozen=True, kw_only=True)
class FlashWheel:
    """A wheel that the flash-attention project publishes.

    Attributes:
        version: of flash-attn.
        torch: major and minor version of PyTorch that it was built for.
        cuda: major version of CUDA that it was built for.
        pythons: the Python versions that it is published for.
    """

    version: str
    torch: Version
    cuda: int
    pythons: tuple[Version, ...]

    def name(self, python: Version) -> str:
        """Return the wheel's file name.

        Args:
            python: major and minor version, one of `pythons`.
        """
        tag = "cp" + "".join(map(str, python))
        torch = ".".join(map(str, self.torch))
        return (
            f"flash_attn-{self.version}+cu{self.cuda}torch{torch}cxx11abiTRUE-"
            f"{tag}-{tag}-linux_x86_64.whl"
        )


# The wheel for the newest PyTorch that has one. For later versions, PyTorch's own kernels are used.
FLASH_WHEEL = FlashWheel(version="2.8.3", torch=(2, 8), cuda=12, pythons=((3, 11), (3, 12)))
FLASH_CAPABILITY: Version = (8, 0)  # Ampere, the first with bfloat16 kernels


def parse_version(text: str) -> Version:
    """Return the leading numbers of a version, such as (2, 8, 0) of 2.8.0+cu128.

    Args:
        text: a version; the result is empty if it does not start with a digit.
    """
    numbers: list[int] = []
    for part in text.split("+")[0].split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers)
