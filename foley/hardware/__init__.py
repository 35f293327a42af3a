"""What a machine has, and whether it can run a preset: `foley doctor` and the start of the service.

It works, and explains what is wrong, if PyTorch cannot be imported. It imports `foley.weights`,
never the other way round.
"""
