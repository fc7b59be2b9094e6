"""What a model takes and gives: signatures, their tensors, and inputs checked and cast to fit them.

Read from GetModelMetadata's answer. The real server checks neither shapes nor whether values sit in
the field of their dtype, so what `Signature.prepare` does not refuse can come back as plausible
nonsense (serving-behaviour, sections 1.2 and 2.2).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from aioserving import _proto
from aioserving._types import Array
from aioserving.codec import (
    MAX_MESSAGE_BYTES,
    decode_model_spec,
    decode_tensor,
    encode_predict_request,
    model_spec_field,
    plain_input_head,
)
from aioserving.dtypes import DataType, base_data_type, numpy_dtype, short_name
from aioserving.errors import DecodeError, InvalidInputError, SignatureNotFoundError, UnsupportedTypeError
from aioserving.wire import delimited

__all__ = ["DEFAULT_SIGNATURE_NAME", "ModelMetadata", "RequestEncoder", "Signature", "TensorSpec"]

#: The signature that a request without a signature name gets.
DEFAULT_SIGNATURE_NAME = "serving_default"

#: So many inputs of different dtypes and shapes, and output filters, does a `RequestEncoder` remember.
_HEADS = 1024

#: Longer output filters are encoded each time.
_FILTER = 4096

#: What TensorFlow 2 exports beside the real signatures; calling it fails.
_INTERNAL_SIGNATURE = "__saved_model_init_op"


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output of a signature.

    Its string is short: ``float32 (-1, 784)``.
    """

    #: Name in the signature: the key in requests and results.
    name: str
    #: TensorFlow's dtype, without the reference flag of old variables.
    data_type: DataType
    #: Dimensions, -1 where any size goes; None if even the rank is unknown.
    shape: tuple[int, ...] | None
    #: Name of the tensor in the graph (``"x:0"``); empty for sparse and composite tensors.
    tensor_name: str = ""
    #: ``"dense"``, ``"sparse"`` or ``"composite"``; Predict can only send and return dense ones.
    kind: str = "dense"
    #: Value that the server uses when a request leaves the input out, or None.
    default: Array | None = field(default=None, compare=False)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype; strings are ``object`` (arrays of bytes).

        Raises:
            UnsupportedTypeError: numpy needs `ml_dtypes` for it, which is not installed.
        """
        return numpy_dtype(self.data_type)

    @property
    def type_name(self) -> str:
        """The dtype as numpy spells it (``"float32"``), or ``"string"``."""
        if self.data_type == DataType.DT_STRING:
            return "string"
        try:
            return str(self.dtype)
        except UnsupportedTypeError:
            return short_name(self.data_type)

    def __str__(self) -> str:
        shape = "of any shape" if self.shape is None else str(self.shape)
        return f"{self.type_name} {shape}"

    def fits(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` is one of this spec's."""
        own = self.shape
        if own is None:
            return True
        if len(own) != len(shape):
            return False
        # A loop: on the way of every call, where a generator takes three times as long.
        for declared, size in zip(own, shape, strict=True):  # noqa: SIM110
            if declared not in (size, -1):
                return False
        return True


@dataclass(frozen=True, slots=True)
class Signature:
    """One way of calling a model."""

    #: Key in the model's signature map.
    name: str
    #: Inputs by name, in alphabetical order.
    inputs: Mapping[str, TensorSpec]
    #: Outputs by name, in alphabetical order.
    outputs: Mapping[str, TensorSpec]
    #: What the exporter says it is for; TensorFlow 2 always writes ``tensorflow/serving/predict``.
    method_name: str = ""
    #: Name of the model, for messages.
    model: str = ""

    def __repr__(self) -> str:
        inputs = ", ".join(f"{spec.name}: {spec}" for spec in self.inputs.values())
        outputs = ", ".join(f"{spec.name}: {spec}" for spec in self.outputs.values())
        return f"<Signature {self.name}({inputs}) -> ({outputs})>"

    def prepare(self, inputs: Any) -> dict[str, Array]:
        """`inputs` as arrays that this signature takes.

        Arrays of the right dtype are passed on as they are. Other arrays are cast where numpy calls it
        ``same_kind`` (float64 to float32, int64 to int32) and no value is lost to overflow. Lists and
        scalars take the signature's dtype. Inputs that have a default may be left out.

        Args:
            inputs: values by input name; or one value, if the signature has one input.

        Raises:
            InvalidInputError: a name, dtype, shape or value does not fit; the message says which.
        """
        specs = self.inputs
        # An array is asked first: whether something is a Mapping takes longer to tell.
        if type(inputs) is np.ndarray or not isinstance(inputs, Mapping):
            inputs = {self._only_input(inputs): inputs}
        prepared: dict[str, Array] = {}
        for name, value in inputs.items():
            spec = specs.get(name)
            if spec is None:
                raise self._wrong_names(inputs)
            prepared[name] = self._prepare_one(spec, value)
        if len(prepared) < len(specs) and any(
            spec.default is None for name, spec in specs.items() if name not in prepared
        ):
            raise self._wrong_names(inputs)
        return prepared

    def example_inputs(self, batch: int = 1) -> dict[str, Array]:
        """Valid inputs that mean nothing, to try a model with: zeros, and empty strings.

        Args:
            batch: size of an unknown first dimension, and of inputs of unknown rank, which get the
                shape ``(batch,)``; other unknown dimensions get size 1.

        Returns:
            An array for every dense input, those with a default too.

        Raises:
            UnsupportedTypeError: numpy needs `ml_dtypes` for a dtype, which is not installed.
        """
        if batch < 0:
            raise ValueError(f"batch must be at least 0, got {batch}")
        arrays: dict[str, Array] = {}
        for name, spec in self.inputs.items():
            if spec.kind != "dense":
                continue
            dims = (-1,) if spec.shape is None else spec.shape
            shape = tuple(size if size >= 0 else batch if axis == 0 else 1 for axis, size in enumerate(dims))
            zero = b"" if spec.data_type == DataType.DT_STRING else 0
            arrays[name] = np.full(shape, zero, spec.dtype)
        return arrays

    def check_outputs(self, names: Iterable[str]) -> None:
        """Refuse an output filter that the server would refuse.

        Raises:
            InvalidInputError: a name is no output of this signature, or is there twice.
        """
        seen: set[str] = set()
        for name in names:
            if name not in self.outputs:
                raise self._error(
                    f"output_filter names {name!r}, which is no output of {self._path}"
                    f"{_did_you_mean(name, self.outputs)}; it has {_listed(self.outputs)}"
                )
            if name in seen:
                raise self._error(f"output_filter names {name!r} twice")
            seen.add(name)

    @property
    def _path(self) -> str:
        return f"{self.model}/{self.name}" if self.model else self.name

    def _error(self, details: str) -> InvalidInputError:
        return InvalidInputError(details, model=self.model or None, method="Predict")

    def _only_input(self, value: object) -> str:
        if len(self.inputs) == 1:
            return next(iter(self.inputs))
        if self.inputs:
            needed = [name for name, spec in self.inputs.items() if spec.default is None]
            if len(needed) == 1:
                return needed[0]
            raise self._error(
                f"{self._path} takes {len(self.inputs)} inputs ({_listed(self.inputs)}), got a single "
                f"{type(value).__name__}: give a mapping from input names to values"
            )
        raise self._error(
            f"{self._path} takes no inputs, got a {type(value).__name__}: give an empty mapping"
        )

    def _wrong_names(self, inputs: Mapping[Any, Any]) -> InvalidInputError:
        extra = [name for name in inputs if name not in self.inputs]
        missing = [name for name, spec in self.inputs.items() if name not in inputs and spec.default is None]
        parts = []
        for name in extra:
            parts.append(f"unknown input {name!r}{_did_you_mean(name, missing or self.inputs)}")
        if missing:
            parts.append(f"missing {'input' if len(missing) == 1 else 'inputs'} {_listed(missing)}")
        expected = ", ".join(f"{spec.name!r}: {spec}" for spec in self.inputs.values()) or "no inputs"
        return self._error(f"{'; '.join(parts)}; {self._path} takes {expected}")

    def _prepare_one(self, spec: TensorSpec, value: Any) -> Array:
        if spec.kind != "dense":
            raise self._error(
                f"input {spec.name!r} of {self._path} is a {spec.kind} tensor, which Predict cannot take"
            )
        dtype = numpy_dtype(spec.data_type)
        if type(value) is not np.ndarray or value.dtype != dtype:
            value = self._convert(spec, dtype, value)
        elif dtype.kind == "O":
            self._check_strings(spec, value)
        if not spec.fits(value.shape):
            raise self._mismatch(spec, f"{spec.type_name} {value.shape}")
        return value  # type: ignore[no-any-return]

    def _mismatch(self, spec: TensorSpec, got: str, why: str = "") -> InvalidInputError:
        return self._error(
            f"input {spec.name!r} of {self._path} expects {spec}, got {got}{': ' + why if why else ''}"
        )

    def _check_strings(self, spec: TensorSpec, array: Array) -> None:
        for item in array.flat:
            if not isinstance(item, (bytes, str)):
                raise self._mismatch(
                    spec, f"an object array of shape {array.shape}", f"it holds {_described(item)}"
                )

    def _convert(self, spec: TensorSpec, dtype: np.dtype[Any], value: Any) -> Array:
        if value is None:
            raise self._mismatch(spec, "None")
        explicit = isinstance(value, (np.ndarray, np.generic)) or not isinstance(
            value, (bool, int, float, complex, str, bytes, list, tuple, range)
        )
        if dtype.kind == "O":
            return self._convert_strings(spec, value)
        try:
            # The natural dtype first: numpy would cut 1.7 to 1 and turn "3" into a number on its own.
            array = np.asarray(value)
        except (ValueError, TypeError, OverflowError, RuntimeError) as error:
            raise self._mismatch(spec, _described(value), _first_line(error)) from error
        if array.dtype == dtype:
            return array
        if array.dtype.kind in "OSUVMm":
            raise self._mismatch(spec, _array_described(array, value), _why_object(array))
        if explicit:
            if not _can_cast(array.dtype, dtype):
                raise self._mismatch(
                    spec,
                    f"{array.dtype} {array.shape}",
                    f"numpy calls this cast unsafe; convert it yourself with .astype({str(dtype)!r})"
                    if spec.fits(array.shape)
                    else "",
                )
        elif not (array.size == 0 or _can_cast(array.dtype, dtype) or _same_family(array.dtype, dtype)):
            raise self._mismatch(spec, _array_described(array, value), "the values would change")
        if not spec.fits(array.shape):
            raise self._mismatch(spec, f"{array.dtype} {array.shape}")
        return self._cast(spec, array, dtype)

    def _cast(self, spec: TensorSpec, array: Array, dtype: np.dtype[Any]) -> Array:
        if dtype.kind in "iu" and array.dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            low, high = int(array.min()), int(array.max())
            if low < info.min or high > info.max:
                raise self._mismatch(
                    spec,
                    f"{array.dtype} {array.shape}",
                    f"the value {low if low < info.min else high} is out of range",
                )
        try:
            with np.errstate(over="raise"):
                return array.astype(dtype)
        except (FloatingPointError, ValueError, OverflowError, TypeError) as error:
            raise self._mismatch(
                spec, f"{array.dtype} {array.shape}", f"a value is out of range ({_first_line(error)})"
            ) from error

    def _convert_strings(self, spec: TensorSpec, value: Any) -> Array:
        if isinstance(value, (str, bytes)):
            array: Array = np.empty((), dtype=object)
            array[()] = value
            return array
        if isinstance(value, (bytearray, memoryview)):
            return self._convert_strings(spec, bytes(value))
        array = value if isinstance(value, np.ndarray) else _object_array(value)
        if array.dtype.kind in "SUT":
            return array
        if array.dtype.kind != "O":
            raise self._mismatch(spec, f"{array.dtype} {array.shape}", "strings are str or bytes")
        self._check_strings(spec, array)
        return array


class RequestEncoder:
    """Turns inputs into PredictRequests to one signature of one model, and does once what repeats.

    Arrays that need no cast are looked up by input name, dtype and shape. Those that `Signature.prepare` took
    before it will take again, and they are sent behind the same bytes: what is left is to put those and the
    arrays' memory together. All other inputs go through `Signature.prepare` and `encode_predict_request`.

    Keeps what precedes the memory of 1,024 different inputs at most, and no array.

    Args:
        signature: what the inputs are checked against.
        model_spec: body of the requests' ModelSpec, from `encode_model_spec`.
    """

    __slots__ = ("_alone", "_before", "_filters", "_heads", "_model_spec", "_needed", "signature")

    def __init__(self, signature: Signature, model_spec: bytes) -> None:
        #: The signature; a model that changes its signature needs another encoder.
        self.signature = signature
        self._model_spec = model_spec
        self._before = model_spec_field(1, model_spec)
        self._needed = len(signature.inputs)
        # By name, dtype and shape: what precedes an input's memory, and the size of both.
        self._heads: dict[tuple[str, np.dtype[Any], tuple[int, ...]], tuple[bytes, int]] = {}
        # By dtype and shape: all that precedes the memory of an array that was given alone.
        self._alone: dict[tuple[np.dtype[Any], tuple[int, ...]], bytes] = {}
        # What follows the inputs, by output filter.
        self._filters: dict[tuple[str, ...], bytes] = {}

    def __repr__(self) -> str:
        return f"<RequestEncoder for {self.signature._path}, {len(self._heads)} kinds of inputs known>"

    def encode(self, inputs: Any, output_filter: Sequence[str] = ()) -> bytes:
        """A PredictRequest of `inputs`, with each tensor's data copied once.

        Args:
            inputs: values by input name; or one value, if the signature has one input
                (see `Signature.prepare`).
            output_filter: names of the outputs wanted; empty means all.

        Raises:
            InvalidInputError: the inputs or the output filter do not fit the signature.
            UnsupportedTypeError: an array holds what no TensorProto can; the message names the input.
            MessageTooLargeError: the request would be larger than `MAX_MESSAGE_BYTES`.
        """
        after = self._filters.get(tuple(output_filter)) if output_filter else b""
        if after is None:
            return self._encode(inputs, output_filter)
        if type(inputs) is np.ndarray:
            before = self._alone.get((inputs.dtype, inputs.shape))
            if before is not None and inputs.flags.c_contiguous:
                return b"".join((before, inputs, after))  # type: ignore[arg-type]  # arrays are buffers
        elif type(inputs) is dict and len(inputs) == self._needed:
            heads = self._heads
            pieces: list[Any] = [self._before]
            size = len(self._before) + len(after)
            for name, array in inputs.items():
                if type(array) is not np.ndarray:
                    break
                head = heads.get((name, array.dtype, array.shape))
                if head is None or not array.flags.c_contiguous:
                    break
                pieces.append(head[0])
                pieces.append(array)
                size += head[1]
            else:
                if size <= MAX_MESSAGE_BYTES:
                    pieces.append(after)
                    return b"".join(pieces)
        return self._encode(inputs, output_filter)

    def _encode(self, inputs: Any, output_filter: Sequence[str]) -> bytes:
        arrays = self.signature.prepare(inputs)
        if output_filter:
            self.signature.check_outputs(output_filter)
        request = encode_predict_request(arrays, model_spec=self._model_spec, output_filter=output_filter)
        if output_filter:
            after = b"".join([delimited(3, name.encode()) for name in output_filter])
            if len(after) <= _FILTER:
                _remember(self._filters, tuple(output_filter), after)
        for name, array in arrays.items():
            # Of these it is the dtype and the shape alone that `prepare` goes by: strings, of which it looks
            # at each, are never plain.
            head = plain_input_head(name, array.dtype, array.shape)
            if head is None:
                continue
            _remember(self._heads, (name, array.dtype, array.shape), head)
            if type(inputs) is np.ndarray and len(self._before) + head[1] + _FILTER <= MAX_MESSAGE_BYTES:
                _remember(self._alone, (array.dtype, array.shape), self._before + head[0])
        return request


def _remember(known: dict[Any, Any], key: object, value: object) -> None:
    if len(known) >= _HEADS and key not in known:
        known.clear()  # those in use are back after one call each
    known[key] = value


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The signatures of one version of a model; a TensorFlow model has at least none and mostly one."""

    #: Name of the model.
    name: str
    #: Version that these signatures belong to, as the server resolved it.
    version: int
    #: Signatures that can be called, by name.
    signatures: Mapping[str, Signature]
    #: The ones that TensorFlow adds for itself (``__saved_model_init_op``).
    internal_signatures: Mapping[str, Signature] = field(default_factory=dict, repr=False)
    #: The GetModelMetadataResponse as it came.
    serialized: bytes = field(default=b"", repr=False, compare=False)

    @classmethod
    def from_response(cls, data: bytes) -> ModelMetadata:
        """Read a serialized GetModelMetadataResponse.

        Raises:
            DecodeError: the bytes are none.
        """
        from google.protobuf.message import DecodeError as ProtobufDecodeError

        try:
            response: Any = _proto.message_class("tensorflow.serving.GetModelMetadataResponse").FromString(
                data
            )
            signature_map: Any = _proto.message_class("tensorflow.serving.SignatureDefMap")()
            if "signature_def" in response.metadata:
                signature_map.ParseFromString(response.metadata["signature_def"].value)
            name, version, _, _ = decode_model_spec(response.model_spec.SerializeToString())
        except ProtobufDecodeError as error:
            raise DecodeError(f"not a GetModelMetadataResponse: {error}") from error
        signatures = {
            key: _read_signature(key, signature_map.signature_def[key], name)
            for key in sorted(signature_map.signature_def)
        }
        internal = {key: signatures.pop(key) for key in tuple(signatures) if key == _INTERNAL_SIGNATURE}
        return cls(name, version or 0, signatures, internal, data)

    @property
    def proto(self) -> Any:
        """The GetModelMetadataResponse message."""
        return _proto.message_class("tensorflow.serving.GetModelMetadataResponse").FromString(self.serialized)

    def signature(self, name: str | None = None) -> Signature:
        """The signature `name`; ``serving_default`` if it is None or empty.

        Raises:
            SignatureNotFoundError: the model has none of that name.
        """
        key = name or DEFAULT_SIGNATURE_NAME
        found = self.signatures.get(key) or self.internal_signatures.get(key)
        if found is None:
            has = _listed(self.signatures) if self.signatures else "none"
            raise SignatureNotFoundError(
                f"{self.name} version {self.version} has no signature {key!r}"
                f"{_did_you_mean(key, self.signatures)}; it has {has}",
                model=self.name,
            )
        return found

    def __str__(self) -> str:
        """A table of every signature's inputs and outputs."""
        rows = [("signature", "", "name", "dtype", "shape")]
        for signature in self.signatures.values():
            for side, specs in (("input", signature.inputs), ("output", signature.outputs)):
                for spec in specs.values():
                    note = "" if spec.default is None else " = default"
                    note += "" if spec.kind == "dense" else f" ({spec.kind})"
                    shape = "any" if spec.shape is None else str(spec.shape)
                    rows.append((signature.name, side, spec.name, spec.type_name, shape + note))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return f"{self.name}, version {self.version}\n" + "\n".join(lines)


def _read_signature(name: str, definition: Any, model: str) -> Signature:
    defaults = definition.defaults if "defaults" in definition.DESCRIPTOR.fields_by_name else {}
    return Signature(
        name,
        {
            key: _read_spec(key, definition.inputs[key], defaults.get(key))
            for key in sorted(definition.inputs)
        },
        {key: _read_spec(key, definition.outputs[key], None) for key in sorted(definition.outputs)},
        definition.method_name,
        model,
    )


def _read_spec(name: str, info: Any, default: Any) -> TensorSpec:
    shape = None if info.tensor_shape.unknown_rank else tuple(dim.size for dim in info.tensor_shape.dim)
    encoding = info.WhichOneof("encoding")
    value = None
    if default is not None:
        try:
            value = decode_tensor(default.SerializeToString())
        except (DecodeError, UnsupportedTypeError):
            value = np.empty(0)  # it has a default, if not one that can be shown
    try:
        data_type = base_data_type(info.dtype)
    except UnsupportedTypeError:
        data_type = DataType.DT_INVALID
    kind = {"coo_sparse": "sparse", "composite_tensor": "composite"}.get(encoding or "", "dense")
    return TensorSpec(name, data_type, shape, info.name if encoding == "name" else "", kind, value)


def _can_cast(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    if np.can_cast(source, target, "same_kind"):
        return True
    # numpy knows nothing of the kinds of ml_dtypes' floats (kind "V") and small integers.
    return target.kind == "V" and source.kind in "fiu" and _is_small_number(target, source)


def _is_small_number(target: np.dtype[Any], source: np.dtype[Any]) -> bool:
    return target.name.startswith(("bfloat", "float")) or (
        target.name.startswith(("int", "uint")) and source.kind in "iu"
    )


def _same_family(source: np.dtype[Any], target: np.dtype[Any]) -> bool:
    """Whether Python numbers, whose natural dtype is `source`, may become `target` if they are in range."""
    return source.kind in "iu" and target.kind in "iu"


def _object_array(value: Any) -> Array:
    """`value`, nested sequences of str and bytes, as an object array of its rectangular shape."""
    array = np.asarray(value)
    if array.dtype.kind in "SU":  # numpy cuts trailing NULs of bytes; only its idea of the shape is used
        shape = array.shape
        array = np.empty(shape, dtype=object)
        array.ravel()[:] = list(_flatten(value, len(shape)))
    return array


def _flatten(value: Any, depth: int) -> Iterator[Any]:
    if depth == 0:
        yield value
    else:
        for item in value:
            yield from _flatten(item, depth - 1)


def _described(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:37] + '...'}"


def _array_described(array: Array, value: Any) -> str:
    if isinstance(value, np.ndarray) or array.ndim == 0:
        return _described(value) if array.ndim == 0 else f"{array.dtype} {array.shape}"
    kind = {"U": "str", "S": "bytes", "O": "mixed"}.get(array.dtype.kind, str(array.dtype))
    return f"{kind} values of shape {array.shape}"


def _why_object(array: Array) -> str:
    if array.dtype.kind != "O":
        return "these are no numbers"
    for item in array.flat:
        if item is None:
            return "it holds None"
        if not isinstance(item, (bool, int, float, complex, np.generic)):
            return f"it holds {_described(item)}"
    return "a value is out of range"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _did_you_mean(name: object, candidates: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(candidates), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
