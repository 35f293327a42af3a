"""What the networks compute, and nothing else: DiT, DAC-VAE, SigLIP2, CLAP and Synchformer.

How they are made fast is in `foley.gpu`; where their weights come from is in `foley.weights`.
"""

from foley.quiet import silence_imports

# diffusers imports torchao where that is installed, which logs that this PyTorch is another one
# than that of its kernels. Nothing here uses it.
with silence_imports():
    import diffusers.models.modeling_utils  # noqa: F401
