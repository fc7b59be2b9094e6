"""What a reload would change, from what a server says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from aioserving import ModelMetadata, ModelStatus, NotFoundError, State, VersionStatus, read_config
from aioserving.cli.changes import observe, resolve_label

from .models_config import model


class Server:
    """Answers from tables: states of versions by model, versions by label."""

    def __init__(self, models: dict[str, dict[int, State]], labels: dict[str, int]) -> None:
        self.models = models
        self.labels = labels

    async def get_model_status(self, name: str) -> ModelStatus:
        if name not in self.models:
            raise NotFoundError("no such model")
        states = sorted(self.models[name].items(), reverse=True)
        return ModelStatus(name, tuple(VersionStatus(version, state) for version, state in states))

    async def get_model_metadata(self, name: str, *, version_label: str) -> ModelMetadata:
        if version_label not in self.labels:
            raise NotFoundError("no such label")
        return ModelMetadata(name, self.labels[version_label], {})


def seen(server: Any, *new: dict[str, object], old: list[dict[str, object]] | None = None) -> list[str]:
    before = read_config(old) if old is not None else None
    changes = asyncio.run(observe(server, "a:1", read_config(list(new)), before))
    assert {change.target for change in changes} <= {"a:1"}
    return [str(change) for change in changes]


@pytest.mark.parametrize(
    ("states", "new", "expected"),
    [
        ({}, model("m"), ["+ m: is added, from /callable/m"]),
        ({1: State.AVAILABLE}, model("m"), []),
        ({1: State.END}, model("m"), ["+ m: is loaded again, from /callable/m"]),
        ({1: State.AVAILABLE}, model("m", 1, 2), ["+ m: loads version 2"]),
        ({1: State.AVAILABLE, 2: State.LOADING}, model("m", 2), ["- m: unloads version 1"]),
        ({1: State.END, 2: State.AVAILABLE}, model("m", 1, 2), ["+ m: loads version 1"]),
        ({1: State.UNLOADING, 2: State.AVAILABLE}, model("m", 2), []),
        ({1: State.AVAILABLE}, model("m", gold=1), ["~ m: label 'gold' moves from version 3 to 1"]),
        ({1: State.AVAILABLE}, model("m", new=1), ["~ m: label 'new' is set to version 1"]),
        ({3: State.AVAILABLE}, model("m", gold=3), []),
    ],
)
def test_what_a_server_tells(states: dict[int, State], new: dict[str, object], expected: list[str]) -> None:
    """Models, versions and labels that come and go, as far as the new configuration names them."""
    server = Server({"m": states} if states else {}, {"gold": 3})
    assert seen(server, new) == expected


def test_what_only_the_old_config_tells() -> None:
    """Models that go, and other fields that change; versions and labels are the server's to tell."""
    server = Server({"m": {1: State.AVAILABLE}}, {"gold": 1})
    old = [model("m", 1, gold=1), model("gone")]
    assert seen(server, model("m", 1, gold=1, base_path="/other"), old=old) == [
        "- gone: is unloaded",
        "~ m: base_path: '/callable/m' -> '/other'",
    ]
    assert seen(server, model("m", 1, gold=1), old=[model("m", 1, 2, gold=2)]) == []


def test_a_label_that_a_server_does_not_know() -> None:
    """It stands for no version."""
    server: Any = Server({}, {"gold": 3})
    assert asyncio.run(resolve_label(server, "m", "gold")) == 3
    assert asyncio.run(resolve_label(server, "m", "tin")) is None
