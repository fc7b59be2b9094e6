"""Reloads against servers made of plain data, on a clock that nobody has to wait for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from aioserving import (
    ConfigWarning,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidConfigError,
    ModelLoadError,
    ModelServerConfig,
    ModelStatus,
    NotFoundError,
    ReloadResult,
    State,
    UnavailableError,
    UnknownError,
    VersionStatus,
    read_config,
)
from aioserving.configuration import with_labels
from aioserving.messages import ReloadConfigRequest, ReloadConfigResponse
from aioserving.reload import STALE, Reloads, Verdict, judge

Versions = dict[int, State | str]


def config(*models: dict[str, Any]) -> ModelServerConfig:
    return read_config([{"base_path": f"/m/{model['name']}", **model} for model in models])


def status(model: str, versions: Versions) -> ModelStatus:
    """A state by version, or the text of an error."""
    return ModelStatus(
        model,
        tuple(
            VersionStatus(version, State.END, state)
            if isinstance(state, str)
            else VersionStatus(version, state)
            for version, state in sorted(versions.items(), reverse=True)
        ),
    )


class Servers:
    """Servers that do what `plan` says at the times it says, and remember what they were asked."""

    def __init__(self, models: dict[str, Versions] | None = None) -> None:
        self.now = 100.0
        self.models = models or {}
        self.plan: list[tuple[float, Callable[[], None]]] = []
        self.seen: list[tuple[str, ModelServerConfig]] = []
        self.on_reload: Callable[[str, ModelServerConfig], Awaitable[None]] | None = None
        self.unreachable = 0

    def at(self, seconds: float, model: str, version: int, state: State | str) -> None:
        self.plan.append((100 + seconds, lambda: self.models.setdefault(model, {}).update({version: state})))

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)
        for moment, action in list(self.plan):
            if moment <= self.now:
                action()
                self.plan.remove((moment, action))

    async def reload(self, target: str, request: bytes, deadline: float | None) -> bytes:
        asked = ReloadConfigRequest.from_bytes(request)
        self.seen.append((target, asked.config.copy()))
        if self.on_reload is not None:
            await self.on_reload(target, asked.config)
        response = ReloadConfigResponse.from_bytes(b"")
        for name in asked.metric_names:
            response.pb.metric.add(name=name, int64_value_increase=3)
        return response.to_bytes()

    async def status(self, target: str, model: str, deadline: float | None) -> ModelStatus:
        if self.unreachable:
            self.unreachable -= 1
            raise UnavailableError("connection refused")
        if model not in self.models:
            raise NotFoundError("not found")
        return status(model, self.models[model])

    def reloads(self, suspect: float = 3.0) -> Reloads:
        return Reloads(clock=self.clock, sleep=self.sleep, suspect=suspect)


def apply(
    servers: Servers,
    new: ModelServerConfig,
    *,
    reloads: Reloads | None = None,
    deadline: float | None = 200.0,
    wait: bool = True,
    **more: Any,
) -> ReloadResult:
    wait_for = (lambda name: True) if wait else None
    used = reloads or servers.reloads()
    return asyncio.run(
        used.apply(
            lambda old: new, servers, more.pop("targets", ["one:1"]), deadline, wait_for=wait_for, **more
        )
    )


L, A, S, E = State.LOADING, State.AVAILABLE, State.START, State.END


@pytest.mark.parametrize(
    ("model", "versions", "expected"),
    [
        ({}, None, Verdict("the server has found no version of it under '/m/a'")),
        ({}, {1: A}, Verdict()),
        ({}, {2: L, 1: A}, Verdict("version 2 LOADING")),
        ({}, {1: E}, Verdict("a: version 1 END")),
        ({}, {1: "DATA_LOSS: cut"}, Verdict("", ((1, "DATA_LOSS: cut"),))),
        ({}, {2: "DATA_LOSS: cut", 1: A}, Verdict("", ((2, "DATA_LOSS: cut"),))),
        ({}, {2: A, 1: "DATA_LOSS: cut"}, Verdict()),
        ({"model_version_policy": {"specific": []}}, None, Verdict()),
        ({"model_version_policy": {"specific": [1]}}, {2: L, 1: A}, Verdict()),
        ({"model_version_policy": {"specific": [1, 2]}}, {1: A}, Verdict("version 2 not found")),
        ({"model_version_policy": {"specific": [1, 2]}}, {1: A, 2: S}, Verdict("version 2 START")),
        ({"model_version_policy": {"specific": [1, 2]}}, {1: A, 2: E}, Verdict("version 2 END")),
        (
            {"model_version_policy": {"specific": [1, 2]}},
            {1: "INTERNAL: x", 2: L},
            Verdict("version 2 LOADING", ((1, "INTERNAL: x"),)),
        ),
        ({"model_version_policy": {"specific": [2]}}, {1: "INTERNAL: x", 2: A}, Verdict()),
        ({"version_labels": {"new": 3}}, {1: A}, Verdict("version 3 not found")),
        ({"model_version_policy": {"all": True}}, {1: A, 2: A}, Verdict()),
    ],
)
def test_what_a_status_means(model: dict[str, Any], versions: Versions | None, expected: Verdict) -> None:
    """Named versions have to be available; of others one, with none on its way; failures are told."""
    message = config({"name": "a", **model}).pb.model_config_list.config[0]
    assert judge(message, None if versions is None else status("a", versions)) == expected


def test_without_waiting_a_reload_is_one_call_a_server() -> None:
    """Nothing but the reload is sent, to one server after the other."""
    servers = Servers()
    servers.unreachable = 99  # asking for a status would fail
    new = config({"name": "a"})
    result = apply(servers, new, wait=False, targets=["one:1", "two:2"], metric_names=["m"])
    assert servers.seen == [("one:1", new), ("two:2", new)]
    assert result == ReloadResult(new, (), {"one:1": {"m": 3}, "two:2": {"m": 3}})
    assert str(result) == "serving a"


def test_waiting_goes_on_until_the_named_versions_are_available() -> None:
    """Also through a server that does not answer for a moment."""
    servers = Servers({"a": {1: A}})
    servers.at(1.0, "a", 2, S)
    servers.at(4.0, "a", 2, L)
    servers.at(30.0, "a", 2, A)
    new = config({"name": "a", "model_version_policy": {"specific": [1, 2]}})

    async def fail(target: str, asked: ModelServerConfig) -> None:
        servers.unreachable = 2

    servers.on_reload = fail
    result = apply(servers, new)
    assert servers.now >= 130.0
    assert [version.version for version in result.loads[0].status.available] == [2, 1]
    assert str(result) == "serving a\none:1: a: version 2 AVAILABLE, version 1 AVAILABLE"


def test_failures_are_told_all_together() -> None:
    """Which and why, of every model, once all have settled; the server's shorter story is behind it."""
    servers = Servers()
    servers.at(1.0, "a", 1, A)
    servers.at(2.0, "b", 1, "DATA_LOSS: cut")
    servers.at(3.0, "c", 1, "NOT_FOUND: nothing there")

    async def partly(target: str, asked: ModelServerConfig) -> None:
        raise UnknownError("2 model(s) did not become available")

    servers.on_reload = partly
    reloads = servers.reloads()
    new = config({"name": "a"}, {"name": "b"}, {"name": "c"})
    with pytest.raises(ModelLoadError) as caught:
        apply(servers, new, reloads=reloads)
    assert [(f.target, f.model, f.version, f.reason) for f in caught.value.failures] == [
        ("one:1", "b", 1, "DATA_LOSS: cut"),
        ("one:1", "c", 1, "NOT_FOUND: nothing there"),
    ]
    assert "version 1 of 'b' at one:1 failed to load: DATA_LOSS: cut" in str(caught.value)
    assert isinstance(caught.value, FailedPreconditionError)
    assert reloads.config == new  # what could be loaded is served


def test_an_unknown_error_that_no_status_explains_is_raised() -> None:
    """A failure is never lost."""
    servers = Servers({"a": {1: A}})

    async def odd(target: str, asked: ModelServerConfig) -> None:
        raise UnknownError("something else")

    servers.on_reload = odd
    with pytest.raises(UnknownError, match="something else"):
        apply(servers, config({"name": "a"}))


def test_a_failure_from_before_the_reload_is_given_time() -> None:
    """A version that is wanted again still shows its old failure, until the server looks at its disk."""
    new = config({"name": "a", "model_version_policy": {"specific": [2]}})
    servers = Servers({"a": {1: A, 2: "DATA_LOSS: cut"}})
    servers.at(STALE / 2, "a", 2, L)
    servers.at(10.0, "a", 2, A)
    assert apply(servers, new).loads[0].status.available
    servers = Servers({"a": {1: A, 2: "DATA_LOSS: cut"}})
    with pytest.raises(ModelLoadError, match="DATA_LOSS: cut"):
        apply(servers, new)
    assert STALE <= servers.now - 100 < STALE + 2


def test_the_deadline_tells_what_was_still_to_come() -> None:
    """Each model with the last that was seen of it."""
    servers = Servers({"a": {1: L}, "c": {1: A}})
    with pytest.raises(DeadlineExceededError) as caught:
        apply(servers, config({"name": "a"}, {"name": "b"}, {"name": "c"}), deadline=110.0)
    assert "'a': version 1 LOADING; 'b': the server has found no version of it under '/m/b'" in str(
        caught.value
    )
    assert "'c'" not in str(caught.value)
    assert 109 <= servers.now <= 110


def test_a_label_is_moved_in_two_steps() -> None:
    """The version is loaded and available before the label moves; the old one stays until then."""
    old = config({"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"stable": 1}})
    servers = Servers({"a": {1: A}})
    reloads = servers.reloads()
    apply(servers, old, reloads=reloads)
    servers.at(5.0, "a", 2, A)
    new = with_labels(old, "a", {"stable": 2})
    apply(servers, new, reloads=reloads)
    first, second = (asked.model_config_list[0] for _, asked in servers.seen[1:])
    assert first.version_labels == {"stable": 1}
    assert list(first.model_version_policy.specific) == [1, 2]
    assert second.version_labels == {"stable": 2}
    assert servers.now >= 105
    assert reloads.config == new


def test_a_version_on_its_way_out_gets_no_label_before_it_is_back() -> None:
    """It may still be available because the server has not looked at its disk since it was left out."""
    old = config({"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"stable": 1}})
    new = with_labels(old, "a", {"stable": 2})
    for gone in (True, False):
        servers = Servers({"a": {1: A, 2: A}})
        if gone:
            servers.at(0.3, "a", 2, E)
            servers.at(1.0, "a", 2, A)
        apply(servers, new, known=old)
        first, second = (asked.model_config_list[0] for _, asked in servers.seen)
        assert first.version_labels == {"stable": 1}
        assert second.version_labels == {"stable": 2}
        assert (1.0 if gone else STALE) <= servers.now - 100 < (STALE if gone else STALE + 1)


def test_a_label_stays_where_it_is_also_when_another_applied_the_config() -> None:
    """Who has applied nothing yet, but says what is in force, moves a label without it being missing."""
    old = config({"name": "a", "model_version_policy": {"specific": [1]}, "version_labels": {"stable": 1}})
    servers = Servers({"a": {1: A}})
    servers.at(5.0, "a", 2, A)
    apply(servers, with_labels(old, "a", {"stable": 2}), known=old)
    first, second = (asked.model_config_list[0] for _, asked in servers.seen)
    assert first.version_labels == {"stable": 1}
    assert second.version_labels == {"stable": 2}


def test_a_version_that_fails_leaves_the_label_where_it_was() -> None:
    """The second step is not taken."""
    old = config({"name": "a", "version_labels": {"stable": 1}})
    servers = Servers({"a": {1: A}})
    reloads = servers.reloads()
    apply(servers, old, reloads=reloads)
    servers.at(5.0, "a", 2, "DATA_LOSS: cut")
    with pytest.raises(ModelLoadError, match="cut"):
        apply(servers, with_labels(old, "a", {"stable": 2}), reloads=reloads)
    assert reloads.config is not None
    assert reloads.config.model_config_list[0].version_labels == {"stable": 1}
    assert len(servers.seen) == 2


def test_what_a_reload_hangs_on_is_told_in_the_log_and_in_the_error(caplog: pytest.LogCaptureFixture) -> None:
    """The model that the server finds no version of; later reloads that hang behind it say so, too."""
    servers = Servers({"a": {1: A}})

    async def hang(target: str, asked: ModelServerConfig) -> None:
        await asyncio.sleep(0.05)
        raise DeadlineExceededError("Deadline Exceeded")

    servers.on_reload = hang
    reloads = servers.reloads(suspect=0.01)
    new = config({"name": "a"}, {"name": "b"})
    with caplog.at_level(logging.WARNING, "aioserving"), pytest.raises(DeadlineExceededError) as caught:
        apply(servers, new, reloads=reloads, wait=False)
    assert "no version of 'b' under '/m/b'" in caught.value.details
    assert "the reload of one:1 does not come back: the server has found no version of 'b'" in caplog.text
    assert reloads.config == new
    with pytest.raises(DeadlineExceededError, match="no version of 'b'"):
        apply(servers, config({"name": "a"}), reloads=reloads, wait=False)
    servers.on_reload = None
    apply(servers, config({"name": "a"}), reloads=reloads, wait=False)
    assert reloads.unfinished == {}


def test_a_refused_config_is_not_remembered() -> None:
    """What the server did not take is not what the next change starts from."""
    servers = Servers({"a": {1: A}})
    reloads = servers.reloads()
    good = config({"name": "a"})
    apply(servers, good, reloads=reloads)

    async def refuse(target: str, asked: ModelServerConfig) -> None:
        raise FailedPreconditionError("Request to assign label to version 9")

    servers.on_reload = refuse
    with pytest.raises(FailedPreconditionError, match="version 9"):
        apply(servers, config({"name": "a", "version_labels": {"x": 9}}), reloads=reloads, wait=False)
    assert reloads.config == good


def test_a_change_of_platform_is_refused_before_it_is_sent() -> None:
    """As the server would, of a model that this client configured."""
    servers = Servers({"a": {1: A}})
    reloads = servers.reloads()
    apply(servers, config({"name": "a"}), reloads=reloads)
    with pytest.raises(InvalidConfigError, match="platform of a served model cannot change"):
        apply(servers, config({"name": "a", "model_platform": "other"}), reloads=reloads)
    assert len(servers.seen) == 1


def test_what_may_hang_is_warned_of() -> None:
    """A new model without versions: the reload would never end."""
    servers = Servers()
    never = config({"name": "a", "model_version_policy": {"specific": []}})
    with pytest.warns(ConfigWarning, match="model 'a': its policy serves no version"):
        apply(servers, never, wait=False)


def test_an_error_tells_which_servers_are_done() -> None:
    """A fleet that is half reloaded is known to be."""
    servers = Servers()

    async def second_fails(target: str, asked: ModelServerConfig) -> None:
        if target == "two:2":
            raise UnavailableError("gone")

    servers.on_reload = second_fails
    with pytest.raises(UnavailableError, match=r"servers that have the new config already: one:1"):
        apply(servers, config({"name": "a"}), wait=False, targets=["one:1", "two:2", "three:3"])
    assert [target for target, _ in servers.seen] == ["one:1", "two:2"]


def test_changes_wait_for_each_other() -> None:
    """Two changes at once are made one after the other, each to what the other left."""
    servers = Servers()
    reloads = servers.reloads()

    async def slowly(target: str, asked: ModelServerConfig) -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    servers.on_reload = slowly

    def adding(name: str) -> Callable[[ModelServerConfig | None], ModelServerConfig]:
        def change(old: ModelServerConfig | None) -> ModelServerConfig:
            return config(*(m.to_dict() for m in old.model_config_list) if old else (), {"name": name})

        return change

    async def story() -> None:
        await asyncio.gather(
            *(reloads.apply(adding(name), servers, ["one:1"], None) for name in ("a", "b", "c"))
        )

    asyncio.run(story())
    assert reloads.config is not None
    assert [model.name for model in reloads.config.model_config_list] == ["a", "b", "c"]
    assert "3 models applied" in repr(reloads)


def test_a_cancelled_reload_leaves_nothing_behind() -> None:
    """The call is cancelled with its caller, and the next one gets its turn."""
    servers = Servers({"a": {1: A}})
    ended: list[str] = []

    async def hang(target: str, asked: ModelServerConfig) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(target)

    servers.on_reload = hang
    reloads = servers.reloads()
    new = config({"name": "a"})

    async def story() -> None:
        task = asyncio.create_task(reloads.apply(lambda old: new, servers, ["one:1"], None))
        while not servers.seen:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["one:1"]
        assert reloads.config is None
        servers.on_reload = None
        await reloads.apply(lambda old: new, servers, ["one:1"], None)
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(story())
