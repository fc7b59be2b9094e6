"""Who the server is and who the caller is: TLS, client certificates, tokens, keys.

    AsyncClient("models.example.org:443", tls=TLS(ca="ca.pem"), credentials=Token(fetch_token))

`TLS` gives channel credentials, and new ones when the files they were made of change. `Credentials` give
the metadata that each call carries; a scheme of one's own is a subclass with one method. (gRPC's own
CallCredentials are not used: they leak memory with every grpc.aio call, grpc/grpc#43193.)

Decisions take their clock as an argument. Nothing here shows a secret in a repr, a log line or an error.
Opening connections and making calls, and what to do when one ends as UNAUTHENTICATED, is left to the
client, which asks `Credentials.invalidate` whether a second try is worth it.
"""

from __future__ import annotations

import abc
import asyncio
import concurrent.futures
import contextlib
import contextvars
import datetime
import importlib
import inspect
import logging
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar

import grpc

from aioserving import pem
from aioserving.errors import UnauthenticatedError

if TYPE_CHECKING:
    from aioserving._types import Metadata
    from aioserving.pem import PEM

__all__ = [
    "TLS",
    "APIKey",
    "CachedCredentials",
    "Combined",
    "Credentials",
    "Headers",
    "StaticToken",
    "Token",
    "TokenValue",
    "check_metadata",
    "check_plaintext",
    "connection_advice",
    "google_auth",
    "obtain",
]

_T = TypeVar("_T")

#: How long something is good for: seconds from now, a timedelta, or the moment at which it expires (with
#: a time zone). None: until the server refuses it.
Lifetime: TypeAlias = "float | datetime.timedelta | datetime.datetime | None"

#: What a token callable returns: the token, or the token and how long it is good for.
TokenValue: TypeAlias = "str | tuple[str, Lifetime]"

logger = logging.getLogger("aioserving.security")


# ------------------------------------------------------------------------------------------------------ TLS


@dataclass(frozen=True)
class _Generation:
    """Credentials, and the contents they were made of."""

    number: int
    credentials: grpc.ChannelCredentials
    contents: tuple[bytes | None, bytes | None, bytes | None]

    def __repr__(self) -> str:
        return f"<generation {self.number}>"


class TLS:
    """How connections are encrypted, whom they trust, and as whom they introduce themselves.

    ``TLS()`` trusts the authorities that the system trusts. All files are read, and checked, at once:
    what is wrong with them is told here and not by a connection that fails.

    Args:
        ca: certificates of the authorities to trust, instead of the system's: PEM text, bytes, or a path.
        certificate: the client's certificate, followed by those that lead to its authority, where
            servers ask for one (mutual TLS): PEM text, bytes or a path.
        key: its private key, not encrypted; not needed if the text of `certificate` has it too.
        server_name: the name to look for in the server's certificate, where it is not the one in the
            target. Over Unix sockets, which have no name, the default is ``localhost``.
        reload: seconds after which files that changed on disk are noticed; None: never. Contents given
            as text stay as they are.
        clock: seconds, monotonic.

    Raises:
        OSError: a file cannot be read.
        TypeError: an argument is neither PEM contents nor a path.
        ValueError: contents are not the PEM they should be, the key is not the certificate's, or one of
            the two is missing.
    """

    def __init__(
        self,
        ca: PEM | None = None,
        certificate: PEM | None = None,
        key: PEM | None = None,
        *,
        server_name: str | None = None,
        reload: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if key is not None and certificate is None:
            raise ValueError("key: a private key needs the certificate that belongs to it")
        if reload is not None and not reload >= 0:
            raise ValueError(f"reload must be a number of seconds, at least 0, or None; got {reload!r}")
        if server_name is not None and not re.fullmatch(r"[^\s/:]+|\[?[0-9A-Fa-f:.]+\]?", server_name):
            raise ValueError(f"server_name is a host name without a port, got {server_name!r}")
        self.server_name = server_name
        self._ca, self._certificate, self._key = ca, certificate, key
        self._clock = clock
        self._reload = reload
        self._lock = threading.Lock()
        self._files = [
            os.fspath(given)
            for given in (ca, certificate, key)
            if given is not None and reload is not None and pem.is_path(given)
        ]
        self._next_look = clock() + (reload or 0.0) if self._files else math.inf
        self._seen = self._stat()
        contents = self._read()
        self._generation = _Generation(1, grpc.ssl_channel_credentials(*contents), contents)

    @property
    def generation(self) -> int:
        """A number that grows when files changed and connections should be made anew."""
        if self._clock() >= self._next_look:
            self._look()
        return self._generation.number

    @property
    def mutual(self) -> bool:
        """Whether there is a client certificate."""
        return self._certificate is not None

    def current(self, target: str = "") -> tuple[grpc.ChannelCredentials, list[tuple[str, str]], int]:
        """What to open a connection to `target` with, now.

        Returns:
            The credentials, the channel arguments that belong to them, and the `generation`.
        """
        if self._clock() >= self._next_look:
            self._look()
        name = self.server_name
        if name is None and target.startswith(("unix:", "unix-abstract:")):
            name = "localhost"  # as gRPC had it once; today it would look for the escaped path
        # The first is what is looked for in the certificate, the second what a proxy sees.
        options = [] if name is None else [(_NAME_OVERRIDE, name), ("grpc.default_authority", name)]
        found = self._generation
        return found.credentials, options, found.number

    def __repr__(self) -> str:
        trusts = "the system's authorities" if self._ca is None else pem.source(self._ca)
        mine = "" if self._certificate is None else f", certificate {pem.source(self._certificate)}"
        name = "" if self.server_name is None else f", for {self.server_name}"
        return f"<TLS trusting {trusts}{mine}{name}, generation {self._generation.number}>"

    def _look(self) -> None:
        """See whether files changed; if they make sense, go on with them."""
        with self._lock:
            now = self._clock()
            if now < self._next_look:
                return  # another thread did
            self._next_look = now + (self._reload or 0.0)
            seen = self._stat()
            if seen == self._seen:
                return
            # Looked at before they are read: what changes meanwhile is a difference next time.
            self._seen = seen
            try:
                contents = self._read()
            except (OSError, ValueError) as error:
                # Perhaps half of a rotation; the other half changes a file again.
                logger.warning("%r goes on with what it has: %s", self, error)
                return
            if contents != self._generation.contents:
                number = self._generation.number + 1
                self._generation = _Generation(number, grpc.ssl_channel_credentials(*contents), contents)
                logger.info("%r: files have changed", self)

    def _stat(self) -> list[tuple[int, int, int, int] | None]:
        """What tells a changed file, or a link that was moved, from the one that was there."""
        found: list[tuple[int, int, int, int] | None] = []
        for path in self._files:
            try:
                stat = os.stat(path)
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return found

    def _read(self) -> tuple[bytes | None, bytes | None, bytes | None]:
        """Roots, key and certificates, as gRPC takes them."""
        roots = _system_roots() if self._ca is None else None
        if self._ca is not None:
            roots = _joined(pem.certificates(pem.read(self._ca, "ca"), "ca"))
        if self._certificate is None:
            return roots, None, None
        text = pem.read(self._certificate, "certificate")
        chain = pem.certificates(text, "certificate")
        if self._key is not None:
            key = pem.private_key(pem.read(self._key, "key"), "key")
        elif "PRIVATE KEY-----" in text:
            key = pem.private_key(text, "certificate")
        else:
            raise ValueError("certificate: it needs the private key that belongs to it; give key=")
        pem.check_pair(chain, key, "certificate and key")
        return roots, key.text.encode(), _joined(chain)


_NAME_OVERRIDE: Final = "grpc.ssl_target_name_override"


def _joined(blocks: list[pem.Block]) -> bytes:
    return "".join(block.text for block in blocks).encode()


def _system_roots() -> bytes | None:
    """The authorities that the system trusts; None for those that come with gRPC.

    Left to itself, gRPC in Python trusts a list of its own, without what a company added to the system's.
    """
    if os.environ.get("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"):
        return None  # which gRPC reads itself
    path = ssl.get_default_verify_paths().cafile
    if path is not None:
        try:
            with open(path, "rb") as file:
                return file.read() or None
        except OSError:
            return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # Windows keeps them elsewhere
    context.load_default_certs()
    found = context.get_ca_certs(binary_form=True)
    return "".join(map(ssl.DER_cert_to_PEM_cert, found)).encode() or None


_ADVICE: Final = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (r"certificate has expired", "the server's certificate has expired"),
        (r"certificate is not yet valid", "the server's certificate is not valid yet; is the clock right?"),
        (
            r"CERTIFICATE_VERIFY_FAILED",
            "the server's certificate is not from an authority that this client trusts; give that "
            "authority's certificate as TLS(ca=...)",
        ),
        (
            r"(?i)hostname verification check failed|is not in peer certificate",
            "the server's certificate is not for the name in the target; call it by a name that it is for, "
            "or give that name as TLS(server_name=...)",
        ),
        (r"WRONG_VERSION_NUMBER", "the server does not speak TLS on this port"),
        (
            r"CERTIFICATE_REQUIRED|BAD_CERTIFICATE|UNKNOWN_CA|CERTIFICATE_UNKNOWN",
            "the server refuses the client's certificate, or the lack of one; see TLS(certificate=, key=)",
        ),
    )
)


def connection_advice(details: str, tls: TLS | None) -> str:
    """What a connection's failure has to do with TLS, in plain words; an empty string: nothing.

    Args:
        details: what gRPC said, as the details of a status with the code UNAVAILABLE.
        tls: how the connection was to be encrypted; None: not at all.
    """
    for pattern, advice in _ADVICE if tls is not None else ():
        if pattern.search(details):
            return advice
    if not re.search(r"failed to connect.*(Socket closed|Connection reset)", details, re.DOTALL):
        return ""  # a connection that was lost later is another matter
    if tls is None:
        return "the server closed the connection at once: perhaps it speaks TLS only; see tls=TLS(...)"
    if not tls.mutual:
        return (
            "the server closed the connection at once: perhaps it wants a client certificate; see "
            "TLS(certificate=, key=)"
        )
    return "the server closed the connection at once: perhaps it does not accept the client's certificate"


# ------------------------------------------------------------------------------------------------- metadata

_HEADER: Final = re.compile(r"[0-9a-z_.-]+")
#: Headers that belong to gRPC and HTTP/2.
_RESERVED: Final = frozenset({"connection", "content-type", "host", "te", "transfer-encoding", "user-agent"})


def check_metadata(pairs: Metadata) -> Metadata:
    """`pairs` as a tuple, if gRPC can send them; no error shows a value.

    Raises:
        TypeError: a header's value is neither text nor bytes, or not what its name says it is.
        ValueError: a name is not lower-case letters, digits and ``_.-``, or belongs to gRPC; or a text has
            characters besides printable ASCII, or spaces at its ends.
    """
    checked = []
    for name, value in pairs:
        _check_header(name)
        if name.endswith("-bin"):
            if not isinstance(value, bytes):
                raise TypeError(f"header {name!r}: a name with -bin is for bytes, not {type(value).__name__}")
        elif not isinstance(value, str):
            advice = f"; bytes are sent as {name}-bin" if isinstance(value, bytes) else ""
            raise TypeError(f"header {name!r}: expected text, got {type(value).__name__}{advice}")
        elif (problem := _problem_of(value)) is not None:
            raise ValueError(f"header {name!r}: its value {problem}")
        checked.append((name, value))
    return tuple(checked)


def _check_header(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the name of a header is text, got {type(name).__name__}")
    if not _HEADER.fullmatch(name):
        advice = f" (lower case: {name.lower()!r})" if _HEADER.fullmatch(name.lower()) else ""
        raise ValueError(f"header {name!r}: names are lower-case letters, digits and _.-{advice}")
    if name.startswith("grpc-") or name in _RESERVED:
        raise ValueError(f"header {name!r}: the name is reserved for gRPC itself")


def _problem_of(text: str) -> str | None:
    """Why `text` cannot be a header's value, or None."""
    if text != text.strip():
        return "begins or ends with white space (from a file? strip() it)"
    if any(not " " <= character <= "~" for character in text):
        return "has characters besides printable ASCII"
    return None


def _authorization(scheme: str, token: str) -> str:
    """The value of an authorization header; no error shows the token."""
    if not isinstance(token, str):
        raise TypeError(f"a token is text, got {type(token).__name__}")
    if not token:
        raise ValueError("the token is empty")
    problem = _problem_of(token) or ("has white space in it" if " " in token else None)
    if problem is not None:
        raise ValueError(f"the token {problem}")
    return f"{scheme} {token}" if scheme else token


# ---------------------------------------------------------------------------------------------- credentials


class Credentials(abc.ABC):
    """As whom calls are made: the metadata that each of them carries.

    A scheme of one's own overrides `metadata`; if it has to wait for something, `refresh` as well, or it
    is a `CachedCredentials` instead:

        class Signed(Credentials):
            def __init__(self, secret: bytes) -> None:
                self._secret = secret

            def metadata(self) -> Metadata:
                now = str(int(time.time()))
                signature = hmac.digest(self._secret, now.encode(), "sha256")
                return (("x-time", now), ("x-signature", signature.hex()))

    Attributes:
        allow_plaintext: whether they may be sent without TLS, where everybody on the way can read them.
    """

    allow_plaintext: bool = False

    @abc.abstractmethod
    def metadata(self) -> Metadata | None:
        """What to send with a call that starts now; None: not at hand, wait for `refresh`.

        Asked for every call, so it is quick. A tuple that stays the same is best.
        """

    async def refresh(self) -> None:
        """Make sure that `metadata` has something to give; several callers may wait at once.

        Raises:
            UnauthenticatedError: there is nothing to be had.
        """
        return

    def invalidate(self, sent: Metadata) -> bool:
        """The server refused `sent`, which `metadata` gave, as UNAUTHENTICATED.

        Returns:
            Whether a second try may end better, since there is, or will be, something else to send.
        """
        return False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # whatever a subclass holds


async def obtain(credentials: Credentials) -> Metadata:
    """What to send with a call, after waiting for it if it is not at hand.

    Raises:
        UnauthenticatedError: there is nothing to be had.
    """
    pairs = credentials.metadata()
    if pairs is None:
        await credentials.refresh()
        pairs = credentials.metadata()
        if pairs is None:
            raise UnauthenticatedError(f"{credentials!r} has nothing to send, even after a refresh")
    return pairs


def check_plaintext(credentials: Credentials | None, *, secure: bool) -> None:
    """Refuse to send credentials where everybody on the way can read them.

    It makes no difference that a target looks local: a port of this machine may be a tunnel or a proxy.

    Args:
        credentials: what calls would carry, or None.
        secure: whether all connections are TLS.

    Raises:
        ValueError: they are not, and the credentials do not allow that.
    """
    if credentials is not None and not secure and not credentials.allow_plaintext:
        raise ValueError(
            f"{credentials!r} would be sent in plain text, which everybody on the way can read: give "
            "tls=TLS(...), or, if the network is to be trusted, allow_plaintext=True to "
            f"{type(credentials).__name__}"
        )


class Headers(Credentials):
    """The same metadata with every call.

    Args:
        headers: values by name; bytes under names that end in ``-bin``.
        allow_plaintext: send them without TLS, too.

    Raises:
        TypeError: see `check_metadata`.
        ValueError: see `check_metadata`.
    """

    def __init__(self, headers: Mapping[str, str | bytes], *, allow_plaintext: bool = False) -> None:
        self._pairs = check_metadata(tuple(headers.items()))
        self.allow_plaintext = allow_plaintext

    def metadata(self) -> Metadata:
        """The headers."""
        return self._pairs

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(name for name, _ in self._pairs)}>"


class StaticToken(Headers):
    """A token that never changes, as ``authorization: Bearer TOKEN``.

    Args:
        token: the token.
        scheme: what stands before it; an empty string: nothing.
        header: the header to send it in.
        allow_plaintext: send it without TLS, too.

    Raises:
        TypeError: the token is no text.
        ValueError: the token is empty or has white space in it, or `header` is no header's name.
    """

    def __init__(
        self,
        token: str,
        scheme: str = "Bearer",
        *,
        header: str = "authorization",
        allow_plaintext: bool = False,
    ) -> None:
        super().__init__({header: _authorization(scheme, token)}, allow_plaintext=allow_plaintext)


class APIKey(StaticToken):
    """A key in a header of its own, ``x-api-key`` by default.

    Args:
        key: the key.
        header: the header to send it in.
        allow_plaintext: send it without TLS, too.

    Raises:
        TypeError: the key is no text.
        ValueError: the key is empty or has white space in it, or `header` is no header's name.
    """

    def __init__(self, key: str, header: str = "x-api-key", *, allow_plaintext: bool = False) -> None:
        super().__init__(key, "", header=header, allow_plaintext=allow_plaintext)


class Combined(Credentials):
    """Several credentials at once, such as a token and an API key; they go out in their order.

    Plaintext is allowed if all of them allow it.
    """

    def __init__(self, *credentials: Credentials) -> None:
        if not credentials:
            raise ValueError("Combined() needs credentials to combine")
        self.credentials = credentials
        self.allow_plaintext = all(item.allow_plaintext for item in credentials)
        self._last: tuple[tuple[Metadata, ...], Metadata] = ((), ())

    def metadata(self) -> Metadata | None:
        """What all of them give; None if one has nothing at hand."""
        parts, joined = self._last
        if parts:
            for item, part in zip(self.credentials, parts):  # noqa: B905 - as many, and strict costs time
                if item.metadata() is not part:
                    break
            else:
                return joined
        found = [item.metadata() for item in self.credentials]
        parts = tuple(part for part in found if part is not None)
        if len(parts) < len(found):
            return None
        joined = tuple(pair for part in parts for pair in part)
        self._last = (parts, joined)
        return joined

    async def refresh(self) -> None:
        """Refresh those that have nothing at hand."""
        for item in self.credentials:
            if item.metadata() is None:
                await item.refresh()

    def invalidate(self, sent: Metadata) -> bool:
        """See `Credentials.invalidate`; one that can get something else is enough."""
        parts, joined = self._last
        if tuple(sent) != joined:
            return True  # they are different ones by now
        again = [item.invalidate(part) for item, part in zip(self.credentials, parts, strict=True)]
        return any(again)

    def __repr__(self) -> str:
        return f"<Combined {', '.join(map(repr, self.credentials))}>"


#: Seconds before the end within which nothing is sent any more: a call takes time to arrive.
_LEEWAY: Final = 5.0
#: Seconds between two refusals that make something new be fetched: a server that refuses the new one,
#: too, would refuse the next one.
_REFUSALS: Final = 1.0
#: Seconds between failed attempts: the first, and the most after doubling.
_BACKOFF: Final = (0.5, 30.0)
#: Seconds that cannot be a lifetime: ten years. What is larger is a point in time, meant as one.
_TOO_LONG: Final = 10 * 365 * 86400.0


class _Refresh:
    """One attempt to fetch something, which any number of callers on any event loop wait for."""

    __slots__ = ("future", "loop", "pid", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        #: Done when the attempt is; its result is the error, or None.
        self.future: concurrent.futures.Future[BaseException | None] = concurrent.futures.Future()
        self.future.set_running_or_notify_cancel()  # from here on nobody can cancel it
        self.loop = loop
        self.pid = os.getpid()
        self.task: asyncio.Task[None] | None = None

    def alive(self) -> bool:
        """Whether it may still end: not if it has, if its loop was closed, or in a forked process."""
        return not self.future.done() and not self.loop.is_closed() and self.pid == os.getpid()


class CachedCredentials(Credentials):
    """Credentials that are fetched, kept until they expire, and renewed in the background before.

    A subclass has `fetch`. However many calls, event loops and threads need credentials, there is one
    attempt at a time, which all of them wait for; a caller that is cancelled leaves it running. While
    what is there is still valid, nobody waits and a failed attempt changes nothing; failed attempts are
    repeated at growing intervals, in between callers without credentials fail at once.

    Args:
        early: seconds before the end from which they are renewed; at most half of their lifetime.
        timeout: seconds that `fetch` may take.
        allow_plaintext: send them without TLS, too.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970; used where `fetch` tells a point in time.
    """

    def __init__(
        self,
        *,
        early: float = 60.0,
        timeout: float = 30.0,
        allow_plaintext: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        for name, value in (("early", early), ("timeout", timeout)):
            if not value >= 0:
                raise ValueError(f"{name} must be a number of seconds, at least 0; got {value!r}")
        self.allow_plaintext = allow_plaintext
        self._early = early
        self._timeout = timeout
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._pairs: Metadata | None = None
        self._refresh_at = -math.inf  # until then `metadata` has nothing to think about
        self._valid_until = -math.inf
        self._refused_at = -math.inf
        self._retry_at = -math.inf  # no attempt before, after one that failed
        self._failures = 0
        self._failure: BaseException | None = None
        self._refreshing: _Refresh | None = None

    @abc.abstractmethod
    async def fetch(self) -> tuple[Metadata, Lifetime]:
        """New metadata, and how long it is good for. Whatever it raises is a failed attempt."""

    def metadata(self) -> Metadata | None:
        """What is valid now; None: nothing, wait for `refresh`. Starts renewing it when that is due."""
        if self._clock() < self._refresh_at:
            return self._pairs
        return self._due()

    def _due(self) -> Metadata | None:
        now, pairs = self._clock(), self._pairs
        if now >= self._valid_until:
            return None
        if now >= self._retry_at:
            with contextlib.suppress(RuntimeError):  # not on an event loop; a later call will be
                self._start(asyncio.get_running_loop())
        return pairs

    async def refresh(self) -> None:
        """Return when there is something valid to send.

        Raises:
            UnauthenticatedError: fetching it failed, or failed a moment ago; the cause says how.
        """
        for _ in range(2):  # a second time where the first attempt went down with its event loop
            now = self._clock()
            if now < self._refresh_at:
                return
            running = self._refreshing
            if running is None or not running.alive():
                if now < self._retry_at:
                    break
                running = self._start(asyncio.get_running_loop())
            waiter = asyncio.wrap_future(running.future)
            try:
                await asyncio.wait((waiter,), timeout=self._timeout + 1.0)
            finally:
                waiter.cancel()  # which lets go of the attempt, and cannot cancel it
            if not running.future.done() or not isinstance(running.future.result(), asyncio.CancelledError):
                break
        if self._clock() < self._valid_until:
            return
        raise UnauthenticatedError(
            f"{self!r}: fetching credentials failed ({_kind(self._failure)})"
        ) from self._failure

    def invalidate(self, sent: Metadata) -> bool:
        """See `Credentials.invalidate`; what has just replaced something refused is kept."""
        with self._lock:
            if self._pairs is None or tuple(sent) != self._pairs:
                return True  # renewed, or dropped, meanwhile
            now = self._clock()
            if now - self._refused_at < _REFUSALS:
                return False
            self._refused_at = now
            self._refresh_at = self._valid_until = -math.inf
            self._pairs = None
            return True

    def _start(self, loop: asyncio.AbstractEventLoop) -> _Refresh:
        """The attempt that is under way, begun now if there is none."""
        with self._lock:
            running = self._refreshing
            if running is not None and running.alive():
                return running
            running = self._refreshing = _Refresh(loop)
        task = running.task = loop.create_task(self._attempt(running))
        task.add_done_callback(lambda task: _abandoned(running, task))
        return running

    async def _attempt(self, running: _Refresh) -> None:
        started = self._clock()
        try:
            pairs, lifetime = await asyncio.wait_for(self.fetch(), self._timeout)
            self._take(check_metadata(pairs), _seconds(lifetime, self._wall_clock), started)
        except Exception as error:
            with self._lock:
                self._failure = error
                self._failures += 1
                first, most = _BACKOFF
                self._retry_at = self._clock() + min(first * 2 ** min(self._failures - 1, 30), most)
            logger.warning("%r: fetching credentials failed (%s)", self, _kind(error))
            running.future.set_result(error)
        else:
            running.future.set_result(None)

    def _take(self, pairs: Metadata, lifetime: float, started: float) -> None:
        """Go on with new metadata, whose lifetime counts from before it was asked for."""
        valid_until = started + lifetime - min(_LEEWAY, lifetime / 10)
        refresh_at = min(valid_until, started + lifetime - min(self._early, lifetime / 2))
        now = self._clock()
        if now >= valid_until:
            raise ValueError("what was fetched has expired already")
        with self._lock:
            # In this order: `metadata` reads without the lock.
            self._pairs, self._valid_until, self._refresh_at = pairs, valid_until, refresh_at
            self._retry_at, self._failures, self._failure = -math.inf, 0, None

    def __repr__(self) -> str:
        left = self._valid_until - self._clock()
        state = "nothing valid" if left <= 0 else "valid" if left == math.inf else f"valid for {left:.0f} s"
        failed = f", {self._failures} failed attempts" if self._failures else ""
        return f"<{self._name()}: {state}{failed}>"

    def _name(self) -> str:
        return type(self).__name__


def _abandoned(running: _Refresh, task: asyncio.Task[None]) -> None:
    """The attempt ended without an outcome: its event loop is ending, or ``fetch`` cancelled itself."""
    if not running.future.done():
        running.future.set_result(asyncio.CancelledError())
    if not task.cancelled():
        task.exception()  # told to those who wait


def _kind(error: BaseException | None) -> str:
    """What sort of error; its text may quote a request with a secret in it."""
    return "cancelled, or no answer in time" if error is None else type(error).__name__


def _seconds(lifetime: Lifetime, wall_clock: Callable[[], float]) -> float:
    """A lifetime as seconds from now."""
    if lifetime is None:
        return math.inf
    if isinstance(lifetime, datetime.datetime):
        if lifetime.tzinfo is None:
            raise ValueError("the moment of expiry needs a time zone: datetime.now(timezone.utc) + ...")
        return lifetime.timestamp() - wall_clock()
    if isinstance(lifetime, datetime.timedelta):
        return lifetime.total_seconds()
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        raise TypeError(f"a lifetime is seconds, a timedelta or a datetime, got {type(lifetime).__name__}")
    if not lifetime < _TOO_LONG:
        raise ValueError(
            f"a number is the seconds that are left, and {lifetime!r} are more than ten years; give a point "
            "in time as datetime.fromtimestamp(..., timezone.utc)"
        )
    return float(lifetime)


class Token(CachedCredentials):
    """A token that a function gives, as ``authorization: Bearer TOKEN``; see `CachedCredentials`.

        async def fetch_token():
            answer = await session.post(url, data=secret)
            return answer["access_token"], answer["expires_in"]

        Token(fetch_token)
        Token(lambda: Path("/run/secrets/token").read_text().strip(), lifetime=60)

    Args:
        function: gives the token, or the token and its lifetime: seconds from now, a `timedelta`, or the
            moment of expiry as a `datetime` with a time zone. One that is not async runs in a thread.
        scheme: what stands before the token; an empty string: nothing.
        lifetime: that of tokens which come without one; None: until the server refuses them.
        header: the header to send it in.
        early: see `CachedCredentials`, as for the rest.
        timeout: seconds that the function may take. A thread that takes longer is left to itself.
        allow_plaintext: send it without TLS, too.
        clock: seconds, monotonic.
        wall_clock: seconds since 1970.

    Raises:
        TypeError: `function` cannot be called.
        ValueError: `header` is no header's name, or a number of seconds is negative.
    """

    def __init__(
        self,
        function: Callable[[], TokenValue | Awaitable[TokenValue]],
        *,
        scheme: str = "Bearer",
        lifetime: float | datetime.timedelta | None = None,
        header: str = "authorization",
        early: float = 60.0,
        timeout: float = 30.0,
        allow_plaintext: bool = False,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(
            early=early,
            timeout=timeout,
            allow_plaintext=allow_plaintext,
            clock=clock,
            wall_clock=wall_clock,
        )
        if not callable(function):
            raise TypeError(
                f"Token() takes a function that gives a token, got {type(function).__name__}"
                + ("; a fixed token is StaticToken(token)" if isinstance(function, str) else "")
            )
        _check_header(header)
        _seconds(lifetime, wall_clock)
        self._function = function
        self._scheme, self._header, self._lifetime = scheme, header, lifetime

    async def fetch(self) -> tuple[Metadata, Lifetime]:
        """The header with a new token, and its lifetime."""
        if _is_async(self._function):
            value: Any = await self._function()  # type: ignore[misc]
        else:
            value = await _in_thread(self._function)
            if inspect.isawaitable(value):
                value = await value
        lifetime: Lifetime = self._lifetime
        if isinstance(value, tuple):
            if len(value) != 2:
                raise TypeError(f"a token comes alone or with its lifetime, got a tuple of {len(value)}")
            value, lifetime = value
        return ((self._header, _authorization(self._scheme, value)),), lifetime

    def _name(self) -> str:
        # Not its repr: that of a partial has the arguments in it.
        return f"Token of {getattr(self._function, '__qualname__', type(self._function).__name__)}"


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
    )


async def _in_thread(function: Callable[[], _T]) -> _T:
    """What `function` returns, from a thread that nothing has to wait for, not even the process's end."""
    future: concurrent.futures.Future[_T] = concurrent.futures.Future()
    context = contextvars.copy_context()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = context.run(function)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run, name="aioserving token", daemon=True).start()
    return await asyncio.wrap_future(future)


class _GoogleAuth(CachedCredentials):
    """Credentials of google-auth, which know how to renew themselves, blocking."""

    def __init__(self, credentials: Any, request: Any, **options: Any) -> None:
        super().__init__(**options)
        self._credentials = credentials
        self._request = request
        self._used = False

    async def fetch(self) -> tuple[Metadata, Lifetime]:
        return await _in_thread(self._fetch)

    def _fetch(self) -> tuple[Metadata, Lifetime]:
        credentials = self._credentials
        if self._used or not credentials.valid:
            credentials.refresh(self._request)
        self._used = True
        headers: dict[str, str] = {}
        credentials.apply(headers)
        expiry: datetime.datetime | None = credentials.expiry
        if expiry is not None and expiry.tzinfo is None:  # theirs are UTC
            expiry = expiry.replace(tzinfo=datetime.timezone.utc)
        return tuple((name.lower(), value) for name, value in headers.items()), expiry

    def _name(self) -> str:
        return f"google_auth {type(self._credentials).__name__}"


def google_auth(
    credentials: Any,
    *,
    request: Any = None,
    early: float = 240.0,
    timeout: float = 30.0,
    allow_plaintext: bool = False,
) -> CachedCredentials:
    """Credentials of the google-auth library, such as ``google.auth.default()[0]``; see `CachedCredentials`.

    Args:
        credentials: a `google.auth.credentials.Credentials`: of a service account, of the metadata
            server, of workload identity, an ID token, ...
        request: what they renew themselves with; by default ``google.auth.transport.requests.Request()``.
        early: seconds before the end from which they are renewed.
        timeout: seconds that renewing may take.
        allow_plaintext: send them without TLS, too.

    Raises:
        ImportError: google-auth is not installed (the extra ``google``).
        TypeError: not google-auth's credentials.
    """
    for name in ("refresh", "apply", "valid", "expiry"):
        if not hasattr(credentials, name):
            raise TypeError(
                f"google_auth() takes google.auth credentials, got {type(credentials).__name__}"
                + ("; google.auth.default() gives a pair, take its first" * isinstance(credentials, tuple))
            )
    if request is None:
        try:
            request = importlib.import_module("google.auth.transport.requests").Request()
        except ImportError as error:
            raise ImportError(
                "google_auth() needs google-auth and requests: pip install 'aioserving[google]'"
            ) from error
    return _GoogleAuth(credentials, request, early=early, timeout=timeout, allow_plaintext=allow_plaintext)
