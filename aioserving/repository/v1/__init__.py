"""The messages of `aioserving.repository.v1.ModelRepository`, generated from `model_repository.proto`.

The .proto file is the documentation of the service, and what clients in other languages are made from.
`model_repository_pb2` is generated code; after a change of the .proto it is made anew with

    python -m aioserving.repository.v1.generate

by the oldest grpcio-tools that goes with the oldest protobuf that aioserving runs with: generated code
works with the protobuf it was made for and later ones, never with earlier ones.
"""
