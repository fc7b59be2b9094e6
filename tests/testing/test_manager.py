"""aioserving.testing.manager: the life of versions, on a clock that the tests move."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from aioserving._proto import message_class
from aioserving.testing.manager import CallableRegistry, ModelManager
from aioserving.testing.options import ServerOptions
from aioserving.testing.status import StatusCode, StatusError

pytestmark = pytest.mark.anyio


class Clock:
    """Time that passes only in `advance`."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = 0

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        self._order += 1
        heapq.heappush(self._waiting, (self.now + seconds, self._order, future))
        await future

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, waking whoever is due, in order."""
        end = self.now + seconds
        await settle()
        while self._waiting and self._waiting[0][0] <= end:
            self.now, _, future = heapq.heappop(self._waiting)
            if not future.done():
                future.set_result(None)
            await settle()
        self.now = end


async def settle() -> None:
    """Let everything that can run, run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def at_once(function: Callable[[], Any]) -> Any:
    return function()


class FakeServable:
    inline = True
    signatures: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, path: str) -> None:
        self.path = path
        self.closed = False

    def run(self, feeds: Any, fetches: Any, timeout: float | None) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        self.closed = True


class World:
    """A manager, its clock, its folder of models, and a log of what was loaded."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.clock = Clock()
        self.loads: list[str] = []
        self.servables: dict[str, FakeServable] = {}
        #: Folder -> the error that loading it ends with.
        self.broken: dict[str, StatusError] = {}
        options = {"max_num_load_retries": 0, **options}
        self.registry = CallableRegistry()
        self.manager = ModelManager(
            self.load,
            ServerOptions(**options),
            registry=self.registry,
            sleep=self.clock.sleep,
            run_blocking=at_once,
        )

    def load(self, path: str, options: ServerOptions) -> Any:
        name = path.removeprefix(f"{self.folder}/")
        self.loads.append(name)
        if name in self.broken:
            raise self.broken[name]
        servable = self.servables[name] = FakeServable(name)
        return servable

    def make(self, *names: str) -> None:
        for name in names:
            (self.folder / name).mkdir(parents=True)

    def config(self, *entries: str) -> Any:
        """A configuration of models such as ``"a"``, ``"a policy"``; base path: the folder of that name."""
        message: Any = message_class("tensorflow.serving.ModelServerConfig")()
        message.model_config_list.SetInParent()
        for entry in entries:
            name, _, rest = entry.partition(" ")
            base_path = "" if "base_path" in rest else f'base_path: "{self.folder}/{name}"'
            platform = "" if "model_" in rest.replace("model_version", "") else 'model_platform: "tensorflow"'
            text_format.Parse(
                f'name: "{name}" {base_path} {platform} {rest}', message.model_config_list.config.add()
            )
        return message

    async def reload(self, *entries: str) -> None:
        """Reload, letting time pass until it is done (which it has to be within ten seconds)."""
        task = asyncio.ensure_future(self.manager.reload(self.config(*entries)))
        for _ in range(100):
            await settle()
            if task.done():
                break
            await self.clock.advance(0.1)
        assert task.done(), "the reload hangs"
        await task

    def states(self, model: str) -> dict[int, str]:
        return {version: state.state.name for version, state in self.manager.states.versions(model)}

    def serves(self, model: str, version: int | None = None, label: str | None = None) -> str:
        """Folder of the version that a request is resolved to."""
        with self.manager.resolve(spec(model, version, label)) as lease:
            path: str = lease.servable.path  # type: ignore[attr-defined]
            assert (lease.name, str(lease.version)) == (model, path.rpartition("/")[2].lstrip("0"))
            return path


def spec(name: str, version: int | None = None, label: str | None = None) -> Any:
    message: Any = message_class("tensorflow.serving.ModelSpec")(name=name)
    if version is not None:
        message.version.value = version
    if label is not None:
        message.version_label = label
    return message


@pytest.fixture
async def world(tmp_path: Path) -> Any:
    """A world with default options, closed at the end."""
    world = World(tmp_path)
    yield world
    await world.manager.close()


async def started(world: World, *entries: str) -> World:
    await world.manager.start(world.config(*entries))
    return world


async def refused(awaitable: Any) -> tuple[StatusCode, str]:
    with pytest.raises(StatusError) as caught:
        await awaitable
    return caught.value.code, caught.value.message


async def test_start_returns_when_every_model_serves(world: World) -> None:
    """After `start`, each configured model has its wanted version available."""
    world.make("a/1", "a/00000007", "b/3", "b/notes")
    await started(world, "a", "b")
    assert world.serves("a") == "a/00000007"
    assert world.serves("b") == "b/3"
    assert world.states("a") == {7: "AVAILABLE"}
    assert sorted(world.loads) == ["a/00000007", "b/3"]


async def test_resolve_texts(world: World) -> None:
    """What cannot be resolved ends with the real server's code and text."""
    world.make("a/1")
    await started(world, "a")
    invalid, missing = StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND
    for request, code, message in [
        (None, invalid, "Missing ModelSpec"),
        (spec(""), invalid, "ModelSpec has no name specified."),
        (spec("x"), missing, "Servable not found for request: Latest(x)"),
        (spec("a", 7), missing, "Servable not found for request: Specific(a, 7)"),
        (spec("a", 0), missing, "Servable not found for request: Specific(a, 0)"),
        (spec("x", label="l"), invalid, "Unrecognized servable version label: l"),
    ]:
        with pytest.raises(StatusError) as caught:
            world.manager.resolve(request)
        assert (caught.value.code, caught.value.message) == (code, message)


async def test_labels_before_the_first_configuration(world: World) -> None:
    """Until a configuration was accepted, a label is UNAVAILABLE, with the real server's missing blank."""
    await world.manager.start()
    with pytest.raises(StatusError, match=r"Model labels does not init yet\.stable") as caught:
        world.manager.resolve(spec("a", label="stable"))
    assert caught.value.code is StatusCode.UNAVAILABLE


async def test_status_texts(world: World) -> None:
    """GetModelStatus lists all versions ever seen, the highest first, and ignores labels."""
    world.make("a/1", "a/2")
    await started(world, "a model_version_policy { all { } }")
    assert [version for version, _ in world.manager.status(spec("a"))] == [2, 1]
    assert [version for version, _ in world.manager.status(spec("a", label="nope"))] == [2, 1]
    assert [version for version, _ in world.manager.status(spec("a", 1))] == [1]
    for request, message in [
        (None, "Missing ModelSpec"),
        (spec(""), "Could not find any versions of model "),
        (spec("x"), "Could not find any versions of model x"),
        (spec("a", 7), "Could not find version 7 of model a"),
    ]:
        with pytest.raises(StatusError) as caught:
            world.manager.status(request)
        assert caught.value.message == message


async def test_new_version_replaces_the_old_one(world: World) -> None:
    """A new folder is found at the next poll; the old version serves until the new one does, then ends."""
    world.make("a/1")
    await started(world, "a")
    world.make("a/2")
    await world.clock.advance(0.9)
    assert world.serves("a") == "a/1"
    await world.clock.advance(0.2)
    assert world.serves("a") == "a/2"
    await world.clock.advance(0.2)
    assert world.states("a") == {2: "AVAILABLE", 1: "END"}
    assert world.servables["a/1"].closed
    assert not world.servables["a/2"].closed


async def test_broken_version_leaves_the_old_one(world: World) -> None:
    """A version that cannot be loaded ends with its error, whole, and takes nothing away."""
    world.make("a/1")
    await started(world, "a")
    error = world.broken["a/2"] = StatusError(StatusCode.DATA_LOSS, "Can't parse " + "x" * 2000)
    world.make("a/2")
    await world.clock.advance(5)
    assert world.serves("a") == "a/1"
    (_, state), _ = world.manager.status(spec("a"))
    assert state.error is error
    assert world.loads.count("a/2") == 1


async def test_failed_version_is_tried_again_only_after_it_was_unwanted(world: World) -> None:
    """A failed load is final until the version leaves the wanted ones and comes back."""
    world.make("a/1", "b/1")
    await started(world, "a")
    world.broken["b/1"] = StatusError(StatusCode.DATA_LOSS, "bad")
    await refused(world.reload("a", "b"))
    del world.broken["b/1"]
    await world.clock.advance(100)
    assert world.states("b") == {1: "END"}
    await world.reload("a")
    await world.reload("a", "b")
    assert world.serves("b") == "b/1"


async def test_broken_version_taken_away_again(world: World) -> None:
    """Going back from a broken version to the one that still serves just leaves it serving."""
    world.make("a/1")
    await started(world, "a")
    world.broken["a/2"] = StatusError(StatusCode.DATA_LOSS, "bad")
    world.make("a/2")
    await world.clock.advance(5)
    (world.folder / "a/2").rmdir()
    await world.clock.advance(100)
    assert world.states("a") == {2: "END", 1: "AVAILABLE"}
    assert world.loads == ["a/1", "a/2"]


async def test_load_retries(tmp_path: Path) -> None:
    """A load is repeated as often as told, so long apart; LOADING without an error meanwhile."""
    world = World(tmp_path, max_num_load_retries=2, load_retry_interval_micros=60_000_000)
    world.make("good/1", "bad/1")
    await started(world, "good")
    world.broken["bad/1"] = StatusError(StatusCode.NOT_FOUND, "no such thing")
    reload = asyncio.ensure_future(world.manager.reload(world.config("good", "bad")))
    await world.clock.advance(119)
    assert world.loads.count("bad/1") == 2
    assert world.states("bad") == {1: "LOADING"}
    assert world.manager.status(spec("bad"))[0][1].error is None
    await world.clock.advance(2)
    assert world.loads.count("bad/1") == 3
    assert await refused(reload) == (
        StatusCode.UNKNOWN,
        "1 model(s) did not become available: {{{name: bad version: 1} due to error: "
        "NOT_FOUND: no such thing}, }",
    )
    await world.manager.close()


async def test_retry_that_succeeds(tmp_path: Path) -> None:
    """A version that loads at a later attempt serves."""
    world = World(tmp_path, max_num_load_retries=1, load_retry_interval_micros=1_000_000)
    world.make("a/1")
    world.broken["a/1"] = StatusError(StatusCode.UNAVAILABLE, "not yet")
    start = asyncio.ensure_future(world.manager.start(world.config("a")))
    await world.clock.advance(0.5)
    del world.broken["a/1"]
    await world.clock.advance(1)
    await start
    assert world.serves("a") == "a/1"
    await world.manager.close()


async def test_loader_bug_is_a_load_error(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """An exception that is no status ends the version with INTERNAL and its text, and is logged."""
    world.make("a/1", "b/1")
    world.broken["a/1"] = ZeroDivisionError("oops")  # type: ignore[assignment]
    code, message = await refused(world.manager.start(world.config("a", "b")))
    assert code is StatusCode.UNKNOWN
    assert "INTERNAL: ZeroDivisionError: oops" in message
    assert "the loader failed on" in caplog.text


async def test_start_fails_with_the_servables_text(world: World) -> None:
    """One model that cannot be loaded fails the start, in other words than a reload."""
    world.make("a/1", "b/1")
    world.broken["b/1"] = StatusError(StatusCode.DATA_LOSS, "bad")
    assert await refused(world.manager.start(world.config("a", "b"))) == (
        StatusCode.UNKNOWN,
        "1 servable(s) did not become available: {{{name: b version: 1} due to error: DATA_LOSS: bad}, }",
    )


async def test_start_waits_for_missing_base_path(world: World) -> None:
    """A base path that is not there keeps the start waiting, for all models, until it appears."""
    world.make("a/1")
    start = asyncio.ensure_future(world.manager.start(world.config("a", "b")))
    await world.clock.advance(1000)
    assert not start.done()
    assert world.loads == []
    world.make("b/1")
    await world.clock.advance(2)
    await start
    assert world.serves("b") == "b/1"


async def test_reload_adds_and_removes(world: World) -> None:
    """A reload returns when new models serve; models left out go, and stay listed as END without error."""
    world.make("a/1", "b/1")
    await started(world, "a")
    await world.reload("b")
    assert world.serves("b") == "b/1"
    await world.clock.advance(1)
    assert world.states("a") == {1: "END"}
    assert world.manager.status(spec("a"))[0][1].error is None
    await world.reload()
    await world.clock.advance(1)
    assert world.states("b") == {1: "END"}
    # a model that comes back is loaded anew, and the reload does not mistake its old END for an answer
    await world.reload("a")
    assert world.serves("a") == "a/1"
    assert world.loads == ["a/1", "b/1", "a/1"]


async def test_model_named_again_while_it_goes(world: World) -> None:
    """A reload that brings back a model whose old version is still going takes its end for an answer.

    So does the real server, whose reloads do not wait for unloads; the model is loaded all the same.
    """
    world.make("a/1", "b/1")
    await started(world, "a", "b")
    first = asyncio.ensure_future(world.manager.reload(world.config("a")))
    assert await refused(world.reload("a", "b")) == (
        StatusCode.UNKNOWN,
        "1 model(s) did not become available: {{{name: b version: 1}}, }",
    )
    await first
    await world.clock.advance(1)
    assert world.serves("b") == "b/1"
    assert sorted(world.loads) == ["a/1", "b/1", "b/1"]


async def test_reload_does_not_wait_for_known_models(world: World) -> None:
    """A new policy for a configured model is answered at once, and carried out from the next poll on."""
    world.make("a/1", "a/2", "a/3")
    await started(world, "a")
    await world.clock.advance(0.5)
    await world.manager.reload(world.config("a model_version_policy { all { } }"))
    await world.clock.advance(0.4)
    assert world.states("a") == {3: "AVAILABLE"}
    await world.clock.advance(0.1)
    assert world.states("a") == {3: "AVAILABLE", 2: "AVAILABLE", 1: "START"}
    await world.clock.advance(0.1)
    assert world.states("a") == {3: "AVAILABLE", 2: "AVAILABLE", 1: "AVAILABLE"}


async def test_reload_blocks_for_ever_and_holds_the_lock(world: World) -> None:
    """A missing base path blocks a reload and all later ones, also when the first caller gives up."""
    world.make("a/1")
    await started(world, "a")
    hanging = asyncio.ensure_future(world.manager.reload(world.config("a", "gone")))
    await world.clock.advance(1000)
    hanging.cancel()
    later = asyncio.ensure_future(world.manager.reload(world.config("a")))
    await world.clock.advance(1000)
    assert not later.done()
    assert world.serves("a") == "a/1"
    assert "reloading" in repr(world.manager)
    world.make("gone/1")
    await world.clock.advance(2)
    await later


async def test_missing_base_path_stops_all_new_versions(world: World) -> None:
    """While one base path is missing, no model gets new versions; what serves goes on serving."""
    world.make("a/1", "b/1")
    await started(world, "a", "b")
    (world.folder / "b/1").rmdir()
    (world.folder / "b").rmdir()
    world.make("a/2")
    await world.clock.advance(10)
    assert (world.serves("a"), world.serves("b")) == ("a/1", "b/1")
    world.make("b/1")
    await world.clock.advance(2)
    assert world.serves("a") == "a/2"


async def test_empty_base_path_unloads_everything(world: World) -> None:
    """A base path that is there, but without versions, ends all versions of the model."""
    world.make("a/1")
    await started(world, "a")
    (world.folder / "a/1").rmdir()
    await world.clock.advance(3)
    assert world.states("a") == {1: "END"}
    with pytest.raises(StatusError, match=r"Latest\(a\)"):
        world.serves("a")


async def test_changed_base_path_keeps_equal_versions(world: World) -> None:
    """Version numbers found under the old and the new base path stay loaded from the old one."""
    world.make("a/1", "other/1", "other/2")
    await started(world, "a")
    moved = world.config(f'a base_path: "{world.folder}/other" model_version_policy {{ all {{ }} }}')
    await world.manager.reload(moved)
    await world.clock.advance(2)
    assert world.serves("a", 1) == "a/1"
    assert world.serves("a", 2) == "other/2"


async def test_illegal_configurations_change_nothing(world: World) -> None:
    """What is refused before it is stored leaves models, labels and later reloads alone."""
    world.make("a/1")
    await started(world, "a")
    for bad in (
        world.config("a", "a"),
        world.config("a", 'b base_path: "relative"'),
        world.config('a model_platform: "other"'),
    ):
        code, _ = await refused(world.manager.reload(bad))
        assert code is StatusCode.INVALID_ARGUMENT
    await world.reload("a")
    await world.clock.advance(1)
    assert world.states("a") == {1: "AVAILABLE"}


async def test_poisoned_configuration(world: World) -> None:
    """A new model of an unsupported type is refused, yet stored: every later reload fails with its text."""
    world.make("a/1")
    await started(world, "a")
    poison = await refused(world.reload("a", "b model_type: OTHER"))
    assert poison == (StatusCode.INVALID_ARGUMENT, "ModelServerConfig::model_type choice 2 not supported.")
    assert await refused(world.reload("a")) == poison
    assert world.serves("a") == "a/1"


async def test_unknown_platform_can_only_be_left_by_leaving_the_model_out(world: World) -> None:
    """After an unknown platform, the right one is a change of platform, until a reload without the model."""
    world.make("a/1", "b/1")
    await started(world, "a")
    _, message = await refused(world.reload("a", 'b model_platform: "x"'))
    assert message == "Model b requests unsupported platform x"
    _, message = await refused(world.reload("a", "b"))
    assert message.startswith("Illegal to change a model's platform. For model b platform was x")
    await world.reload("a")
    await world.reload("a", "b")
    assert world.serves("b") == "b/1"


async def test_same_configuration_after_a_failure(world: World) -> None:
    """A failed model stays configured: the same reload again is OK at once, the state tells the error."""
    world.make("a/1", "b/1")
    await started(world, "a")
    world.broken["b/1"] = StatusError(StatusCode.DATA_LOSS, "bad")
    code, _ = await refused(world.reload("a", "b"))
    assert code is StatusCode.UNKNOWN
    await world.reload("a", "b")
    await world.clock.advance(1)
    assert world.manager.status(spec("b"))[0][1].error == world.broken["b/1"]


async def test_partial_failure_serves_the_rest(world: World) -> None:
    """Models of a failed reload that could be loaded are served."""
    world.make("a/1", "b/1", "c/1")
    await started(world, "a")
    world.broken["b/1"] = StatusError(StatusCode.DATA_LOSS, "bad")
    await_reload = asyncio.ensure_future(world.manager.reload(world.config("a", "b", "c")))
    await world.clock.advance(1)
    assert await refused(await_reload) == (
        StatusCode.UNKNOWN,
        "1 model(s) did not become available: {{{name: b version: 1} due to error: DATA_LOSS: bad}, }",
    )
    assert world.serves("c") == "c/1"


async def test_labels_move_with_a_reload(world: World) -> None:
    """Labels are replaced as a whole, before loading, and only onto what is available already."""
    world.make("a/1", "a/2")
    every = "a model_version_policy { all { } }"
    await started(world, every)
    await world.clock.advance(1)
    stable = 'version_labels { key: "stable" value: 1 }'
    await world.reload(f"{every} {stable}")
    assert world.serves("a", label="stable") == "a/1"
    code, _ = await refused(world.reload(f'{every} version_labels {{ key: "stable" value: 3 }}'))
    assert code is StatusCode.FAILED_PRECONDITION
    assert world.serves("a", label="stable") == "a/1"
    await world.reload(every)
    with pytest.raises(StatusError, match="Unrecognized servable version label: stable"):
        world.serves("a", label="stable")


async def test_label_failure_applies_nothing_else(world: World) -> None:
    """A refused label keeps the rest of its configuration from being carried out."""
    world.make("a/1", "b/1")
    await started(world, "a", "b")
    await refused(world.reload('a version_labels { key: "l" value: 9 }'))
    await world.clock.advance(3)
    assert world.states("b") == {1: "AVAILABLE"}


async def test_labels_at_start(tmp_path: Path) -> None:
    """Labels fail a start, since nothing is available yet, unless the flag allows them."""
    entry = 'a version_labels { key: "l" value: 1 } version_labels { key: "ghost" value: 9 }'
    strict, lenient = (
        World(tmp_path / str(allow), allow_version_labels_for_unavailable_models=allow)
        for allow in (False, True)
    )
    for world in (strict, lenient):
        world.make("a/1")
    code, _ = await refused(strict.manager.start(strict.config(entry)))
    assert code is StatusCode.FAILED_PRECONDITION
    await lenient.manager.start(lenient.config(entry))
    assert lenient.serves("a", label="l") == "a/1"
    with pytest.raises(StatusError, match=r"Specific\(a, 9\)"):
        lenient.serves("a", label="ghost")
    await strict.manager.close()
    await lenient.manager.close()


async def test_custom_configuration_is_refused(world: World) -> None:
    """A served list cannot become a custom configuration."""
    await started(world)
    custom: Any = message_class("tensorflow.serving.ModelServerConfig")()
    custom.custom_model_config.type_url = "x"
    code, message = await refused(world.manager.reload(custom))
    assert code is StatusCode.FAILED_PRECONDITION
    assert message.startswith("Cannot transition to requested config.")


async def test_first_configuration_may_come_later(world: World) -> None:
    """A start without configuration serves nothing until a reload brings one."""
    world.make("a/1")
    await world.manager.start(message_class("tensorflow.serving.ModelServerConfig")())
    await world.reload("a")
    assert world.serves("a") == "a/1"


async def test_poll_once(tmp_path: Path) -> None:
    """With a poll period of 0, nothing is found after the start, and a reload that adds a model blocks."""
    world = World(tmp_path, file_system_poll_wait_seconds=0)
    world.make("a/1", "b/1")
    await started(world, "a")
    world.make("a/2")
    reload = asyncio.ensure_future(world.manager.reload(world.config("a", "b")))
    await world.clock.advance(1000)
    assert not reload.done()
    assert world.states("a") == {1: "AVAILABLE"}
    await world.manager.close()
    assert reload.cancelled() or isinstance(reload.exception(), StatusError)


async def test_never_poll(tmp_path: Path) -> None:
    """With a negative poll period, not even the start finds anything."""
    world = World(tmp_path, file_system_poll_wait_seconds=-1)
    world.make("a/1")
    start = asyncio.ensure_future(world.manager.start(world.config("a")))
    await world.clock.advance(1000)
    assert not start.done()
    start.cancel()
    await world.manager.close()


async def test_unload_waits_for_calls(world: World) -> None:
    """A version that serves a call is UNLOADING, closed only when the call gives it back."""
    world.make("a/1", "a/2")
    await started(world, "a model_version_policy { all { } }")
    await world.clock.advance(1)
    lease = world.manager.resolve(spec("a", 1))
    (world.folder / "a/1").rmdir()
    await world.clock.advance(5)
    assert world.states("a") == {2: "AVAILABLE", 1: "UNLOADING"}
    with pytest.raises(StatusError, match=r"Specific\(a, 1\)"):
        world.serves("a", 1)
    assert not world.servables["a/1"].closed
    lease.release()
    lease.release()
    assert "released" in repr(lease)
    await settle()
    assert world.states("a") == {2: "AVAILABLE", 1: "END"}
    assert world.servables["a/1"].closed


async def test_version_wanted_again_while_it_goes(world: World) -> None:
    """A version that comes back while it is unloaded is first unloaded, then loaded anew."""
    world.make("a/1")
    await started(world, "a")
    lease = world.manager.resolve(spec("a"))
    (world.folder / "a/1").rmdir()
    await world.clock.advance(2)
    world.make("a/1")
    await world.clock.advance(5)
    assert world.states("a") == {1: "UNLOADING"}
    lease.release()
    await world.clock.advance(2)
    assert world.states("a") == {1: "AVAILABLE"}
    assert world.loads == ["a/1", "a/1"]


async def test_withdrawn_while_loading(tmp_path: Path) -> None:
    """With load threads, a version withdrawn while it loads ends CANCELLED, and its model is closed."""
    world = World(tmp_path, num_load_threads=1)
    world.make("a/1")
    await started(world, "a")
    gate = asyncio.Event()

    async def slowly(function: Callable[[], Any]) -> Any:
        await gate.wait()
        return function()

    world.manager._run_blocking = slowly
    world.make("a/2")
    await world.clock.advance(2)
    assert world.states("a") == {2: "LOADING", 1: "AVAILABLE"}
    await world.reload()
    await world.clock.advance(2)
    gate.set()
    await world.clock.advance(2)
    assert world.states("a") == {2: "END", 1: "END"}
    error = world.manager.status(spec("a", 2))[0][1].error
    assert error is not None
    assert (error.code, error.message) == (StatusCode.CANCELLED, "Loading of servable cancelled")
    assert world.servables["a/2"].closed


async def test_loads_one_after_the_other(world: World) -> None:
    """Without load threads, a slow load holds up every other load and unload."""
    world.make("a/1", "b/1")
    await started(world, "a")
    gate = asyncio.Event()

    async def slowly(function: Callable[[], Any]) -> Any:
        await gate.wait()
        return function()

    world.manager._run_blocking = slowly
    reload = asyncio.ensure_future(world.manager.reload(world.config("b")))
    await world.clock.advance(1)
    world.make("b/2")
    await world.clock.advance(5)
    assert "END" not in world.states("b").values()
    assert list(world.states("b").values()).count("LOADING") <= 1
    gate.set()
    await world.clock.advance(2)
    await reload
    assert world.states("b")[2] == "AVAILABLE"


async def test_registry_is_a_folder(world: World) -> None:
    """Servables of this process have base paths, versions and policies like folders, and are not closed."""
    first, second = FakeServable("/callable/m/1"), FakeServable("/callable/m/2")
    assert world.registry.add("m", 1, first) == "/callable/m"
    entry = 'm base_path: "/callable/m"'
    await started(world, entry)
    assert world.serves("m") == "/callable/m/1"
    world.registry.add("m", 2, second)
    world.manager.poll_soon()
    await world.clock.advance(0.3)
    assert world.states("m") == {2: "AVAILABLE", 1: "END"}
    assert not first.closed
    world.registry.remove("m", 2)
    world.manager.poll_soon()
    await world.clock.advance(0.3)
    assert world.states("m") == {2: "END", 1: "AVAILABLE"}
    with pytest.raises(ValueError, match="version 1 of 'm' is registered already"):
        world.registry.add("m", 1, second)
    with pytest.raises(KeyError):
        world.registry.remove("m", 9)
    assert repr(world.registry) == "<CallableRegistry {'/callable/m': [1]}>"


async def test_registered_error_is_a_load_error(world: World) -> None:
    """An error in a servable's place is what loading that version ends with."""
    world.registry.add("m", 1, StatusError(StatusCode.RESOURCE_EXHAUSTED, "too big"))
    code, message = await refused(world.manager.start(world.config('m base_path: "/callable/m"')))
    assert code is StatusCode.UNKNOWN
    assert "RESOURCE_EXHAUSTED: too big" in message


async def test_file_uri(world: World) -> None:
    """A ``file://`` base path is the folder it names."""
    world.make("a/1")
    await started(world, f'a base_path: "file://{world.folder}/a"')
    assert world.serves("a") == "a/1"


async def test_close_lets_go_of_everything(world: World) -> None:
    """Closing ends all tasks and closes the loaded models; a second time does nothing."""
    world.make("a/1")
    await started(world, "a")
    await world.manager.close()
    await world.manager.close()
    assert world.servables["a/1"].closed
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not [task for task in others if task.get_name().startswith("aioserving.testing")]


async def test_repr_shows_versions(world: World) -> None:
    """The manager's repr tells its models, their versions and where each is."""
    world.make("a/1")
    await started(world, "a")
    assert repr(world.manager) == "<ModelManager {'a': {1: 'ready'}}>"
    assert repr(world.manager.states) == "<StateLog {'a': {1: 'AVAILABLE'}}>"
