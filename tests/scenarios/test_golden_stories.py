"""The recorded stories of the real server's life, replayed call by call over a real socket.

Reloads and what they lead to (groups C and C2), models that cannot be loaded and reloads that hang (D),
states on the way (D2), labels (L), versions that come and go on disk (P), and starts that succeed or
fail (S). A story is one server and its calls in recorded order. What happens in the background may take
a moment: a read is repeated until it agrees, for some seconds; a reload is sent once.

What has to agree: code, message, and the bytes of the response up to the order of maps;
`tests.golden.exceptions` lists what does not. A status that the recording client made up itself, when
its deadline passed, counts by its code alone.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aioserving._proto import message_class
from aioserving.testing import ModelServer, StatusError
from aioserving.testing.options import ServerOptions
from aioserving.testing.rules import State
from tests.golden import cases
from tests.golden.exceptions import explained, message_accepted

pytestmark = [pytest.mark.anyio, pytest.mark.tensorflow]

#: Seconds within which a read has to agree. The recorder, too, waited for what takes long.
PATIENCE = 15.0

#: Seconds after which a call that the real server did not answer in time has to be still unanswered.
UNANSWERED = 1.0

STORIES = [group for group in cases.groups() if group[0] in "CDLP"]

#: The recorder read some states while they were passing: between two steps of the server (100 ms apart),
#: or before its next look at the disk (every second). Here there is more time for that. And it waited two
#: seconds for each retry of a load; a quarter of that shows the same.
SETTINGS: dict[str, dict[str, float]] = {
    "C_reload": {"file_system_poll_wait_seconds": 2.0},
    "D_loaderr": {"testing_manage_state_interval_ms": 1000.0},
    "D2_states": {"load_retry_interval_micros": 500_000},
}


@dataclass
class Story:
    """A server and what is compared on it."""

    server: ModelServer
    call: Callable[[str, bytes, float], Awaitable[bytes]]
    #: The folder to put for ``$MODELS``; None: that of the recordings.
    models: Path | None = None
    mismatches: list[str] = field(default_factory=list)
    replayed: int = 0

    async def replay(self, case: cases.Case) -> None:
        """Make the call of `case`, again and again if it is a read, and note what does not agree."""
        self.replayed += 1
        request = cases.request_with_folders(case, models=self.models)
        read = case.method != "HandleReloadConfigRequest"
        if not read:
            await self._rest()
        end = time.monotonic() + PATIENCE
        while True:
            timeout = UNANSWERED if case.client_deadline else 60.0
            answer = await self._answer(case, request, timeout)
            difference = self._difference(case, *answer)
            if difference is None:
                return
            if not read or time.monotonic() > end:
                self.mismatches.append(f"{case.id}: {difference}")
                return
            await asyncio.sleep(0.05)

    async def _rest(self) -> None:
        """Let loads and unloads of the last reload finish: the recorder paused, which no case shows."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            states = self.server.manager.states.models.values()
            if {item.state for model in states for item in model.values()} <= {State.AVAILABLE, State.END}:
                return
            await asyncio.sleep(0.02)

    async def _answer(self, case: cases.Case, request: bytes, timeout: float) -> tuple[str, str, bytes]:
        try:
            return "OK", "", await self.call(case.path, request, timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or "", b""

    def _difference(self, case: cases.Case, code: str, message: str, response: bytes) -> str | None:
        message = cases.anonymous(message, models=self.models)
        waiver = explained(case)
        if not cases.same_code(case, code) and not (waiver and code in waiver.codes):
            return f"{code} {message!r} instead of {case.code} {case.message!r}"
        if case.client_deadline:
            return None
        if not cases.same_message(case.message, message) and not message_accepted(case, message):
            return f"message {message!r} instead of {case.message!r}"
        if not case.has_response:
            return None
        if waiver and waiver.response:
            return None if _sorted_metrics(case.response) == _sorted_metrics(response) else "other metrics"
        response = cases.anonymous_response(case.method, response, models=self.models)
        if cases.same_response(case.method, case.response, response):
            return None
        kind = cases.response_class(case.method)
        return f"answer {kind.FromString(response)} instead of {kind.FromString(case.response)}"


def _sorted_metrics(response: bytes) -> Any:
    """A ReloadConfigResponse with its metrics by name: all that is waived of one is their order."""
    message: Any = message_class("tensorflow.serving.ReloadConfigResponse").FromString(response)
    message.metric.sort(key=lambda metric: metric.name)
    return message


async def story(group: str, tell: Callable[[Story], Awaitable[None]], models: Path | None = None) -> None:
    """Start the server of `group`, let `tell` replay its cases, and compare."""
    recorded = cases.server_config(group, models=models)
    flags = {
        name: bool(value) if name.startswith("allow_") else value for name, value in recorded.flags.items()
    }
    options = ServerOptions(**{**flags, **SETTINGS.get(group, {})})  # type: ignore[arg-type]
    async with (
        ModelServer(config=recorded.config, options=options) as server,
        grpc.aio.insecure_channel(server.target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):

        async def call(method: str, request: bytes, timeout: float) -> bytes:
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
            return await stub(request, timeout=timeout)

        told = Story(server, call, models)
        await tell(told)
    assert told.replayed == len(cases.load(group)), "not every case was replayed"
    assert not told.mismatches, "\n".join(told.mismatches)


def skip_without_models(group: str) -> None:
    """Skip a story whose models are not in this repository."""
    reason = next(filter(None, map(cases.skip_reason, cases.load(group))), None)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize("group", [group for group in STORIES if group not in ("D2_states", "P_poll")])
async def test_story(group: str) -> None:
    """A recorded sequence of calls ends, call by call, as it did with the real server."""
    skip_without_models(group)

    async def tell(told: Story) -> None:
        for case in cases.load(group):
            await told.replay(case)

    await story(group, tell)


async def test_states_on_the_way() -> None:
    """While a load is retried, its version is LOADING and everything else serves (group D2_states)."""
    skip_without_models("D2_states")

    async def tell(told: Story) -> None:
        request: Any = message_class("tensorflow.serving.ReloadConfigRequest")()
        for name, base_path in (
            ("good", "$TESTDATA/saved_model_half_plus_two_cpu"),
            ("bad", "$MODELS/corrupt_pb"),
        ):
            request.config.model_config_list.config.add(
                name=name, base_path=cases.substitute(base_path), model_platform="tensorflow"
            )
        # The recorder had this reload under way, but did not keep it as a case.
        path = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
        retrying = asyncio.ensure_future(told.call(path, request.SerializeToString(), 60))
        for case in cases.load("D2_states"):
            await told.replay(case)
            if case.name == "004_status_after":
                with pytest.raises(grpc.aio.AioRpcError, match=r"1 model.s. did not become available"):
                    await retrying

    await story("D2_states", tell)


async def test_versions_on_disk(tmp_path: Path) -> None:
    """Version folders that appear and disappear are served and dropped (group P_poll)."""
    folder = tmp_path / "poll"
    folder.mkdir()

    def add(version: int) -> None:
        # Copied beside and renamed, so that the server never sees half a model.
        shutil.copytree(cases.MODELS / "versions" / str(version), tmp_path / "copy")
        (tmp_path / "copy").rename(folder / str(version))

    def broken() -> None:
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / "saved_model.pb").write_bytes(b"broken")  # a field longer than the file
        (tmp_path / "copy").rename(folder / "3")

    def remove(*versions: int) -> None:
        for version in versions:
            (folder / str(version)).rename(tmp_path / f"removed {version}")
            shutil.rmtree(tmp_path / f"removed {version}")

    #: What happened on the recorder's disk before these cases.
    before: dict[str, Callable[[], None]] = {
        "003_status_latest": lambda: add(2),
        "007_status_latest_rollback": lambda: remove(2),
        "010_status_bad3": broken,
        "012_status_none": lambda: remove(1, 3),
    }

    async def tell(told: Story) -> None:
        for case in cases.load("P_poll"):
            before.get(case.name, lambda: None)()
            await told.replay(case)

    add(1)
    await story("P_poll", tell, models=tmp_path)


STARTS: list[dict[str, Any]] = json.loads((cases.HERE / "S_startup" / "startup.json").read_text())

#: The recorder's own names of flags.
FLAGS = {
    "retries": "max_num_load_retries",
    "retry_us": "load_retry_interval_micros",
    "allow_labels_unavailable": "allow_version_labels_for_unavailable_models",
}


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start["name"])
async def test_start(start: dict[str, Any]) -> None:
    """A server starts, or refuses to, as the real one does with the same configuration (group S_startup)."""
    if "$TESTDATA" in start["config"] and cases.testdata_dir() is None:
        pytest.skip(
            "needs the upstream models, and there is no ../shared/golden/testdata beside the repository"
        )
    flags = {FLAGS[name]: value for name, value in start["flags"].items()}
    server = ModelServer(config=cases.substitute(start["config"]), **flags)
    if start["result"] == "started":
        async with server:
            assert server.running
        return
    with pytest.raises(StatusError) as caught:
        await server.start()
    recorded = start["status"][2:-1]  # written as Python's bytes
    assert cases.anonymous(str(caught.value)) == recorded
    assert int(caught.value.code) == start["code"]
    assert not server.running
