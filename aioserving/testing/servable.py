"""What a loaded model is to the testing server: signatures, and tensors fed and fetched by name.

`Servable` is the interface, cut as the real server's is: graph tensor names in, arrays out, and the
names of a signature (the aliases) only in its SignatureDef. `CallableServable` is a model made of
Python functions, which needs no TensorFlow; `saved_model` has the other implementation. Requests,
responses and versions are the business of `inference` and `manager`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from aioserving._proto import message_class
from aioserving._types import Array
from aioserving.dtypes import DataType, data_type_of, numpy_dtype, short_name, type_info
from aioserving.errors import UnsupportedTypeError
from aioserving.testing.status import StatusCode, StatusError

__all__ = [
    "CLASSIFY",
    "PREDICT",
    "REGRESS",
    "CallableServable",
    "CallableSignature",
    "Servable",
    "Spec",
    "TensorSpec",
    "array_data_type",
    "as_data_type",
    "plain",
]

#: The method names that signatures carry.
PREDICT = "tensorflow/serving/predict"
CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

# A quantized tensor travels inside the server as TensorFlow's own numpy types do it: a structure of
# one field, which tells qint8 from int8.
_QUANTIZED = {
    data_type: np.dtype([(short_name(data_type), numpy_dtype(data_type))])
    for data_type in (
        DataType.DT_QINT8,
        DataType.DT_QUINT8,
        DataType.DT_QINT16,
        DataType.DT_QUINT16,
        DataType.DT_QINT32,
    )
}
_QUANTIZED_BY_NAME = {short_name(data_type): data_type for data_type in _QUANTIZED}


class Servable(Protocol):
    """One version of a model, loaded. All of it may be used from several threads at once."""

    @property
    def signatures(self) -> Mapping[str, Any]:
        """Name -> `tensorflow.SignatureDef`."""

    @property
    def inline(self) -> bool:
        """Whether `run` is so quick that the server may call it on its event loop's thread."""

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout: float | None) -> list[Array]:
        """Run the model once, blocking.

        Args:
            feeds: arrays by graph tensor name (`TensorInfo.name`). Quantized ones have the numpy type
                that `as_data_type` gives.
            fetches: graph tensor names of what to compute.
            timeout: seconds the run may take; None: no limit.

        Returns:
            The arrays fetched, in order; quantized ones typed as the fed ones are.

        Raises:
            StatusError: the status of the real server for this failure.
        """

    def close(self) -> None:
        """Let go of the model. The caller makes sure that nothing runs any more."""


def array_data_type(array: Array) -> DataType:
    """The data type of an array as servables pass it: quantized ones are told by their structure.

    Raises:
        UnsupportedTypeError: the array's dtype has no counterpart.
    """
    names = array.dtype.names
    if names is not None and len(names) == 1 and names[0] in _QUANTIZED_BY_NAME:
        return _QUANTIZED_BY_NAME[names[0]]
    return data_type_of(array.dtype)


def as_data_type(array: Array, data_type: int) -> Array:
    """`array` typed for a servable; only quantized data types need it, and get a view."""
    structure = _QUANTIZED.get(cast("DataType", data_type))
    return array if structure is None or array.dtype.names is not None else array.view(structure)


def plain(array: Array) -> Array:
    """`array` without the structure that `as_data_type` gave it."""
    return array if array.dtype.names is None else array[array.dtype.names[0]]


@dataclass(frozen=True)
class TensorSpec:
    """Declaration of one input or output of a Python function."""

    #: A numpy dtype or its name, TensorFlow's name (``"half"``, ``"qint8"``, ``"string"``), or a `DataType`.
    dtype: npt.DTypeLike | DataType
    #: Sizes, with None (or -1) for unknown ones; None: nothing is known, not even the rank.
    shape: Sequence[int | None] | None = None
    #: What a request that leaves this input out gets.
    default: npt.ArrayLike | None = None


#: How inputs and outputs are declared: a `TensorSpec`, or just ``("float32", (None, 784))``.
Spec: TypeAlias = "TensorSpec | tuple[npt.DTypeLike | DataType, Sequence[int | None] | None]"

#: What a model's function returns: arrays by output, or the array of the only output.
Outputs: TypeAlias = "Mapping[str, npt.ArrayLike] | npt.ArrayLike"

#: A model's function: arrays as keyword arguments, under the names of the inputs.
Function: TypeAlias = "Callable[..., Outputs | Awaitable[Outputs]]"


@dataclass(frozen=True, kw_only=True)
class CallableSignature:
    """One signature of a `CallableServable`."""

    #: See `CallableServable`.
    function: Function
    inputs: Mapping[str, Spec]
    outputs: Mapping[str, Spec]
    #: Only told in the metadata, unless the server checks method names.
    method_name: str = PREDICT


class CallableServable:
    """A model made of Python functions.

        CallableServable(lambda x: {"y": x / 2 + 2}, inputs={"x": ("float32", (None,))},
                         outputs={"y": ("float32", (None,))})

    A function gets the inputs of its signature as keyword arguments: arrays of exactly the declared
    dtypes (strings as ``object`` arrays of ``bytes``), possibly read-only, and of *any* shape, as in
    the real server, which does not look at declared shapes either. It returns a mapping with the
    outputs, or just the array if there is one output; what it returns is converted to the declared
    dtype where numpy calls that ``same_kind``. Signatures for Classify and Regress get one input,
    ``inputs``, of serialized `tf.Example` strings.

    Functions may be ``async``; they run on an event loop that belongs to the servable. They all have
    to be thread-safe. A `StatusError` that a function raises becomes the status of the call; any other
    exception becomes UNKNOWN with its text, as exceptions of Python functions in TensorFlow graphs do.

    Args:
        function: the function of the only signature; or all signatures by name, and then none of
            `inputs`, `outputs`, `signature_name` and `method_name`.
        inputs: declared inputs by name.
        outputs: declared outputs by name.
        signature_name: name of the only signature.
        method_name: method name of the only signature.
        inline: the functions are quick (well under a millisecond), and calling them on the thread of
            the server's event loop is better than handing them to another. Not for async functions.

    Raises:
        UnsupportedTypeError: a declared dtype that no tensor has, or that needs `ml_dtypes`.
        ValueError: the arguments do not fit together.
    """

    def __init__(
        self,
        function: Function | Mapping[str, CallableSignature],
        *,
        inputs: Mapping[str, Spec] | None = None,
        outputs: Mapping[str, Spec] | None = None,
        signature_name: str = "serving_default",
        method_name: str = PREDICT,
        inline: bool = False,
    ) -> None:
        if isinstance(function, Mapping):
            if inputs is not None or outputs is not None:
                raise ValueError("with several signatures, inputs and outputs are declared in each of them")
            declared = dict(function)
        else:
            if inputs is None or outputs is None:
                raise ValueError("a function needs its inputs and outputs declared")
            declared = {
                signature_name: CallableSignature(
                    function=function, inputs=inputs, outputs=outputs, method_name=method_name
                )
            }
        taken: set[str] = set()
        self._compiled = {name: _compile(name, signature, taken) for name, signature in declared.items()}
        if inline and any(signature.is_async for signature in self._compiled.values()):
            raise ValueError(
                "an async function cannot be called inline: it would wait on the server's own loop"
            )
        self.inline = inline
        self.signatures: Mapping[str, Any] = {
            name: signature.definition for name, signature in self._compiled.items()
        }
        #: Numpy dtype by input tensor.
        self._dtypes = {
            tensor: dtype
            for signature in self._compiled.values()
            for tensor, (_, dtype) in signature.inputs.items()
        }
        self._plans: dict[tuple[str, ...], _Plan] = {}
        self._loop = _Loop()
        self._closed = False

    def __repr__(self) -> str:
        signatures = ", ".join(map(repr, self._compiled.values()))
        return f"<CallableServable{' closed' if self._closed else ''} {signatures}>"

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout: float | None) -> list[Array]:
        """Call the functions whose outputs are fetched; see `Servable.run`.

        A function cannot be interrupted, unless it is async: a call that took too long ends with
        DEADLINE_EXCEEDED when the function returns.
        """
        if self._closed:
            raise StatusError(StatusCode.CANCELLED, "Session has been closed.")
        deadline = None if timeout is None else time.monotonic() + timeout
        key = tuple(fetches)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(key)
        dtypes = self._dtypes
        for tensor, array in feeds.items():
            if array.dtype != dtypes.get(tensor):
                raise self._refuse(feeds)
        results: list[Any] = [None] * len(key)
        for signature, wanted in plan:
            outputs = self._call(signature, feeds, deadline)
            for position, alias in wanted:
                results[position] = signature.output(alias, outputs)
        return results

    def close(self) -> None:
        """Refuse further runs, and end the event loop of async functions."""
        self._closed = True
        self._loop.close()

    def _plan(self, fetches: tuple[str, ...]) -> _Plan:
        plan: dict[str, tuple[_Compiled, list[tuple[int, str]]]] = {}
        for position, tensor in enumerate(fetches):
            for name, signature in self._compiled.items():
                alias = signature.outputs.get(tensor)
                if alias is not None:
                    plan.setdefault(name, (signature, []))[1].append((position, alias))
                    break
            else:
                raise _not_in_graph(tensor)
        return list(plan.values())

    def _refuse(self, feeds: Mapping[str, Array]) -> StatusError:
        """What the runtime says of feeds that do not fit: positions count the fed names, sorted."""
        for position, tensor in enumerate(sorted(feeds)):
            expected = self._dtypes.get(tensor)
            if expected is None:
                return _not_in_graph(tensor)
            if feeds[tensor].dtype != expected:
                wanted, given = array_data_type(np.empty(0, expected)), array_data_type(feeds[tensor])
                return StatusError(
                    StatusCode.INVALID_ARGUMENT,
                    f"Expects arg[{position}] to be {short_name(wanted)} but {short_name(given)} is provided",
                )
        raise AssertionError(f"nothing is wrong with {sorted(feeds)}")

    def _call(self, signature: _Compiled, feeds: Mapping[str, Array], deadline: float | None) -> Any:
        arguments = {}
        for tensor, (alias, dtype) in signature.inputs.items():
            array = feeds.get(tensor)
            if array is None:
                raise _not_fed(tensor, dtype)
            arguments[alias] = array if dtype.names is None else plain(array)
        try:
            outputs = signature.function(**arguments)
            if inspect.isawaitable(outputs):
                outputs = self._loop.wait(outputs, deadline)
        except StatusError:
            raise
        except concurrent.futures.CancelledError as error:
            raise StatusError(StatusCode.CANCELLED, "Run call was cancelled") from error
        except Exception as error:
            raise StatusError(StatusCode.UNKNOWN, f"{type(error).__name__}: {error}") from error
        if deadline is not None and time.monotonic() > deadline:
            raise _timed_out()
        return outputs


def _not_in_graph(tensor: str) -> StatusError:
    return StatusError(
        StatusCode.INVALID_ARGUMENT,
        f"Tensor {tensor}, specified in either feed_devices or fetch_devices was not found in the Graph",
    )


def _not_fed(tensor: str, dtype: np.dtype[Any]) -> StatusError:
    node, type_name = tensor.rpartition(":")[0], short_name(array_data_type(np.empty(0, dtype)))
    return StatusError(
        StatusCode.INVALID_ARGUMENT,
        f"You must feed a value for placeholder tensor '{node}' with dtype {type_name}"
        f"\n\t [[{{{{node {node}}}}}]]",
    )


def _timed_out() -> StatusError:
    return StatusError(StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")


class _Compiled:
    """A signature with everything looked up beforehand that a call needs."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        definition: Any,
        inputs: dict[str, tuple[str, np.dtype[Any]]],
        outputs: dict[str, str],
        output_dtypes: dict[str, np.dtype[Any]],
    ) -> None:
        self.name = name
        self.function = function
        self.definition = definition
        #: Tensor -> alias and numpy dtype.
        self.inputs = inputs
        #: Tensor -> alias.
        self.outputs = outputs
        self.output_dtypes = output_dtypes
        self.is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
            getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__
        )

    def __repr__(self) -> str:
        def listed(infos: Mapping[str, Any]) -> str:
            return ", ".join(
                f"{alias}: {short_name(infos[alias].dtype)} {_shape_text(infos[alias].tensor_shape)}"
                for alias in sorted(infos)
            )

        return f"{self.name}({listed(self.definition.inputs)}) -> ({listed(self.definition.outputs)})"

    def output(self, alias: str, outputs: Any) -> Array:
        """The array of `alias` among what the function returned, in its declared dtype."""
        if isinstance(outputs, Mapping):
            try:
                value = outputs[alias]
            except KeyError:
                raise StatusError(
                    StatusCode.INTERNAL,
                    f"The function of signature {self.name} returned no output {alias}, only "
                    f"{{{','.join(sorted(map(str, outputs)))}}}",
                ) from None
        elif len(self.outputs) == 1:
            value = outputs
        else:
            raise StatusError(
                StatusCode.INTERNAL,
                f"The function of signature {self.name} has to return its {len(self.outputs)} outputs by "
                f"name, not a {type(outputs).__name__}",
            )
        dtype = self.output_dtypes[alias]
        if type(value) is np.ndarray and value.dtype == dtype:
            return value
        try:
            return _converted(value, dtype)
        except (TypeError, ValueError, OverflowError) as error:
            raise StatusError(
                StatusCode.INTERNAL, f"Output {alias} of signature {self.name} {error}"
            ) from error


_Plan: TypeAlias = "list[tuple[_Compiled, list[tuple[int, str]]]]"


def _compile(name: str, declared: CallableSignature, taken: set[str]) -> _Compiled:
    definition: Any = message_class("tensorflow.SignatureDef")(method_name=declared.method_name)
    inputs: dict[str, tuple[str, np.dtype[Any]]] = {}
    outputs: dict[str, str] = {}
    output_dtypes: dict[str, np.dtype[Any]] = {}
    for alias, spec in declared.inputs.items():
        data_type, dtype, tensor_spec = _resolve(spec)
        tensor = _unique(f"{name}_{alias}", taken)
        _declare(definition.inputs[alias], tensor, data_type, tensor_spec.shape)
        if tensor_spec.default is not None:
            _set_default(definition.defaults[alias], tensor_spec.default, data_type, dtype)
        inputs[tensor] = alias, dtype
    for alias, spec in declared.outputs.items():
        data_type, dtype, tensor_spec = _resolve(spec)
        if tensor_spec.default is not None:
            raise ValueError(f"output {alias!r} of signature {name!r} cannot have a default")
        tensor = _unique(f"{name}/{alias}", taken)
        _declare(definition.outputs[alias], tensor, data_type, tensor_spec.shape)
        outputs[tensor] = alias
        output_dtypes[alias] = dtype
    return _Compiled(name, declared.function, definition, inputs, outputs, output_dtypes)


def _unique(node: str, taken: set[str]) -> str:
    """A tensor name for `node`; like TensorFlow, number the second node of the same name."""
    name, number = node, 0
    while name in taken:
        number += 1
        name = f"{node}_{number}"
    taken.add(name)
    return f"{name}:0"


def _resolve(spec: Spec) -> tuple[DataType, np.dtype[Any], TensorSpec]:
    """Data type, the numpy dtype that arrays of it have inside the server, and the spec."""
    if not isinstance(spec, TensorSpec):
        spec = TensorSpec(*spec)
    data_type = _data_type(spec.dtype)
    return data_type, _QUANTIZED.get(data_type) or numpy_dtype(data_type), spec


def _data_type(dtype: Any) -> DataType:
    if isinstance(dtype, str):
        if dtype == "float":
            raise UnsupportedTypeError("'float' is float32 to TensorFlow and float64 to numpy: say which")
        for data_type in DataType:
            if dtype in (short_name(data_type), data_type.name):
                return type_info(data_type).data_type
            try:
                if dtype == type_info(data_type).numpy_name:
                    return data_type
            except UnsupportedTypeError:
                continue
    if isinstance(dtype, int):
        return type_info(dtype).data_type
    try:
        numpy_type = np.dtype(dtype)
    except TypeError:
        raise UnsupportedTypeError(f"{dtype!r} is not the name of a dtype") from None
    return data_type_of(numpy_type)


def _declare(info: Any, tensor: str, data_type: DataType, shape: Sequence[int | None] | None) -> None:
    info.name = tensor
    info.dtype = data_type
    info.tensor_shape.SetInParent()
    if shape is None:
        info.tensor_shape.unknown_rank = True
    else:
        for size in shape:
            info.tensor_shape.dim.add(size=-1 if size is None else size)


def _set_default(target: Any, value: npt.ArrayLike, data_type: DataType, dtype: np.dtype[Any]) -> None:
    from aioserving.codec import encode_tensor_typed

    target.ParseFromString(encode_tensor_typed(plain(_converted(value, dtype)), data_type=data_type))


def _shape_text(shape: Any) -> str:
    if shape.unknown_rank:
        return "of any rank"
    return "(" + ", ".join(str(dim.size) for dim in shape.dim) + ("," if len(shape.dim) == 1 else "") + ")"


def _converted(value: Any, dtype: np.dtype[Any]) -> Array:
    """`value` as an array of `dtype`, where that loses no more than precision.

    Raises:
        TypeError: `value` is of another kind, or has integers beyond what `dtype` holds.
        ValueError: `value` is ragged.
    """
    if dtype.names is not None:
        return _converted(plain(np.asarray(value)), dtype[0]).view(dtype)
    if dtype.kind == "O":
        # An array made of a list of bytes would have a dtype of fixed width, which drops trailing NULs.
        array = value if isinstance(value, np.ndarray) else np.array(value, object)
        if array.dtype.kind not in "OSUT":
            raise TypeError(f"is declared string, and cannot hold {array.dtype}")
        return array.astype(object) if array.dtype.kind != "O" else array
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        as_declared = array.astype(dtype)
        if not np.array_equal(as_declared, array):
            raise TypeError(f"is declared {dtype}, and has values beyond it")
        return as_declared
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"is declared {dtype}, and cannot hold {array.dtype}")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


class _Loop:
    """An event loop on a thread of its own, started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def wait(self, awaitable: Awaitable[Any], deadline: float | None) -> Any:
        """The result of `awaitable`, or its exception; it is cancelled when `deadline` passes."""

        async def bounded() -> Any:
            timeout = None if deadline is None else deadline - time.monotonic()
            future = asyncio.ensure_future(awaitable)
            done, _ = await asyncio.wait([future], timeout=timeout)
            if not done:
                future.cancel()
                raise _timed_out()
            return future.result()

        return asyncio.run_coroutine_threadsafe(bounded(), self._running()).result()

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="aioserving.testing-callables", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
