"""Where the official files come from: repositories, pinned revisions, sizes and SHA-256.

Sizes and hashes are those that the hub's pages listed; the first fetch compares them with what the
hub states for the pinned revision, before it fetches a byte. Where a value is None, the hub's own
statement at that revision is what a file is verified against.
"""

from dataclasses import dataclass

MODEL = ("tencent/HunyuanVideo-Foley", "3abd4e833b95b8db0fc9c687afc52483a48e9a97")
SIGLIP2 = ("google/siglip2-base-patch16-512", "a89f5c5093f902bf39d3cd4d81d2c09867f0724b")
CLAP = ("laion/larger_clap_general", "ada0c23a36c4e8582805bb38fec3905903f18b41")


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """One file of a repository on the hub, and where it lies in a folder of weights.

    Attributes:
        path: in the repository.
        place: in the folder.
        required: False where the folder works without it, and a repository may not hold it.
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
    # The encoders lie in folders of their repositories' names, as people keep them.
    folder = "" if source is MODEL else repo.partition("/")[2] + "/"
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
    _file(MODEL, "LICENSE", required=False),
    _file(MODEL, "NOTICE", required=False),
    _file(
        MODEL,
        "vae_128d_48k.pth",
        1_486_465_965,
        "07e6139ff33bd21ba8a7a7f40ed24aab13ac0d100cd686f8a9f3e03dc5251cb1",
    ),
    _file(
        MODEL,
        "synchformer_state_dict.pth",
        950_058_171,
        "8aff082f2df5c3bc52759db0c865c7ee772ae6400b860d1b7e90413f2defb67c",
    ),
    _file(SIGLIP2, "model.safetensors", 1_503_344_520),
    _file(
        CLAP,
        "pytorch_model.bin",
        776_444_665,
        "314eb00cce6ad68d25237b8446b659ccdb136ed4672c1bca470f142f72455026",
    ),
    _file(CLAP, "tokenizer_config.json"),
    _file(CLAP, "vocab.json"),
    _file(CLAP, "merges.txt"),
    _file(CLAP, "tokenizer.json", required=False),
    _file(CLAP, "special_tokens_map.json", required=False),
)

# Small files first: a repository that cannot be read is found out before gigabytes are fetched.
FILES: dict[str, tuple[HubFile, ...]] = {
    "xl": (
        *_SHARED,
        _file(
            MODEL,
            "hunyuanvideo_foley_xl.pth",
            5_854_140_970,
            "cf7e93dca93063942bc22b53d4fe888e9d9d5a1ad7977873b7b2c6b126cf00ca",
        ),
    ),
    "xxl": (
        *_SHARED,
        _file(
            MODEL,
            "hunyuanvideo_foley.pth",
            10_301_204_679,
            "2900021f8ee562a8175b2f1a3fafb06b9e9e848f11f4c6d4d5d72e126f7c0475",
        ),
    ),
}
