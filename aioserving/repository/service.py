"""The service `aioserving.repository.v1.ModelRepository`: a `Controller` that can be called over gRPC.

    async with RepositoryService(controller, listen=["127.0.0.1:8510"]) as service:
        print(service.addresses)

Requests become calls of the controller, its answers become messages, its errors become the codes that
`model_repository.proto` lists; what is decided, and what is done, is the controller's. `serve` runs a whole
set-up file: store, disk, clients of the servers, controller and service. Who may call what is
`aioserving.server_security`'s to decide; the two roles are defined here.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import grpc
import grpc.aio

from aioserving import pem
from aioserving.errors import RPCError
from aioserving.repository import conversion, errors
from aioserving.repository.names import check_model_name
from aioserving.repository.policy import PolicyError
from aioserving.repository.v1 import model_repository_pb2 as pb
from aioserving.security import StaticToken
from aioserving.server_security import (
    Authentication,
    ClientCertificates,
    Grant,
    Identity,
    Refused,
    Scheme,
    Tokens,
)

if TYPE_CHECKING:
    from types import TracebackType

    from aioserving.pem import PEM
    from aioserving.repository.controller import Controller
    from aioserving.repository.events import Event, Watch
    from aioserving.repository.policy import Policy
    from aioserving.repository.setup_file import CallerSetup, Role, Secret, Setup

__all__ = [
    "READ_METHODS",
    "SERVICE",
    "RepositoryService",
    "authentication",
    "open_controller",
    "policies_to_set",
    "serve",
    "server_credentials",
]

logger = logging.getLogger("aioserving.repository.service")

#: Full name of the service.
SERVICE: Final = "aioserving.repository.v1.ModelRepository"

#: Methods that the role ``read`` may call; ``operate`` may call all.
READ_METHODS: Final = frozenset({"ListModels", "ListVersions", "GetPolicy", "Plan", "Watch"})

#: Messages of clients are small; nobody needs to send more bytes.
_LARGEST_REQUEST: Final = 16 << 20
#: Calls at a time, streams among them; those beyond are refused with RESOURCE_EXHAUSTED.
_MOST_CALLS: Final = 1000
#: Seconds between two messages about the progress of a fetch.
_PROGRESS_PERIOD: Final = 0.1

_Code = grpc.StatusCode


# -- errors as codes ----------------------------------------------------------------------------------------

#: The first kind that an error is of counts.
_CODES: Final[tuple[tuple[type[Exception], grpc.StatusCode], ...]] = (
    (errors.InvalidNameError, _Code.INVALID_ARGUMENT),
    (PolicyError, _Code.INVALID_ARGUMENT),
    (errors.NotInStoreError, _Code.NOT_FOUND),
    (errors.StoreAccessError, _Code.FAILED_PRECONDITION),
    (errors.StoreUnavailableError, _Code.UNAVAILABLE),
    (errors.StoreError, _Code.UNAVAILABLE),
    (errors.IncompleteVersionError, _Code.ABORTED),
    (errors.VersionChangedError, _Code.ABORTED),
    (errors.CorruptVersionError, _Code.DATA_LOSS),
    (errors.UnsafeArchiveError, _Code.DATA_LOSS),
    (errors.LimitExceededError, _Code.RESOURCE_EXHAUSTED),
    (errors.NoRoomError, _Code.RESOURCE_EXHAUSTED),
    # Those that are left say that things are not as the call needs them: no policy, a version in use.
    (errors.RepositoryError, _Code.FAILED_PRECONDITION),
)

#: Bytes of a status message: gRPC writes some of them as three, and refuses headers beyond 8 KiB, with which
#: the code would be lost.
_LONGEST_DETAILS: Final = 2500


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    """The code and the text with which a call ends because of `error`."""
    for kind, code in _CODES:
        if isinstance(error, kind):
            return code, str(error)
    if isinstance(error, RPCError):  # of a model server
        code = _Code.UNAVAILABLE if error.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED") else _Code.INTERNAL
        return code, str(error)
    # What others say is not for callers: it may quote anything.
    return _Code.INTERNAL, f"the service failed ({type(error).__name__}); its log says how"


def _details(text: str) -> str:
    """`text` as the details of a status, which have to be short."""
    data = text.encode()
    if len(data) <= _LONGEST_DETAILS:
        return text
    return data[:_LONGEST_DETAILS].decode(errors="ignore") + " ... (cut)"


# -- who may call -------------------------------------------------------------------------------------------


def authentication(callers: Iterable[CallerSetup]) -> Authentication:
    """The interceptor that lets in `callers`, each to the methods of its role.

    Tokens that came from files are read again when these change, with the next call.

    Args:
        callers: who may call; each has a token, or a name in its certificate, or both.

    Raises:
        ValueError: there are none.
    """
    tokens: list[_CallerToken] = []
    certificates: dict[str, Role] = {}
    for caller in callers:
        if caller.token is not None:
            tokens.append(_CallerToken(caller.name, caller.role, caller.token))
        if caller.certificate is not None:
            certificates[caller.certificate] = caller.role
    schemes: list[Scheme] = []
    if tokens:
        schemes.append(Tokens(_CallerTokens(tokens)))
    if certificates:
        schemes.append(ClientCertificates(certificates))

    def allow(identity: Identity, method: str) -> bool:
        if identity.scheme != "certificate":
            return True  # its grant has said already
        role = certificates.get(identity.name)
        return role == "operate" or (role == "read" and method.rpartition("/")[2] in READ_METHODS)

    return Authentication(*schemes, allow=allow)


class _CallerToken:
    """The token of one caller, as its file has it."""

    def __init__(self, name: str, role: Role, secret: Secret) -> None:
        self.grant = Grant(name, methods=None if role == "operate" else READ_METHODS)
        #: None: there is none that could be told, and so nobody has it.
        self.value: str | None = secret.value
        self._secret = secret
        self._seen: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        return f"<_CallerToken of {self.grant.name} from {self._secret.source}>"

    def look(self) -> bool:
        """Read the file again if it has changed; whether it had."""
        path = self._secret.path
        if path is None:
            return False
        try:
            stat = path.stat()
            seen: tuple[int, ...] = (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        except OSError:
            seen = ()
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            value: str | None = self._secret.read()
            StaticToken(value or "")
        except ValueError as error:
            value = None
            logger.error("the token of %s cannot be used: %s", self.grant.name, error)
        if value not in (None, self.value):
            logger.info("the token of %s has changed", self.grant.name)
        self.value = value
        return True


class _CallerTokens:
    """Whose a token is.

    While a file cannot be read, or has a token that is another caller's, the token that it had is not valid
    any more: it may have been taken away on purpose.
    """

    def __init__(self, tokens: Sequence[_CallerToken]) -> None:
        self._tokens = tuple(tokens)
        self._key = secrets.token_bytes(16)
        self._grants: tuple[tuple[bytes, Grant], ...] = ()
        self._sort_out()

    def __repr__(self) -> str:
        return f"<_CallerTokens of {', '.join(token.grant.name for token in self._tokens)}>"

    def __call__(self, value: str) -> Grant | None:
        changed = [token for token in self._tokens if token.look()]
        if changed:
            self._sort_out()
        digest, found = self._digest(value), None
        for known, grant in self._grants:  # all of them: how long it takes says nothing
            if hmac.compare_digest(known, digest):
                found = grant
        if found is None and len(self._grants) < len(self._tokens):
            # Perhaps in the middle of a change.
            raise Refused("the token cannot be verified now", _Code.UNAVAILABLE)
        return found

    def _digest(self, value: str) -> bytes:
        # Digests are of one length; compared as they are, the lengths would tell.
        return hashlib.blake2b(value.encode(), key=self._key).digest()

    def _sort_out(self) -> None:
        owners: dict[str, str] = {}
        grants = []
        for token in self._tokens:
            if token.value is None:
                continue
            name = token.grant.name
            owner = owners.setdefault(token.value, name)
            if owner != name:
                logger.error("the token of %s cannot be used: it is that of %s, too", name, owner)
            else:
                grants.append((self._digest(token.value), token.grant))
        self._grants = tuple(grants)


def server_credentials(certificate: PEM, key: PEM, *, client_ca: PEM | None = None) -> grpc.ServerCredentials:
    """TLS for a gRPC server; files that change are used from the next connection on.

    Args:
        certificate: the server's certificate, followed by those that lead to its authority: PEM or a path.
        key: its private key: PEM or a path.
        client_ca: certificates of the authorities that clients' certificates are from; None: clients need
            none. With it, who has none is not let in.

    Raises:
        OSError: a file cannot be read.
        ValueError: contents are not what they should be, or the key is not the certificate's.
    """
    files = _ServerFiles(certificate, key, client_ca)
    changed: Any = files.changed  # None for "as before" is not in the stubs
    return grpc.dynamic_ssl_server_credentials(files.configuration(), changed, client_ca is not None)


class _ServerFiles:
    """What a server's TLS is made of, read again when it changes."""

    def __init__(self, certificate: PEM, key: PEM, client_ca: PEM | None) -> None:
        self._given = (certificate, key, client_ca)
        self._lock = threading.Lock()
        self._contents = self._read()

    def __repr__(self) -> str:
        return f"<_ServerFiles {pem.source(self._given[0])}>"

    def _read(self) -> tuple[bytes, bytes, bytes | None]:
        certificate, key, client_ca = self._given
        chain = pem.certificates(pem.read(certificate, "certificate"), "certificate")
        private = pem.private_key(pem.read(key, "key"), "key")
        pem.check_pair(chain, private, "certificate and key")
        roots = None
        if client_ca is not None:
            blocks = pem.certificates(pem.read(client_ca, "client_ca"), "client_ca")
            roots = "".join(block.text for block in blocks).encode()
        return private.text.encode(), "".join(block.text for block in chain).encode(), roots

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What to begin a handshake with."""
        key, chain, roots = self._contents
        return grpc.ssl_server_certificate_configuration([(key, chain)], roots)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """New files, if they make sense; None: as before. gRPC asks with every connection."""
        with self._lock:
            try:
                contents = self._read()
            except (OSError, ValueError) as error:
                # Perhaps half of a rotation; the other half comes.
                logger.warning("%r goes on with what it has: %s", self, error)
                return None
            if contents == self._contents:
                return None
            self._contents = contents
            logger.info("%r: files have changed", self)
            return self.configuration()


# -- the service --------------------------------------------------------------------------------------------


class RepositoryService:
    """A controller, to be called over gRPC.

    Args:
        controller: what does the work; it is running already, and goes on when the service has ended.
        listen: addresses: ``host:port`` (port 0: any free one) or ``unix:/path``.
        credentials: TLS, see `server_credentials`; None: plaintext.
        interceptors: of all calls, such as `authentication`.
        grace: seconds that calls under way have to end when the service does; watchers are told at once.

    Use it as a context manager, or with `start` and `stop`.

    Attributes:
        addresses: where it listens, with the ports that it has got.
        epoch: names this start of the service; see ``WatchResponse.epoch``.
    """

    def __init__(
        self,
        controller: Controller,
        *,
        listen: Sequence[str] = ("127.0.0.1:0",),
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        grace: float = 10.0,
    ) -> None:
        if isinstance(listen, str):
            raise TypeError(f"listen is a list of addresses, got {listen!r}")
        self.addresses = tuple(listen)
        self.epoch = secrets.token_hex(8)
        self._controller = controller
        self._credentials = credentials
        self._interceptors = tuple(interceptors)
        self._grace = grace
        self._server: grpc.aio.Server | None = None
        self._health: Any = None
        self._ending = asyncio.Event()
        self._watchers = 0
        #: Number of the last event that is known; one that is not yet is sent to new watchers, too.
        self._latest = 0
        self._counting: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        state = "stopped" if self._server is None else "ending" if self._ending.is_set() else "serving"
        return f"<RepositoryService at {', '.join(self.addresses)}, {state}, {self._watchers} watchers>"

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: an address cannot be listened on.
            ImportError: grpcio-health-checking is not installed.
        """
        health = _health_service()
        server = grpc.aio.server(
            interceptors=self._interceptors,
            options=[
                ("grpc.max_receive_message_length", _LARGEST_REQUEST),
                # Two services on one port would share its connections, to everybody's surprise.
                ("grpc.so_reuseport", 0),
                # Clients look after their connections, of which a watch is a quiet one.
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ],
            maximum_concurrent_rpcs=_MOST_CALLS,
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self._handlers()),))
        health.add(server)
        addresses = []
        for address in self.addresses:
            try:
                if self._credentials is None:
                    port = server.add_insecure_port(address)
                else:
                    port = server.add_secure_port(address, self._credentials)
            except RuntimeError as error:
                raise OSError(f"cannot listen on {address}: {error}") from error
            unix = address.startswith("unix:")
            addresses.append(address if unix else f"{address.rpartition(':')[0]}:{port}")
        self._counting = asyncio.create_task(self._count_events(self._controller.watch(since=0)))
        await server.start()
        await health.set(serving=True)
        self._server, self._health, self.addresses = server, health, tuple(addresses)

    async def stop(self, grace: float | None = None) -> None:
        """End: no new calls, watchers are told, other calls have `grace` seconds. A second time does nothing.

        Args:
            grace: seconds; the service's own setting if None.
        """
        server, self._server = self._server, None
        if server is None:
            return
        self._ending.set()
        await self._health.end()
        await server.stop(self._grace if grace is None else grace)
        if self._counting is not None:
            self._counting.cancel()

    async def __aenter__(self) -> RepositoryService:  # noqa: PYI034 - typing.Self needs Python 3.11
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # -- handlers -------------------------------------------------------------------------------------------

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in pb.DESCRIPTOR.services_by_name["ModelRepository"].methods:
            request: Any = getattr(pb, method.input_type.name)
            response: Any = getattr(pb, method.output_type.name)
            streams = method.server_streaming
            make = grpc.unary_stream_rpc_method_handler if streams else grpc.unary_unary_rpc_method_handler
            handler: Any = getattr(self, f"_{_snake(method.name)}")
            found[method.name] = make(
                self._guarded(method.name, handler, streams=streams),
                request_deserializer=request.FromString,
                response_serializer=response.SerializeToString,
            )
        return found

    def _guarded(self, name: str, handler: Callable[..., Awaitable[Any]], *, streams: bool) -> Any:
        """`handler`, whose errors end the call with the code that they stand for."""

        async def call(request: Any, context: Any) -> Any:
            try:
                response = await (handler(request, context) if streams else handler(request))
            except (asyncio.CancelledError, grpc.aio.AbortError):
                raise
            except Exception as error:
                code, details = _status(error)
                if code is _Code.INTERNAL:
                    logger.exception("%s failed", name)
                await _end(context, code, details)
            return response

        return call

    async def _list_models(self, request: pb.ListModelsRequest) -> pb.ListModelsResponse:
        names = await self._controller.models()
        state = self._controller.state
        return pb.ListModelsResponse(
            models=[conversion.model_to_proto(name, state.model(name)) for name in names]
        )

    async def _list_versions(self, request: pb.ListVersionsRequest) -> pb.ListVersionsResponse:
        report = await self._controller.status(check_model_name(request.model))
        if not report.versions and report.policy is None:
            raise errors.NotInStoreError(f"there is no model {request.model!r}, in the store or on disk")
        return conversion.report_to_proto(report)

    async def _fetch_version(self, request: pb.FetchVersionRequest, context: Any) -> None:
        model = check_model_name(request.model)
        fetch = await self._controller.fetch(model, _optional(request, "version"))
        version = _optional(request, "version")
        loop = asyncio.get_running_loop()
        told, state = -1.0, ""
        try:
            async for progress in fetch:
                version = progress.version
                if progress.state == state and loop.time() - told < _PROGRESS_PERIOD:
                    continue
                told, state = loop.time(), progress.state
                message = conversion.progress_to_proto(progress)
                await context.write(pb.FetchVersionResponse(progress=message))
            path = await fetch
        finally:
            fetch.cancel()
        fetched = pb.FetchedVersion(
            model=model, version=int(path.name) if version is None else version, path=str(path)
        )
        await context.write(pb.FetchVersionResponse(fetched=fetched))

    async def _set_policy(self, request: pb.SetPolicyRequest) -> pb.SetPolicyResponse:
        model = check_model_name(request.model)
        response = pb.SetPolicyResponse()
        if request.HasField("policy"):
            policy = conversion.policy_from_proto(request.policy)
            await self._controller.set_policy(model, policy)
            response.policy.CopyFrom(conversion.policy_to_proto(policy))
        else:
            await self._controller.remove_policy(model)
        return response

    async def _get_policy(self, request: pb.GetPolicyRequest) -> pb.GetPolicyResponse:
        response = pb.GetPolicyResponse()
        self._fill_policy(check_model_name(request.model), response.policy)
        return response

    async def _rollout(self, request: pb.RolloutRequest) -> pb.RolloutResponse:
        model = check_model_name(request.model)
        version = await self._controller.rollout(model, _optional(request, "version"))
        response = pb.RolloutResponse(version=version)
        self._fill_policy(model, response.policy)
        return response

    async def _rollback(self, request: pb.RollbackRequest) -> pb.RollbackResponse:
        model = check_model_name(request.model)
        version = await self._controller.rollback(model, _optional(request, "version"))
        response = pb.RollbackResponse(version=version)
        self._fill_policy(model, response.policy)
        return response

    async def _release_version(self, request: pb.ReleaseVersionRequest) -> pb.ReleaseVersionResponse:
        model = check_model_name(request.model)
        return pb.ReleaseVersionResponse(released=await self._controller.release(model, request.version))

    def _fill_policy(self, model: str, message: pb.Policy) -> None:
        policy = self._controller.get_policy(model)
        if policy is not None:
            message.CopyFrom(conversion.policy_to_proto(policy))

    async def _delete_version(self, request: pb.DeleteVersionRequest) -> pb.DeleteVersionResponse:
        model = check_model_name(request.model)
        if not await self._controller.delete_version(model, request.version):
            raise errors.NotInStoreError(f"version {request.version} of model {model!r} is not on disk")
        return pb.DeleteVersionResponse()

    async def _plan(self, request: pb.PlanRequest) -> pb.PlanResponse:
        model = check_model_name(request.model) if request.HasField("model") else None
        plan = await self._controller.plan()
        steps = map(conversion.step_to_proto, plan.steps)
        return pb.PlanResponse(
            steps=[
                step for step in steps if model is None or not step.HasField("model") or step.model == model
            ]
        )

    async def _watch(self, request: pb.WatchRequest, context: Any) -> None:
        model = check_model_name(request.model) if request.HasField("model") else None
        after = _optional(request, "after")
        news: list[pb.WatchResponse] = []
        latest = self._latest
        if after is not None and request.epoch and request.epoch != self.epoch:
            after = 0
            news.append(self._missed(None, "the service was started anew, and has no events from before"))
        elif after is not None and after > latest:
            raise errors.InvalidNameError(f"there is no event {after} yet; the last one is {latest}")
        begun = pb.Begun(number=latest if after is None else after)
        watch = self._controller.watch(since=begun.number)
        self._watchers += 1
        try:
            await context.write(pb.WatchResponse(epoch=self.epoch, begun=begun))
            for message in news:
                await context.write(message)
            expected = begun.number + 1
            async for event in _until(watch, self._ending):
                if event.kind == "missed":
                    continue  # the gap in the numbers tells the same, and how many
                if event.number > expected:
                    count = event.number - expected
                    await context.write(self._missed(count, "the watcher was too slow, or came too late"))
                expected = event.number + 1
                if model is None or event.model in (None, model):
                    message = pb.WatchResponse(epoch=self.epoch, event=conversion.event_to_proto(event))
                    await context.write(message)
        finally:
            watch.close()
            self._watchers -= 1
        await _end(context, _Code.UNAVAILABLE, "the service is ending")

    def _missed(self, count: int | None, reason: str) -> pb.WatchResponse:
        return pb.WatchResponse(epoch=self.epoch, missed=pb.Missed(count=count, reason=reason))

    async def _count_events(self, watch: Watch) -> None:
        async for event in watch:
            self._latest = max(self._latest, event.number)


async def _end(context: Any, code: grpc.StatusCode, details: str) -> NoReturn:
    """End a call with an error, by raising what grpc takes for that."""
    try:
        await context.abort(code, _details(details))
        raise AssertionError("abort() raises")
    except grpc.aio.AbortError:
        raise
    except Exception:
        # The connection is gone, and grpc's core says so in a way of its own; this is what it takes for that.
        logger.debug("a caller has gone", exc_info=True)
        raise asyncio.CancelledError from None


def _optional(request: Any, field: str) -> Any:
    return getattr(request, field) if request.HasField(field) else None


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")


async def _until(watch: Watch, ending: asyncio.Event) -> AsyncIterator[Event]:
    """What a watch gives until it ends, or `ending` is set."""
    end = asyncio.ensure_future(ending.wait())
    following: asyncio.Future[Event] | None = None
    try:
        while not ending.is_set():
            following = asyncio.ensure_future(anext(watch))
            await asyncio.wait((following, end), return_when=asyncio.FIRST_COMPLETED)
            if not following.done():
                return
            try:
                event = following.result()
            except StopAsyncIteration:
                return
            yield event
    finally:
        end.cancel()
        if following is not None:
            following.cancel()


# -- health -------------------------------------------------------------------------------------------------


class _Health:
    """The standard health service, which load balancers and orchestrators ask."""

    def __init__(self, module: Any, messages: Any, adders: Any) -> None:
        self._servicer = module.HealthServicer()
        self._states = messages.HealthCheckResponse
        self._adders = adders

    def __repr__(self) -> str:
        return "<_Health>"

    def add(self, server: grpc.aio.Server) -> None:
        """Have `server` answer."""
        self._adders.add_HealthServicer_to_server(self._servicer, server)

    async def set(self, *, serving: bool) -> None:
        """Say how the service is."""
        state = self._states.SERVING if serving else self._states.NOT_SERVING
        for name in ("", SERVICE):
            await self._servicer.set(name, state)

    async def end(self) -> None:
        """Say that it is not serving any more."""
        await self._servicer.enter_graceful_shutdown()


def _health_service() -> _Health:
    try:
        from grpc_health.v1 import health, health_pb2, health_pb2_grpc
    except ImportError:
        raise ImportError(
            "the repository service needs grpcio-health-checking: pip install 'aioserving[repository]'"
        ) from None
    return _Health(health.aio, health_pb2, health_pb2_grpc)


# -- a whole set-up -----------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_controller(setup: Setup, *, start: bool = True) -> AsyncIterator[Controller]:
    """The controller of a set-up, with its store, disk and connections, which are closed afterwards.

    The policies of the file are set when it starts: those that are not the same as when they were set last
    time. What was decided meanwhile (a rollout that pinned a version, say) stays while the file stays as it
    is; models that are taken out of the file keep their policies until they are removed.

    Args:
        setup: the set-up.
        start: let it work; otherwise it can only be asked for its plan and how things are, as they would be
            with the policies of the file, and touches nothing.

    Raises:
        AlreadyRunningError: another controller works on the disk.
        StateError: the controller's state on disk cannot be read.
        OSError: the disk, or a file of TLS, cannot be read.
        ImportError: what the store's URL needs is not installed.
    """
    from aioserving.client import AsyncClient
    from aioserving.repository.controller import Controller
    from aioserving.repository.disk import Disk
    from aioserving.repository.fetch import Fetcher
    from aioserving.repository.store import Store

    async with contextlib.AsyncExitStack() as stack:
        store = Store.open(setup.store.url, storage_options=setup.store.storage_options)
        stack.push_async_callback(store.close)
        disk = Disk(setup.disk.path, quota_bytes=setup.disk.quota)
        used: list[Controller] = []
        fetcher = Fetcher(store, disk, keep=lambda: used[0].in_use() if used else frozenset())
        stack.push_async_callback(fetcher.aclose)
        servers = {}
        for server in setup.servers.values():
            servers[server.name] = await stack.enter_async_context(
                AsyncClient(
                    server.target,
                    timeout=server.timeout,
                    tls=None if server.tls is None else server.tls.client(),
                    credentials=server.credentials(),
                )
            )
        seen_as = setup.disk.seen_as
        controller = Controller(
            store,
            disk,
            fetcher,
            servers,
            poll_period=setup.poll,
            max_concurrent_loads=setup.max_concurrent_loads,
            server_grace=setup.server_grace,
            extra_models=() if setup.other_models is None else setup.other_models,
            base_path=None if seen_as is None else lambda model: f"{seen_as.rstrip('/')}/{model}",
        )
        used.append(controller)
        if start:
            await stack.enter_async_context(controller)
            await _apply_policies(controller, setup)
        else:
            await controller.preview({})  # which reads what it remembers
            await controller.preview(await policies_to_set(controller, setup))
        yield controller


async def policies_to_set(controller: Controller, setup: Setup) -> dict[str, Policy]:
    """The policies of the file that a start sets: new ones, and those that have changed in the file."""
    before = await asyncio.to_thread(_recorded, _record(controller))
    return {
        model: policy
        for model, policy in setup.models.items()
        if controller.get_policy(model) is None or before.get(model) != _plain(policy)
    }


async def _apply_policies(controller: Controller, setup: Setup) -> None:
    for model, policy in (await policies_to_set(controller, setup)).items():
        await controller.set_policy(model, policy)
    now = {model: _plain(policy) for model, policy in setup.models.items()}
    await asyncio.to_thread(_write, _record(controller), json.dumps({"models": now}, indent=1))


def _record(controller: Controller) -> Path:
    """The file that tells which policies a set-up file had when it was used last."""
    return controller.disk.private / "set_up.json"


def _plain(policy: Policy) -> Any:
    return json.loads(json.dumps(policy.to_dict()))


def _recorded(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_bytes())["models"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # at worst, policies that are the same are set again


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(content)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise


async def serve(
    setup: Setup, ending: asyncio.Event, *, ready: Callable[[RepositoryService], None] | None = None
) -> None:
    """Run a set-up until `ending` is set: the controller, and the service to call it by.

    What the servers serve stays as it is when this ends; the next start goes on from there.

    Args:
        setup: the set-up.
        ending: set it to end; calls under way have ``setup.service.grace`` seconds.
        ready: told when the service listens.

    Raises:
        OSError: an address cannot be listened on, or as `open_controller`.
        AlreadyRunningError: as `open_controller`; so do the others of its errors.
    """
    callers = setup.service.callers
    async with open_controller(setup) as controller:
        service = RepositoryService(
            controller,
            listen=setup.service.listen,
            credentials=setup.service.server_credentials(),
            interceptors=() if callers is None else (authentication(callers),),
            grace=setup.service.grace,
        )
        async with service:
            logger.info("%r", service)
            if ready is not None:
                ready(service)
            await ending.wait()
            logger.info("ending")
