"""Who may call a server: grpc.aio interceptors for tokens, API keys and client certificates.

    grpc.aio.server(interceptors=[Authentication(Tokens({"s3cret": Grant("joe")}), ClientCertificates())])

For `aioserving.repository`'s service, for services of one's own, and for the testing server, as a proxy in
front of the real one would be (which has no such thing itself): `aioserving.testing.security` has the same
names. What is missing or not valid ends as UNAUTHENTICATED, a known caller without the right as
PERMISSION_DENIED; health checks need nothing, unless they are to. Secrets are compared in constant time and
are in no repr, log line or error. What clients send is `aioserving.security`; nothing of that is imported
here.
"""

from __future__ import annotations

import abc
import contextlib
import contextvars
import hashlib
import hmac
import inspect
import json
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

__all__ = [
    "APIKeys",
    "Authentication",
    "Call",
    "ClientCertificates",
    "Grant",
    "Identity",
    "Refused",
    "Scheme",
    "Tokens",
    "Verify",
    "current_identity",
    "write_tokens",
]

logger = logging.getLogger("aioserving.server_security")

#: The service that load balancers ask, which have no credentials.
_HEALTH: Final = "/grpc.health.v1.Health/"


@dataclass(frozen=True)
class Identity:
    """Who calls, once that is certain."""

    #: The caller's name.
    name: str
    #: How it is known: ``"token"``, ``"API key"`` or ``"certificate"``.
    scheme: str
    #: Short names of the methods that may be called (``"Predict"``); None: all.
    methods: frozenset[str] | None = None


@dataclass(frozen=True)
class Grant:
    """What a token or key is good for; the secret itself is not in here."""

    #: Whom it was given to.
    name: str = "caller"
    #: The moment it ends, in seconds since 1970; None: never.
    expires_at: float | None = None
    #: Short names of the methods that may be called with it; None: all.
    methods: frozenset[str] | None = None


#: Says whose a token is, or None: nobody's; sync (and quick) or async.
Verify: TypeAlias = "Callable[[str], Grant | Awaitable[Grant | None] | None]"


class Refused(Exception):  # noqa: N818 - an outcome, told to the caller with its code
    """A call is not let in.

    Attributes:
        code: the status code.
        details: what the caller is told.
    """

    def __init__(self, details: str, code: grpc.StatusCode = grpc.StatusCode.UNAUTHENTICATED) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass(frozen=True)
class Call:
    """What is known of a call before it is let in; the repr leaves out what it carries."""

    #: The full method, ``/package.Service/Method``.
    method: str
    #: Its metadata.
    metadata: tuple[tuple[str, str | bytes], ...]
    #: What TLS knows of the caller: `grpc.aio.ServicerContext.auth_context`; None: not asked yet.
    auth_context: Mapping[str, Iterable[bytes]] | None = None

    def __repr__(self) -> str:
        return f"<Call of {self.method}>"

    def header(self, name: str) -> str | None:
        """The value of a header, or None.

        Raises:
            Refused: the header came several times, which may mean different things to different readers.
        """
        values = [value for key, value in self.metadata if key == name]
        if not values:
            return None
        if len(values) > 1 or not isinstance(values[0], str):
            raise Refused(f"{name} is to be sent once, as text")
        return values[0]


class Scheme(abc.ABC):
    """One way to prove who one is."""

    #: What a caller without credentials is told to send.
    expected: str

    #: Whether `identify` needs `Call.auth_context`.
    needs_context: bool = False

    @abc.abstractmethod
    async def identify(self, call: Call) -> Identity | None:
        """Who calls; None: the call has no credentials of this kind.

        Raises:
            Refused: it has, and they are not valid.
        """


class Tokens(Scheme):
    """``authorization: Bearer TOKEN``.

    Args:
        known: the tokens: a collection of them, a mapping of tokens to what they are good for, a function
            that says so (of another service, say), or the path of a file as `write_tokens` makes it,
            which is read again when it changes: a token that is taken out is refused from then on.
        scheme: what stands before the token; an empty string: nothing.
        header: the header it comes in, in lower case.
        clock: seconds since 1970.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not what `write_tokens` makes, or a token is empty.
    """

    #: What is proven with, for errors.
    noun = "token"

    def __init__(
        self,
        known: Iterable[str] | Mapping[str, Grant] | Verify | str | os.PathLike[str],
        *,
        scheme: str = "Bearer",
        header: str = "authorization",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.expected = (
            f"{header}: {scheme} {self.noun.upper()}" if scheme else f"{header}: {self.noun.upper()}"
        )
        self._scheme, self._header, self._clock = scheme, header, clock
        self._key = secrets.token_bytes(16)
        self._verify: Verify | None = None
        self._path: str | None = None
        self._seen: tuple[int, ...] = ()
        self._grants: list[tuple[bytes, Grant]] = []
        if callable(known):
            self._verify = known
        elif isinstance(known, str | os.PathLike):
            self._path = os.fspath(known)
            self._seen = _stat(self._path)
            self._grants = self._digested(_read_tokens(self._path))
        else:
            grants = known if isinstance(known, Mapping) else dict.fromkeys(known, Grant())
            self._grants = self._digested(grants)

    async def identify(self, call: Call) -> Identity | None:
        """See `Scheme.identify`."""
        value = call.header(self._header)
        if value is None:
            return None
        if self._scheme:
            scheme, _, value = value.partition(" ")
            if scheme.lower() != self._scheme.lower():
                raise Refused(f"expected {self.expected}")
        grant = await self._grant(value.strip())
        if grant is None:
            raise Refused(f"the {self.noun} is not valid")
        if grant.expires_at is not None and self._clock() >= grant.expires_at:
            raise Refused(f"the {self.noun} has expired")
        return Identity(grant.name, self.noun, grant.methods)

    async def _grant(self, value: str) -> Grant | None:
        if self._verify is not None:
            try:
                found = self._verify(value)
                return await found if inspect.isawaitable(found) else found
            except Refused:
                raise
            except Exception as error:
                # Its text may quote the token.
                logger.error("verifying a %s failed (%s)", self.noun, type(error).__name__)
                raise Refused(
                    f"the {self.noun} cannot be verified now", grpc.StatusCode.UNAVAILABLE
                ) from None
        self._look()
        digest = self._digest(value)
        found = None
        for known, grant in self._grants:  # all of them: how long it takes says nothing
            if hmac.compare_digest(known, digest):
                found = grant
        return found

    def _look(self) -> None:
        """Read the file again if it has changed; while it makes no sense nobody gets in."""
        if self._path is None:
            return
        try:
            seen = _stat(self._path)
            if seen == self._seen:
                return
            self._grants = self._digested(_read_tokens(self._path))
            self._seen = seen
        except (OSError, ValueError) as error:
            logger.error("%s", error)
            raise Refused(f"the {self.noun} cannot be verified now", grpc.StatusCode.UNAVAILABLE) from None

    def _digest(self, value: str) -> bytes:
        # Digests are of one length; compared as they are, the lengths would tell.
        return hashlib.blake2b(value.encode(), key=self._key).digest()

    def _digested(self, grants: Mapping[str, Grant]) -> list[tuple[bytes, Grant]]:
        if not all(grants):
            raise ValueError(f"a {self.noun} is empty")
        return [(self._digest(secret), grant) for secret, grant in grants.items()]

    def __repr__(self) -> str:
        where = f" from {self._path}" if self._path else ""
        known = "verified by a function" if self._verify else f"{len(self._grants)} known{where}"
        return f"<{type(self).__name__} in {self._header}, {known}>"


class APIKeys(Tokens):
    """A key in a header of its own; arguments and errors are those of `Tokens`."""

    noun = "API key"

    def __init__(
        self,
        known: Iterable[str] | Mapping[str, Grant] | Verify | str | os.PathLike[str],
        *,
        header: str = "x-api-key",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(known, scheme="", header=header, clock=clock)


class ClientCertificates(Scheme):
    """The certificate that mutual TLS has verified already; who it is for is looked at here.

    Args:
        names: the callers that are known, by a name in subjectAltName or, in a certificate without such
            names, by its common name; None: whoever has a certificate of the authority.
    """

    expected = "a client certificate"
    needs_context = True

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self.names = None if names is None else frozenset(names)

    async def identify(self, call: Call) -> Identity | None:
        """See `Scheme.identify`."""
        context = call.auth_context or {}
        names = [name.decode(errors="replace") for name in context.get("x509_subject_alternative_name", ())]
        if not names:
            names = [name.decode(errors="replace") for name in context.get("x509_common_name", ())]
        if not names:
            return None
        for name in names:
            if self.names is None or name in self.names:
                return Identity(name, "certificate")
        raise Refused(f"the client certificate is for {names[0]}, who is not known here")

    def __repr__(self) -> str:
        return f"<ClientCertificates of {'anybody' if self.names is None else ', '.join(sorted(self.names))}>"


_identity: contextvars.ContextVar[Identity | None] = contextvars.ContextVar("identity", default=None)


def current_identity() -> Identity | None:
    """Who calls, asked by the handler of a call; None: nobody had to prove it."""
    return _identity.get()


class Authentication(grpc.aio.ServerInterceptor):
    """Lets in who can prove, by any one of the schemes, who they are, and may call what they call.

    The first scheme that a call has credentials for decides; wrong credentials are not made good by those
    of another scheme.

    Args:
        schemes: ways to prove it, in the order they are tried.
        allow: whether a caller may call a method (``/package.Service/Method``), on top of what the
            token's own `Grant` says.
        health: whether health checks need credentials, too.

    With a scheme that looks at certificates, the handlers have to be async.
    """

    def __init__(
        self,
        *schemes: Scheme,
        allow: Callable[[Identity, str], bool] | None = None,
        health: bool = False,
    ) -> None:
        if not schemes:
            raise ValueError("Authentication() needs a scheme")
        self.schemes = schemes
        self._allow = allow
        self._health = health
        self._by_metadata = [scheme for scheme in schemes if not scheme.needs_context]

    def __repr__(self) -> str:
        return f"<Authentication by {', '.join(map(repr, self.schemes))}>"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of a call that is let in, or one that refuses it; grpc's business."""
        method = handler_call_details.method
        if method.startswith(_HEALTH) and not self._health:
            return await continuation(handler_call_details)
        call = Call(method, tuple(handler_call_details.invocation_metadata or ()))
        if len(self._by_metadata) < len(self.schemes):
            handler = await continuation(handler_call_details)
            return None if handler is None else _guarded(handler, call, self.admit)
        try:
            _identity.set(await self.admit(call))
        except Refused as refused:
            return _refusing(refused)
        return await continuation(handler_call_details)

    async def admit(self, call: Call) -> Identity:
        """Who calls, if they may.

        Raises:
            Refused: they may not, or it is not certain who they are.
        """
        for scheme in self.schemes:
            identity = await scheme.identify(call)
            if identity is None:
                continue
            name = call.method.rpartition("/")[2]
            if (identity.methods is not None and name not in identity.methods) or not (
                self._allow is None or self._allow(identity, call.method)
            ):
                raise Refused(f"{identity.name} may not call {name}", grpc.StatusCode.PERMISSION_DENIED)
            return identity
        raise Refused(
            f"the call has no credentials; expected {' or '.join(scheme.expected for scheme in self.schemes)}"
        )


def _refusing(refused: Refused) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler that refuses; one of streams takes calls of every kind, and reads no request."""

    async def refuse(_requests: Any, context: Any) -> None:
        await context.abort(refused.code, refused.details)

    handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(refuse)
    return handler


def _guarded(
    handler: Any, call: Call, admit: Callable[[Call], Awaitable[Identity]]
) -> grpc.RpcMethodHandler[Any, Any]:
    """`handler`, with the decision made where the connection's certificate is known."""
    kind = f"{'stream' if handler.request_streaming else 'unary'}_"
    kind += "stream" if handler.response_streaming else "unary"
    inner = getattr(handler, kind)

    async def enter(context: Any) -> None:
        known = Call(call.method, call.metadata, context.auth_context())
        try:
            _identity.set(await admit(known))
        except Refused as refused:
            await context.abort(refused.code, refused.details)

    if inspect.isasyncgenfunction(inner):

        async def generate(request: Any, context: Any) -> Any:
            await enter(context)
            async for response in inner(request, context):
                yield response

        guarded: Any = generate
    else:

        async def answer(request: Any, context: Any) -> Any:
            await enter(context)
            return await inner(request, context)

        guarded = answer
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    made: grpc.RpcMethodHandler[Any, Any] = make(
        guarded, handler.request_deserializer, handler.response_serializer
    )
    return made


# ------------------------------------------------------------------------------------------- files of tokens


def write_tokens(path: str | os.PathLike[str], tokens: Iterable[str] | Mapping[str, Grant]) -> None:
    """Write a file of tokens or API keys, at once and whole, readable by its owner alone.

    A server that has the file goes by it from the next call on: what is not in it any more is revoked.
    """
    grants = tokens if isinstance(tokens, Mapping) else dict.fromkeys(tokens, Grant())
    content = {
        secret: {
            "name": grant.name,
            "expires_at": grant.expires_at,
            "methods": None if grant.methods is None else sorted(grant.methods),
        }
        for secret, grant in grants.items()
    }
    path = os.path.abspath(path)
    descriptor, partial = tempfile.mkstemp(  # mode 0600
        prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path)
    )
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=2)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


def _read_tokens(path: str) -> dict[str, Grant]:
    """What `write_tokens` wrote; errors name the file and show nothing that is in it."""
    problem = f"{path} is not a file of tokens: a JSON object of tokens, each with name, expires_at, methods"
    with open(path, encoding="utf-8") as file:
        try:
            content = json.load(file)
        except ValueError:
            raise ValueError(problem) from None
    if not isinstance(content, dict):
        raise ValueError(problem)
    found = {}
    for secret, given in content.items():
        entry = {} if given is None else given
        if not isinstance(entry, dict) or not set(entry) <= {"name", "expires_at", "methods"}:
            raise ValueError(problem)
        name, end, methods = entry.get("name", "caller"), entry.get("expires_at"), entry.get("methods")
        if (
            not isinstance(name, str)
            or not (end is None or isinstance(end, int | float))
            or not (methods is None or isinstance(methods, list))
        ):
            raise ValueError(problem)
        found[secret] = Grant(name, end, None if methods is None else frozenset(methods))
    return found


def _stat(path: str) -> tuple[int, ...]:
    stat = os.stat(path)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
