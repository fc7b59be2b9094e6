"""`--enable_batching`: concurrent runs of one signature merged into one run of the model.

`BatchingServable` wraps any servable; `BatchingParameters` is what the parameters file says. As in the
real server, only a run that feeds and fetches exactly what a signature declares is batched (an output
filter makes it run alone), a failure of a merged run is everybody's failure, and rows added to reach an
allowed size are copies that nobody gets to see. Here each model has its own threads, where the real
server's models share them.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from aioserving._types import Array
from aioserving.dtypes import short_name
from aioserving.testing.options import parse_text_proto, read_text_proto
from aioserving.testing.servable import Servable, array_data_type
from aioserving.testing.status import StatusCode, StatusError

__all__ = ["BatchingParameters", "BatchingServable"]


@dataclass(frozen=True, kw_only=True)
class BatchingParameters:
    """Parameters of batching; names and defaults are those of the real server's file.

    Raises:
        StatusError: INVALID_ARGUMENT, for what the real server refuses when it loads a model.
    """

    #: Rows that one request may have, and (without splitting) that a batch may have.
    max_batch_size: int = 1000
    #: How long an incomplete batch waits for more.
    batch_timeout_micros: int = 0
    #: Batches that may wait, for each signature, before requests are refused.
    max_enqueued_batches: int = 10
    #: Batches that run at once.
    num_batch_threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    #: Sizes that batches are padded to; empty: any size is good.
    allowed_batch_sizes: tuple[int, ...] = ()
    #: Pad requests whose shapes differ beyond the rows to the largest, with their own first value.
    pad_variable_length_inputs: bool = False
    #: Cut requests in pieces to fill batches.
    enable_large_batch_splitting: bool = False
    #: With splitting: rows that a batch may have; 0: max_batch_size.
    max_execution_batch_size: int = 0

    def __post_init__(self) -> None:
        for name in ("num_batch_threads", "max_enqueued_batches", "max_batch_size"):
            if getattr(self, name) < 1:
                raise _invalid(f"{name} must be positive; was {getattr(self, name)}")
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if self.enable_large_batch_splitting:
            if any(size >= following for size, following in itertools.pairwise(sizes)):
                raise _invalid("allowed_batch_sizes entries must be monotonically increasing")
            if sizes[-1] != self.batch_limit:
                raise _invalid(
                    "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last entry "
                    f"was {sizes[-1]}; expected {self.batch_limit}"
                )
        elif sizes[-1] != self.max_batch_size:
            raise _invalid(
                "Last entry in allowed_batch_sizes must match max_batch_size; last entry was "
                f"{sizes[-1]}; expected {self.max_batch_size}"
            )

    @classmethod
    def from_text(cls, text: str, *, source: str = "batching parameters") -> BatchingParameters:
        """The parameters in the text format of the real server's file.

        Raises:
            StatusError: INVALID_ARGUMENT, the text cannot be read, or says what cannot be.
        """
        return cls._from_message(parse_text_proto(text, _message_class()(), source=source))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> BatchingParameters:
        """The parameters in a file; errors as those of `from_text`, or NOT_FOUND."""
        return cls._from_message(read_text_proto(os.fspath(path), _message_class()()))

    @classmethod
    def _from_message(cls, message: Any) -> BatchingParameters:
        given: dict[str, Any] = {}
        for descriptor, value in message.ListFields():
            if descriptor.name == "allowed_batch_sizes":
                given[descriptor.name] = tuple(value)
            elif descriptor.name != "thread_pool_name":
                given[descriptor.name] = value.value if descriptor.message_type is not None else value
        return cls(**given)

    @property
    def batch_limit(self) -> int:
        """Rows that a batch may have."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size:
            return self.max_execution_batch_size
        return self.max_batch_size

    def padded(self, rows: int) -> int:
        """The size to which a batch of `rows` is padded."""
        return next((size for size in self.allowed_batch_sizes if size >= rows), rows)


class BatchingServable:
    """A servable whose concurrent runs are merged.

    Args:
        servable: the model; closed with this one.
        parameters: how to merge.
    """

    inline = False

    def __init__(self, servable: Servable, parameters: BatchingParameters | None = None) -> None:
        self.servable = servable
        self.signatures: Mapping[str, Any] = servable.signatures
        self.parameters = parameters or BatchingParameters()
        self._changed = threading.Condition()
        self._queues = {
            key: _Queue(self.parameters, sorted(key[1]))
            for key in map(_key_of_signature, servable.signatures.values())
        }
        #: Whose turn it is next.
        self._turns = list(self._queues.values())
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"aioserving.testing batch {number}", daemon=True)
            for number in range(self.parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __repr__(self) -> str:
        waiting = sum(len(batch.tasks) for queue in self._queues.values() for batch in queue.batches)
        return (
            f"<BatchingServable{' closed' if self._closed else ''} of {self.servable!r}, {waiting} waiting>"
        )

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout: float | None) -> list[Array]:
        """Run as part of a batch, if that is possible; see `Servable.run`.

        Raises:
            StatusError: INVALID_ARGUMENT for inputs that cannot be batched; UNAVAILABLE if too many
                batches wait; RESOURCE_EXHAUSTED if the whole batch waited for too long; and whatever
                the merged run ends with.
        """
        queue = self._queues.get((frozenset(feeds), frozenset(fetches)))
        if queue is None:
            return self.servable.run(feeds, fetches, timeout)
        task = _Task(feeds, _rows(feeds), timeout)
        with self._changed:
            if self._closed:
                raise _closed()
            queue.add(task)
            self._changed.notify_all()
        # A task without rows makes no batch that could run: it waits for one that takes it along.
        if not task.done.wait(timeout if task.rows == 0 else None):
            raise StatusError(StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        outputs = task.outputs()
        return [outputs[name] for name in fetches]

    def close(self) -> None:
        """Let the batches that wait run, then close the model. Tasks that no batch takes are cancelled."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        for queue in self._queues.values():
            for batch in queue.batches:
                for piece in batch.tasks:
                    piece.fail(_closed())
        self.servable.close()

    def _work(self) -> None:
        """Run batches as they become due, until closed and out of work."""
        while True:
            with self._changed:
                while True:
                    batch, delay = self._next_batch()
                    if batch is not None:
                        break
                    if self._closed:
                        return
                    self._changed.wait(delay)
            try:
                self._run_batch(batch)
            except StatusError as error:
                batch.fail(error)
            except Exception as error:
                batch.fail(StatusError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}"))

    def _next_batch(self) -> tuple[_Batch | None, float | None]:
        """A batch to run now; else None, and the seconds until one is due, if one waits."""
        now = time.monotonic()
        due: list[float] = []
        for queue in self._turns:
            when = queue.due_at(closing=self._closed)
            if when is None:
                continue
            if when <= now:
                self._turns.remove(queue)
                self._turns.append(queue)
                return queue.take(), None
            due.append(when - now)
        return None, min(due, default=None)

    def _run_batch(self, batch: _Batch) -> None:
        now = time.monotonic()
        deadlines = [task.deadline for task in batch.tasks]
        finite = [deadline for deadline in deadlines if deadline is not None]
        last = max(finite) if len(finite) == len(deadlines) else None
        if last is not None and last <= now:
            raise StatusError(
                StatusCode.RESOURCE_EXHAUSTED, "Run() timeout exceeded while waiting in batching queue"
            )
        size = self.parameters.padded(batch.rows)
        feeds = {
            name: self._merge(name, [task.feeds[name] for task in batch.tasks], size - batch.rows)
            for name in batch.tasks[0].feeds
        }
        outputs = self.servable.run(feeds, batch.fetches, None if last is None else last - now)
        for output in outputs:
            if output.ndim == 0:
                raise StatusError(StatusCode.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
            if len(output) != size:
                raise StatusError(
                    StatusCode.FAILED_PRECONDITION,
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes "
                    "of the input tensors",
                )
        start = 0
        for task in batch.tasks:
            stop = start + task.rows
            task.finish({name: array[start:stop] for name, array in zip(batch.fetches, outputs, strict=True)})
            start = stop

    def _merge(self, name: str, arrays: list[Array], padding: int) -> Array:
        """The arrays of one input, one after the other, and copies of a row to fill the batch."""
        if len({array.shape[1:] for array in arrays}) > 1:
            if not self.parameters.pad_variable_length_inputs or len({a.ndim for a in arrays}) > 1:
                raise StatusError(
                    StatusCode.FAILED_PRECONDITION,
                    f"Tensors with name '{name}' from different tasks have different shapes and padding is "
                    "turned off. Set pad_variable_length_inputs to true, or ensure that all tensors with the "
                    "same name have equal dimensions starting with the first dim.",
                )
            arrays = _padded_alike(arrays)
        for array in arrays:
            if array.dtype != arrays[0].dtype:
                first, other = array_data_type(arrays[0]), array_data_type(array)
                raise _invalid(
                    "Cannot concatenate tensors that have different data types. Got "
                    f"{short_name(first)} and {short_name(other)}."
                )
        if padding:
            last = next(array for array in reversed(arrays) if len(array))
            arrays = [*arrays, np.broadcast_to(last[:1], (padding, *last.shape[1:]))]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


_Key: TypeAlias = "tuple[frozenset[str], frozenset[str]]"


def _key_of_signature(definition: Any) -> _Key:
    return (
        frozenset(info.name for info in definition.inputs.values()),
        frozenset(info.name for info in definition.outputs.values()),
    )


class _Task:
    """One caller's run, whole or (with splitting) in pieces that end one by one."""

    def __init__(self, feeds: Mapping[str, Array], rows: int, timeout: float | None) -> None:
        self.feeds = feeds
        self.rows = rows
        self.deadline = None if timeout is None else time.monotonic() + timeout
        self.done = threading.Event()
        self._parts: list[_Task] = []
        self._whole: _Task | None = None
        self._outputs: Mapping[str, Array] = {}
        self._error: StatusError | None = None

    def split(self, first: int, following: int) -> list[_Task]:
        """Pieces of at most `following` rows, the first of at most `first`."""
        start = 0
        while start < self.rows:
            rows = min(first if start == 0 else following, self.rows - start)
            part = _Task(
                {name: array[start : start + rows] for name, array in self.feeds.items()}, rows, None
            )
            part.deadline, part._whole = self.deadline, self
            self._parts.append(part)
            start += rows
        return self._parts

    def finish(self, outputs: Mapping[str, Array]) -> None:
        """Set the outputs by name."""
        self._outputs = outputs
        self._end()

    def fail(self, error: StatusError) -> None:
        """Set the error."""
        self._error = error
        self._end()

    def outputs(self) -> Mapping[str, Array]:
        """The outputs by name, or the error raised."""
        parts = [part.outputs() for part in self._parts]
        if self._error is not None:
            # One error is raised in many threads, each of which adds its traceback.
            raise StatusError(self._error.code, self._error.message) from self._error
        if not parts:
            return self._outputs
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _end(self) -> None:
        self.done.set()
        whole = self._whole
        if whole is not None and all(part.done.is_set() for part in whole._parts):
            whole.done.set()


class _Batch:
    """Tasks to run together."""

    def __init__(self, fetches: Sequence[str]) -> None:
        self.fetches = fetches
        self.tasks: list[_Task] = []
        self.rows = 0
        #: When the first task with rows came.
        self.opened = 0.0

    def add(self, task: _Task) -> None:
        if self.rows == 0:
            self.opened = time.monotonic()
        self.tasks.append(task)
        self.rows += task.rows

    def fail(self, error: StatusError) -> None:
        for task in self.tasks:
            if not task.done.is_set():
                task.fail(error)


class _Queue:
    """The batches of one signature: full ones, and the open one at the end."""

    def __init__(self, parameters: BatchingParameters, fetches: Sequence[str]) -> None:
        self._parameters = parameters
        self._fetches = fetches
        self.batches = collections.deque([_Batch(fetches)])

    def add(self, task: _Task) -> None:
        """Put a task into the open batch, or into a new one.

        Raises:
            StatusError: the task is too large, or too many batches wait.
        """
        parameters = self._parameters
        if task.rows > parameters.max_batch_size:
            raise _invalid(
                f"Task size {task.rows} is larger than maximum input batch size {parameters.max_batch_size}"
            )
        limit, waiting = parameters.batch_limit, len(self.batches)
        room = limit - self.batches[-1].rows
        if parameters.enable_large_batch_splitting:
            capacity = (parameters.max_enqueued_batches - waiting) * limit + room
            if task.rows > capacity:
                raise StatusError(
                    StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; task size is "
                    f"{task.rows} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={waiting}, "
                    f"max_enqueued_batches={parameters.max_enqueued_batches}, "
                    f"open_batch_size={self.batches[-1].rows}, max_execution_batch_size={limit})",
                )
            pieces = [task] if task.rows <= room else task.split(room or limit, limit)
        else:
            if task.rows > room and waiting >= parameters.max_enqueued_batches:
                raise StatusError(
                    StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{waiting} batches enqueued and max_enqueued_batches is "
                    f"{parameters.max_enqueued_batches}",
                )
            pieces = [task]
        for piece in pieces:
            if self.batches[-1].rows + piece.rows > limit:
                self.batches.append(_Batch(self._fetches))
            self.batches[-1].add(piece)

    def due_at(self, *, closing: bool) -> float | None:
        """When the first batch is to run; None: not without another task."""
        first = self.batches[0]
        if first.rows == 0:
            return None
        if closing or len(self.batches) > 1 or first.rows >= self._parameters.batch_limit:
            return 0.0
        return first.opened + self._parameters.batch_timeout_micros / 1e6

    def take(self) -> _Batch:
        """Remove the first batch."""
        batch = self.batches.popleft()
        if not self.batches:
            self.batches.append(_Batch(self._fetches))
        return batch


def _rows(feeds: Mapping[str, Array]) -> int:
    if not feeds:
        raise _invalid("Batching Run() must have at least one input tensor")
    sizes = set()
    for array in feeds.values():
        if array.ndim == 0:
            raise _invalid("Batching Run() input tensors must have at least one dimension")
        sizes.add(len(array))
    if len(sizes) > 1:
        raise _invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _padded_alike(arrays: Iterable[Array]) -> list[Array]:
    """The arrays, extended in all dimensions but the first to the size of the largest."""
    arrays = list(arrays)
    shape = tuple(max(sizes) for sizes in zip(*(array.shape[1:] for array in arrays), strict=True))
    padded = []
    for array in arrays:
        if array.shape[1:] == shape:
            padded.append(array)
            continue
        if array.size == 0:
            raise _invalid("Got empty tensor in batch of non-empty tensors.")
        larger = np.full((len(array), *shape), array.reshape(-1)[0], array.dtype)
        larger[tuple(slice(size) for size in array.shape)] = array
        padded.append(larger)
    return padded


def _invalid(message: str) -> StatusError:
    return StatusError(StatusCode.INVALID_ARGUMENT, message)


def _closed() -> StatusError:
    return StatusError(StatusCode.CANCELLED, "Session has been closed.")


@functools.cache
def _message_class() -> Any:
    """`BatchingParameters`, which tensorflow-serving-api leaves out, in a descriptor pool of its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, wrappers_pb2

    kinds = descriptor_pb2.FieldDescriptorProto
    wrapped = {
        "max_batch_size": ".google.protobuf.Int64Value",
        "batch_timeout_micros": ".google.protobuf.Int64Value",
        "max_enqueued_batches": ".google.protobuf.Int64Value",
        "num_batch_threads": ".google.protobuf.Int64Value",
        "thread_pool_name": ".google.protobuf.StringValue",
        "enable_large_batch_splitting": ".google.protobuf.BoolValue",
        "max_execution_batch_size": ".google.protobuf.Int64Value",
    }
    file = descriptor_pb2.FileDescriptorProto(
        name="batching_parameters.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    message = file.message_type.add(name="BatchingParameters")
    # Only its text format is ever used, so the numbers do not matter.
    for number, (name, type_name) in enumerate(wrapped.items(), start=1):
        message.field.add(
            name=name,
            number=number,
            type=kinds.TYPE_MESSAGE,
            type_name=type_name,
            label=kinds.LABEL_OPTIONAL,
        )
    message.field.add(
        name="allowed_batch_sizes", number=20, type=kinds.TYPE_INT64, label=kinds.LABEL_REPEATED
    )
    message.field.add(
        name="pad_variable_length_inputs", number=21, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    )
