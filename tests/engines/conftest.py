"""Real server processes for engines to score with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from aioserving.testing import ServerProcess

ROOT = Path(__file__).resolve().parents[2]


def _config(*versions: int) -> str:
    told = " ".join(f"versions: {version}" for version in versions)
    return (
        'model_config_list { config { name: "rows" base_path: "/callable/rows" model_platform: "tensorflow" '
        f"model_version_policy {{ specific {{ {told} }} }} }} }}"
    )


class Fleet:
    """Two servers of the model `tests.engines.servables.rows`, of which version 1 is served at first."""

    def __init__(self) -> None:
        self.servers = [
            ServerProcess(
                callables={"rows": "tests.engines.servables:rows"},
                env={"PYTHONPATH": str(ROOT)},
                file_system_poll_wait_seconds=0.1,
            )
            for _ in range(2)
        ]

    @property
    def targets(self) -> list[str]:
        return [server.target for server in self.servers]

    def serve(self, *versions: int) -> None:
        """Serve these versions, on every server, and wait until they are."""
        from aioserving import Client
        from aioserving.messages import ModelServerConfig

        for target in self.targets:
            with Client(target) as client:
                client.reload_config(ModelServerConfig.from_text(_config(*versions)), wait=True, timeout=30)
                deadline = time.monotonic() + 30
                while {one.version for one in client.get_model_status("rows").available} != set(versions):
                    assert time.monotonic() < deadline, client.get_model_status("rows")
                    time.sleep(0.02)  # what is unloaded is so in the background


@pytest.fixture(scope="module")
def fleet() -> Iterator[Any]:
    """See `Fleet`; the processes end with the module."""
    found = Fleet()
    try:
        for server in found.servers:
            server.start()
        found.serve(1)
        yield found
    finally:
        for server in found.servers:
            server.close()
