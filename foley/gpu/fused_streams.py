"""What passes between the sub-blocks of a fused step: a stream's state, and its modulations.

The residual sum after one sub-block and the modulated input of the next one are made by the same
kernel. So a sub-block takes its own modulation and that of the sub-block that follows it.
"""

# N tokens, K rows of a modulation (clips, or distinct sync rows), L joint blocks, C width,
# H heads, D head size

from typing import NamedTuple, Self

from torch import Tensor

from foley.gpu.compilation import Pointwise
from foley.gpu.matrix import Tokens
from foley.models.attention import attend
from foley.models.layers import JOINT_EPS
from foley.models.modulation import JointModulation
from foley.models.packing import Segments


class TokenModulation(NamedTuple):
    """The modulation of one sub-block, and the row of it that each token takes.

    Attributes:
        shift: [K, C], see `foley.models.modulation.Modulation`.
        scale: [K, C].
        gate: [K, C].
        owner: int64 [N], from 0 to K - 1.
        eps: of the layer norm before the sub-block.
    """

    shift: Tensor
    scale: Tensor
    gate: Tensor
    owner: Tensor
    eps: float


class StreamModulation(NamedTuple):
    """The modulation of one stream in a joint block.

    Attributes:
        attention: of the joint self-attention.
        cross: of the cross-attention to the text.
        mlp: of the MLP.
        following: of the sub-block after the joint block; None where nothing reads the stream after
            the joint self-attention.
    """

    attention: TokenModulation
    cross: TokenModulation
    mlp: TokenModulation
    following: TokenModulation | None


def chain_modulations(
    rows: Tensor, owner: Tensor, following: TokenModulation | None
) -> list[StreamModulation]:
    """Return the modulations of one stream in all joint blocks, as views.

    Args:
        rows: [L, K, 9C], see `foley.models.modulation.TimeModulation`.
        owner: int64 [N], the clip of each token.
        following: of the sub-block after the last joint block, if there is one.
    """
    chain: list[StreamModulation] = []
    for block in reversed(rows.unbind()):
        attention, cross, mlp = (
            TokenModulation(*part, owner, JOINT_EPS) for part in JointModulation.of(block)
        )
        chain.append(StreamModulation(attention, cross, mlp, following))
        following = attention
    return chain[::-1]


class StreamState(NamedTuple):
    """A stream between two sub-blocks.

    Attributes:
        residual: [N, C], the sum so far.
        inputs: [N, C], the residual, normed and modulated for the next sub-block; quantised in fp8.
    """

    residual: Tensor
    inputs: Tokens

    @classmethod
    def enter(cls, residual: Tensor, following: TokenModulation, ops: Pointwise) -> Self:
        """Return the state before the first sub-block.

        Args:
            residual: [N, C].
            following: of the first sub-block.
            ops: the functions between products.
        """
        return cls(
            residual,
            ops.modulate_tokens(
                residual, following.shift, following.scale, following.owner, following.eps
            ),
        )

    def add(
        self, branch: Tensor, own: TokenModulation, following: TokenModulation, ops: Pointwise
    ) -> "StreamState":
        """Return the state after a sub-block.

        Args:
            branch: [N, C], the sub-block's result.
            own: of the sub-block.
            following: of the sub-block that comes next.
            ops: the functions between products.
        """
        return StreamState(
            *ops.add_and_modulate(
                self.residual,
                branch,
                own.gate,
                own.owner,
                following.shift,
                following.scale,
                following.owner,
                following.eps,
            )
        )


def attend_packed(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Return the attention of packed tokens, [N, H * D].

    Args:
        query: [N, H, D].
        key: [M, H, D].
        value: [M, H, D].
        segments: of the N queries and M keys.
    """
    return attend(query[None], key[None], value[None], segments)[0].flatten(1)
