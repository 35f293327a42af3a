"""Prompts for scenes, and the tokenizer that is trained on them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

WORDS = {
    "wood": ("wood", "wooden", "timber", "oak", "a plank", "log"),
    "metal": ("metal", "metallic", "steel", "iron", "tin", "brass"),
    "glass": ("glass", "crystal", "a bottle", "a wine glass"),
    "plastic": ("plastic", "rubber", "vinyl", "a plastic cup"),
    "stone": ("stone", "rock", "concrete", "marble", "gravel"),
    "skin": ("drum", "skin", "leather", "hand", "drum skin"),
    "water": ("water", "wet", "liquid", "a puddle"),
}
SHORT = {  # words that can stand before a noun
    "wood": ("wooden", "wood", "oak"),
    "metal": ("metal", "steel", "iron", "metallic"),
    "glass": ("glass", "crystal"),
    "plastic": ("plastic", "rubber"),
    "stone": ("stone", "rock", "concrete"),
    "skin": ("leather", "drum", "skin"),
    "water": ("water", "wet"),
}
NOUNS = ("ball", "block", "object", "thing", "box", "toy", "stick", "cup", "disc")
ACTIONS = {
    "bounce": ("bouncing", "bounces on the floor", "falling and bouncing", "dropped", "bounce"),
    "roam": ("hitting the walls", "knocking around", "hits", "bumping into walls"),
    "strike": ("being hit", "struck with a stick", "hammering", "hit again and again", "strikes"),
    "tap": ("tapping", "tapped by a finger", "taps", "knocking", "drumming"),
    "clap": ("clapping", "claps", "clapping together", "two of them clapped"),
    "drip": ("dripping", "drips", "drops falling", "drop by drop"),
    "pendulum": ("swinging and hitting", "pendulum hits", "swings into it"),
    "slide": ("sliding", "slides and hits the wall", "scraping along the floor", "pushed"),
    "burst": ("fireworks", "bangs", "bursts of light with a bang", "explosions", "flashes"),
    "whoosh": ("whoosh", "swishing", "swings through the air", "fast swings"),
}
# Actions that only rendered scenes have. The tokenizer of the package came before them, so that
# they are in no corpus: it writes their words in pieces.
LATER_ACTIONS = {
    "chain": ("rattling", "clinking", "rattles", "hits", "dropped"),
    "cloth": ("cloth", "a cloth", "fabric", "swishing", "a piece of fabric", "swishing cloth"),
    "paper": ("paper", "rustling", "a sheet of paper", "crumpling paper", "rustling paper"),
    "cards": ("falling paper", "sheets of paper", "cards", "falling cards", "paper dropped"),
}
_LATER_NOUNS = {"chain": ("chain",)}
TEXTURES = {
    "rain": ("rain", "heavy rain", "rain falling", "rainfall", "light rain"),
    "wind": ("wind", "wind blowing", "strong wind", "a gust of wind", "windy"),
    "engine": ("engine", "a motor running", "engine noise", "machine humming", "motor"),
    "fire": ("fire", "fire crackling", "a campfire", "flames", "burning"),
    "stream": ("stream", "running water", "a river", "water flowing", "waterfall"),
}
GENERIC = (
    "impact sounds",
    "sound effects",
    "realistic sound",
    "foley",
    "objects hitting things",
    "the sound of the video",
    "sound that fits the picture",
    "high quality sound",
    "something happens",
)
NEGATIVE = ("noisy, harsh", "", "noise", "harsh", "low quality", "music", "noisy")
LOUDNESS = ("loud", "soft", "hard", "quiet", "clear", "dull", "bright")


def describe(
    rng: np.random.Generator, actions: Sequence[tuple[str, str | None]], textures: Sequence[str]
) -> str:
    """A prompt for a scene; sometimes it is empty or describes only a part.

    Args:
        rng: of the scene.
        actions: (action, material or None) of the objects that sound.
        textures: names of the continuous sounds.
    """
    chance = rng.random()
    if chance < 0.12:
        return ""
    if chance < 0.18:
        return _pick(rng, GENERIC)
    distinct = list(dict.fromkeys(actions))
    parts = [_hit(rng, action, material) for action, material in distinct]
    parts += [_pick(rng, TEXTURES[name]) for name in textures if name in TEXTURES]
    if len(parts) > 1 and rng.random() < 0.25:  # describe only a part
        parts = [parts[int(rng.integers(len(parts)))]]
    rng.shuffle(parts)
    joined = _pick(rng, (" and ", ", ", " with ", "; ")).join(parts)
    if rng.random() < 0.15:
        joined = _pick(rng, ("the sound of ", "sound of ", "we hear ")) + joined
    if rng.random() < 0.3:
        joined = joined[:1].upper() + joined[1:]
    if rng.random() < 0.2:
        joined += "."
    return joined


def name_material(rng: np.random.Generator, material: str) -> str:
    """A prompt that names the material, a key of `WORDS`, as a user would."""
    return _pick(
        rng,
        (
            f"{_pick(rng, SHORT[material])} {_pick(rng, NOUNS)}",
            f"{material} impacts" if material != "skin" else "drum hits",
            f"hitting {_pick(rng, WORDS[material])}",
        ),
    )


def name_texture(rng: np.random.Generator, texture: str) -> str:
    """A prompt that names a continuous sound, a key of `TEXTURES`, and nothing else."""
    said = _pick(rng, TEXTURES[texture])
    return f"the sound of {said}" if rng.random() < 0.2 else said


def _hit(rng: np.random.Generator, action: str, material: str | None) -> str:
    verb = _pick(rng, (ACTIONS | LATER_ACTIONS)[action])
    if material is None:
        return verb
    word, short = _pick(rng, WORDS[material]), _pick(rng, SHORT[material])
    nouns = _LATER_NOUNS.get(action, NOUNS)
    forms = [
        word,
        f"{short} {_pick(rng, nouns)}",
        f"a {short} {_pick(rng, nouns)} {verb}",
        f"{short} {_pick(rng, nouns)} {verb}",
        f"{verb}, {word}",
        f"{_pick(rng, LOUDNESS)} {word} {_pick(rng, ('hits', 'knocks', 'sounds', 'impacts'))}",
        f"hitting {word}",
        f"{'drum' if material == 'skin' else material} {_pick(rng, ('impacts', 'hits', 'sounds'))}",
    ]
    if material == "water":
        forms += [_pick(rng, ("water drops", "dripping water", "splash", "water dripping"))]
    return _pick(rng, forms)


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def generate_corpus(seed: int, size: int) -> Iterator[str]:
    """Yield prompts in the proportions of the templates, for training the tokenizer.

    Args:
        seed: of the random numbers.
        size: number of scene prompts; negative prompts follow.
    """
    rng = np.random.default_rng(seed)
    names, acts, textures = list(WORDS), list(ACTIONS), list(TEXTURES)
    for _ in range(size):
        pairs = [
            (_pick(rng, acts), _pick(rng, names) if rng.random() < 0.8 else None)
            for _ in range(int(rng.integers(1, 3)))
        ]
        extra = [_pick(rng, textures)] if rng.random() < 0.4 else []
        yield describe(rng, pairs, extra)
    for _ in range(size // 20):
        yield from NEGATIVE


def build_tokenizer(folder: Path, vocab_size: int) -> None:
    """Train a byte-level BPE tokenizer and write it to a folder.

    Frequent words are single tokens; any other text is encoded in pieces.

    Args:
        folder: to write to.
        vocab_size: number of tokens.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],  # the ids that the text encoder expects
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        min_frequency=2,
        show_progress=False,
    )
    tokenizer.train_from_iterator(generate_corpus(0, 20_000), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=512,
    ).save_pretrained(folder)
