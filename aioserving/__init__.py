"""The asyncio-native client for TensorFlow Serving.

    async with AsyncClient("127.0.0.1:8500") as client:
        result = await client.predict("digits", {"images": images})

Importing it never imports TensorFlow. The map:

    what people use   client (AsyncClient, Model), blocking (Client), errors;
                      prediction, inference (results), status
    what is served    configuration (the config as data), reload (sending it, waiting)
    moving bytes      pool (endpoints and connections), transport (one gRPC channel)
    data              signature (checks inputs), messages (views of protobuf messages),
                      codec (numpy arrays <-> TensorProto bytes), dtypes, wire,
                      tf_examples (Python values -> tf.Example bytes)
    for your tests    testing (a server that behaves as TensorFlow Serving does)

To follow one `predict` call, read client, pool, transport; then codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioserving.blocking import BlockingModel, Client
from aioserving.client import AsyncClient, ClientStats, Model
from aioserving.dtypes import DataType
from aioserving.errors import (
    AbortedError,
    AlreadyExistsError,
    CancelledError,
    ClientClosedError,
    ClientStateError,
    ConfigProblem,
    DataLossError,
    DeadlineExceededError,
    DecodeError,
    EventLoopError,
    FailedPreconditionError,
    ForkError,
    InternalError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidInputError,
    LoadFailure,
    MessageTooLargeError,
    ModelLoadError,
    ModelNotFoundError,
    NotFoundError,
    OutOfRangeError,
    PermissionDeniedError,
    ResourceExhaustedError,
    RPCError,
    ServingError,
    SignatureNotFoundError,
    UnauthenticatedError,
    UnavailableError,
    UnimplementedError,
    UnknownError,
    UnsupportedTypeError,
    VersionLabelNotFoundError,
    VersionNotFoundError,
)
from aioserving.inference import (
    Classification,
    ClassifyResult,
    MultiInferenceResult,
    RegressResult,
    ScoredClass,
)
from aioserving.pool import ConnectionStats, EndpointStats, PoolOptions
from aioserving.prediction import PredictResult
from aioserving.signature import ModelMetadata, Signature, TensorSpec
from aioserving.status import ModelStatus, State, VersionStatus

if TYPE_CHECKING:
    from aioserving.configuration import (
        ConfigDiff,
        ConfigWarning,
        check_config,
        diff_configs,
        read_config,
        write_config,
    )
    from aioserving.messages import ModelConfig, ModelServerConfig, ModelSpec, PredictRequest
    from aioserving.reload import ReloadResult

__version__ = "0.1.0"

__all__ = [
    "AbortedError",
    "AlreadyExistsError",
    "AsyncClient",
    "BlockingModel",
    "CancelledError",
    "Classification",
    "ClassifyResult",
    "Client",
    "ClientClosedError",
    "ClientStateError",
    "ClientStats",
    "ConfigDiff",
    "ConfigProblem",
    "ConfigWarning",
    "ConnectionStats",
    "DataLossError",
    "DataType",
    "DeadlineExceededError",
    "DecodeError",
    "EndpointStats",
    "EventLoopError",
    "FailedPreconditionError",
    "ForkError",
    "InternalError",
    "InvalidArgumentError",
    "InvalidConfigError",
    "InvalidInputError",
    "LoadFailure",
    "MessageTooLargeError",
    "Model",
    "ModelConfig",
    "ModelLoadError",
    "ModelMetadata",
    "ModelNotFoundError",
    "ModelServerConfig",
    "ModelSpec",
    "ModelStatus",
    "MultiInferenceResult",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "PoolOptions",
    "PredictRequest",
    "PredictResult",
    "RPCError",
    "RegressResult",
    "ReloadResult",
    "ResourceExhaustedError",
    "ScoredClass",
    "ServingError",
    "Signature",
    "SignatureNotFoundError",
    "State",
    "TensorSpec",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnknownError",
    "UnsupportedTypeError",
    "VersionLabelNotFoundError",
    "VersionNotFoundError",
    "VersionStatus",
    "__version__",
    "check_config",
    "diff_configs",
    "read_config",
    "write_config",
]

#: Names that a call to `predict` does not need, by module; the views are a fifth of the import time.
_LAZY = {
    **dict.fromkeys(("ModelConfig", "ModelServerConfig", "ModelSpec", "PredictRequest"), "messages"),
    **dict.fromkeys(
        ("ConfigDiff", "ConfigWarning", "check_config", "diff_configs", "read_config", "write_config"),
        "configuration",
    ),
    "ReloadResult": "reload",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        value = globals()[name] = getattr(importlib.import_module(f"aioserving.{_LAZY[name]}"), name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


for _name in __all__:  # reprs and tracebacks show where a name is imported from
    if isinstance(globals().get(_name), type):
        globals()[_name].__module__ = __name__
del _name
