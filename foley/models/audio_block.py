"""The audio block: audio tokens alone, modulated token by token by time and sync."""

# B batch, A audio tokens, C width, H heads, D head size, R distinct sync rows

from torch import Tensor, nn

from foley.models.attention import attend
from foley.models.layers import (
    AUDIO_NORM_EPS,
    AUDIO_RMS_EPS,
    GatedMLP,
    RMSNorm,
    TokenConv,
    modulate,
    split_heads,
)
from foley.models.modulation import AudioModulation, Modulation
from foley.models.packing import Packing
from foley.models.rope import RotaryTable, rotate


class AudioBlock(nn.Module):
    """Self-attention and a convolutional MLP.

    Source: docs/internals/model-specification.md, section 2.5.
    """

    def __init__(self, dim: int, num_heads: int, conv_mlp_dim: int) -> None:
        super().__init__()
        head_dim = dim // num_heads
        self.num_heads = num_heads
        self.modulation = nn.Linear(dim, 6 * dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = RMSNorm(head_dim, AUDIO_RMS_EPS)
        self.k_norm = RMSNorm(head_dim, AUDIO_RMS_EPS)
        self.out = TokenConv(dim, dim, 3, bias=True)
        self.mlp = GatedMLP(dim, conv_mlp_dim, dim, 3, bias=False)

    def forward(
        self,
        audio: Tensor,
        row_conditions: Tensor,
        row_index: Tensor,
        table: RotaryTable,
        packing: Packing | None = None,
    ) -> Tensor:
        """Return the stream [B, A, C] after the block.

        Args:
            audio: [B, A, C].
            row_conditions: [R, C], SiLU(sync + time). Stretching repeats sync rows, so there are
                fewer distinct rows than tokens, and each row's modulation is computed once.
            row_index: int64 [B, A], the row of each token.
            table: rotary table of positions 0 to A - 1, of each clip.
            packing: None where each clip has a row of the batch.
        """
        rows = self.modulation(row_conditions)  # [R, 6C]
        modulation = AudioModulation.of(rows[row_index])  # [B, A, C] each
        audio = self._attend(audio, modulation.attention, table, packing)
        return self._add_mlp(audio, modulation.mlp, packing)

    def _attend(
        self, audio: Tensor, modulation: Modulation, table: RotaryTable, packing: Packing | None
    ) -> Tensor:
        borders, segments = None, None
        if packing is not None:
            borders, segments = packing.borders, packing.audio_self
        qkv = self.qkv(modulate(audio, modulation, AUDIO_NORM_EPS))
        query, key, value = split_heads(qkv, 3, self.num_heads)
        query, key = rotate(self.q_norm(query), table), rotate(self.k_norm(key), table)
        attended = attend(query, key, value, segments).flatten(-2)
        return audio + modulation.gate * self.out(attended, borders)

    def _add_mlp(self, audio: Tensor, modulation: Modulation, packing: Packing | None) -> Tensor:
        borders = None if packing is None else packing.borders
        modulated = modulate(audio, modulation, AUDIO_NORM_EPS)
        return audio + modulation.gate * self.mlp(modulated, borders)
