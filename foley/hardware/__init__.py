"""What this machine is, and whether it can run a preset.

It works, and explains what is wrong, where PyTorch cannot be imported.
"""
