"""Adapters learnt from clips: reading and checking the clips, training, the report.

It trains low-rank adapters alone. The embedded model itself is trained by the programs of
`training/`.
"""
