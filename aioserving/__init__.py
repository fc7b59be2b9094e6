"""The asyncio-native client for TensorFlow Serving.

    async with AsyncClient("127.0.0.1:8500") as client:
        result = await client.predict("digits", {"images": images})

Importing it never imports TensorFlow. The map:

    what people use   client (AsyncClient, Model), blocking (Client), errors;
                      prediction, inference (results), status
    what is served    configuration (the config as data), reload (sending it, waiting)
    many calls as one batching
    one call          calls (attempts: retries, hedges), with the decisions in retry, hedging, circuit
    the fleet         pool (endpoints and connections), with the decisions in balancing, health, limits,
                      queueing; monitor (probes), targets and resolver (addresses), events, observers
    who is who        security (TLS, tokens), ssl_config (the server's file), pem
    moving bytes      transport (one gRPC channel)
    data              signature (checks inputs), messages (views of protobuf messages),
                      codec (numpy arrays <-> TensorProto bytes), dtypes, wire,
                      tf_examples (Python values -> tf.Example bytes)
    for your tests    testing (a server that behaves as TensorFlow Serving does)

To follow one `predict` call, read client, calls, pool, transport; then codec.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aioserving.attempts import Attempt
from aioserving.balancing import BalancingOptions
from aioserving.blocking import BlockingModel, Client
from aioserving.calls import ModelStats
from aioserving.circuit import CircuitOptions
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
from aioserving.health import ClientHealth, EndpointHealth, HealthOptions
from aioserving.hedging import HedgingPolicy
from aioserving.inference import (
    Classification,
    ClassifyResult,
    MultiInferenceResult,
    RegressResult,
    ScoredClass,
)
from aioserving.latency import Latency
from aioserving.limits import AdaptiveLimit
from aioserving.pool import ConnectionStats, EndpointStats, PoolOptions
from aioserving.prediction import PredictResult
from aioserving.queueing import QueueStats
from aioserving.resolver import ResolverOptions
from aioserving.retry import NO_RETRIES, RetryPolicy
from aioserving.security import TLS, APIKey, Combined, Credentials, Headers, StaticToken, Token, google_auth
from aioserving.signature import ModelMetadata, Signature, TensorSpec
from aioserving.status import ModelStatus, State, VersionStatus
from aioserving.targets import Target

if TYPE_CHECKING:
    from aioserving.batching import BatchedModel, BatchingStats, BlockingBatchedModel
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
    "NO_RETRIES",
    "TLS",
    "APIKey",
    "AbortedError",
    "AdaptiveLimit",
    "AlreadyExistsError",
    "AsyncClient",
    "Attempt",
    "BalancingOptions",
    "BatchedModel",
    "BatchingStats",
    "BlockingBatchedModel",
    "BlockingModel",
    "CancelledError",
    "CircuitOptions",
    "Classification",
    "ClassifyResult",
    "Client",
    "ClientClosedError",
    "ClientHealth",
    "ClientStateError",
    "ClientStats",
    "Combined",
    "ConfigDiff",
    "ConfigProblem",
    "ConfigWarning",
    "ConnectionStats",
    "Credentials",
    "DataLossError",
    "DataType",
    "DeadlineExceededError",
    "DecodeError",
    "EndpointHealth",
    "EndpointStats",
    "EventLoopError",
    "FailedPreconditionError",
    "ForkError",
    "Headers",
    "HealthOptions",
    "HedgingPolicy",
    "InternalError",
    "InvalidArgumentError",
    "InvalidConfigError",
    "InvalidInputError",
    "Latency",
    "LoadFailure",
    "MessageTooLargeError",
    "Model",
    "ModelConfig",
    "ModelLoadError",
    "ModelMetadata",
    "ModelNotFoundError",
    "ModelServerConfig",
    "ModelSpec",
    "ModelStats",
    "ModelStatus",
    "MultiInferenceResult",
    "NotFoundError",
    "OutOfRangeError",
    "PermissionDeniedError",
    "PoolOptions",
    "PredictRequest",
    "PredictResult",
    "QueueStats",
    "RPCError",
    "RegressResult",
    "ReloadResult",
    "ResolverOptions",
    "ResourceExhaustedError",
    "RetryPolicy",
    "ScoredClass",
    "ServingError",
    "Signature",
    "SignatureNotFoundError",
    "State",
    "StaticToken",
    "Target",
    "TensorSpec",
    "Token",
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
    "google_auth",
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
    **dict.fromkeys(("BatchedModel", "BatchingStats", "BlockingBatchedModel"), "batching"),
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
