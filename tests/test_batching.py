"""Batching on a virtual clock: who goes with whom and when, and that everyone gets what is theirs."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import errors
from aioserving._types import DEFAULT
from aioserving.attempts import Attempt
from aioserving.batching import (
    BatchedModel,
    BatchedResult,
    BatchingOptions,
    BatchingStats,
    BlockingBatchedModel,
    Predictor,
)
from aioserving.client import _PREDICT, Model, _note
from aioserving.codec import (
    decode_model_spec,
    decode_predict_request,
    decode_tensor,
    encode_model_spec,
    encode_predict_response,
)
from aioserving.dtypes import DataType
from aioserving.prediction import PredictResult
from aioserving.signature import Signature, TensorSpec

from .fakes import run, turns

Outputs = Mapping[str, Any]
Specs = Mapping[str, tuple[DataType, tuple[int, ...] | None]]

FLOAT, INT, STRING = DataType.DT_FLOAT, DataType.DT_INT64, DataType.DT_STRING


def signature(inputs: Specs, outputs: Specs) -> Signature:
    return Signature(
        "serving_default",
        {name: TensorSpec(name, *spec) for name, spec in sorted(inputs.items())},
        {name: TensorSpec(name, *spec) for name, spec in sorted(outputs.items())},
        model="m",
    )


ROWS = signature({"x": (FLOAT, (-1, 3))}, {"y": (FLOAT, (-1, 3))})


def bound(model: Model) -> Predictor:
    """What `Model.batched` gives a `BatchedModel`."""
    client, plan = model._client, model._plan
    return Predictor(
        name=plan.model,
        model_spec=plan.model_spec,
        begin=client._begin,
        signature=lambda: plan.signature,
        learn=lambda deadline: client._learn(plan, deadline),
        learn_again=lambda deadline: client._learn_again(plan, deadline),
        call=lambda request, deadline, metadata: client._calls.call(
            _PREDICT, request, deadline, plan.place, plan.record, metadata
        ),
        note=lambda model_spec: _note(plan, model_spec),
    )


class FakeModel:
    """A model in memory that writes down what it is asked.

    Attributes:
        run: what it computes.
        seconds: how long that takes.
        check: raises for a request that the server would refuse.
        version: which one answers; a list is taken one by one.
        asked: of every call when it came, its inputs, its deadline and its metadata.
        most: how many were under way at a time.
    """

    def __init__(
        self,
        run: Callable[[Outputs], Outputs] = lambda inputs: {"y": inputs["x"] * 2},
        *,
        given: Signature | None = ROWS,
        seconds: float = 0.01,
        check: Callable[[Outputs], None] = lambda inputs: None,
    ) -> None:
        self.run = run
        self.given = given
        self.next_one: Signature | None = None
        self.seconds = seconds
        self.check = check
        self.versions: list[int] = []
        self.closed = False
        self.asked: list[tuple[float, dict[str, Any], float | None, Any]] = []
        self.filters: list[list[str]] = []
        self.under_way = self.most = 0
        self.cancelled = 0
        self.noted: list[bytes] = []

    @property
    def sizes(self) -> list[int]:
        return [len(next(iter(inputs.values()))) for _, inputs, _, _ in self.asked]

    def batched(self, **options: Any) -> BatchedModel:
        async def learn(deadline: float | None) -> Signature:
            await asyncio.sleep(0.001)
            self.given = self.next_one or ROWS
            return self.given

        async def learn_again(deadline: float | None) -> Signature | None:
            if self.next_one is not None:
                self.given = self.next_one
            return self.next_one

        predictor = Predictor(
            "m",
            encode_model_spec("m"),
            self.begin,
            lambda: self.given,
            learn,
            learn_again,
            self.call,
            self.noted.append,
        )
        return BatchedModel(predictor, BatchingOptions(**options))

    def begin(self, timeout: Any) -> float | None:
        if self.closed:
            raise errors.ClientClosedError("the client is closed")
        timeout = 60.0 if timeout is DEFAULT else timeout
        return None if timeout is None else asyncio.get_running_loop().time() + timeout

    async def call(
        self, request: bytes, deadline: float | None, metadata: Any
    ) -> tuple[bytes, tuple[Attempt, ...]]:
        if self.closed:
            raise errors.ClientClosedError("the client is closed")
        parts = decode_predict_request(request)
        inputs = {name: decode_tensor(body) for name, body in parts.inputs.items()}
        loop = asyncio.get_running_loop()
        begun = loop.time()
        self.asked.append((begun, inputs, deadline, metadata))
        self.filters.append(parts.output_filter)
        version = self.versions.pop(0) if self.versions else 7
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        failure: errors.RPCError | None = None
        try:
            if deadline is not None and begun + self.seconds > deadline:
                await asyncio.sleep(deadline - begun)
                failure = errors.DeadlineExceededError("Deadline Exceeded", endpoint="here:1")
            else:
                await asyncio.sleep(self.seconds)
                self.check(inputs)
                outputs = self.run(inputs)
        except errors.RPCError as error:
            failure = error
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        seconds = loop.time() - begun
        if failure is not None:
            failure.attempts = (Attempt("here:1", 0.0, seconds, failure.code, failure.details),)
            raise failure
        wanted = {name: np.asarray(outputs[name]) for name in parts.output_filter or outputs}
        spec = encode_model_spec("m", version=version, signature_name="serving_default")
        return (
            encode_predict_response(wanted, model_spec=spec, typed=False),
            (Attempt("here:1", 0.0, seconds),),
        )


def rows(*values: float) -> Any:
    """Three numbers for each value."""
    return np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)


def story(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    run(work())


async def together(batched: BatchedModel, count: int, **arguments: Any) -> list[PredictResult]:
    """`count` single rows at a time, 0 first."""
    return await asyncio.gather(*(batched.predict({"x": rows(i)}, **arguments) for i in range(count)))


# -- when ---------------------------------------------------------------------------------------------


def test_a_lonely_caller_goes_at_once() -> None:
    """Nobody is waited for while nothing is under way: no time passes, and no task is made."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched()
        loop = asyncio.get_running_loop()
        for _ in range(3):
            before, tasks = loop.time(), len(asyncio.all_tasks())
            call = asyncio.ensure_future(batched.predict({"x": rows(1)}))
            await turns(2)
            assert len(asyncio.all_tasks()) == tasks + 1
            result = await call
            assert model.asked[-1][0] == before
            assert result["y"].tolist() == [[2, 2, 2]]
            assert type(result) is PredictResult
        assert batched.stats().flushes["idle"] == 3
        assert batched.stats().wait.maximum == 0

    story(work)


def test_calls_that_meet_go_together() -> None:
    """While a call is out the others gather; they go as one when it is back, and each gets its own rows."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched(max_delay=1.0)
        results = await together(batched, 20)
        assert [result["y"][0, 0] for result in results] == [2 * i for i in range(20)]
        assert model.sizes == [1, 19]
        assert all(result["y"].base is not None for result in results[1:])
        assert results[1]["y"].base is results[19]["y"].base
        assert not results[5]["y"].flags.writeable
        # Those who were answered together and come back at once go together, without a first one alone.
        await together(batched, 20)
        assert model.sizes == [1, 19, 20]
        assert batched.stats().sizes == {1: 1, 19: 1, 20: 1}
        assert batched.stats().flushes["idle"] == 3

    story(work)


def test_a_batch_that_gathers_goes_after_max_delay() -> None:
    """`max_delay` bounds the wait while there is room for a second batch, and not beyond it."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_delay=0.1, max_in_flight=2)
        loop = asyncio.get_running_loop()
        start = loop.time()
        calls = [asyncio.ensure_future(batched.predict({"x": rows(0)}))]
        await turns()
        calls += [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in (1, 2)]
        await asyncio.sleep(0.2)
        calls += [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in (3, 4)]
        await asyncio.gather(*calls)
        assert model.sizes == [1, 2, 2]
        np.testing.assert_allclose([at - start for at, *_ in model.asked], [0, 0.1, 1.0], atol=1e-6)
        assert batched.stats().flushes == {"full": 0, "idle": 1, "delay": 2, "deadline": 0, "close": 0}
        assert model.most == 2

    story(work)


def test_a_full_batch_goes_at_once() -> None:
    """`max_batch_size` rows do not wait, but for room: no more than `max_in_flight` are out."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_batch_size=4, max_delay=0.5, max_in_flight=3)
        start = asyncio.get_running_loop().time()
        await together(batched, 15)
        assert model.sizes == [1, 4, 4, 4, 2]
        assert [round(at - start, 3) for at, *_ in model.asked] == [0, 0, 0, 1, 1]
        assert model.most == 3
        assert batched.stats().flushes["full"] == 3

    story(work)


def test_a_batch_of_large_rows_is_kept_to_its_bytes() -> None:
    """What is full is decided by bytes where rows are large; one caller's own rows are not torn apart."""

    async def work() -> None:
        size = rows(0).nbytes
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_batch_bytes=3 * size, max_delay=0.5, max_in_flight=3)
        await together(batched, 8)
        assert model.sizes == [1, 3, 3, 1]
        assert batched.stats().flushes["full"] == 2
        await batched.predict({"x": np.concatenate([rows(0)] * 5)})
        assert model.sizes[-1] == 5
        unlimited = model.batched(max_batch_bytes=None)
        await together(unlimited, 8)
        assert model.sizes[-2:] == [1, 7]

    story(work)


def test_a_batch_goes_in_time_for_its_deadlines() -> None:
    """A caller that cannot wait for `max_delay` sends its batch earlier."""

    async def work() -> None:
        model = FakeModel(seconds=0.1)
        batched = model.batched(max_delay=10, max_in_flight=2)
        await batched.predict({"x": rows(1)})  # tells how long a batch takes
        model.seconds = 5.0
        first = asyncio.ensure_future(batched.predict({"x": rows(1)}))
        await turns()
        model.seconds = 0.1
        result = await batched.predict({"x": rows(2)}, timeout=0.5)
        assert result["y"][0, 0] == 4
        assert not first.done()
        assert batched.stats().flushes["deadline"] == 1
        await first

    story(work)


def test_priorities() -> None:
    """Of those who wait the higher priority goes first, the earlier of equals."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched(max_batch_size=2, max_in_flight=1)
        await asyncio.gather(
            batched.predict({"x": rows(0)}),
            *(
                batched.predict({"x": rows(i)}, priority=p)
                for i, p in ((1, 0), (2, -1), (3, 5), (4, 0), (5, 5))
            ),
        )
        order = [value for _, inputs, _, _ in model.asked for value in inputs["x"][:, 0].tolist()]
        assert order == [0, 3, 5, 1, 4, 2]

    story(work)


# -- who with whom --------------------------------------------------------------------------------------

MIXED = signature(
    {"a": (FLOAT, None), "b": (INT, (-1,)), "s": (STRING, (-1,))},
    {"a": (FLOAT, None), "b": (INT, (-1,)), "s": (STRING, (-1,))},
)


@st.composite
def _requests(draw: st.DrawFn) -> tuple[float, dict[str, Any], tuple[str, ...], tuple[Any, ...], bool]:
    """When, what, which outputs, metadata, and whether checked."""
    count = draw(st.integers(0, 7))
    inner = draw(st.sampled_from([(), (2,), (3,), (2, 2)]))
    values = draw(st.integers(0, 1000))
    a = np.arange(values, values + count * int(np.prod(inner)), dtype=np.float32).reshape(count, *inner)
    kind = draw(st.sampled_from(["C", "F", "strided", "list"]))
    given: Any = a
    if kind == "F":
        given = np.asfortranarray(a)
    elif kind == "strided":
        given = np.repeat(a, 2, axis=0)[::2]
    elif kind == "list" and a.size:
        given = a.tolist()
    inputs: dict[str, Any] = {
        "s": np.array([b"%d" % (values + i) for i in range(count)], np.dtype(draw(st.sampled_from("SO")))),
        "a": given,
        "b": np.arange(count) + values,
    }
    if draw(st.booleans()):
        inputs = dict(reversed(inputs.items()))
    wanted = draw(st.sampled_from([(), ("a",), ("b", "s")]))
    metadata = draw(st.sampled_from([(), (("key", "value"),)]))
    checked = draw(st.booleans())
    if not checked:
        inputs["a"] = a
    return draw(st.sampled_from([0.0, 0.0, 0.001, 0.004, 0.02])), inputs, wanted, metadata, checked


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(_requests(), min_size=1, max_size=12),
    limit=st.integers(1, 8),
    allowed=st.booleans(),
    in_flight=st.integers(1, 3),
    delay=st.sampled_from([0.0, 0.002, 0.1]),
)
def test_everyone_gets_what_it_would_have_got_alone(
    requests: list[Any], limit: int, allowed: bool, in_flight: int, delay: float
) -> None:
    """Whatever is mixed, and however divided: each answer is that of the request by itself."""

    async def work() -> None:
        model = FakeModel(lambda inputs: {name: inputs[name] for name in ("a", "b", "s")}, given=MIXED)
        sizes = tuple(sorted({max(1, limit // 3), max(1, limit // 2), limit})) if allowed else ()
        batched = model.batched(
            max_batch_size=limit, max_in_flight=in_flight, max_delay=delay, allowed_batch_sizes=sizes
        )

        async def ask(when: float, inputs: Any, wanted: Any, metadata: Any, checked: bool) -> None:
            await asyncio.sleep(when)
            result = await batched.predict(
                inputs, output_filter=wanted or None, metadata=metadata, validate=checked
            )
            count = len(inputs["b"])
            assert set(result) == set(wanted or ("a", "b", "s"))
            if "a" in result:
                expected = np.asarray(inputs["a"], np.float32)
                assert result["a"].dtype == np.float32
                assert result["a"].shape == expected.shape
                assert result["a"].tobytes() == expected.tobytes()
            if "b" in result:
                assert result["b"].tolist() == np.asarray(inputs["b"]).tolist()
                assert result["s"].tolist() == inputs["s"].tolist()
                assert result["s"].shape == (count,)
            assert result.model_spec.version == 7

        await asyncio.gather(*(ask(*request) for request in requests))
        assert model.most <= in_flight
        assert all(size <= limit for size in model.sizes)
        if allowed:
            assert {size for size in model.sizes if size} <= set(sizes)
        for _, _, _, metadata in model.asked:
            assert metadata in ((), (("key", "value"),))
        stats = batched.stats()
        assert stats.waiting == stats.in_flight == 0
        assert stats.rows == sum(len(inputs["b"]) for _, inputs, *_ in requests)
        assert sum(stats.flushes.values()) == sum(stats.sizes.values()) == stats.batches == len(model.asked)
        assert stats.wait.count == stats.calls

    story(work)


@settings(max_examples=80, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 3), st.integers(0, 6)), min_size=1, max_size=10),
    limit=st.integers(3, 12),
    allowed=st.booleans(),
    how=st.sampled_from(["length", "mask", "both", "neither"]),
)
def test_one_ragged_axis(shapes: list[tuple[int, int]], limit: int, allowed: bool, how: str) -> None:
    """Shorter inputs are filled up, the model is told, and outputs are cut back to each caller's own size."""
    length, mask = how in ("length", "both"), how in ("mask", "both")
    inputs: dict[str, tuple[DataType, tuple[int, ...]]] = {"x": (FLOAT, (-1, -1, 2))}
    if length:
        inputs["n"] = (INT, (-1,))
    if mask:
        inputs["m"] = (FLOAT, (-1, -1))
    given_signature = signature(inputs, {"each": (FLOAT, (-1, -1, 2)), "sum": (FLOAT, (-1,))})

    def compute(given: Outputs) -> Outputs:
        x = given["x"]
        valid = np.ones(x.shape[:2], bool)
        if length:
            valid &= np.arange(x.shape[1]) < given["n"][:, None]
        if mask:
            valid &= given["m"] == 1
        if how == "neither":
            valid &= x[..., 0] != -5
        assert np.all(x[~valid] == -5)
        return {"each": x + 1, "sum": np.where(valid, x[..., 0], 0).sum(axis=1)}

    async def work() -> None:
        model = FakeModel(compute, given=given_signature)
        batched = model.batched(
            max_batch_size=limit,
            allowed_batch_sizes=(limit,) if allowed else (),
            pad_axis=1,
            pad_value=-5,
            length_input="n" if length else None,
            mask_input="m" if mask else None,
            cut_outputs=("each",),
        )
        arrays = [
            np.arange(i, i + 2 * count * size, dtype=np.float32).reshape(count, size, 2)
            for i, (count, size) in enumerate(shapes)
        ]
        results = await asyncio.gather(
            *(batched.predict(x if index % 2 else {"x": x}) for index, x in enumerate(arrays))
        )
        for x, result in zip(arrays, results, strict=True):
            assert result["each"].tolist() == (x + 1).tolist()
            assert result["each"].shape == x.shape
            np.testing.assert_array_equal(result["sum"], x[..., 0].sum(axis=1))
        if len(shapes) > 1 and limit == 12:
            assert len(model.asked) < len(shapes) + 1

    story(work)


def test_a_request_is_never_divided_unless_it_has_to_be() -> None:
    """Requests of several rows stay in one batch; one larger than any batch is divided and joined again."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched(max_batch_size=4, max_in_flight=1)
        await asyncio.gather(*(batched.predict({"x": rows(i, i, i)}) for i in range(4)))
        assert model.sizes == [3, 3, 3, 3]
        model.asked.clear()
        result = await batched.predict({"x": rows(*range(10))})
        assert model.sizes == [4, 4, 2]
        assert result["y"][:, 0].tolist() == [2 * i for i in range(10)]
        assert not result["y"].flags.writeable
        assert len(result.attempts) == 3
        assert result.model_spec.version == 7

    story(work)


def test_a_divided_request_has_one_version() -> None:
    """Parts that an older version answered are asked again; that has an end."""

    async def work() -> None:
        model = FakeModel()
        model.versions = [1, 1, 2]
        batched = model.batched(max_batch_size=4, max_in_flight=1)
        result = await batched.predict({"x": rows(*range(10))})
        assert result.model_spec.version == 7
        assert len(model.asked) == 3 + 2 + 1  # the two of version 1, then the one of 2
        model.versions = [1, 2, 1, 2, 2]
        assert (await batched.predict({"x": rows(*range(5))})).model_spec.version == 2
        model.versions = list(range(1, 20))
        with pytest.raises(errors.AbortedError, match="several versions"):
            await batched.predict({"x": rows(*range(5))})

    story(work)


def test_what_has_no_batch_axis_is_refused() -> None:
    """Scalars and fixed first dimensions are found from the signature before anything is sent."""

    async def work() -> None:
        outputs = {"y": (FLOAT, (-1, 3)), "version": (INT, ())}
        model = FakeModel(given=signature({"x": (FLOAT, (-1, 3))}, outputs))
        batched = model.batched()
        with pytest.raises(
            errors.FailedPreconditionError, match=r"'version' has no batch axis: it is int64 \(\)"
        ):
            await batched.predict({"x": rows(1)})
        assert (await batched.predict({"x": rows(1)}, output_filter="y"))["y"][0, 0] == 2
        assert (await batched.predict({"x": rows(1)}, output_filter=["y"]))["y"][0, 0] == 2
        assert model.filters == [["y"], ["y"]]
        model.given = signature({"x": (FLOAT, (1, 3))}, {"y": (FLOAT, (-1, 3))})
        with pytest.raises(
            errors.InvalidInputError, match=r"input 'x' .*no batch axis: it is float32 \(1, 3\)"
        ):
            await batched.predict({"x": rows(1)})
        model.given = signature({"x": (FLOAT, None)}, {"y": (FLOAT, None)})
        with pytest.raises(errors.InvalidInputError, match="is a scalar and has no batch axis"):
            await batched.predict({"x": np.float32(1)})
        with pytest.raises(errors.InvalidInputError, match="without inputs"):
            await batched.predict({}, validate=False)
        with pytest.raises(errors.InvalidInputError, match="must be a mapping"):
            await batched.predict(rows(1), validate=False)
        with pytest.raises(errors.InvalidInputError, match="'a' has 1, 'b' has 2"):
            await batched.predict({"a": rows(1), "b": rows(1, 2)}, validate=False)
        assert len(model.asked) == 2

    story(work)


@pytest.mark.parametrize("shape", [None, (-1,)])
def test_what_has_no_batch_axis_in_the_answer_is_refused(shape: tuple[int, ...] | None) -> None:
    """The signature may not tell, or be wrong: an answer of another length is nobody's."""

    async def work() -> None:
        given_signature = signature({"x": (FLOAT, (-1, 3))}, {"y": (FLOAT, shape)})
        model = FakeModel(lambda inputs: {"y": np.zeros(5, np.float32)}, given=given_signature)
        batched = model.batched()
        found = await asyncio.gather(
            *(batched.predict({"x": rows(i)}) for i in range(4)), return_exceptions=True
        )
        assert all(isinstance(error, errors.FailedPreconditionError) for error in found)
        assert "float32 (5,) in the answer to 3 rows" in str(found[1])
        assert len(set(map(id, found))) == 4

    story(work)


def test_shared_outputs_go_to_everyone_if_asked() -> None:
    """`broadcast` gives all of an output without batch axis to every caller; the others stay divided."""

    async def work() -> None:
        outputs = {"y": (FLOAT, (-1, 3)), "names": (STRING, (2,)), "n": (INT, None)}
        model = FakeModel(
            lambda inputs: {"y": inputs["x"], "names": np.array([b"a", b"b"], object), "n": np.int64(5)},
            given=signature({"x": (FLOAT, (-1, 3))}, outputs),
        )
        batched = model.batched(shared_outputs="broadcast")
        results = await together(batched, 3)  # the second batch has two rows, as `names` has
        for index, result in enumerate(results):
            assert result["y"].tolist() == rows(index).tolist()
            assert result["names"].tolist() == [b"a", b"b"]
            assert result["n"] == 5
        big = await batched.predict({"x": rows(*range(300))})
        assert big["names"].tolist() == [b"a", b"b"]
        assert big["y"].shape == (300, 3)

    story(work)


def test_allowed_batch_sizes() -> None:
    """Batches are filled up with rows of the last caller, which nobody sees in the answer."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched(max_batch_size=8, allowed_batch_sizes=(2, 8))
        results = await together(batched, 4)
        assert model.sizes == [2, 8]
        assert model.asked[1][1]["x"][:, 0].tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
        assert [result["y"].tolist() for result in results] == [rows(2 * i).tolist() for i in range(4)]
        assert batched.stats().padding == 1 + 5
        assert batched.stats().sizes == {1: 1, 3: 1}

    story(work)


# -- neighbours -----------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(count=st.integers(2, 40), bad=st.sets(st.integers(0, 39)), limit=st.sampled_from([4, 16, 64]))
def test_an_invalid_request_sinks_nobody_else(count: int, bad: set[int], limit: int) -> None:
    """The guilty get the server's error, each its own; all others are answered, in few more calls."""
    bad = {i for i in bad if i < count}

    def check(inputs: Outputs) -> None:
        if bad & set(inputs["x"][:, 0].tolist()):
            raise errors.InvalidArgumentError("indices[3] = 99 is not in [0, 10)", endpoint="here:1")

    async def work() -> None:
        model = FakeModel(check=check)
        batched = model.batched(max_batch_size=limit, max_in_flight=1)
        found = await asyncio.gather(
            *(batched.predict({"x": rows(i)}) for i in range(count)), return_exceptions=True
        )
        for index, item in enumerate(found):
            if index in bad:
                assert isinstance(item, errors.InvalidArgumentError)
                assert item.details.startswith("indices")
                assert item.attempts
                assert [attempt.code for attempt in item.attempts] == ["INVALID_ARGUMENT"] * len(
                    item.attempts
                )
            else:
                assert isinstance(item, PredictResult), item
                assert item["y"][0, 0] == 2 * index
                codes = [attempt.code for attempt in item.attempts]
                assert codes[-1] == "OK"
                assert set(codes[:-1]) <= {"INVALID_ARGUMENT"}
                starts = [attempt.started for attempt in item.attempts]
                assert starts == sorted(starts)
        failures = [item for item in found if isinstance(item, Exception)]
        assert len(set(map(id, failures))) == len(bad)
        batches = batched.stats().batches
        assert len(model.asked) <= batches * (1 + 2 * limit.bit_length() + 2) + count
        if len(bad) == 1:
            assert len(model.asked) <= batches + 2 * limit.bit_length()
        await batched.aclose()

    story(work)


def test_the_guilty_may_have_left() -> None:
    """Who is left of a batch that was refused is not blamed for what the one who left had sent."""

    def check(inputs: Outputs) -> None:
        if 9 in inputs["x"]:
            raise errors.InvalidArgumentError("bad row")

    async def work() -> None:
        model = FakeModel(check=check)
        batched = model.batched(max_in_flight=1)
        first, good, bad = (asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in (1, 2, 9))
        await first
        await asyncio.sleep(0.005)
        bad.cancel()
        assert (await good)["y"][0, 0] == 4
        assert model.sizes == [1, 2, 1]
        await batched.aclose()

    story(work)


def test_errors_of_the_batch_are_everyones_own() -> None:
    """A failure that is nobody's fault goes to all as copies with their own story, and no second call."""

    async def work() -> None:
        def check(inputs: Outputs) -> None:
            raise error

        for error in (
            errors.UnavailableError("the batch scheduling queue is full", endpoint="here:1"),
            errors.VersionLabelNotFoundError("no such label", endpoint="here:1"),
        ):
            model = FakeModel(check=check)
            batched = model.batched()
            first = asyncio.ensure_future(batched.predict({"x": rows(0)}))
            await asyncio.sleep(0.001)
            second = asyncio.ensure_future(batched.predict({"x": rows(1)}))
            await asyncio.sleep(0.001)
            third = asyncio.ensure_future(batched.predict({"x": rows(2)}))
            found = await asyncio.gather(first, second, third, return_exceptions=True)
            assert len(model.asked) == 2
            assert len(set(map(id, found))) == 3
            for item in found:
                assert type(item) is type(error)
                assert (item.details, item.code, item.endpoint) == (error.details, error.code, "here:1")
            starts = [item.attempts[0].started for item in found if isinstance(item, errors.RPCError)]
            np.testing.assert_allclose(
                starts, [0.0, 0.009, 0.008] if starts[1] > 0.005 else [0, 0.002, 0.001]
            )

    story(work)


def test_what_cannot_be_read() -> None:
    """An answer that is no PredictResponse is an error for all, and says where it came from."""

    async def work() -> None:
        model = FakeModel()

        async def call(*given: Any) -> Any:
            await asyncio.sleep(0.01)
            return b"\xff\xff", (Attempt("here:1", 0.0, 0.01),)

        model.call = call  # type: ignore[method-assign,assignment]
        batched = model.batched()
        found = await asyncio.gather(
            *(batched.predict({"x": rows(i)}) for i in range(3)), return_exceptions=True
        )
        for error in found:
            assert isinstance(error, errors.DecodeError)
            assert "Predict of model 'm' at here:1 answered what cannot be read" in str(error)
        assert found[1] is not found[2]

    story(work)


def test_a_value_that_cannot_be_sent_is_its_callers_own() -> None:
    """What no TensorProto can hold is found in the batch without asking the server about the others."""

    async def work() -> None:
        model = FakeModel(lambda inputs: {"y": inputs["s"]}, given=None)
        batched = model.batched()

        def ask(item: Any) -> Any:
            return batched.predict({"s": np.array([item], object)}, validate=False)

        found = await asyncio.gather(*(ask(item) for item in (b"a", b"b", 3.5, b"c")), return_exceptions=True)
        assert isinstance(found[2], errors.UnsupportedTypeError)
        assert [found[i]["y"].tolist() for i in (0, 1, 3)] == [[b"a"], [b"b"], [b"c"]]  # type: ignore[index]

    story(work)


def test_a_batch_too_large_to_send_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that only together exceed the largest message are sent in smaller batches."""
    monkeypatch.setattr("aioserving.batching.MAX_MESSAGE_BYTES", 100)

    async def work() -> None:
        model = FakeModel()
        results = await together(model.batched(), 9)
        assert [result["y"][0, 0] for result in results] == [2 * i for i in range(9)]
        assert model.sizes == [1, 4, 4]

    story(work)


def test_the_servers_own_limit_is_learnt() -> None:
    """A server that takes fewer rows says how many; from then on no batch has more."""

    def check(inputs: Outputs) -> None:
        if len(inputs["x"]) > 5:
            raise errors.InvalidArgumentError(
                f"Task size {len(inputs['x'])} is larger than maximum input batch size 5"
            )

    async def work() -> None:
        model = FakeModel(check=check)
        batched = model.batched(max_batch_size=32)
        results = await together(batched, 21)
        assert [result["y"][0, 0] for result in results] == [2 * i for i in range(21)]
        assert "up to 5 rows" in repr(batched)
        model.asked.clear()
        await together(batched, 20)
        assert max(model.sizes) == 5
        for many in (6, 11):
            fresh = model.batched()
            assert (await fresh.predict({"x": rows(*range(many))}))["y"][:, 0].tolist() == [
                2 * i for i in range(many)
            ]
        fresh = model.batched(allowed_batch_sizes=(4, 32), max_batch_size=32)
        await together(fresh, 12)
        model.asked.clear()
        await together(fresh, 12)
        assert model.sizes == [4, 4, 4]
        fresh = model.batched()
        results = await asyncio.gather(*(fresh.predict({"x": rows(*range(8))}) for _ in range(3)))
        assert all(result["y"].shape == (8, 3) for result in results)

    story(work)


@settings(max_examples=150, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.0, 0.003, 0.012]),  # when it comes
            st.sampled_from(["stays", "is cancelled", "expires", "expires unseen"]),
            st.integers(1, 25).map(lambda ms: ms / 1000),  # when it leaves
            st.integers(1, 9),  # rows
        ),
        min_size=1,
        max_size=14,
    ),
    limit=st.integers(1, 8),
    in_flight=st.integers(1, 2),
    bad=st.booleans(),
)
def test_leaving_at_any_point(
    calls: list[tuple[float, str, float, int]], limit: int, in_flight: int, bad: bool
) -> None:
    """Cancelled or late, waiting or on the way: a caller leaves on time, and nobody else notices."""

    def check(inputs: Outputs) -> None:
        if bad and 3 in inputs["x"][:, 0]:
            raise errors.InvalidArgumentError("bad row")

    async def work() -> None:
        model = FakeModel(seconds=0.008, check=check)
        batched = model.batched(max_batch_size=limit, max_in_flight=in_flight)
        loop = asyncio.get_running_loop()
        ended = [0] * 4

        async def ask(index: int, when: float, how: str, leaves: float, count: int) -> None:
            await asyncio.sleep(when)
            begun = loop.time()
            timeout = leaves if how == "expires" else None
            call = asyncio.ensure_future(batched.predict({"x": rows(*[index] * count)}, timeout=timeout))
            if how in ("is cancelled", "expires unseen"):
                loop.call_later(leaves, call.cancel)
            try:
                result = await call
            except asyncio.CancelledError:
                assert how in ("is cancelled", "expires unseen")
                assert loop.time() == pytest.approx(begun + leaves)
                ended[0] += 1
            except errors.DeadlineExceededError:
                assert how == "expires"
                assert loop.time() <= begun + leaves + 2e-4
                ended[1] += 1
            except errors.InvalidArgumentError:
                assert bad
                assert index == 3
                ended[2] += 1
            else:
                assert result["y"].shape == (count, 3)
                assert np.all(result["y"] == 2 * index)
                assert loop.time() <= begun + leaves + 2e-4 or how == "stays"
                ended[3] += 1

        await asyncio.gather(*(ask(index, *call) for index, call in enumerate(calls)))
        assert sum(ended) == len(calls)
        assert all(how != "stays" for _, how, _, _ in calls) or ended[2] + ended[3] > 0
        await turns()
        stats = batched.stats()
        assert (stats.waiting, stats.in_flight, model.under_way) == (0, 0, 0)
        assert batched._queue == {}
        assert batched._batches == {}
        assert all(group.rows == group.waiting == 0 for group in batched._groups.values())
        await batched.aclose()

    story(work)


@pytest.mark.parametrize("others", [0, 1])
def test_leaving_in_the_moment_of_sending(others: int) -> None:
    """A caller that is cancelled but has not run yet is neither sent, nor counted twice, nor waited for."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_in_flight=2, max_delay=0.5)
        first = asyncio.ensure_future(batched.predict({"x": rows(0)}))
        await turns()
        second = asyncio.ensure_future(batched.predict({"x": rows(1)}))
        stay = [asyncio.ensure_future(batched.predict({"x": rows(2)})) for _ in range(others)]
        await turns()
        assert batched.stats().waiting == 1 + others
        second.cancel()
        for group in batched._queue:
            group.due = 0.0
        batched._look()
        assert batched.stats().waiting == 0
        assert batched.stats().in_flight == 1 + others
        await turns()
        assert (batched.stats().waiting, second.cancelled()) == (0, True)
        third = asyncio.ensure_future(batched.predict({"x": rows(3)}))
        assert (await third)["y"][0, 0] == 6
        await asyncio.gather(first, *stay)
        assert model.sizes == [1] * (2 + others)
        await batched.aclose()

    story(work)


def test_a_batch_has_the_latest_deadline_and_ends_when_nobody_wants_it() -> None:
    """Whoever has more time gets its answer; when all have left, the call is cancelled."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_in_flight=1)
        loop = asyncio.get_running_loop()
        start = loop.time()
        first = asyncio.ensure_future(batched.predict({"x": rows(0)}))
        await turns()
        found = await asyncio.gather(
            *(batched.predict({"x": rows(i)}, timeout=t) for i, t in ((1, 1.5), (2, 7.0), (3, 0.5))),
            return_exceptions=True,
        )
        assert isinstance(found[0], errors.DeadlineExceededError)
        assert "before the batch was answered" in str(found[0])
        assert isinstance(found[2], errors.DeadlineExceededError)
        assert "waited for a batch" in str(found[2])
        assert isinstance(found[1], PredictResult)
        assert model.sizes == [1, 2]
        assert model.asked[1][2] == pytest.approx(start + 7.0)
        await first
        tasks = [asyncio.ensure_future(batched.predict({"x": rows(i)}, timeout=None)) for i in range(3)]
        await turns()
        assert model.asked[2][2] is None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await turns()
        assert model.cancelled == 1
        assert batched.stats().cancelled == 3
        assert batched.stats().expired == 2

    story(work)


def test_room_is_bounded() -> None:
    """The caller beyond `max_waiting` is refused, and so is one whose turn would come too late."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_batch_size=2, max_in_flight=1, max_waiting=5)
        await batched.predict({"x": rows(1)})
        calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(5)]
        await turns()
        with pytest.raises(errors.DeadlineExceededError, match="in about 2 s"):
            await batched.predict({"x": rows(9)}, timeout=2.0)
        calls.append(asyncio.ensure_future(batched.predict({"x": rows(5)}, timeout=10)))
        await turns()
        with pytest.raises(errors.ResourceExhaustedError, match="max_waiting=5"):
            await batched.predict({"x": rows(9)}, timeout=None)
        with pytest.raises(errors.ResourceExhaustedError, match="max_waiting=5"):
            await batched.predict({"x": rows(*range(9))}, timeout=None)
        assert batched.stats().refused == 3
        await asyncio.gather(*calls)
        with pytest.raises(errors.DeadlineExceededError, match="had passed"):
            await batched.predict({"x": rows(1)}, timeout=0)

    story(work)


# -- what comes back -------------------------------------------------------------------------------------


def test_results_tell_each_callers_own_story() -> None:
    """model_spec, attempts, serialized and proto are right for the caller, whatever batch it was in."""

    async def work() -> None:
        model = FakeModel()
        model.versions = [1, 2]
        batched = model.batched()
        first = asyncio.ensure_future(batched.predict({"x": rows(0)}))
        await asyncio.sleep(0.004)
        second = asyncio.ensure_future(batched.predict({"x": rows(1)}))
        third = asyncio.ensure_future(batched.predict({"x": rows(2, 3)}))
        results = await asyncio.gather(first, second, third)
        assert [result.model_spec.version for result in results] == [1, 2, 2]
        assert [decode_model_spec(spec)[1] for spec in model.noted] == [1, 2]
        [attempt] = results[2].attempts
        assert attempt.target == "here:1"
        assert attempt.seconds == pytest.approx(0.01)
        assert 0.001 < attempt.started < 0.007
        assert isinstance(results[2], BatchedResult)
        assert isinstance(results[2], PredictResult)
        again = results[2].proto
        assert list(again.outputs["y"].float_val) == rows(4, 6).ravel().tolist()
        assert again.model_spec.version.value == 2
        assert len(results[2].serialized) == len(again.SerializeToString())
        assert repr(results[2]) == "<PredictResult of m version 2: y: float32 (2, 3)>"

    story(work)


def test_signatures_are_fetched_and_renewed() -> None:
    """The signature is learnt first, and a refusal is believed only if it is fresh, as without batching."""

    async def work() -> None:
        model = FakeModel(given=None)
        batched = model.batched()
        results = await asyncio.gather(*(batched.predict(rows(i)) for i in range(4)))
        assert [result["y"][0, 0] for result in results] == [0, 2, 4, 6]
        with pytest.raises(errors.InvalidInputError, match="unknown input 'z'"):
            await batched.predict({"z": rows(1)})
        model.next_one = signature({"x": (FLOAT, (-1, 4))}, {"y": (FLOAT, (-1, 4))})
        assert (await batched.predict({"x": np.ones((2, 4))}))["y"].shape == (2, 4)
        with pytest.raises(errors.InvalidInputError, match=r"expects float32 \(-1, 4\)"):
            await batched.predict({"x": rows(1)})

    story(work)


# -- life ------------------------------------------------------------------------------------------------


def test_closing_sends_what_waits() -> None:
    """aclose lets everyone end, in as many batches as it takes; new calls are refused at once."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        async with model.batched(max_batch_size=4, max_in_flight=1, max_delay=50) as batched:
            calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(8)]
            await turns()
        assert all(call.done() for call in calls)
        assert [call.result()["y"][0, 0] for call in calls] == [2 * i for i in range(8)]
        assert batched.stats().flushes["close"] == 1
        with pytest.raises(errors.ClientClosedError, match="handle is closed"):
            await batched.predict({"x": rows(1)})
        await batched.aclose()
        assert "closed" in repr(batched)
        unused = model.batched()
        await unused.aclose()

    story(work)


def test_closing_with_a_grace() -> None:
    """After the grace everyone who is left gets its own ClientClosedError; the calls are cancelled."""

    async def work() -> None:
        model = FakeModel(seconds=5.0)
        batched = model.batched(max_batch_size=3, max_in_flight=2)
        alone = asyncio.ensure_future(batched.predict({"x": rows(0)}))
        await turns()
        calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(5)]
        await turns()
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.gather(batched.aclose(0.5), batched.aclose(1.0))
        assert loop.time() == start + 1.0
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, errors.ClientClosedError) for error in found)
        assert len(set(map(id, found))) == 5
        assert model.cancelled == 1
        assert (await alone)["y"][0, 0] == 0  # by its own deadline

    story(work)


def test_the_client_is_closed_first() -> None:
    """Everyone who waits is told; nobody hangs; the handle can be closed afterwards."""

    async def work() -> None:
        model = FakeModel(seconds=1.0)
        batched = model.batched(max_in_flight=1)
        calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(5)]
        await turns()
        model.closed = True
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found[0], PredictResult)
        assert all(isinstance(error, errors.ClientClosedError) for error in found[1:])
        with pytest.raises(errors.ClientClosedError):
            await batched.predict({"x": rows(1)})
        await batched.aclose()

    story(work)


def test_a_handle_belongs_to_its_loop() -> None:
    """Closing it on another loop is refused; after its loop has gone there is nothing to wait for."""
    model = FakeModel()
    batched = model.batched()

    async def use() -> None:
        await batched.predict({"x": rows(1)})

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    with pytest.raises(errors.EventLoopError, match="close it there"):
        asyncio.run(batched.aclose())
    loop.close()
    asyncio.run(batched.aclose())


def test_a_forked_process_has_nothing_to_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a forked child nobody waits: closing returns at once and does not ask for the parent's loop."""
    batched = FakeModel().batched()

    async def use() -> None:
        await batched.predict({"x": rows(1)})

    loop = asyncio.new_event_loop()
    loop.run_until_complete(use())
    monkeypatch.setattr("os.getpid", lambda: -1)
    asyncio.run(batched.aclose())
    loop.close()


def test_a_loop_that_ends_takes_everyone_along() -> None:
    """asyncio.run cancels what is under way: no warning of a future or task left behind."""

    async def use() -> None:
        model = FakeModel(seconds=100)
        batched = model.batched(max_in_flight=1)
        calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(4)]
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        assert len(calls) == 4

    asyncio.run(use())


def test_the_blocking_face() -> None:
    """BlockingBatchedModel runs the same calls where it is told to, and closes with its client or before."""
    model = FakeModel(seconds=0.001)
    batched = model.batched()
    loop = asyncio.new_event_loop()
    face = BlockingBatchedModel(loop.run_until_complete, batched)
    with face:
        assert face.predict({"x": rows(1)})["y"][0, 0] == 2
        assert face.name == "m"
        assert face.options is batched.options
        assert face.stats().calls == 1
        assert repr(face) == f"<BlockingBatchedModel over {batched!r}>"
    with pytest.raises(errors.ClientClosedError):
        face.predict({"x": rows(1)})
    loop.close()
    unused = BlockingBatchedModel(loop.run_until_complete, model.batched())
    unused.close()


# -- settings and numbers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_batch_size": 0}, "max_batch_size must be an integer of at least 1"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_waiting": 1.5}, "max_waiting"),
        ({"max_delay": -1}, "max_delay must be a number of seconds"),
        ({"max_batch_bytes": 0}, "max_batch_bytes must be at least 1"),
        ({"max_delay": float("nan")}, "max_delay"),
        ({"allowed_batch_sizes": (4, 2, 128)}, "must ascend"),
        ({"allowed_batch_sizes": (1, 64)}, "the last of allowed_batch_sizes must be max_batch_size=128"),
        ({"shared_outputs": "copy"}, "shared_outputs must be"),
        ({"length_input": "n"}, "length_input needs a pad_axis"),
        ({"pad_axis": 0}, "pad_axis must be at least 1"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], message: str) -> None:
    """A setting that cannot work is refused where it is made, by name."""
    with pytest.raises(ValueError, match=message):
        BatchingOptions(**wrong)


def test_what_it_says_of_itself() -> None:
    """repr and stats show what is going on, in words."""

    async def work() -> None:
        model = FakeModel()
        batched = model.batched()
        assert (
            repr(batched)
            == "<BatchedModel 'm', up to 128 rows: 0 waiting, 0 in flight, 0 calls in 0 batches>"
        )
        assert batched.stats().mean_size == 0
        calls = [asyncio.ensure_future(batched.predict({"x": rows(i)})) for i in range(4)]
        await turns()
        assert "3 waiting, 1 in flight" in repr(batched)
        await asyncio.gather(*calls)
        stats = batched.stats()
        assert isinstance(stats, BatchingStats)
        assert stats.mean_size == 2
        assert str(stats).startswith("4 calls in 2 batches of 2 rows on average (1 idle, 1 delay); 0 waiting")
        [group] = batched._groups.values()
        assert repr(group) == "<_Group of x: 0 waiting, 0 in flight>"
        assert copy.copy(stats) == stats

    story(work)


def test_kinds_of_calls_are_forgotten() -> None:
    """Shapes that change all the time do not fill the memory."""

    async def work() -> None:
        model = FakeModel(given=signature({"x": (FLOAT, None)}, {"y": (FLOAT, None)}))
        batched = model.batched()
        for width in range(600):
            await batched.predict({"x": np.zeros((1, width), np.float32)})
        assert len(batched._groups) <= 256
        assert len(batched._known) <= 256

    story(work)
