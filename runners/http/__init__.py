"""The HTTP interface: routes, handlers, middleware, forms, content negotiation, server-sent events.

The work itself is in `runners.jobs`.
"""
