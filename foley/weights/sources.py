"""The official files: repositories, pinned revisions, sizes, SHA-256, and what presets need.

Sizes and hashes are those that the hub's pages listed. A download compares them with what the hub
states for the pinned revision before it receives a byte. If a value is None, the file is verified
against the hub's own statement.
"""

from dataclasses import dataclass

_MODEL = ("tencent/HunyuanVideo-Foley", "3abd4e833b95b8db0fc9c687afc52483a48e9a97")
_SIGLIP2 = ("google/siglip2-base-patch16-512", "a89f5c5093f902bf39d3cd4d81d2c09867f0724b")
_CLAP = ("laion/larger_clap_general", "ada0c23a36c4e8582805bb38fec3905903f18b41")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository on the hub, and its place in a folder of weights.

    Attributes:
        repo: owner and name, such as `laion/larger_clap_general`.
        revision: a commit, 40 hexadecimal digits.
        path: the file's path in the repository.
        place: its path in the folder.
        num_bytes: its size; None if it is not known.
        sha256: hexadecimal; None if it is not known.
        required: False if the model loads without it; the repository may then lack it.
    """

    repo: str
    revision: str
    path: str
    place: str
    num_bytes: int | None
    sha256: str | None
    required: bool = True


def _file(
    source: tuple[str, str],
    path: str,
    num_bytes: int | None = None,
    sha256: str | None = None,
    *,
    required: bool = True,
) -> HubFile:
    repo, revision = source
    # The encoders lie in folders with the names of their repositories, as in copies made by hand.
    folder = "" if source is _MODEL else repo.partition("/")[2] + "/"
    return HubFile(
        repo=repo,
        revision=revision,
        path=path,
        place=folder + path,
        num_bytes=num_bytes,
        sha256=sha256,
        required=required,
    )


_SHARED = (
    _file(_MODEL, "LICENSE", required=False),
    _file(_MODEL, "NOTICE", required=False),
    _file(
        _MODEL,
        "vae_128d_48k.pth",
        1_486_465_965,
        "07e6139ff33bd21ba8a7a7f40ed24aab13ac0d100cd686f8a9f3e03dc5251cb1",
    ),
    _file(
        _MODEL,
        "synchformer_state_dict.pth",
        950_058_171,
        "8aff082f2df5c3bc52759db0c865c7ee772ae6400b860d1b7e90413f2defb67c",
    ),
    _file(_SIGLIP2, "model.safetensors", 1_503_344_520),
    _file(
        _CLAP,
        "pytorch_model.bin",
        776_444_665,
        "314eb00cce6ad68d25237b8446b659ccdb136ed4672c1bca470f142f72455026",
    ),
    _file(_CLAP, "tokenizer_config.json"),
    _file(_CLAP, "vocab.json"),
    _file(_CLAP, "merges.txt"),
    _file(_CLAP, "tokenizer.json", required=False),
    _file(_CLAP, "special_tokens_map.json", required=False),
)

# The largest file comes last, so that a repository that cannot be read is noticed early.
FILES: dict[str, tuple[HubFile, ...]] = {
    "xl": (
        *_SHARED,
        _file(
            _MODEL,
            "hunyuanvideo_foley_xl.pth",
            5_854_140_970,
            "cf7e93dca93063942bc22b53d4fe888e9d9d5a1ad7977873b7b2c6b126cf00ca",
        ),
    ),
    "xxl": (
        *_SHARED,
        _file(
            _MODEL,
            "hunyuanvideo_foley.pth",
            10_301_204_679,
            "2900021f8ee562a8175b2f1a3fafb06b9e9e848f11f4c6d4d5d72e126f7c0475",
        ),
    ),
}

# Weights as they lie on the GPU (the transformer in bfloat16, the rest in float32) and 4 GB to work
# in. The weights are counted. The 4 GB are an estimate: a service of xxl took 16.1 GB of an H100.
GPU_BYTES: dict[str, int] = {"xl": 12_700_000_000, "xxl": 17_200_000_000}
# On a smaller GPU a part of the weights stays in host memory. A card of 6 GB is the smallest on
# which xxl was measured; xl is smaller in each part.
LEAST_GPU_BYTES = 6_000_000_000
# What a download takes: the sum of `FILES`, and room for the files of unknown size.
DISK_BYTES: dict[str, int] = {"xl": 10_600_000_000, "xxl": 15_100_000_000}
