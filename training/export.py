"""Writes what was trained in the layout of the package.

python -m training.export --state FOLDER --out foley/weights/tiny
"""

import argparse
import re
import shutil
from pathlib import Path

import torch

from foley.checkpoints import Components, load_tokenizer, save_components
from foley.models.dit import build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder
from foley.models.synchformer import build_synchformer
from foley.models.vae import build_vae
from training.settings import TRAINED

_LIMIT_BYTES = 16_000_000
_TOTAL_BYTES = 24_000_000


def assemble(state: Path) -> Components:
    """The trained parts in half precision."""

    def weights(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
        held = torch.load(state / name, map_location="cpu")
        own = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        return {k: v.half() if v.is_floating_point() else v for k, v in own.items()}

    parts = {
        "dit": (build_dit(TRAINED.dit), renamed(weights("dit.pt", "dit."))),
        "vae": (build_vae(TRAINED.vae), weights("vae.pt")),
        "synchformer": (build_synchformer(TRAINED.synchformer), weights("encoders.pt", "sync.")),
        "vision": (build_vision_encoder(TRAINED.vision), weights("encoders.pt", "vision.")),
        "text": (build_text_encoder(TRAINED.text), weights("dit.pt", "text.")),
    }
    for module, own in parts.values():
        module.half().load_state_dict(own, strict=True)
        module.eval().requires_grad_(False)
    return Components(
        preset=TRAINED,
        tokenizer=load_tokenizer(state / "tokenizer"),
        trained=True,
        source="trained on procedural clips, see training/README.md",
        **{name: module for name, (module, _) in parts.items()},
    )


def renamed(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's weights under today's names.

    The first training run ended before projections that are computed once a clip or once a
    schedule left the joint blocks.
    """
    rules = (
        (r"(visual|text|sync)_in\.(.+)", r"clip_in.\1.\2"),
        (r"(sync_position|empty_visual|empty_sync)", r"clip_in.\1"),
        (
            r"joint_blocks\.(\d+)\.(audio|visual)\.modulation\.(.+)",
            r"time_projections.\1.\2.\3",
        ),
        (r"joint_blocks\.(\d+)\.text_(kv|k_norm)\.(.+)", r"text_projections.\1.\2.\3"),
    )
    return {_rename(key, rules): tensor for key, tensor in weights.items()}


def _rename(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return key


def main() -> None:
    """Export, and refuse what is too large."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.out.exists():
        shutil.rmtree(args.out)
    save_components(assemble(args.state), args.out, source="trained by training/, see its README")
    sizes = {path: path.stat().st_size for path in args.out.rglob("*") if path.is_file()}
    for path, size in sorted(sizes.items()):
        print(f"{size:>10}  {path.relative_to(args.out)}")
    total = sum(sizes.values())
    print(f"{total:>10}  in all")
    if total > _TOTAL_BYTES or max(sizes.values()) > _LIMIT_BYTES:
        raise SystemExit("too large for the package")


if __name__ == "__main__":
    main()
