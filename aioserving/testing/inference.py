"""Requests in, responses out, as bytes: Predict, Classify, Regress, MultiInference, GetModelMetadata.

Everything here is a function of a loaded model and a serialized request; which model a request is for
is found by somebody else (`manager`), between two steps:

    call = parse("Predict", data)                    # what is wrong before any model is looked up
    servable, version = ...                          # resolve call.model_spec
    response = call.run(servable, model_name=..., version=..., options=..., timeout=...)

`predict`, `classify`, `regress`, `multi_inference` and `get_model_metadata` are the second step for a
request that may still be bytes. Errors are `StatusError` with the real server's codes and texts, found
in its order; texts are not cut here. How a model computes is the business of `servable`.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from aioserving._proto import message_class
from aioserving._types import Array
from aioserving.codec import decode_predict_request, decode_tensor, encode_model_spec, encode_predict_response
from aioserving.dtypes import DataType, base_data_type, short_name
from aioserving.errors import DecodeError, MessageTooLargeError, UnsupportedTypeError
from aioserving.testing.servable import (
    CLASSIFY,
    PREDICT,
    REGRESS,
    Servable,
    array_data_type,
    as_data_type,
    plain,
)
from aioserving.testing.status import StatusCode, StatusError
from aioserving.wire import delimited, fields

__all__ = [
    "Answer",
    "Call",
    "InferenceOptions",
    "classify",
    "get_model_metadata",
    "multi_inference",
    "parse",
    "predict",
    "regress",
    "request_model_spec",
]

_DEFAULT_SIGNATURE = "serving_default"
_SIGNATURE_DEF = "signature_def"

# What protobuf's DebugString puts first, so that nobody parses it.
_DEBUG_PREFIX = "goo.gle/debugonly    \n"


class InferenceOptions(Protocol):
    """The server's flags that matter here; `options.ServerOptions` has them."""

    @property
    def enable_serialization_as_tensor_content(self) -> bool:
        """Answer Predict with `tensor_content` instead of typed fields."""

    @property
    def enable_signature_method_name_check(self) -> bool:
        """Insist on a signature's method_name."""


class Call(Protocol):
    """A request that was parsed, and is ready to run on the model that it names."""

    @property
    def model_spec(self) -> Any:
        """The `ModelSpec` message that says which model is meant, or None where the request has none."""

    def run(
        self,
        servable: Servable,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None,
    ) -> bytes:
        """The serialized response.

        Args:
            servable: the model found.
            model_name: its name, as responses tell it.
            version: its version, as responses tell it.
            options: the server's flags.
            timeout: seconds that the model may take; None: no limit.

        Raises:
            StatusError: the status that the call ends with.
        """


def parse(method: str, data: bytes) -> Call:
    """Parse a request of `method` (short name), and check what the server checks before it looks for a model.

    Raises:
        StatusError: INTERNAL without a text, when the bytes are no such message; INVALID_ARGUMENT for
            a GetModelMetadata that asks for nothing or for something unknown.
    """
    return _CALLS[method](data)


class Answer(Protocol):
    """What `predict` and the others are."""

    def __call__(
        self,
        servable: Servable,
        request: bytes | Call,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None = None,
    ) -> bytes:
        """Parse `request` unless it was parsed before, and run it; the rest is as in `Call.run`."""


def request_model_spec(method: str, data: bytes) -> Any:
    """The `ModelSpec` of a request of `method`, or None; raises as `parse` does."""
    return parse(method, data).model_spec


# ---------------------------------------------------------------- Predict


class PredictCall:
    """A PredictRequest, its tensors still encoded."""

    __slots__ = ("_data", "_inputs", "_output_filter", "model_spec")

    def __init__(self, data: bytes) -> None:
        try:
            parts = decode_predict_request(data)
            spec = parts.model_spec
            self.model_spec: Any = None if spec is None else _model_spec_class().FromString(spec)
        except (DecodeError, _protobuf_error()) as error:
            raise _unparsable() from error
        self._data = data
        self._inputs = parts.inputs
        self._output_filter = parts.output_filter

    def __repr__(self) -> str:
        return f"<PredictCall inputs={list(self._inputs)} output_filter={self._output_filter}>"

    def run(
        self,
        servable: Servable,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None,
    ) -> bytes:
        """See `Call.run`."""
        signature_name = _signature_name(self.model_spec)
        plan = _plan(servable, signature_name)
        if plan is None:
            raise StatusError(
                StatusCode.FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.'
            )
        if options.enable_signature_method_name_check and plan.method_name not in _PREDICTABLE:
            raise StatusError(
                StatusCode.INTERNAL,
                "Expected prediction signature method_name to be one of "
                f"{{{', '.join(_PREDICTABLE)}}}. Was: {plan.method_name}",
            )
        feeds, opaque = self._feeds(plan)
        aliases, fetches = plan.fetches(self._output_filter)
        if opaque:
            raise _refuse_opaque(plan, feeds, opaque)
        results = servable.run(feeds, fetches, timeout)
        return _predict_response(
            dict(zip(aliases, results, strict=True)),
            _encoded_spec(model_name, version, signature_name),
            typed=not options.enable_serialization_as_tensor_content,
        )

    def _feeds(self, plan: _Plan) -> tuple[dict[str, Array], dict[str, int]]:
        """Arrays by tensor name; and data types of tensors that parse but hold nothing numpy could."""
        inputs = self._inputs
        if len(inputs) != len(plan.inputs) and (len(inputs) > len(plan.inputs) or not plan.defaults):
            raise _input_count(plan.inputs, inputs)
        feeds: dict[str, Array] = {}
        opaque: dict[str, int] = {}
        used = 0
        for alias, tensor in plan.inputs.items():
            data = inputs.get(alias)
            if data is None:
                default = plan.defaults.get(alias)
                if default is None:
                    raise _input_missing(plan, alias, inputs)
                feeds[tensor] = default
                continue
            used += 1
            try:
                array = decode_tensor(data)
            except DecodeError as error:
                raise self._not_a_tensor(alias, data) from error
            except UnsupportedTypeError:
                opaque[tensor] = _data_type(data)
                continue
            # Only integers can be quantized ones, which numpy does not know.
            feeds[tensor] = as_data_type(array, _data_type(data)) if array.dtype.kind in "iu" else array
        if used < len(inputs):
            names = ",".join(sorted(alias for alias in plan.inputs if alias in inputs))
            raise _invalid(
                f"Inputs contains invalid name. Used request inputs: {names}, "
                f"request input: {','.join(sorted(inputs))}"
            )
        return feeds, opaque

    def _not_a_tensor(self, alias: str, data: memoryview) -> StatusError:
        """Bytes that are no TensorProto at all make the whole request unparsable."""
        try:
            message_class("tensorflow.TensorProto").FromString(bytes(data))
        except _protobuf_error():
            return _unparsable()
        return _invalid(f"tensor parsing error: {alias}")


_PREDICTABLE = (PREDICT, CLASSIFY, REGRESS)


def _predict_response(outputs: dict[str, Array], model_spec: bytes, *, typed: bool) -> bytes:
    data_types: dict[str, int] | None = None
    for alias, array in outputs.items():
        if array.dtype.names is not None:
            data_types = data_types or {}
            data_types[alias] = array_data_type(array)
            outputs[alias] = plain(array)
    try:
        return encode_predict_response(outputs, model_spec=model_spec, typed=typed, data_types=data_types)
    except (UnsupportedTypeError, MessageTooLargeError) as error:
        raise StatusError(StatusCode.INTERNAL, str(error)) from error


def _input_count(expected: Iterable[str], given: Iterable[str]) -> StatusError:
    wanted, sent = set(expected), set(given)

    def listed(names: set[str]) -> str:
        return "{" + ",".join(sorted(names)) + "}"

    return _invalid(
        f"input size does not match signature: {len(sent)}!={len(wanted)} len({listed(sent)}) != "
        f"len({listed(wanted)}). Sent extra: {listed(sent - wanted)}. "
        f"Missing but required: {listed(wanted - sent)}."
    )


def _input_missing(plan: _Plan, alias: str, given: Iterable[str]) -> StatusError:
    # An input with an empty name, which a map entry without a key has, leaves no trace in the list.
    return _invalid(
        f"Signature input alias: {alias}(feed name: {plan.inputs[alias]}) not found in request and no "
        f"default value provided. Inputs expected to be in the request {{{','.join(sorted(given))}}}, "
        f"or default input alias set: {','.join(sorted(plan.defaults))}"
    )


def _refuse_opaque(plan: _Plan, feeds: Mapping[str, Array], opaque: Mapping[str, int]) -> StatusError:
    """What the runtime says of tensors that it parses and numpy cannot hold."""
    if DataType.DT_RESOURCE in opaque.values():
        return _invalid(
            "Invalid resource type hash code: 0(name:  type: ). Perhaps a resource tensor was being "
            "provided as a feed? That is not currently allowed. Please file an issue at "
            "https://github.com/tensorflow/tensorflow/issues/new, ideally with a short code snippet that "
            "leads to this error message."
        )
    given = {tensor: int(array_data_type(array)) for tensor, array in feeds.items()} | dict(opaque)
    declared = {tensor: plan.declared[alias] for alias, tensor in plan.inputs.items()}
    for position, tensor in enumerate(sorted(given)):
        if given[tensor] != declared[tensor]:
            return _invalid(
                f"Expects arg[{position}] to be {short_name(declared[tensor])} but "
                f"{short_name(given[tensor])} is provided"
            )
    kinds = ", ".join(short_name(data_type) for data_type in opaque.values())
    return StatusError(StatusCode.UNIMPLEMENTED, f"this server cannot feed tensors of type {kinds}")


def _data_type(data: memoryview) -> int:
    """The dtype field of an encoded TensorProto."""
    # Every writer puts it first, in two bytes; a second occurrence would have to follow, and would win.
    if len(data) > 2 and data[0] == 0x08 and data[1] < 0x80 and data[2] != 0x08:
        return data[1]
    number = 0
    for tag, value, _ in fields(data, 0, len(data)):
        if tag == 0x08:
            number = value
    return number


# ---------------------------------------------------------------- Classify and Regress


class ClassifyCall:
    """A ClassificationRequest."""

    _request: ClassVar[str] = "tensorflow.serving.ClassificationRequest"

    def __init__(self, data: bytes) -> None:
        request = _message(self._request, data)
        self.model_spec: Any = request.model_spec if request.HasField("model_spec") else None
        self._input = request.input

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._input.WhichOneof('kind')}>"

    def run(
        self,
        servable: Servable,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None,
    ) -> bytes:
        """See `Call.run`."""
        signature_name = _signature_name(self.model_spec)
        plan = _plan(servable, signature_name)
        if plan is None:
            raise _invalid(f"No signature was found with the name: {signature_name}")
        task = self._task(plan, options)
        examples = _examples(self._input)
        outputs = servable.run({task.input: examples}, task.outputs, timeout)
        result = task.finish(len(examples), outputs)
        return delimited(1, result) + delimited(2, _encoded_spec(model_name, version, signature_name))

    def _task(self, plan: _Plan, options: InferenceOptions) -> _Task:
        return _classification(plan, options)


class RegressCall(ClassifyCall):
    """A RegressionRequest."""

    _request: ClassVar[str] = "tensorflow.serving.RegressionRequest"

    def _task(self, plan: _Plan, options: InferenceOptions) -> _Task:
        return _regression(plan, options)


class _Task(NamedTuple):
    """What one signature contributes to a graph run, and what becomes of its outputs."""

    #: Tensor to feed the examples to.
    input: str
    #: Tensors to fetch.
    outputs: tuple[str, ...]
    #: Number of examples and the arrays fetched -> ClassificationResult or RegressionResult, as bytes.
    finish: Callable[[int, Sequence[Array]], bytes]


def _classification(plan: _Plan, options: InferenceOptions) -> _Task:
    if options.enable_signature_method_name_check and plan.method_name != CLASSIFY:
        raise _invalid(
            f"Expected classification signature method_name to be {CLASSIFY}. Was: {plan.method_name}"
        )
    if len(plan.inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if len(plan.outputs) not in (1, 2):
        raise _invalid(f"Expected one or two output Tensors, found {len(plan.outputs)}")
    if "inputs" not in plan.inputs:
        raise _invalid(f"No classification inputs found in SignatureDef: {plan.debug_string()}")
    aliases = [alias for alias in ("classes", "scores") if alias in plan.outputs]
    if not aliases:
        raise _invalid(
            'Expected classification signature outputs to contain at least one of "classes" or "scores". '
            f"Signature was: {plan.debug_string()}"
        )

    def finish(examples: int, arrays: Sequence[Array]) -> bytes:
        found = dict(zip(aliases, arrays, strict=True))
        for alias, data_type in (("classes", DataType.DT_STRING), ("scores", DataType.DT_FLOAT)):
            array = found.get(alias)
            if array is None:
                continue
            if array.ndim != 2:
                raise _invalid(
                    f"Expected Tensor shape: [batch_size num_classes] but got {_shape_text(array)}"
                )
            if array_data_type(array) != data_type:
                raise _invalid(
                    f"Expected {alias} Tensor of {data_type.name}. Got: {array_data_type(array).name}"
                )
            if len(array) != examples:
                raise _invalid(f"Expected {alias} output batch size of {examples}. Got: {len(array)}")
        classes, scores = found.get("classes"), found.get("scores")
        if classes is not None and scores is not None and classes.shape[1] != scores.shape[1]:
            raise _invalid(
                "Tensors class and score should match in dim_size(1). Got "
                f"{classes.shape[1]} vs. {scores.shape[1]}"
            )
        return _classification_result(examples, classes, scores)

    return _Task(plan.inputs["inputs"], tuple(plan.outputs[alias] for alias in aliases), finish)


def _classification_result(examples: int, classes: Array | None, scores: Array | None) -> bytes:
    """A ClassificationResult {classifications 1 {classes 1 {label 1, score 2}}}."""
    # Written by hand: a label is text to protobuf's Python classes, and whatever bytes the model made
    # to the server.
    rows = []
    for row in range(examples):
        labels: list[Any] = [] if classes is None else classes[row].tolist()
        values = [] if scores is None else _float_fields(2, scores[row])
        width = max(len(labels), len(values))
        entries = [
            delimited(1, (_label_field(labels[i]) if labels else b"") + (values[i] if values else b""))
            for i in range(width)
        ]
        rows.append(delimited(1, b"".join(entries)))
    return b"".join(rows)


def _label_field(label: bytes | str) -> bytes:
    data = label.encode() if isinstance(label, str) else label
    return delimited(1, data) if data else b""


def _float_fields(number: int, values: Array) -> list[bytes]:
    """Each value as the fixed32 field `number`; +0.0 is left out, as proto3 leaves out defaults."""
    tag = bytes((number << 3 | 5,))
    data = np.ascontiguousarray(values, "<f4").tobytes()
    pieces = [data[i : i + 4] for i in range(0, len(data), 4)]
    return [tag + piece if piece != b"\0\0\0\0" else b"" for piece in pieces]


def _regression(plan: _Plan, options: InferenceOptions) -> _Task:
    if options.enable_signature_method_name_check and plan.method_name != REGRESS:
        raise _invalid(f"Expected regression signature method_name to be {REGRESS}. Was: {plan.method_name}")
    if len(plan.inputs) != 1:
        raise _invalid("Expected one input Tensor.")
    if len(plan.outputs) != 1:
        raise _invalid("Expected one output Tensor.")
    if "inputs" not in plan.inputs:
        raise _invalid(f"No regression inputs found in SignatureDef: {plan.debug_string()}")
    if "outputs" not in plan.outputs:
        raise _invalid(f"No regression outputs found in SignatureDef: {plan.debug_string()}")

    def finish(examples: int, arrays: Sequence[Array]) -> bytes:
        (array,) = arrays
        if array.ndim != 1 and not (array.ndim == 2 and array.shape[1] == 1):
            raise _invalid(
                "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
                f"{_shape_text(array)}"
            )
        if len(array) != examples:
            raise _invalid(f"Input batch size did not match output batch size: {examples} vs. {len(array)}")
        if array_data_type(array) != DataType.DT_FLOAT:
            raise _invalid(f"Expected output Tensor of DT_FLOAT.  Got: {array_data_type(array).name}")
        # RegressionResult {regressions 1 {value 1}}
        return b"".join([delimited(1, value) for value in _float_fields(1, array.reshape(-1))])

    return _Task(plan.inputs["inputs"], (plan.outputs["outputs"],), finish)


def _shape_text(array: Array) -> str:
    return "[" + ",".join(map(str, array.shape)) + "]"


def _examples(source: Any) -> Array:
    """The serialized examples of an `Input`, as a 1-D string tensor; with its context in front of each.

    A message after another one is the two merged, so the example's features win over the context's.
    """
    kind = source.WhichOneof("kind")
    context, examples = b"", ()
    if kind == "example_list":
        examples = source.example_list.examples
    elif kind == "example_list_with_context":
        examples = source.example_list_with_context.examples
        context = source.example_list_with_context.context.SerializeToString()
    if not examples:
        raise _invalid("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


# ---------------------------------------------------------------- MultiInference


class MultiInferenceCall:
    """A MultiInferenceRequest; the first task says which model is meant."""

    def __init__(self, data: bytes) -> None:
        request = _message("tensorflow.serving.MultiInferenceRequest", data)
        self._tasks = request.tasks
        self._input = request.input
        # Without a first task, or without its spec, an empty spec is looked up.
        self.model_spec = request.tasks[0].model_spec if request.tasks else _model_spec_class()()

    def __repr__(self) -> str:
        return f"<MultiInferenceCall of {len(self._tasks)} tasks>"

    def run(
        self,
        servable: Servable,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None,
    ) -> bytes:
        """See `Call.run`."""
        tasks = self._checked(servable, options)
        examples = _examples(self._input)
        fetches = tuple(sorted({tensor for task in tasks.values() for tensor in task.outputs}))
        arrays = servable.run({task.input: examples for task in tasks.values()}, fetches, timeout)
        fetched = dict(zip(fetches, arrays, strict=True))
        results = []
        for asked, (signature_name, task) in zip(self._tasks, tasks.items(), strict=True):
            result = task.finish(len(examples), [fetched[tensor] for tensor in task.outputs])
            spec = delimited(1, _encoded_spec(model_name, version, signature_name))
            results.append(delimited(1, spec + delimited(2 if asked.method_name == CLASSIFY else 3, result)))
        return b"".join(results)

    def _checked(self, servable: Servable, options: InferenceOptions) -> dict[str, _Task]:
        """The tasks by signature name, in their order."""
        tasks: dict[str, _Task] = {}
        first_name = ""
        for task in self._tasks:
            spec = task.model_spec
            if not spec.name:
                raise _invalid("Found ModelSpec with an empty model name.")
            first_name = first_name or spec.name
            if spec.name != first_name:
                raise _invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
            signature_name = _signature_name(spec)
            if signature_name in tasks:
                raise _invalid(f"Duplicate evaluation of signature: {signature_name}")
            plan = _plan(servable, signature_name)
            if plan is None:
                raise _invalid(f"Requested signature not found in model graph: {signature_name}")
            if task.method_name == CLASSIFY:
                tasks[signature_name] = _classification(plan, options)
            elif task.method_name == REGRESS:
                tasks[signature_name] = _regression(plan, options)
            else:
                raise StatusError(
                    StatusCode.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}"
                )
        return tasks


# ---------------------------------------------------------------- GetModelMetadata


class GetModelMetadataCall:
    """A GetModelMetadataRequest whose fields were checked."""

    def __init__(self, data: bytes) -> None:
        request = _message("tensorflow.serving.GetModelMetadataRequest", data)
        self.model_spec = request.model_spec if request.HasField("model_spec") else None
        if self.model_spec is None:
            return  # which is the first complaint, and made where models are looked up
        if not request.metadata_field:
            raise _invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != _SIGNATURE_DEF:
                raise _invalid(f"Metadata field {field} is not supported")

    def __repr__(self) -> str:
        return f"<GetModelMetadataCall of {self.model_spec.name if self.model_spec else None!r}>"

    def run(
        self,
        servable: Servable,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None,
    ) -> bytes:
        """See `Call.run`."""
        signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
        for name, definition in servable.signatures.items():
            signatures.signature_def[name].CopyFrom(definition)
        response: Any = message_class("tensorflow.serving.GetModelMetadataResponse")()
        response.metadata[_SIGNATURE_DEF].Pack(signatures)
        # Field 1 comes first; there is no signature name in it, even if the request has one.
        head = delimited(1, _encoded_spec(model_name, version, None))
        metadata: bytes = response.SerializeToString()
        return head + metadata


# ---------------------------------------------------------------- signatures


class _Plan:
    """A signature, with everything looked up beforehand that a call needs."""

    def __init__(self, definition: Any) -> None:
        self._definition = definition
        self.method_name: str = definition.method_name
        #: Alias -> tensor name. The real server goes through these in the order of a hash table, which
        #: shows when several are wrong; backwards is the order that its recordings have.
        self.inputs = {
            alias: definition.inputs[alias].name for alias in sorted(definition.inputs, reverse=True)
        }
        #: Alias -> declared data type, REF types as what they refer to.
        self.declared = {alias: _base_number(definition.inputs[alias].dtype) for alias in definition.inputs}
        #: Alias -> tensor name.
        self.outputs = {alias: definition.outputs[alias].name for alias in sorted(definition.outputs)}
        #: Alias -> the value of an input that a request leaves out.
        self.defaults = {
            alias: as_data_type(decode_tensor(tensor.SerializeToString()), tensor.dtype)
            for alias, tensor in definition.defaults.items()
        }
        self._all = tuple(self.outputs), tuple(self.outputs.values())

    def fetches(self, output_filter: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Aliases and tensor names of the outputs that a request asks for."""
        if not output_filter:
            return self._all
        seen: set[str] = set()
        for alias in output_filter:
            if alias not in self.outputs:
                raise _invalid(
                    f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                    f"{{{','.join(sorted(self.outputs))}}}."
                )
            if alias in seen:
                raise _invalid(f"duplicate output tensor alias: {alias}")
            seen.add(alias)
        return tuple(output_filter), tuple(self.outputs[alias] for alias in output_filter)

    def debug_string(self) -> str:
        """The SignatureDef as error texts show it."""
        from google.protobuf import text_format

        return _DEBUG_PREFIX + text_format.MessageToString(self._definition)


_plans: weakref.WeakKeyDictionary[Servable, dict[str, _Plan]] = weakref.WeakKeyDictionary()
_plans_lock = threading.Lock()


def _plan(servable: Servable, signature_name: str) -> _Plan | None:
    """The plan of a signature, or None if the model does not have it."""
    plans = _plans.get(servable)
    if plans is None:
        with _plans_lock:
            plans = _plans.setdefault(servable, {})
    plan = plans.get(signature_name)
    if plan is None:
        definition = servable.signatures.get(signature_name)
        if definition is not None:
            plan = plans[signature_name] = _Plan(definition)
    return plan


def _base_number(data_type: int) -> int:
    try:
        return int(base_data_type(data_type))
    except UnsupportedTypeError:
        return data_type


# ---------------------------------------------------------------- small helpers


@lru_cache(maxsize=1024)
def _encoded_spec(name: str, version: int, signature_name: str | None) -> bytes:
    return encode_model_spec(name, version=version, signature_name=signature_name)


@lru_cache(maxsize=1)
def _model_spec_class() -> Any:
    return message_class("tensorflow.serving.ModelSpec")


@lru_cache(maxsize=1)
def _protobuf_error() -> type[Exception]:
    from google.protobuf.message import DecodeError as ProtobufDecodeError

    return ProtobufDecodeError


def _signature_name(spec: Any) -> str:
    """The signature asked for; recorded warm-up requests may come without a spec."""
    return (spec.signature_name if spec is not None else "") or _DEFAULT_SIGNATURE


def _message(name: str, data: bytes) -> Any:
    try:
        return message_class(name).FromString(data)
    except _protobuf_error() as error:
        raise _unparsable() from error


def _unparsable() -> StatusError:
    """What a C++ gRPC server makes of bytes that are not the request they should be."""
    return StatusError(StatusCode.INTERNAL)


def _invalid(message: str) -> StatusError:
    return StatusError(StatusCode.INVALID_ARGUMENT, message)


def _answer(parsed: Callable[[bytes], Call]) -> Answer:
    def answer(
        servable: Servable,
        request: bytes | Call,
        *,
        model_name: str,
        version: int,
        options: InferenceOptions,
        timeout: float | None = None,
    ) -> bytes:
        call = parsed(request) if isinstance(request, bytes) else request
        return call.run(servable, model_name=model_name, version=version, options=options, timeout=timeout)

    return answer


#: Answer a PredictRequest.
predict = _answer(PredictCall)
#: Answer a ClassificationRequest.
classify = _answer(ClassifyCall)
#: Answer a RegressionRequest.
regress = _answer(RegressCall)
#: Answer a MultiInferenceRequest.
multi_inference = _answer(MultiInferenceCall)
#: Answer a GetModelMetadataRequest.
get_model_metadata = _answer(GetModelMetadataCall)

_CALLS: dict[str, Callable[[bytes], Call]] = {
    "Predict": PredictCall,
    "Classify": ClassifyCall,
    "Regress": RegressCall,
    "MultiInference": MultiInferenceCall,
    "GetModelMetadata": GetModelMetadataCall,
}
