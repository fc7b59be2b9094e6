"""Python functions as models: signatures, types, errors, async functions. No TensorFlow in here."""

from __future__ import annotations

import asyncio
import functools
import importlib.util
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest

from aioserving import dtypes
from aioserving.dtypes import DataType
from aioserving.errors import UnsupportedTypeError
from aioserving.testing.servable import (
    CLASSIFY,
    PREDICT,
    CallableServable,
    CallableSignature,
    TensorSpec,
    array_data_type,
    as_data_type,
    plain,
)
from aioserving.testing.status import StatusCode, StatusError

FLOATS = ("float32", (None,))


def half_plus_two(function: Any = lambda x: {"y": x / 2 + 2}, **arguments: Any) -> CallableServable:
    return CallableServable(function, inputs={"x": FLOATS}, outputs={"y": FLOATS}, **arguments)


def run(
    servable: CallableServable,
    timeout: float | None = None,
    signature: str = "serving_default",
    **inputs: Any,
) -> Any:
    """Run a signature by aliases; the outputs by alias."""
    definition = servable.signatures[signature]
    feeds = {definition.inputs[alias].name: value for alias, value in inputs.items()}
    aliases = sorted(definition.outputs)
    arrays = servable.run(feeds, [definition.outputs[alias].name for alias in aliases], timeout)
    return dict(zip(aliases, arrays, strict=True))


def strings(*values: bytes) -> np.ndarray:
    array: np.ndarray = np.empty(len(values), object)
    array[:] = values
    return array


def test_a_function_is_called_with_its_inputs_by_name() -> None:
    """A model's function gets arrays as keyword arguments and returns them by output name."""
    servable = CallableServable(
        lambda a, b: {"sum": a + b, "product": a * b},
        inputs={"a": FLOATS, "b": FLOATS},
        outputs={"sum": FLOATS, "product": FLOATS},
    )
    outputs = run(servable, a=np.array([1, 2], "f4"), b=np.array([3, 4], "f4"))
    assert outputs["sum"].tolist() == [4, 6]
    assert outputs["product"].tolist() == [3, 8]


def test_the_only_output_may_be_returned_alone() -> None:
    """A function with one output need not wrap it into a mapping."""
    assert run(half_plus_two(lambda x: x + 1), x=np.array([1], "float32"))["y"].tolist() == [2]


def test_signatures_are_declared_as_the_real_server_describes_them() -> None:
    """Metadata of a function has data types, unknown sizes as -1, unknown ranks, and method names."""
    servable = CallableServable(
        {
            "serving_default": CallableSignature(
                function=lambda x, name: x,
                inputs={"x": ("float32", (None, 3)), "name": TensorSpec("string")},
                outputs={"y": TensorSpec("half", ())},
            ),
            "classes": CallableSignature(
                function=lambda inputs: inputs,
                inputs={"inputs": ("string", (None,))},
                outputs={"classes": ("string", (None, None))},
                method_name=CLASSIFY,
            ),
        }
    )
    definition = servable.signatures["serving_default"]
    assert definition.method_name == PREDICT
    assert definition.inputs["x"].dtype == DataType.DT_FLOAT
    assert [dim.size for dim in definition.inputs["x"].tensor_shape.dim] == [-1, 3]
    assert definition.inputs["name"].dtype == DataType.DT_STRING
    assert definition.inputs["name"].tensor_shape.unknown_rank
    assert definition.outputs["y"].dtype == DataType.DT_HALF
    assert definition.outputs["y"].HasField("tensor_shape")
    assert not definition.outputs["y"].tensor_shape.unknown_rank
    assert servable.signatures["classes"].method_name == CLASSIFY


def test_tensor_names_are_unique() -> None:
    """Signatures are told apart by their tensors, also where names run together."""
    one = CallableSignature(function=lambda b_c: b_c + 1, inputs={"b_c": FLOATS}, outputs={"y": FLOATS})
    two = CallableSignature(function=lambda c: c + 2, inputs={"c": FLOATS}, outputs={"y": FLOATS})
    servable = CallableServable({"a": one, "a_b": two})
    names = [
        info.name
        for definition in servable.signatures.values()
        for infos in (definition.inputs, definition.outputs)
        for info in infos.values()
    ]
    assert len(names) == len(set(names)) == 4
    assert run(servable, signature="a", b_c=np.array([1], "float32"))["y"].tolist() == [2]
    assert run(servable, signature="a_b", c=np.array([1], "float32"))["y"].tolist() == [3]


def test_one_run_can_fetch_from_several_signatures() -> None:
    """MultiInference fetches outputs of several signatures in one run; each function is called once."""
    calls: list[str] = []

    def doubled(x: np.ndarray) -> np.ndarray:
        calls.append("doubled")
        return x * 2

    def both(x: np.ndarray) -> dict[str, np.ndarray]:
        calls.append("both")
        return {"low": x - 1, "high": x + 1}

    servable = CallableServable(
        {
            "doubled": CallableSignature(function=doubled, inputs={"x": FLOATS}, outputs={"y": FLOATS}),
            "both": CallableSignature(
                function=both, inputs={"x": FLOATS}, outputs={"low": FLOATS, "high": FLOATS}
            ),
        }
    )
    tensors = {name: definition.outputs for name, definition in servable.signatures.items()}
    feeds = {
        definition.inputs["x"].name: np.array([5], "float32") for definition in servable.signatures.values()
    }
    fetches = [tensors["both"]["high"].name, tensors["doubled"]["y"].name, tensors["both"]["low"].name]
    assert [array.tolist() for array in servable.run(feeds, fetches, None)] == [[6], [10], [4]]
    assert sorted(calls) == ["both", "doubled"]


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.zeros(1), "Expects arg[0] to be float but double is provided"),
        (np.zeros(1, "i8"), "Expects arg[0] to be float but int64 is provided"),
        (strings(b"a"), "Expects arg[0] to be float but string is provided"),
        (np.zeros(1, "f2"), "Expects arg[0] to be float but half is provided"),
        (
            as_data_type(np.zeros(1, "i1"), DataType.DT_QINT8),
            "Expects arg[0] to be float but qint8 is provided",
        ),
    ],
)
def test_another_dtype_is_refused_as_by_a_session(given: np.ndarray, text: str) -> None:
    """An array of another dtype than declared ends with the runtime's own text, before any call."""
    servable = half_plus_two(lambda x: pytest.fail("must not be called"))
    with pytest.raises(StatusError) as caught:
        run(servable, x=given)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, text)


def test_the_position_in_the_text_counts_sorted_names() -> None:
    """The runtime numbers what it is fed by sorted tensor name; the first wrong one is reported."""
    servable = CallableServable(lambda a, b: a, inputs={"b": FLOATS, "a": FLOATS}, outputs={"y": FLOATS})
    with pytest.raises(StatusError, match=r"Expects arg\[1\] to be float but int32 is provided"):
        run(servable, b=np.zeros(1, "i4"), a=np.zeros(1, "f4"))


@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3, 4)])
def test_shapes_are_not_checked(shape: tuple[int, ...]) -> None:
    """A function gets whatever shape was sent, as the real server's graphs do."""
    assert run(half_plus_two(), x=np.ones(shape, "f4"))["y"].shape == shape


def test_quantized_inputs_arrive_as_integers() -> None:
    """A function sees the raw integers of a quantized tensor, and its own become one again."""
    seen: list[np.ndarray] = []

    def function(x: np.ndarray) -> Any:
        seen.append(x)
        return x + x.dtype.type(1)

    servable = CallableServable(function, inputs={"x": ("qint8", (None,))}, outputs={"y": ("qint8", (None,))})
    fed = as_data_type(np.array([1, -2], "i1"), DataType.DT_QINT8)
    (output,) = run(servable, x=fed).values()
    assert seen[0].dtype == np.int8
    assert array_data_type(output) == DataType.DT_QINT8
    assert plain(output).tolist() == [2, -1]
    with pytest.raises(StatusError, match=r"Expects arg\[0\] to be qint8 but int8 is provided"):
        run(servable, x=np.array([1], "i1"))


@pytest.mark.parametrize(
    ("dtype", "value", "expected"),
    [
        ("float32", [1, 2], np.array([1, 2], "float32")),
        ("float32", np.array([0.5], "float64"), np.array([0.5], "float32")),
        ("int64", [1, 2], np.array([1, 2], "int64")),
        ("uint8", [1, 255], np.array([1, 255], "uint8")),
        ("int32", np.array([7], "int64"), np.array([7], "int32")),
        ("bool", True, np.array(True)),
        ("complex64", 1 + 2j, np.complex64(1 + 2j)),
        ("string", [b"a\0", "é"], strings(b"a\0", "é".encode())),
        ("string", np.array([b"ab", b"c"]), strings(b"ab", b"c")),
        ("string", b"\0\0", np.array(b"\0\0", object)),
    ],
)
def test_what_a_function_returns_is_converted(dtype: str, value: Any, expected: np.ndarray) -> None:
    """Lists, scalars and wider dtypes become the declared dtype, where that loses no more than precision."""
    servable = CallableServable(lambda: {"y": value}, inputs={}, outputs={"y": (dtype, None)})
    output = run(servable)["y"]
    assert output.dtype == expected.dtype
    assert output.shape == expected.shape
    encoded = [v.encode() if isinstance(v, str) else v for v in output.ravel().tolist()]
    assert encoded == expected.ravel().tolist()


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("int32", [1.5]),
        ("int32", [2**40]),
        ("uint8", [-1]),
        ("float32", [1j]),
        ("float32", [b"1"]),
        ("string", [1]),
        ("float32", [[1.0], [1.0, 2.0]]),
    ],
)
def test_what_cannot_be_converted_is_an_internal_error(dtype: str, value: Any) -> None:
    """A function that does not keep to its declaration is the server's fault, and named."""
    servable = CallableServable(lambda: {"y": value}, inputs={}, outputs={"y": (dtype, None)})
    outputs = servable.signatures["serving_default"].outputs
    with pytest.raises(StatusError, match="utput y of signature serving_default") as caught:
        _encode(servable.run({}, [outputs["y"].name], None)[0])
    assert caught.value.code is StatusCode.INTERNAL


def _encode(array: np.ndarray) -> None:
    """What the server does next; an object array shows what it holds only then."""
    from aioserving.codec import encode_tensor_typed

    try:
        encode_tensor_typed(array)
    except UnsupportedTypeError as error:
        raise StatusError(StatusCode.INTERNAL, f"output y of signature serving_default: {error}") from error


@pytest.mark.parametrize("returned", [{}, {"z": 1.0}, np.array([1], "float32")])
def test_a_missing_output_is_named(returned: Any) -> None:
    """A function that leaves out a declared output fails the call with the output's name or their number."""
    servable = CallableServable(lambda x: returned, inputs={"x": FLOATS}, outputs={"y": FLOATS, "w": FLOATS})
    with pytest.raises(StatusError, match=r"returned no output|return its 2 outputs by name") as caught:
        run(servable, x=np.array([1], "float32"))
    assert caught.value.code is StatusCode.INTERNAL


def test_exceptions_become_unknown_with_their_text() -> None:
    """Any exception of a function ends the call as UNKNOWN, with its type and text."""

    def function(x: np.ndarray) -> np.ndarray:
        raise KeyError("no weights for 'x'")

    with pytest.raises(StatusError) as caught:
        run(half_plus_two(function), x=np.array([1], "float32"))
    assert caught.value.code is StatusCode.UNKNOWN
    assert "KeyError" in caught.value.message
    assert "no weights for" in caught.value.message
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_status_error_passes_as_it_is() -> None:
    """A function chooses its own status by raising a StatusError."""

    def function(x: np.ndarray) -> np.ndarray:
        raise StatusError(StatusCode.RESOURCE_EXHAUSTED, "come back later")

    with pytest.raises(StatusError) as caught:
        run(half_plus_two(function), x=np.array([1], "float32"))
    assert (caught.value.code, caught.value.message) == (StatusCode.RESOURCE_EXHAUSTED, "come back later")


def test_a_run_that_took_too_long_has_passed_its_deadline() -> None:
    """A call that outlives its timeout ends as a session's does, even though it cannot be interrupted."""

    def function(x: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return x

    servable = half_plus_two(function)
    with pytest.raises(StatusError, match="Timed out waiting for notification") as caught:
        run(servable, timeout=0.001, x=np.array([1], "float32"))
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    assert run(servable, timeout=10, x=np.array([1], "float32"))["y"].tolist() == [1]


@pytest.mark.parametrize("fed", [{}, {"other:0": np.array([1], "float32")}])
def test_wrong_tensor_names_are_refused(fed: dict[str, np.ndarray]) -> None:
    """Feeding too little, or a tensor that is not there, has the runtime's texts."""
    servable = half_plus_two()
    fetch = servable.signatures["serving_default"].outputs["y"].name
    with pytest.raises(StatusError, match=r"You must feed a value for placeholder|Tensor other:0, specified"):
        servable.run(fed, [fetch], None)
    with pytest.raises(StatusError, match="Tensor nothing:0, specified in either"):
        servable.run({}, ["nothing:0"], None)


def test_a_closed_servable_runs_no_more() -> None:
    """After close, runs end as those of a closed session."""
    servable = half_plus_two()
    servable.close()
    servable.close()
    with pytest.raises(StatusError, match=r"Session has been closed\.") as caught:
        run(servable, x=np.array([1], "float32"))
    assert caught.value.code is StatusCode.CANCELLED
    assert "closed" in repr(servable)


# Async functions


async def _doubled(x: np.ndarray) -> np.ndarray:
    await asyncio.sleep(0)
    return x * 2


def _returns_awaitable(x: np.ndarray) -> Any:
    return _doubled(x)


class _AsyncModel:
    async def __call__(self, x: np.ndarray) -> dict[str, np.ndarray]:
        return {"y": await _doubled(x)}


@pytest.mark.parametrize(
    "function", [_doubled, _AsyncModel(), functools.partial(_doubled), _returns_awaitable]
)
def test_async_functions_are_awaited(function: Any) -> None:
    """Coroutine functions, objects with an async __call__, and functions that return awaitables all work."""
    servable = half_plus_two(function)
    try:
        assert run(servable, x=np.array([3], "float32"))["y"].tolist() == [6]
    finally:
        servable.close()


def test_async_functions_run_at_the_same_time() -> None:
    """Runs from several threads share one event loop, so async functions can wait for each other."""
    arrived: list[int] = []
    everybody: list[asyncio.Event] = []

    async def function(x: np.ndarray) -> np.ndarray:
        if not everybody:
            everybody.append(asyncio.Event())
        arrived.append(1)
        if len(arrived) == 3:
            everybody[0].set()
        await everybody[0].wait()
        return x

    servable = half_plus_two(function)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(run(servable, timeout=10, x=np.array([1], "float32"))))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    servable.close()
    assert len(results) == 3


def test_an_async_function_is_cancelled_at_its_deadline() -> None:
    """Unlike others, an async function is interrupted when the time is up, and the call ends at once."""
    cancelled = threading.Event()

    async def function(x: np.ndarray) -> np.ndarray:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return x

    servable = half_plus_two(function)
    began = time.monotonic()
    with pytest.raises(StatusError, match="Timed out waiting for notification") as caught:
        run(servable, timeout=0.05, x=np.array([1], "float32"))
    assert caught.value.code is StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - began < 10
    assert cancelled.wait(10)
    servable.close()


def test_closing_ends_async_functions() -> None:
    """Close cancels what still waits, and leaves no thread behind."""
    before = set(threading.enumerate())  # other tests' servables may still have theirs
    entered = threading.Event()

    async def function(x: np.ndarray) -> np.ndarray:
        entered.set()
        await asyncio.sleep(60)
        return x

    servable = half_plus_two(function)
    caught: list[StatusError] = []

    def call() -> None:
        try:
            run(servable, x=np.array([1], "float32"))
        except StatusError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert entered.wait(10)
    servable.close()
    thread.join(10)
    assert [error.code for error in caught] == [StatusCode.CANCELLED]
    assert not set(threading.enumerate()) - before


# Declarations


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", DataType.DT_FLOAT),
        ("double", DataType.DT_DOUBLE),
        ("half", DataType.DT_HALF),
        ("DT_INT8", DataType.DT_INT8),
        ("quint16", DataType.DT_QUINT16),
        (np.int64, DataType.DT_INT64),
        (np.dtype("<u4"), DataType.DT_UINT32),
        (bool, DataType.DT_BOOL),
        (bytes, DataType.DT_STRING),
        (str, DataType.DT_STRING),
        ("object", DataType.DT_STRING),
        (DataType.DT_UINT8, DataType.DT_UINT8),
        (22, DataType.DT_UINT32),
    ],
)
def test_dtypes_can_be_named_in_many_ways(dtype: Any, expected: DataType) -> None:
    """A declared dtype is numpy's, TensorFlow's, or a number of the enum."""
    servable = CallableServable(lambda: 0, inputs={}, outputs={"y": (dtype, ())})
    assert servable.signatures["serving_default"].outputs["y"].dtype == expected


@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float", "float32 to TensorFlow and float64 to numpy"),
        ("flaot32", "'flaot32' is not the name of a dtype"),
        ("M8[s]", "no TensorFlow counterpart"),
        (DataType.DT_RESOURCE, "resource"),
        ("variant", "variant"),
        (101, "float_ref"),
        (99, "99"),
    ],
)
def test_dtypes_that_tensors_do_not_have_are_refused(dtype: Any, text: str) -> None:
    """A declaration that no tensor can have fails where it is made, and says why."""
    with pytest.raises(UnsupportedTypeError, match=text):
        CallableServable(lambda: 0, inputs={}, outputs={"y": (dtype, ())})


def test_bfloat16_needs_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dtype that numpy lacks works like others where ml_dtypes is, and the error names it elsewhere."""
    if importlib.util.find_spec("ml_dtypes") is not None:
        servable = CallableServable(
            lambda x: x, inputs={"x": ("bfloat16", ())}, outputs={"y": ("bfloat16", ())}
        )
        assert servable.signatures["serving_default"].inputs["x"].dtype == DataType.DT_BFLOAT16
        monkeypatch.setitem(sys.modules, "ml_dtypes", None)
        monkeypatch.delitem(dtypes._numpy_dtypes, DataType.DT_BFLOAT16, raising=False)
    with pytest.raises(UnsupportedTypeError, match="ml_dtypes"):
        CallableServable(lambda x: x, inputs={"x": ("bfloat16", ())}, outputs={"y": ("bfloat16", ())})


def test_defaults_are_part_of_the_signature() -> None:
    """An input with a default tells it in the metadata, in the declared dtype."""
    servable = CallableServable(
        lambda x, k: x * k,
        inputs={"x": FLOATS, "k": TensorSpec("float32", (1,), default=[2])},
        outputs={"y": FLOATS},
    )
    default = servable.signatures["serving_default"].defaults["k"]
    assert default.dtype == DataType.DT_FLOAT
    assert list(default.float_val) == [2.0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"function": lambda x: x}, "needs its inputs and outputs"),
        ({"function": {}, "inputs": {}}, "declared in each of them"),
        (
            {"function": _doubled, "inputs": {"x": FLOATS}, "outputs": {"y": FLOATS}, "inline": True},
            "cannot be called inline",
        ),
        (
            {"function": lambda: 0, "inputs": {}, "outputs": {"y": TensorSpec("int32", (), default=1)}},
            "cannot have a default",
        ),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(arguments: dict[str, Any], text: str) -> None:
    """A servable that could not work is not made."""
    with pytest.raises(ValueError, match=text):
        CallableServable(**arguments)


def test_the_repr_shows_the_signatures() -> None:
    """Looking at a servable tells what it takes and gives."""
    servable = CallableServable(
        lambda x: x, inputs={"x": ("float32", (None, 3))}, outputs={"y": TensorSpec("string")}
    )
    assert repr(servable) == (
        "<CallableServable serving_default(x: float (-1, 3)) -> (y: string of any rank)>"
    )
