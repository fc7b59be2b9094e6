"""pytest fixtures: a testing server, embedded or as a process, for sync and async tests alike.

    # conftest.py
    pytest_plugins = ["aioserving.testing.pytest_plugin"]

    # test_....py
    def test_scores(model_server):
        server = model_server({"digits": CallableServable(...)})
        with Client(server.target) as client:
            ...

The fixtures are factories: call them as often as needed, with the arguments of `ModelServer` and
`ServerProcess`. What they started is ended after the test, also when the test failed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from aioserving.testing.process import ServerProcess
    from aioserving.testing.server import BlockingModelServer, Models

__all__ = ["ModelServerFactory", "ServerProcessFactory", "model_server", "model_server_process"]


class ModelServerFactory(Protocol):
    """What the fixture `model_server` is."""

    def __call__(self, models: Models | None = None, **arguments: Any) -> BlockingModelServer:
        """A started server; the arguments are those of `ModelServer`."""


class ServerProcessFactory(Protocol):
    """What the fixture `model_server_process` is."""

    def __call__(self, **arguments: Any) -> ServerProcess:
        """A started process; the arguments are those of `ServerProcess`."""


@pytest.fixture
def model_server() -> Iterator[ModelServerFactory]:
    """Start embedded servers, each on a thread of its own, so that a test needs no event loop for them."""
    from aioserving.testing.server import ModelServer

    with contextlib.ExitStack() as servers:

        def factory(models: Models | None = None, **arguments: Any) -> BlockingModelServer:
            return servers.enter_context(ModelServer(models, **arguments))

        yield factory


@pytest.fixture
def model_server_process() -> Iterator[ServerProcessFactory]:
    """Start servers as processes, which can be paused and killed."""
    from aioserving.testing.process import ServerProcess

    with contextlib.ExitStack() as processes:

        def factory(**arguments: Any) -> ServerProcess:
            return processes.enter_context(ServerProcess(**arguments))

        yield factory
