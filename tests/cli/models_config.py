"""Configurations for servers that commands reload."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aioserving import Client, State, write_config
from aioserving.testing import ServerProcess

from .conftest import CALLABLES, ROOT

__all__ = ["model", "reloadable", "settle", "write"]


def model(name: str, *versions: int, base_path: str = "", **labels: int) -> dict[str, Any]:
    """The ModelConfig of a callable model; of some versions, and with labels, if there are any."""
    config: dict[str, Any] = {"name": name, "base_path": base_path or f"/callable/{name}"}
    if versions:
        config["model_version_policy"] = {"specific": list(versions)}
    if labels:
        config["version_labels"] = labels
    return config


def write(path: str, *models: dict[str, Any]) -> str:
    """A model_config_file of such models; gives its name."""
    write_config(Path(path), list(models))
    return path


@contextmanager
def reloadable(*models: dict[str, Any]) -> Iterator[ServerProcess]:
    """A server that serves `models`, and may be told to serve others."""
    with ServerProcess(
        callables=CALLABLES, env={"PYTHONPATH": str(ROOT)}, file_system_poll_wait_seconds=0.05
    ) as process:
        with Client(process.target) as client:
            client.reload_config(list(models), wait=True)
        settle(process, *models)
        yield process


def settle(process: ServerProcess, *models: dict[str, Any]) -> None:
    """Wait until a server has unloaded what is not among `models`, which it does after it has answered."""
    with Client(process.target) as client:
        while any(
            item.state == State.UNLOADING or (item.available and not wanted(models, name, item.version))
            for name in CALLABLES
            for item in client.get_model_status(name)
        ):
            time.sleep(0.02)


def wanted(models: Iterable[dict[str, Any]], name: str, version: int) -> bool:
    """Whether one of `models` asks for a version, by name or by naming none."""
    for item in models:
        if item["name"] == name:
            named = item.get("model_version_policy", {}).get("specific")
            return version in named if named else True
    return False
