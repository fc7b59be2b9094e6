"""A server that answers as TensorFlow Serving does, for tests: embedded, as a fixture, or as a process.

    async with ModelServer(models={"digits": "/models/digits"}) as server:
        client = AsyncClient(server.target)

Real sockets, real gRPC, and the life cycle, texts and encodings of the real server; its models are
SavedModels run by TensorFlow, or Python callables with a declared signature, which need no TensorFlow.
Nothing in here is imported by the client, and nothing in here imports the client.

    server       ModelServer: the services on sockets
    rest         the HTTP interface, for those who ask for it (needs aiohttp)
    json_tensor  JSON of requests and answers <-> arrays, examples and results
    manager      configuration, versions, labels, states: which model answers a request
    inference    bytes of a request in, bytes of its answer out, given a loaded model
    servable     what a loaded model is; CallableServable
    batching     BatchingServable: concurrent requests merged into batches
    saved_model  loading and running SavedModels (the only place that imports TensorFlow)
    options      the real binary's flags
    process      ServerProcess: `python -m aioserving.testing` under control
    faults       FaultProxy: delay, cut, black hole and more on the way; slow and failing functions
    security     tokens, API keys and client certificates (from aioserving.server_security)
    pytest_plugin  the fixtures `model_server` and `model_server_process`
    status       codes and the error that carries one
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving.testing.batching import BatchingServable as BatchingServable
    from aioserving.testing.faults import FaultProxy as FaultProxy
    from aioserving.testing.faults import FaultProxyProcess as FaultProxyProcess
    from aioserving.testing.options import ServerOptions as ServerOptions
    from aioserving.testing.process import ServerProcess as ServerProcess
    from aioserving.testing.servable import CallableServable as CallableServable
    from aioserving.testing.servable import CallableSignature as CallableSignature
    from aioserving.testing.servable import Servable as Servable
    from aioserving.testing.servable import TensorSpec as TensorSpec
    from aioserving.testing.server import ModelServer as ModelServer
    from aioserving.testing.status import StatusCode as StatusCode
    from aioserving.testing.status import StatusError as StatusError

#: Name -> the module that defines it, imported when the name is first used.
_EXPORTS = {
    "BatchingServable": "batching",
    "CallableServable": "servable",
    "CallableSignature": "servable",
    "FaultProxy": "faults",
    "FaultProxyProcess": "faults",
    "ModelServer": "server",
    "Servable": "servable",
    "ServerOptions": "options",
    "ServerProcess": "process",
    "StatusCode": "status",
    "StatusError": "status",
    "TensorSpec": "servable",
}

__all__ = [
    "BatchingServable",
    "CallableServable",
    "CallableSignature",
    "FaultProxy",
    "FaultProxyProcess",
    "ModelServer",
    "Servable",
    "ServerOptions",
    "ServerProcess",
    "StatusCode",
    "StatusError",
    "TensorSpec",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
