"""aioserving.testing: the names that it exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import aioserving.testing
from aioserving.testing.batching import BatchingServable
from aioserving.testing.servable import CallableSignature, TensorSpec

EXPORTS = {
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
}


def test_exports() -> None:
    """The package exports exactly these names, each of them there and listed by `dir`."""
    assert set(aioserving.testing.__all__) == EXPORTS
    assert dir(aioserving.testing) == sorted(dir(aioserving.testing))
    assert set(dir(aioserving.testing)) >= EXPORTS
    for name in EXPORTS:
        assert getattr(aioserving.testing, name).__name__ == name


def test_what_models_are_made_of() -> None:
    """What declares a callable model, and what batches one, come from the package itself."""
    assert aioserving.testing.CallableSignature is CallableSignature
    assert aioserving.testing.TensorSpec is TensorSpec
    assert aioserving.testing.BatchingServable is BatchingServable


def test_unknown_name() -> None:
    """A name that is not there is an AttributeError that says so."""
    with pytest.raises(AttributeError, match="has no attribute 'ModelSever'"):
        _ = aioserving.testing.ModelSever


def test_import_is_lazy() -> None:
    """Importing the package imports nothing that is optional."""
    code = "import sys, aioserving.testing; print(*{'aiohttp', 'pytest', 'tensorflow'} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == []
