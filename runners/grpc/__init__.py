"""The gRPC interface: the server, its methods, their uploads and their error boundary.

`foley.v1` has the messages and stubs, and `runners.jobs` does the work. Nothing here imports
`runners.http`.
"""

SERVICE = "foley.v1.FoleyService"
JOB_SERVICE = "foley.v1.JobService"
