"""RunPod's serverless queue: a worker that sends queue jobs to a service beside it.

`handler` is the worker, `job_input` its input, `fetch` downloads clips with SSRF protection, and
`delivery` returns the files as base64 or through a bucket.
"""
