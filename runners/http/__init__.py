"""The HTTP interface: routes, handlers, forms, content negotiation, server-sent events, OpenAPI.

`runners.jobs` does the work. Nothing here imports `runners.grpc`.
"""
