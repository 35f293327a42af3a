"""Architectures of the networks, and the named presets."""

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from foley.errors import ConfigError
from foley.plans import OFFICIAL_PLAN, TINY_PLAN, SamplingPlan

SAMPLE_RATE = 48_000
LATENT_RATE = 50  # latent frames a second
VISUAL_FPS = 8
SYNC_FPS = 25
SYNC_SEGMENT_FRAMES = 16
SYNC_SEGMENT_STRIDE = 8
MAX_CLIP_SECONDS = 3600.0
DEFAULT_CLIP_SECONDS = 600.0  # the limit that is not asked for
# Up to here a clip is encoded and sampled as a whole: 15 s in whole segments of the sync encoder.
# Longer clips are decoded and encoded in pieces of 12 segments.
WHOLE_CLIP_FRAMES = 376
PIECE_FRAMES = 96
MIN_SOUND_SECONDS = 0.1  # of a sound without a clip
MAX_TEXT_TOKENS = 77  # both prompts are cut here after encoding, as the weights were trained
# Guidance scale of a request that gives none. For the official models it is the published value
# (docs/internals/model-specification.md, section 4). For tiny it is the value with the best
# alignment on held-out clips and the most prompts followed.
OFFICIAL_GUIDANCE = 4.5
TINY_GUIDANCE = 2.0
TINY_ABOUT = (
    "a small demonstration model for simple impacts (falls, bounces, hits, slides, drips, taps, "
    "claps) and ambiences (rain, wind, engines, fire, water); it was trained on synthetic "
    "animation: expect rough results on real footage, and no voices, music or animals"
)

TINY_PROMPTS = (
    "a hammer hits stone",
    "a wooden ball bounces",
    "dripping water",
    "steady rain",
    "wind and a campfire",
)
OFFICIAL_PROMPTS = (
    "footsteps on gravel, close",
    "steady rain on leaves, distant thunder",
    "bicycles rolling past on asphalt, light wind",
    "cooking in a kitchen, a sizzling pan",
    "a meadow in summer, birds, soft steps on grass",
)


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The flow-matching transformer. Source: specification, section 2.1."""

    latent_dim: int  # channels of the DAC-VAE latents
    hidden_dim: int
    num_heads: int
    num_joint_blocks: int  # attend over audio and visual tokens
    num_audio_blocks: int  # attend over audio tokens only
    visual_dim: int
    sync_dim: int
    text_dim: int

    def __post_init__(self) -> None:
        """Check that the width divides into heads of even size.

        Raises:
            ConfigError: it does not.
        """
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
    """The DAC-VAE. Source: specification, section 5."""

    encoder_dim: int
    encoder_rates: tuple[int, ...]
    latent_dim: int
    decoder_dim: int
    decoder_rates: tuple[int, ...]
    sample_rate: int  # Hz

    def __post_init__(self) -> None:
        """Check that encoder and decoder have one hop.

        Raises:
            ConfigError: they have different hops.
        """
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
    """The visual branch of Synchformer. Source: specification, section 6."""

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
    """A complete model: its architecture, and how its weights expect clips and requests."""

    name: str
    dit: DiTConfig
    vae: VAEConfig
    synchformer: SynchformerConfig
    vision: VisionConfig
    text: TextConfig

    def __post_init__(self) -> None:
        """Check that the widths of the parts fit together.

        Raises:
            ConfigError: they do not.
        """
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
        """What the model can do, in a sentence; empty for the official models."""
        return TINY_ABOUT if self.name == "tiny" else ""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Prompts that suit the model, to start from."""
        return TINY_PROMPTS if self.name == "tiny" else OFFICIAL_PROMPTS

    @property
    def default_plan(self) -> SamplingPlan:
        """The plan of the sampler of a request that gives none."""
        return TINY_PLAN if self.name == "tiny" else OFFICIAL_PLAN

    @property
    def default_guidance(self) -> float:
        """Guidance scale of a request that gives none."""
        return TINY_GUIDANCE if self.name == "tiny" else OFFICIAL_GUIDANCE

    @property
    def exact_clock(self) -> bool:
        """Whether the weights were trained with exact frame times; see `foley.media.clock`."""
        return self.name == "tiny"

    @property
    def whole_segments(self) -> bool:
        """Whether clips are padded to whole segments of the sync encoder, and the sound is cut.

        Without padding, the encoder drops frames after the last whole segment, and the sync tokens
        are stretched over them: by up to 0.28 s, which only a model that was trained on fixed
        lengths can correct.
        """
        return self.name == "tiny"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return asdict(self)


def parse_preset(values: dict[str, Any]) -> Preset:
    """Return the preset that `Preset.as_dict` described.

    Args:
        values: plain values, as read from JSON.

    Raises:
        ConfigError: fields are missing or unknown.
    """
    parts = {
        "dit": DiTConfig,
        "vae": VAEConfig,
        "synchformer": SynchformerConfig,
        "vision": VisionConfig,
        "text": TextConfig,
    }
    try:
        built = {key: kind(**_replace_lists(values[key])) for key, kind in parts.items()}
        return Preset(name=values["name"], **built)
    except (KeyError, TypeError) as error:
        raise ConfigError(
            f"preset description is incomplete or has unknown fields: {error}"
        ) from error


def _replace_lists(values: dict[str, Any]) -> dict[str, Any]:
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
        encoder_dim=4,  # never run: foley/models/analysis.py makes the latents
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
