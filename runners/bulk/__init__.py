"""The process of `foley bulk` that has the model: many rows at once, from clips to files.

It uses the service's scheduler and its confined media processes, without the service: rows come
over standard input as `foley.bulk.BulkTask`, and outcomes leave over standard output.
"""
