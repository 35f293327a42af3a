"""The transformer's step for a GPU: the numbers of `FoleyDiT.forward`, in far fewer kernels.

It reads the modules' own weights, some of them laid out anew in place, and works on packed clips.
All that lies between two matrix products is one kernel (`foley.gpu.pointwise`). The modules'
forward is the definition: tests compare the two.
"""

# N audio tokens of all clips together, K clips, C width

from collections.abc import Collection

from torch import Tensor, nn

from foley.gpu.compilation import Pointwise, select_plain
from foley.gpu.fused_audio_block import FusedAudioBlock, end_block
from foley.gpu.fused_context import FusedContext
from foley.gpu.fused_joint_block import FusedJointBlock, LayerPlace
from foley.gpu.fused_streams import StreamState, chain_modulations
from foley.gpu.matrix import Matrix, MatrixLayer, Precision
from foley.gpu.matrix_stream import HostedBlock, MatrixStream
from foley.models.audio_block import AudioBlock
from foley.models.dit import FoleyDiT
from foley.models.joint_block import JointBlock
from foley.models.layers import JOINT_EPS
from foley.models.modulation import TimeModulation


class FusedDiT:
    """Velocities of packed clips, by the weights of a `FoleyDiT`.

    Args:
        dit: on its device, in the dtype of the products; blocks that are elsewhere are moved there
            one by one. Its convolutions' weights are laid out anew, block by block, so that they
            keep their names and shapes and need no second copy.
        precision: of the products. fp8 quantises the blocks' matrices and frees each original, so
            that the modules' own forward cannot be used any more.
        ops: the functions between products, for the same precision; plain PyTorch when None.
        streamed: blocks whose matrices lie in host memory and are copied for their turn; their
            originals are freed too. Never the first audio block, whose turn would be all of the
            step: its modulation is projected at the beginning.
    """

    def __init__(
        self,
        dit: FoleyDiT,
        precision: Precision = "bf16",
        ops: Pointwise | None = None,
        streamed: Collection[nn.Module] = (),
    ) -> None:
        ops = ops or select_plain(precision)
        self.dit = dit
        self._ops = ops

        names = {module: name for name, module in dit.named_modules()}
        matrices: list[Matrix] = []  # of one block
        is_streamed = False

        def make_matrix(weight: Tensor, bias: Tensor | None, *places: LayerPlace) -> Matrix:
            layers = [MatrixLayer(names[module], *columns) for module, *columns in places]
            matrix = Matrix(weight, bias, precision, ops.quantise, layers)
            matrices.append(matrix)
            if precision == "fp8" or is_streamed:  # at once, so that little is there twice
                for module, *_ in places:
                    assert isinstance(module.weight, nn.Parameter)
                    module.weight.data = module.weight.data.new_empty(0)
            return matrix

        self._joint_blocks: list[FusedJointBlock] = []
        self._audio_blocks: list[FusedAudioBlock] = []
        self._turns: list[int | None] = []  # of all blocks
        device, hosted = dit.audio_in.weight.device, list[HostedBlock]()
        assert dit.audio_blocks[0] not in streamed
        for block in (*dit.joint_blocks, *dit.audio_blocks):
            nn.Module.to(block, device)
            matrices, is_streamed = [], block in streamed
            if isinstance(block, JointBlock):
                self._joint_blocks.append(FusedJointBlock(block, make_matrix, ops))
            else:
                assert isinstance(block, AudioBlock)
                self._audio_blocks.append(FusedAudioBlock(block, make_matrix, ops))
            self._turns.append(len(hosted) if is_streamed else None)
            if is_streamed:
                hosted.append(HostedBlock(matrices, pinned=device.type == "cuda"))
        self._stream = MatrixStream(hosted, device)

    def __call__(self, latents: Tensor, time: TimeModulation, context: FusedContext) -> Tensor:
        """Return the velocities, float32 [N, latent_dim].

        Args:
            latents: [N, latent_dim], clip after clip.
            time: one row for each clip.
            context: of the same clips.

        Source: docs/internals/model-specification.md, sections 2.3 to 2.6.
        """
        ops, dit, turn = self._ops, self.dit, self._stream.turn
        self._stream.begin_step()
        dtype = context.visual.dtype
        residual = dit.audio_in(latents.to(dtype)).float() + context.sync_rows[context.row_index]
        conditions = ops.condition_rows(context.sync_rows, time.embedding, context.row_owner)
        first, *others = self._audio_blocks
        modulation = first.project_modulation(conditions, context)

        # Nothing reads the visual stream after the last joint block.
        audio_chain = chain_modulations(time.audio, context.audio_owner, modulation.attention)
        visual_chain = chain_modulations(time.visual, context.visual_owner, None)
        audio = StreamState.enter(residual, audio_chain[0].attention, ops)
        visual = StreamState.enter(context.visual, visual_chain[0].attention, ops)
        texts = zip(context.text_keys.unbind(), context.text_values.unbind(), strict=True)
        num_joint = len(self._joint_blocks)
        joint_turns, audio_turns = self._turns[:num_joint], self._turns[num_joint + 1 :]
        for block, index, text, a, v in zip(
            self._joint_blocks, joint_turns, texts, audio_chain, visual_chain, strict=True
        ):
            with turn(index):
                audio, visual = block(audio, visual, *text, a, v, context)

        residual, taps = first(audio, modulation, context)
        for audio_block, index in zip(others, audio_turns, strict=True):
            with turn(index):
                own, modulation = modulation, audio_block.project_modulation(conditions, context)
                audio = end_block(residual, taps, own.mlp, modulation.attention, context, ops)
                residual, taps = audio_block(audio, modulation, context)
        own_mlp = modulation.mlp
        normed = ops.add_taps_and_norm(
            residual, taps, own_mlp.gate, own_mlp.owner, context.first, context.last, JOINT_EPS
        )
        return dit.velocity_out(normed).float()
