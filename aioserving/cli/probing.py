"""`doctor`'s looks at the way to a server, with sockets of its own: names, TCP, TLS, and who speaks there.

gRPC says of a connection that fails that it failed. So here each step is taken by itself, as gRPC would take
it: through the same proxy, to the same addresses, with the same certificates, until it shows what is wrong.
Each function gives findings and raises nothing for what a network does; how long one may take is the caller's
business.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import errno
import ipaddress
import os
import socket
import ssl
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from aioserving.cli.findings import Finding, error, note, ok, warning
from aioserving.cli.surroundings import proxy_of
from aioserving.histogram import duration_text
from aioserving.targets import Target, join_host_port

__all__ = ["Place", "TLSFiles", "connect", "protocol", "resolve", "tls"]

_T = TypeVar("_T")

#: What every HTTP/2 client says first: the preface, and a SETTINGS frame without settings.
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"

#: Days before the end of a certificate from which it is worth a warning.
_SOON: Final = 21

#: Ports on which TensorFlow Serving is found: gRPC, REST.
_GRPC_PORT, _REST_PORT = 8500, 8501

#: Seconds for a look at another port, which is only about a better advice.
_ASIDE: Final = 0.5


@dataclass(frozen=True)
class TLSFiles:
    """How a connection is encrypted; None everywhere: the system's authorities, no client certificate."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None


@dataclass(frozen=True)
class Place:
    """One socket address that a target means."""

    #: ``"10.0.0.1"``, ``"::1"``, or the path of a Unix socket.
    address: str
    #: None for a Unix socket.
    port: int | None
    family: socket.AddressFamily
    #: Host, port and ``user:password`` of the proxy to go through, or None.
    proxy: tuple[str, int, str] | None = None

    def __str__(self) -> str:
        name = self.address if self.port is None else join_host_port(self.address, self.port)
        return name if self.proxy is None else f"{name} through {join_host_port(*self.proxy[:2])}"


class _ProxyRefusedError(Exception):
    """A proxy that does not let us through."""


def _in_daemon(function: Callable[[], _T]) -> asyncio.Future[_T]:
    """What `function` gives, from a thread that nobody waits for: a name server may take its time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()

    def settle(result: Any, problem: BaseException | None) -> None:
        if not future.done():
            if problem is None:
                future.set_result(result)
            else:
                future.set_exception(problem)

    def run() -> None:
        result, problem = None, None
        try:
            result = function()
        except BaseException as caught:
            problem = caught
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, problem)

    threading.Thread(target=run, name="aioserving doctor", daemon=True).start()
    return future


# -- names --------------------------------------------------------------------------------------------------


async def resolve(target: Target, environ: Mapping[str, str]) -> tuple[list[Finding], list[Place]]:
    """The addresses that a target means."""
    if target.scheme in ("unix", "unix-abstract"):
        return _unix(target)
    if target.port is None:
        return [note(f"nothing is known about targets such as {target.address}")], []
    host, port = target.host, target.port
    proxy = proxy_of(target, environ)
    if proxy is not None:
        # The proxy looks the name up, and it is the proxy that is connected to.
        return [ok(f"{host} is for the proxy {join_host_port(*proxy[:2])} to look up")], [
            Place(host, port, socket.AF_UNSPEC, proxy)
        ]
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(host)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        return [ok(f"{ip} is an IPv{ip.version} address")], [Place(str(ip), port, family)]
    began = time.perf_counter()
    try:
        found = await _in_daemon(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError) as problem:
        return [error(f"{host} cannot be looked up: {_reason(problem)}", _lookup_fix(host, problem))], []
    taken = time.perf_counter() - began
    places = list(dict.fromkeys(Place(str(item[4][0]), port, item[0]) for item in found))
    names = ", ".join(
        f"{place.address} (IPv{6 if place.family == socket.AF_INET6 else 4})" for place in places
    )
    findings = [ok(f"{host} is {names}, found in {duration_text(taken)}")]
    if taken > 1:
        findings.append(
            warning(
                f"looking {host} up took {duration_text(taken)}",
                "is a name server down? a dot at a name's end saves searching other domains",
            )
        )
    if len(places) > 1 and not target.to_resolve and host != "localhost":
        findings.append(
            note(
                f"{host} has {len(places)} addresses, of which gRPC uses the first that answers",
                f"if each is a server of its own, use dns:///{join_host_port(host, port)}, which uses all",
            )
        )
    return findings, places


def _unix(target: Target) -> tuple[list[Finding], list[Place]]:
    path = target.key.partition(":")[2]
    if target.scheme == "unix-abstract":
        return [ok(f"abstract Unix socket {path}")], [Place(f"\0{path}", None, socket.AF_UNIX)]
    try:
        mode = os.stat(path).st_mode
    except OSError as problem:
        fix = "is the server running, with --grpc_socket_path of that path, and the path in this container?"
        return [error(f"{path}: {problem.strerror}", fix)], []
    if not stat.S_ISSOCK(mode):
        return [error(f"{path} is no socket", "name the path that is the server's --grpc_socket_path")], []
    if not os.access(path, os.W_OK):
        fix = "run as its owner, or change its mode: connecting needs write permission"
        return [error(f"{path} may not be used by this user", fix)], []
    return [ok(f"{path} is a Unix socket")], [Place(path, None, socket.AF_UNIX)]


def _lookup_fix(host: str, problem: Exception) -> str:
    if isinstance(problem, socket.gaierror) and problem.errno == socket.EAI_AGAIN:
        return "the name server does not answer: is there a network, or a VPN to be switched on?"
    if "." not in host:
        return "is it spelled right? from another namespace a Kubernetes service is NAME.NAMESPACE.svc"
    return "is it spelled right, and known to the name server of this network (VPN, container)?"


def _reason(problem: BaseException) -> str:
    if isinstance(problem, socket.gaierror):
        return problem.strerror or str(problem)
    if isinstance(problem, OSError) and problem.errno in _TEXTS:
        return _TEXTS[problem.errno]
    if isinstance(problem, (asyncio.TimeoutError, TimeoutError)):
        return "no answer in time"
    return getattr(problem, "strerror", None) or str(problem) or type(problem).__name__


_TEXTS: Final = {
    errno.ECONNREFUSED: "connection refused",
    errno.EHOSTUNREACH: "no route to host",
    errno.ENETUNREACH: "network unreachable",
    errno.ECONNRESET: "connection reset",
    errno.ETIMEDOUT: "no answer in time",
}


# -- connecting ---------------------------------------------------------------------------------------------


async def _open(place: Place, timeout: float | None = None) -> socket.socket:
    """A connection to `place`, through its proxy if it has one.

    Raises:
        OSError: there is none.
        asyncio.TimeoutError: not within `timeout` seconds.
        _ProxyRefusedError: the proxy does not make it.
    """
    return await asyncio.wait_for(_opened(place), timeout)


async def _opened(place: Place) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, where = place.family, (place.address, place.port)
    if place.proxy is not None:
        host, port, user = place.proxy
        found = await _in_daemon(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        family, where = found[0][0], (str(found[0][4][0]), port)
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, place.address if place.port is None else where)
        if place.proxy is not None:
            await _tunnel(connection, place, user)
    except BaseException:
        connection.close()
        raise
    return connection


async def _tunnel(connection: socket.socket, place: Place, user: str) -> None:
    loop = asyncio.get_running_loop()
    name = join_host_port(place.address, place.port or 0)
    lines = [f"CONNECT {name} HTTP/1.1", f"Host: {name}"]
    if user:
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(user.encode()).decode()}")
    await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
    head = b""
    while b"\r\n\r\n" not in head and len(head) < 16384:
        # Byte by byte: what follows the head is the server's.
        byte = await loop.sock_recv(connection, 1)
        if not byte:
            break
        head += byte
    status = head.partition(b"\r\n")[0].decode("latin-1")
    if status.split(" ")[1:2] != ["200"]:
        raise _ProxyRefusedError(status or "nothing, and closed the connection")


async def connect(
    places: Sequence[Place], timeout: float, target: Target
) -> tuple[list[Finding], list[Place]]:
    """Which of the addresses accept TCP connections, and how fast.

    Args:
        places: the addresses.
        timeout: seconds for each; they are tried at the same time.
        target: what they are the addresses of.
    """
    tried = await asyncio.gather(*(_try(place, timeout) for place in places))
    good = [place for place, (_, problem) in zip(places, tried, strict=True) if problem is None]
    findings = []
    for place, (taken, problem) in zip(places, tried, strict=True):
        if problem is None:
            findings.append(ok(f"{place} accepts connections, in {duration_text(taken)}"))
            continue
        text, fix = await _refusal(place, problem, timeout)
        if good and isinstance(problem, ConnectionRefusedError) and not target.to_resolve:
            # localhost is ::1 and 127.0.0.1, and servers often listen on one of them.
            findings.append(note(f"{text}; gRPC takes another address", ""))
        elif good:
            findings.append(warning(text, fix))
        else:
            findings.append(error(text, fix))
    return findings, good


async def _try(place: Place, timeout: float) -> tuple[float, BaseException | None]:
    began = time.perf_counter()
    try:
        connection = await _open(place, timeout)
    except (OSError, asyncio.TimeoutError, _ProxyRefusedError) as problem:
        return time.perf_counter() - began, problem
    connection.close()
    return time.perf_counter() - began, None


async def _refusal(place: Place, problem: BaseException, timeout: float) -> tuple[str, str]:
    """What a connection that was not made means, and what to do."""
    if isinstance(problem, _ProxyRefusedError):
        return f"the proxy answers: {problem}", "is it meant to be there? if not, add the host to no_proxy"
    if place.proxy is not None:
        return (
            f"{place}: {_reason(problem)}",
            "start the proxy, or add the host to no_proxy if it is not meant to be there",
        )
    if isinstance(problem, ConnectionRefusedError):
        if place.port is None:
            return (
                f"{place}: nobody listens",
                "is the server running? the path may be left from an earlier one",
            )
        fix = f"is the server running, with {place.port} as its --port ({_GRPC_PORT} if not given)?"
        if place.port != _GRPC_PORT and await _speaks_http2(Place(place.address, _GRPC_PORT, place.family)):
            other = join_host_port(place.address, _GRPC_PORT)
            fix = f"something speaks HTTP/2 on port {_GRPC_PORT} there: use {other}"
        elif _is_loopback(place):
            fix += " in a container, localhost is the container itself"
        return f"nobody listens at {place} (connection refused)", fix
    if isinstance(problem, (asyncio.TimeoutError, TimeoutError)):
        return (
            f"{place} does not answer, not even with a refusal, within {duration_text(timeout)}",
            "packets get lost: a firewall, a security group, a wrong address, no route or VPN, or a host "
            "that is down",
        )
    return f"{place}: {_reason(problem)}", "is there a route to that address from here (VPN, IPv6)?"


def _is_loopback(place: Place) -> bool:
    try:
        return ipaddress.ip_address(place.address).is_loopback
    except ValueError:
        return False


# -- who speaks there ---------------------------------------------------------------------------------------


@asynccontextmanager
async def _streams(
    place: Place, context: ssl.SSLContext | None = None, name: str | None = None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    connection = await _opened(place)
    try:
        reader, writer = await asyncio.open_connection(
            sock=connection, ssl=context, server_hostname=name if context is not None else None
        )
    except BaseException:
        connection.close()
        raise
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _greet(place: Place, context: ssl.SSLContext | None = None, name: str | None = None) -> bytes:
    """What a server says to the first words of HTTP/2: at least 9 bytes, or all there is.

    Raises:
        OSError: there is no connection, or it was reset without a word.
    """
    async with _streams(place, context, name) as (reader, writer):
        writer.write(_PREFACE)
        answer = b""
        while len(answer) < 9:
            more = await reader.read(256)
            if not more:
                break
            answer += more
        return answer


def _is_settings(answer: bytes) -> bool:
    return len(answer) >= 9 and answer[3] == 4 and answer[5:9] == b"\0\0\0\0"


async def _speaks_http2(place: Place) -> bool:
    """Whether there is an HTTP/2 server, in plaintext; False if that cannot be told soon."""
    with contextlib.suppress(OSError, asyncio.TimeoutError, _ProxyRefusedError, ssl.SSLError):
        return _is_settings(await asyncio.wait_for(_greet(place), _ASIDE))
    return False


async def _speaks_tls(place: Place) -> bool:
    """Whether there is a TLS server; False if that cannot be told soon."""
    context = _blind()
    try:
        async with _limited(_ASIDE), _streams(place, context, "localhost"):
            return True
    except ssl.SSLError as problem:
        # An alert is TLS, too: only something else has no such version.
        return not _is_plaintext(problem)
    except (OSError, asyncio.TimeoutError, _ProxyRefusedError):
        return False


@asynccontextmanager
async def _limited(seconds: float) -> AsyncIterator[None]:
    """`asyncio.timeout`, which Python 3.10 has not."""
    import anyio

    try:
        with anyio.fail_after(seconds):
            yield
    except TimeoutError as problem:
        raise asyncio.TimeoutError from problem


async def protocol(place: Place, files: TLSFiles | None, model: str | None, name: str) -> list[Finding]:
    """Whether an HTTP/2 server speaks at `place`, encrypted as `files` say, in plaintext if None.

    Args:
        place: where.
        files: certificates; None: no TLS.
        model: a model that a REST port may be asked for.
        name: of the server, for TLS.
    """
    context = None
    if files is not None:
        context = _context(files)
    try:
        answer = await _greet(place, context, name)
    except ssl.SSLError as problem:
        return [_client_certificate(problem)]
    except _ProxyRefusedError as problem:
        return [error(f"the proxy answers: {problem}", "add the host to no_proxy")]
    except OSError as problem:
        answer, reason = b"", _reason(problem)
    else:
        reason = "closed the connection"
    if _is_settings(answer):
        return [ok(f"{place} speaks HTTP/2{' over TLS' if files else ', in plaintext'}")]
    if answer[:2] == b"\x15\x03" or (not answer and files is None and await _speaks_tls(place)):
        return [
            error(
                f"{place} speaks TLS, and plaintext was tried",
                "use --tls, or --ca FILE for an authority of your own",
            )
        ]
    if answer.startswith(b"HTTP/"):
        return [await _http1(place, answer, context, name, model)]
    if answer:
        shown = answer[:24].decode("ascii", "backslashreplace")
        return [error(f"{place} speaks no HTTP/2; it says {shown!r}", "is that the port of a gRPC server?")]
    fix = "is that the port of a gRPC server, and does a proxy in between let HTTP/2 through?"
    if files is not None and files.certificate is None:
        fix = (
            "perhaps it wants a client certificate: --cert and --key; else, does a proxy let HTTP/2 through?"
        )
    return [error(f"{place} says nothing to HTTP/2: {reason}", fix)]


async def _http1(
    place: Place, answer: bytes, context: ssl.SSLContext | None, name: str, model: str | None
) -> Finding:
    """What to say of a server that speaks HTTP/1: perhaps the other port of TensorFlow Serving."""
    path = f"/v1/models/{model or 'default'}"
    rest = False
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        async with _limited(_ASIDE), _streams(place, context, name) as (reader, writer):
            writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode("ascii", "replace")
            )
            reply = await reader.read(65536)
            with contextlib.suppress(asyncio.IncompleteReadError):
                reply += await reader.read(65536)
            rest = b"model_version_status" in reply or b"Could not find any versions of model" in reply
    what = (
        "the REST port of TensorFlow Serving" if rest or place.port == _REST_PORT else "a web server or proxy"
    )
    for port in dict.fromkeys((_GRPC_PORT, (place.port or 0) - 1)):
        if 0 < port != place.port and await _speaks_http2(
            Place(place.address, port, place.family, place.proxy)
        ):
            return error(
                f"{place} is {what} (it speaks HTTP/1)",
                f"use {join_host_port(place.address, port)}, which speaks HTTP/2",
            )
    fix = (
        f"use its gRPC port (--port, {_GRPC_PORT} if not given)"
        if "REST" in what
        else "is that the port of a gRPC server?"
    )
    return error(f"{place} is {what} (it speaks HTTP/1)", fix)


# -- TLS ----------------------------------------------------------------------------------------------------


def _context(files: TLSFiles) -> ssl.SSLContext:
    """TLS as gRPC does it, in Python's own.

    Raises:
        OSError: a file cannot be read.
        ssl.SSLError: a file is not what it should be.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_alpn_protocols(["h2"])
    roots = os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH")
    if files.ca is not None:
        context.load_verify_locations(files.ca)
    elif roots:
        context.load_verify_locations(roots)
    else:
        context.load_default_certs()
    if files.certificate is not None:
        context.load_cert_chain(files.certificate, files.key)
    return context


def _blind() -> ssl.SSLContext:
    """TLS that believes everybody: to see whom it is that is not to be believed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context


def _is_plaintext(problem: ssl.SSLError) -> bool:
    return any(
        word in str(problem) for word in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
    )


async def tls(place: Place, files: TLSFiles, name: str) -> list[Finding]:
    """Whether TLS can be agreed on: certificate, its dates, name and chain, and HTTP/2.

    Args:
        place: where.
        files: certificates to trust and to show.
        name: to look for in the server's certificate.
    """
    try:
        context = _context(files)
    except (OSError, ssl.SSLError) as problem:
        return [
            error(
                f"a certificate file cannot be used: {_reason(problem)}",
                "name PEM files that belong together",
            )
        ]
    began = time.perf_counter()
    try:
        async with _streams(place, context, name) as (_, writer):
            taken = time.perf_counter() - began
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return _agreed(connection, taken, name)
    except ssl.SSLCertVerificationError as problem:
        return [await _distrusted(place, problem, files, name)]
    except ssl.SSLError as problem:
        if _is_plaintext(problem):
            fix = "use --no-tls, or leave --ca, --cert and --server-name out"
            if await _speaks_http2(place):
                return [error(f"{place} speaks HTTP/2 in plaintext, and TLS was tried", "use --no-tls")]
            return [error(f"{place} does not speak TLS ({problem.reason})", fix)]
        return [_client_certificate(problem)]
    except _ProxyRefusedError as problem:
        return [error(f"the proxy answers: {problem}", "add the host to no_proxy")]
    except OSError as problem:
        if await _speaks_http2(place):
            return [error(f"{place} speaks HTTP/2 in plaintext, and TLS was tried", "use --no-tls")]
        fix = "does it speak TLS there? if so, does it want another version, or a client certificate?"
        return [error(f"{place} ended the handshake: {_reason(problem)}", fix)]


def _agreed(connection: ssl.SSLObject, taken: float, name: str) -> list[Finding]:
    certificate: dict[str, Any] = connection.getpeercert() or {}
    end = ssl.cert_time_to_seconds(certificate["notAfter"]) if "notAfter" in certificate else None
    names = [value for _, value in certificate.get("subjectAltName", ())]
    days = None if end is None else (end - time.time()) / 86400
    until = "" if end is None else f", valid until {_date(end)}"
    whom = (", ".join(names[:4]) or name) + " and more" * (len(names) > 4)
    findings = [
        ok(
            f"{connection.version()} in {duration_text(taken)}; the certificate is for {whom}{until}, "
            f"from {_issuer(certificate)}"
        )
    ]
    if days is not None and days < _SOON:
        findings.append(
            warning(
                f"the server's certificate ends in {days:.0f} days",
                "renew it; clients need no restart for that",
            )
        )
    if connection.selected_alpn_protocol() != "h2":
        findings.append(
            error(
                "the server does not offer HTTP/2 in TLS (ALPN), without which gRPC does not connect",
                "have the load balancer or proxy in between speak HTTP/2 (gRPC), or pass TLS through",
            )
        )
    return findings


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _issuer(certificate: Mapping[str, Any]) -> str:
    parts = {key: value for group in certificate.get("issuer", ()) for key, value in group}
    return str(parts.get("commonName") or parts.get("organizationName") or "an authority without a name")


#: OpenSSL's numbers for why a certificate is not believed (X509_V_ERR_...).
_NOT_YET, _EXPIRED, _WRONG_HOST, _WRONG_IP = 9, 10, 62, 64
_UNKNOWN_AUTHORITY: Final = (18, 19, 20, 21)


async def _distrusted(
    place: Place, problem: ssl.SSLCertVerificationError, files: TLSFiles, name: str
) -> Finding:
    """Why the server's certificate is not believed; with what it says, if it can be read."""
    seen = await _seen(place, name)
    code = problem.verify_code
    if code in (_EXPIRED, _NOT_YET):
        when = f" on {seen.end}" if code == _EXPIRED and seen else f" before {seen.begin}" if seen else ""
        state = "expired" if code == _EXPIRED else "is not valid yet: not"
        text = (
            f"the server's certificate {state}{when}"
            if code == _EXPIRED
            else f"the server's certificate is not valid{when}"
        )
        return error(text, "renew it on the server" if code == _EXPIRED else "is this machine's clock right?")
    if code in (_WRONG_HOST, _WRONG_IP):
        whom = f"; it is for {seen.names}" if seen else ""
        first = seen.names.split(", ")[0] if seen and seen.names else "NAME"
        return error(
            f"the server's certificate is not for {name}{whom}",
            f"use that name in the target, or --server-name {first.removeprefix('*.')}",
        )
    if code in _UNKNOWN_AUTHORITY:
        whom = f" (it is from {seen.issuer})" if seen else ""
        trusted = str(files.ca) if files.ca is not None else "the system"
        if seen and seen.self_signed:
            fix = "if you trust it, give that certificate as --ca FILE"
        else:
            fix = (
                "give the authority's certificate as --ca FILE; is it there, does the server send its chain?"
            )
        return error(f"the server's certificate is from no authority that {trusted} trusts{whom}", fix)
    return error(
        f"the server's certificate is not believed: {problem.verify_message}", "see openssl s_client -connect"
    )


@dataclass(frozen=True)
class _Certificate:
    """What a certificate that is not believed says."""

    names: str
    issuer: str
    begin: str
    end: str
    self_signed: bool


async def _seen(place: Place, name: str) -> _Certificate | None:
    """The certificate at `place`; None if it cannot be had, or read for lack of the extra ``tls``."""
    try:
        from cryptography import x509
    except ImportError:
        return None
    der = None
    with contextlib.suppress(OSError, asyncio.TimeoutError, _ProxyRefusedError):
        async with _limited(2.0), _streams(place, _blind(), name) as (_, writer):
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    if der is None:
        return None
    try:
        found = x509.load_der_x509_certificate(der)
    except ValueError:
        return None
    names: list[str] = []
    with contextlib.suppress(x509.ExtensionNotFound, ValueError):
        extension = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names += extension.get_values_for_type(x509.DNSName)
        names += map(str, extension.get_values_for_type(x509.IPAddress))
    return _Certificate(
        ", ".join(names) or "no host",
        found.issuer.rfc4514_string() or "nobody",
        _day(found.not_valid_before_utc),
        _day(found.not_valid_after_utc),
        found.issuer == found.subject,
    )


def _day(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def _client_certificate(problem: ssl.SSLError) -> Finding:
    reason = problem.reason or str(problem)
    if any(word in reason for word in ("CERTIFICATE_REQUIRED", "HANDSHAKE_FAILURE")):
        return error("the server wants a client certificate", "give --cert FILE and --key FILE")
    if any(
        word in reason for word in ("BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "DECRYPT_ERROR")
    ):
        return error(
            f"the server refuses the client's certificate ({reason})",
            "give one of an authority that it trusts",
        )
    return error(f"TLS failed: {reason}", "does the server support TLS 1.2 or newer?")
