"""aioserving.security.TLS: over real connections, and when its files change."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aioserving.security import TLS, connection_advice
from tests.test_security import Clock

trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

UTC = datetime.timezone.utc
AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
CA: bytes = AUTHORITY.cert_pem.bytes()


def issued(*names: str, by: Any = AUTHORITY, **options: Any) -> tuple[bytes, bytes]:
    """A key, and a certificate with its chain."""
    made = by.issue_cert(*names, **options)
    return made.private_key_pem.bytes(), b"".join(item.bytes() for item in made.cert_chain_pems)


SERVER = issued("models.example.org", "127.0.0.1", "localhost")
CLIENT = issued("client@example.org")


def put(folder: Path, name: str, content: bytes) -> Path:
    """A file that appears whole, and with another time than the one before."""
    partial = folder / f"{name}.partial"
    partial.write_bytes(content)
    os.replace(partial, folder / name)
    return folder / name


async def _echo(request: bytes, context: Any) -> bytes:
    return request


@contextlib.asynccontextmanager
async def served(
    key_and_certificate: tuple[bytes, bytes] | None = SERVER,
    client_ca: bytes | None = None,
    address: str = "127.0.0.1:0",
) -> Any:
    """The target of a server that says back what it is told."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
    if key_and_certificate is None:
        port = server.add_insecure_port(address)
    else:
        credentials = grpc.ssl_server_credentials([key_and_certificate], client_ca, client_ca is not None)
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def outcome(target: str, tls: TLS | None) -> str:
    """``"ok"``, or our advice and gRPC's words about a failed connection."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        credentials, more, _ = tls.current(target)
        channel = grpc.aio.secure_channel(target, credentials, [*options, *more])
    async with channel:
        stub: Any = channel.unary_unary("/S/Echo")
        try:
            assert await stub(b"x", timeout=10) == b"x"
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            return f"{connection_advice(details, tls) or '(no advice)'} | {details}"
    return "ok"


@pytest.mark.anyio
async def test_tls_and_its_failures() -> None:
    """The authority's own are let in; each other case fails with advice that says what is wrong."""
    now = datetime.datetime.now(UTC)
    day = datetime.timedelta(days=1)
    expired = issued("127.0.0.1", not_before=now - 2 * day, not_after=now - day)
    early = issued("127.0.0.1", not_before=now + day, not_after=now + 2 * day)
    async with served() as target:
        assert await outcome(target, TLS(CA)) == "ok"
        assert await outcome(target, TLS(CA, server_name="models.example.org")) == "ok"
        wrong = await outcome(target, TLS(CA, server_name="elsewhere.org"))
        assert wrong.startswith("the server's certificate is not for the name in the target")
        for tls in (TLS(), TLS(OTHER_AUTHORITY.cert_pem.bytes())):
            strange = await outcome(target, tls)
            assert strange.startswith("the server's certificate is not from an authority that this client tr")
        assert "perhaps it speaks TLS only" in await outcome(target, None)
    async with served(expired) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server's certificate has expired")
    async with served(early) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server's certificate is not valid yet")
    async with served(None) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server does not speak TLS on this port")


@pytest.mark.anyio
async def test_mutual_tls() -> None:
    """A client certificate of the right authority is let in; none, or another one, is not."""
    key, certificate = CLIENT
    async with served(client_ca=CA) as target:
        assert await outcome(target, TLS(CA, certificate, key)) == "ok"
        assert await outcome(target, TLS(CA, certificate + key)) == "ok"
        assert "perhaps it wants a client certificate" in await outcome(target, TLS(CA))
        key, certificate = issued("stranger@example.org", by=OTHER_AUTHORITY)
        refused = await outcome(target, TLS(CA, certificate, key))
        assert "does not accept the client's certificate" in refused


@pytest.mark.anyio
async def test_unix_sockets_are_localhost(tmp_path: Path) -> None:
    """A socket has no name, so the certificate is to be for localhost, or for the name that is given."""
    async with served(address=f"unix:{tmp_path}/s") as target:
        assert await outcome(target, TLS(CA)) == "ok"
        assert await outcome(target, TLS(CA, server_name="models.example.org")) == "ok"
        assert "not for the name" in await outcome(target, TLS(CA, server_name="elsewhere.org"))
    assert TLS(CA).current("127.0.0.1:80")[1] == []


@pytest.mark.anyio
async def test_the_systems_authorities_are_those_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a `ca`, what the system's list has is trusted, as other programs do."""
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(put(tmp_path, "ca.pem", CA)))
    async with served() as target:
        assert await outcome(target, TLS()) == "ok"


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"ca": "/nowhere/ca.pem"}, FileNotFoundError, "ca: No such file .*'/nowhere/ca.pem'"),
        ({"ca": b"junk"}, ValueError, "^ca: the PEM text given is not PEM"),
        ({"ca": SERVER[0]}, ValueError, "^ca: expected a certificate, found EC PRIVATE KEY"),
        ({"ca": 3}, TypeError, "^ca: expected PEM contents or a path, got int"),
        ({"key": CLIENT[0]}, ValueError, "^key: a private key needs the certificate"),
        ({"certificate": CLIENT[1]}, ValueError, "^certificate: it needs the private key.*give key="),
        (
            {"certificate": CLIENT[1], "key": CLIENT[1]},
            ValueError,
            "^key: expected a private key, found CERT",
        ),
        (
            {"certificate": CLIENT[1], "key": SERVER[0]},
            ValueError,
            "^certificate and key: the key does not belong",
        ),
        (
            {"certificate": CLIENT[1], "key": CLIENT[0].replace(b"EC PRIVATE", b"ENCRYPTED PRIVATE")},
            ValueError,
            "^key: the private key is encrypted",
        ),
        ({"reload": -1}, ValueError, "^reload must be a number of seconds"),
        ({"server_name": "https://x"}, ValueError, "^server_name is a host name without a port"),
        ({"server_name": "x:443"}, ValueError, "^server_name is a host name without a port"),
        ({"server_name": ""}, ValueError, "^server_name is a host name without a port"),
    ],
)
def test_wrong_tls_arguments(arguments: dict[str, Any], error: type[Exception], reason: str) -> None:
    """Whatever could only fail later is refused at once, by the argument's name."""
    with pytest.raises(error, match=reason):
        TLS(**arguments)


def test_current_is_cheap_and_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks no file is touched, and the credentials stay the same object."""
    clock = Clock()
    tls = TLS(put(tmp_path, "ca.pem", CA), reload=1.0, clock=clock)
    looks: list[Any] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: looks.append(a) or stat(*a, **k))  # type: ignore[func-returns-value]
    first = tls.current("x")
    for _ in range(100):
        clock.now += 0.009
        again = tls.current("x")
        assert again[0] is first[0]
        assert again[2] == tls.generation == 1
    assert looks == []
    clock.now += 0.2
    assert tls.generation == 1
    assert len(looks) == 1


@pytest.mark.anyio
async def test_changed_files_make_a_new_generation(tmp_path: Path) -> None:
    """A rotated certificate is used for new connections within `reload`; half a rotation changes nothing."""
    clock = Clock()
    key, certificate = CLIENT
    files: dict[str, Any] = {
        "ca": put(tmp_path, "ca.pem", CA),
        "certificate": put(tmp_path, "cert.pem", certificate),
        "key": put(tmp_path, "key.pem", key),
    }
    tls = TLS(**files, reload=1.0, clock=clock)
    new_key, new_certificate = issued("client2@example.org", by=OTHER_AUTHORITY)
    async with served(client_ca=OTHER_AUTHORITY.cert_pem.bytes()) as target:
        assert await outcome(target, tls) != "ok"
        old = tls.current()
        put(tmp_path, "cert.pem", new_certificate)
        clock.now += 2
        assert tls.current()[2] == 1  # the key does not belong to it
        assert tls.current()[0] is old[0]
        put(tmp_path, "key.pem", new_key)
        assert tls.current()[2] == 1  # nobody looked yet
        clock.now += 2
        assert tls.current()[2] == 2
        assert tls.current()[0] is not old[0]
        assert await outcome(target, tls) == "ok"
    assert repr(tls).endswith("generation 2>")


@pytest.mark.parametrize("trouble", ["gone", "junk"])
def test_files_in_trouble_change_nothing(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanished or became garbage is told in the log, once, until it is good again."""
    clock = Clock()
    path = put(tmp_path, "ca.pem", CA)
    tls = TLS(path, reload=1.0, clock=clock)
    if trouble == "gone":
        path.unlink()
    else:
        put(tmp_path, "ca.pem", b"junk")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            clock.now += 2
            assert tls.generation == 1
        assert len(caplog.records) == 1
        assert "goes on with what it has: " in caplog.text
        put(tmp_path, "ca.pem", CA)
        clock.now += 2
        assert tls.generation == 1  # the same contents as before
        put(tmp_path, "ca.pem", CA + OTHER_AUTHORITY.cert_pem.bytes())
        clock.now += 2
        assert tls.generation == 2


def test_links_that_move_are_changes(tmp_path: Path) -> None:
    """Kubernetes rotates by moving a link to a folder; that is noticed."""
    clock = Clock()
    for name, content in (("1", CA), ("2", OTHER_AUTHORITY.cert_pem.bytes())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.pem").write_bytes(content)
    (tmp_path / "data").symlink_to(tmp_path / "1")
    tls = TLS(tmp_path / "data" / "ca.pem", clock=clock)
    (tmp_path / "new").symlink_to(tmp_path / "2")
    os.replace(tmp_path / "new", tmp_path / "data")
    clock.now += 2
    assert tls.generation == 2


def test_without_reload_or_files_nothing_is_looked_at(tmp_path: Path) -> None:
    """Contents given as text, or reload=None, stay for ever."""
    clock = Clock()
    path = put(tmp_path, "ca.pem", CA)
    fixed = [TLS(path, reload=None, clock=clock), TLS(CA, clock=clock), TLS(clock=clock)]
    put(tmp_path, "ca.pem", OTHER_AUTHORITY.cert_pem.bytes())
    clock.now += 1e6
    assert [tls.generation for tls in fixed] == [1, 1, 1]


def test_tls_reprs_show_paths_and_no_contents(tmp_path: Path) -> None:
    """A repr says what is trusted and who one is, never a key."""
    key, certificate = CLIENT
    path = put(tmp_path, "ca.pem", CA)
    tls = TLS(path, certificate, key, server_name="x.org")
    assert repr(tls) == f"<TLS trusting {path}, certificate the PEM text given, for x.org, generation 1>"
    assert repr(TLS()) == "<TLS trusting the system's authorities, generation 1>"
    secret = key.decode().splitlines()[1]
    assert secret not in f"{tls!r} {tls._generation!r} {tls.current()!r}"


def test_advice_is_only_given_where_it_fits() -> None:
    """Failures that have nothing to do with TLS get none, nor do connections that were lost later."""
    for tls in (None, TLS(CA)):
        assert connection_advice("Socket closed", tls) == ""
        assert connection_advice("recvmsg:Connection reset by peer", tls) == ""
    assert connection_advice("connect: Connection refused", TLS(CA)) == ""
    assert connection_advice("CERTIFICATE_VERIFY_FAILED", None) == ""
