"""A controller that does what tests say, for tests of what stands before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator
from pathlib import Path
from typing import Any

from aioserving.repository.controller import ModelReport, VersionReport
from aioserving.repository.disk import DiskVersion
from aioserving.repository.errors import NotInStoreError, RepositoryError
from aioserving.repository.events import EventKind, Events, Watch
from aioserving.repository.fetch import FetchProgress
from aioserving.repository.policy import Policy
from aioserving.repository.state import ModelState, Quarantine, State
from aioserving.repository.store import StoredVersion
from aioserving.status import State as ServerState
from aioserving.status import VersionStatus


class FakeFetch:
    """A fetch that goes on when it is told to."""

    def __init__(self, model: str, version: int, chunks: int = 3) -> None:
        self.model, self.version, self.chunks = model, version, chunks
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.cancelled = False
        self.error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[FetchProgress]:
        yield FetchProgress(self.model, self.version, "listing", 0, None, 0, None)
        for done in range(self.chunks):
            await self.go_on.wait()
            yield FetchProgress(self.model, self.version, "fetching", done * 10, self.chunks * 10, done, None)
        if self.error is not None:
            raise self.error
        yield FetchProgress(self.model, self.version, "done", self.chunks * 10, self.chunks * 10, 3, 3)

    def __await__(self) -> Generator[Any, None, Path]:
        return self._path().__await__()

    async def _path(self) -> Path:
        return Path("/models", self.model, str(self.version))

    def cancel(self) -> None:
        self.cancelled = True


class FakeController:
    """Versions 1 and 2 of the model ``digits``; remembers what it was told to do."""

    def __init__(self, kept: int = 1000) -> None:
        self.events = Events(kept)
        self.state = State({"digits": ModelState(policy=Policy(), good=frozenset({1}), labels={"stable": 1})})
        self.calls: list[tuple[Any, ...]] = []
        self.fetches: list[FakeFetch] = []
        self.error: Exception | None = None
        self.hold: asyncio.Event | None = None
        self.steps: tuple[Any, ...] = ()
        self.hidden_fetch: FakeFetch | None = None

    async def _did(self, *call: Any) -> None:
        self.calls.append(call)
        if self.hold is not None:
            await self.hold.wait()
        if self.error is not None:
            raise self.error

    def publish(self, kind: EventKind, text: str = "", **about: Any) -> int:
        return self.events.publish(time.time(), kind, text, **about).number

    async def models(self) -> list[str]:
        await self._did("models")
        return ["digits", "faces"]

    async def status(self, model: str) -> ModelReport:
        await self._did("status", model)
        if model != "digits":
            return ModelReport(model, None, ())
        stored = StoredVersion("digits", 2, "archive", "s3://models/digits/2.tar", "f2", 500)
        older = StoredVersion("digits", 1, "directory", "s3://models/digits/1", "f1", None)
        return ModelReport(
            "digits",
            self.get_policy("digits"),
            (
                VersionReport(
                    2, stored, None, {}, "quarantined", (), Quarantine("it answers wrongly", 1_700_000_000.5)
                ),
                VersionReport(
                    1,
                    older,
                    DiskVersion("digits", 1, Path("/models/digits/1"), 1000, "f1"),
                    {
                        "a": VersionStatus(1, ServerState.AVAILABLE),
                        "b": VersionStatus(1, ServerState.END, "NOT_FOUND: gone"),
                    },
                    "promoted",
                    ("stable",),
                    None,
                    True,
                ),
            ),
            {"stable": 1},
            (),
            ("server b does not answer",),
        )

    def get_policy(self, model: str) -> Policy | None:
        return self.state.model(model).policy

    async def set_policy(self, model: str, policy: Policy) -> None:
        await self._did("set_policy", model, policy)
        self.state = self.state.with_model(model, ModelState(policy=policy))

    async def remove_policy(self, model: str) -> bool:
        await self._did("remove_policy", model)
        self.state = self.state.with_model(model, None)
        return True

    async def rollout(self, model: str, version: int | None = None) -> int:
        await self._did("rollout", model, version)
        if self.get_policy(model) is None:
            raise RepositoryError(f"model {model!r} has no policy")
        return 2 if version is None else version

    async def rollback(self, model: str, version: int | None = None) -> int:
        await self._did("rollback", model, version)
        return 1 if version is None else version

    async def release(self, model: str, version: int) -> bool:
        await self._did("release", model, version)
        return version == 2

    async def delete_version(self, model: str, version: int) -> bool:
        await self._did("delete_version", model, version)
        if version == 1:
            raise RepositoryError("version 1 of model 'digits' is wanted by its policy")
        return version == 2

    async def fetch(self, model: str, version: int | None = None) -> FakeFetch:
        await self._did("fetch", model, version)
        if version is not None and version > 2:
            raise NotInStoreError(f"the store has no version {version} of model {model!r}")
        fetch = self.hidden_fetch or FakeFetch(model, 2 if version is None else version)
        self.fetches.append(fetch)
        return fetch

    async def plan(self) -> Any:
        await self._did("plan")
        return self

    def watch(self, *, since: int | None = None) -> Watch:
        return self.events.watch(since=since)
