"""The testing server itself: TensorFlow Serving's services on sockets, around one `ModelManager`.

    async with ModelServer(models={"digits": "/models/digits"}) as server:
        channel = grpc.aio.insecure_channel(server.target)

`ModelServer` lives on the running event loop; `with ModelServer(...) as server` gives a
`BlockingModelServer`, the same server on a thread and an event loop of its own, for code that is not
async. Handlers are thin: raw bytes in, a function of `inference` (in a thread, unless the servable says
that it is quick), raw bytes out, or the status of a `StatusError`.

What listens, what is counted and how it stops is decided here; which model answers, in `manager`; what
REST is, in `rest`.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import grpc
import grpc.aio

from aioserving._proto import message_class
from aioserving._proto.ssl_config import ssl_config_class
from aioserving._types import DEFAULT, DefaultType
from aioserving.testing import inference
from aioserving.testing.batching import BatchingParameters
from aioserving.testing.manager import CallableRegistry, Loader, ModelManager
from aioserving.testing.options import ServerOptions, parse_text_proto, read_text_proto, with_flags
from aioserving.testing.rest import RestServer, import_aiohttp
from aioserving.testing.rules import PLATFORM
from aioserving.testing.status import StatusCode, StatusError, truncate

if TYPE_CHECKING:
    from types import TracebackType

    from aioserving.testing.servable import Servable

__all__ = ["BlockingModelServer", "Calls", "ModelServer", "Models"]

_T = TypeVar("_T")

#: What `ModelServer` can serve under one name: a servable (as version 1), several by version, or the
#: path of a base folder. A StatusError in a servable's place is how loading that version fails.
Models: TypeAlias = "Mapping[str, Servable | Mapping[int, Servable | StatusError] | str | os.PathLike[str]]"

_Handler: TypeAlias = "Callable[[bytes, Any], Awaitable[bytes]]"

logger = logging.getLogger("aioserving.testing")

#: Bytes that the real server receives at most, INT32_MAX.
_RECEIVE_LIMIT = 2**31 - 1

_CODES = {StatusCode[code.name]: code for code in grpc.StatusCode}

_PREDICTION = "/tensorflow.serving.PredictionService/"
_MODEL = "/tensorflow.serving.ModelService/"
_HEALTH = "/grpc.health.v1.Health/"

_SERVABLE = ("signatures", "inline", "run", "close")

#: Names that the real server's health service knows; they are not its services' full names.
_HEALTHY = frozenset({"", "ModelService", "PredictionService"})


class Calls:
    """What was called, by whom and with what deadline; written by the server, for tests to read.

    Attributes:
        methods: calls begun, by short name such as ``Predict``.
        peers: calls begun, by the caller's address; over TCP, one address is one connection.
        deadlines: of the last 1,000 calls begun: short name, and the seconds that were left (None:
            no deadline).
        running: calls in progress.
        most_running: the highest `running` so far.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.methods: collections.Counter[str] = collections.Counter()
        self.peers: collections.Counter[str] = collections.Counter()
        self.deadlines: collections.deque[tuple[str, float | None]] = collections.deque(maxlen=1000)
        self.running = 0
        self.most_running = 0

    @property
    def total(self) -> int:
        """Calls begun, of all methods."""
        return self.methods.total()

    @property
    def connections(self) -> int:
        """Different callers so far; over TCP, the connections that carried a call."""
        return len(self.peers)

    def last_deadline(self, method: str) -> float | None:
        """Seconds left when `method` (``Predict``) was last called; None: no deadline, or no call."""
        return next((left for name, left in reversed(self.deadlines) if name == method), None)

    def begin(self, method: str, context: Any) -> float | None:
        """Count one call; the server's business. Returns the seconds left to its deadline, or None."""
        left: float | None = context.time_remaining()
        self.methods[method] += 1
        self.peers[context.peer()] += 1
        self.deadlines.append((method, left))
        self.running += 1
        if self.running > self.most_running:  # noqa: PLR1730 - max() takes twice as long
            self.most_running = self.running
        return left

    def __repr__(self) -> str:
        return (
            f"<Calls {dict(self.methods)} over {self.connections} connections, "
            f"{self.running} running (at most {self.most_running})>"
        )


class ModelServer:
    """A TensorFlow-Serving-compatible server on the running event loop: gRPC, and REST if asked for.

    Args:
        models: what to serve, by model name: a servable, a mapping of versions to servables (which are
            all served at once), or the path of a folder with version folders. Servables get the base
            path ``/callable/NAME``, under which a reload can name them.
        config: further models, as a `ModelServerConfig` message (or a view with `.pb`) or its text; by
            default those of the flags ``model_config_file`` or ``model_base_path``.
        port: TCP port; 0: any free one; None: no TCP.
        rest_port: TCP port for REST; 0: any free one; None: no REST. By default what the flags
            ``rest_api_port`` and ``testing_pick_rest_port`` say, which is no REST. It needs aiohttp, from
            the extra ``testing``.
        host: address to listen on.
        unix_socket: path of a Unix socket to listen on as well; default: the flag ``grpc_socket_path``.
        credentials: of both listeners, such as `grpc.ssl_server_credentials(...)`; default: those of
            ``ssl_config_file`` if given, else plaintext.
        interceptors: of all gRPC calls, such as `aioserving.testing.security.Authentication`; behind
            them come those of the flags ``testing_token_file`` and the like.
        options: everything else, as the real server's flags; by default theirs, but a failed load is
            not repeated (the real default would keep a start waiting for five minutes).
        **flags: single fields of `ServerOptions`, over those of `options`:
            ``ModelServer(models, file_system_poll_wait_seconds=0.1)``. Where it listens for gRPC on TCP
            is told by `host` and `port` alone.

    Attributes:
        calls: what was called so far over gRPC.
        options: the settings in effect.
        port: the TCP port once started, else the one asked for.
        rest_port: the port of REST once started, else the one asked for; None: no REST.
        unix_socket: the Unix socket's path, or None.

    Leaving ``async with`` cancels calls in progress; `stop` can let them end first.
    """

    def __init__(
        self,
        models: Models | None = None,
        *,
        config: Any = None,
        port: int | None = 0,
        rest_port: int | DefaultType | None = DEFAULT,
        host: str = "127.0.0.1",
        unix_socket: str | os.PathLike[str] | None = None,
        credentials: grpc.ServerCredentials | None = None,
        interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
        options: ServerOptions | None = None,
        **flags: Any,
    ) -> None:
        self.options = with_flags(options or ServerOptions(max_num_load_retries=0), flags, "ModelServer")
        self.calls = Calls()
        self.host = host
        self.port = port
        self.rest_port = _rest_port(rest_port, self.options)
        self.unix_socket = os.fspath(unix_socket or self.options.grpc_socket_path) or None
        if port is None and self.unix_socket is None:
            raise ValueError("a server needs a port or a unix_socket to listen on")
        self._credentials = credentials
        self._interceptors = tuple(interceptors)
        self._registry = CallableRegistry()
        self._config = _model_server_config(config, self.options)
        for name, model in (models or {}).items():
            self._add_model(name, model)
        self._loader: Loader = _load
        self._manager: ModelManager | None = None
        self._server: grpc.aio.Server | None = None
        self._rest: RestServer | None = None
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._config_poller: asyncio.Task[None] | None = None
        self._blocking: BlockingModelServer | None = None

    @classmethod
    def from_options(cls, options: ServerOptions, *, models: Models | None = None) -> ModelServer:
        """The server that a command line describes: models, config file and listeners out of `options`.

        Raises:
            StatusError: as the real server refuses to start: nothing to serve, nowhere to listen, or a
                configuration file that cannot be read.
        """
        if not options.port and not options.testing_pick_port and not options.grpc_socket_path:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                "At least one of server_options.grpc_port or server_options.grpc_socket_path must be set.",
            )
        if not options.model_base_path and not options.model_config_file and not models:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                "Both server_options.model_base_path and server_options.model_config_file are empty!",
            )
        if options.batching_parameters_file and not options.enable_batching:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                "server_options.batching_parameters_file is set without setting "
                "server_options.enable_batching to true.",
            )
        if options.batching_parameters_file:
            try:
                BatchingParameters.from_file(options.batching_parameters_file)
            except StatusError as error:
                if options.batching_parameters_file in error.message:
                    raise  # it cannot be read; whether it makes sense is found when a model is loaded
        return cls(
            models,
            port=0 if options.testing_pick_port else options.port or None,
            host=options.testing_host,
            options=options,
        )

    @property
    def target(self) -> str:
        """What a client connects to: ``127.0.0.1:PORT``, or ``unix:PATH`` without TCP."""
        if self.port is None:
            return f"unix:{self.unix_socket}"
        return f"{'127.0.0.1' if self.host == '0.0.0.0' else self._address_host}:{self.port}"  # noqa: S104

    @property
    def rest_url(self) -> str:
        """What the paths of REST follow: ``http://127.0.0.1:PORT``.

        Raises:
            RuntimeError: the server has no REST.
        """
        if self.rest_port is None:
            raise RuntimeError(f"{self!r} has no REST; ask for it with ModelServer(..., rest_port=0)")
        host = "127.0.0.1" if self.host == "0.0.0.0" else self._address_host  # noqa: S104
        return f"http://{host}:{self.rest_port}"

    @property
    def _address_host(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self._server is not None

    @property
    def serves_rest(self) -> bool:
        """Whether it listens for REST."""
        return self._rest is not None

    @property
    def manager(self) -> ModelManager:
        """The models' life cycle, for a look inside.

        Raises:
            RuntimeError: the server is not running.
        """
        if self._manager is None:
            raise RuntimeError(f"{self!r} is not running")
        return self._manager

    # Versions of callables

    def add_version(self, model: str, version: int, servable: Servable | StatusError) -> None:
        """Put a version beside those of a callable model, as a new version folder would appear.

        It is found at once (where polling is on) and loaded if the model's policy wants it: with the
        default policy, the highest version replaces the others. Returns before that; see `states`.
        From any thread.

        Raises:
            ValueError: the model has that version already.
        """
        self._registry.add(model, version, _servable(model, servable))
        self._poll_soon()

    def remove_version(self, model: str, version: int) -> None:
        """Take a version of a callable model away, as if its folder was deleted. From any thread.

        Raises:
            KeyError: there is no such version.
        """
        self._registry.remove(model, version)
        self._poll_soon()

    def states(self, model: str) -> dict[int, str]:
        """The states of all versions of `model` that were ever seen, the highest first, by name."""
        return {version: state.state.name for version, state in self.manager.states.versions(model)}

    def _poll_soon(self) -> None:
        manager = self._manager
        if manager is not None:
            manager.poll_soon()

    # Starting and stopping

    async def start(self) -> None:
        """Load the configured models, then listen: who can connect finds every model available.

        Waits for ever for a model whose base path does not exist, as the real server does.

        Raises:
            StatusError: the configuration is not legal, or a model cannot be loaded.
            OSError: a port or socket cannot be listened on.
            ImportError: REST is asked for, and aiohttp is not installed.
        """
        if self._server is not None:
            raise RuntimeError(f"{self!r} is running already")
        if self.rest_port is not None:
            import_aiohttp()  # before anything is loaded
        threads = concurrent.futures.ThreadPoolExecutor(
            self.options.grpc_max_threads or 4 * (os.cpu_count() or 1), "aioserving.testing call"
        )
        manager = ModelManager(self._loader, self.options, registry=self._registry)
        try:
            self._threads, self._manager = threads, manager
            await manager.start(self._config)
            await self._start_rest(manager)
            server = grpc.aio.server(
                interceptors=(*self._interceptors, *_authentication(self.options)),
                options=self._channel_options(),
            )
            server.add_generic_rpc_handlers((_Router(self._handlers()),))
            self._listen(server)
            await server.start()
        except BaseException:
            self._threads = self._manager = None
            await self._stop_rest(None)
            await manager.close()
            threads.shutdown(wait=False, cancel_futures=True)
            raise
        self._server = server
        if self.options.model_config_file and self.options.model_config_file_poll_wait_seconds > 0:
            self._config_poller = asyncio.create_task(self._poll_config_file())

    async def stop(self, grace: float | None = None) -> None:
        """Stop listening, end the calls in progress, unload the models; a second time does nothing.

        Args:
            grace: seconds that calls in progress have to end by themselves; None: they are cancelled.
        """
        server, self._server = self._server, None
        if server is not None:
            await asyncio.gather(server.stop(grace), self._stop_rest(grace))
        if self._config_poller is not None:
            self._config_poller.cancel()
            self._config_poller = None
        manager, self._manager = self._manager, None
        if manager is not None:
            await manager.close()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def restart(self, grace: float | None = None) -> None:
        """Stop and start again on the same port, with the configuration of the first start."""
        await self.stop(grace)
        await self.start()

    async def __aenter__(self) -> ModelServer:  # noqa: PYI034 - typing.Self needs Python 3.11
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> BlockingModelServer:
        """Run on a thread of its own, for code that is not async."""
        self._blocking = BlockingModelServer(self)
        self._blocking.start()
        return self._blocking

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        blocking, self._blocking = self._blocking, None
        if blocking is not None:
            blocking.close()

    def __repr__(self) -> str:
        where = self.target if self.unix_socket is None else f"{self.target}, unix:{self.unix_socket}"
        if self.rest_port is not None:
            where += f", {self.rest_url}"
        if self._manager is None:
            return f"<ModelServer {where} stopped>"
        models = ", ".join(f"{name} {self.states(name)}" for name in sorted(self._manager.states.models))
        state = "serving" if self._server is not None else "starting"
        return f"<ModelServer {where} {state} {models or 'no model'}; {self.calls.total} calls>"

    # Configuration

    def _add_model(self, name: str, model: Any) -> None:
        if isinstance(model, str | os.PathLike):
            path = os.path.abspath(model)
            if os.path.exists(os.path.join(path, "saved_model.pb")):
                raise ValueError(
                    f"models[{name!r}] is a folder of version folders; {path} is a SavedModel: put it into "
                    f"a folder named by its version, such as {os.path.join(path, '1')}"
                )
            _add_config(self._config, name, path)
        elif isinstance(model, Mapping):
            for version, servable in model.items():
                self._registry.add(name, version, _servable(name, servable))
            entry = _add_config(self._config, name, CallableRegistry.PREFIX + name)
            entry.model_version_policy.all.SetInParent()
        else:
            self._registry.add(name, 1, _servable(name, model))
            _add_config(self._config, name, CallableRegistry.PREFIX + name)

    async def _poll_config_file(self) -> None:
        """Apply the configuration file every so often, changed or not, as the real server does."""
        while True:
            await asyncio.sleep(self.options.model_config_file_poll_wait_seconds)
            try:
                config = message_class("tensorflow.serving.ModelServerConfig")()
                await self.manager.reload(read_text_proto(self.options.model_config_file, config))
            except StatusError as error:
                logger.error("%s: %s", self.options.model_config_file, error)

    # Listening

    def _channel_options(self) -> list[tuple[str, int | str]]:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", _RECEIVE_LIMIT),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port would share its connections, to everybody's surprise.
            ("grpc.so_reuseport", 0),
        ]
        for item in filter(None, self.options.grpc_channel_arguments.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise ValueError(f"grpc_channel_arguments is key=value,key=value; got {item!r}")
            options.append((key, int(value) if value.lstrip("-").isdigit() else value))
        return options

    def _listen(self, server: grpc.aio.Server) -> None:
        credentials = self._credentials
        if credentials is None and self.options.ssl_config_file:
            credentials = _ssl_credentials(self.options.ssl_config_file)
        addresses = []
        if self.port is not None:
            addresses.append(f"{self._address_host}:{self.port}")
        if self.unix_socket is not None:
            addresses.append(f"unix:{self.unix_socket}")
        for address in addresses:
            try:
                port = (
                    server.add_insecure_port(address)
                    if credentials is None
                    else server.add_secure_port(address, credentials)
                )
            except RuntimeError as error:
                raise OSError(f"cannot listen on {address}: {error}") from error
            if not address.startswith("unix:"):
                self.port = port

    async def _start_rest(self, manager: ModelManager) -> None:
        if self.rest_port is None:
            return
        if self.rest_port and self.rest_port == self.port:
            logger.error("REST is not served: its port %d is that of gRPC", self.rest_port)
            return
        rest = self._rest = RestServer(manager, self.options, self._get_model_status)
        await rest.start(self.host, self.rest_port)
        self.rest_port = rest.port

    async def _stop_rest(self, grace: float | None) -> None:
        rest, self._rest = self._rest, None
        if rest is not None:
            await rest.stop(grace)

    # Calls

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        """Method path -> handler of raw bytes."""
        functions: dict[str, _Handler] = {
            _PREDICTION + "Predict": self._inference("Predict"),
            _PREDICTION + "Classify": self._inference("Classify"),
            _PREDICTION + "Regress": self._inference("Regress"),
            _PREDICTION + "MultiInference": self._inference("MultiInference"),
            _PREDICTION + "GetModelMetadata": self._inference("GetModelMetadata"),
            _MODEL + "GetModelStatus": self._plain("GetModelStatus", self._get_model_status),
            _MODEL + "HandleReloadConfigRequest": self._plain(
                "HandleReloadConfigRequest", self._handle_reload_config_request
            ),
        }
        if self.options.enable_grpc_healthcheck_service:
            functions[_HEALTH + "Check"] = self._plain("Check", _check_health)
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            path: grpc.unary_unary_rpc_method_handler(function) for path, function in functions.items()
        }
        if self.options.enable_grpc_healthcheck_service:
            handlers[_HEALTH + "Watch"] = grpc.unary_stream_rpc_method_handler(_watch_health)
        return handlers

    def _inference(self, method: str) -> _Handler:
        """The handler of a method that runs a model."""
        parse, manager, options, calls = inference.parse, self.manager, self.options, self.calls
        limit = options.grpc_max_threads

        async def handle(request: bytes, context: Any) -> bytes:
            left = calls.begin(method, context)
            try:
                if limit and calls.running > limit:
                    raise _exhausted()
                call = parse(method, request)
                lease = manager.resolve(call.model_spec)
                servable = lease.servable
                if servable.inline:
                    try:
                        return call.run(
                            servable,
                            model_name=lease.name,
                            version=lease.version,
                            options=options,
                            timeout=left,
                        )
                    finally:
                        lease.release()
                work = functools.partial(
                    call.run,
                    servable,
                    model_name=lease.name,
                    version=lease.version,
                    options=options,
                    timeout=left,
                )
                return await self._in_thread(work, lease.release)
            except StatusError as error:
                await context.abort(_CODES[error.code], truncate(error.message))
                raise  # abort has raised
            finally:
                calls.running -= 1

        return handle

    def _plain(self, method: str, answer: Callable[[bytes], Awaitable[bytes]]) -> _Handler:
        """The handler of a method that needs no model."""
        calls, limit = self.calls, self.options.grpc_max_threads

        async def handle(request: bytes, context: Any) -> bytes:
            calls.begin(method, context)
            try:
                if limit and calls.running > limit:
                    raise _exhausted()
                return await answer(request)
            except StatusError as error:
                await context.abort(_CODES[error.code], truncate(error.message))
                raise  # abort has raised
            finally:
                calls.running -= 1

        return handle

    async def _in_thread(self, work: Callable[[], _T], done: Callable[[], None]) -> _T:
        """Run `work` in a thread, and `done` when it ended: also when nobody waits for it any more."""
        assert self._threads is not None  # since start
        future = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                done()
            else:
                loop = asyncio.get_running_loop()
                future.add_done_callback(lambda _: _call_soon(loop, done))

    async def _get_model_status(self, request: bytes) -> bytes:
        parsed = _parse("tensorflow.serving.GetModelStatusRequest", request)
        spec = parsed.model_spec if parsed.HasField("model_spec") else None
        response: Any = message_class("tensorflow.serving.GetModelStatusResponse")()
        for version, state in self.manager.status(spec):
            entry = response.model_version_status.add(version=version, state=int(state.state))
            entry.status.SetInParent()
            if state.error is not None:
                entry.status.error_code = int(state.error.code)
                entry.status.error_message = state.error.message
        return _serialize(response)

    async def _handle_reload_config_request(self, request: bytes) -> bytes:
        parsed = _parse("tensorflow.serving.ReloadConfigRequest", request)
        if parsed.config.WhichOneof("config") != "model_config_list":
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported",
            )
        try:
            await self.manager.reload(parsed.config)
        except StatusError as error:
            logger.error("reload failed: %s", error)
            raise
        response: Any = message_class("tensorflow.serving.ReloadConfigResponse")()
        response.status.SetInParent()
        # The real server keeps TensorFlow's metrics, of which a reload hardly moves any: 0 is its answer
        # for all that were recorded, known ones and unknown ones.
        for name in dict.fromkeys(parsed.metric_names):
            response.metric.add(name=name, int64_value_increase=0)
        return _serialize(response)


class BlockingModelServer:
    """A `ModelServer` on a thread and an event loop of its own, for code that is not async.

    What ``with ModelServer(...) as server`` gives. Its methods are those of `ModelServer`, blocking,
    and may be called from any thread but its own.

    Attributes:
        server: the `ModelServer` underneath.
    """

    def __init__(self, server: ModelServer) -> None:
        self.server = server
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    @property
    def target(self) -> str:
        """See `ModelServer.target`."""
        return self.server.target

    @property
    def port(self) -> int | None:
        """The TCP port."""
        return self.server.port

    @property
    def rest_port(self) -> int | None:
        """The port of REST, or None."""
        return self.server.rest_port

    @property
    def rest_url(self) -> str:
        """See `ModelServer.rest_url`."""
        return self.server.rest_url

    @property
    def unix_socket(self) -> str | None:
        """The Unix socket's path, or None."""
        return self.server.unix_socket

    @property
    def calls(self) -> Calls:
        """What was called so far."""
        return self.server.calls

    @property
    def running(self) -> bool:
        """Whether it listens."""
        return self.server.running

    def start(self) -> None:
        """See `ModelServer.start`."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name="aioserving.testing server", daemon=True
            )
            self._thread.start()
        try:
            self._run(self.server.start())
        except BaseException:
            self.close()
            raise

    def stop(self, grace: float | None = None) -> None:
        """See `ModelServer.stop`."""
        if self._loop is not None:
            self._run(self.server.stop(grace))

    def restart(self, grace: float | None = None) -> None:
        """See `ModelServer.restart`."""
        self._run(self.server.restart(grace))

    def close(self) -> None:
        """Stop at once, and end the thread; a second time does nothing."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        try:
            self.stop()
        finally:
            self._loop = self._thread = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def add_version(self, model: str, version: int, servable: Servable | StatusError) -> None:
        """See `ModelServer.add_version`."""
        self._run(_later(self.server.add_version, model, version, servable))

    def remove_version(self, model: str, version: int) -> None:
        """See `ModelServer.remove_version`."""
        self._run(_later(self.server.remove_version, model, version))

    def states(self, model: str) -> dict[int, str]:
        """See `ModelServer.states`."""
        return self._run(_later(self.server.states, model))

    def _run(self, work: Coroutine[Any, Any, _T]) -> _T:
        if self._loop is None:
            work.close()
            raise RuntimeError(f"{self!r} is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def __repr__(self) -> str:
        return f"<Blocking{repr(self.server)[1:]}"


class _Router(grpc.GenericRpcHandler):
    """Finds the handler of a method; an unknown one ends as in a C++ server, without a message."""

    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        self._handlers = handlers
        # A handler of streams takes calls of every kind, and the refusal is the same on the wire.
        self._unknown: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(_refuse)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        return self._handlers.get(handler_call_details.method, self._unknown)


async def _refuse(_requests: Any, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")


def _is_healthy(request: bytes) -> bool:
    # HealthCheckRequest { string service = 1; }, whose known names all have a length of one byte
    service = request[2:].decode("utf-8", "replace") if request[:1] == b"\x0a" else ""
    return service in _HEALTHY


async def _check_health(request: bytes) -> bytes:
    if not _is_healthy(request):
        raise StatusError(StatusCode.NOT_FOUND)
    return b"\x08\x01"  # HealthCheckResponse { status: SERVING }


async def _watch_health(request: bytes, context: Any) -> None:
    """Say how things are, and nothing more: in the real server, too, they never change."""
    await context.write(b"\x08\x01" if _is_healthy(request) else b"\x08\x03")  # SERVICE_UNKNOWN
    await asyncio.Event().wait()


async def _later(function: Callable[..., _T], *arguments: Any) -> _T:
    """`function` on the event loop."""
    return function(*arguments)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


def _exhausted() -> StatusError:
    return StatusError(StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")


def _parse(name: str, data: bytes) -> Any:
    """The message, or INTERNAL without a text, which is what a C++ gRPC server makes of garbage."""
    from google.protobuf.message import DecodeError

    try:
        return message_class(name).FromString(data)
    except DecodeError as error:
        raise StatusError(StatusCode.INTERNAL) from error


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _load(path: str, options: ServerOptions) -> Servable:
    """Load a SavedModel; the first one imports TensorFlow."""
    from aioserving.testing.saved_model import load_servable

    servable: Servable = load_servable(path, options)
    return servable


def _servable(model: str, servable: Any) -> Any:
    """`servable` as it is, if it can be served."""
    if isinstance(servable, StatusError) or all(hasattr(servable, name) for name in _SERVABLE):
        return servable
    raise TypeError(
        f"model {model!r} is a servable, a mapping of versions to servables, or the path of a folder, not a "
        f"{type(servable).__name__} (for a function: CallableServable(function, inputs=..., outputs=...))"
    )


def _rest_port(port: int | DefaultType | None, options: ServerOptions) -> int | None:
    if port is not DEFAULT:
        return port
    return 0 if options.testing_pick_rest_port else options.rest_api_port or None


def _model_server_config(config: Any, options: ServerOptions) -> Any:
    """A copy of `config` (message, view or text), or the configuration that the flags tell, as a message."""
    message: Any = message_class("tensorflow.serving.ModelServerConfig")()
    if isinstance(config, str):
        parse_text_proto(config, message, source="config")
    elif config is not None:
        message.CopyFrom(getattr(config, "pb", config))
    elif options.model_config_file:
        read_text_proto(options.model_config_file, message)
    else:
        message.model_config_list.SetInParent()
        if options.model_base_path:
            _add_config(message, options.model_name, options.model_base_path)
    return message


def _add_config(config: Any, name: str, base_path: str) -> Any:
    return config.model_config_list.config.add(name=name, base_path=base_path, model_platform=PLATFORM)


def _authentication(options: ServerOptions) -> list[grpc.aio.ServerInterceptor]:
    """What the flags about callers ask for.

    Raises:
        OSError: a file cannot be read.
        ValueError: a file is not one of tokens.
    """
    from aioserving.testing import security

    schemes: list[security.Scheme] = []
    if options.testing_token_file:
        schemes.append(security.Tokens(options.testing_token_file))
    if options.testing_api_key_file:
        schemes.append(security.APIKeys(options.testing_api_key_file))
    if options.testing_client_names:
        schemes.append(security.ClientCertificates(options.testing_client_names.split(",")))
    return [security.Authentication(*schemes)] if schemes else []


def _ssl_credentials(path: str) -> grpc.ServerCredentials:
    """The credentials that a text SSLConfig describes; its strings are the PEM contents.

    Raises:
        StatusError: the file cannot be read, or is no SSLConfig.
        ValueError: client verification without an authority.
    """
    config: Any = read_text_proto(path, ssl_config_class()())
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        root_certificates=config.custom_ca.encode() or None,
        require_client_auth=config.client_verify,
    )
