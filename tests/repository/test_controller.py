"""The controller: what it is asked for, what it tells, and what it remembers, with one real server."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

import numpy as np

from aioserving import AsyncClient, InvalidArgumentError
from aioserving.repository.controller import Controller
from aioserving.repository.disk import Disk
from aioserving.repository.errors import (
    InvalidNameError,
    NotInStoreError,
    PolicyMissingError,
    VersionInUseError,
)
from aioserving.repository.fetch import Fetcher
from aioserving.repository.policy import Label, Latest, Policy
from aioserving.repository.store import Store
from aioserving.status import State as ServerState

from .serve import ROOT, LightServer

SAVED_MODEL = ROOT / "tests" / "golden" / "models" / "versions" / "1"
IMAGES = np.ones((1, 4), np.float32)
STABLE = Policy(labels={"stable": Label()})


class World:
    """A store, a disk and a client of a server; makes controllers."""

    def __init__(self, folder: Path, client: AsyncClient | None = None) -> None:
        self.stored = folder / "store"
        self.stored.mkdir(exist_ok=True)
        self.store = Store.open(str(self.stored), settle=0.05)
        self.disk = Disk(folder / "disk")
        self.clients = {} if client is None else {"a": client}

    def upload(self, version: int, *marks: str, model: str = "digits") -> None:
        partial = self.stored / f".{model}-{version}"
        shutil.copytree(SAVED_MODEL, partial)
        for mark in marks:
            (partial / "assets" / mark).touch()
        (self.stored / model).mkdir(exist_ok=True)
        partial.rename(self.stored / model / str(version))

    def controller(self, **settings: Any) -> Controller:
        fetcher = Fetcher(self.store, self.disk)
        made = Controller(self.store, self.disk, fetcher, self.clients, **{"poll_period": 0.3, **settings})
        fetcher.keep = made.in_use
        return made


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


def test_steps_one_by_one(tmp_path: Path) -> None:
    """`plan` does nothing, also with policies that were not set; `step` takes one turn and waits for it."""

    async def story() -> None:
        with LightServer() as server:
            async with AsyncClient(server.target) as client:
                world = World(tmp_path, client)
                world.upload(1)
                controller = world.controller()
                assert not await controller.plan()
                imagined = await controller.plan({"digits": STABLE})
                assert str(imagined) == "fetch digits 1"
                assert not controller.state.models
                await controller.set_policy("digits", STABLE)
                for _ in range(40):
                    if not await controller.step():
                        break
                    await asyncio.sleep(0.05)
                result = await client.predict("digits", {"images": IMAGES}, version_label="stable")
                assert result["version"] == 1
                kinds = [event.kind for event in controller.events.recent]
                assert kinds[:5] == ["started", "policy", "fetching", "fetched", "rollout"]
                assert {"reload", "available", "promoted", "label"} <= set(kinds)
                assert "1 of 1 servers up" in repr(controller)
                await controller.aclose()
                assert [event.kind async for event in controller.watch()] == []

    run(story())


def test_what_is_remembered(tmp_path: Path) -> None:
    """Policies and quarantine survive a restart; a version comes back only when a person asks for it."""

    async def story() -> None:
        with LightServer() as server:
            async with AsyncClient(server.target) as client:
                world = World(tmp_path, client)
                world.upload(1)
                async with world.controller() as controller:
                    await controller.set_policy("digits", STABLE)
                    await controller.wait_converged(20)
                    world.upload(2, "fails")
                    await controller.wait_converged(20)
                async with world.controller() as controller:
                    assert controller.get_policy("digits") == STABLE
                    await controller.wait_converged(20)
                    report = await controller.status("digits")
                    assert [(item.version, item.role) for item in report.versions] == [
                        (2, "quarantined"),
                        (1, "promoted"),
                    ]
                    assert report.versions[1].servers["a"].state == ServerState.AVAILABLE
                    assert report.versions[1].labels == ("stable",)
                    assert report.versions[0].quarantine is not None
                    assert "damaged" in report.versions[0].quarantine.reason
                    (world.stored / "digits" / "2" / "assets" / "fails").unlink()
                    # A server tries a version again only if it has seen it leave its list in between.
                    await asyncio.sleep(1.0)
                    assert await controller.rollout("digits", 2) == 2
                    await controller.wait_converged(20)
                    assert controller.state.model("digits").labels == {"stable": 2}, "\n".join(
                        map(str, controller.events.recent)
                    )
                    assert controller.get_policy("digits") == STABLE
                    assert await controller.rollout("digits", 1) == 1
                    await controller.wait_converged(20)
                    assert controller.get_policy("digits") == replace(STABLE, pinned=1)
                    assert controller.state.model("digits").labels == {"stable": 1}
                    assert await controller.rollout("digits") == 2
                    await controller.wait_converged(20)
                    assert controller.get_policy("digits") == STABLE
                    assert await controller.remove_policy("digits")
                    await controller.wait_converged(20)
                    while (await client.get_model_status("digits")).available:
                        await asyncio.sleep(0.02)
                    assert not await controller.remove_policy("digits")

    run(story())


def test_a_server_that_takes_no_empty_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told what it is to serve all the same, and the refusal is told."""

    async def story() -> None:
        with LightServer() as server:
            async with AsyncClient(server.target) as client:
                reload = client.reload_config
                told: list[int] = []

                async def refuse_nothing(config: Any, **settings: Any) -> Any:
                    told.append(len(config.model_config_list))
                    if not told[-1]:
                        raise InvalidArgumentError("no models")
                    return await reload(config, **settings)

                monkeypatch.setattr(client, "reload_config", refuse_nothing)
                world = World(tmp_path, client)
                world.upload(1)
                async with world.controller() as controller:
                    watch = controller.watch()
                    await controller.set_policy("digits", STABLE)
                    await controller.wait_converged(30)
                    assert told[:2] == [0, 1]
                    assert (await client.get_model_status("digits")).available
                    async for event in watch:
                        if event.kind == "reload failed":
                            assert "no models" in str(event)
                            break

    run(story())


def test_deleting(tmp_path: Path) -> None:
    """A version that is wanted or served is not deleted; one that was only fetched is, once."""

    async def story() -> None:
        with LightServer() as server:
            async with AsyncClient(server.target) as client:
                world = World(tmp_path, client)
                world.upload(1)
                world.upload(2)
                async with world.controller() as controller:
                    await controller.set_policy("digits", STABLE)
                    await controller.wait_converged(20)
                    assert await (await controller.fetch("digits", 1)) == world.disk.path("digits") / "1"
                    with pytest.raises(VersionInUseError, match="version 2 of model 'digits'"):
                        await controller.delete_version("digits", 2)
                    assert await controller.delete_version("digits", 1)
                    assert not await controller.delete_version("digits", 1)
                    assert set(world.disk.versions()["digits"]) == {2}

    run(story())


def test_what_is_refused(tmp_path: Path) -> None:
    """Names, versions and models that are not there."""

    async def story() -> None:
        world = World(tmp_path)
        world.upload(1)
        async with world.controller() as controller:
            with pytest.raises(InvalidNameError):
                await controller.set_policy("../digits", STABLE)
            for ask in (controller.rollout, controller.rollback):
                with pytest.raises(PolicyMissingError, match="'digits' has no policy"):
                    await ask("digits")
            with pytest.raises(NotInStoreError, match="no version 7"):
                await controller.fetch("digits", 7)
            await controller.set_policy("digits", STABLE)
            with pytest.raises(NotInStoreError, match="no version 7"):
                await controller.rollout("digits", 7)
            with pytest.raises(NotInStoreError, match="no version of model 'digits' has been promoted"):
                await controller.rollback("digits")
            assert await controller.models() == ["digits"]
            with pytest.raises(RuntimeError, match="takes its turns by itself"):
                await controller.step()
        with pytest.raises(ValueError, match="poll_period"):
            world.controller(poll_period=0)

    run(story())


def test_several_versions_and_a_store_that_is_gone(tmp_path: Path) -> None:
    """Two versions are served beside each other; without its store nothing changes."""

    async def story() -> None:
        with LightServer() as server:
            async with AsyncClient(server.target) as client:
                world = World(tmp_path, client)
                for version in (1, 2, 3):
                    world.upload(version)
                async with world.controller() as controller:
                    await controller.set_policy("digits", Policy(versions=Latest(2)))
                    await controller.wait_converged(20)
                    status = await client.get_model_status("digits")
                    assert {item.version for item in status.available} == {2, 3}
                    world.stored.rename(tmp_path / "gone")
                    await asyncio.sleep(1.0)  # three looks
                    assert {item.version for item in (await client.get_model_status("digits")).available} == {
                        2,
                        3,
                    }
                    (tmp_path / "gone").rename(world.stored)

    run(story())
