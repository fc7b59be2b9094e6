"""The surface of the package: what it exports, and what importing it does not do."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import aioserving

ROOT = Path(__file__).parents[1]

EXPORTS = [
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
    "NO_RETRIES",
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
    "TLS",
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


def test_exports() -> None:
    """The top-level names are these and no others; adding one is a decision."""
    assert sorted(aioserving.__all__) == sorted(EXPORTS)
    for name in aioserving.__all__:
        assert getattr(aioserving, name) is not None
        assert name in dir(aioserving)


def test_every_error_is_exported() -> None:
    """Whatever can be raised can be caught by a top-level name."""
    assert set(aioserving.errors.__all__) <= set(aioserving.__all__)


def test_classes_show_their_public_path() -> None:
    """Reprs and tracebacks say where to import a class from."""
    assert aioserving.AsyncClient.__module__ == "aioserving"
    assert aioserving.ModelNotFoundError.__module__ == "aioserving"


def test_the_version_is_the_projects() -> None:
    """One number, in two places that must agree."""
    found = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    assert aioserving.__version__ == found[1]


def test_importing_pulls_in_nothing_heavy_or_optional() -> None:
    """No TensorFlow, no protobuf messages, no optional library, no testing server."""
    code = (
        "import sys, aioserving; aioserving.Client; "
        "print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    unwanted = (
        "tensorflow tensorflow_serving keras google ml_dtypes sklearn pandas pyarrow pytest uvloop trio"
    )
    assert set(out.stdout.split()) & set(unwanted.split()) == set()
    code = (
        "import sys, aioserving; aioserving.Client; "
        "print([m for m in sys.modules if m.startswith('aioserving.testing')])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.strip() == "[]"


def test_importing_the_package_alone_loads_nothing() -> None:
    """The command line answers `--help` and the Tab key without numpy and gRPC; the first name loads them."""
    code = (
        "import sys, aioserving; print([m for m in ('numpy', 'grpc', 'asyncio') if m in sys.modules]); "
        "print(aioserving.errors.NotFoundError.__name__, 'grpc' in sys.modules); "
        "print(aioserving.Client.__module__, 'grpc' in sys.modules, hasattr(aioserving, 'nothing'))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert out.stdout.splitlines() == ["[]", "NotFoundError False", "aioserving True False"]


def test_every_module_has_a_test_file() -> None:
    """Tests mirror modules."""
    missing = []
    for module in sorted((ROOT / "aioserving").rglob("*.py")):
        path = module.relative_to(ROOT / "aioserving")
        if path.stem in {"__init__", "__main__"} or path.parts[0] in {"_proto", "messages"}:
            continue
        if path.parts[:2] == ("jobs", "readers"):  # held to one contract, format by format
            continue
        name = f"test_{path.stem.lstrip('_')}.py"
        if not (ROOT / "tests" / path.parent / name).exists():
            missing.append(str(path))
    assert (ROOT / "tests" / "test_proto.py").exists()
    assert (ROOT / "tests" / "test_messages.py").exists()
    assert (ROOT / "tests" / "jobs" / "test_readers.py").exists()
    assert missing == ["_types.py"]  # aliases and a marker; mypy tests them


def test_type_checkers_see_the_types() -> None:
    """The marker that PEP 561 asks for is there."""
    assert (ROOT / "aioserving" / "py.typed").exists()
