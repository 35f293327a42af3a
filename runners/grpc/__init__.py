"""gRPC: `foley.v1.FoleyService`, filled at the same service as HTTP's requests.

`foley_pb2` and `foley_pb2_grpc` are generated from proto/foley/v1/foley.proto; clients in Python
may use them too.
"""

SERVICE = "foley.v1.FoleyService"
