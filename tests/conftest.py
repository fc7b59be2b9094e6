"""What every test folder shares: asyncio as the only backend, and skipping where TensorFlow is missing."""

from __future__ import annotations

import importlib.util
import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that
# they start: those that are to be interrupted would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run the tests marked ``anyio`` on asyncio, the only loop that gRPC knows."""
    return "asyncio"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``tensorflow`` where it is not installed."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    skip = pytest.mark.skip(reason="needs TensorFlow, which is not installed here")
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(skip)
