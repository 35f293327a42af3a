"""Architectures and the named presets. Every field is read by the code that builds the model."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from foley.errors import ConfigError

SAMPLE_RATE = 48_000
LATENT_RATE = 50  # latent frames a second
VISUAL_FPS = 8
SYNC_FPS = 25
SYNC_SEGMENT_FRAMES = 16
SYNC_SEGMENT_STRIDE = 8
MAX_CLIP_SECONDS = 15.0
MAX_TEXT_TOKENS = 77  # both prompts are cut here after encoding, as the weights were trained
# Solver steps where a request names none: as published, and for the small model the least from
# which on quality does not rise and the sound is near the exact path's
# (benchmarks/quality/README.md).
OFFICIAL_STEPS = 50
TINY_STEPS = 16
# Guidance where a request names none: as published (docs/specification.md, section 4), and for the
# small model where it followed held-out clips best and obeyed prompts most often.
OFFICIAL_GUIDANCE = 4.5
TINY_GUIDANCE = 2.0
TINY_IS = (
    "a small demonstration model, trained on drawn clips alone: things that fall, bounce, hit, "
    "slide, drip, tap, clap, swing or flash, and rain, wind, engines, fire and water; no voices, "
    "music or animals, and real pictures only as far as they move like drawn ones"
)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The flow-matching transformer."""

    latent_dim: int  # channels of the DAC-VAE latents
    hidden_dim: int
    num_heads: int
    num_joint_blocks: int  # audio and visual tokens attend together
    num_audio_blocks: int  # audio tokens alone
    visual_dim: int
    sync_dim: int
    text_dim: int

    def __post_init__(self) -> None:
        """Refuse widths that do not divide into heads of even size."""
        if self.hidden_dim % (2 * self.num_heads):
            raise ConfigError(
                "hidden_dim must be a multiple of 2 * num_heads, "
                f"got {self.hidden_dim} and {self.num_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the joint blocks' MLPs."""
        return 4 * self.hidden_dim

    @property
    def conv_mlp_dim(self) -> int:
        """Hidden width of the gated convolutional MLPs: two thirds of mlp_dim, in steps of 256."""
        return -(-(2 * self.mlp_dim // 3) // 256) * 256


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The DAC-VAE."""

    encoder_dim: int
    encoder_rates: tuple[int, ...]
    latent_dim: int
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    sample_rate: int  # Hz

    def __post_init__(self) -> None:
        """Refuse an encoder and a decoder of different hops."""
        if prod(self.encoder_rates) != prod(self.decoder_rates):
            raise ConfigError(
                "encoder_rates and decoder_rates must have the same product, "
                f"got {self.encoder_rates} and {self.decoder_rates}"
            )

    @property
    def hop(self) -> int:
        """Samples of one latent frame."""
        return prod(self.decoder_rates)


@dataclass(frozen=True, kw_only=True)
class SynchformerConfig:
    """The visual branch of Synchformer."""

    hidden_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    image_size: int  # pixels a side
    patch_size: int
    tubelet_frames: int
    segment_frames: int


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """A SigLIP vision tower."""

    hidden_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    image_size: int  # pixels a side
    patch_size: int


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """A CLAP (RoBERTa) text tower."""

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    num_positions: int  # the first two are padding, so prompts may have two tokens fewer


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A complete model."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    synchformer: SynchformerConfig
    vision: VisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together."""
        pairs = {
            "latent": (self.dit.latent_dim, self.vae.latent_dim),
            "visual": (self.dit.visual_dim, self.vision.hidden_dim),
            "sync": (self.dit.sync_dim, self.synchformer.hidden_dim),
            "text": (self.dit.text_dim, self.text.hidden_dim),
        }
        for what, (wanted, given) in pairs.items():
            if wanted != given:
                raise ConfigError(f"{self.name}: the DiT takes {what} width {wanted}, got {given}")

    @property
    def about(self) -> str:
        """What it is and is not, in a line; empty where its publisher tells."""
        return TINY_IS if self.name == "tiny" else ""

    @property
    def default_steps(self) -> int:
        """Solver steps of a request that names none; of the weights, not of the architecture."""
        return TINY_STEPS if self.name == "tiny" else OFFICIAL_STEPS

    @property
    def default_guidance(self) -> float:
        """Guidance scale of a request that names none; of the weights, as `default_steps`."""
        return TINY_GUIDANCE if self.name == "tiny" else OFFICIAL_GUIDANCE

    @property
    def exact_clock(self) -> bool:
        """Whether the weights saw frames exactly when they are due; see `media.clock`."""
        return self.name == "tiny"

    @property
    def whole_segments(self) -> bool:
        """Whether clips are filled up to whole segments of the sync encoder, and the sound cut.

        What fills no segment is not seen, and sync tokens are stretched over it: by up to 0.28 s,
        which only a model that has learned its usual lengths by heart can undo.
        """
        return self.name == "tiny"

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for writing to JSON."""
        return asdict(self)


def preset_from_dict(values: dict[str, Any]) -> Preset:
    """The inverse of `Preset.as_dict`.

    Raises:
        ConfigError: fields missing or unknown.
    """
    parts = {
        "dit": DiTConfig,
        "vae": VAEConfig,
        "synchformer": SynchformerConfig,
        "vision": VisionConfig,
        "text": TextConfig,
    }
    try:
        built = {key: kind(**_tuples(values[key])) for key, kind in parts.items()}
        return Preset(name=values["name"], **built)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"preset description is incomplete or has unknown fields: {error}"
        ) from error


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


DAC_VAE = VAEConfig(
    encoder_dim=128,
    encoder_rates=(2, 3, 4, 5, 8),
    latent_dim=128,
    decoder_dim=2048,
    decoder_rates=(8, 5, 4, 3, 2),
    sample_rate=SAMPLE_RATE,
)

SYNCHFORMER = SynchformerConfig(
    hidden_dim=768,
    num_layers=12,
    num_heads=12,
    mlp_dim=3072,
    image_size=224,
    patch_size=16,
    tubelet_frames=2,
    segment_frames=SYNC_SEGMENT_FRAMES,
)

SIGLIP2 = VisionConfig(
    hidden_dim=768, num_layers=12, num_heads=12, mlp_dim=3072, image_size=512, patch_size=16
)

CLAP = TextConfig(
    vocab_size=50265,
    hidden_dim=768,
    num_layers=12,
    num_heads=12,
    mlp_dim=3072,
    num_positions=514,
)

XXL = Preset(
    name="xxl",
    dit=DiTConfig(
        latent_dim=128,
        hidden_dim=1536,
        num_heads=12,
        num_joint_blocks=18,
        num_audio_blocks=36,
        visual_dim=768,
        sync_dim=768,
        text_dim=768,
    ),
    vae=DAC_VAE,
    synchformer=SYNCHFORMER,
    vision=SIGLIP2,
    text=CLAP,
)

XL = Preset(
    name="xl",
    dit=DiTConfig(
        latent_dim=128,
        hidden_dim=1408,
        num_heads=11,
        num_joint_blocks=12,
        num_audio_blocks=24,
        visual_dim=768,
        sync_dim=768,
        text_dim=768,
    ),
    vae=DAC_VAE,
    synchformer=SYNCHFORMER,
    vision=SIGLIP2,
    text=CLAP,
)

TINY = Preset(
    name="tiny",
    dit=DiTConfig(
        latent_dim=128,
        hidden_dim=160,
        num_heads=5,
        num_joint_blocks=2,
        num_audio_blocks=4,
        visual_dim=96,
        sync_dim=128,
        text_dim=128,
    ),
    vae=VAEConfig(
        encoder_dim=4,  # never run: training/analysis.py makes the latents
        encoder_rates=(2, 3, 4, 5, 8),
        latent_dim=128,
        decoder_dim=256,
        decoder_rates=(8, 5, 4, 3, 2),
        sample_rate=SAMPLE_RATE,
    ),
    synchformer=SynchformerConfig(
        hidden_dim=128,
        num_layers=5,
        num_heads=2,
        mlp_dim=512,
        image_size=224,
        patch_size=16,
        tubelet_frames=2,
        segment_frames=SYNC_SEGMENT_FRAMES,
    ),
    vision=VisionConfig(
        hidden_dim=96, num_layers=2, num_heads=2, mlp_dim=384, image_size=112, patch_size=16
    ),
    text=TextConfig(
        vocab_size=768,
        hidden_dim=128,
        num_layers=2,
        num_heads=2,
        mlp_dim=512,
        num_positions=514,
    ),
)

PRESETS = {preset.name: preset for preset in (TINY, XL, XXL)}
