"""What the networks compute, and nothing else: DiT, DAC-VAE, SigLIP2, CLAP and Synchformer.

How they are made fast is in `foley.gpu`; where their weights come from is in `foley.weights`.
"""
