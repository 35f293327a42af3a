"""Durable jobs: accepted requests that are finished whatever dies, and the process that runs them.

The folder, the queue and the executor live here; what one generation is, in `runners.jobs`.
`runners/http` serves them. Decision 29 has the reasons.
"""
