"""Batching: what is merged, when, into what, and what happens to everybody when something is wrong."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioserving.testing.batching import BatchingParameters, BatchingServable
from aioserving.testing.servable import CallableServable, CallableSignature
from aioserving.testing.status import StatusCode, StatusError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FLOATS = ("float32", (None,))

#: Long enough that no test waits for it, in microseconds.
NEVER = 600_000_000


class Model:
    """y = x + 1, which remembers its batches and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[float]] = []
        self.timeouts: list[float | None] = []
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Semaphore(0)
        self.failure: Exception | None = None
        model = self

        class Recorder(CallableServable):
            def run(self, feeds: Any, fetches: Any, timeout: float | None) -> Any:
                model.timeouts.append(timeout)
                return super().run(feeds, fetches, timeout)

        self.servable = Recorder(self._plus_one, inputs={"x": FLOATS}, outputs={"y": FLOATS})
        definition = self.servable.signatures["serving_default"]
        self.x, self.y = definition.inputs["x"].name, definition.outputs["y"].name

    def _plus_one(self, x: np.ndarray) -> Any:
        self.batches.append(x.reshape(len(x), -1)[:, 0].tolist() if x.ndim else x.tolist())
        self.entered.release()
        assert self.go.wait(30)
        if self.failure is not None:
            raise self.failure
        return np.add(x, 1)


@pytest.fixture
def model() -> Model:
    """The model underneath."""
    return Model()


@pytest.fixture
def batching(model: Model) -> Iterator[Callable[..., BatchingServable]]:
    """Wrap the model with the given parameters; one batch thread unless told otherwise."""
    made: list[BatchingServable] = []

    def make(**parameters: Any) -> BatchingServable:
        parameters = {"num_batch_threads": 1} | parameters
        made.append(BatchingServable(model.servable, BatchingParameters(**parameters)))
        return made[-1]

    yield make
    model.go.set()
    for servable in made:
        servable.close()


@pytest.fixture
def pool() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    """Threads for callers."""
    with concurrent.futures.ThreadPoolExecutor(16) as executor:
        yield executor


def call(
    servable: BatchingServable, model: Model, *values: float, timeout: float | None = None
) -> list[float]:
    (output,) = servable.run({model.x: np.array(values, "f4")}, (model.y,), timeout)
    result: list[float] = output.tolist()
    return result


def waiting(servable: BatchingServable, tasks: int) -> None:
    """Wait until that many tasks are in the queues."""
    for _ in range(3000):
        if f", {tasks} waiting>" in repr(servable):
            return
        time.sleep(0.01)
    raise AssertionError(f"never {tasks} tasks in {servable!r}")


def refused(action: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(StatusError) as caught:
        action()
    return caught.value.code.name, caught.value.message


def test_calls_that_fill_a_batch_run_at_once(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """A full batch does not wait for its timeout, and everybody gets their own rows."""
    servable = batching(max_batch_size=4, batch_timeout_micros=NEVER)
    futures = [pool.submit(call, servable, model, i, i + 0.5) for i in (10, 20)]
    assert [future.result(30) for future in futures] == [[11, 11.5], [21, 21.5]]
    assert len(model.batches) == 1
    assert sorted(model.batches[0]) == [10, 10.5, 20, 20.5]


def test_an_incomplete_batch_runs_after_its_timeout(
    batching: Callable[..., BatchingServable], model: Model
) -> None:
    """A call alone waits for company no longer than the batch timeout."""
    servable = batching(max_batch_size=4, batch_timeout_micros=50_000)
    began = time.monotonic()
    assert call(servable, model, 1) == [2]
    assert 0.04 < time.monotonic() - began < 20


def test_a_batch_is_padded_to_an_allowed_size_with_copies(
    batching: Callable[..., BatchingServable], model: Model
) -> None:
    """Rows missing to the next allowed size are copies of the last task's first row, and cut off again."""
    servable = batching(max_batch_size=8, allowed_batch_sizes=(2, 8))
    assert call(servable, model, 1, 2, 3) == [2, 3, 4]
    assert call(servable, model, 7) == [8]
    assert call(servable, model, 5, 6) == [6, 7]
    assert model.batches == [[1, 2, 3, 1, 1, 1, 1, 1], [7, 7], [5, 6]]


def test_padding_repeats_the_first_row_of_the_last_task(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """With several tasks in a batch, the padding comes from the last one."""
    servable = batching(max_batch_size=4, allowed_batch_sizes=(4,), batch_timeout_micros=300_000)
    first = pool.submit(call, servable, model, 1, 2)
    waiting(servable, 1)
    second = pool.submit(call, servable, model, 3)
    assert (first.result(30), second.result(30)) == ([2, 3], [4])
    assert model.batches == [[1, 2, 3, 3]]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.float32(1), "Batching Run() input tensors must have at least one dimension"),
        (np.zeros(5, "f4"), "Task size 5 is larger than maximum input batch size 4"),
        (np.zeros(1, "i4"), "Expects arg[0] to be float but int32 is provided"),
    ],
)
def test_inputs_that_cannot_be_batched_are_refused(
    batching: Callable[..., BatchingServable], model: Model, value: Any, message: str
) -> None:
    """Scalars and too many rows are refused by the batcher, wrong dtypes by the model."""
    servable = batching(max_batch_size=4)
    found = refused(lambda: servable.run({model.x: np.asarray(value)}, (model.y,), None))
    assert found == ("INVALID_ARGUMENT", message)


def test_inputs_need_the_same_number_of_rows() -> None:
    """Two inputs with different first dimensions cannot be one batch; a signature without inputs none."""
    servable = BatchingServable(
        CallableServable(lambda a, b: a, inputs={"a": FLOATS, "b": FLOATS}, outputs={"y": FLOATS})
    )
    none = BatchingServable(CallableServable(lambda: np.zeros(1, "f4"), inputs={}, outputs={"y": FLOATS}))
    definition = servable.signatures["serving_default"]
    feeds = {definition.inputs["a"].name: np.zeros(1, "f4"), definition.inputs["b"].name: np.zeros(2, "f4")}
    assert refused(lambda: servable.run(feeds, (definition.outputs["y"].name,), None)) == (
        "INVALID_ARGUMENT",
        "Batching Run() input tensors must have equal 0th-dimension size",
    )
    fetch = none.signatures["serving_default"].outputs["y"].name
    assert refused(lambda: none.run({}, (fetch,), None)) == (
        "INVALID_ARGUMENT",
        "Batching Run() must have at least one input tensor",
    )
    servable.close()
    none.close()


def test_a_run_that_fetches_less_than_the_signature_runs_alone() -> None:
    """Only exactly a signature's inputs and outputs are batched; scalars pass in any other run."""
    servable = BatchingServable(
        CallableServable(lambda x: {"y": x, "z": x}, inputs={"x": FLOATS}, outputs={"y": FLOATS, "z": FLOATS})
    )
    definition = servable.signatures["serving_default"]
    feeds = {definition.inputs["x"].name: np.array(3, "f4")}
    names = [definition.outputs["y"].name, definition.outputs["z"].name]
    assert servable.run(feeds, names[:1], None)[0] == 3
    assert refused(lambda: servable.run(feeds, names, None))[1].endswith("at least one dimension")
    feeds = {definition.inputs["x"].name: np.array([3], "f4")}
    both = [array.tolist() for array in servable.run(feeds, [*names, names[0]], None)]
    assert both == [[3], [3], [3]]
    servable.close()


def test_a_full_queue_refuses(batching: Callable[..., BatchingServable], model: Model, pool: Any) -> None:
    """With as many batches waiting as allowed, a call that fits none of them is UNAVAILABLE."""
    servable = batching(max_batch_size=2, max_enqueued_batches=2)
    model.go.clear()
    running = pool.submit(call, servable, model, 0)
    assert model.entered.acquire(timeout=30)
    queued = [pool.submit(call, servable, model, i, i) for i in (1, 2)]
    waiting(servable, 2)
    assert refused(lambda: call(servable, model, 3)) == (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; currently 2 batches enqueued "
        "and max_enqueued_batches is 2",
    )
    model.go.set()
    assert running.result(30) == [1]
    assert sorted(future.result(30) for future in queued) == [[2, 2], [3, 3]]


def test_an_error_is_everybodys(batching: Callable[..., BatchingServable], model: Model, pool: Any) -> None:
    """A failed run fails all calls that were merged into it, each with the same status."""
    servable = batching(max_batch_size=2, batch_timeout_micros=NEVER)
    model.failure = StatusError(StatusCode.ABORTED, "no more")
    futures = [pool.submit(call, servable, model, i) for i in (1, 2)]
    errors = [future.exception(30) for future in futures]
    assert [(error.code, error.message) for error in errors] == [(StatusCode.ABORTED, "no more")] * 2
    assert errors[0] is not errors[1]
    assert len(model.batches) == 1


def test_different_shapes_need_padding(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """Requests of different shapes fail together, unless they may be padded with their first value."""
    shapes = (np.full((1, 2), 5, "f4"), np.full((1, 3), 7, "f4"))

    def both(servable: BatchingServable) -> list[Any]:
        futures = [pool.submit(servable.run, {model.x: value}, (model.y,), None) for value in shapes]
        return [future.exception(30) or future.result()[0].tolist() for future in futures]

    strict = batching(max_batch_size=2, batch_timeout_micros=NEVER)
    for error in both(strict):
        assert error.code is StatusCode.FAILED_PRECONDITION
        assert error.message.startswith(
            f"Tensors with name '{model.x}' from different tasks have different shapes"
        )
    lenient = batching(max_batch_size=2, batch_timeout_micros=NEVER, pad_variable_length_inputs=True)
    assert both(lenient) == [[[6, 6, 6]], [[8, 8, 8]]]


def test_different_dtypes_cannot_be_merged(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """Two dtypes in one batch fail in the runtime's words for tensors that do not go together."""
    servable = batching(max_batch_size=2, batch_timeout_micros=NEVER)
    first = pool.submit(servable.run, {model.x: np.zeros(1, "f4")}, (model.y,), None)
    waiting(servable, 1)
    second = pool.submit(servable.run, {model.x: np.zeros(1, "i4")}, (model.y,), None)
    for future in (first, second):
        error = future.exception(30)
        assert error.code is StatusCode.INVALID_ARGUMENT
        assert error.message == (
            "Cannot concatenate tensors that have different data types. Got float and int32."
        )


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (np.float32(1), "Batched output tensor has 0 dimensions"),
        (
            np.zeros(3, "f4"),
            "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
            "input tensors",
        ),
    ],
)
def test_outputs_that_cannot_be_split_are_refused(output: Any, message: str) -> None:
    """An output without the batch's rows is FAILED_PRECONDITION."""
    servable = BatchingServable(
        CallableServable(lambda x: output, inputs={"x": FLOATS}, outputs={"y": FLOATS})
    )
    definition = servable.signatures["serving_default"]
    feeds = {definition.inputs["x"].name: np.zeros(2, "f4")}
    found = refused(lambda: servable.run(feeds, (definition.outputs["y"].name,), None))
    assert found == ("FAILED_PRECONDITION", message)
    servable.close()


def test_a_batch_that_waited_too_long_is_not_run(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """When the time of all tasks of a batch is up before it runs, they are RESOURCE_EXHAUSTED."""
    servable = batching(max_batch_size=2)
    model.go.clear()
    running = pool.submit(call, servable, model, 0)
    assert model.entered.acquire(timeout=30)
    late = pool.submit(call, servable, model, 1, timeout=0.01)
    waiting(servable, 1)
    time.sleep(0.05)
    model.go.set()
    error = late.exception(30)
    assert (error.code, error.message) == (
        StatusCode.RESOURCE_EXHAUSTED,
        "Run() timeout exceeded while waiting in batching queue",
    )
    assert running.result(30) == [1]
    assert model.batches == [[0]]


def test_a_merged_run_has_the_longest_timeout(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """The most patient task decides how long the batch may take; without a limit, there is none."""
    servable = batching(max_batch_size=2, batch_timeout_micros=NEVER)
    for timeouts in ((5, 500), (5, None)):
        futures = [pool.submit(call, servable, model, 1, timeout=timeout) for timeout in timeouts]
        for future in futures:
            future.result(30)
    limited, unlimited = model.timeouts
    assert limited is not None
    assert 400 < limited <= 500
    assert unlimited is None


def test_a_task_without_rows_waits_for_others(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """No rows make no batch: such a call waits until one takes it along, or its time is up."""
    servable = batching(max_batch_size=2)
    assert refused(lambda: call(servable, model, timeout=0.05))[0] == "DEADLINE_EXCEEDED"
    empty = pool.submit(call, servable, model)
    waiting(servable, 2)  # the one that gave up is still in the queue, as in the real server
    assert call(servable, model, 5) == [6]
    assert empty.result(30) == []


def test_large_requests_are_split_where_allowed(
    batching: Callable[..., BatchingServable], model: Model
) -> None:
    """With splitting, a request larger than a batch runs in pieces and is put together again."""
    servable = batching(
        max_batch_size=10,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        allowed_batch_sizes=(2, 4),
    )
    assert call(servable, model, *range(9)) == [i + 1 for i in range(9)]
    assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 8]]


def test_splitting_fills_the_open_batch(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """A piece of a split request fills the batch that others have begun; a failure there is its failure."""
    servable = batching(
        max_batch_size=8,
        max_execution_batch_size=4,
        enable_large_batch_splitting=True,
        max_enqueued_batches=2,
    )
    model.go.clear()
    running = pool.submit(call, servable, model, 0)
    assert model.entered.acquire(timeout=30)
    first = pool.submit(call, servable, model, 1)
    waiting(servable, 1)
    second = pool.submit(call, servable, model, 2, 3, 4, 5, 6)
    waiting(servable, 3)
    assert refused(lambda: call(servable, model, *range(7))) == (
        "UNAVAILABLE",
        "The batch scheduling queue to which this task was submitted is full; task size is 7 but scheduling "
        "capacity is only 2 (num_enqueued_batches=2, max_enqueued_batches=2, open_batch_size=2, "
        "max_execution_batch_size=4)",
    )
    model.go.set()
    assert (running.result(30), first.result(30), second.result(30)) == ([1], [2], [3, 4, 5, 6, 7])
    assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_closing_lets_batches_run_and_cancels_the_rest(
    batching: Callable[..., BatchingServable], model: Model, pool: Any
) -> None:
    """Close runs what waits for a timeout, cancels what no batch takes, and ends the threads."""
    servable = batching(max_batch_size=4, batch_timeout_micros=NEVER)
    late = pool.submit(call, servable, model, 1)
    waiting(servable, 1)
    servable.close()
    assert late.result(30) == [2]
    assert refused(lambda: call(servable, model, 1)) == ("CANCELLED", "Session has been closed.")
    assert "closed" in repr(servable)
    assert not [thread for thread in servable._threads if thread.is_alive()]


def test_closing_cancels_a_task_without_rows(model: Model, pool: Any) -> None:
    """A call that waits for company in vain is told that the model was closed."""
    servable = BatchingServable(model.servable, BatchingParameters(num_batch_threads=1))
    empty = pool.submit(call, servable, model)
    waiting(servable, 1)
    servable.close()
    error = empty.exception(30)
    assert (error.code, error.message) == (StatusCode.CANCELLED, "Session has been closed.")


def test_signatures_take_turns(pool: Any) -> None:
    """Each signature has its own queue; a busy one does not starve another."""
    order: list[str] = []
    go = threading.Event()

    def work(name: str) -> Callable[..., np.ndarray]:
        def function(x: np.ndarray) -> np.ndarray:
            order.append(name)
            assert go.wait(30)
            return x

        return function

    servable = BatchingServable(
        CallableServable(
            {
                name: CallableSignature(function=work(name), inputs={"x": FLOATS}, outputs={"y": FLOATS})
                for name in ("a", "b")
            }
        ),
        BatchingParameters(max_batch_size=1, num_batch_threads=1),
    )

    def one(name: str) -> None:
        definition = servable.signatures[name]
        servable.run({definition.inputs["x"].name: np.zeros(1, "f4")}, (definition.outputs["y"].name,), None)

    futures = [pool.submit(one, "a") for _ in range(4)]
    waiting(servable, 3)
    futures.append(pool.submit(one, "b"))
    waiting(servable, 4)
    go.set()
    for future in futures:
        future.result(30)
    servable.close()
    assert order.index("b") <= 2


# Parameters


def test_parameters_are_read_from_the_real_servers_text() -> None:
    """The text of the recorded batching parameters, and every other field, is understood."""
    parameters = BatchingParameters.from_text(
        "max_batch_size { value: 128 } batch_timeout_micros { value: 5 } max_enqueued_batches { value: 6 } "
        'num_batch_threads { value: 7 } thread_pool_name { value: "pool" } allowed_batch_sizes: 32 '
        "allowed_batch_sizes: 64 pad_variable_length_inputs: true "
        "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 64 }"
    )
    assert parameters == BatchingParameters(
        max_batch_size=128,
        batch_timeout_micros=5,
        max_enqueued_batches=6,
        num_batch_threads=7,
        allowed_batch_sizes=(32, 64),
        pad_variable_length_inputs=True,
        enable_large_batch_splitting=True,
        max_execution_batch_size=64,
    )
    assert BatchingParameters.from_text("") == BatchingParameters()
    assert BatchingParameters().max_batch_size == 1000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "allowed_batch_sizes: 2",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 1000",
        ),
        (
            "allowed_batch_sizes: 4 allowed_batch_sizes: 4 max_batch_size { value: 4 } "
            "enable_large_batch_splitting { value: true }",
            "allowed_batch_sizes entries must be monotonically increasing",
        ),
        (
            "allowed_batch_sizes: 4 max_batch_size { value: 8 } enable_large_batch_splitting { value: true }",
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last entry was 4; "
            "expected 8",
        ),
        ("num_batch_threads { value: 0 }", "num_batch_threads must be positive; was 0"),
        ("max_batch_size: 4", "Invalid protobuf file: 'batching parameters'"),
    ],
)
def test_wrong_parameters_are_refused(text: str, message: str) -> None:
    """What the real server refuses when it loads a model is refused, in its words."""
    assert refused(lambda: BatchingParameters.from_text(text)) == ("INVALID_ARGUMENT", message)
