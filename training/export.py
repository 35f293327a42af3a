"""Write trained weights in the layout of the package.

python -m training.export --state FOLDER --out foley/weights/tiny
"""

import argparse
import shutil
from pathlib import Path

import torch
from torch import nn

from foley.models.dit import build_dit
from foley.models.encoders import build_text_encoder, build_vision_encoder
from foley.models.synchformer import build_synchformer
from foley.models.vae import build_vae
from foley.weights.components import Components
from foley.weights.layout import save_components
from foley.weights.parts import load_tokenizer
from training.settings import TRAINED, load_state, save_state
from training.unpack import CHECKPOINTS, FILES, HEADS

_LIMIT_BYTES = 16_000_000
_TOTAL_BYTES = 24_000_000


def assemble(state: Path) -> Components:
    """The trained model in half precision, from a state folder."""

    def weights(name: str, prefix: str = "") -> dict[str, torch.Tensor]:
        held = load_state(state / f"{name}.safetensors")
        own = {k.removeprefix(prefix): v for k, v in held.items() if k.startswith(prefix)}
        return {k: v.half() if v.is_floating_point() else v for k, v in own.items()}

    components = Components(
        preset=TRAINED,
        dit=build_dit(TRAINED.dit),
        vae=build_vae(TRAINED.vae),
        synchformer=build_synchformer(TRAINED.synchformer),
        vision=build_vision_encoder(TRAINED.vision),
        text=build_text_encoder(TRAINED.text),
        tokenizer=load_tokenizer(state / "tokenizer"),
        source="trained on procedural clips, see training/README.md",
    )
    for module, own in (
        (components.dit, weights("dit", "dit.")),
        (components.vae, weights("vae")),
        (components.synchformer, weights("encoders", "sync.")),
        (components.vision, weights("encoders", "vision.")),
        (components.text, weights("dit", "text.")),
    ):
        nn.Module.half(module).load_state_dict(own, strict=True)
        module.eval().requires_grad_(False)
    return components


def collect_heads(state: Path) -> dict[str, torch.Tensor]:
    """The weights of a state folder that only training needs, named FILE/KEY."""
    kept = {}
    for name, members in FILES.items():
        for key, value in load_state(state / f"{name}.safetensors").items():
            if not any(key.startswith(prefix) for prefix in members):
                kept[f"{name}/{key}"] = value
    return kept


def main() -> None:
    """Export a state; the exit status is not 0 if the files are too large for the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--checkpoints", type=Path, default=CHECKPOINTS, help="folder for the heads"
    )
    args = parser.parse_args()
    if args.out.exists():
        shutil.rmtree(args.out)
    save_components(assemble(args.state), args.out, source="trained by training/, see its README")
    args.checkpoints.mkdir(parents=True, exist_ok=True)
    save_state(args.checkpoints / HEADS, collect_heads(args.state), half=True)
    for name in ("analysis", "judge"):
        if (args.state / f"{name}.safetensors").resolve().parent != args.checkpoints.resolve():
            shutil.copy(args.state / f"{name}.safetensors", args.checkpoints)
    sizes = {path: path.stat().st_size for path in args.out.rglob("*") if path.is_file()}
    for path, size in sorted(sizes.items()):
        print(f"{size:>10}  {path.relative_to(args.out)}")
    total = sum(sizes.values())
    print(f"{total:>10}  in all")
    if total > _TOTAL_BYTES or max(sizes.values()) > _LIMIT_BYTES:
        raise SystemExit("too large for the package")


if __name__ == "__main__":
    main()
