"""`doctor` against real sockets: what is wrong is found at the right step, with a fix, and nothing hangs."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from aioserving import AsyncClient, Signature, TensorSpec
from aioserving.cli import diagnosis, probing
from aioserving.cli.diagnosis import Patient, examine, examine_here, message_sizes, similar_names
from aioserving.cli.findings import Check, Finding, Level
from aioserving.cli.probing import TLSFiles
from aioserving.dtypes import DataType
from aioserving.security import TLS, StaticToken
from aioserving.server_security import Authentication, Grant, Tokens
from aioserving.status import ModelStatus, State, VersionStatus
from aioserving.targets import Target
from aioserving.testing import FaultProxy, ModelServer, StatusCode, StatusError
from aioserving.testing.faults import BlackHole, HalfOpen, Reset
from tests.models import digits, many_signatures, versions

pytestmark = pytest.mark.anyio

NO_PROXIES: dict[str, str] = {}


async def examined(target: str, told: list[Check] | None = None, **options: Any) -> dict[str, Check]:
    """What is found about a target, by the name of the check."""
    files: TLSFiles | None = options.get("tls")
    token = options.pop("token", None)
    tls = (
        None if files is None else TLS(files.ca, files.certificate, files.key, server_name=files.server_name)
    )
    credentials = None if token is None else StaticToken(token, allow_plaintext=True)

    def client(address: str, timeout: float) -> AsyncClient:
        return AsyncClient(address, timeout=timeout, retry=None, tls=tls, credentials=credentials)

    options.setdefault("environ", NO_PROXIES)
    patient = Patient([target], client, credentials=token is not None, **options)
    tell: list[Check] = [] if told is None else told
    checks = await examine(patient, target, tell.append)
    assert len({check.name for check in checks}) == len(checks)
    for check in checks:
        for finding in check.findings:
            assert "\n" not in finding.text
            assert finding.fix or finding.level not in (Level.ERROR, Level.WARNING), finding
    return {check.name: check for check in checks}


def first_error(found: dict[str, Check]) -> tuple[str, str, str]:
    """Name, text and fix of the first check that failed."""
    name = next(name for name, check in found.items() if check.failed)
    worst = next(finding for finding in found[name].findings if finding.level == Level.ERROR)
    return name, worst.text, worst.fix


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# -- servers that are well ----------------------------------------------------------------------------------


async def test_healthy() -> None:
    """A server that is well passes every check, in order, and each is told as soon as it is done."""
    told: list[Check] = []
    async with ModelServer({"digits": versions()}) as server:
        found = await examined(server.target, told, model="digits")
    assert list(found) == [
        "proxy", "resolve", "connect", "tls", "protocol", "call", "health", "model", "metadata", "messages",
        "round trip",
    ]  # fmt: skip
    assert {check.level for check in found.values()} == {Level.OK}
    assert told == list(found.values())
    assert "images: float32 (-1, 784)" in found["metadata"].findings[0].text
    assert "version 2 AVAILABLE, version 1 AVAILABLE" in found["model"].findings[0].text
    assert "1,337 rows reach 4 MiB" in found["messages"].findings[1].text
    assert "of 20 calls" in found["round trip"].findings[0].text


async def test_without_a_model() -> None:
    """Without a model's name all is looked at that does not need one."""
    async with ModelServer({"digits": digits()}) as server:
        found = await examined(server.target)
    assert {name for name, check in found.items() if check.level == Level.SKIPPED} == {
        "model", "metadata", "messages",
    }  # fmt: skip
    assert not any(check.failed for check in found.values())


async def test_unix_socket(tmp_path: Path) -> None:
    """A Unix socket is found, or it is told that it is missing, or is none."""
    path = tmp_path / "s"
    async with ModelServer({"digits": digits()}, port=None, unix_socket=path) as server:
        found = await examined(server.target, model="digits")
    assert not any(check.failed for check in found.values())
    name, text, fix = first_error(await examined(f"unix:{tmp_path / 'none'}"))
    assert (name, "No such file" in text, "--grpc_socket_path" in fix) == ("resolve", True, True)
    (tmp_path / "file").write_text("")
    assert "is no socket" in first_error(await examined(f"unix:{tmp_path / 'file'}"))[1]


async def test_fleet() -> None:
    """Of several addresses in a target, each has its way looked at; one that is down fails the rest."""
    async with ModelServer({"digits": digits()}) as server:
        patient = Patient(
            [], lambda address, timeout: AsyncClient(address, timeout=timeout, retry=None), environ=NO_PROXIES
        )
        told: list[Check] = []
        checks = await examine(patient, f"{server.target},127.0.0.1:{free_port()}", told.append)
    assert [check.level for check in checks if check.name == "connect"] == [Level.OK, Level.ERROR]
    assert [check.level for check in checks if check.name == "call"] == [Level.SKIPPED]


# -- ways that end ------------------------------------------------------------------------------------------


async def test_target_that_makes_no_sense() -> None:
    """A target without a port, or with a scheme of the web, is told before anything is connected to."""
    assert "has no port" in first_error(await examined("127.0.0.1"))[1]
    found = await examined("http://127.0.0.1:8500")
    assert first_error(found)[0] == "target"
    assert all(check.level == Level.SKIPPED for name, check in found.items() if name != "target")


async def test_name_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that nobody knows fails at `resolve`, and says whether the name server answered."""

    def unknown(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(code, "told")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    code = socket.EAI_NONAME
    assert first_error(await examined("host:8500"))[0] == "resolve"
    assert "NAMESPACE" in first_error(await examined("host:8500"))[2]
    assert "VPN, container" in first_error(await examined("host.example:8500"))[2]
    code = socket.EAI_AGAIN
    name, text, fix = first_error(await examined("host:8500"))
    assert (name, text) == ("resolve", "host cannot be looked up: told")
    assert "name server does not answer" in fix


async def test_name_server_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that does not end, ends at its deadline, and keeps neither the check nor the loop waiting."""
    import threading

    release = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: release.wait(30))
    began = time.monotonic()
    name, text, fix = first_error(await examined("host:8500", timeout=0.1))
    release.set()
    assert (name, text) == ("resolve", "no result within 100 ms")
    assert "name server" in fix
    assert time.monotonic() - began < 5


async def test_several_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """All addresses are tried; for one that refuses there is a note for a name, a warning for a fleet."""
    async with ModelServer({"digits": digits()}) as server:
        stream = (socket.SOCK_STREAM, 6, "")

        def both(host: str, port: int, **options: Any) -> Any:
            return [
                (socket.AF_INET, *stream, ("127.0.0.2", port)), (socket.AF_INET, *stream, ("127.0.0.1", port))
            ]  # fmt: skip

        monkeypatch.setattr(socket, "getaddrinfo", both)
        findings, places = await probing.resolve(Target(f"somewhere:{server.port}"), NO_PROXIES)
        assert "127.0.0.2 (IPv4), 127.0.0.1 (IPv4)" in findings[0].text
        assert "use dns:///somewhere:" in findings[1].fix
        for target, level in (
            (f"somewhere:{server.port}", Level.NOTE),
            (f"dns:///somewhere:{server.port}", Level.WARNING),
        ):
            findings, good = await probing.connect(places, 5.0, Target(target))
            assert [finding.level for finding in findings] == [level, Level.OK]
            assert [place.address for place in good] == ["127.0.0.1"]


async def test_closed_port() -> None:
    """Where nobody listens, the check says refused, at once, and the rest is skipped."""
    found = await examined(f"127.0.0.1:{free_port()}", model="digits")
    name, text, fix = first_error(found)
    assert (name, "connection refused" in text, "is the server running" in fix) == ("connect", True, True)
    assert found["protocol"].level == found["call"].level == found["model"].level == Level.SKIPPED


async def test_full_backlog_as_a_firewall() -> None:
    """Packets that are swallowed end at the deadline, and are told from a refusal."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # Connections that nobody accepts fill the queue; the next one's packets are dropped.
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        name, text, fix = first_error(await examined(f"127.0.0.1:{listener.getsockname()[1]}", timeout=0.3))
    assert (name, "not even with a refusal" in text, "firewall" in fix) == ("connect", True, True)


@pytest.mark.parametrize("fault", [BlackHole(), HalfOpen()])
async def test_black_hole(fault: Any) -> None:
    """A connection that is taken and then silent ends at the deadline of `protocol`, in plaintext and TLS."""
    async with ModelServer({"digits": digits()}) as server, FaultProxy(server.target) as proxy:
        proxy.set(fault)
        began = time.monotonic()
        found = await examined(proxy.target, model="digits", timeout=0.3)
        name, text, fix = first_error(found)
        assert (name, text) == ("protocol", "no result within 300 ms")
        assert "nobody answers" in fix
        assert first_error(await examined(proxy.target, tls=TLSFiles(), timeout=0.3))[0] == "tls"
        assert time.monotonic() - began < 20


async def test_connection_that_is_reset() -> None:
    """A connection that is cut off at once is told as such, not as silence."""
    async with ModelServer({"digits": digits()}) as server, FaultProxy(server.target) as proxy:
        proxy.set(Reset())
        name, text, _ = first_error(await examined(proxy.target))
    # On which of the two the reset arrives is a matter of microseconds.
    assert name in ("connect", "protocol")
    assert "connection reset" in text


async def test_server_that_dies_between_steps() -> None:
    """A call that hangs though HTTP/2 was answered ends at its deadline."""
    async with ModelServer({"digits": digits()}) as server, FaultProxy(server.target) as proxy:

        def silence(check: Check) -> None:
            if check.name == "protocol":
                proxy.set(BlackHole())

        patient = Patient(
            [],
            lambda address, timeout: AsyncClient(address, timeout=timeout, retry=None),
            timeout=0.3,
            environ=NO_PROXIES,
        )
        checks = await examine(patient, proxy.target, silence)
    name, text, _ = first_error({check.name: check for check in checks})
    assert (name, "within 300 ms" in text or "call fails" in text) == ("call", True)


@contextlib.asynccontextmanager
async def listening(
    handle: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    context: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """The port of a server of one function, of which no connection is left when it ends."""
    tasks: set[asyncio.Task[Any]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await handle(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def saying(answer: bytes, first: bool = False) -> AsyncIterator[int]:
    """The port of a server that says `answer`, to whatever it is told or at once, and closes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not first:
            await reader.read(1)
        writer.write(answer)
        await writer.drain()

    async with listening(handle) as port:
        yield port


async def test_another_protocol() -> None:
    """What is no HTTP/2 is shown as it came; a web server is called one."""
    async with saying(b"SSH-2.0-OpenSSH_9.7\r\n", first=True) as port:
        assert "it says 'SSH-2.0-OpenSSH_9.7" in first_error(await examined(f"127.0.0.1:{port}"))[1]
    async with saying(b"HTTP/1.1 400 Bad Request\r\n\r\n") as port:
        name, text, _ = first_error(await examined(f"127.0.0.1:{port}"))
    assert (name, "a web server or proxy (it speaks HTTP/1)" in text) == ("protocol", True)


async def test_rest_port() -> None:
    """The REST port in place of the gRPC port is recognised, whether it knows the model or not."""
    pytest.importorskip("aiohttp", reason="the testing server's REST needs the extra `testing`")
    async with ModelServer({"digits": digits()}, rest_port=0) as server:
        for model in ("digits", "nobody"):
            name, text, fix = first_error(await examined(f"127.0.0.1:{server.rest_port}", model=model))
            assert (name, "is the REST port of TensorFlow Serving" in text) == ("protocol", True)
            assert "gRPC port" in fix


async def test_another_kind_of_grpc_server() -> None:
    """A gRPC server that has no such methods is told from TensorFlow Serving."""
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        name, text, _ = first_error(await examined(f"127.0.0.1:{port}"))
    finally:
        await server.stop(0)
    assert (name, "is not TensorFlow Serving" in text) == ("call", True)


# -- proxies ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def http_proxy(status: bytes, seen: list[bytes]) -> AsyncIterator[str]:
    """The URL of a proxy that makes tunnels, or answers `status` in place of 200."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head)
        if status != b"200 OK":
            writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")
            await writer.drain()
            return
        host, port = head.split()[1].decode().split(":")
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        try:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        finally:
            up_writer.close()
            with contextlib.suppress(OSError):
                await up_writer.wait_closed()

    async with listening(handle) as port:
        yield f"http://me:secret@127.0.0.1:{port}"


async def test_through_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the environment has gRPC go through a proxy, the looks go through it, too; it is told of."""
    seen: list[bytes] = []
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with ModelServer({"digits": digits()}) as server, http_proxy(b"200 OK", seen) as url:
        monkeypatch.setenv("http_proxy", url)
        found = await examined(server.target, model="digits", environ={"http_proxy": url})
    assert not any(check.failed for check in found.values())
    assert found["proxy"].level == Level.WARNING
    assert "no_proxy" in found["proxy"].findings[0].fix
    assert "through 127.0.0.1:" in found["connect"].findings[0].text
    assert seen[0].startswith(f"CONNECT {server.target} ".encode())
    assert b"Basic bWU6c2VjcmV0" in seen[0]
    assert all(
        "secret" not in finding.text + finding.fix for check in found.values() for finding in check.findings
    )


async def test_proxy_that_refuses() -> None:
    """A proxy that lets nobody through, or is not there, is what is blamed."""
    async with http_proxy(b"403 Forbidden", []) as url:
        name, text, fix = first_error(await examined("127.0.0.1:8500", environ={"grpc_proxy": url}))
        assert (name, "403 Forbidden" in text, "no_proxy" in fix) == ("connect", True, True)
    environ = {"grpc_proxy": f"http://127.0.0.1:{free_port()}"}
    name, text, fix = first_error(await examined("127.0.0.1:8500", environ=environ))
    assert (name, "connection refused" in text, "start the proxy" in fix) == ("connect", True, True)
    exempt = await examined(f"127.0.0.1:{free_port()}", environ={**environ, "no_proxy": "127.0.0.1"})
    assert "exempts 127.0.0.1" in exempt["proxy"].findings[0].text


# -- TLS ----------------------------------------------------------------------------------------------------


class Authority:
    """Makes certificates as files."""

    def __init__(self, folder: Path) -> None:
        self._trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")
        self.folder = folder
        self._ca = self._trustme.CA()
        self.ca = self._put("ca.pem", self.ca_bytes)

    @property
    def ca_bytes(self) -> bytes:
        found: bytes = self._ca.cert_pem.bytes()
        return found

    def _put(self, name: str, content: bytes) -> Path:
        (self.folder / name).write_bytes(content)
        return self.folder / name

    def issue(self, *names: str, **options: Any) -> tuple[bytes, bytes]:
        """A key and a certificate with its chain."""
        made = self._ca.issue_cert(*names, **options)
        return made.private_key_pem.bytes(), b"".join(item.bytes() for item in made.cert_chain_pems)

    def files(self, name: str) -> TLSFiles:
        """What a client trusts, and who it says it is."""
        key, certificate = self.issue(f"{name}@example.org")
        return TLSFiles(self.ca, self._put(f"{name}.pem", certificate), self._put(f"{name}.key", key))

    @contextlib.asynccontextmanager
    async def serving(
        self, issued: tuple[bytes, bytes], client_ca: bytes | None = None
    ) -> AsyncIterator[str]:
        """The target of a model server with that certificate."""
        credentials = grpc.ssl_server_credentials([issued], client_ca, client_ca is not None)
        async with ModelServer({"digits": digits()}, credentials=credentials) as server:
            yield server.target


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "a").mkdir()
    return Authority(tmp_path / "a")


async def test_tls(authority: Authority) -> None:
    """TLS that is well tells version, names and end of the certificate, and all goes through it."""
    async with authority.serving(authority.issue("127.0.0.1", "models.example.org")) as target:
        for files in (TLSFiles(authority.ca), TLSFiles(authority.ca, server_name="models.example.org")):
            found = await examined(target, model="digits", tls=files)
            assert not any(check.failed for check in found.values()), found
    text = found["tls"].findings[0].text
    assert "TLSv1.3" in text
    assert "for models.example.org, 127.0.0.1" in text or "for 127.0.0.1, models.example.org" in text
    assert found["protocol"].findings[0].text.endswith("speaks HTTP/2 over TLS")


async def test_tls_wrong_authority_and_name(authority: Authority, tmp_path: Path) -> None:
    """An authority that is not trusted, and a name that is not the certificate's, are told apart."""
    pytest.importorskip("cryptography", reason="reads certificates that are not believed (extra `tls`)")
    (tmp_path / "b").mkdir()
    other = Authority(tmp_path / "b")
    async with authority.serving(authority.issue("models.example.org")) as target:
        name, text, fix = first_error(await examined(target, tls=TLSFiles(other.ca)))
        assert (name, f"{other.ca} trusts" in text, "it is from" in text, "--ca" in fix) == (
            "tls",
            True,
            True,
            True,
        )
        name, text, fix = first_error(await examined(target, tls=TLSFiles(authority.ca)))
        assert (name, text) == (
            "tls", "the server's certificate is not for 127.0.0.1; it is for models.example.org"
        )  # fmt: skip
        assert "--server-name models.example.org" in fix


async def test_tls_dates(authority: Authority) -> None:
    """A certificate that has expired, is not valid yet, or ends soon, says when."""
    pytest.importorskip("cryptography", reason="reads certificates that are not believed (extra `tls`)")
    now = datetime.datetime.now(datetime.timezone.utc)
    day = datetime.timedelta(days=1)
    files = TLSFiles(authority.ca)
    for begin, end, wanted in (
        (now - 2 * day, now - day, f"certificate expired on {now - day:%Y-%m-%d}"),
        (now + day, now + 2 * day, f"is not valid before {now + day:%Y-%m-%d}"),
    ):
        issued = authority.issue("127.0.0.1", not_before=begin, not_after=end)
        async with authority.serving(issued) as target:
            name, text, _ = first_error(await examined(target, tls=files))
        assert (name, wanted in text) == ("tls", True), text
    async with authority.serving(authority.issue("127.0.0.1", not_after=now + 3 * day)) as target:
        found = await examined(target, tls=files)
    assert found["tls"].level == Level.WARNING
    assert "ends in 3 days" in found["tls"].findings[1].text


async def test_tls_client_certificate(authority: Authority) -> None:
    """A server that wants a client certificate is told from others; with one, all is well."""
    async with authority.serving(authority.issue("127.0.0.1"), authority.ca_bytes) as target:
        name, text, fix = first_error(await examined(target, tls=TLSFiles(authority.ca)))
        assert (name in ("tls", "protocol"), "client certificate" in text + fix, "--cert" in fix) == (
            True,
            True,
            True,
        )
        files = authority.files("joe")
        assert not any(check.failed for check in (await examined(target, tls=files, model="digits")).values())


async def test_plaintext_and_tls_confused(authority: Authority) -> None:
    """Plaintext to a TLS port, and TLS to a plaintext port, are both recognised."""
    async with authority.serving(authority.issue("127.0.0.1")) as target:
        name, text, fix = first_error(await examined(target))
        assert (name, "speaks TLS, and plaintext was tried" in text, "--tls" in fix) == (
            "protocol",
            True,
            True,
        )
    async with ModelServer({"digits": digits()}) as server:
        name, text, fix = first_error(await examined(server.target, tls=TLSFiles(authority.ca)))
        assert (name, "plaintext, and TLS was tried" in text, "--no-tls" in fix) == ("tls", True, True)


async def test_tls_without_http2(authority: Authority) -> None:
    """A TLS server that does not offer HTTP/2, as load balancers of the web, is told so."""
    key, certificate = authority.issue("127.0.0.1")
    (authority.folder / "server.pem").write_bytes(key + certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.folder / "server.pem")

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with listening(handle, context) as port:
        name, text, fix = first_error(await examined(f"127.0.0.1:{port}", tls=TLSFiles(authority.ca)))
    assert (name, "ALPN" in text, "load balancer" in fix) == ("tls", True, True)


async def test_certificate_files_that_are_none(authority: Authority) -> None:
    """A file that is no certificate is told before anything is connected to."""
    (authority.folder / "x").write_text("x")
    place = probing.Place("127.0.0.1", free_port(), socket.AF_INET)
    for path in (authority.folder / "x", authority.folder / "none"):
        [finding] = await probing.tls(place, TLSFiles(path), "x")
        assert (finding.level, "cannot be used" in finding.text) == (Level.ERROR, True)


# -- credentials and models ---------------------------------------------------------------------------------


async def test_credentials() -> None:
    """Missing, wrong and insufficient credentials are told apart; good ones are said to be taken."""
    grants = {"good": Grant("joe"), "idle": Grant("ann", methods=frozenset())}
    guard = Authentication(Tokens(grants))
    async with ModelServer({"digits": digits()}, interceptors=[guard]) as server:
        name, text, fix = first_error(await examined(server.target))
        assert (name, "wants credentials" in text, "--token-file" in fix) == ("call", True, True)
        _, text, fix = first_error(await examined(server.target, token="bad"))
        assert ("refuses the credentials" in text, "expired" in fix) == (True, True)
        assert "does not allow it" in first_error(await examined(server.target, token="idle"))[1]
        found = await examined(server.target, token="good", model="digits")
    assert "takes the credentials" in found["call"].findings[0].text
    assert not any(check.failed for check in found.values())


@pytest.mark.parametrize("wrong", ["digit", "Digits", "digtis", "digitss", "digits/1", "digits "])
async def test_wrong_model_name(wrong: str) -> None:
    """A name that is nearly right gets the right one proposed, though a server cannot list its models."""
    async with ModelServer({"digits": digits()}) as server:
        found = await examined(server.target, model=wrong)
    name, text, fix = first_error(found)
    assert (name, text) == ("model", f"the server knows no model {wrong!r}")
    assert fix == "did you mean 'digits'?"
    assert found["metadata"].level == found["messages"].level == Level.SKIPPED
    assert found["round trip"].level == Level.OK


async def test_unknown_model_name() -> None:
    """A name that is nothing like one gets no proposal but what the settings know, or the usual names."""
    async with ModelServer({"digits": digits(), "default": digits()}) as server:
        assert first_error(await examined(server.target, model="x"))[2] == "did you mean 'default'?"
        fix = first_error(await examined(server.target, model="x", known_models=["digits"]))[2]
        assert fix == "did you mean 'digits' or 'default'?"
    async with ModelServer({"digits": digits()}) as server:
        assert "spelled" in first_error(await examined(server.target, model="x"))[2]


def test_similar_names() -> None:
    """Names are tried once each, and never the wrong one itself; long ones do not make hundreds of calls."""
    found = similar_names("my-model", ["known"])
    assert found[0] == "known"
    assert {"my_model", "MY-MODEL", "my-mode", "my-moedl"} <= set(found)
    assert len(found) == len(set(found))
    assert "my-model" not in found
    assert len(similar_names("a" * 200)) < 20


async def test_model_that_is_not_available() -> None:
    """A version that failed to load, a missing one and one that is going on loading each say what to do."""
    missing = StatusError(StatusCode.NOT_FOUND, "no saved_model.pb")
    async with ModelServer({"digits": digits()}, file_system_poll_wait_seconds=0.02) as server:
        server.add_version("digits", 3, missing)
        async with AsyncClient(server.target) as client:
            with pytest.raises(Exception, match="no saved_model"):
                await client.wait_until_available("digits", version=3, timeout=20)
        found = await examined(server.target, model="digits")
        assert found["model"].level == Level.WARNING
        assert "a version failed to load: version 3" in found["model"].findings[1].text
        assert "saved_model.pb" in found["model"].findings[1].fix
        name, text, fix = first_error(await examined(server.target, model="digits", version=3))
        assert (name, "version 3 END (NOT_FOUND" in text, "base path" in fix) == ("model", True, True)
        text = first_error(await examined(server.target, model="digits", version=9))[1]
        assert text == "there is no version 9 of 'digits'; it has 3, 1"


@pytest.mark.parametrize(
    ("state", "words", "fix"),
    [
        (State.LOADING, "is loading", "aioserving wait digits"),
        (State.END, "was unloaded", "aioserving reload"),
    ],
)
async def test_model_between_states(state: State, words: str, fix: str) -> None:
    """A model that is loading, or was unloaded, is not called missing; each has its own fix."""
    status = ModelStatus("digits", (VersionStatus(1, state),))
    async with AsyncClient("127.0.0.1:1") as client:
        patient = Patient([], lambda *_: client, model="digits")
        [finding] = await diagnosis._model(patient, client, status)
    assert (finding.level, words in finding.text, fix in finding.fix) == (Level.ERROR, True, True)


async def test_signature_and_label() -> None:
    """A signature or label that is not there fails at `metadata`, with what there is."""
    async with ModelServer({"many": many_signatures()}) as server:
        name, text, _ = first_error(await examined(server.target, model="many", signature="string"))
        assert (name, "did you mean 'strings'?" in text) == ("metadata", True)
        name, text, fix = first_error(await examined(server.target, model="many", label="stable"))
        assert (name, "no label 'stable'" in text, "labels" in fix) == ("metadata", True, True)


def test_message_sizes() -> None:
    """Rows are weighed against both limits; open dimensions and strings make it a least."""

    def sizes(data_type: DataType, shape: tuple[int, ...] | None) -> tuple[Level, str]:
        spec = {"x": TensorSpec("x", data_type, shape)}
        findings = message_sizes(Signature("s", spec, {}))
        return findings[1].level, findings[1].text

    assert sizes(DataType.DT_FLOAT, (-1, 784)) == (
        Level.OK, "a row of a request has 3.06 KiB: 1,337 rows reach 4 MiB, 684,784 reach 2 GiB",
    )  # fmt: skip
    assert sizes(DataType.DT_STRING, (-1,))[1].startswith("a row of a request has at least 1 B")
    assert sizes(DataType.DT_FLOAT, (-1, -1, 3))[1].startswith("a row of a request has at least 12 B")
    assert sizes(DataType.DT_UINT8, (-1, 2000, 2000, 3))[0] == Level.WARNING
    assert sizes(DataType.DT_DOUBLE, (-1, 2**20, 2**10))[0] == Level.ERROR


async def test_this_machine() -> None:
    """This machine has its own checks, which say what is installed and that importing is light."""
    told: list[Check] = []
    patient = Patient([], lambda *_: None, environ={"GRPC_TRACE": "all"})  # type: ignore[arg-type]
    found = await examine_here(patient, told.append)
    assert [check.name for check in found] == ["versions", "import", "variables", "clock"]
    assert found == told
    assert f"numpy {np.__version__}" in found[0].findings[0].text
    assert "without TensorFlow" in found[1].findings[0].text
    assert found[2].level == Level.WARNING


def test_checks_as_json() -> None:
    """A check is as bad as its worst finding, and is written with all of them."""
    check = Check("x", (Finding(Level.OK, "a"), Finding(Level.ERROR, "b", "c")), 0.5)
    assert check.failed
    assert check.to_dict() == {
        "name": "x",
        "level": "error",
        "seconds": 0.5,
        "findings": [
            {"level": "ok", "text": "a", "fix": None},
            {"level": "error", "text": "b", "fix": "c"},
        ],
    }
