"""Request batching: many callers that want one row each share one Predict.

A call costs the client about as much whatever is in it, so a web app that predicts a row per request spends
nearly all of its time on calls, not on rows. `BatchedModel.predict` looks like `Model.predict`; calls that
meet are sent as one, their arrays joined along axis 0, and everyone gets a slice of the answer.

When a batch goes out
    At once, if nothing of its kind is under way: a lonely caller waits for nobody. While a batch is out the
    next one gathers; it goes when it is full, when a batch comes back, when its oldest caller has waited for
    ``max_delay`` seconds or would otherwise be late, as long as fewer than ``max_in_flight`` are out.

What goes together
    Calls with the same signature, output filter, metadata, input names, dtypes and inner shapes (the shape
    without axis 0). ``pad_axis`` lets one axis differ: shorter inputs are filled up.

What callers notice of each other
    Nothing: a caller that is cancelled, or whose deadline passes, leaves the batch; a request that the server
    calls invalid is found by halving the batch, and its caller alone gets the error; a request is never
    divided unless it has more than ``max_batch_size`` rows, and then its answer is put together again.
    Numbers are the same as without batching where the model computes every row by itself. Most kernels
    choose another order of summation for another number of rows, and then the last bits differ; that is the
    model's doing, as it would be with the server's own batching.

There is no task, lock or timer per call: a caller waits for a future, one timer watches over all deadlines,
and the arrays are copied once, into the request itself. How calls are made is left to the client behind
`Predictor`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import itertools
import math
import os
import re
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from aioserving import errors
from aioserving._types import DEFAULT, Array, Inputs, Metadata, Timeout
from aioserving.attempts import Attempt
from aioserving.codec import (
    MAX_MESSAGE_BYTES,
    ResponseDecoder,
    encode_predict_request,
    encode_predict_response,
    model_spec_field,
    plain_input_head,
)
from aioserving.latency import Latency, LatencyHistogram
from aioserving.prediction import PredictResult
from aioserving.signature import Signature, TensorSpec
from aioserving.wire import delimited

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "BatchedModel",
    "BatchedResult",
    "BatchingOptions",
    "BatchingStats",
    "BlockingBatchedModel",
    "Predictor",
]

_ndarray = np.ndarray  # a name of the module is found faster than an attribute of another

#: Why batches are sent; see `BatchingStats.flushes`.
_REASONS: Final = ("full", "idle", "delay", "deadline", "close")
#: Kinds of calls that are remembered while nobody makes them.
_MANY_GROUPS: Final = 256
#: Numbers of rows whose requests' beginnings are remembered.
_MANY_HEADS: Final = 1024
#: What the server's own batching says of a batch that it does not take.
_TOO_MANY_ROWS: Final = re.compile(r"Task size \d+ is larger than maximum input batch size (\d+)")
#: Errors that may be about one caller's request, or about so many going together.
_MAY_BE_ONE_CALLERS: Final = (
    errors.InvalidArgumentError,
    errors.MessageTooLargeError,
    errors.UnsupportedTypeError,
)
#: Times that a divided request is asked again where its parts were answered by several versions.
_SAME_VERSION_TRIES: Final = 8


@dataclass(frozen=True, slots=True)
class BatchingOptions:
    """How calls are batched.

    Raises:
        ValueError: a setting is out of range, or two do not go together.
    """

    #: Rows that a batch may have; the server's own ``max_batch_size`` if it batches, too.
    max_batch_size: int = 128
    #: Bytes of inputs beyond which no further caller is taken into a batch, where all rows are of one size:
    #: 128 images would take seconds to arrive. None for no limit.
    max_batch_bytes: int | None = 32 * 1024 * 1024
    #: Seconds that a caller may wait for others while there is room for another batch.
    max_delay: float = 0.002
    #: Batches under way at a time.
    max_in_flight: int = 2
    #: Sizes that batches are filled up to, in ascending order, by repeating a row; the last one must be
    #: `max_batch_size`. Empty for any size. For models that are compiled for some sizes only.
    allowed_batch_sizes: tuple[int, ...] = ()
    #: Callers that may wait; the next one is refused.
    max_waiting: int = 10_000
    #: What becomes of outputs that have no batch axis: ``"refuse"`` them, or ``"broadcast"`` them: every
    #: caller gets all of them.
    shared_outputs: Literal["refuse", "broadcast"] = "refuse"
    #: Axis (1 or more) along which inputs may differ in size; None if they may not.
    pad_axis: int | None = None
    #: What shorter inputs are filled up with; strings with ``b""`` unless it is one.
    pad_value: float | bytes = 0
    #: Inputs that are filled up; empty for all whose signature leaves the size of that axis open.
    pad_inputs: tuple[str, ...] = ()
    #: Input that is told the true size of every row; callers leave it out.
    length_input: str | None = None
    #: Input of shape (rows, size) that is 1 where values are true and 0 where they are filled up; callers
    #: leave it out.
    mask_input: str | None = None
    #: Outputs that have that axis too, and are cut back to the caller's own size.
    cut_outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_batch_size", "max_in_flight", "max_waiting"):
            if not (isinstance(getattr(self, name), int) and getattr(self, name) >= 1):
                raise ValueError(f"{name} must be an integer of at least 1, got {getattr(self, name)!r}")
        if self.max_batch_bytes is not None and self.max_batch_bytes < 1:
            raise ValueError(f"max_batch_bytes must be at least 1, or None, got {self.max_batch_bytes!r}")
        if not 0 <= self.max_delay < math.inf:
            raise ValueError(f"max_delay must be a number of seconds, at least 0, got {self.max_delay!r}")
        sizes = self.allowed_batch_sizes
        if sizes:
            if sizes[0] < 1 or any(b <= a for a, b in itertools.pairwise(sizes)):
                raise ValueError(f"allowed_batch_sizes must ascend from at least 1, got {sizes!r}")
            if sizes[-1] != self.max_batch_size:
                raise ValueError(
                    f"the last of allowed_batch_sizes must be max_batch_size={self.max_batch_size}, "
                    f"got {sizes[-1]}"
                )
        if self.shared_outputs not in ("refuse", "broadcast"):
            raise ValueError(f"shared_outputs must be 'refuse' or 'broadcast', got {self.shared_outputs!r}")
        if self.pad_axis is None:
            for name in ("pad_inputs", "length_input", "mask_input", "cut_outputs"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs a pad_axis")
        elif self.pad_axis < 1:
            raise ValueError(
                f"pad_axis must be at least 1 (axis 0 is that of the batch), got {self.pad_axis}"
            )


@dataclass(frozen=True, slots=True)
class Predictor:
    """What batching needs of a model and its client."""

    #: Name of the model.
    name: str
    #: Body of the ModelSpec that requests carry.
    model_spec: bytes
    #: Checks that the client can be used here and now; gives the deadline of a call that starts, on the
    #: running loop's clock, from its timeout.
    begin: Callable[[Timeout], float | None]
    #: The signature as it is known, or None.
    signature: Callable[[], Signature | None]
    #: Fetches the signature, until a deadline.
    learn: Callable[[float | None], Awaitable[Signature]]
    #: The signature if the server's has become another one, else None; until a deadline.
    learn_again: Callable[[float | None], Awaitable[Signature | None]]
    #: Sends a Predict: request, deadline and metadata; gives the response and the story of the attempts.
    call: Callable[[bytes, float | None, Metadata], Awaitable[tuple[bytes, tuple[Attempt, ...]]]]
    #: Takes note of the ModelSpec of an answer, which may be another version's.
    note: Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class BatchingStats:
    """What a batched handle has done, at one moment; `print` it."""

    #: Calls that were taken into a batch (the parts of a divided request count each).
    calls: int
    #: Batches sent, without those that came of halving one that was refused.
    batches: int
    #: Rows sent in them.
    rows: int
    #: Rows added to fill batches up to an allowed size.
    padding: int
    #: Batches by their number of rows, without padding.
    sizes: Mapping[int, int]
    #: Batches by why they went: ``"full"``, ``"idle"`` (nothing of the kind was under way), ``"delay"``,
    #: ``"deadline"`` (a caller would have been late) or ``"close"``.
    flushes: Mapping[str, int]
    #: Seconds that callers waited until their batch went.
    wait: Latency
    #: Callers waiting now.
    waiting: int
    #: Batches under way now.
    in_flight: int
    #: Calls sent again, in smaller batches, because the server refused one.
    resent: int
    #: Callers refused because too many waited, or because their turn would have come too late.
    refused: int
    #: Callers whose deadline passed before the answer came.
    expired: int
    #: Callers that were cancelled before the answer came.
    cancelled: int

    @property
    def mean_size(self) -> float:
        """Rows per batch, without padding; 0 if there was none."""
        return self.rows / self.batches if self.batches else 0.0

    def __str__(self) -> str:
        why = ", ".join(f"{count} {reason}" for reason, count in self.flushes.items() if count) or "none"
        return (
            f"{self.calls:,} calls in {self.batches:,} batches of {self.mean_size:.3g} rows on average "
            f"({why}); {self.waiting} waiting, {self.in_flight} in flight; waited: {self.wait}; "
            f"{self.resent} resent, {self.refused} refused, {self.expired} expired, "
            f"{self.cancelled} cancelled"
        )


class BatchedResult(PredictResult):
    """One caller's share of a batch's answer: arrays by output name.

    Arrays are read-only views of the batch's answer, and keep all of it in memory while they live;
    ``result["scores"].copy()`` does not.
    """

    __slots__ = ("_since", "_story")

    def __init__(self, outputs: dict[str, Array], model_spec: bytes, story: _Story, since: float) -> None:
        # Not PredictResult's own: most callers never look at the attempts, and then none are made.
        self._outputs = outputs
        self._model_spec = model_spec
        self._story = story
        self._since = since

    @property
    def attempts(self) -> tuple[Attempt, ...]:  # type: ignore[override]
        """The story of the batch, told from the beginning of this caller's own call."""
        return _told(self._story, self._since)

    @property
    def serialized(self) -> bytes:
        """A PredictResponse with this caller's rows, written anew (the one received has everyone's)."""
        return encode_predict_response(self._outputs, model_spec=self._model_spec)

    @property
    def proto(self) -> Any:
        """The same as a `tensorflow_serving.apis.predict_pb2.PredictResponse`, made at each access."""
        return PredictResult(self._outputs, self._model_spec, self.serialized).proto


class _Member:
    """One caller's place in a batch."""

    __slots__ = ("arrays", "batch", "deadline", "future", "gone", "group", "rows", "since")

    def __init__(
        self,
        group: _Group,
        arrays: tuple[Array, ...],
        rows: int,
        deadline: float | None,
        since: float,
        future: asyncio.Future[PredictResult],
    ) -> None:
        self.group = group
        self.arrays = arrays
        self.rows = rows
        self.deadline = deadline
        self.since = since
        self.future = future
        self.batch: _Batch | None = None
        #: Whether it has left and is counted no more. A task that is cancelled learns of it a moment later
        #: than its future.
        self.gone = False

    def __repr__(self) -> str:
        where = "waiting" if self.batch is None else "in flight"
        return f"<_Member with {self.rows} rows, {'done' if self.future.done() else where}>"


class _Group:
    """Calls that can go together, and what is known in advance of their requests."""

    __slots__ = (
        "company",
        "due",
        "due_reason",
        "filter",
        "heads",
        "in_flight",
        "lanes",
        "metadata",
        "most",
        "names",
        "output_filter",
        "plain",
        "ragged",
        "rows",
        "shared",
        "signature",
        "tail",
        "waiting",
    )

    def __init__(
        self,
        signature: Signature | None,
        output_filter: tuple[str, ...],
        metadata: Metadata,
        names: tuple[str, ...],
        arrays: Sequence[Array],
        shared: frozenset[str],
        ragged: tuple[int | None, ...],
        max_bytes: int | None,
    ) -> None:
        self.signature = signature
        self.output_filter = output_filter
        self.metadata = metadata
        self.names = names
        #: Whether the memory of every input is what the wire wants.
        self.plain = all(
            plain_input_head(name, array.dtype, (1, *array.shape[1:])) is not None
            for name, array in zip(names, arrays, strict=True)
        )
        #: The output filter as it ends a request.
        self.filter = b"".join(delimited(3, name.encode()) for name in output_filter)
        #: The same where there is one plain input, all of one shape, else None; and what begins a request,
        #: by its number of rows.
        single = self.plain and len(names) == 1 and all(axis is None for axis in ragged)
        self.tail = self.filter if single else None
        self.heads: dict[int, bytes] = {}
        #: Outputs that are known to have no batch axis.
        self.shared = shared
        #: The axis along which each input is filled up, or None; empty if no input is.
        self.ragged = ragged if any(axis is not None for axis in ragged) else ()
        #: Rows of several callers that may go together for their bytes.
        self.most = math.inf
        if max_bytes is not None and not self.ragged:
            row = sum(array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays)
            self.most = max(1, max_bytes // max(row, 1))
        #: Callers that wait, by priority, the higher first; some may have left.
        self.lanes: dict[int, deque[_Member]] = {0: deque()}
        #: How many wait that have not left, and their rows.
        self.waiting = 0
        self.rows = 0
        self.in_flight = 0
        #: Whether the last batch had more than one caller: they are likely to come back together.
        self.company = False
        #: When those who wait should have gone, and why then.
        self.due = math.inf
        self.due_reason = "delay"

    def __repr__(self) -> str:
        return f"<_Group of {', '.join(self.names)}: {self.waiting} waiting, {self.in_flight} in flight>"

    def members(self) -> Iterable[_Member]:
        """Those who wait, the next to go first."""
        for lane in self.lanes.values():
            for member in lane:
                if not member.future.done():
                    yield member

    def tidy(self) -> None:
        """Forget those who have left, if they are many."""
        for lane in self.lanes.values():
            if len(lane) > 2 * self.waiting + 64:
                left = [member for member in lane if not member.future.done()]
                lane.clear()
                lane.extend(left)

    def add_lane(self, priority: int) -> deque[_Member]:
        """A line for a priority that has none."""
        lane = self.lanes[priority] = deque()
        self.lanes = dict(sorted(self.lanes.items(), reverse=True))
        return lane


class _Batch:
    """Callers on their way together."""

    __slots__ = ("calls_left", "divided", "group", "live", "members", "since", "task")

    def __init__(self, group: _Group, members: list[_Member], since: float) -> None:
        self.group = group
        self.members = members
        self.since = since
        #: Callers that have neither left nor been answered.
        self.live = len(members)
        #: Halves that may still be sent if it is refused; after that everyone goes alone.
        self.calls_left = 2 * len(members).bit_length() + 2
        #: Whether it was refused and is sent in parts.
        self.divided = False
        self.task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<_Batch of {len(self.members)} callers, {self.live} of them waiting>"


#: What was tried before: when it was sent, and its attempts.
_Story = tuple[tuple[float, tuple[Attempt, ...]], ...]


@dataclass(slots=True)
class _Counts:
    calls: int = 0
    batches: int = 0
    rows: int = 0
    padding: int = 0
    resent: int = 0
    refused: int = 0
    expired: int = 0
    cancelled: int = 0
    sizes: dict[int, int] = field(default_factory=dict)
    flushes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_REASONS, 0))
    wait: LatencyHistogram = field(default_factory=LatencyHistogram)


class BatchedModel:
    """One model whose concurrent `predict` calls are sent together; made by `Model.batched`.

    ```python
    async with client.model("digits").batched(max_batch_size=128) as digits:
        result = await digits.predict({"images": image[None]})
    ```

    Share one handle among all tasks. It belongs to its client's event loop and ends with its client.

    Args:
        predictor: how calls are made.
        options: how they are batched.
    """

    def __init__(self, predictor: Predictor, options: BatchingOptions | None = None) -> None:
        self._predictor = predictor
        self._options = options or BatchingOptions()
        #: Rows that a batch may have; less than the option if the server has said so.
        self._limit = self._options.max_batch_size
        #: Sizes that batches are filled up to.
        self._sizes = self._options.allowed_batch_sizes
        self._groups: dict[Any, _Group] = {}
        #: Those of one array of numbers, by what is told from the array at a glance.
        self._known: dict[Any, _Group] = {}
        #: Groups in which somebody waits, the longest waiting first.
        self._queue: dict[_Group, None] = {}
        self._batches: dict[_Batch, None] = {}
        self._waiting = 0
        self._in_flight = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._process = 0
        self._looking = False
        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = math.inf
        self._expiry: asyncio.TimerHandle | None = None
        self._expiry_at = math.inf
        #: Seconds that a batch takes, as a moving average; 0 until one has come back.
        self._usual = 0.0
        self._counts = _Counts()
        self._decode = ResponseDecoder().decode
        self._closed = False
        self._ended: asyncio.Future[None] | None = None

    # -- life ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        state = "closed, " if self._closed else ""
        return (
            f"<{type(self).__name__} {self._predictor.name!r}, up to {self._limit} rows: {state}"
            f"{self._waiting} waiting, {self._in_flight} in flight, "
            f"{self._counts.calls} calls in {self._counts.batches} batches>"
        )

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._predictor.name

    @property
    def options(self) -> BatchingOptions:
        """The settings."""
        return self._options

    def stats(self) -> BatchingStats:
        """What it has done so far, at this moment."""
        counts = self._counts
        return BatchingStats(
            calls=counts.calls,
            batches=counts.batches,
            rows=counts.rows,
            padding=counts.padding,
            sizes=dict(sorted(counts.sizes.items())),
            flushes=dict(counts.flushes),
            wait=counts.wait.snapshot(),
            waiting=self._waiting,
            in_flight=self._in_flight,
            resent=counts.resent,
            refused=counts.refused,
            expired=counts.expired,
            cancelled=counts.cancelled,
        )

    async def aclose(self, grace: float | None = None) -> None:
        """Send what waits, let it end, and refuse new calls from now on; the client stays open.

        Safe to call again. A second caller waits with the first.

        Args:
            grace: seconds given to calls before they are cancelled (their callers get a
                `ClientClosedError`; a call that went out alone ends by its own deadline); None gives them
                the time that their own deadlines allow.

        Raises:
            EventLoopError: called from another loop than the one that its calls are made on.
        """
        self._closed = True
        loop = self._loop
        if loop is None or loop.is_closed() or self._process != os.getpid():
            return  # nobody is left who waits
        if loop is not asyncio.get_running_loop():
            raise errors.EventLoopError("this handle is bound to the event loop of its calls; close it there")
        self._look()
        try:
            if self._waiting or self._in_flight:
                if self._ended is None:
                    self._ended = loop.create_future()
                await asyncio.wait((self._ended,), timeout=grace)
        finally:
            self._give_up()
        tasks = [batch.task for batch in self._batches if batch.task is not None]
        if tasks:
            await asyncio.wait(tasks)

    def _give_up(self) -> None:
        """Let go of everyone who is still here."""
        for group in self._queue:
            for member in group.members():
                member.future.set_exception(self._gone())
            self._forget_waiting(group)
        self._queue.clear()
        for batch in self._batches:
            if batch.task is not None:
                batch.task.cancel()
        for timer in (self._alarm, self._expiry):
            if timer is not None:
                timer.cancel()
        self._alarm_at = self._expiry_at = math.inf

    def _gone(self) -> errors.ClientClosedError:
        return errors.ClientClosedError("the batched handle is closed")

    # -- calls --------------------------------------------------------------------------------------

    async def predict(
        self,
        inputs: Inputs,
        *,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        metadata: Metadata = (),
        priority: int = 0,
    ) -> PredictResult:
        """Run the model on `inputs`, together with what others send; see `AsyncClient.predict`.

        The arrays are read when the batch goes out: leave them as they are until the answer is there.

        Args:
            inputs: as for `AsyncClient.predict`; every input needs the same number of rows (axis 0).
            output_filter: names of the outputs to return; all if not given.
            timeout: seconds until the call fails; the client's own setting if not given.
            validate: False sends `inputs`, a mapping, as they are, and asks for no metadata.
            metadata: gRPC metadata; only calls with the same go together.
            priority: of the callers that wait and can go together the higher one goes first.

        Returns:
            Arrays by output name, read-only, with as many rows as `inputs`. `attempts` are those of the
            batch, told from this call's own beginning.

        Raises:
            InvalidInputError: `inputs` do not fit the signature, or have no batch axis.
            FailedPreconditionError: an output has no batch axis (see `BatchingOptions.shared_outputs`).
            ResourceExhaustedError: too many callers wait.
            DeadlineExceededError: no answer in time; at once, if it could not come in time.
            RPCError: any other way in which a Predict fails.
            ClientClosedError: this handle or its client is closed.
        """
        predictor = self._predictor
        deadline = predictor.begin(timeout)
        if self._closed:
            raise self._gone()
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
            self._process = os.getpid()
        if output_filter is not None:
            output_filter = (output_filter,) if isinstance(output_filter, str) else tuple(output_filter)
        else:
            output_filter = ()
        signature = None
        if validate:
            signature = predictor.signature()
            if signature is None:
                signature = await predictor.learn(deadline)
            try:
                group, arrays, rows = self._prepare(signature, inputs, output_filter, metadata)
            except (errors.InvalidInputError, errors.FailedPreconditionError):
                # The signature may be an old version's: believe a refusal only if it is fresh.
                newer = await predictor.learn_again(deadline)
                if newer is None:
                    raise
                group, arrays, rows = self._prepare(newer, inputs, output_filter, metadata)
            if self._closed:
                raise self._gone()
        else:
            group, arrays, rows = self._prepare(None, inputs, output_filter, metadata)
        now = loop.time()
        if rows > self._limit:
            return await self._predict_divided(group, arrays, rows, deadline, priority, now)
        busy = self._in_flight >= self._options.max_in_flight
        if not (busy or group.waiting or group.in_flight or group.company):
            return await self._predict_alone(group, arrays, rows, deadline, now)
        if busy or (deadline is not None and deadline <= now) or self._waiting >= self._options.max_waiting:
            self._check_room(deadline, now)
        member = _Member(group, arrays, rows, deadline, now, loop.create_future())
        self._push(member, priority)
        try:
            return await member.future
        except asyncio.CancelledError:
            if member.future.cancelled():  # else it was answered, or late, in the same moment
                self._counts.cancelled += 1
                self._let_go(member)
            raise
        except errors.InvalidArgumentError:
            if rows <= self._limit:
                raise
        # The server has said meanwhile how many rows it takes.
        return await self._predict_divided(group, arrays, rows, deadline, priority, now)

    async def _predict_alone(
        self, group: _Group, arrays: tuple[Array, ...], rows: int, deadline: float | None, now: float
    ) -> PredictResult:
        """A call with nobody beside it, in its caller's own task: as little as can be beyond the call."""
        if deadline is not None and deadline <= now:
            raise self._late("the deadline had passed before the call was sent")
        self._in_flight += 1
        group.in_flight += 1
        self._count(1, rows, "idle")
        self._counts.wait.record(0.0)
        try:
            if group.tail is None or self._sizes:
                member = _Member(group, arrays, rows, deadline, now, _NOBODY)
                return (await self._send([member], deadline, ()))[0]
            request = b"".join((self._head(group, arrays[0], rows), arrays[0], group.tail))  # type: ignore[arg-type]
            response, attempts = await self._predictor.call(request, deadline, group.metadata)
            outputs, model_spec = self._read(response, attempts)
            for name, array in outputs.items():
                self._is_shared(group, name, array, rows)
            return PredictResult(outputs, model_spec, response, attempts)
        except errors.InvalidArgumentError as error:
            self._learn_limit(error)
            if rows <= self._limit:
                raise
        except asyncio.CancelledError:
            self._counts.cancelled += 1
            raise
        finally:
            self._finish(group, now, group.waiting > 0)
        return await self._predict_divided(group, arrays, rows, deadline, 0, now)

    async def _predict_divided(
        self,
        group: _Group,
        arrays: tuple[Array, ...],
        rows: int,
        deadline: float | None,
        priority: int,
        since: float,
    ) -> PredictResult:
        """A request with too many rows for one batch: parts of it, and their answers put together."""
        if deadline is not None or self._waiting >= self._options.max_waiting:
            self._check_room(deadline, since)
        limit = self._limit
        bounds = [(start, min(start + limit, rows)) for start in range(0, rows, limit)]
        found: list[PredictResult | None] = [None] * len(bounds)
        for _ in range(_SAME_VERSION_TRIES):
            latest = max(index for index, result in enumerate(found) if result is None)
            await self._ask_parts(group, arrays, bounds, found, deadline, priority, since)
            results = [result for result in found if result is not None]
            spec = results[latest]._model_spec
            if all(result._model_spec == spec for result in results):
                return _joined(results, group, [stop - start for start, stop in bounds])
            # A version was replaced meanwhile, by a newer or an older one: one answer is one version's.
            found = [result if result._model_spec == spec else None for result in results]
        raise errors.AbortedError(
            f"the parts of a request of {rows} rows were answered by several versions, "
            f"{_SAME_VERSION_TRIES} times",
            model=self.name,
            method="Predict",
        )

    async def _ask_parts(
        self,
        group: _Group,
        arrays: tuple[Array, ...],
        bounds: list[tuple[int, int]],
        found: list[PredictResult | None],
        deadline: float | None,
        priority: int,
        since: float,
    ) -> None:
        loop = self._loop
        assert loop is not None
        members: dict[int, _Member] = {}
        for index, (start, stop) in enumerate(bounds):
            if found[index] is None:
                part = tuple(array[start:stop] for array in arrays)
                members[index] = _Member(group, part, stop - start, deadline, since, loop.create_future())
        for member in members.values():
            self._push(member, priority)
        try:
            for index, member in members.items():
                found[index] = await member.future
        finally:
            for member in members.values():
                future = member.future
                if future.cancel() or future.cancelled():
                    self._let_go(member)
                else:
                    future.exception()  # one is enough

    # -- preparing ----------------------------------------------------------------------------------

    def _prepare(
        self, signature: Signature | None, inputs: Any, output_filter: tuple[str, ...], metadata: Metadata
    ) -> tuple[_Group, tuple[Array, ...], int]:
        """The group of a call, its arrays in the group's order, and its rows."""
        if type(inputs) is dict and len(inputs) == 1:
            # What has been here before with this signature, dtype and inner shape is as good as it was then;
            # only the values of strings would have to be looked at again.
            [(name, array)] = inputs.items()
            if type(array) is _ndarray and not metadata:
                known = self._known.get((id(signature), output_filter, name, array.dtype, array.shape[1:]))
                if known is not None and array.ndim:
                    if not array.flags.c_contiguous:
                        array = np.ascontiguousarray(array)
                    return known, (array,), len(array)
        if self._options.pad_axis is not None:
            inputs = self._with_lengths(signature, inputs)
        arrays = signature.prepare(inputs) if signature is not None else self._unchecked(inputs)
        return self._prepare_any(signature, arrays, output_filter, metadata)

    def _prepare_any(
        self,
        signature: Signature | None,
        arrays: dict[str, Array],
        output_filter: tuple[str, ...],
        metadata: Metadata,
    ) -> tuple[_Group, tuple[Array, ...], int]:
        if not arrays:
            raise self._invalid("a call without inputs has no batch axis: use predict of the model itself")
        names = tuple(sorted(arrays))
        ordered = tuple(_regular(arrays[name]) for name in names)
        rows = -1
        for name, array in zip(names, ordered, strict=True):
            if not array.ndim:
                raise self._invalid(f"input {name!r} is a scalar and has no batch axis")
            if rows not in (-1, len(array)):
                raise self._invalid(
                    f"all inputs need the same number of rows to be batched: {names[0]!r} has {rows}, "
                    f"{name!r} has {len(array)}"
                )
            rows = len(array)
        ragged = tuple(
            self._ragged_axis(signature, name, array.ndim) for name, array in zip(names, ordered, strict=True)
        )
        key: Any = (id(signature), output_filter)
        for name, array, axis in zip(names, ordered, ragged, strict=True):
            shape = array.shape[1:]
            if axis is not None:
                shape = (*shape[: axis - 1], -1, *shape[axis:])
            key = (*key, name, array.dtype, shape)
        if metadata:
            metadata = tuple((name, value) for name, value in metadata)
            key = (*key, metadata)
        group = self._groups.get(key)
        if group is None:
            if signature is not None:
                if output_filter:
                    signature.check_outputs(output_filter)
                shared = self._shared(signature, names, output_filter)
            else:
                shared = frozenset()
            if len(self._groups) >= _MANY_GROUPS:
                self._groups = {
                    key: group for key, group in self._groups.items() if group.waiting or group.in_flight
                }
                self._known.clear()
            most = self._options.max_batch_bytes
            group = _Group(signature, output_filter, tuple(metadata), names, ordered, shared, ragged, most)
            self._groups[key] = group
            if len(names) == 1 and not metadata and ordered[0].dtype.kind != "O" and not group.ragged:
                array = ordered[0]
                self._known[id(signature), output_filter, names[0], array.dtype, array.shape[1:]] = group
        return group, ordered, rows

    def _unchecked(self, inputs: Any) -> dict[str, Array]:
        if not isinstance(inputs, Mapping):
            raise self._invalid(
                f"with validate=False inputs must be a mapping from input names to values, "
                f"got {type(inputs).__name__}: without the signature their names are not known"
            )
        return {name: np.asarray(value) for name, value in inputs.items()}

    def _shared(
        self, signature: Signature, names: tuple[str, ...], output_filter: tuple[str, ...]
    ) -> frozenset[str]:
        """The outputs that have no batch axis by their signature; refuses what cannot be batched."""
        for name in names:
            if not _may_have_batch_axis(signature.inputs[name]):
                raise self._invalid(
                    f"input {name!r} of {signature.name} has no batch axis: it is "
                    f"{signature.inputs[name]}, not (-1, …); use predict of the model itself"
                )
        specs = [signature.outputs[name] for name in output_filter] or signature.outputs.values()
        shared = [spec.name for spec in specs if not _may_have_batch_axis(spec)]
        if shared and self._options.shared_outputs == "refuse":
            raise self._no_batch_axis(shared[0], str(signature.outputs[shared[0]]))
        return frozenset(shared)

    def _ragged_axis(self, signature: Signature | None, name: str, rank: int) -> int | None:
        options = self._options
        axis = options.pad_axis
        if axis is None or name == options.length_input:
            return None
        if name == options.mask_input:
            return 1
        if options.pad_inputs:
            if name not in options.pad_inputs:
                return None
        elif signature is not None:
            shape = signature.inputs[name].shape if name in signature.inputs else None
            if shape is not None and not (len(shape) > axis and shape[axis] < 0):
                return None
        return axis if rank > axis else None

    def _with_lengths(self, signature: Signature | None, inputs: Any) -> Any:
        """`inputs` with the true sizes, or the mask, that the model is told."""
        options = self._options
        axis = options.pad_axis
        added = [name for name in (options.length_input, options.mask_input) if name is not None]
        if not added or axis is None:
            return inputs
        if not isinstance(inputs, Mapping):
            if signature is None:
                return inputs
            names = [spec.name for spec in signature.inputs.values() if spec.name not in added]
            needed = [name for name in names if signature.inputs[name].default is None] or names
            if len(needed) != 1:
                return inputs  # `Signature.prepare` says what is wrong
            inputs = {needed[0]: inputs}
        for name, value in inputs.items():
            shape = np.shape(value)
            if name not in added and self._ragged_axis(signature, name, len(shape)) is not None:
                break
        else:
            return inputs
        rows, size = shape[0], shape[axis]
        inputs = dict(inputs)
        if options.length_input is not None and options.length_input not in inputs:
            kind, rank = _kind(signature, options.length_input, np.dtype(np.int64))
            inputs[options.length_input] = np.full((rows, *(1,) * ((rank or 1) - 1)), size, kind)
        if options.mask_input is not None and options.mask_input not in inputs:
            kind, _ = _kind(signature, options.mask_input, np.dtype(np.float32))
            inputs[options.mask_input] = np.ones((rows, size), kind)
        return inputs

    def _invalid(self, details: str) -> errors.InvalidInputError:
        return errors.InvalidInputError(details, model=self.name, method="Predict")

    def _no_batch_axis(self, name: str, what: str) -> errors.FailedPreconditionError:
        return errors.FailedPreconditionError(
            f"output {name!r} has no batch axis: it is {what}, which cannot be divided among callers; leave "
            f"it out with output_filter, or give all of it to everyone with shared_outputs='broadcast'",
            model=self.name,
            method="Predict",
        )

    def _late(self, details: str) -> errors.DeadlineExceededError:
        self._counts.expired += 1
        return errors.DeadlineExceededError(details, model=self.name, method="Predict")

    # -- waiting ------------------------------------------------------------------------------------

    def _check_room(self, deadline: float | None, now: float) -> None:
        """Refuse a caller for whom there is no room, or no time."""
        options = self._options
        if self._waiting >= options.max_waiting:
            self._counts.refused += 1
            raise errors.ResourceExhaustedError(
                f"{self._waiting} callers wait for a batch, and max_waiting={options.max_waiting} allows "
                f"no more",
                model=self.name,
                method="Predict",
            )
        if deadline is None:
            return
        if deadline <= now:
            raise self._late("the deadline had passed before the call was sent")
        usual = self._usual
        if usual and self._in_flight >= options.max_in_flight:
            ahead = self._waiting // self._limit
            wait = usual * ahead / options.max_in_flight
            if now + wait + usual * 0.5 > deadline and ahead:
                self._counts.refused += 1
                raise errors.DeadlineExceededError(
                    f"{self._waiting} callers wait for a batch, whose turn would come in about {wait:.2g} s "
                    f"(a batch takes {usual:.2g} s, {options.max_in_flight} go at a time); the deadline is "
                    f"in {deadline - now:.2g} s",
                    model=self.name,
                    method="Predict",
                )

    def _push(self, member: _Member, priority: int) -> None:
        """Let a caller wait, and send what should go now."""
        options = self._options
        group = member.group
        lane = group.lanes.get(priority)
        if lane is None:
            lane = group.add_lane(priority)
        lane.append(member)
        self._waiting += 1
        group.rows += member.rows
        deadline = member.deadline
        if not group.waiting:
            self._queue[group] = None
            group.due = math.inf
            self._note_due(group, member)
        elif deadline is not None and deadline - 2 * self._usual < group.due:
            self._note_due(group, member)
        group.waiting += 1
        if deadline is not None and deadline < self._expiry_at:
            self._expire_at(deadline)
        if self._in_flight < options.max_in_flight and not self._looking:
            if group.rows >= self._limit or group.rows >= group.most:
                self._dispatch(group, "full", member.since)
            elif not group.in_flight:
                self._look_soon()
            elif group.due < self._alarm_at:
                self._alarm_for(group.due)
        elif (group.rows >= self._limit or group.rows >= group.most) and (
            self._in_flight < options.max_in_flight
        ):
            self._dispatch(group, "full", member.since)

    def _note_due(self, group: _Group, member: _Member) -> None:
        due = member.since + self._options.max_delay
        deadline = member.deadline
        if deadline is not None and deadline - 2 * self._usual < due:
            due = deadline - 2 * self._usual
            if due < group.due:
                group.due, group.due_reason = due, "deadline"
        elif due < group.due:
            group.due, group.due_reason = due, "delay"

    def _let_go(self, member: _Member) -> None:
        """A caller has left: the others must not notice."""
        if member.gone:
            return
        member.gone = True
        batch = member.batch
        if batch is None:
            group = member.group
            group.waiting -= 1
            group.rows -= member.rows
            self._waiting -= 1
            if not group.waiting:
                self._forget_waiting(group)
                self._queue.pop(group, None)
                self._check_ended()
            else:
                group.tidy()
        else:
            batch.live -= 1
            if not batch.live and batch.task is not None:
                batch.task.cancel()  # nobody wants to know any more

    def _forget_waiting(self, group: _Group) -> None:
        self._waiting -= group.waiting
        group.waiting = group.rows = 0
        for lane in group.lanes.values():
            for member in lane:
                member.gone = True
            lane.clear()

    # -- deciding -----------------------------------------------------------------------------------

    def _look_soon(self) -> None:
        """Look after those have run who are about to: they may have more to send."""
        if not self._looking:
            self._looking = True
            assert self._loop is not None
            self._loop.call_soon(self._look)

    def _look(self) -> None:
        """Send every batch whose time has come, and see to it that the next one is not forgotten."""
        self._looking = False
        loop = self._loop
        if loop is None or not self._queue:
            return
        now = loop.time()
        room = self._options.max_in_flight
        while self._in_flight < room:
            for group in self._queue:
                reason = self._reason(group, now)
                if reason is not None:
                    break
            else:
                break
            self._dispatch(group, reason, now)
        if self._queue and self._in_flight < room:
            due = min(group.due for group in self._queue)
            if due < self._alarm_at:
                self._alarm_for(due)

    def _reason(self, group: _Group, now: float) -> str | None:
        """Why a group should send a batch now; None if it should wait."""
        if group.rows >= self._limit or group.rows >= group.most:
            return "full"
        if self._closed:
            return "close"
        if not group.in_flight:
            return "idle"
        return group.due_reason if now >= group.due else None

    def _alarm_for(self, due: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        assert self._loop is not None
        self._alarm_at = due
        self._alarm = self._loop.call_at(due, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm, self._alarm_at = None, math.inf
        self._look()

    def _dispatch(self, group: _Group, reason: str, now: float) -> None:
        """Send the next batch of a group."""
        members = self._take(group)
        del self._queue[group]
        if not members:
            self._forget_waiting(group)
            self._check_ended()
            return
        if group.waiting:
            self._queue[group] = None  # behind the others
            group.due = math.inf
            for member in group.members():
                self._note_due(group, member)
        elif len(group.lanes) > 1:
            group.lanes = {0: group.lanes.get(0) or deque()}
        batch = _Batch(group, members, now)
        self._begin(batch, reason, now)
        assert self._loop is not None
        batch.task = self._loop.create_task(self._deliver(batch, members, ()))
        # Not in the task's own end: a task that is cancelled before it has begun never comes there.
        batch.task.add_done_callback(functools.partial(self._on_end, batch))

    def _take(self, group: _Group) -> list[_Member]:
        """The next callers of a group, as many as fit into a batch."""
        members: list[_Member] = []
        rows, limit = 0, min(self._limit, group.most)
        for lane in group.lanes.values():
            while lane:
                member = lane[0]
                if member.future.done():  # has left
                    lane.popleft()
                    if not member.gone:
                        member.gone = True
                        group.waiting -= 1
                        group.rows -= member.rows
                        self._waiting -= 1
                    continue
                if rows + member.rows > limit and members:
                    break
                lane.popleft()
                rows += member.rows
                members.append(member)
            if lane:
                break
        group.waiting -= len(members)
        group.rows -= rows
        self._waiting -= len(members)
        return members

    def _begin(self, batch: _Batch, reason: str, now: float) -> None:
        rows = 0
        record = self._counts.wait.record
        for member in batch.members:
            member.batch = batch
            rows += member.rows
            record(now - member.since)
        self._in_flight += 1
        batch.group.in_flight += 1
        self._batches[batch] = None
        self._count(len(batch.members), rows, reason)

    def _count(self, calls: int, rows: int, reason: str) -> None:
        counts = self._counts
        counts.calls += calls
        counts.batches += 1
        counts.rows += rows
        counts.sizes[rows] = counts.sizes.get(rows, 0) + 1
        counts.flushes[reason] += 1

    def _finish(self, group: _Group, since: float, company: bool) -> None:
        """A batch that was sent `since` is back; `company` if its callers, or others, may be many."""
        self._in_flight -= 1
        group.in_flight -= 1
        group.company = company
        assert self._loop is not None
        seconds = self._loop.time() - since
        self._usual = seconds if not self._usual else self._usual * 0.8 + seconds * 0.2
        if self._queue:
            # Not at once: those who have just been answered may have more to send.
            self._look_soon()
        elif self._ended is not None:
            self._check_ended()

    def _check_ended(self) -> None:
        ended = self._ended
        if ended is not None and not (self._waiting or self._in_flight or ended.done()):
            ended.set_result(None)

    # -- deadlines ----------------------------------------------------------------------------------

    def _expire_at(self, deadline: float) -> None:
        """Have one timer ring at the first deadline of all."""
        if self._expiry is not None:
            self._expiry.cancel()
        assert self._loop is not None
        self._expiry_at = deadline
        self._expiry = self._loop.call_at(deadline, self._expire)

    def _expire(self) -> None:
        self._expiry, self._expiry_at = None, math.inf
        assert self._loop is not None
        now = self._loop.time()
        next_one = math.inf
        late: list[_Member] = []
        in_line = (member for group in self._queue for member in group.members())
        flying = (member for batch in self._batches if batch.task is not None for member in batch.members)
        for members in (in_line, flying):
            for member in members:
                deadline = member.deadline
                if deadline is None or member.future.done():
                    continue
                # Timers may ring early by as much as the clock's resolution.
                if deadline <= now + 1e-4:
                    late.append(member)
                elif deadline < next_one:
                    next_one = deadline
        for member in late:
            where = (
                "while the call waited for a batch"
                if member.batch is None
                else "before the batch was answered"
            )
            member.future.set_exception(self._late(f"the deadline passed {where}"))
            self._let_go(member)
        if next_one < self._expiry_at:
            self._expire_at(next_one)

    # -- sending ------------------------------------------------------------------------------------

    def _on_end(self, batch: _Batch, task: asyncio.Task[None]) -> None:
        """A batch has ended, perhaps cancelled before it began: whoever has no answer yet gets none."""
        if task.cancelled():
            for member in batch.members:
                if not member.future.done():
                    member.future.set_exception(self._gone())
        else:
            error = task.exception()
            if error is not None:
                _fail(batch.members, error, ())
        del self._batches[batch]
        self._finish(batch.group, batch.since, len(batch.members) > 1 or batch.group.waiting > 0)

    async def _deliver(self, batch: _Batch, members: list[_Member], story: _Story) -> None:
        """Send `members` of a batch together; if the server refuses them, find out whom it means."""
        begun = self._time()
        try:
            results = await self._send(members, _latest(members), story)
        except (
            errors.InvalidArgumentError,
            errors.MessageTooLargeError,
            errors.UnsupportedTypeError,
        ) as error:
            if isinstance(error, errors.InvalidArgumentError):
                self._learn_limit(error)
            if isinstance(error, errors.VersionLabelNotFoundError):
                self._settle(batch, _fail(members, error, story, begun))
                return
            later = (*story, (begun, error.attempts)) if isinstance(error, errors.RPCError) else story
            if len(members) == 1:
                self._settle(batch, _fail(members, error, story, begun))
                return
            # Those who have left may have been the guilty ones: nobody is blamed but alone.
            members = [member for member in members if not member.future.done()]
            if members:
                await self._divide(batch, members, later)
        except Exception as error:
            self._settle(batch, _fail(members, error, story, begun))
        else:
            answered = 0
            for member, result in zip(members, results, strict=True):
                future = member.future
                if not future.done():
                    future.set_result(result)
                    member.gone = True
                    answered += 1
            self._settle(batch, answered)

    def _settle(self, batch: _Batch, answered: int) -> None:
        """Callers of a batch have their answers; what is still under way for nobody is ended."""
        batch.live -= answered
        if not batch.live and batch.divided and batch.task is not None:
            batch.task.cancel()

    async def _divide(self, batch: _Batch, members: list[_Member], story: _Story) -> None:
        self._counts.resent += len(members)
        batch.divided = True
        if batch.calls_left >= 2 and len(members) > 1:
            batch.calls_left -= 2
            middle = len(members) // 2
            parts = [members[:middle], members[middle:]]
        else:
            parts = [[member] for member in members]
        await asyncio.gather(*(self._deliver(batch, part, story) for part in parts))

    def _learn_limit(self, error: errors.InvalidArgumentError) -> None:
        found = _TOO_MANY_ROWS.search(error.details)
        if found is not None and 0 < int(found[1]) < self._limit:
            limit = int(found[1])
            self._sizes = tuple(size for size in self._sizes if size <= limit)
            self._limit = self._sizes[-1] if self._sizes else limit

    async def _send(
        self, members: list[_Member], deadline: float | None, story: _Story
    ) -> list[PredictResult]:
        """Send callers' requests as one, and divide the answer."""
        group = members[0].group
        rows = 0
        for member in members:
            rows += member.rows
        total = next((size for size in self._sizes if size >= rows), rows) if rows else 0
        self._counts.padding += total - rows
        request = self._encode(group, members, total)
        begun = self._time()
        response, attempts = await self._predictor.call(request, deadline, group.metadata)
        outputs, model_spec = self._read(response, attempts)
        story = (*story, (begun, attempts))
        items = [(name, array, self._is_shared(group, name, array, total)) for name, array in outputs.items()]
        if len(members) == 1 and total == rows:
            [member] = members
            return [PredictResult(outputs, model_spec, response, _told(story, member.since))]
        cut = self._options.cut_outputs
        results: list[PredictResult] = []
        start = 0
        if len(items) == 1 and not items[0][2] and not cut:
            [(name, array, _)] = items
            for member in members:
                stop = start + member.rows
                mine = {name: array[start:stop]}
                results.append(BatchedResult(mine, model_spec, story, member.since))
                start = stop
            return results
        for member in members:
            stop = start + member.rows
            mine = {name: array if shared else array[start:stop] for name, array, shared in items}
            if cut:
                self._cut(group, member, mine)
            results.append(BatchedResult(mine, model_spec, story, member.since))
            start = stop
        return results

    def _read(self, response: bytes, attempts: tuple[Attempt, ...]) -> tuple[dict[str, Array], bytes]:
        try:
            found = self._decode(response)
            self._predictor.note(found[1])
        except errors.DecodeError as error:
            raise errors.DecodeError(
                f"Predict of model {self.name!r} at {attempts[-1].target} answered what cannot be read: "
                f"{error}"
            ) from error
        return found

    def _is_shared(self, group: _Group, name: str, array: Array, total: int) -> bool:
        """Whether an output has no batch axis; raises if it should have one."""
        if name in group.shared:
            return True
        if array.ndim and array.shape[0] == total:
            return False
        if self._options.shared_outputs == "broadcast" and not (
            group.signature is not None
            and name in group.signature.outputs
            and group.signature.outputs[name].shape is not None
        ):
            return True
        raise self._no_batch_axis(name, f"{array.dtype} {array.shape} in the answer to {total} rows")

    def _cut(self, group: _Group, member: _Member, outputs: dict[str, Array]) -> None:
        """Cut outputs back to the size that the caller's own inputs have."""
        for array, ragged in zip(member.arrays, group.ragged or (None,) * len(member.arrays), strict=True):
            if ragged is not None and ragged == self._options.pad_axis:
                place = (*(slice(None),) * ragged, slice(array.shape[ragged]))
                for name in self._options.cut_outputs:
                    if name in outputs and outputs[name].ndim > ragged:
                        outputs[name] = outputs[name][place]
                return

    def _head(self, group: _Group, array: Array, total: int) -> bytes:
        """What precedes the memory of the one input of a request with `total` rows."""
        head = group.heads.get(total)
        if head is None:
            entry = plain_input_head(group.names[0], array.dtype, (total, *array.shape[1:]))
            assert entry is not None
            spec = model_spec_field(1, self._predictor.model_spec)
            self._check_size(len(spec) + entry[1] + len(group.tail or b""), total)
            if len(group.heads) >= _MANY_HEADS:
                group.heads.clear()
            head = group.heads[total] = spec + entry[0]
        return head

    def _check_size(self, size: int, total: int) -> None:
        if size > MAX_MESSAGE_BYTES:
            raise errors.MessageTooLargeError(
                f"a batch of {total} rows takes {size} bytes, and protobuf at most {MAX_MESSAGE_BYTES}",
                model=self.name,
                method="Predict",
            )

    def _encode(self, group: _Group, members: list[_Member], total: int) -> bytes:
        """The request of some callers, with every array copied once."""
        columns: list[list[Array]] = [
            [member.arrays[index] for member in members] for index in range(len(group.names))
        ]
        rows = sum(member.rows for member in members)
        if total > rows:
            for column in columns:
                first = column[-1][:1] if len(column[-1]) else next(a[:1] for a in column if len(a))
                column.extend([first] * (total - rows))
        if group.ragged:
            for index, axis in enumerate(group.ragged):
                if axis is not None:
                    columns[index] = [self._filled(group.names[index], columns[index], axis, total)]
        if group.tail is not None:
            [column] = columns
            return b"".join((self._head(group, column[0], total), *column, group.tail))  # type: ignore[arg-type]
        spec = self._predictor.model_spec
        if group.plain:
            pieces: list[Any] = [model_spec_field(1, spec)]
            size = len(pieces[0])
            for name, column in zip(group.names, columns, strict=True):
                first = column[0]
                entry = plain_input_head(name, first.dtype, (total, *first.shape[1:]))
                assert entry is not None
                pieces.append(entry[0])
                pieces += column
                size += entry[1]
            pieces.append(group.filter)
            self._check_size(size + len(group.filter), total)
            return b"".join(pieces)
        inputs = {
            name: column[0] if len(column) == 1 else np.concatenate(column)
            for name, column in zip(group.names, columns, strict=True)
        }
        return encode_predict_request(inputs, model_spec=spec, output_filter=group.output_filter)

    def _filled(self, name: str, column: list[Array], axis: int, total: int) -> Array:
        """Arrays of different sizes along `axis` as one."""
        sizes = [array.shape[axis] for array in column]
        shape = column[0].shape
        longest = max(sizes)
        if len(column) == 1:
            return column[0]
        dtype = column[0].dtype
        value: Any = 0 if name == self._options.mask_input else self._options.pad_value
        if dtype.kind == "O" and not isinstance(value, (bytes, str)):
            value = b""
        whole = np.full((total, *shape[1:axis], longest, *shape[axis + 1 :]), value, dtype)
        before = (slice(None),) * (axis - 1)
        start = 0
        for array, size in zip(column, sizes, strict=True):
            stop = start + len(array)
            place = (slice(start, stop), *before, slice(size))
            whole[place] = array
            start = stop
        return whole

    def _time(self) -> float:
        assert self._loop is not None
        return self._loop.time()


class BlockingBatchedModel:
    """One model whose `predict` calls from many threads are sent together; made by `BlockingModel.batched`.

    ```python
    with client.model("digits").batched() as digits, ThreadPoolExecutor(64) as threads:
        results = list(threads.map(digits.predict, rows))
    ```

    Args:
        run: runs a coroutine on the client's loop and waits for it here.
        batched: the handle to share.
    """

    def __init__(
        self, run: Callable[[Coroutine[Any, Any, PredictResult | None]], Any], batched: BatchedModel
    ) -> None:
        self._run = run
        self._batched = batched

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._batched!r}>"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self._batched.name

    @property
    def options(self) -> BatchingOptions:
        """The settings."""
        return self._batched.options

    def stats(self) -> BatchingStats:
        """What it has done so far, at this moment."""
        return self._batched.stats()

    def predict(
        self,
        inputs: Inputs,
        *,
        output_filter: Sequence[str] | None = None,
        timeout: Timeout = DEFAULT,
        validate: bool = True,
        metadata: Metadata = (),
        priority: int = 0,
    ) -> PredictResult:
        """Run the model on `inputs`, together with what other threads send; see `BatchedModel.predict`."""
        result: PredictResult = self._run(
            self._batched.predict(
                inputs,
                output_filter=output_filter,
                timeout=timeout,
                validate=validate,
                metadata=metadata,
                priority=priority,
            )
        )
        return result

    def close(self, grace: float | None = None) -> None:
        """Send what waits, let it end, and refuse new calls from now on; see `BatchedModel.aclose`."""
        if self._batched._loop is None:
            self._batched._closed = True
            return
        try:
            self._run(self._batched.aclose(grace))
        except errors.ClientClosedError:
            self._batched._closed = True  # the client was first, and ended everything


def _latest(members: list[_Member]) -> float | None:
    """The last deadline of some callers; None if one has none."""
    latest = -math.inf
    for member in members:
        if member.deadline is None:
            return None
        if member.deadline > latest and not member.future.done():
            latest = member.deadline
    return latest if latest > -math.inf else members[0].deadline


def _told(story: _Story, since: float) -> tuple[Attempt, ...]:
    """The attempts as a caller sees them that began `since`."""
    if len(story) == 1:
        sent, attempts = story[0]
        if len(attempts) == 1:
            attempt = attempts[0]
            return (Attempt(attempt[0], attempt[1] + (sent - since), *attempt[2:]),)
    return tuple(
        attempt._replace(started=attempt.started + sent - since)
        for sent, attempts in story
        for attempt in attempts
    )


def _fail(members: list[_Member], error: BaseException, story: _Story, begun: float | None = None) -> int:
    """Give everyone an error of their own; gives their number.

    One object raised in several tasks would grow every traceback.
    """
    if isinstance(error, errors.RPCError) and begun is not None:
        story = (*story, (begun, error.attempts))
    failed = 0
    for member in members:
        if member.future.done():
            continue
        mine = copy.copy(error)
        mine.__cause__ = error.__cause__
        if isinstance(mine, errors.RPCError):
            mine.attempts = _told(story, member.since)
        member.future.set_exception(mine)
        member.gone = True
        failed += 1
    return failed


def _joined(results: list[PredictResult], group: _Group, sizes: list[int]) -> PredictResult:
    """The answers to a divided request as one."""
    first = results[0]
    outputs: dict[str, Array] = {}
    for name, array in first.items():
        parts = [result[name] for result in results]
        if name in group.shared or not all(
            part.ndim and len(part) == size for part, size in zip(parts, sizes, strict=True)
        ):
            outputs[name] = array
        else:
            whole = np.concatenate(parts)
            whole.flags.writeable = False
            outputs[name] = whole
    attempts = tuple(attempt for result in results for attempt in result.attempts)
    return BatchedResult(outputs, first._model_spec, ((0.0, attempts),), 0.0)


def _may_have_batch_axis(spec: TensorSpec) -> bool:
    return spec.shape is None or (len(spec.shape) > 0 and spec.shape[0] < 0)


def _kind(signature: Signature | None, name: str, default: np.dtype[Any]) -> tuple[np.dtype[Any], int | None]:
    """The dtype and the rank of an input."""
    spec = signature.inputs.get(name) if signature is not None else None
    if spec is None:
        return default, None
    return spec.dtype, None if spec.shape is None else len(spec.shape)


def _regular(array: Array) -> Array:
    """An array that can be joined with others of its kind."""
    if array.dtype.kind in "SUT":
        return array.astype(object)  # strings of different widths have different dtypes
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


class _Nobody:
    """In place of the future of a caller that waits for none."""

    def __repr__(self) -> str:
        return "<_Nobody>"

    def done(self) -> bool:
        """Never: its caller is at work."""
        return False


_NOBODY: Final[Any] = _Nobody()
