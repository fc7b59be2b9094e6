"""What every test folder shares: asyncio as the only backend, and skipping where TensorFlow is missing."""

from __future__ import annotations

import importlib.util
import signal
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that
# they start: those that are to be interrupted would not notice.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Run the tests marked ``anyio`` on asyncio, the only loop that gRPC knows."""
    return "asyncio"


@pytest.fixture
def s3() -> Iterator[dict[str, Any]]:
    """An S3 store that answers over HTTP, and has no bucket yet: fsspec's options for it."""
    fsspec_s3 = pytest.importorskip("s3fs", reason="S3 needs s3fs")
    moto = pytest.importorskip("moto.server", reason="an S3 store for tests is moto's")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    # All servers of a process share one memory, which outlives them.
    urllib.request.urlopen(
        urllib.request.Request(f"{address}/moto-api/reset", method="POST"), timeout=10
    ).close()
    try:
        yield {
            "key": "key",
            "secret": "secret",
            "client_kwargs": {"endpoint_url": address, "region_name": "eu-central-1"},
        }
    finally:
        fsspec_s3.S3FileSystem.clear_instance_cache()
        server.stop()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``tensorflow`` where it is not installed."""
    if importlib.util.find_spec("tensorflow") is not None:
        return
    skip = pytest.mark.skip(reason="needs TensorFlow, which is not installed here")
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(skip)
