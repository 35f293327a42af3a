"""Rules from the names and arrangements of the published checkpoints to this project's.

Each layout is a tuple of rules. Keys that the official program never uses have rules too: they are
recognised and dropped. Source: specification, sections 2 to 8 and 12.
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from foley.weights.translation import Rule


def _squeeze_tap(weight: Tensor) -> Tensor:
    """Return the weight of a kernel-1 convolution [out, in, 1] as a linear layer's [out, in]."""
    return weight.squeeze(-1)


def _qkv_outermost(parameter: Tensor) -> Tensor:
    """Reorder rows from (head, channel, {q, k, v}) to ({q, k, v}, head, channel)."""
    return parameter.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1).contiguous()


_GATED = {"w1": "gate", "w2": "down", "w3": "up"}
_STREAMS = {"audio": "audio", "v_cond": "visual"}


def _joint_stream(inner: str) -> Callable[[re.Match[str]], str]:
    """Return a namer inside a stream of a joint block.

    The rule's pattern has the groups block, stream and parameter.
    """

    def name(match: re.Match[str]) -> str:
        block, stream, parameter = match["block"], _STREAMS[match["stream"]], match["parameter"]
        return f"joint_blocks.{block}.{stream}.{match.expand(inner)}.{parameter}"

    return name


def _time_projection(match: re.Match[str]) -> str:
    return f"time_projections.{match['block']}.{_STREAMS[match['stream']]}.{match['parameter']}"


def _gated(prefix: str) -> Callable[[re.Match[str]], str]:
    return lambda match: f"{match.expand(prefix)}.{_GATED[match['gated']]}.weight"


_BLOCK = r"triple_blocks\.(?P<block>\d+)\."
_STREAM = _BLOCK + r"(?P<stream>audio|v_cond)_"
_PARAMETER = r"\.(?P<parameter>weight|bias)"

_DIT_RULES = (
    Rule(r"audio_embedder\.proj\.weight", "audio_in.weight", _squeeze_tap),
    Rule(r"audio_embedder\.proj\.bias", "audio_in.bias"),
    Rule(r"visual_proj\.(?P<gated>w[123])\.weight", _gated("clip_in.visual")),
    Rule(r"cond_in\.linear_1\.(\w+)", r"clip_in.text.0.\1"),
    Rule(r"cond_in\.linear_2\.(\w+)", r"clip_in.text.2.\1"),
    Rule(r"time_in\.mlp\.(\d)\.(\w+)", r"time_in.\1.\2"),
    Rule(r"sync_in\.0\.(\w+)", r"clip_in.sync.0.\1"),
    Rule(r"sync_in\.2\.(?P<gated>w[123])\.weight", _gated("clip_in.sync.2"), _squeeze_tap),
    Rule(r"sync_pos_emb", "clip_in.sync_position", lambda tensor: tensor.flatten(0, 2)),
    Rule(r"empty_clip_feat", "clip_in.empty_visual"),
    Rule(r"empty_sync_feat", "clip_in.empty_sync"),
    Rule(_STREAM + r"mod\.linear" + _PARAMETER, _time_projection),
    Rule(_STREAM + r"(?:self_)?(?:attn_)?qkv" + _PARAMETER, _joint_stream("qkv")),
    Rule(
        _STREAM + r"(?:self|attn)_(?P<part>[qk])_norm" + _PARAMETER, _joint_stream(r"\g<part>_norm")
    ),
    Rule(_STREAM + r"self_proj" + _PARAMETER, _joint_stream("out")),
    Rule(_STREAM + r"cross_q" + _PARAMETER, _joint_stream("cross_q")),
    Rule(_STREAM + r"cross_q_norm" + _PARAMETER, _joint_stream("cross_q_norm")),
    Rule(_STREAM + r"cross_proj" + _PARAMETER, _joint_stream("cross_out")),
    Rule(_STREAM + r"mlp\.fc1" + _PARAMETER, _joint_stream("mlp.0")),
    Rule(_STREAM + r"mlp\.fc2" + _PARAMETER, _joint_stream("mlp.2")),
    Rule(_BLOCK + r"text_cross_kv\.(\w+)", r"text_projections.\g<block>.kv.\2"),
    Rule(_BLOCK + r"text_cross_k_norm\.(\w+)", r"text_projections.\g<block>.k_norm.\2"),
    Rule(r"single_blocks\.(\d+)\.modulation\.linear\.(\w+)", r"audio_blocks.\1.modulation.\2"),
    Rule(r"single_blocks\.(\d+)\.linear_qkv\.(\w+)", r"audio_blocks.\1.qkv.\2", _qkv_outermost),
    Rule(r"single_blocks\.(\d+)\.([qk])_norm\.weight", r"audio_blocks.\1.\2_norm.weight"),
    Rule(r"single_blocks\.(\d+)\.linear1\.(\w+)", r"audio_blocks.\1.out.\2"),
    Rule(
        r"single_blocks\.(?P<block>\d+)\.linear2\.(?P<gated>w[123])\.weight",
        _gated(r"audio_blocks.\g<block>.mlp"),
    ),
    Rule(r"final_layer\.linear\.(\w+)", r"velocity_out.\1"),
    # Has no effect on the result: specification, section 2.6.
    Rule(r"final_layer\.adaLN_modulation\.1\.(?:weight|bias)", None),
)


def _minus(group: str, amount: int) -> Callable[[re.Match[str]], int]:
    return lambda match: int(match[group]) - amount


def _vae_block(template: str, first_unit: int) -> Callable[[re.Match[str]], str]:
    block, unit = _minus("block", 1), _minus("unit", first_unit)

    def name(match: re.Match[str]) -> str:
        values: dict[str, int | str] = {"block": block(match)}
        if "unit" in match.re.groupindex:
            values["unit"] = unit(match)
            values["part"] = ("snake1", "conv1", "snake2", "conv2")[int(match["part"])]
        if "parameter" in match.re.groupindex:
            values["parameter"] = match["parameter"]
        return template.format(**values)

    return name


_UNIT = r"\.block\.(?P<part>[0-3])\.(?P<parameter>alpha|weight|bias)"
_DECODER = r"decoder\.model\.(?P<block>\d+)\.block\."
_ENCODER = r"encoder\.block\.(?P<block>\d+)\.block\."
_UNIT_NAME = "blocks.{block}.units.{unit}.{part}.{parameter}"

_VAE_RULES = (
    Rule(r"quant_conv\.(\w+)", r"quant.\1"),
    Rule(r"post_quant_conv\.(\w+)", r"post_quant.\1"),
    Rule(r"decoder\.model\.0\.(weight|bias)", r"decoder.conv_in.\1"),
    Rule(_DECODER + r"0\.alpha", _vae_block("decoder.blocks.{block}.snake.alpha", 0)),
    Rule(
        _DECODER + r"1" + _PARAMETER,
        _vae_block("decoder.blocks.{block}.upsample.{parameter}", 0),
    ),
    Rule(_DECODER + r"(?P<unit>[234])" + _UNIT, _vae_block("decoder." + _UNIT_NAME, 2)),
    Rule(r"decoder\.model\.\d+\.alpha", "decoder.snake_out.alpha"),
    Rule(r"decoder\.model\.\d+\.(weight|bias)", r"decoder.conv_out.\1"),
    Rule(r"encoder\.block\.0\.(weight|bias)", r"encoder.conv_in.\1"),
    Rule(_ENCODER + r"(?P<unit>[012])" + _UNIT, _vae_block("encoder." + _UNIT_NAME, 0)),
    Rule(_ENCODER + r"3\.alpha", _vae_block("encoder.blocks.{block}.snake.alpha", 0)),
    Rule(
        _ENCODER + r"4" + _PARAMETER,
        _vae_block("encoder.blocks.{block}.downsample.{parameter}", 0),
    ),
    Rule(r"encoder\.block\.\d+\.alpha", "encoder.snake_out.alpha"),
    Rule(r"encoder\.block\.\d+\.(weight|bias)", r"encoder.conv_out.\1"),
)

_WEIGHT_NORM = (
    (".weight_g", ".weight_v"),
    (".parametrizations.weight.original0", ".parametrizations.weight.original1"),
)


def fuse_weight_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fuse magnitudes g and directions v into weights: g v / ||v||.

    The norm runs over all dimensions but the first. In a transposed convolution the first one is
    the input channel, as it was in training.

    Args:
        weights: may hold pairs under PyTorch's old or new names; other tensors are passed on.
    """
    fused = dict(weights)
    for magnitude, direction in _WEIGHT_NORM:
        for key in [key for key in fused if key.endswith(direction)]:
            base = key.removesuffix(direction)
            if base + magnitude not in fused:
                continue  # `load_strict` names what is missing
            v, g = fused.pop(key), fused.pop(base + magnitude)
            norm = torch.linalg.vector_norm(v.float(), dim=tuple(range(1, v.ndim)), keepdim=True)
            fused[base + ".weight"] = (v.float() * (g.float() / norm)).to(v.dtype)
    return fused


_VISUAL = r"vfeat_extractor\."
_SYNC_BLOCK = _VISUAL + r"blocks\.(\d+)\."
_AGGREGATION = _VISUAL + r"spatial_attn_agg\."

_SYNCHFORMER_RULES = (
    Rule(_VISUAL + r"patch_embed_3d\.proj\.weight", "patch_in.weight", lambda w: w.flatten(1)),
    Rule(_VISUAL + r"patch_embed_3d\.proj\.bias", "patch_in.bias"),
    Rule(_VISUAL + r"cls_token", "cls_token"),
    Rule(_VISUAL + r"pos_embed", "position"),
    Rule(_VISUAL + r"temp_embed", "time_position"),
    Rule(_VISUAL + r"norm\.(\w+)", r"norm.\1"),
    Rule(_SYNC_BLOCK + r"norm1\.(\w+)", r"blocks.\1.space_norm.\2"),
    Rule(_SYNC_BLOCK + r"norm2\.(\w+)", r"blocks.\1.mlp_norm.\2"),
    Rule(_SYNC_BLOCK + r"norm3\.(\w+)", r"blocks.\1.time_norm.\2"),
    Rule(_SYNC_BLOCK + r"attn\.(qkv|proj)\.(\w+)", r"blocks.\1.space_attention.\2.\3"),
    Rule(_SYNC_BLOCK + r"timeattn\.(qkv|proj)\.(\w+)", r"blocks.\1.time_attention.\2.\3"),
    Rule(_SYNC_BLOCK + r"mlp\.fc1\.(\w+)", r"blocks.\1.mlp.0.\2"),
    Rule(_SYNC_BLOCK + r"mlp\.fc2\.(\w+)", r"blocks.\1.mlp.2.\2"),
    Rule(_AGGREGATION + r"cls_token", "aggregation.cls_token"),
    Rule(_AGGREGATION + r"self_attn\.in_proj_(weight|bias)", r"aggregation.qkv.\1"),
    Rule(_AGGREGATION + r"self_attn\.out_proj\.(\w+)", r"aggregation.out.\1"),
    Rule(_AGGREGATION + r"(norm[12])\.(\w+)", r"aggregation.\1.\2"),
    Rule(_AGGREGATION + r"linear1\.(\w+)", r"aggregation.mlp.0.\1"),
    Rule(_AGGREGATION + r"linear2\.(\w+)", r"aggregation.mlp.2.\1"),
    Rule(_VISUAL + r"patch_embed\.proj\.(?:weight|bias)", None),  # the 2-d embedding is unused
    Rule(r"(?:afeat_extractor|transformer|vproj|aproj)\..+", None),  # the audio side and scoring
)

# The hub's files hold both towers of each model; only one of each is used.
_SIGLIP_RULES = (
    Rule(r"vision_model\.(.+)", r"\1"),
    Rule(r"text_model\..+|logit_scale|logit_bias", None),
)
_CLAP_RULES = (
    Rule(r"text_model\.(?:pooler\..+|embeddings\.(?:position_ids|token_type_ids))", None),
    Rule(r"text_model\.(.+)", r"\1"),
    Rule(r"(?:text_projection|audio_model|audio_projection|logit_scale).*", None),
)

# Part of a model -> the rules of its official file.
RULES = {
    "dit": _DIT_RULES,
    "vae": _VAE_RULES,
    "synchformer": _SYNCHFORMER_RULES,
    "vision": _SIGLIP_RULES,
    "text": _CLAP_RULES,
}
