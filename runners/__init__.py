"""The server: HTTP, gRPC, page, jobs, sandboxed media processes, and the GPU worker.

It imports `foley`; `foley` never imports it.
"""
