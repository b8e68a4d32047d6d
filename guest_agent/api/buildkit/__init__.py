"""BuildKit's door: gRPC over `POST /grpc` and `POST /session`, as buildx speaks it.

A client has two connections. On the first it calls the services `Control` and `LLBBridge` (`control`,
`gateway`); on the second, its session, the roles are swapped: the engine calls the client, for files,
secrets, credentials (`session`).
"""
