"""`aioserving repository`, against a service whose controller does what tests say."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("grpc_health", reason="needs the extra `repository`")
pytest.importorskip("yaml", reason="needs the extra `repository`")

from aioserving.repository import errors
from aioserving.repository.fetch import FetchProgress
from aioserving.repository.policy import Label, Latest, Policy, Specific
from aioserving.repository.service import RepositoryService
from tests.cli.terminal import lines_of, on_terminal, screen
from tests.repository.fake_controller import FakeController, FakeFetch

from .conftest import Ran, Run

Ask = Callable[..., Ran]


class Remote:
    """A service on a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self.controller, self.service = self.run(self._start())
        self.target = self.service.addresses[0]

    async def _start(self) -> tuple[FakeController, RepositoryService]:
        controller: Any = FakeController()
        service = RepositoryService(controller, grace=0.2)
        await service.start()
        return controller, service

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    def publish(self, *arguments: Any, **about: Any) -> None:
        async def publish() -> None:
            self.controller.publish(*arguments, **about)

        self.run(publish())

    def close(self) -> None:
        self.run(self.service.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()


@pytest.fixture
def remote() -> Iterator[Remote]:
    with contextlib.closing(Remote()) as service:
        yield service


@pytest.fixture
def ask(run: Run, remote: Remote) -> Ask:
    def call(*arguments: str, **more: Any) -> Ran:
        return run("repository", arguments[0], "-t", remote.target, *arguments[1:], **more)

    return call


def test_models_and_versions(ask: Ask) -> None:
    """Tables for people, JSON for programs; what is wrong with a version is told below."""
    found = ask("models")
    assert [line.split()[0] for line in found.lines[1:]] == ["digits", "faces"]
    assert "stable=1" in found.out
    assert ask("models", "--json").json[0] == {
        "model": "digits",
        "policy": {"versions": "latest"},
        "promoted": [1],
        "labels": {"stable": 1},
    }
    found = ask("versions", "digits")
    assert found.lines[0].split() == ["VERSION", "STORE", "DISK", "A", "B", "IS", "LABELS"]
    assert found.lines[2].split() == ["1", "yes", "1", "kB", "AVAILABLE", "END", "promoted", "stable"]
    assert "version 2 is in quarantine: it answers wrongly" in found.out
    assert "version 1 on b: NOT_FOUND: gone" in found.out
    assert "waits: server b does not answer" in found.out
    version = ask("versions", "digits", "--json").json["versions"][1]
    assert (version["servers"]["a"]["state"], version["disk"]["current"]) == ("AVAILABLE", True)
    assert ask("versions", "nobody").code == 5


def test_where_the_service_is(run: Run, remote: Remote) -> None:
    """An option, else a variable of its own; targets of model servers are not asked."""
    assert run("repository", "models", env={"AIOSERVING_REPOSITORY": remote.target}).code == 0
    found = run("repository", "models", env={"AIOSERVING_TARGET": remote.target})
    assert (found.code, "127.0.0.1:8510" in found.err) == (3, True)
    assert "AIOSERVING_REPOSITORY" in found.err
    assert run("repository", "models", "-t", "a:1", "-t", "b:1").code == 2
    found = run("repository", "models", "-t", remote.target, "--token", "x")
    assert (found.code, "plain text" in found.err, "--insecure-token" in found.err) == (2, True, True)


def test_fetch(ask: Ask) -> None:
    """The place on standard output, the progress beside it."""
    found = ask("fetch", "digits", "2")
    assert (found.code, found.out) == (0, "version 2 of digits is in /models/digits/2\n")
    assert [line.split(": ")[1].split(",")[0] for line in found.err.splitlines()] == [
        "listing",
        "fetching",
        "done",
    ]
    assert ask("fetch", "digits", "--json").json["path"] == "/models/digits/2"
    assert ask("fetch", "digits", "9").code == 5


class SlowFetch(FakeFetch):
    """A fetch of 80 MB that takes a while, so that it is seen to move; it may fail in the middle."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__("digits", 2)
        self.fails = fails

    async def __aiter__(self) -> AsyncIterator[FetchProgress]:
        yield FetchProgress("digits", 2, "listing", 0, None, 0, None)
        for done in range(0, 90, 10):
            if self.fails and done == 50:
                raise errors.CorruptVersionError("another MD5", model="digits", version=2)
            yield FetchProgress("digits", 2, "fetching", done * 1_000_000, 80_000_000, 0, 3)
            await asyncio.sleep(0.15)
        yield FetchProgress("digits", 2, "done", 80_000_000, 80_000_000, 3, 3)


def test_fetch_on_a_terminal(remote: Remote, environment: dict[str, str]) -> None:
    """A bar that moves, with bytes, rate and time left; then it goes, and where the version lies stays."""
    remote.controller.hidden_fetch = SlowFetch()
    written = on_terminal(environment, "repository", "fetch", "-t", remote.target, "digits", columns=120)
    shown = [line for line in lines_of(written) if line.startswith("digits 2 fetching")]
    found = [
        re.fullmatch(r"digits 2 fetching ([━╸╺ ]+) ([\d.]+)/80\.0 MB (\?|[\d.]+ MB/s) +([-\d]\S+)? *", line)
        for line in shown
    ]
    assert all(found), shown
    done = [float(line[2]) for line in found if line]
    assert done == sorted(done)
    assert len(set(done)) >= 3
    assert 0.0 <= done[0] < done[-1] <= 80.0
    assert [line for line in screen(written) if line] == ["version 2 of digits is in /models/digits/2"]
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"


def test_a_fetch_that_fails_on_a_terminal(remote: Remote, environment: dict[str, str]) -> None:
    """The bar gives way to one line that says what is wrong; without colours it is the same."""
    remote.controller.hidden_fetch = SlowFetch(fails=True)
    arguments = ("repository", "fetch", "-t", remote.target, "digits")
    written = on_terminal({**environment, "NO_COLOR": "1"}, *arguments, columns=120, code=10)
    lengths = [line.count("━") for line in lines_of(written) if line.startswith("digits 2 fetching")]
    assert lengths == sorted(lengths)
    assert lengths[0] < lengths[-1] < 40
    [line] = [line for line in screen(written) if line]
    assert "version 2 of model 'digits': another MD5" in line
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is shown again"


def test_rollout_on_a_terminal(remote: Remote, environment: dict[str, str]) -> None:
    """What happens stays as lines, in colour, above how it ends; no bar, and nothing is written over."""

    def later() -> None:
        while ("rollout", "digits", 3) not in remote.controller.calls:
            time.sleep(0.01)
        remote.publish("fetched", "in 1 s", model="digits", version=3)
        remote.publish("promoted", model="digits", version=3)

    thread = threading.Thread(target=later)
    thread.start()
    arguments = ("repository", "rollout", "-t", remote.target, "digits", "3", "--wait", "--timeout", "20")
    written = on_terminal(environment, *arguments, columns=120)
    thread.join()
    fetched, promoted, outcome = (line for line in screen(written) if line)
    assert fetched.endswith("fetched digits 3: in 1 s")
    assert promoted.endswith("promoted digits 3")
    assert outcome == "version 3 of digits: promoted"
    assert "\x1b[2K" not in written


def test_policy(ask: Ask, remote: Remote, tmp_path: Path) -> None:
    """Single settings leave the rest of the policy as it is; a file replaces all of it."""
    policies = remote.controller.get_policy
    assert ask("policy", "digits").out == "digits: latest\n"
    assert ask("policy", "faces").code == 1
    assert ask("policy", "digits", "--set", "latest 2", "--pin", "1", "--json").json == {
        "versions": "latest 2",
        "pinned": 1,
    }
    ask("policy", "digits", "--set", "3, 5")
    assert policies("digits") == Policy(versions=Specific([3, 5]), pinned=1)
    ask("policy", "digits", "--unpin")
    assert policies("digits") == Policy(versions=Specific([3, 5]))
    file = tmp_path / "policy.yaml"
    file.write_text("versions: latest 3\nlabels: [stable]\n")
    assert ask("policy", "digits", "--file", str(file)).code == 0
    assert policies("digits") == Policy(versions=Latest(3), labels={"stable": Label()})
    file.write_text("versions: newest\n")
    found = ask("policy", "digits", "--file", str(file))
    assert (found.code, "line 1, column 1: versions" in found.err) == (2, True)
    assert ask("policy", "digits", "--set", "newest").code == 2
    assert ask("policy", "digits", "--remove", "--pin", "1").code == 2
    assert ask("policy", "digits", "--remove").code == 2, "nobody is there to confirm it"
    assert policies("digits") == Policy(versions=Latest(3), labels={"stable": Label()})
    assert ask("policy", "digits", "--remove", "--yes").code == 0
    assert policies("digits") is None


def test_rollout_and_rollback(ask: Ask, remote: Remote) -> None:
    """Without --wait it says what was decided; with it, how it ends, also by the exit code."""
    assert ask("rollout", "digits").out == "version 2 of digits: under way\n"
    assert ask("rollback", "digits", "--json").json == {"model": "digits", "version": 1}
    assert ask("rollout", "digits", "1", "--wait").out == "version 1 of digits: promoted\n"
    found = ask("rollout", "digits", "2", "--wait")
    assert (found.code, found.out) == (1, "version 2 of digits: quarantined\n")
    remote.controller.error = errors.NotInStoreError("the store has no such version")
    assert ask("rollout", "digits", "77").code == 5


def test_rollout_waits_for_events(ask: Ask, remote: Remote) -> None:
    """What happens is told on standard error until the version is promoted."""

    def later() -> None:
        while ("rollout", "digits", 3) not in remote.controller.calls:
            pass
        remote.publish("fetched", "in 1 s", model="digits", version=3)
        remote.publish("promoted", model="digits", version=2)
        remote.publish("promoted", model="digits", version=3)

    thread = threading.Thread(target=later)
    thread.start()
    found = ask("rollout", "digits", "3", "--wait", "--timeout", "20")
    thread.join()
    assert (found.code, found.out) == (0, "version 3 of digits: promoted\n")
    assert "fetched digits 3: in 1 s" in found.err
    assert ask("rollout", "digits", "4", "--wait", "--timeout", "300ms").code == 4


def test_release(ask: Ask) -> None:
    """A version comes out of quarantine; one that was not in it is told, and makes the exit code 1."""
    assert ask("release", "digits", "2").out == "version 2 of digits is out of quarantine\n"
    found = ask("release", "digits", "1", "--json")
    assert (found.code, found.json) == (1, {"model": "digits", "version": 1, "released": False})
    assert ask("release", "digits").code == 2


def test_delete(ask: Ask) -> None:
    """What is in use stays; somebody has to confirm."""
    assert ask("delete", "digits", "2", "--yes").out == "version 2 of digits is deleted from the disk\n"
    assert ask("delete", "digits", "1", "--yes").code == 9
    assert ask("delete", "digits", "2").code == 2


def test_watch(ask: Ask, remote: Remote) -> None:
    """Events as lines; a position from the output goes on after it."""
    for number in (1, 2, 3):
        remote.publish("found", f"number {number}", model="digits", version=number)
    found = ask("watch", "--after", "0", "--timeout", "500ms")
    assert [line.split(": ")[1] for line in found.lines] == ["number 1", "number 2", "number 3"]
    lines = ask("watch", "digits", "--after", "0", "--json", "--timeout", "500ms").lines
    position = json.loads(lines[1])["position"]
    [line] = ask("watch", "--after", position, "--json", "--timeout", "500ms").lines
    assert json.loads(line)["number"] == 3
    assert ask("watch", "--after", "yesterday").code == 2


def test_plan(ask: Ask, remote: Remote) -> None:
    """The steps are numbered; nothing to do is no error."""

    class Fetch:
        model, version = "digits", 3

        def __str__(self) -> str:
            return "fetch version 3 of digits"

    assert ask("plan").out == "nothing to do\n"
    remote.controller.steps = (Fetch(),)
    assert ask("plan").out == "1. fetch version 3 of digits\n"
    assert ask("plan", "digits", "--json").json == [
        {
            "step": "fetch",
            "model": "digits",
            "version": 3,
            "server": None,
            "text": "fetch version 3 of digits",
        }
    ]


def test_a_set_up_file_is_checked(run: Run, tmp_path: Path) -> None:
    """--check starts nothing; what is wrong is told with its line, all of it."""
    file = tmp_path / "set-up.yaml"
    file.write_text("store: models\ndisk: disk\nservers: {a: 127.0.0.1:8500}\nmodels: {digits: {}}\n")
    found = run("repository", "serve", str(file), "--check")
    assert (found.code, "is well: 1 models" in found.out) == (0, True)
    assert run("repository", "serve", str(file), "--check", "--json").json["servers"] == {
        "a": "127.0.0.1:8500"
    }
    assert not (tmp_path / "disk").exists()
    file.write_text("store: models\ndisk: {path: disk, quota: x}\nservers: {a: nowhere}\n")
    found = run("repository", "serve", str(file))
    assert found.code == 2
    assert "line 2, column 20: disk.quota" in found.err
    assert "line 3, column 11: servers.a" in found.err
    assert run("repository", "serve", str(tmp_path / "missing.yaml")).code == 11
