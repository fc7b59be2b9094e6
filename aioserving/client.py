"""The asyncio client: methods for TensorFlow Serving's RPCs, and handles bound to one model."""

from __future__ import annotations

import asyncio
import copy
import os
import socket
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import numpy as np

from aioserving import errors
from aioserving._types import DEFAULT, Array, Inputs, Metadata, Timeout
from aioserving.balancing import BalancingOptions, subset
from aioserving.calls import Answer, Calls, ModelRecord, ModelStats
from aioserving.circuit import CircuitOptions
from aioserving.codec import (
    ResponseDecoder,
    decode_model_spec,
    decode_predict_response,
    encode_model_spec,
    encode_predict_request,
)
from aioserving.deadline import deadline_after
from aioserving.health import ClientHealth, HealthOptions
from aioserving.hedging import HedgingPolicy
from aioserving.inference import (
    CLASSIFY,
    REGRESS,
    ClassifyResult,
    MultiInferenceResult,
    RegressResult,
    Tasks,
    check_signature,
    read_tasks,
)
from aioserving.monitor import check_connection, watch
from aioserving.observers import Observer, Observers
from aioserving.pool import Endpoint, EndpointStats, Place, Pool, PoolOptions
from aioserving.prediction import PredictResult
from aioserving.queueing import QueueStats
from aioserving.resolver import Resolver, ResolverOptions
from aioserving.retry import NO_RETRIES, RetryPolicy
from aioserving.security import TLS, Credentials, check_metadata, check_plaintext, connection_advice
from aioserving.signature import ModelMetadata, RequestEncoder, Signature
from aioserving.status import ModelStatus, VersionStatus
from aioserving.targets import Target, Targets, parse_targets, proxy_note
from aioserving.tf_examples import Context, Examples, encode_input
from aioserving.transport import (
    ChannelOptions,
    Compression,
    Transport,
    check_fork,
    compressed,
    process_generation,
)
from aioserving.wire import delimited

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from typing_extensions import Self

    from aioserving.batching import BatchedModel
    from aioserving.configuration import ModelConfigs, ModelLike
    from aioserving.messages import ModelServerConfig, View
    from aioserving.reload import ReloadResult, Reloads
    from aioserving.scoring import Items, OnError, Scoring, Source
    from aioserving.transport import ChannelCredentials

__all__ = ["AsyncClient", "ClientStats", "Model"]

_PREDICT: Final = "/tensorflow.serving.PredictionService/Predict"
_CLASSIFY: Final = "/tensorflow.serving.PredictionService/Classify"
_REGRESS: Final = "/tensorflow.serving.PredictionService/Regress"
_MULTI_INFERENCE: Final = "/tensorflow.serving.PredictionService/MultiInference"
_GET_MODEL_METADATA: Final = "/tensorflow.serving.PredictionService/GetModelMetadata"
_GET_MODEL_STATUS: Final = "/tensorflow.serving.ModelService/GetModelStatus"
_RELOAD_CONFIG: Final = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"

#: The retries of a client that says nothing else.
DEFAULT_RETRY: Final = RetryPolicy()

#: Seconds for which fetched signatures are believed when they refuse an input.
_BELIEVE: Final = 1.0

_Result = TypeVar("_Result", ClassifyResult, RegressResult, MultiInferenceResult)


@dataclass(frozen=True)
class ClientStats:
    """What a client holds and has done, at one moment; `print` it."""

    #: Every endpoint with its connections, state and latencies.
    endpoints: tuple[EndpointStats, ...]
    #: Callers waiting for room, how long callers waited, and whom they were refused by.
    queue: QueueStats
    #: Calls, errors, retries, hedges and latencies of every model.
    models: tuple[ModelStats, ...]
    #: ``"closed"`` if calls are made; ``"open"`` or ``"half-open"`` if nothing answers.
    circuit: str

    @property
    def waiting(self) -> int:
        """Callers waiting for room."""
        return self.queue.waiting

    @property
    def in_flight(self) -> int:
        """Calls under way."""
        return sum(endpoint.in_flight for endpoint in self.endpoints)

    @property
    def calls(self) -> int:
        """Calls started so far."""
        return sum(endpoint.calls for endpoint in self.endpoints)

    @property
    def errors(self) -> int:
        """Calls that ended in an error so far."""
        return sum(endpoint.errors for endpoint in self.endpoints)

    def __str__(self) -> str:
        lines = [f"circuit {self.circuit}, {self.in_flight} in flight, {self.waiting} waiting"]
        lines += [
            f"  {endpoint.target}: {endpoint.state}, {endpoint.in_flight} in flight, {endpoint.latency}"
            for endpoint in self.endpoints
        ]
        lines += [f"  {model}" for model in self.models]
        return "\n".join(lines)


class _Plan:
    """What is known in advance of calls to one (model, version, label, signature)."""

    __slots__ = (
        "decoder",
        "encoder",
        "fetched_at",
        "known",
        "model",
        "model_spec",
        "place",
        "record",
        "seen_spec",
        "selector",
        "signature",
        "version",
    )

    def __init__(
        self,
        model: str,
        version: int | None,
        version_label: str | None,
        signature_name: str | None,
        record: ModelRecord,
    ) -> None:
        if not isinstance(model, str) or not model:
            raise errors.InvalidArgumentError(f"model must be a name, got {model!r}")
        if version is not None and version_label is not None:
            raise errors.InvalidArgumentError(
                f"give a version or a version_label, not both (got {version!r} and {version_label!r})",
                model=model,
            )
        self.model = model
        self.model_spec = encode_model_spec(
            model, version=version, version_label=version_label, signature_name=signature_name
        )
        self.selector = (version, version_label, signature_name)
        self.place = Place(model, version, version_label)
        self.record = record
        self.signature: Signature | None = None
        self.known: dict[int, Signature] = {}  # by version: servers of a fleet may differ for a while
        self.version = -1  # of `signature`
        self.encoder: RequestEncoder | None = None  # for the signature that was called last
        self.decoder = ResponseDecoder()
        self.seen_spec = b""  # the ModelSpec of the last answer: a new one may mean a new version
        self.fetched_at = 0.0


class AsyncClient:
    """A client of TensorFlow Serving for asyncio.

    ```python
    async with AsyncClient("127.0.0.1:8500") as client:
        result = await client.predict("digits", {"images": images})
        result["scores"]
    ```

    Making one does no I/O, so it may be made at module level. It binds to the event loop of its first
    call, connects then, and belongs to that loop until it is closed; use `Client` from several threads
    or loops. Share one client among all tasks of a program. Cancelling a call at any point is safe.

    Args:
        targets: ``"host:port"``, ``"unix:///path"``, or several of them that serve the same models, also as
            a mapping to weights; ``"dns:///name:port"`` for every address of a name, kept up to date. See
            `aioserving.targets`.
        timeout: seconds that a call may take when it says nothing else; None for no limit. It is one
            deadline for everything: waiting, all attempts, and the server's own work.
        tls: TLS, with the system's authorities if True; see `TLS`. None for plaintext.
        credentials: what calls carry to say who makes them: a token, a key, or a scheme of one's own; see
            `aioserving.security`. (Channel credentials of grpc's own are taken, too.)
        metadata: gRPC metadata sent with every call.
        max_message_size: largest message, in bytes, sent or received; None for what the server and
            protobuf take, 2 GiB.
        retry: which failures are tried again, and how often; None for never.
        hedging: when a call that is late is sent a second time; None for never.
        balancing: which endpoint takes a call: settings, or the name of a policy.
        health: when an endpoint gets no calls for a while.
        circuit: when nothing is sent any more because nothing answers.
        pool: number of connections and calls in flight.
        resolver: how often names are looked up.
        channel_options: gRPC channel arguments, over this library's own.
        observers: functions that are told what the client decides; see `aioserving.events`.

    Raises:
        ValueError: a target is malformed or there is none; or credentials would go out in plaintext.
    """

    def __init__(
        self,
        targets: Targets,
        *,
        timeout: float | None = 60.0,
        tls: TLS | bool | None = None,
        credentials: Credentials | ChannelCredentials | None = None,
        metadata: Metadata = (),
        max_message_size: int | None = None,
        retry: RetryPolicy | None = DEFAULT_RETRY,
        hedging: HedgingPolicy | None = None,
        balancing: BalancingOptions | str | None = None,
        health: HealthOptions | None = None,
        circuit: CircuitOptions | None = None,
        pool: PoolOptions | None = None,
        resolver: ResolverOptions | None = None,
        channel_options: ChannelOptions = (),
        observers: Iterable[Observer] = (),
    ) -> None:
        self._targets = parse_targets(targets)
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"timeout must be a number of seconds, at least 0, or None; got {timeout!r}")
        self._timeout = timeout
        self._tls = TLS() if tls is True else tls or None
        self._channel_credentials: ChannelCredentials | None = None
        if credentials is not None and not isinstance(credentials, Credentials):
            if self._tls is not None:
                raise ValueError("give tls or channel credentials, not both")
            self._channel_credentials, credentials = credentials, None
        secure = self._tls is not None or self._channel_credentials is not None
        check_plaintext(credentials, secure=secure)
        self._generation_of_tls = self._tls.generation if self._tls is not None else 0
        self._channel_options: list[tuple[str, Any]] = []
        if max_message_size is not None:
            self._channel_options = [
                ("grpc.max_send_message_length", max_message_size),
                ("grpc.max_receive_message_length", max_message_size),
            ]
        self._channel_options.extend(channel_options)
        self._plans: dict[tuple[str, int | None, str | None, str | None], _Plan] = {}
        self._fetching: dict[Place, asyncio.Task[ModelMetadata]] = {}
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._generation = -1
        told = Observers(observers)
        #: Every endpoint that is known, in use or not, by address.
        self._fleet = {target.address: target for target in self._targets if not target.to_resolve}
        options = pool or PoolOptions()
        self._subset = options.subset
        self._subset_id = options.subset_id or f"{socket.gethostname()}-{os.getpid()}-{os.urandom(8).hex()}"
        self._pool = Pool(
            self._wanted(),
            self._open_transport,
            options=options,
            balancer=balancing,
            health=health,
            observers=told,
        )
        self._calls = Calls(
            self._pool,
            retry=retry or NO_RETRIES,
            hedging=hedging,
            circuit=circuit or CircuitOptions(),
            credentials=credentials,
            metadata=check_metadata(tuple(metadata)),
            observers=told,
            ensure_endpoints=self._ensure_endpoints,
            explain=self._explain,
        )
        self._monitor = watch(self._pool, self._has_model, self._renew_connections)
        self._resolver: Resolver | None = None
        if any(target.to_resolve for target in self._targets):
            self._resolver = Resolver(self._targets, self._change_fleet, options=resolver)
            self._pool.on_loss = self._resolver.request
        self._asking = ModelRecord("", None)
        self._reloads: Reloads | None = None
        #: Handles that gather calls, which are sent before the client closes.
        self._batched: weakref.WeakSet[BatchedModel] = weakref.WeakSet()

    # -- life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._bind()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def aclose(self, grace: float | None = None) -> None:
        """Let running calls end and close every connection; new calls are refused from now on.

        Safe to call again. A second caller waits with the first.

        Args:
            grace: seconds given to running calls before they are cancelled (their callers get a
                `ClientClosedError`); None gives them the time that their own deadlines allow.

        Raises:
            EventLoopError: called from another loop than the one that the client is bound to.
        """
        self._closed = True
        loop = self._loop
        if loop is None:
            return
        if self._generation != process_generation() or loop.is_closed():
            self._abandon()
            return
        if loop is not asyncio.get_running_loop():
            raise self._wrong_loop(loop)
        for task in self._fetching.values():
            task.cancel()
        try:
            if self._batched:
                await asyncio.gather(*(batched.aclose(grace) for batched in tuple(self._batched)))
            await self._pool.close(grace)
        finally:
            await self._monitor.aclose()
            if self._resolver is not None:
                await self._resolver.aclose()
            await self._calls.aclose()

    def _abandon(self) -> None:
        """Let go of everything without a loop."""
        self._closed = True
        self._monitor.abandon()
        self._pool.abandon()
        loop = self._loop
        if self._resolver is not None and loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._resolver.abandon)

    def __del__(self, _warn: Any = warnings.warn) -> None:
        if getattr(self, "_loop", None) is None or self._closed or self._generation != process_generation():
            return
        self._abandon()  # grpc closes the sockets with the channels
        _warn(f"unclosed {self!r}: use 'async with' or await aclose()", ResourceWarning, stacklevel=2)

    def __repr__(self) -> str:
        targets = ", ".join(target.address for target in self._targets[:3])
        targets += ", …" if len(self._targets) > 3 else ""
        state = "closed" if self._closed else "not connected" if self._loop is None else repr(self._pool)
        return f"<{type(self).__name__} of {targets}: {state}>"

    def stats(self) -> ClientStats:
        """Endpoints, connections, calls in flight and totals, at this moment."""
        return ClientStats(
            tuple(self._pool.stats()),
            self._pool.queue_stats(),
            self._calls.stats(),
            self._calls.circuit_state,
        )

    def health(self) -> ClientHealth:
        """How every endpoint is, as far as the client knows at this moment; nothing is asked."""
        return ClientHealth(self._pool.health(), self._calls.circuit_state)

    async def wait_ready(
        self, *models: str, every_endpoint: bool = False, timeout: Timeout = DEFAULT
    ) -> ClientHealth:
        """Connect, and wait until calls can be made.

        Args:
            models: models that must be available, too.
            every_endpoint: wait for every endpoint instead of any one.
            timeout: seconds to wait; the client's own setting if not given.

        Returns:
            How every endpoint is.

        Raises:
            DeadlineExceededError: not in time; the message tells what was still to come.
        """
        deadline = self._begin(timeout)
        await self._ensure_endpoints(deadline)
        pause = 0.02
        while True:
            wrong = await asyncio.gather(
                *(self._not_ready(endpoint, models, deadline) for endpoint in self._pool.endpoints)
            )
            if wrong and (not any(wrong) if every_endpoint else not all(wrong)):
                return self.health()
            left = self._remaining(deadline)
            # A round that is too short for an answer would hide what the last one found.
            if left is not None and left <= pause + 0.1:
                raise errors.DeadlineExceededError(
                    f"not ready in time: {'; '.join(filter(None, wrong)) or 'there is no endpoint'}"
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def _not_ready(self, endpoint: Endpoint, models: Sequence[str], deadline: float | None) -> str:
        """What an endpoint lacks, in words; empty if nothing."""
        left = self._remaining(deadline)
        patience = 5.0 if left is None else min(5.0, max(left, 0.0))
        wrong = await check_connection(self._pool, endpoint, patience)
        if wrong:
            if len(self._pool.endpoints) > 1 and patience >= self._pool.health_options.probe_timeout:
                self._pool.lose(endpoint, wrong)  # callers need not find out
            error = errors.UnavailableError(wrong)
            self._explain(error, endpoint)
            return f"{endpoint.target}: {error.details}"
        for model in models:
            try:
                if await self._has_model(endpoint, Place(model), patience) is False:
                    return f"{endpoint.target}: model {model!r} is not available"
            except errors.RPCError as error:
                return f"{endpoint.target}: {error.details}"
        self._pool.readmit(endpoint)
        return ""

    def add_targets(self, targets: Targets) -> None:
        """Let further endpoints take part, or give those that do another weight.

        They get few calls at first, and their share within seconds.

        Args:
            targets: as for the constructor, except for names (``dns:``), which only it takes.

        Raises:
            ValueError: a target is malformed.
        """
        parsed = self._as_known(parse_targets(targets))
        for target in parsed:
            if target.to_resolve:
                raise ValueError(f"names are given to the constructor, {target.address!r} is one")
        self._change_fleet(parsed, ())
        self._targets = (*self._targets, *(new for new in parsed if new not in self._targets))

    def remove_targets(self, targets: Targets) -> None:
        """Let endpoints get no more calls; those under way end.

        Raises:
            ValueError: a target is malformed, or none of this client's.
        """
        gone = self._as_known(parse_targets(targets))
        for target in gone:
            if target.address not in self._fleet:
                known = ", ".join(self._fleet)
                raise ValueError(f"target {target.address!r} is none of this client's: {known}")
        self._change_fleet((), gone)
        addresses = {target.address for target in gone}
        self._targets = tuple(target for target in self._targets if target.address not in addresses)

    def _as_known(self, targets: Sequence[Target]) -> list[Target]:
        """The same targets, by the addresses under which the client knows them already."""
        addresses = {target.key: address for address, target in self._fleet.items()}
        return [replace(target, address=addresses.get(target.key, target.address)) for target in targets]

    def _wanted(self) -> list[Target]:
        """Of the fleet the endpoints that this client is to use."""
        if self._subset is None:
            return list(self._fleet.values())
        return [self._fleet[address] for address in subset(self._fleet, self._subset_id, self._subset)]

    def _change_fleet(self, added: Sequence[Target], removed: Sequence[Target]) -> None:
        for target in removed:
            self._fleet.pop(target.address, None)
        self._fleet.update((target.address, target) for target in added)
        wanted = self._wanted()
        addresses = {target.address for target in wanted}
        self._pool.remove(
            [endpoint.target for endpoint in self._pool.endpoints if endpoint.target not in addresses]
        )
        self._pool.add(wanted)

    def _begin(self, timeout: Timeout) -> float | None:
        """Make sure that the client can be used here and now; gives the deadline of a call that starts."""
        loop = self._loop
        if loop is None or _running_loop() is not loop or self._generation != process_generation():
            loop = self._bind()
        if self._closed:
            raise errors.ClientClosedError("the client is closed")
        return deadline_after(self._timeout if timeout is DEFAULT else timeout, loop.time())

    def _bind(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise errors.ClientClosedError("the client is closed")
        loop = _running_loop()
        if loop is None:
            raise errors.EventLoopError(_no_loop())
        if self._loop is None:
            check_fork()
            self._loop = loop
            self._generation = process_generation()
            # uvloop's clock moves once in an iteration and has milliseconds; the system's runs beside it.
            clock = time.monotonic if abs(loop.time() - time.monotonic()) < 1 else loop.time
            self._calls.clock = self._pool.clock = clock
            return loop
        check_fork(self._generation)
        if loop is not self._loop:
            raise self._wrong_loop(self._loop)
        return loop

    def _remaining(self, deadline: float | None) -> float | None:
        """Seconds left until `deadline`, negative once it has passed; None if there is none."""
        return None if deadline is None else deadline - self._loop.time()  # type: ignore[union-attr]

    def _wrong_loop(self, bound: asyncio.AbstractEventLoop) -> errors.EventLoopError:
        if bound.is_closed():
            return errors.EventLoopError(
                "this client is bound to an event loop that is closed (a first asyncio.run() has ended?): "
                "make the client inside the coroutine that asyncio.run() runs, or use aioserving.Client"
            )
        return errors.EventLoopError(
            "this client is bound to another event loop, the one of its first call: make one client per "
            "loop, or share an aioserving.Client, which works from every thread"
        )

    def _open_transport(self, target: Target) -> Transport:
        options = [*target.channel_options(os.environ), *self._channel_options]
        credentials = self._channel_credentials
        if self._tls is not None:
            credentials, named, self._generation_of_tls = self._tls.current(target.address)
            options = [*options, *named]
        return Transport(target.address, credentials=credentials, options=options)

    def _renew_connections(self) -> None:
        """Have connections made anew if the certificates have changed."""
        if self._tls is not None and self._tls.generation != self._generation_of_tls:
            self._generation_of_tls = self._tls.generation
            self._pool.renew()

    async def _ensure_endpoints(self, deadline: float | None) -> None:
        if self._resolver is not None:
            await self._resolver.first(deadline)

    def _explain(self, error: errors.RPCError, endpoint: Endpoint) -> None:
        """Add to the error of a connection what may have caused it."""
        advice = "" if self._channel_credentials is not None else connection_advice(error.details, self._tls)
        for note in (advice, proxy_note(endpoint.address, os.environ)):
            if note:
                error.details += f"; {note}"

    # -- calls --------------------------------------------------------------------------------------

    def _own_deadline(self) -> float | None:
        """A deadline from now on by the client's own setting, whatever scope the caller is in."""
        return None if self._timeout is None else asyncio.get_running_loop().time() + self._timeout

    def _endpoint(self, target: str) -> Endpoint:
        for endpoint in self._pool.endpoints:
            if endpoint.target == target:
                return endpoint
        known = ", ".join(endpoint.target for endpoint in self._pool.endpoints)
        raise ValueError(f"target {target!r} is none of this client's: {known}")

    async def _ask(
        self, method: str, request: bytes, deadline: float | None, place: Place, metadata: Metadata
    ) -> Answer:
        """A call that is about a model but does not run it."""
        return await self._calls.call(method, request, deadline, place, self._asking, metadata)

    async def _has_model(self, endpoint: Endpoint, place: Place, timeout: float) -> bool | None:
        """Whether an endpoint has a model now; None if it cannot tell, as of labels."""
        if place.version_label is not None:
            return None
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            status = await self._get_status(place.model, place.version, deadline, (), endpoint)
        except errors.NotFoundError:
            return False
        except errors.UnimplementedError:
            return None
        return bool(status.available)

    @overload
    async def predict(
        self,
        model: str,
        inputs: Inputs,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult: ...

    @overload
    async def predict(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult: ...

    async def predict(
        self,
        model: str | Message | View,
        inputs: Inputs | None = None,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult:
        """Run a model on `inputs`.

        Inputs are checked against the signature before anything is sent: names, dtypes and shapes. The
        signature is fetched once per model, version and signature, and again when the server's answers
        come from another version.

        Args:
            model: name of the model; or a ready PredictRequest, which is sent as it is.
            inputs: arrays (or lists, scalars, strings) by input name; or the one value of a signature
                with a single input. Arrays are cast only where numpy calls it ``same_kind``; lists and
                scalars take the signature's dtype.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            output_filter: names of the outputs to return; all if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False sends `inputs`, a mapping, as they are, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            Arrays by output name, read-only; `PredictResult.model_spec` tells the version.

        Raises:
            InvalidInputError: `inputs` do not fit the signature.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no PredictResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        deadline = self._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        if not isinstance(model, str):
            return await self._predict_message(model, inputs, deadline, metadata)
        plan = self._plan(model, version, version_label, signature_name)
        return await self._predict(plan, inputs, output_filter, deadline, validate, metadata)

    def _plan(
        self, model: str, version: int | None, version_label: str | None, signature_name: str | None
    ) -> _Plan:
        key = (model, version, version_label, signature_name)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = _Plan(*key, self._calls.record(model))
        return plan

    async def _predict(
        self,
        plan: _Plan,
        inputs: Any,
        output_filter: Sequence[str] | None,
        deadline: float | None,
        validate: bool,
        metadata: Metadata,
    ) -> PredictResult:
        if isinstance(output_filter, str):
            output_filter = (output_filter,)
        if validate:
            signature = plan.signature
            if signature is None:
                signature = await self._learn(plan, deadline)
            encoder = plan.encoder
            if encoder is None or encoder.signature is not signature:
                encoder = plan.encoder = RequestEncoder(signature, plan.model_spec)
            try:
                request = encoder.encode(inputs, output_filter or ())
            except errors.InvalidInputError:
                # The signature may be an old version's: believe a refusal only if it is fresh.
                newer = await self._learn_again(plan, deadline)
                if newer is None:
                    raise
                request = RequestEncoder(newer, plan.model_spec).encode(inputs, output_filter or ())
        else:
            request = encode_predict_request(
                _unchecked(plan.model, inputs), model_spec=plan.model_spec, output_filter=output_filter or ()
            )
        response, attempts = await self._calls.call(
            _PREDICT, request, deadline, plan.place, plan.record, metadata
        )
        try:
            outputs, model_spec = plan.decoder.decode(response)
            if model_spec != plan.seen_spec:
                _note(plan, model_spec)
        except errors.DecodeError as error:
            raise _undecodable(error, "Predict", plan.model, attempts[-1].target) from error
        return PredictResult(outputs, model_spec, response, attempts)

    async def _predict_message(
        self, request: Any, inputs: object, deadline: float | None, metadata: Metadata
    ) -> PredictResult:
        (response, attempts), model = await self._send_message(
            _PREDICT, "PredictRequest", request, (inputs,), deadline, metadata
        )
        try:
            outputs, model_spec = decode_predict_response(response)
        except errors.DecodeError as error:
            raise _undecodable(error, "Predict", model, attempts[-1].target) from error
        return PredictResult(outputs, model_spec, response, attempts)

    @overload
    async def classify(
        self,
        model: str,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult: ...

    @overload
    async def classify(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult: ...

    async def classify(
        self,
        model: str | Message | View,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult:
        """Classify examples.

        Which features the model requires is known to the server alone; that the signature can classify
        (one input, ``inputs``, and the outputs for it) is checked before anything is sent.

        Args:
            model: name of the model; or a ready ClassificationRequest, which is sent as it is.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither signature nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            ``result[0].label``, ``.score``, ``.top(3)`` for each example; ``result.scores`` and
            ``result.labels``, arrays of (examples, classes).

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or the signature does not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no ClassificationResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        deadline = self._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        if not isinstance(model, str):
            answer, name = await self._send_message(
                _CLASSIFY, "ClassificationRequest", model, (examples, context), deadline, metadata
            )
            return _read(ClassifyResult, answer, "Classify", name)
        plan = self._plan(model, version, version_label, signature_name)
        return await self._classify(plan, examples, context, deadline, validate, metadata)

    @overload
    async def regress(
        self,
        model: str,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult: ...

    @overload
    async def regress(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult: ...

    async def regress(
        self,
        model: str | Message | View,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult:
        """Find a number for each of the examples.

        Which features the model requires is known to the server alone; that the signature can regress
        (one input, ``inputs``, and the outputs for it) is checked before anything is sent.

        Args:
            model: name of the model; or a ready RegressionRequest, which is sent as it is.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            signature_name: key of the signature; ``serving_default`` if not given.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither signature nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            A sequence of the numbers; ``result.values``, a float32 array of (examples,).

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or the signature does not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no RegressionResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        deadline = self._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        if not isinstance(model, str):
            answer, name = await self._send_message(
                _REGRESS, "RegressionRequest", model, (examples, context), deadline, metadata
            )
            return _read(RegressResult, answer, "Regress", name)
        plan = self._plan(model, version, version_label, signature_name)
        return await self._regress(plan, examples, context, deadline, validate, metadata)

    @overload
    async def multi_inference(
        self,
        model: str,
        tasks: Tasks,
        examples: Examples,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult: ...

    @overload
    async def multi_inference(
        self,
        model: Message | View,
        *,
        timeout: Timeout = DEFAULT,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult: ...

    async def multi_inference(
        self,
        model: str | Message | View,
        tasks: Tasks | None = None,
        examples: Examples | None = None,
        *,
        context: Context | None = None,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult:
        """Run several signatures of one model on the same examples, in one run of its graph.

        What the server is certain to refuse (no tasks, a signature used twice, another model, a signature
        that cannot classify or regress) is refused before anything is sent.

        Args:
            model: name of the model; or a ready MultiInferenceRequest, which is sent as it is.
            tasks: ``("classify", signature_name)`` and ``("regress", signature_name)`` pairs (None for
                ``serving_default``), or `InferenceTask`s, of which method and signature count.
            examples: a dict of columns, a DataFrame or Table, a list of dicts, a dict of one example,
                `tf.Example` messages, views or bytes; see `aioserving.tf_examples.serialize_examples`.
            context: features of every example that has none of that name: a dict or a `tf.Example`.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            timeout: seconds until the call fails; the client's own setting if not given, None for no
                limit. The sooner of it and an ambient `anyio.fail_after` travels to the server.
            validate: False checks neither tasks nor serialized examples, and asks for no metadata.
            compression: ``"gzip"`` or ``"deflate"`` for this request; see `aioserving.transport.compressed`.
            metadata: gRPC metadata of this call.

        Returns:
            A `ClassifyResult` or `RegressResult` for each task, in order.

        Raises:
            InvalidInputError: examples are none, ragged or of mixed types; or tasks do not fit.
            InvalidArgumentError: the model cannot parse the examples: a feature that it requires is
                missing, or has another type or length.
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            SignatureNotFoundError: the model has no such signature.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            DecodeError: the answer is no MultiInferenceResponse.
            RPCError: any other gRPC status; see `aioserving.errors`.
        """
        deadline = self._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        if not isinstance(model, str):
            answer, name = await self._send_message(
                _MULTI_INFERENCE,
                "MultiInferenceRequest",
                model,
                (tasks, examples, context),
                deadline,
                metadata,
            )
            return _read(MultiInferenceResult, answer, "MultiInference", name)
        plan = self._plan(model, version, version_label, None)
        return await self._multi_inference(plan, tasks, examples, context, deadline, validate, metadata)

    async def _classify(
        self,
        plan: _Plan,
        examples: Any,
        context: Context | None,
        deadline: float | None,
        validate: bool,
        metadata: Metadata,
    ) -> ClassifyResult:
        answer = await self._infer(_CLASSIFY, CLASSIFY, plan, examples, context, deadline, validate, metadata)
        result = _read(ClassifyResult, answer, "Classify", plan.model)
        _note(plan, result._model_spec)
        return result

    async def _regress(
        self,
        plan: _Plan,
        examples: Any,
        context: Context | None,
        deadline: float | None,
        validate: bool,
        metadata: Metadata,
    ) -> RegressResult:
        answer = await self._infer(_REGRESS, REGRESS, plan, examples, context, deadline, validate, metadata)
        result = _read(RegressResult, answer, "Regress", plan.model)
        _note(plan, result._model_spec)
        return result

    async def _infer(
        self,
        method: str,
        kind: str,
        plan: _Plan,
        examples: Any,
        context: Context | None,
        deadline: float | None,
        validate: bool,
        metadata: Metadata,
    ) -> Answer:
        # Classify's and Regress's requests are alike.
        given = _encoded_input(plan.model, method, examples, context, validate)
        if validate:
            await self._check_signature(plan, kind, _short(method), deadline)
        request = delimited(1, plan.model_spec) + delimited(2, given)
        return await self._calls.call(method, request, deadline, plan.place, plan.record, metadata)

    async def _check_signature(self, plan: _Plan, kind: str, method: str, deadline: float | None) -> None:
        signature = plan.signature
        if signature is None:
            signature = await self._learn(plan, deadline)
        try:
            check_signature(signature, kind, method)
        except errors.InvalidInputError:
            newer = await self._learn_again(plan, deadline)
            if newer is None:
                raise
            check_signature(newer, kind, method)

    async def _multi_inference(
        self,
        plan: _Plan,
        tasks: Any,
        examples: Any,
        context: Context | None,
        deadline: float | None,
        validate: bool,
        metadata: Metadata,
    ) -> MultiInferenceResult:
        version, version_label, _ = plan.selector
        read = read_tasks(plan.model, tasks, check=validate)
        given = _encoded_input(plan.model, _MULTI_INFERENCE, examples, context, validate)
        plans = [self._plan(plan.model, version, version_label, task.signature_name) for task in read]
        if validate:
            unknown = [task_plan for task_plan in plans if task_plan.signature is None]
            if unknown:  # together, so that they share one request
                await asyncio.gather(*(self._learn(task_plan, deadline) for task_plan in unknown))
            for task, task_plan in zip(read, plans, strict=True):
                await self._check_signature(task_plan, task.method_name, "MultiInference", deadline)
        parts = [
            delimited(1, delimited(1, task_plan.model_spec) + delimited(2, task.method_name.encode()))
            for task, task_plan in zip(read, plans, strict=True)
        ]
        request = b"".join(parts) + delimited(2, given)
        answer = await self._calls.call(
            _MULTI_INFERENCE, request, deadline, plan.place, plan.record, metadata
        )
        result = _read(MultiInferenceResult, answer, "MultiInference", plan.model)
        for task_plan, item in zip(plans, result, strict=False):
            _note(task_plan, item._model_spec)
        return result

    async def _send_message(
        self,
        method: str,
        kind: str,
        request: Any,
        beside: tuple[object, ...],
        deadline: float | None,
        metadata: Metadata,
    ) -> tuple[Answer, str]:
        """Send a ready request; gives the answer and the model's name."""
        message = getattr(request, "pb", request)
        full_name = getattr(getattr(message, "DESCRIPTOR", None), "full_name", None)
        if full_name != f"tensorflow.serving.{kind}":
            raise TypeError(f"model must be a name or a {kind}, got {type(request).__name__}")
        if any(item is not None for item in beside):
            raise TypeError(f"a {kind} carries its own inputs; give nothing beside it")
        if kind == "MultiInferenceRequest":
            spec = message.tasks[0].model_spec if message.tasks else None
        else:
            spec = message.model_spec
        model: str = spec.name if spec is not None else ""
        version = spec.version.value if spec is not None and spec.HasField("version") else None
        label = (spec.version_label or None) if spec is not None else None
        answer = await self._calls.call(
            method,
            message.SerializeToString(),
            deadline,
            Place(model, version, label),
            self._calls.record(model),
            metadata,
        )
        return answer, model

    async def _learn(self, plan: _Plan, deadline: float | None) -> Signature:
        """Fetch the plan's signature; calls at the same time, also of other signatures, share one request."""
        place = plan.place
        task = self._fetching.get(place)
        if task is None:
            # Not under the first caller's deadline or cancel scope: others wait for it too.
            task = asyncio.get_running_loop().create_task(
                self._fetch_metadata(
                    place.model, place.version, place.version_label, self._own_deadline(), ()
                )
            )
            self._fetching[place] = task
            task.add_done_callback(lambda _: self._fetching.pop(place, None))
        timeout = self._remaining(deadline)
        if timeout is None or timeout > 0:
            await asyncio.wait((task,), timeout=timeout)
        if not task.done():
            raise errors.DeadlineExceededError(
                "the deadline passed while the signature was being fetched",
                model=plan.model,
                method="GetModelMetadata",
            )
        if task.cancelled():
            raise errors.ClientClosedError("the client was closed while the signature was being fetched")
        try:
            metadata = task.result()
        except errors.RPCError as error:
            raise copy.copy(error) from error  # one raised in several tasks would grow every traceback
        plan.version = metadata.version
        plan.fetched_at = asyncio.get_running_loop().time()
        plan.signature = plan.known[metadata.version] = metadata.signature(plan.selector[2])
        return plan.signature

    async def _learn_again(self, plan: _Plan, deadline: float | None) -> Signature | None:
        """The signature if the server's is another one by now, else None."""
        if asyncio.get_running_loop().time() - plan.fetched_at < _BELIEVE:
            return None
        before = plan.signature
        try:
            after = await self._learn(plan, deadline)
        except errors.RPCError:
            return None  # the refusal at hand says more
        return None if after == before else after

    async def get_model_metadata(
        self,
        model: str,
        *,
        version: int | None = None,
        version_label: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelMetadata:
        """Ask the server for a model's signatures.

        Args:
            model: name of the model.
            version: version number; the newest available one if neither it nor a label is given.
            version_label: label that the server's configuration gives a version.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of this call.

        Returns:
            The signatures with their inputs' and outputs' names, dtypes and shapes.

        Raises:
            ModelNotFoundError: unknown model, or (`VersionNotFoundError`) version.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            RPCError: any other gRPC status.
        """
        deadline = self._begin(timeout)
        self._plan(model, version, version_label, None)  # checks the arguments
        return await self._fetch_metadata(model, version, version_label, deadline, metadata)

    async def _fetch_metadata(
        self,
        model: str,
        version: int | None,
        version_label: str | None,
        deadline: float | None,
        metadata: Metadata,
    ) -> ModelMetadata:
        request = delimited(
            1, encode_model_spec(model, version=version, version_label=version_label)
        ) + delimited(2, b"signature_def")
        try:
            response, attempts = await self._ask(
                _GET_MODEL_METADATA, request, deadline, Place(model, version, version_label), metadata
            )
        except errors.UnimplementedError as error:
            error.details += "; this server tells no signatures: call with validate=False"
            raise
        try:
            return ModelMetadata.from_response(response)
        except errors.DecodeError as error:
            raise _undecodable(error, "GetModelMetadata", model, attempts[-1].target) from error

    async def get_model_status(
        self,
        model: str,
        *,
        version: int | None = None,
        target: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelStatus:
        """Ask a server which versions of a model it has seen, and how each is.

        Versions that were unloaded stay in the list, as ``END``. (The server ignores a version label
        here, so there is no such argument.)

        Args:
            model: name of the model.
            version: ask for this version only.
            target: which of the client's targets to ask; any one if not given.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of this call.

        Returns:
            A sequence, highest version first, of `VersionStatus`: ``version``, ``state``, ``error``.

        Raises:
            ModelNotFoundError: the server never saw such a model, or (`VersionNotFoundError`) version.
            DeadlineExceededError: no answer in time.
            UnavailableError: the server cannot be reached.
            RPCError: any other gRPC status.
        """
        deadline = self._begin(timeout)
        endpoint = None if target is None else self._endpoint(target)
        return await self._get_status(model, version, deadline, metadata, endpoint)

    async def _get_status(
        self,
        model: str,
        version: int | None,
        deadline: float | None,
        metadata: Metadata,
        endpoint: Endpoint | None,
    ) -> ModelStatus:
        request = delimited(1, encode_model_spec(model, version=version))
        if endpoint is None:
            answer = await self._ask(_GET_MODEL_STATUS, request, deadline, Place(model, version), metadata)
        else:
            answer = await self._calls.call_once(
                _GET_MODEL_STATUS, request, deadline, model, metadata, endpoint
            )
        response, attempts = answer
        try:
            return ModelStatus.from_response(model, response)
        except errors.DecodeError as error:
            raise _undecodable(error, "GetModelStatus", model, attempts[-1].target) from error

    async def wait_until_available(
        self,
        model: str,
        *,
        version: int | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> VersionStatus:
        """Wait until a version of `model` can serve, on every one of the client's targets.

        Waits for the servers themselves to come up, too.

        Args:
            model: name of the model.
            version: the version to wait for; any if not given.
            timeout: seconds to wait; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The status of the version that is available, the highest if there are several.

        Raises:
            DeadlineExceededError: not available in time; the message tells the last state seen.
            ModelLoadError: loading it failed, so that waiting longer is no use; the message tells why.
        """
        deadline = self._begin(timeout)
        await self._ensure_endpoints(deadline)
        found = [
            await self._wait_until_available(model, version, deadline, metadata, endpoint)
            for endpoint in self._pool.endpoints
        ]
        return min(found, key=lambda status: status.version)

    async def _wait_until_available(
        self,
        model: str,
        version: int | None,
        deadline: float | None,
        metadata: Metadata,
        endpoint: Endpoint,
    ) -> VersionStatus:
        loop = asyncio.get_running_loop()
        what = f"{model!r}" if version is None else f"version {version} of {model!r}"
        last_seen = "no answer yet"
        pause = 0.02
        while True:
            patience = loop.time() + 5.0  # one unanswered question must not take up the whole wait
            try:
                status = await self._get_status(
                    model,
                    version,
                    patience if deadline is None else min(patience, deadline),
                    metadata,
                    endpoint,
                )
                if status.available:
                    return status.available[0]
                last_seen = str(status)
                if status.failed and all(item.ended for item in status):
                    raise errors.ModelLoadError(
                        [
                            errors.LoadFailure(endpoint.target, model, item.version, item.error or "")
                            for item in status.failed
                        ]
                    )
            except errors.NotFoundError:
                last_seen = "the server does not know it"
            except (errors.UnavailableError, errors.DeadlineExceededError) as error:
                last_seen = error.details
            left = self._remaining(deadline)
            if left is not None and left <= pause:
                raise errors.DeadlineExceededError(
                    f"{what} did not become available in time; last seen: {last_seen}",
                    model=model,
                    endpoint=endpoint.target,
                    method="GetModelStatus",
                )
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    async def reload_config(
        self,
        config: ModelConfigs,
        *,
        old: ModelConfigs | None = None,
        wait: bool = False,
        check: bool = True,
        metric_names: Sequence[str] = (),
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Replace the list of models that a server serves.

        The new list replaces the old one: models that it leaves out are unloaded. To change one thing,
        use `add_models`, `remove_models` or `set_labels`. The server answers when every newly named model
        has a version available; of changes to models that were there before (a version policy) it answers
        at once. Labels can only point at versions that are available already. With `wait` the call
        returns when the versions that the config names are available, and labels are set in a second
        step, once their versions are.

        A base path that does not exist, or has no version in it, blocks the server's reloads for good;
        only this call's wait ends with its deadline. A server that polls its ``--model_config_file``
        undoes the reload at the next poll: use `write_config` there.

        With several endpoints it is sent to every one of them, one after the other.

        Args:
            config: the models: `ModelConfig`s, dicts of their fields, or a `ModelServerConfig`; or its
                text, or the path of a ``--model_config_file``. A model without a platform gets
                ``"tensorflow"`` (the server would keep a config without one and refuse every later
                reload).
            old: the config in force, likewise, if this client did not apply it: labels that move then stay
                where they are until their new versions are available.
            wait: return when every version that the config names, by policy or label, is available, and
                at least one of every model.
            check: refuse what the server would refuse before anything is sent.
            metric_names: metrics of the server whose growth during the reload to report.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the call.

        Returns:
            The config as it was sent; with `wait`, how every model is on every server.

        Warns:
            ConfigWarning: the server may refuse the config, or would wait on it without end.

        Raises:
            InvalidConfigError: the server would refuse the config; nothing was sent.
            InvalidArgumentError: the server refuses the config.
            FailedPreconditionError: a label points at a version that is not available.
            UnknownError: models that were added failed to load; the message says which and why.
            ModelLoadError: with `wait`: versions failed to load; it lists which and why.
            DeadlineExceededError: models were not available in time, the message says which; the server
                goes on loading them.
            DecodeError: a text is no config; with line and column.
            OSError: a file cannot be read.
            RPCError: any other gRPC status.
        """
        from aioserving.configuration import read_config

        deadline = self._begin(timeout)
        new = read_config(config, check=check)
        wait_for = (lambda name: True) if wait else None
        return await self._reload(lambda _: new, old, deadline, metadata, wait_for, metric_names, check)

    async def add_models(
        self,
        models: ModelLike | Iterable[ModelLike],
        *,
        config: ModelConfigs | None = None,
        wait: bool = True,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Serve further models beside those that are served; one of a name that is there is replaced.

        The server cannot be asked for its config, so this changes the one that this client applied last,
        or `config`. What others changed in the meantime is lost.

        Args:
            models: one model, or several.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            wait: return when the added models are available.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config; with `wait`, how the added models are on every server.

        Raises:
            ValueError: this client applied no config yet, and none is given.
            ModelLoadError: with `wait`: versions failed to load; it lists which and why.
            RPCError: as `reload_config`.
        """
        from aioserving.configuration import read_config, with_models

        deadline = self._begin(timeout)
        new = read_config([models] if _is_one(models) else models)  # type: ignore[list-item, arg-type]
        names = {model.name for model in new.model_config_list}
        return await self._reload(
            lambda old: with_models(_known(config, old), new.model_config_list),
            config,
            deadline,
            metadata,
            names.__contains__ if wait else None,
        )

    async def remove_models(
        self,
        names: str | Iterable[str],
        *,
        config: ModelConfigs | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Stop serving models; the others stay. The server unloads them after it has answered.

        Args:
            names: name of the model, or several.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config.

        Raises:
            ValueError: this client applied no config yet and none is given; or it has no such model.
            RPCError: as `reload_config`.
        """
        from aioserving.configuration import without_models

        deadline = self._begin(timeout)
        gone = [names] if isinstance(names, str) else list(names)
        return await self._reload(
            lambda old: without_models(_known(config, old), gone), config, deadline, metadata
        )

    async def set_labels(
        self,
        model: str,
        labels: Mapping[str, int | None],
        *,
        config: ModelConfigs | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ReloadResult:
        """Point version labels of a model at versions, loading these first where they are not.

        A label can only point at a version that is available. So this is two reloads where it has to be:
        the first loads the version while the label, and the version that it is on, stay; the second moves
        the label. Requests that name the label are answered throughout.

        Args:
            model: name of the model.
            labels: version by label; None takes the label away. Other labels stay.
            config: the config in force, as for `reload_config`, if this client did not apply it.
            timeout: seconds until the call fails; the client's own setting if not given.
            metadata: gRPC metadata of the calls.

        Returns:
            The new config, and how the model is on every server.

        Raises:
            ValueError: this client applied no config yet and none is given; or it has no such model.
            ModelLoadError: a version failed to load; the label is where it was.
            DeadlineExceededError: a version was not available in time; the label is where it was.
            RPCError: as `reload_config`.
        """
        from aioserving.configuration import with_labels

        deadline = self._begin(timeout)
        return await self._reload(
            lambda old: with_labels(_known(config, old), model, labels),
            config,
            deadline,
            metadata,
            model.__eq__,
        )

    @property
    def config(self) -> ModelServerConfig | None:
        """A copy of the config that this client applied last; None if it did not yet."""
        config = self._reloads.config if self._reloads is not None else None
        return config.copy() if config is not None else None

    async def _reload(
        self,
        change: Callable[[ModelServerConfig | None], ModelServerConfig],
        known: ModelConfigs | None,
        deadline: float | None,
        metadata: Metadata,
        wait_for: Callable[[str], bool] | None = None,
        metric_names: Sequence[str] = (),
        check: bool = True,
    ) -> ReloadResult:
        from aioserving.configuration import read_config
        from aioserving.reload import Reloads

        in_force = read_config(known, check=False) if known is not None else None
        await self._ensure_endpoints(deadline)
        if self._reloads is None:
            self._reloads = Reloads(clock=asyncio.get_running_loop().time)
        return await self._reloads.apply(
            change,
            _Administration(self, metadata),
            [endpoint.target for endpoint in self._pool.endpoints],
            deadline,
            wait_for=wait_for,
            metric_names=metric_names,
            check=check,
            known=in_force,
            sees_files=_is_local,
        )

    def model(
        self,
        name: str,
        *,
        version: int | None = None,
        version_label: str | None = None,
        signature_name: str | None = None,
    ) -> Model:
        """A handle bound to one model, with the same methods less the arguments that it fixes.

        Args:
            name: name of the model.
            version: version number that the handle's calls ask for.
            version_label: label that they ask for.
            signature_name: signature that they use.
        """
        return Model(self, self._plan(name, version, version_label, signature_name))


class Model:
    """One model as an `AsyncClient` sees it: its methods with the model's name and version filled in.

    Made by `AsyncClient.model`; light, and valid as long as its client is.
    """

    __slots__ = ("_client", "_plan")

    def __init__(self, client: AsyncClient, plan: _Plan) -> None:
        self._client = client
        self._plan = plan

    def __repr__(self) -> str:
        version, version_label, signature_name = self._plan.selector
        parts = (
            ("version", version),
            ("version_label", version_label),
            ("signature_name", signature_name),
        )
        given = "".join(f", {name}={value!r}" for name, value in parts if value is not None)
        return f"<Model {self._plan.model!r}{given} of {self._client!r}>"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._plan.model

    async def predict(
        self,
        inputs: Inputs,
        *,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> PredictResult:
        """Run the model on `inputs`; see `AsyncClient.predict`."""
        client = self._client
        deadline = client._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        return await client._predict(self._plan, inputs, output_filter, deadline, validate, metadata)

    async def classify(
        self,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> ClassifyResult:
        """Classify examples; see `AsyncClient.classify`."""
        client = self._client
        deadline = client._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        return await client._classify(self._plan, examples, context, deadline, validate, metadata)

    async def regress(
        self,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> RegressResult:
        """Find a number for each of the examples; see `AsyncClient.regress`."""
        client = self._client
        deadline = client._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        return await client._regress(self._plan, examples, context, deadline, validate, metadata)

    async def multi_inference(
        self,
        tasks: Tasks,
        examples: Examples,
        *,
        context: Context | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> MultiInferenceResult:
        """Run several signatures of the model on the same examples; see `AsyncClient.multi_inference`."""
        client = self._client
        deadline = client._begin(timeout)
        if compression is not None:
            metadata = compressed(metadata, compression)
        return await client._multi_inference(
            self._plan, tasks, examples, context, deadline, validate, metadata
        )

    def batched(
        self,
        *,
        max_batch_size: int = 128,
        max_batch_bytes: int | None = 32 * 1024 * 1024,
        max_delay: float = 0.002,
        max_in_flight: int = 2,
        allowed_batch_sizes: Sequence[int] = (),
        max_waiting: int = 10_000,
        shared_outputs: Literal["refuse", "broadcast"] = "refuse",
        pad_axis: int | None = None,
        pad_value: float | bytes = 0,
        pad_inputs: Sequence[str] = (),
        length_input: str | None = None,
        mask_input: str | None = None,
        cut_outputs: Sequence[str] = (),
    ) -> BatchedModel:
        """A handle whose concurrent `predict` calls are sent together; see `aioserving.batching`.

        Nothing waits for company while nothing is under way, so a lonely caller loses no time. Share one
        handle among all callers, and close it, or use it as a context manager.

        Args:
            max_batch_size: rows that a batch may have; the server's own setting if it batches, too.
            max_batch_bytes: bytes of inputs beyond which no further caller is taken into a batch, where all
                rows are of one size; None for no limit.
            max_delay: seconds that a caller may wait for others while there is room for another batch.
            max_in_flight: batches under way at a time.
            allowed_batch_sizes: sizes that batches are filled up to, ascending; any size if not given.
            max_waiting: callers that may wait; the next one is refused.
            shared_outputs: what becomes of outputs without a batch axis: ``"refuse"`` them, or
                ``"broadcast"`` them to every caller.
            pad_axis: axis, 1 or more, along which inputs may differ in size; None if they may not.
            pad_value: what shorter inputs are filled up with.
            pad_inputs: inputs that are filled up; all whose signature leaves that axis open if not given.
            length_input: input that is told the true size of every row.
            mask_input: input that is told, by 1 and 0, which values are true.
            cut_outputs: outputs that have that axis too, and are cut back to the caller's own size.

        Raises:
            ValueError: a setting is out of range, or two do not go together.
        """
        from aioserving.batching import BatchedModel, BatchingOptions, Predictor

        client, plan = self._client, self._plan

        async def call(request: bytes, deadline: float | None, metadata: Metadata) -> Answer:
            return await client._calls.call(_PREDICT, request, deadline, plan.place, plan.record, metadata)

        predictor = Predictor(
            plan.model,
            plan.model_spec,
            begin=client._begin,
            signature=lambda: plan.signature,
            learn=lambda deadline: client._learn(plan, deadline),
            learn_again=lambda deadline: client._learn_again(plan, deadline),
            call=call,
            note=lambda model_spec: _note(plan, model_spec),
        )
        options = BatchingOptions(
            max_batch_size=max_batch_size,
            max_batch_bytes=max_batch_bytes,
            max_delay=max_delay,
            max_in_flight=max_in_flight,
            allowed_batch_sizes=tuple(allowed_batch_sizes),
            max_waiting=max_waiting,
            shared_outputs=shared_outputs,
            pad_axis=pad_axis,
            pad_value=pad_value,
            pad_inputs=tuple(pad_inputs),
            length_input=length_input,
            mask_input=mask_input,
            cut_outputs=tuple(cut_outputs),
        )
        batched = BatchedModel(predictor, options)
        client._batched.add(batched)
        return batched

    def score(
        self,
        source: Source,
        *,
        batch_size: int = 256,
        max_in_flight: int | None = None,
        ordered: bool = True,
        on_error: OnError = "raise",
        outage: float = 300.0,
        items: Items | None = None,
        keep: Sequence[str] = (),
        first_row: int = 0,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        compression: Compression | None = None,
        metadata: Metadata = (),
    ) -> Scoring:
        """Run the model on any number of rows, in batches, in bounded memory; see `aioserving.scoring`.

        Use the result as a context manager, and iterate over it for a `ScoredBatch` each: ``index``,
        ``start``, ``stop``, ``inputs``, ``outputs``.

        Args:
            source: iterable (or async iterable) of rows or batches, arrays and memory maps, a dict of
                columns, a DataFrame, an Arrow table or reader.
            batch_size: rows of a call.
            max_in_flight: batches that are held at a time; found while it runs if not given.
            ordered: give batches in the order of the source, not as they are done.
            on_error: what becomes of rows that the server refuses: ``"raise"`` the error, ``"skip"`` them,
                or ``"collect"`` them in ``batch.errors``.
            outage: seconds for which servers that do not answer are waited for.
            items: whether `source` gives ``"rows"`` or ``"batches"``, where that cannot be told.
            keep: columns that are not sent, and come back in ``batch.kept``.
            first_row: number of the first row of `source`.
            output_filter: names of the outputs to ask for; all if not given.
            timeout: seconds until a call fails; the client's own setting if not given.
            validate: False does not check inputs against the signature.
            compression: ``"gzip"`` or ``"deflate"`` for the requests.
            metadata: gRPC metadata of the calls.

        Raises:
            ValueError: a setting is out of range.
            TypeError: `source` is nothing of the above.
        """
        from aioserving.scoring import Scoring

        client, plan = self._client, self._plan

        async def predict(inputs: Inputs) -> PredictResult:
            return await self.predict(
                inputs,
                output_filter=output_filter,
                timeout=timeout,
                validate=validate,
                compression=compression,
                metadata=metadata,
            )

        async def signature() -> Signature:
            deadline = client._begin(timeout)
            return plan.signature or await client._learn(plan, deadline)

        return Scoring(
            source,
            predict,
            signature=signature if validate else None,
            name=plan.model,
            batch_size=batch_size,
            max_in_flight=max_in_flight,
            ordered=ordered,
            on_error=on_error,
            outage=outage,
            items=items,
            keep=keep,
            first_row=first_row,
        )

    async def get_model_metadata(
        self, *, timeout: Timeout = DEFAULT, metadata: Metadata = ()
    ) -> ModelMetadata:
        """Ask the server for the model's signatures; see `AsyncClient.get_model_metadata`."""
        version, version_label, _ = self._plan.selector
        return await self._client.get_model_metadata(
            self._plan.model,
            version=version,
            version_label=version_label,
            timeout=timeout,
            metadata=metadata,
        )

    async def get_model_status(
        self,
        *,
        target: str | None = None,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> ModelStatus:
        """Ask a server how the model's versions are; see `AsyncClient.get_model_status`."""
        return await self._client.get_model_status(
            self._plan.model,
            version=self._plan.selector[0],
            target=target,
            timeout=timeout,
            metadata=metadata,
        )

    async def wait_until_available(
        self, *, timeout: Timeout = DEFAULT, metadata: Metadata = ()
    ) -> VersionStatus:
        """Wait until the model can serve; see `AsyncClient.wait_until_available`."""
        return await self._client.wait_until_available(
            self._plan.model, version=self._plan.selector[0], timeout=timeout, metadata=metadata
        )


# None outside a loop, where `get_running_loop` would raise.
_running_loop = asyncio._get_running_loop


def _short(method: str) -> str:
    return method.rpartition("/")[2]


def _undecodable(error: errors.DecodeError, method: str, model: str, target: str) -> errors.DecodeError:
    return errors.DecodeError(
        f"{method} of model {model!r} at {target} answered what cannot be read: {error}"
    )


def _read(kind: type[_Result], answer: Answer, method: str, model: str) -> _Result:
    response, attempts = answer
    try:
        result = kind.from_response(response)
    except errors.DecodeError as error:
        raise _undecodable(error, method, model, attempts[-1].target) from error
    result._attempts = attempts
    return result


def _note(plan: _Plan, model_spec: bytes) -> None:
    """Go by the signature of the version that has answered; forget it if that is not known yet."""
    if model_spec != plan.seen_spec:
        plan.seen_spec = model_spec
        version = decode_model_spec(model_spec)[1]
        if version != plan.version and version is not None and plan.selector[0] is None:
            plan.signature = plan.known.get(version)
            plan.version = version


def _encoded_input(model: str, method: str, examples: Any, context: Any, check: bool) -> bytes:
    try:
        return encode_input(examples, context, check=check)[0]
    except errors.InvalidInputError as error:
        error.model, error.method = model, _short(method)
        raise


def _unchecked(model: str, inputs: Any) -> dict[str, Array]:
    if not isinstance(inputs, Mapping):
        raise errors.InvalidInputError(
            f"with validate=False inputs must be a mapping from input names to values, "
            f"got {type(inputs).__name__}: without the signature their names are not known",
            model=model,
            method="Predict",
        )
    return {name: np.asarray(value) for name, value in inputs.items()}


class _Administration:
    """How reloads reach the servers of a client."""

    def __init__(self, client: AsyncClient, metadata: Metadata) -> None:
        self._client = client
        self._metadata = metadata

    async def reload(self, target: str, request: bytes, deadline: float | None) -> bytes:
        client = self._client
        endpoint = client._endpoint(target)
        answer = await client._calls.call_once(
            _RELOAD_CONFIG, request, deadline, None, self._metadata, endpoint
        )
        return answer[0]

    async def status(self, target: str, model: str, deadline: float | None) -> ModelStatus:
        client = self._client
        return await client._get_status(model, None, deadline, self._metadata, client._endpoint(target))


def _known(config: ModelConfigs | None, applied: ModelServerConfig | None) -> ModelConfigs:
    found = config if config is not None else applied
    if found is None:
        raise ValueError(
            "this client has not applied a config yet, a reload replaces all of it, and a server cannot be "
            "asked for the one it has: give it as config=, for instance the path of its --model_config_file"
        )
    return found


def _is_one(models: object) -> bool:
    return isinstance(models, Mapping) or hasattr(getattr(models, "pb", models), "DESCRIPTOR")


def _is_local(target: str) -> bool:
    """Whether a target is on this machine, so that its files may be, too."""
    address = target.rpartition("/")[2] if target.startswith(("dns:", "ipv4:", "ipv6:")) else target
    return target.startswith("unix") or address.startswith(("127.", "localhost:", "[::1]:"))


def _no_loop() -> str:
    trio = sys.modules.get("trio")
    try:
        in_trio = trio is not None and trio.lowlevel.in_trio_run()
    except AttributeError:
        in_trio = False
    if in_trio:
        return "aioserving runs on asyncio, because grpc.aio does; it cannot be used under trio"
    return "no event loop is running: call this from a coroutine, or use aioserving.Client in plain code"
