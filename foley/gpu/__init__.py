"""How the networks are made fast: placement on devices, fused steps, kernels, CUDA graphs, offload.

Nothing here changes what a network computes; `foley.models` defines that.
This folder imports `foley.models`, never the other way round.
"""
