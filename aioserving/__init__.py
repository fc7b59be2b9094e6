"""The asyncio-native client for TensorFlow Serving.

    async with AsyncClient("127.0.0.1:8500") as client:
        result = await client.predict("digits", {"images": images})

Importing it never imports TensorFlow, and nothing else before one of its names is used: the command line has
to answer at once. The map:

    what people use   client (AsyncClient, Model), blocking (Client; its thread: shared_loop), errors;
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

if TYPE_CHECKING:
    from aioserving.attempts import Attempt
    from aioserving.balancing import BalancingOptions
    from aioserving.batching import BatchedModel, BatchingStats, BlockingBatchedModel
    from aioserving.blocking import BlockingModel, Client
    from aioserving.calls import ModelStats
    from aioserving.circuit import CircuitOptions
    from aioserving.client import AsyncClient, ClientStats, Model
    from aioserving.configuration import (
        ConfigDiff,
        ConfigWarning,
        check_config,
        diff_configs,
        read_config,
        write_config,
    )
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
    from aioserving.messages import ModelConfig, ModelServerConfig, ModelSpec, PredictRequest
    from aioserving.pool import ConnectionStats, EndpointStats, PoolOptions
    from aioserving.prediction import PredictResult
    from aioserving.queueing import QueueStats
    from aioserving.reload import ReloadResult
    from aioserving.resolver import ResolverOptions
    from aioserving.retry import NO_RETRIES, RetryPolicy
    from aioserving.security import (
        TLS,
        APIKey,
        Combined,
        Credentials,
        Headers,
        StaticToken,
        Token,
        google_auth,
    )
    from aioserving.signature import ModelMetadata, Signature, TensorSpec
    from aioserving.status import ModelStatus, State, VersionStatus
    from aioserving.targets import Target

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

#: Names that are loaded together, when the first of them is used, by module.
_TOGETHER = {
    "attempts": ("Attempt",),
    "balancing": ("BalancingOptions",),
    "blocking": ("BlockingModel", "Client"),
    "calls": ("ModelStats",),
    "circuit": ("CircuitOptions",),
    "client": ("AsyncClient", "ClientStats", "Model"),
    "dtypes": ("DataType",),
    "errors": (
        "AbortedError",
        "AlreadyExistsError",
        "CancelledError",
        "ClientClosedError",
        "ClientStateError",
        "ConfigProblem",
        "DataLossError",
        "DeadlineExceededError",
        "DecodeError",
        "EventLoopError",
        "FailedPreconditionError",
        "ForkError",
        "InternalError",
        "InvalidArgumentError",
        "InvalidConfigError",
        "InvalidInputError",
        "LoadFailure",
        "MessageTooLargeError",
        "ModelLoadError",
        "ModelNotFoundError",
        "NotFoundError",
        "OutOfRangeError",
        "PermissionDeniedError",
        "ResourceExhaustedError",
        "RPCError",
        "ServingError",
        "SignatureNotFoundError",
        "UnauthenticatedError",
        "UnavailableError",
        "UnimplementedError",
        "UnknownError",
        "UnsupportedTypeError",
        "VersionLabelNotFoundError",
        "VersionNotFoundError",
    ),
    "health": ("ClientHealth", "EndpointHealth", "HealthOptions"),
    "hedging": ("HedgingPolicy",),
    "inference": ("Classification", "ClassifyResult", "MultiInferenceResult", "RegressResult", "ScoredClass"),
    "latency": ("Latency",),
    "limits": ("AdaptiveLimit",),
    "pool": ("ConnectionStats", "EndpointStats", "PoolOptions"),
    "prediction": ("PredictResult",),
    "queueing": ("QueueStats",),
    "resolver": ("ResolverOptions",),
    "retry": ("NO_RETRIES", "RetryPolicy"),
    "security": (
        "TLS",
        "APIKey",
        "Combined",
        "Credentials",
        "Headers",
        "StaticToken",
        "Token",
        "google_auth",
    ),
    "signature": ("ModelMetadata", "Signature", "TensorSpec"),
    "status": ("ModelStatus", "State", "VersionStatus"),
    "targets": ("Target",),
}

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
    import importlib

    if name in _LAZY:
        value = globals()[name] = getattr(importlib.import_module(f"aioserving.{_LAZY[name]}"), name)
        return value
    if name not in __all__:
        import importlib.util

        if importlib.util.find_spec(f"aioserving.{name}") is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return importlib.import_module(f"aioserving.{name}")  # `aioserving.errors` needs no import of its own
    for module, names in _TOGETHER.items():
        found = importlib.import_module(f"aioserving.{module}")
        for item in names:
            value = globals()[item] = getattr(found, item)
            if isinstance(value, type):
                value.__module__ = __name__  # reprs and tracebacks show where a name is imported from
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_TOGETHER})
