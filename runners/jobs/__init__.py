"""One generation from clip to files: the job, its run, deadline, cancellation, results and scratch.

HTTP and gRPC share it. It imports neither.
"""
