"""`foley bulk`: many rows, from a source to an output, so that no row is made twice.

command ── sources ── rows ──► tasks ──► station (a process with the model) or cluster (Ray)
                                              │
                        records, summary ◄────┘ outcomes
"""
