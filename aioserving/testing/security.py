"""Who may call a testing server: tokens, API keys and client certificates.

    ModelServer(models, interceptors=[Authentication(Tokens({"s3cret": Grant("joe")}))])

The names of `aioserving.server_security`, where the work is done: the testing server asks its callers who
they are just as `aioserving.repository`'s service does.
"""

from __future__ import annotations

from aioserving.server_security import (
    APIKeys,
    Authentication,
    Call,
    ClientCertificates,
    Grant,
    Identity,
    Refused,
    Scheme,
    Tokens,
    Verify,
    current_identity,
    write_tokens,
)

__all__ = [
    "APIKeys",
    "Authentication",
    "Call",
    "ClientCertificates",
    "Grant",
    "Identity",
    "Refused",
    "Scheme",
    "Tokens",
    "Verify",
    "current_identity",
    "write_tokens",
]
