"""A repository service as a process, over real sockets: client and command line roll versions out with it."""

# ruff: noqa: E402 - what needs the extras is imported once it is known to be there

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

for package, extra in (("fsspec", "repository"), ("grpc_health", "repository"), ("click", "cli")):
    pytest.importorskip(package, reason=f"needs the extra `{extra}`")
yaml = pytest.importorskip("yaml", reason="needs the extra `repository`")
trustme = pytest.importorskip("trustme", reason="makes the certificates of TLS tests")

from aioserving import AsyncClient, PermissionDeniedError, UnauthenticatedError
from aioserving.repository.client import AsyncRepositoryClient, Position, RepositoryClient
from aioserving.repository.policy import Label, Latest, Policy
from aioserving.security import TLS, StaticToken
from tests.repository.model_servers import LightServer
from tests.repository.stores import saved_model, version_files, write_version

ROOT = Path(__file__).parents[2]


class Service:
    """`aioserving repository serve` in a process of its own."""

    def __init__(self, file: Path, environment: dict[str, str]) -> None:
        self.file, self.environment = file, environment
        self.process: subprocess.Popen[str] | None = None
        self.target = ""
        self.said: list[str] = []

    def start(self) -> None:
        self.process = process = subprocess.Popen(
            [sys.executable, "-m", "aioserving", "repository", "serve", str(self.file)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), **self.environment},
        )
        assert process.stdout is not None
        threading.Thread(target=self._listen, args=(process.stderr,), daemon=True).start()
        line = process.stdout.readline()
        assert line.startswith("ready "), "".join(self.said)
        self.target = line.split()[1]

    def _listen(self, stream: Any) -> None:
        with stream:
            self.said.extend(stream)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        process, self.process = self.process, None
        if process is None:
            return 0
        process.send_signal(number)
        assert process.stdout is not None
        with process, process.stdout:
            return process.wait(20)


def upload(store: Path, version: int, note: str = "") -> None:
    """A version that multiplies by its number, or another note; renamed into place as a whole."""
    files = {**version_files(version, 20_000), "saved_model.pb": saved_model(note=note or str(version))}
    partial = write_version(store.parent / f"upload-{version}", files, manifest=True)
    (store / "digits").mkdir(parents=True, exist_ok=True)
    partial.rename(store / "digits" / str(version))


@pytest.fixture
def servers() -> Iterator[list[LightServer]]:
    with LightServer() as first, LightServer() as second:
        yield [first, second]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    upload(tmp_path / "store", 1)
    return tmp_path


def write_setup(folder: Path, servers: list[LightServer], **service: Any) -> Path:
    file = folder / "set-up.yaml"
    content = {
        "store": "store",
        "disk": {"path": "disk", "quota": "1GB"},
        "poll": "500ms",
        "servers": {f"s{number}": server.target for number, server in enumerate(servers)},
        "models": {"digits": {"versions": "latest", "labels": ["stable"]}},
        "service": {"listen": "127.0.0.1:0", "grace": "2s", **service},
    }
    file.write_text(yaml.safe_dump(content))
    return file


@contextlib.contextmanager
def running(file: Path, **environment: str) -> Iterator[Service]:
    service = Service(file, environment)
    try:
        service.start()
        yield service
    finally:
        service.end(signal.SIGKILL)


async def until(client: AsyncRepositoryClient, version: int, role: str = "promoted") -> Any:
    """The report of the model once a version has a role."""
    deadline = time.monotonic() + 30
    while True:
        report = await client.versions("digits")
        found = report.version(version)
        if found is not None and found.role == role and not report.waiting:
            return report
        assert time.monotonic() < deadline, report
        await asyncio.sleep(0.1)


def cli(*arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "aioserving", "repository", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout if code == 0 else done.stderr


@pytest.mark.anyio
async def test_versions_come_and_go_while_calls_are_made(folder: Path, servers: list[LightServer]) -> None:
    """1 -> 2 by policy, a bad 3 is quarantined, back to 1 by hand: not one call fails, all servers agree."""
    failed: list[Exception] = []
    answers: list[int] = []
    ending = asyncio.Event()

    async def keep_calling(client: AsyncClient) -> None:
        while not ending.is_set():
            try:
                result = await client.predict("digits", {"x": [1.0]}, version_label="stable", timeout=5)
                answers.append(int(result["version"]))
            except Exception as error:
                failed.append(error)
            await asyncio.sleep(0.01)

    with running(write_setup(folder, servers)) as service:
        async with (
            AsyncRepositoryClient(service.target) as repository,
            AsyncClient([server.target for server in servers]) as client,
        ):
            watch = repository.watch(model="digits", after=0)
            report = await until(repository, 1)
            assert report.version(1).labels == ("stable",)
            caller = asyncio.create_task(keep_calling(client))
            await asyncio.to_thread(upload, folder / "store", 2)
            report = await until(repository, 2)
            assert {status.state.name for status in report.version(2).servers.values()} == {"AVAILABLE"}
            assert (folder / "disk" / "digits" / "2" / "saved_model.pb").is_file()
            await asyncio.to_thread(upload, folder / "store", 3, "bad")
            report = await until(repository, 3, "quarantined")
            assert "as the test wants it" in report.version(3).quarantine.reason
            assert await repository.rollback("digits") == 1
            report = await until(repository, 1)
            assert report.version(2).role == "quarantined"
            await asyncio.sleep(0.2)
            ending.set()
            await caller
            kinds = set()
            with contextlib.suppress(asyncio.TimeoutError):
                while True:
                    kinds.add((await asyncio.wait_for(anext(watch), 1)).kind)
            await watch.aclose()
            assert kinds >= {"found", "fetched", "available", "promoted", "label", "quarantined"}
        assert failed == []
        assert {1, 2} <= set(answers)
        assert 3 not in answers
        assert answers[-1] == 1
        assert service.end() == 0
        assert "Traceback" not in "".join(service.said)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, marks=pytest.mark.nightly), signal.SIGKILL], ids=["term", "kill"]
)
async def test_a_restart_goes_on_where_it_was(
    folder: Path, servers: list[LightServer], number: signal.Signals
) -> None:
    """Policies survive, the servers go on serving, and watchers find their way back by themselves."""
    from socket import create_server

    with create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    file = write_setup(folder, servers, listen=f"127.0.0.1:{port}")
    with running(file) as service:
        async with AsyncRepositoryClient(service.target, outage=20.0) as repository:
            await until(repository, 1)
            await repository.set_policy("digits", Policy(versions=Latest(2), labels={"stable": Label()}))
            watch = repository.watch(after=0)
            first = await anext(watch)
            assert first.kind == "started"
            service.end(number)
            await asyncio.to_thread(upload, folder / "store", 2)
            await asyncio.to_thread(service.start)
            event = first
            while event.kind != "missed":
                event = await asyncio.wait_for(anext(watch), 20)
            assert "started anew" in event.text
            assert (await asyncio.wait_for(anext(watch), 20)).kind == "started"
            assert isinstance(watch.position, Position)
            await watch.aclose()
            assert await repository.get_policy("digits") == Policy(
                versions=Latest(2), labels={"stable": Label()}
            )
            report = await until(repository, 2)
            available = [v.version for v in report.versions if v.role == "promoted"]
            assert available == [2, 1]


def test_the_command_line(folder: Path, servers: list[LightServer]) -> None:
    """Everything that the client can do is a command, and answers as tables and as JSON."""
    file = write_setup(folder, servers)
    assert "is well: 1 models" in cli("serve", str(file), "--check")
    planned = cli("plan", "--setup", str(file))
    assert "fetch" in planned.lower()
    assert not (folder / "disk").exists() or not list((folder / "disk").glob("digits/*")), (
        "a plan does nothing"
    )
    with running(file) as service:
        t = ("-t", service.target)
        out = cli("rollout", "digits", "1", "--wait", "--timeout", "40", *t)
        assert out == "version 1 of digits: promoted\n"
        upload(folder / "store", 2, "bad")
        assert "quarantined" in cli("rollout", "digits", "2", "--wait", "--timeout", "40", *t, code=1)
        assert "version 2 is in quarantine" in cli("versions", "digits", *t)
        found = json.loads(cli("versions", "digits", "--json", *t))
        assert [version["version"] for version in found["versions"]] == [2, 1]
        assert found["versions"][1]["servers"]["s0"]["state"] == "AVAILABLE"
        assert json.loads(cli("models", "--json", *t))[0]["promoted"] == [1]
        assert "digits" in cli("models", env={"AIOSERVING_REPOSITORY": service.target})
        assert "latest 3" in cli("policy", "digits", "--set", "latest 3", *t)
        upload(folder / "store", 0)
        assert "is in" in cli("fetch", "digits", "0", *t)
        events = cli("watch", "--after", "0", "--json", "--timeout", "1s", *t).splitlines()
        assert json.loads(events[0])["kind"] == "started"
        resumed = cli("watch", "--after", json.loads(events[3])["position"], "--json", "--timeout", "1s", *t)
        assert json.loads(resumed.splitlines()[0])["number"] == json.loads(events[4])["number"]
        assert "FAILED_PRECONDITION" in cli("delete", "digits", "1", "--yes", *t, code=9)
        assert "no terminal" in cli("delete", "digits", "1", *t, code=2)
        assert "no policy" in cli("policy", "digits", "--remove", "--yes", *t)
        cli("plan", *t)
    assert "is the repository service at" in cli("models", *t, code=3)


def test_roles_over_mutual_tls(folder: Path, servers: list[LightServer]) -> None:
    """Over real sockets with TLS: read looks, operate changes, a stranger gets nowhere."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(folder / "ca.pem"))
    for name, host in (("server", "127.0.0.1"), ("ops", "ops.example.org"), ("look", "look.example.org")):
        certificate = ca.issue_cert(host)
        certificate.private_key_pem.write_to_path(str(folder / f"{name}.key"))
        certificate.cert_chain_pems[0].write_to_path(str(folder / f"{name}.pem"))
    (folder / "token").write_text("s3cret-of-ci\n")
    file = write_setup(
        folder,
        servers,
        tls={"certificate": "server.pem", "key": "server.key", "client_ca": "ca.pem"},
        callers={
            "ops": {"role": "operate", "certificate": "ops.example.org"},
            "look": {"role": "read", "certificate": "look.example.org"},
            "ci": {"role": "operate", "token": {"file": "token"}},
        },
    )

    def tls(name: str) -> TLS:
        return TLS(folder / "ca.pem", folder / f"{name}.pem", folder / f"{name}.key")

    with running(file) as service:
        with RepositoryClient(service.target, tls=tls("ops")) as client:
            assert client.set_policy("digits", Policy()) == Policy()
        with RepositoryClient(service.target, tls=tls("look")) as client:
            assert client.get_policy("digits") == Policy()
            with pytest.raises(PermissionDeniedError, match=r"look\.example\.org may not call SetPolicy"):
                client.set_policy("digits", None)
        token = StaticToken("s3cret-of-ci")
        with RepositoryClient(service.target, tls=tls("look"), credentials=token) as client:
            assert client.rollout("digits") == 1
        wrong = StaticToken("wrong")
        with (
            RepositoryClient(service.target, tls=tls("ops"), credentials=wrong) as client,
            pytest.raises(UnauthenticatedError, match="token is not valid"),
        ):
            client.models()
        options = ("--ca", str(folder / "ca.pem"), "-t", service.target)
        mine = ("--cert", str(folder / "look.pem"), "--key", str(folder / "look.key"))
        assert "digits" in cli("models", *options, *mine)
        assert "PERMISSION_DENIED" in cli("rollback", "digits", *options, *mine, code=7)
        assert "client certificate" in cli("models", *options, code=3)
        assert service.end() == 0
        assert "s3cret" not in "".join(service.said)


def test_one_service_for_a_disk(folder: Path, servers: list[LightServer]) -> None:
    """A second service on the same disk refuses to start, and names the first one's process."""
    file = write_setup(folder, servers)
    with running(file) as service:
        assert service.process is not None
        assert str(service.process.pid) in cli("serve", str(file), code=9)
