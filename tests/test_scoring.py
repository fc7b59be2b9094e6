"""Re-batching, the number of calls in flight, and runs over sources that fail, wait and are cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
import logging
import math
import random
import threading
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import AsyncClient, Client, errors, scoring
from aioserving.codec import encode_model_spec
from aioserving.dtypes import DataType
from aioserving.prediction import PredictResult
from aioserving.scoring import BlockingScoring, InFlightClimber, Rebatcher, ScoredBatch, Scoring
from aioserving.signature import Signature, TensorSpec
from aioserving.testing import CallableServable, ModelServer

VECTORS = Signature(
    "serving_default",
    {"x": TensorSpec("x", DataType.DT_FLOAT, (-1, 2))},
    {"y": TensorSpec("y", DataType.DT_FLOAT, (-1,))},
    model="m",
)
NUMBERS = Signature(
    "serving_default",
    {"x": TensorSpec("x", DataType.DT_FLOAT, (-1,))},
    {"y": TensorSpec("y", DataType.DT_FLOAT, (-1,))},
    model="m",
)
STRINGS = Signature("serving_default", {"x": TensorSpec("x", DataType.DT_STRING, (-1,))}, {}, model="m")
TWO = Signature(
    "serving_default",
    {"a": TensorSpec("a", DataType.DT_FLOAT, (-1,)), "b": TensorSpec("b", DataType.DT_INT64, (-1, 2))},
    {},
    model="m",
)
SPEC = encode_model_spec("m", version=3)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run to the end, with no task left."""

    async def checked() -> Any:
        result = await asyncio.wait_for(work, 60)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, left
        return result

    return asyncio.run(checked())


class FakeModel:
    """Gives back twice what it gets; what else it does is scripted.

    Args:
        signature: how inputs are checked; None for not at all.
        poison: values that make a request fail.
        pause: turns of the event loop that a call takes.
    """

    def __init__(
        self,
        signature: Signature | None = NUMBERS,
        *,
        poison: Any = (),
        pause: Callable[[], int] = lambda: 1,
        error: Callable[[], errors.ServingError] = lambda: errors.InvalidArgumentError("poison"),
    ) -> None:
        self.signature = signature
        self.poison = frozenset(poison)
        self.pause = pause
        self.error = error
        #: Values of every call that was made, in the order of the calls.
        self.calls: list[list[Any]] = []
        self.in_flight = self.most_in_flight = 0
        #: What the next calls fail with.
        self.failures: list[errors.ServingError | None] = []
        self.down: Callable[[], errors.ServingError | None] = lambda: None

    async def learn(self) -> Signature:
        assert self.signature is not None
        await asyncio.sleep(0)
        return self.signature

    async def predict(self, inputs: Any) -> PredictResult:
        if self.signature is not None:
            inputs = self.signature.prepare(inputs)
        array = inputs["x"] if isinstance(inputs, dict) else np.asarray(inputs)
        self.calls.append(array.tolist())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            for _ in range(self.pause()):
                await asyncio.sleep(0)
            failure = self.failures.pop(0) if self.failures else self.down()
            if failure is not None:
                raise failure
            if not self.poison.isdisjoint(array.ravel().tolist()):
                raise self.error()
        finally:
            self.in_flight -= 1
        doubled = array * 2 if array.dtype.kind == "f" else array
        return PredictResult({"y": doubled}, SPEC, b"")

    def score(self, source: Any, **options: Any) -> Scoring:
        options.setdefault("signature", self.learn if self.signature is not None else None)
        return Scoring(source, self.predict, name="m", **options)


async def collect(results: Scoring) -> list[ScoredBatch]:
    async with results:
        return [batch async for batch in results]


def values(batches: list[ScoredBatch], output: str = "y") -> list[Any]:
    return [value for batch in batches for value in batch.outputs.get(output, np.empty(0)).tolist()]


def floats(count: int, start: int = 0) -> Any:
    return np.arange(start, start + count, dtype=np.float32)


# -- re-batching --------------------------------------------------------------------------------------


@given(
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 45), st.sampled_from(["array", "dict", "list", "rows"])), max_size=12),
)
def test_any_pieces_give_the_same_rows_in_order(size: int, pieces: list[tuple[int, str]]) -> None:
    """However rows are split into pieces, batches have all, in order, and are full but for the last."""
    rebatcher = Rebatcher(size, NUMBERS)
    given_rows = 0
    found: list[list[float]] = []

    def take() -> None:
        while (batch := rebatcher.take()) is not None:
            columns, rows = batch
            (column,) = columns.values()
            assert len(column) == rows
            found.append(np.asarray(column).tolist())

    for count, kind in pieces:
        array = floats(count, given_rows)
        given_rows += count
        if kind == "rows":
            for value in array:
                rebatcher.add({"x": np.asarray(value)})
        elif count:
            rebatcher.add({"x": list(array) if kind == "list" else array})
        take()
        assert len(rebatcher) < size
    rebatcher.finish()
    take()
    kinds = {"list": "list"}
    mixed = len({kinds.get(kind, "array") for count, kind in pieces if count}) > 1
    assert [value for batch in found for value in batch] == floats(given_rows).tolist()
    assert all(len(batch) <= size for batch in found)
    if not mixed:
        assert [len(batch) for batch in found[:-1]] == [size] * (len(found) - 1)


def test_a_batch_within_one_piece_is_no_copy() -> None:
    """Batches that lie in one piece share its memory; only those across pieces are put together."""
    one, two = floats(10), floats(10, 10)
    rebatcher = Rebatcher(4, NUMBERS)
    rebatcher.add(one)
    rebatcher.add(two)
    rebatcher.finish()
    batches = [rebatcher.take() for _ in range(5)]
    shared = [
        [np.shares_memory(batch[0][None], piece) for piece in (one, two)]
        for batch in batches
        if batch is not None
    ]
    assert shared == [[True, False], [True, False], [False, False], [False, True], [False, True]]
    assert rebatcher.take() is None


def test_pieces_that_do_not_fit_together_begin_a_new_batch() -> None:
    """Rows are never converted to stand beside others: another dtype, shape or name cuts the batch."""
    rebatcher = Rebatcher(3)
    for piece in (
        np.zeros(2, np.int64),
        np.zeros(2, np.uint64),
        np.zeros((2, 1), np.uint64),
        {"other": np.zeros((2, 1), np.uint64)},
        np.array(["a"]),
        np.array(["bcd"]),
    ):
        rebatcher.add_batch(piece)
    rebatcher.finish()
    found = []
    while (batch := rebatcher.take()) is not None:
        ((name, column),) = batch[0].items()
        found.append((name, column.dtype.kind, column.shape))  # type: ignore[union-attr]
    assert found == [
        (None, "i", (2,)),
        (None, "u", (2,)),
        (None, "u", (2, 1)),
        ("other", "u", (2, 1)),
        (None, "U", (2,)),
    ]


@pytest.mark.parametrize(
    ("signature", "item", "rows"),
    [
        (VECTORS, np.zeros(2, np.float32), 1),
        (VECTORS, np.zeros((5, 2), np.float32), 5),
        (VECTORS, {"x": np.zeros(2, np.float32)}, 1),
        (VECTORS, {"x": [[1, 2], [3, 4], [5, 6]]}, 3),
        (VECTORS, [1.0, 2.0], 1),
        (VECTORS, [[1.0, 2.0]] * 4, 4),
        (NUMBERS, 1.5, 1),
        (NUMBERS, [1.5, 2], 2),
        (NUMBERS, (1.5, 2), 2),
        (STRINGS, b"a string", 1),
        (STRINGS, ["a", b"b"], 2),
        (TWO, {"a": 1.0, "b": [1, 2]}, 1),
        (TWO, {"b": [[1, 2]] * 3, "a": [1.0] * 3}, 3),
        (None, {"a": 1.0, "b": "text"}, 1),
        (None, np.zeros(4, [("a", "f4"), ("b", "i8")]), 4),
    ],
)
def test_the_signature_tells_rows_from_batches(signature: Signature | None, item: Any, rows: int) -> None:
    """A value with as many dimensions as its input is a batch, one with less a row."""
    rebatcher = Rebatcher(100, signature)
    rebatcher.add(item)
    rebatcher.finish()
    assert len(rebatcher) == rows


def test_what_cannot_be_told_has_to_be_said() -> None:
    """Without a known rank the items of an iterable are refused, unless `items` says what they are."""
    with pytest.raises(errors.InvalidInputError, match='say items="rows" or items="batches"'):
        Rebatcher(10).add({"x": np.zeros(3)})
    for items, rows in (("rows", 1), ("batches", 3)):
        rebatcher = Rebatcher(10, items=items)  # type: ignore[arg-type]
        rebatcher.add({"x": np.zeros(3)})
        assert len(rebatcher) == rows
        assert repr(rebatcher).startswith(f"<Rebatcher to 10 rows: {rows} rows")


def test_rows_of_arrays_are_stacked_and_others_kept_for_the_signature() -> None:
    """Rows that are arrays of one kind become one, others stay a list; other names start a new piece."""
    rebatcher = Rebatcher(100, items="rows")
    for row in ({"x": np.ones(2)}, {"x": np.zeros(2)}, {"x": np.zeros(2), "y": 1}, [1], [2, 3], np.zeros(())):
        rebatcher.add(row)
    rebatcher.finish()
    columns = []
    while (batch := rebatcher.take()) is not None:
        columns.append(batch[0])
    assert [list(one) for one in columns] == [["x"], ["x", "y"], [None]]
    assert columns[0]["x"].tolist() == [[1, 1], [0, 0]]  # type: ignore[union-attr]
    assert columns[1]["y"] == [1]
    assert isinstance(columns[2][None], list)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ({"a": np.zeros(2), "b": np.zeros(3)}, "different numbers of rows: 'a': 2, 'b': 3"),
        ({"a": np.zeros(2), "b": 4}, "column 'b' is a scalar"),
        (np.zeros(()), "the source is a scalar"),
    ],
)
def test_columns_that_are_none(source: Any, match: str) -> None:
    """Columns of different lengths, and scalars, end the run with an error that says so."""
    with pytest.raises(errors.InvalidInputError, match=match):
        run(collect(FakeModel(None).score(source)))


# -- sources ------------------------------------------------------------------------------------------


def _memmap(folder: Path) -> Any:
    array = np.memmap(folder / "rows.bin", np.float32, "w+", shape=(1000,))
    array[:] = floats(1000)
    return array


SOURCES: dict[str, Callable[[Path], Any]] = {
    "array": lambda _: floats(1000),
    "dict": lambda _: {"x": floats(1000)},
    "dict of lists": lambda _: {"x": floats(1000).tolist()},
    "structured": lambda _: floats(1000).view([("x", "f4")]),
    "memory map": _memmap,
    "view of a memory map": lambda folder: {"x": np.asarray(_memmap(folder))},
    "list of numbers": lambda _: floats(1000).tolist(),
    "list of dicts": lambda _: [{"x": value} for value in floats(1000).tolist()],
    "tuple of batches": lambda _: (floats(999), floats(1, 999)),
    "range": lambda _: range(1000),
    "generator of rows": lambda _: ({"x": value} for value in floats(1000)),
    "generator of batches": lambda _: (floats(37, start)[: 1000 - start] for start in range(0, 1000, 37)),
    "async generator": lambda _: _async({"x": value} for value in floats(1000)),
    "async batches": lambda _: _async(floats(10, start) for start in range(0, 1000, 10)),
}


async def _async(items: Any) -> AsyncIterator[Any]:
    for item in items:
        await asyncio.sleep(0)
        yield item


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("max_in_flight", [None, 1, 7])
def test_every_kind_of_source(kind: str, max_in_flight: int | None, tmp_path: Path) -> None:
    """All kinds of sources give each row once, in order, in batches of the size asked for."""

    async def story() -> None:
        model = FakeModel(pause=lambda: random.randrange(4))
        results = model.score(SOURCES[kind](tmp_path), batch_size=64, max_in_flight=max_in_flight)
        batches = await collect(results)
        assert values(batches) == (floats(1000) * 2).tolist()
        assert [batch.index for batch in batches] == list(range(16))
        assert [batch.start for batch in batches] == list(range(0, 1000, 64))
        assert [batch.stop for batch in batches] == [*range(64, 1000, 64), 1000]
        assert [len(batch) for batch in batches] == [64] * 15 + [40]
        for batch in batches:
            sent = batch.inputs["x"] if isinstance(batch.inputs, dict) else batch.inputs
            assert type(sent) is np.ndarray
            assert sent.tolist() == batch.rows.tolist() == list(range(batch.start, batch.stop))
            assert batch.versions == (3,)
        assert results.consumed == 1000
        progress = results.progress()
        assert (progress.rows_read, progress.rows_done, progress.total) == (1000, 1000, 1000)
        assert (progress.in_flight, progress.waiting, progress.batches) == (0, 0, 16)
        assert model.most_in_flight <= (max_in_flight or 64)

    run(story())


@pytest.mark.parametrize("source", [[], np.zeros(0, np.float32), {}, {"x": []}, iter(()), _async(())])
def test_empty_sources(source: Any) -> None:
    """A source without rows gives no batch and makes no call."""
    model = FakeModel()
    assert run(collect(model.score(source))) == []
    assert model.calls == []


def test_one_row() -> None:
    """One row is one batch of one row."""
    (batch,) = run(collect(FakeModel().score([4.0])))
    assert (len(batch), batch.outputs["y"].tolist(), batch.rows.tolist()) == (1, [8.0], [0])


@pytest.mark.parametrize("source", ["text", b"bytes", 5, None])
def test_what_is_no_source_is_refused_at_once(source: Any) -> None:
    """What cannot be iterated is a TypeError before anything runs; texts are taken for mistakes."""
    with pytest.raises(TypeError, match="a source is an iterable of rows or batches"):
        FakeModel().score(source)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"batch_size": 2.5},
        {"max_in_flight": 0},
        {"on_error": "ignore"},
        {"outage": -1},
        {"outage": math.nan},
        {"items": "columns"},
    ],
)
def test_settings_out_of_range(options: dict[str, Any]) -> None:
    """A setting that makes no sense is refused by name."""
    with pytest.raises(ValueError, match=next(iter(options))):
        FakeModel().score([1], **options)


def test_pandas_tables() -> None:
    """Of a frame the inputs' columns are sent; if it has none, all columns are the rows of the only input."""
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    frame = pandas.DataFrame({"id": ["a", "b", "c"], "x": floats(3), "more": 1})
    batches = run(collect(FakeModel().score(frame, batch_size=2, keep="id")))
    assert values(batches) == [0, 2, 4]
    assert [list(batch.inputs) for batch in batches] == [["x"], ["x"]]
    assert [list(batch.kept["id"]) for batch in batches] == [["a", "b"], ["c"]]
    wide = pandas.DataFrame({"id": [7, 8], "p": floats(2), "q": floats(2, 5)})
    (batch,) = run(collect(FakeModel(VECTORS).score(wide, keep=["id"])))
    assert batch.inputs.tolist() == [[0, 5], [1, 6]]
    assert batch.kept["id"].tolist() == [7, 8]
    nullable = pandas.DataFrame({"x": pandas.array([1, None, 3], "Int64")})
    (batch,) = run(collect(FakeModel().score(nullable, on_error="collect")))
    assert batch.refused == (1,)
    assert batch.outputs["y"].tolist() == [2, 6]
    with pytest.raises(errors.InvalidInputError, match="no column for the input 'a', 'b'"):
        run(collect(FakeModel(TWO).score(frame)))


def test_arrow_tables_readers_and_columns() -> None:
    """Tables, record batches and readers are read a batch at a time; lists become shapes, nulls bad rows."""
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    table = arrow.table({"id": ["a", "b", "c", "d", "e"], "x": arrow.array(floats(5))})
    halves = arrow.concat_tables([table.slice(0, 3), table.slice(3)])
    for source in (table, halves, halves.to_reader(), table.to_batches()[0], table.to_batches()):
        batches = run(collect(FakeModel().score(source, batch_size=2, keep="id")))
        assert values(batches) == [0, 2, 4, 6, 8]
        assert [list(batch.kept["id"]) for batch in batches] == [["a", "b"], ["c", "d"], ["e"]]
    vectors = floats(10).reshape(5, 2)
    kinds = {
        "list": arrow.array(vectors.tolist(), arrow.list_(arrow.float32())),
        "fixed": arrow.FixedSizeListArray.from_arrays(arrow.array(vectors.ravel()), 2),
        "tensor": arrow.FixedShapeTensorArray.from_numpy_ndarray(vectors),
    }
    for kind, column in kinds.items():
        for source in (arrow.table({"x": column}), {"x": arrow.chunked_array([column])}):
            batches = run(collect(FakeModel(VECTORS).score(source, batch_size=2)))
            assert np.concatenate([batch.inputs["x"] for batch in batches]).tolist() == vectors.tolist(), kind
    wide = arrow.table({"p": vectors[:, 0].copy(), "q": vectors[:, 1].copy()})
    (batch,) = run(collect(FakeModel(VECTORS).score(wide)))
    assert batch.inputs.tolist() == vectors.tolist()
    holes = arrow.table({"x": arrow.array([1.0, None, 3.0], arrow.float32())})
    (batch,) = run(collect(FakeModel().score(holes, on_error="collect")))
    assert (batch.refused, batch.outputs["y"].tolist()) == ((1,), [2, 6])
    assert "None" in str(batch.errors[0].error)
    words = arrow.table({"x": arrow.array(["a", "b", "a"]).dictionary_encode()})
    (batch,) = run(collect(FakeModel(STRINGS).score(words)))
    assert list(batch.inputs["x"]) == ["a", "b", "a"]


def test_primitive_arrow_columns_are_not_copied() -> None:
    """A batch of a plain Arrow column is a view of the column's memory."""
    arrow = pytest.importorskip("pyarrow", reason="needs pyarrow")
    array = floats(100)
    (first, *_) = run(collect(FakeModel().score(arrow.table({"x": array}), batch_size=10)))
    assert np.shares_memory(first.inputs["x"], array)


def test_strings_are_sent_whole() -> None:
    """Bytes that end in NUL are not cut, whether the signature is known or not."""
    rows = [b"a\0", b"bc\0\0"]
    for model in (FakeModel(STRINGS), FakeModel(None)):
        (batch,) = run(collect(model.score(iter(rows))))
        assert list(batch.inputs) == rows


def test_columns_that_are_kept_come_back_with_their_rows() -> None:
    """Columns named by keep are not sent, and stay beside the rows that have results."""
    rows = [{"x": float(number), "id": f"row {number}"} for number in range(10)]
    model = FakeModel(poison=[3.0])
    batches = run(collect(model.score(iter(rows), batch_size=4, keep=["id"], on_error="skip")))
    assert [list(batch.kept["id"]) for batch in batches] == [
        ["row 0", "row 1", "row 2"],
        ["row 4", "row 5", "row 6", "row 7"],
        ["row 8", "row 9"],
    ]
    assert all(list(batch.inputs) == ["x"] for batch in batches)


def test_sync_sources_are_read_in_one_thread_that_has_the_callers_context() -> None:
    """A source that waits does not hold up the loop; its thread is always the same and sees the context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")
    seen: set[tuple[int, str]] = set()

    def rows() -> Iterator[float]:
        for number in range(20):
            time.sleep(0.01)
            seen.add((threading.get_ident(), variable.get()))
            yield float(number)

    async def story() -> int:
        variable.set("mine")
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticking = asyncio.create_task(tick())
        batches = await collect(FakeModel().score(rows(), batch_size=3))
        ticking.cancel()
        await asyncio.wait([ticking])
        assert len(values(batches)) == 20
        return ticks

    assert run(story()) > 20
    ((thread, context),) = seen
    assert thread != threading.get_ident()
    assert context == "mine"


def test_a_source_may_wait_for_its_own_results() -> None:
    """What was read is scored though the source does not go on before it has seen the result."""
    seen = threading.Semaphore(1)

    def rows() -> Iterator[float]:
        for number in range(10):
            assert seen.acquire(timeout=30)
            yield float(number)

    async def story() -> None:
        async with FakeModel().score(rows(), batch_size=1) as results:
            async for _ in results:
                seen.release()
        assert results.consumed == 10

    run(story())


def test_what_slices_like_an_array_is_read_lazily_in_a_thread() -> None:
    """Datasets in files are read a batch at a time, off the loop, and never as a whole."""
    asked: list[tuple[int, int]] = []

    class Dataset:
        dtype, shape = np.dtype(np.float32), (100,)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, rows: slice) -> Any:
            assert threading.current_thread() is not threading.main_thread()
            asked.append((rows.start, rows.stop))
            return floats(100)[rows]

        def __iter__(self) -> Iterator[Any]:
            raise AssertionError("row by row is slow")

    for source in (Dataset(), {"x": Dataset()}):
        asked.clear()
        results = FakeModel().score(source, batch_size=40)
        assert values(run(collect(results))) == (floats(100) * 2).tolist()
        assert asked == [(0, 40), (40, 80), (80, 100)]
        assert results.progress().total == 100


def test_async_sources_may_hold_cancel_scopes() -> None:
    """An async source is read and closed by one task, so that scopes and task groups inside it work."""

    async def rows() -> AsyncIterator[float]:
        async with anyio.create_task_group():
            with anyio.fail_after(30):
                for number in range(100):
                    await asyncio.sleep(0)
                    yield float(number)

    async def story() -> None:
        assert len(values(await collect(FakeModel().score(rows(), batch_size=3)))) == 100
        async with FakeModel().score(rows(), batch_size=3) as results:
            async for _ in results:
                break

    run(story())


# -- order, room and memory ---------------------------------------------------------------------------


@given(
    st.integers(0, 60), st.integers(1, 7), st.sampled_from([None, 1, 2, 5]), st.booleans(), st.integers(0, 9)
)
@settings(max_examples=60, deadline=None)
def test_every_row_is_in_one_result(
    rows: int, batch_size: int, max_in_flight: int | None, ordered: bool, seed: int
) -> None:
    """Whatever the latencies, each row is in one result; ordered they come in order, and never too many."""
    chance = random.Random(seed)
    model = FakeModel(pause=lambda: chance.randrange(8))

    async def story() -> None:
        held = 0
        results = model.score(
            floats(rows), batch_size=batch_size, max_in_flight=max_in_flight, ordered=ordered
        )
        batches = []
        async with results:
            async for batch in results:
                batches.append(batch)
                held = max(held, results._launched - results._handed)
                for _ in range(chance.randrange(4)):
                    await asyncio.sleep(0)
        assert sorted(values(batches)) == (floats(rows) * 2).tolist()
        if ordered:
            assert [batch.index for batch in batches] == list(range(len(batches)))
        for batch in batches:
            assert batch.outputs["y"].tolist() == (floats(len(batch), batch.start) * 2).tolist()
        assert held <= (max_in_flight or 128)
        assert model.most_in_flight <= (max_in_flight or 64)
        assert results.consumed == rows

    run(story())


def test_as_completed_does_not_wait_for_the_slow() -> None:
    """Unordered, a slow batch comes last; ordered, all others wait for it."""
    for ordered, expected in ((False, [1, 2, 3, 0]), (True, [0, 1, 2, 3])):
        pauses = iter([50, 1, 1, 1])
        batches = run(
            collect(FakeModel(pause=lambda: next(pauses)).score(floats(4), batch_size=1, ordered=ordered))
        )
        assert [batch.index for batch in batches] == expected


@pytest.mark.parametrize("kind", ["inline", "thread", "async"])
@pytest.mark.parametrize("ordered", [True, False])
def test_a_slow_consumer_holds_the_source_up(kind: str, ordered: bool) -> None:
    """Nothing is read that there is no room for: the source is never ahead by more than it may be."""
    read = 0

    def rows() -> Iterator[Any]:
        nonlocal read
        for number in range(40):
            read += 1
            yield np.full((1, 1 << 18), number, np.float32)  # 1 MiB: no room to spare in the thread

    async def identity(inputs: Any) -> PredictResult:
        await asyncio.sleep(0)
        return PredictResult({"y": inputs}, SPEC, b"")

    async def story() -> None:
        source: Any = rows()
        if kind != "thread":
            source = list(source) if kind == "inline" else _async(source)
        results = Scoring(source, identity, batch_size=1, max_in_flight=4, ordered=ordered, items="batches")
        taken = 0
        async with results:
            async for _ in results:
                taken += 1
                if taken < 12:
                    await asyncio.sleep(0.01)
                    assert results._launched - results._handed <= 4
                    if kind != "inline":
                        assert read <= taken + 4 + (1 if kind == "thread" else 0)
        assert taken == 40

    run(story())


def test_memory_does_not_grow_with_the_rows() -> None:
    """Ten times the rows take no more memory: what is held is a few batches."""

    def pieces(count: int) -> Iterator[Any]:
        for _ in range(count):
            yield np.ones((50, 1000), np.float32)

    async def identity(inputs: Any) -> PredictResult:
        await asyncio.sleep(0)
        return PredictResult({"y": inputs[:, :10].copy()}, SPEC, b"")

    async def peak(count: int) -> int:
        gc.collect()
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        results = Scoring(pieces(count), identity, batch_size=64, max_in_flight=4, items="batches")
        rows = 0
        async with results:
            async for batch in results:
                rows += len(batch)
        assert rows == 50 * count
        return tracemalloc.get_traced_memory()[1] - before

    async def story() -> None:
        await peak(5)
        small, large = await peak(40), await peak(400)
        batch = 64 * 1000 * 4
        # Four in flight, five read ahead, two with the consumer, pieces being cut, and what joining takes.
        assert large < 16 * batch
        assert large < 2 * small

    tracemalloc.start()
    try:
        run(story())
    finally:
        tracemalloc.stop()


# -- bad rows -----------------------------------------------------------------------------------------


@given(
    st.integers(1, 70),
    st.integers(1, 33),
    st.sets(st.integers(0, 69), max_size=6),
    st.booleans(),
    st.sampled_from(["skip", "collect"]),
)
@settings(max_examples=60, deadline=None)
def test_bad_rows_are_found_wherever_they_are(
    rows: int, batch_size: int, poison: set[int], ordered: bool, on_error: str
) -> None:
    """Exactly the poisoned rows are left out, all others have results, for a bounded number of calls."""
    bad = sorted(row for row in poison if row < rows)
    model = FakeModel(poison=poison)
    results = model.score(floats(rows), batch_size=batch_size, ordered=ordered, on_error=on_error)
    batches = sorted(run(collect(results)), key=lambda batch: batch.start)
    good = [row for row in range(rows) if row not in poison]
    assert values(batches) == [2.0 * row for row in good]
    assert [int(row) for batch in batches for row in batch.rows] == good
    assert [row for batch in batches for row in batch.refused] == bad
    assert [value for batch in batches for value in np.asarray(batch.inputs).tolist()] == good
    set_aside = [row for batch in batches for row in batch.errors]
    if on_error == "collect":
        assert [row.row for row in set_aside] == bad
        assert [np.asarray(row.inputs).tolist() for row in set_aside] == [[float(row)] for row in bad]
        assert all("poison" in str(row.error) for row in set_aside)
    else:
        assert set_aside == []
    assert results.progress().errors == len(bad)
    bound = math.ceil(rows / batch_size) + 2 * len(bad) * math.ceil(math.log2(batch_size) + 1)
    assert len(model.calls) <= bound


@given(st.integers(1, 60), st.integers(1, 16), st.sets(st.integers(0, 59), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_the_first_bad_row_is_named(rows: int, batch_size: int, poison: set[int]) -> None:
    """With on_error="raise" come the results of all batches before, then an error with the first bad row."""
    first = min(poison)
    model = FakeModel(poison=poison)
    results = model.score(floats(rows), batch_size=batch_size, max_in_flight=3)

    async def story() -> None:
        seen = 0
        expected: Any = contextlib.nullcontext()
        if first < rows:
            expected = pytest.raises(errors.InvalidArgumentError, match=f"row {first}: poison")
        with expected:
            async with results:
                async for batch in results:
                    seen = batch.stop
        assert seen == results.consumed == (first // batch_size * batch_size if first < rows else rows)

    run(story())


def test_unordered_a_failure_comes_after_all_results_to_be_had() -> None:
    """Unordered, what was under way when a batch failed is handed out before the error is raised."""
    pauses = itertools.cycle([1, 9, 9, 9])
    model = FakeModel(poison=[0.0], pause=lambda: next(pauses))

    async def story() -> None:
        results = model.score(floats(50), batch_size=1, max_in_flight=4, ordered=False)
        seen = []
        with pytest.raises(errors.InvalidArgumentError, match="row 0: poison"):
            async with results:
                async for batch in results:
                    seen.append(batch.start)
        assert sorted(seen) == [1, 2, 3]
        assert results.consumed == 0

    run(story())


def test_rows_refused_before_they_are_sent() -> None:
    """Rows that cannot be converted, of another shape or with other names are bad rows like any other."""
    rows: list[Any] = [{"x": [float(number), 0.0]} for number in range(20)]
    rows[3] = {"x": [1.0, "three"]}
    rows[7] = {"x": [1.0, 2.0, 3.0]}
    rows[8] = {"z": [1.0, 2.0]}
    rows[19] = {"x": None}
    model = FakeModel(VECTORS)
    batches = run(collect(model.score(rows, batch_size=16, on_error="collect")))
    assert [row.row for batch in batches for row in batch.errors] == [3, 7, 8, 19]
    assert sum(len(batch) for batch in batches) == 16
    assert batches[-1].stop == 20


def test_a_batch_that_is_wholly_bad_is_a_result_without_rows() -> None:
    """Rows that were all refused leave an empty result, so that results follow one another without a gap."""
    batches = run(collect(FakeModel(poison=range(4)).score(floats(8), batch_size=4, on_error="skip")))
    assert [(batch.start, batch.stop, len(batch)) for batch in batches] == [(0, 4, 0), (4, 8, 4)]
    assert dict(batches[0].outputs) == {}
    assert batches[0].rows.tolist() == []
    assert "4 refused" in repr(batches[0])


def test_an_error_of_the_server_is_not_blamed_on_rows() -> None:
    """UNKNOWN that every row of a batch gets is raised; if it is only one row's, that row is set aside."""
    broken = FakeModel(poison=range(8), error=lambda: errors.UnknownError("broken"))
    with pytest.raises(errors.UnknownError, match="broken"):
        run(collect(broken.score(floats(8), on_error="skip")))
    single = FakeModel(poison=[5], error=lambda: errors.UnknownError("broken"))
    (batch,) = run(collect(single.score(floats(8), on_error="skip")))
    assert batch.refused == (5,)


def test_a_batch_that_is_too_large_is_divided() -> None:
    """A message beyond the limit is sent in parts, and the answers are put together again."""

    class Narrow(FakeModel):
        async def predict(self, inputs: Any) -> PredictResult:
            if len(inputs) > 3:
                raise errors.MessageTooLargeError("too large")
            return await super().predict(inputs)

    batches = run(collect(Narrow().score(floats(20), batch_size=10)))
    assert values(batches) == (floats(20) * 2).tolist()
    assert [batch.refused for batch in batches] == [(), ()]


def test_outputs_that_are_not_about_rows() -> None:
    """Where a batch is divided, an output without rows is kept if all parts agree, else it is an error."""

    def model(output: Callable[[Any], Any]) -> Scoring:
        async def predict(inputs: Any) -> PredictResult:
            if 5 in inputs:
                raise errors.InvalidArgumentError("poison")
            return PredictResult({"y": inputs, "one": output(inputs)}, SPEC, b"")

        return Scoring(floats(8), predict, on_error="skip")

    (batch,) = run(collect(model(lambda _: np.array(7))))
    assert batch.outputs["one"] == 7
    with pytest.raises(errors.FailedPreconditionError, match="output 'one' has no row for each row"):
        run(collect(model(lambda inputs: inputs.sum())))


@pytest.mark.parametrize(
    "error",
    [
        errors.PermissionDeniedError("no"),
        errors.SignatureNotFoundError("no"),
        errors.ModelNotFoundError("no"),
        errors.ClientClosedError("no"),
        RuntimeError("no"),
    ],
)
def test_other_errors_end_the_run_at_once(error: Exception) -> None:
    """What neither rows nor an outage explain is raised as it is, without a second call for the batch."""
    calls = 0

    async def predict(inputs: Any) -> PredictResult:
        nonlocal calls
        calls += 1
        raise error

    with pytest.raises(type(error), match="no"):
        run(collect(Scoring(floats(8), predict, on_error="skip")))
    assert calls == 1


# -- outages ------------------------------------------------------------------------------------------


@pytest.fixture
def passing(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses of the scoring module, which take no time but move its clock; gives the pauses."""
    slept: list[float] = []
    real_sleep, real_clock = asyncio.sleep, time.monotonic

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        await real_sleep(0)

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return sleep if name == "sleep" else getattr(asyncio, name)

    class Time:
        perf_counter = staticmethod(time.perf_counter)

        @staticmethod
        def monotonic() -> float:
            return real_clock() + sum(slept)

    monkeypatch.setattr(scoring, "asyncio", Asyncio())
    monkeypatch.setattr(scoring, "time", Time())
    return slept


@pytest.mark.parametrize(
    "error",
    [
        errors.UnavailableError("down"),
        errors.DeadlineExceededError("slow"),
        errors.ResourceExhaustedError("full"),
        errors.CancelledError("going"),
    ],
)
def test_an_outage_is_waited_out(error: errors.ServingError, passing: list[float]) -> None:
    """While nothing answers, batches are tried again with growing pauses, and no row is lost or repeated."""
    model = FakeModel()
    model.failures = [None, None, *[error] * 12]

    async def story() -> None:
        results = model.score(floats(40), batch_size=4, max_in_flight=2)
        batches = await collect(results)
        assert values(batches) == (floats(40) * 2).tolist()
        assert results.progress().retries == 12
        assert results.progress().failing_for == 0.0

    run(story())
    assert len(passing) == 12
    assert max(passing) > 4 * min(passing)
    assert max(passing) <= 5


def test_an_outage_has_a_limit(passing: list[float], caplog: pytest.LogCaptureFixture) -> None:
    """After `outage` seconds the error is raised, also where rows may be skipped; it says how long it was."""
    model = FakeModel()
    answers = itertools.count()
    model.down = lambda: errors.UnavailableError("down") if next(answers) >= 3 else None
    results = model.score(floats(40), batch_size=4, max_in_flight=1, outage=60, on_error="skip")

    async def story() -> None:
        with pytest.raises(errors.UnavailableError, match=r"the limit is 60 s"):
            async with results:
                async for _ in results:
                    pass

    with caplog.at_level(logging.WARNING, "aioserving"):
        run(story())
    assert results.consumed == 12
    assert 50 < sum(passing) <= 60
    assert results.progress().failing_for >= 50
    assert "nothing answers for" in str(results.progress())
    (told,) = caplog.messages
    assert told == "scoring by 'm' waits up to 60 s: down"


def test_no_outage_is_waited_for_where_that_is_said(passing: list[float]) -> None:
    """With outage=0 the first failure is raised, without a pause."""
    model = FakeModel()
    model.failures = [errors.UnavailableError("down")]
    with pytest.raises(errors.UnavailableError):
        run(collect(model.score([1.0], outage=0)))
    assert passing == []


def test_a_model_that_was_there_is_waited_for(passing: list[float]) -> None:
    """A model that is not found before the first answer is a wrong name; afterwards it is being reloaded."""
    model = FakeModel()
    model.failures = [None, errors.ModelNotFoundError("gone"), errors.VersionNotFoundError("gone")]
    assert len(values(run(collect(model.score(floats(9), batch_size=3, max_in_flight=1))))) == 9
    assert len(passing) == 2


def test_the_servers_push_back_is_respected(passing: list[float]) -> None:
    """A server that asks for time gets it."""
    error = errors.ResourceExhaustedError("full")
    error.pushback = 17.0
    model = FakeModel()
    model.failures = [error]
    assert len(run(collect(model.score([1.0])))) == 1
    assert passing == [17.0]


def test_a_signature_that_cannot_be_fetched_yet_is_waited_for(passing: list[float]) -> None:
    """A run may begin while the servers are still starting."""
    failures = [errors.UnavailableError("starting"), errors.UnavailableError("starting")]
    model = FakeModel()

    async def learn() -> Signature:
        if failures:
            raise failures.pop()
        return NUMBERS

    assert len(run(collect(model.score([1.0], signature=learn)))) == 1
    assert len(passing) == 2


# -- ends ---------------------------------------------------------------------------------------------


class Watched:
    """Rows that tell whether they were closed, and fail where they are told to."""

    def __init__(self, rows: int, fail_at: int = -1) -> None:
        self.rows, self.fail_at = rows, fail_at
        self.given = 0
        self.closed = False

    def sync(self) -> Iterator[float]:
        try:
            for number in range(self.rows):
                if number == self.fail_at:
                    raise OSError("the disk is gone")
                self.given += 1
                yield float(number)
        finally:
            self.closed = True

    async def asynchronous(self) -> AsyncIterator[float]:
        try:
            for number in self.sync():
                await asyncio.sleep(0)
                yield number
        finally:
            self.closed = True

    def source(self, kind: str) -> Any:
        return self.sync() if kind == "sync" else self.asynchronous()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("fail_at", [0, 1, 9, 10, 29])
def test_what_was_read_before_the_source_failed_is_scored(kind: str, ordered: bool, fail_at: int) -> None:
    """The source's own exception comes after the results of every row that it gave before."""
    watched = Watched(30, fail_at)

    async def story() -> None:
        results = FakeModel().score(watched.source(kind), batch_size=5, max_in_flight=2, ordered=ordered)
        seen: list[float] = []
        async with results:
            for _ in range(2):  # it does not go away by asking again
                with pytest.raises(OSError, match="the disk is gone"):
                    async for batch in results:
                        seen += batch.outputs["y"].tolist()
        assert sorted(seen) == (floats(fail_at) * 2).tolist()
        assert results.consumed == fail_at

    run(story())
    assert watched.closed


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_leaving_early_closes_everything(kind: str, after: int) -> None:
    """A break leaves no task and no thread, and closes the source; consumed tells what was dealt with."""
    watched = Watched(10**9)
    threads = threading.active_count()

    async def story() -> None:
        results = FakeModel().score(watched.source(kind), batch_size=5, max_in_flight=3)
        seen = 0
        async with results:
            async for batch in results:
                seen = batch.stop
                if batch.index == after:
                    break
        assert seen == 5 * (after + 1)
        assert results.consumed == 5 * after
        assert "closed" in repr(results)
        with pytest.raises(errors.ClientStateError, match="closed"):
            await results.__anext__()
        await results.aclose()

    run(story())
    assert watched.closed
    assert threading.active_count() == threads


def test_an_exception_of_the_consumer_passes_through() -> None:
    """An exception in the loop's body is raised as it is, and everything is closed."""
    watched = Watched(10**9)

    async def story() -> None:
        async with FakeModel().score(watched.sync(), batch_size=5) as results:
            async for _ in results:
                raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(story())
    assert watched.closed


@pytest.mark.parametrize("kind", ["sync", "async", "inline"])
@pytest.mark.parametrize("ordered", [True, False])
def test_cancelled_at_any_point(kind: str, ordered: bool) -> None:
    """Wherever a run is cancelled, nothing is left, and a run that goes on at `consumed` loses no row."""
    rows, batch_size = 60, 4

    async def one(turns: int) -> bool:
        before = asyncio.all_tasks()
        watched = Watched(rows)
        source = floats(rows) if kind == "inline" else watched.source(kind)
        chance = random.Random(turns)
        model = FakeModel(pause=lambda: chance.randrange(6))
        results = model.score(source, batch_size=batch_size, max_in_flight=3, ordered=ordered)
        dealt_with: list[float] = []

        async def consume() -> None:
            async with results:
                async for batch in results:
                    await asyncio.sleep(0)
                    dealt_with.extend(batch.outputs["y"].tolist())

        task = asyncio.create_task(consume())
        for _ in range(turns):
            await asyncio.sleep(0.0002 if kind == "sync" else 0)
        finished = task.done()
        task.cancel()
        await asyncio.wait([task])
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before
        assert model.in_flight == 0
        if kind != "inline" and watched.given:
            assert watched.closed
        assert set((floats(results.consumed) * 2).tolist()) <= set(dealt_with)
        assert len(dealt_with) == len(set(dealt_with))
        rest = model.score(
            floats(rows)[results.consumed :], first_row=results.consumed, batch_size=batch_size
        )
        again = await collect(rest)
        assert rest.consumed == rows
        assert set(values(again)) | set(dealt_with) == set((floats(rows) * 2).tolist())
        return finished

    async def story() -> None:
        for turns in range(200):
            if await one(turns):
                return
        raise AssertionError("it never came to the end")

    run(story())


@pytest.mark.parametrize("ordered", [True, False])
def test_a_wait_that_is_cancelled_loses_no_result(ordered: bool) -> None:
    """A consumer that gives up waiting, also when the result comes, finds it when it asks again."""

    async def story() -> None:
        chance = random.Random(3)
        model = FakeModel(pause=lambda: chance.randrange(5))
        seen: list[float] = []
        cancelled = 0
        async with model.score(floats(300), batch_size=1, max_in_flight=3, ordered=ordered) as results:
            while True:
                task = asyncio.ensure_future(results.__anext__())
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
                if task.cancelled():
                    cancelled += 1
                elif isinstance(task.exception(), StopAsyncIteration):
                    break
                else:
                    seen += task.result().outputs["y"].tolist()
        assert cancelled > 50
        assert (seen if ordered else sorted(seen)) == (floats(300) * 2).tolist()
        assert results.consumed == 300

    run(story())


def test_a_result_that_meets_a_cancelled_consumer_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer that is cancelled after it was given a result, and before it went on, finds it again."""

    async def story() -> None:
        results = FakeModel().score(floats(5), batch_size=1, max_in_flight=2)
        deliver = results._deliver
        task: asyncio.Task[ScoredBatch]

        def deliver_and_cancel(index: int, batch: ScoredBatch) -> None:
            waiting = bool(results._waiters)
            deliver(index, batch)
            if waiting:
                task.cancel()

        async def wait() -> ScoredBatch:
            return await results.__anext__()

        async with results:
            monkeypatch.setattr(results, "_deliver", deliver_and_cancel)
            task = asyncio.create_task(wait())
            with pytest.raises(asyncio.CancelledError):
                await task
            assert results.progress().waiting >= 1
            monkeypatch.setattr(results, "_deliver", deliver)
            assert [batch.start async for batch in results] == [0, 1, 2, 3, 4]

    run(story())


def test_a_source_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """If the source is in the middle of a read, the end waits a little, and it is closed once it ends."""
    monkeypatch.setattr(scoring, "_SOURCE_PATIENCE", 0.05)
    go_on, closed = threading.Event(), threading.Event()

    def rows() -> Iterator[float]:
        try:
            yield 1.0
            go_on.wait(30)
            yield 2.0
        finally:
            closed.set()

    async def story() -> None:
        async with FakeModel().score(rows(), batch_size=1) as results:
            await asyncio.sleep(0.05)
            begun = time.monotonic()
        assert time.monotonic() - begun < 5
        assert results.progress().rows_read <= 1
        assert not closed.is_set()

    run(story())
    assert "still being read" in caplog.text
    go_on.set()
    assert closed.wait(10)


def test_a_run_that_nobody_closed_lets_its_thread_go() -> None:
    """A run that is forgotten takes its reading thread with it, and with that the source."""
    watched = Watched(10**9)
    threads = threading.active_count()

    async def story() -> weakref.ref[Scoring]:
        results = await FakeModel().score(watched.sync(), batch_size=5).__aenter__()
        await results.__anext__()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return weakref.ref(results)

    reference = asyncio.run(story())
    end = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert reference() is None
    assert watched.closed
    assert threading.active_count() == threads


def test_how_a_run_must_be_used() -> None:
    """Results come within the context only, which is entered once."""

    async def story() -> None:
        results = FakeModel().score([1.0])
        assert repr(results) == "<Scoring by 'm': not started>"
        assert results.progress().rows_done == 0
        with pytest.raises(RuntimeError, match="async with"):
            await results.__anext__()
        async with results:
            with pytest.raises(RuntimeError, match="entered once"):
                await results.__aenter__()
        never = FakeModel().score([1.0])
        await never.aclose()

    run(story())


def test_rows_are_numbered_from_where_a_run_goes_on() -> None:
    """With first_row, numbers of rows are those of the whole source."""

    async def story() -> None:
        results = FakeModel(poison=[7.0]).score(
            floats(6, 5), first_row=5, batch_size=4, on_error="collect", max_in_flight=2
        )
        assert results.consumed == 5
        batches = await collect(results)
        assert [(batch.start, batch.stop) for batch in batches] == [(5, 9), (9, 11)]
        assert [row.row for row in batches[0].errors] == [7]
        assert results.consumed == 11
        assert results.progress().rows_read == 6

    run(story())


def test_consumed_when_unordered() -> None:
    """Rows count as consumed only when all before them are, too."""
    pauses = iter([30, 1, 1])

    async def story() -> None:
        results = FakeModel(pause=lambda: next(pauses)).score(
            floats(6), batch_size=2, max_in_flight=3, ordered=False
        )
        seen = []
        async with results:
            async for batch in results:
                seen.append((batch.index, results.consumed))
        assert seen == [(1, 0), (2, 0), (0, 0)]
        assert results.consumed == 6

    run(story())


def test_progress_is_cheap_and_tells_the_rate() -> None:
    """A snapshot has rate, share and remaining time, and reads well."""

    async def story() -> None:
        results = FakeModel().score(floats(5000), batch_size=10, max_in_flight=4)
        async with results:
            async for batch in results:
                if batch.index == 249:
                    await asyncio.sleep(0.05)
                    break
            progress = results.progress()
            assert 2500 <= progress.rows_done <= 2540
            assert progress.fraction == progress.rows_done / 5000
            assert progress.rows_per_second == pytest.approx(progress.rows_done / progress.seconds, rel=0.3)
            assert progress.eta == pytest.approx((5000 - progress.rows_done) / progress.rows_per_second)
            assert progress.latency.count == progress.batches
            assert str(progress).startswith(f"{progress.rows_done} of 5000 rows, ")
            begun = time.perf_counter()
            for _ in range(100):
                results.progress()
            assert time.perf_counter() - begun < 0.5
        unknown = FakeModel().score(iter([1.0]))
        assert unknown.progress().fraction is None
        assert unknown.progress().eta is None

    run(story())


# -- how many at a time -------------------------------------------------------------------------------


def simulate(
    climber: InFlightClimber,
    seconds: float,
    throughput: Callable[[int, float], float],
    *,
    noise: float = 0.0,
    start: float = 0.0,
    demand: float = math.inf,
) -> list[tuple[float, int]]:
    """Let a server answer batches of 100 rows, on a clock of its own; gives times and limits.

    Args:
        climber: what is tried.
        seconds: how long.
        throughput: batches a second, from those in flight and the time.
        noise: how much the time between two answers varies.
        start: the time at the beginning.
        demand: batches that there are at most at a time.
    """
    chance = random.Random(5)
    now, found = start, []
    while now < start + seconds:
        in_flight = min(climber.limit, demand)
        now += max(0.05, chance.gauss(1, noise)) / throughput(int(in_flight), now)
        climber.record(100, int(in_flight), now)
        found.append((now, climber.limit))
    return found


def mean_limit(found: list[tuple[float, int]], since: float) -> float:
    late = [limit for now, limit in found if now >= since]
    return sum(late) / len(late)


@pytest.mark.parametrize("capacity", [1, 2, 4, 10, 30, 64])
@pytest.mark.parametrize("service", [0.002, 0.05])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_climber_finds_what_a_server_works_on(capacity: int, service: float, noise: float) -> None:
    """It comes to nearly all of the throughput there is, without several times the calls it takes."""
    climber = InFlightClimber()
    found = simulate(climber, 3000 * service, lambda calls, _: min(calls, capacity) / service, noise=noise)
    settled = [limit for now, limit in found if now > 1500 * service]
    share = sum(min(limit, capacity) / capacity for limit in settled) / len(settled)
    assert share > 0.85
    assert mean_limit(found, 1500 * service) <= max(2.2 * capacity, 5)


def test_the_climber_backs_off_from_a_server_that_suffers() -> None:
    """Where more calls make it slower, it stays where it is fastest."""
    climber = InFlightClimber()
    found = simulate(climber, 300, lambda calls, _: 100 * min(calls, 8) / (1 + max(0, calls - 8) ** 1.5 / 8))
    assert 5 <= mean_limit(found, 150) <= 11


def test_the_climber_follows_a_fleet_that_grows_and_shrinks() -> None:
    """What was found is tried anew now and then, so that it follows the servers up and down."""
    climber = InFlightClimber()
    small = simulate(climber, 60, lambda calls, _: min(calls, 4) * 20)
    large = simulate(climber, 200, lambda calls, _: min(calls, 32) * 20, start=60)
    assert mean_limit(small, 30) <= 9
    assert mean_limit(large, 200) >= 24
    again = simulate(climber, 400, lambda calls, _: min(calls, 4) * 20, start=260)
    assert mean_limit(again, 560) <= 12


def test_the_climber_does_not_grow_where_the_source_is_slow() -> None:
    """As long as the number is not used up, it tells nothing, and stays."""
    climber = InFlightClimber()
    found = simulate(climber, 100, lambda calls, _: calls * 10.0, demand=3)
    assert {limit for _, limit in found} == {4}
    assert repr(climber) == "<InFlightClimber 4 of 1 to 64, climbing>"


def test_the_climber_stays_within_its_bounds() -> None:
    """The number is never beyond the bounds, which have to make sense."""
    for capacity in (1, 1000):
        climber = InFlightClimber(initial=3, minimum=2, maximum=9)
        found = simulate(climber, 50, lambda calls, _: min(calls, capacity) * 50.0, noise=0.2)
        assert {limit for _, limit in found} <= set(range(2, 10))
    with pytest.raises(ValueError, match="does not hold"):
        InFlightClimber(initial=5, maximum=4)


# -- plain code ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    double = CallableServable(
        lambda x: {"y": x * 2},
        inputs={"x": ("float32", (None,))},
        outputs={"y": ("float32", (None,))},
        inline=True,
    )
    with ModelServer({"double": double}) as running:
        yield running


def blocking(client: Client, source: Any, **options: Any) -> BlockingScoring:
    model = client.model("double")

    async def learn() -> Signature:
        return (await model._model.get_model_metadata()).signature()

    predict: Callable[[Any], Awaitable[PredictResult]] = model._model.predict
    return BlockingScoring(client._run, Scoring(source, predict, signature=learn, name="double", **options))


@pytest.mark.parametrize("ordered", [True, False])
def test_plain_code(server: Any, ordered: bool) -> None:
    """The blocking client gives the same rows, from sync and async sources, and takes breaks and errors."""
    with Client(server.target) as client:
        for source in (floats(1000), (float(row) for row in range(1000)), _async(range(1000))):
            with blocking(client, source, batch_size=64, ordered=ordered) as results:
                batches = list(results)
            assert sorted(values(batches)) == (floats(1000) * 2).tolist()
            assert results.consumed == results.progress().rows_done == 1000
        watched = Watched(10**9)
        with blocking(client, watched.sync(), batch_size=10) as results:
            next(results)
            next(results)
        assert watched.closed
        assert results.consumed == 10
        watched = Watched(100, fail_at=50)
        with blocking(client, watched.sync(), batch_size=10) as results:
            with pytest.raises(OSError, match="the disk is gone"):
                for _ in results:
                    pass
            assert results.consumed == 50
        assert client.predict("double", [2.0])["y"].tolist() == [4.0]
        never = blocking(client, [1.0])
        never.close()
        assert "not started" in repr(never)


def test_a_result_that_ctrl_c_lost_is_given_again(server: Any) -> None:
    """Ctrl-C after a result was taken from the run, and before the caller has it, loses no row."""
    with Client(server.target) as client:
        results = blocking(client, floats(100), batch_size=10)
        real, interrupt = results._run, False

        def run_and_interrupt(coroutine: Coroutine[Any, Any, Any]) -> Any:
            answer = real(coroutine)
            if interrupt:
                raise KeyboardInterrupt
            return answer

        results._run = run_and_interrupt
        seen: list[float] = []
        with results:
            for turn in itertools.count():
                interrupt = turn % 3 == 1
                try:
                    seen += next(results).outputs["y"].tolist()
                except KeyboardInterrupt:
                    continue
                except StopIteration:
                    break
                finally:
                    interrupt = False
        assert seen == (floats(100) * 2).tolist()


def test_a_client_that_is_closed_first(server: Any) -> None:
    """Closing the client under a run ends it with an error, and the run's end is no other one."""
    watched = Watched(10**9)
    client = Client(server.target)
    with client, blocking(client, watched.sync(), batch_size=10) as results:
        next(results)
        client.close()
        with pytest.raises(errors.ClientClosedError):
            for _ in results:
                pass
    end = time.monotonic() + 10
    while not watched.closed and time.monotonic() < end:
        time.sleep(0.01)
    assert watched.closed


def test_through_the_asyncio_client(server: Any) -> None:
    """Over a real connection: rows are scored once each, and the client goes on after a break."""

    async def story() -> None:
        async with AsyncClient(server.target) as client:
            model = client.model("double")

            async def learn() -> Signature:
                return (await model.get_model_metadata()).signature()

            source = ({"x": float(row)} for row in range(3000))
            batches = await collect(Scoring(source, model.predict, signature=learn, batch_size=100))
            assert values(batches) == (floats(3000) * 2).tolist()
            assert {batch.versions for batch in batches} == {(1,)}
            async with Scoring(itertools.repeat(1.0), model.predict, signature=learn) as results:
                await results.__anext__()
            assert (await model.predict([3.0]))["y"].tolist() == [6.0]
            assert client.stats().in_flight == 0

    asyncio.run(asyncio.wait_for(story(), 60))


def test_prepared_batches_are_sent_as_they_come() -> None:
    """Batches of any size are neither put together nor cut, and the index tells which was which."""
    sizes = [3, 1, 7, 2, 2, 5]
    closed = []

    def batches() -> Iterator[dict[str, Any]]:
        try:
            for size in sizes:
                yield {"x": np.full(size, size, np.float32)}
        finally:
            closed.append(threading.current_thread().name)

    async def story() -> None:
        model = FakeModel()
        source = scoring.PreparedBatches(batches())
        async with Scoring(source, model.predict, batch_size=2, max_in_flight=2) as results:
            got = [(batch.index, len(batch), len(batch.outputs["y"])) async for batch in results]
            assert results.latencies().count == len(sizes)
        assert got == [(index, size, size) for index, size in enumerate(sizes)]

    run(story())
    assert closed == ["aioserving-scoring-source"]


def test_prepared_batches_before_a_failing_one_are_scored() -> None:
    """What a source gave before it failed comes before its error."""

    def batches() -> Iterator[dict[str, Any]]:
        yield {"x": np.zeros(3, np.float32)}
        raise OSError("the disk is gone")

    async def story() -> None:
        seen = []
        with pytest.raises(OSError, match="the disk is gone"):
            async with Scoring(scoring.PreparedBatches(batches()), FakeModel().predict) as results:
                async for batch in results:
                    seen.append(len(batch))
        assert seen == [3]

    run(story())
