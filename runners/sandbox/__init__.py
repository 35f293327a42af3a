"""Media processes with resource limits: a pool of fork servers and the tasks that they run.

Bytes from strangers are parsed here and nowhere else.
"""
