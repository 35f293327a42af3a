"""One generation from clip to files: the job, its run, deadline, cancellation, results and scratch.

Shared by HTTP and gRPC; it knows neither.
"""
