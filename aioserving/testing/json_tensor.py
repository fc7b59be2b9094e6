"""JSON of TensorFlow Serving's REST interface <-> arrays, examples and results, with the server's own rules.

What a request body may look like, which numbers a tensor takes, and how answers are laid out and printed.
Texts of errors are the real server's; they quote values as it prints them. No HTTP and no models in here:
those are the business of `rest`.

Large bodies of plain numbers or strings are converted a level and an array at a time. Whatever that finds
unusual is done again value by value, in the server's order, which finds its first error.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, TypeAlias

import numpy as np

from aioserving._proto import message_class
from aioserving._types import Array
from aioserving.dtypes import DataType, numpy_dtype, short_name
from aioserving.errors import UnsupportedTypeError
from aioserving.testing.servable import array_data_type
from aioserving.testing.status import StatusCode, StatusError
from aioserving.wire import fields

__all__ = [
    "classifications",
    "error_body",
    "examples_input",
    "outputs",
    "parse_object",
    "predict_inputs",
    "predictions",
    "regressions",
    "signature_name",
]

#: What `json` makes of a document; integers are ``int`` and decimals ``float``, a distinction that counts.
Json: TypeAlias = Any

_INDENT = "    "

# ---------------------------------------------------------------- documents


def parse_object(body: bytes) -> dict[str, Json]:
    """The JSON object in a request body.

    Bytes that are not UTF-8 stay what they are, inside of strings; ``NaN``, ``Infinity`` and
    ``-Infinity`` are numbers.

    Raises:
        StatusError: INVALID_ARGUMENT, for a body that is no JSON, or JSON of another kind. The offset in
            the text may differ a little from the real server's.
    """
    if not body:
        raise _invalid("JSON Parse error: The document is empty")
    text = body.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode("utf-8", "surrogateescape"))
        raise _invalid(f"JSON Parse error: {_parse_error(text, error)} at offset: {offset}") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise _too_big() from error
    if type(document) is not dict:
        raise _invalid(f"JSON Value: {value_text(document)} Is not object")
    return document


_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Illegal trailing comma before end of object": "Missing a name for object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Extra data": "The document root must not be followed by other values.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid \\escape": "Invalid escape character in string.",
    "Invalid \\uXXXX escape": "Incorrect hex digit after \\u escape in string.",
    "Invalid control character at": "Invalid encoding in string.",
}


def _parse_error(text: str, error: json.JSONDecodeError) -> str:
    """What the real server's parser calls this error."""
    if not text.strip():
        return "The document is empty."
    if error.msg == "Expecting ',' delimiter":
        opened: list[str] = []
        for mark in re.findall(r"[][{}]", re.sub(r'"(?:[^"\\]|\\.)*"', "", text[: error.pos])):
            if mark in "[{":
                opened.append(mark)
            elif opened:
                opened.pop()
        if opened[-1:] == ["["]:
            return "Missing a comma or ] after an array element."
        return "Missing a comma or } after an object member."
    return _PARSE_ERRORS.get(error.msg.removesuffix(": "), "Invalid value.")


def signature_name(document: dict[str, Json]) -> str:
    """The signature that a request names, or an empty string.

    Raises:
        StatusError: INVALID_ARGUMENT, if the name is not a string.
    """
    name = document.get("signature_name", "")
    if type(name) is not str:
        raise _invalid(
            f"JSON Value: {value_text(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name.encode("utf-8", "replace").decode()  # text, as far as protobuf is concerned


# ---------------------------------------------------------------- Predict requests


def predict_inputs(document: dict[str, Json], inputs: Mapping[str, int]) -> tuple[dict[str, Array], bool]:
    """The tensors of a Predict request.

    Args:
        document: the request body.
        inputs: data types of the signature's inputs, by alias.

    Returns:
        Arrays by alias, and whether the request had row form (``instances``) and wants an answer so.

    Raises:
        StatusError: INVALID_ARGUMENT, or UNIMPLEMENTED for a data type that JSON cannot carry.
    """
    if "instances" in document and "inputs" in document:
        raise _invalid(
            f"JSON Value: {value_text(document)} Not formatted correctly expecting only one of 'inputs' or "
            "'instances' keys to exist "
        )
    if "instances" in document:
        instances = document["instances"]
        if type(instances) is not list:
            raise _invalid(
                f"JSON Value: {value_text(document)} Excepting 'instances' to be an list/array"  # sic
            )
        if not instances:
            raise _invalid(f"JSON Value: {value_text(document)} No values in 'instances' array")
        return _row_tensors(instances, inputs), True
    if "inputs" in document:
        return _column_tensors(document["inputs"], inputs), False
    raise _invalid("Missing 'inputs' or 'instances' key")


def _row_tensors(instances: list[Json], inputs: Mapping[str, int]) -> dict[str, Array]:
    """One tensor per input, whose first dimension counts the instances."""
    if type(instances[0]) is not dict and len(inputs) > 1:
        raise _invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors required as "
            "per tensorinfo_map"
        )
    columns = _columns(instances, inputs)
    if columns is not None:
        tensors = {}
        for name, values in columns.items():
            array = _quick(values, inputs[name])
            if array is None:
                break
            tensors[name] = array
        else:
            return tensors
    return _row_tensors_slowly(instances, inputs)


def _columns(instances: list[Json], inputs: Mapping[str, int]) -> dict[str, list[Json]] | None:
    """The values by input, where all instances are plain, or all are objects with just the right keys."""
    kinds = set(map(type, instances))
    if dict not in kinds:
        return {next(iter(sorted(inputs))): instances}
    names = inputs.keys()
    if kinds != {dict} or names == {"b64"} or any(instance.keys() != names for instance in instances):
        return None
    return {name: [instance[name] for instance in instances] for name in names}


def _row_tensors_slowly(instances: list[Json], inputs: Mapping[str, int]) -> dict[str, Array]:
    plain_name = min(inputs)
    objects = _is_element(instances[0])
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, list[Any]] = {}

    def add(name: str, item: Json) -> None:
        if name not in inputs:
            raise _invalid(f"JSON object: does not have named input: {name}")
        shape = _shape(item)
        found: list[Any] = []
        _fill(item, shape, 0, _leaf(inputs[name]), found)
        first = shapes.setdefault(name, shape)
        if math.prod(first) != len(found):
            raise _invalid(f"Expecting tensor size: {math.prod(first)} but got: {len(found)}")
        if first != shape:
            raise _invalid(f"Expecting shape {_shape_text(first)} but got: {_shape_text(shape)}")
        values.setdefault(name, []).extend(found)

    for number, instance in enumerate(instances):
        if not objects:
            if _is_element(instance):
                raise _invalid(f"Expecting value/list but got object at item {number} of input list")
            try:
                add(plain_name, instance)
            except StatusError as error:
                raise _invalid(
                    f"Failed to process element: {number} of 'instances' list. Error: {error}"
                ) from error
            continue
        if not _is_element(instance):
            raise _invalid(f"Expecting object but got list at item {number} of input list")
        for name, item in instance.items():
            try:
                add(name, item)
            except StatusError as error:
                raise _invalid(
                    f"Failed to process element: {number} key: {name} of 'instances' list. Error: {error}"
                ) from error
        if instance.keys() != inputs.keys():
            raise _invalid(
                f"Failed to process element: {number} of 'instances' list. JSON object: "
                f"{value_text(instance)} keys must be equal to: {','.join(sorted(inputs))}"
            )
    return {
        name: _array(found, inputs[name], (len(instances), *shapes[name])) for name, found in values.items()
    }


def _column_tensors(value: Json, inputs: Mapping[str, int]) -> dict[str, Array]:
    if type(value) is not dict or _is_base64(value):
        if len(inputs) > 1:
            raise _invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as "
                "per tensorinfo_map"
            )
        [name] = inputs
        return {name: _tensor(value, inputs[name])}
    tensors = {}
    for name in sorted(inputs):
        if name not in value:
            raise _invalid(f"Missing named input: {name} in 'inputs' object.")
        tensors[name] = _tensor(value[name], inputs[name])
    return tensors


def _tensor(value: Json, data_type: int) -> Array:
    array = _quick(value, data_type)
    if array is None:
        shape = _shape(value)
        found: list[Any] = []
        _fill(value, shape, 0, _leaf(data_type), found)
        array = _array(found, data_type, shape)
    return array


def _is_base64(value: Json) -> bool:
    return type(value) is dict and len(value) == 1 and type(value.get("b64")) is str


def _is_element(value: Json) -> bool:
    return type(value) is dict and not _is_base64(value)


def _shape(value: Json) -> tuple[int, ...]:
    """The shape that the first values at every level promise."""
    sizes = []
    while type(value) is list:
        sizes.append(len(value))
        value = value[0] if value else None
    return tuple(sizes)


def _shape_text(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape))}]"


def _fill(
    value: Json, shape: tuple[int, ...], level: int, leaf: Callable[[Json], Any], found: list[Any]
) -> None:
    """Collect the values of a nested list, as `leaf` takes them; finds the first thing that is wrong."""
    if type(value) is not list:
        if level != len(shape):
            raise _invalid(
                f"JSON Value: {value_text(value)} found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        found.append(leaf(value))
        return
    if level >= len(shape):
        raise _invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise _invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _fill(item, shape, level + 1, leaf, found)


# ---------------------------------------------------------------- values

#: Data type -> the integers that it takes. Narrow ones take what int32 does, and wrap.
_INTEGERS = {
    DataType.DT_INT32: range(-(2**31), 2**31),
    DataType.DT_INT16: range(-(2**31), 2**31),
    DataType.DT_INT8: range(-(2**31), 2**31),
    DataType.DT_UINT8: range(-(2**31), 2**31),
    DataType.DT_INT64: range(-(2**63), 2**63),
    DataType.DT_UINT32: range(2**32),
    DataType.DT_UINT64: range(2**64),
}

#: Data type -> the largest whole number that it takes, and the largest decimal.
_DECIMALS = {
    DataType.DT_FLOAT: (2**24 - 1, float(np.finfo(np.float32).max)),
    DataType.DT_DOUBLE: (2**53 - 1, math.inf),
}

#: Integers that the server's parser keeps as integers; others are decimals to it.
_WHOLE = range(-(2**63), 2**64)


def _is_whole(value: Json) -> bool:
    return type(value) is int and value in _WHOLE


def _is_number(value: Json) -> bool:
    return type(value) in (int, float)


def _lossless(value: float, data_type: int) -> bool:
    largest, limit = _DECIMALS[DataType(data_type)]
    if _is_whole(value):
        return abs(value) <= largest
    try:
        number = float(value)
    except OverflowError as error:
        raise _too_big() from error
    return not math.isfinite(number) or abs(number) <= limit


def _leaf(data_type: int) -> Callable[[Json], Any]:
    """What turns a single JSON value into one that the array of `data_type` takes."""

    def decimal(value: Json) -> Any:
        if not _is_number(value):
            raise _type_error(value, data_type)
        if not _lossless(value, data_type):
            raise _lossy(value, short_name(data_type))
        return value

    def integer(value: Json) -> Any:
        if type(value) is not int or value not in _INTEGERS[DataType(data_type)]:
            raise _type_error(value, data_type)
        return value

    def boolean(value: Json) -> Any:
        if type(value) is not bool:
            raise _type_error(value, data_type)
        return value

    def string(value: Json) -> bytes:
        if type(value) is dict:
            return _from_base64(value)
        if type(value) is not str:
            raise _type_error(value, data_type)
        return _octets(value)

    def unsupported(value: Json) -> Any:
        if type(value) is dict:
            raise _type_error(value, data_type)
        raise StatusError(
            StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {value_text(value)} to type: {short_name(data_type)}",
        )

    if data_type in _DECIMALS:
        return decimal
    if data_type in _INTEGERS:
        return integer
    return {DataType.DT_BOOL: boolean, DataType.DT_STRING: string}.get(DataType(data_type), unsupported)


def _quick(value: Json, data_type: int) -> Array | None:
    """The array that `value` is, or None where it takes a closer look."""
    shape = _shape(value)
    flat: list[Any] = [value]
    for size in shape:
        if set(map(type, flat)) - {list} or set(map(len, flat)) - {size}:
            return None
        flat = list(chain.from_iterable(flat))
    kinds = set(map(type, flat))
    if data_type in _DECIMALS and kinds <= {int, float}:
        try:
            numbers = np.array(flat, np.float64)
        except OverflowError:
            return None
        large = np.flatnonzero(np.abs(numbers) > _DECIMALS[DataType(data_type)][0])
        if not all(_lossless(flat[position], data_type) for position in large.tolist()):
            return None
    elif data_type in _INTEGERS and kinds <= {int}:
        taken = _INTEGERS[DataType(data_type)]
        if flat and (min(flat) < taken.start or max(flat) >= taken.stop):
            return None
    elif data_type == DataType.DT_STRING and kinds <= {str}:
        flat = [_octets(text) for text in flat]
    elif data_type != DataType.DT_BOOL or kinds - {bool}:
        return None
    return _array(flat, data_type, shape)


def _array(values: list[Any], data_type: int, shape: tuple[int, ...]) -> Array:
    """An array of values that were checked."""
    try:
        dtype = numpy_dtype(data_type)
        if data_type in _DECIMALS:
            with np.errstate(over="ignore"):
                array = np.array(values, np.float64).astype(dtype)
        elif data_type in _INTEGERS and data_type != DataType.DT_UINT64:
            array = np.array(values, np.int64).astype(dtype)
        else:
            array = np.empty(len(values), dtype)
            array[:] = values
        return array.reshape(shape)
    except UnsupportedTypeError as error:
        raise StatusError(StatusCode.UNIMPLEMENTED, str(error)) from error
    except ValueError as error:  # more dimensions than numpy has
        raise StatusError(
            StatusCode.UNIMPLEMENTED, f"this server cannot hold tensors of {len(shape)} dimensions"
        ) from error


def _too_big() -> StatusError:
    return _invalid("JSON Parse error: Number too big to be stored in double. at offset: 0")


def _octets(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise _invalid("JSON Parse error: The surrogate pair in string is invalid. at offset: 0") from error


def _from_base64(value: dict[str, Json]) -> bytes:
    if not _is_base64(value):
        raise _invalid(f"JSON Value: {value_text(value)} not formatted correctly for base64 data")
    text = "".join(value["b64"].split())
    try:
        if text.endswith("="):
            return base64.b64decode(text, validate=True)
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("Unable to base64 decode") from error


def _type_error(value: Json, data_type: int) -> StatusError:
    return _invalid(
        f"JSON Value: {value_text(value)} Type: {_type_name(value)} is not of expected type: "
        f"{short_name(data_type)}"
    )


def _lossy(value: Json, target: str) -> StatusError:
    return _invalid(f"Cannot convert JSON value: {value_text(value)} to {target} without loss of precision.")


def _type_name(value: Json) -> str:
    if type(value) is bool:
        return str(value)
    names = {type(None): "Null", dict: "Object", list: "Array", str: "String"}
    return names.get(type(value), "Number")


def value_text(value: Json) -> str:
    """A value as error texts quote it: indented, and decimals as short as a float allows."""
    if type(value) is float or (type(value) is int and value not in _WHOLE):
        number = _as_double(value)
        as_float = abs(number) <= float(np.finfo(np.float32).max)
        return _decimals(np.array([number], np.float32 if as_float else np.float64))[0]
    return _pretty(value, 0)


def _as_double(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _pretty(value: Json, depth: int) -> str:
    inner, outer = f"\n{_INDENT * (depth + 1)}", f"\n{_INDENT * depth}"
    if type(value) is dict:
        items = [f"{_string_text(key)}: {_pretty(item, depth + 1)}" for key, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{outer}}}" if items else "{}"
    if type(value) is list:
        items = [_pretty(item, depth + 1) for item in value]
        return f"[{inner}{f',{inner}'.join(items)}{outer}]" if items else "[]"
    if type(value) is float or (type(value) is int and value not in _WHOLE):
        return _shortest(_as_double(value))
    if type(value) is int:
        return str(value)
    return (
        {None: "null", True: "true", False: "false"}[value] if type(value) is not str else _string_text(value)
    )


def _shortest(value: float) -> str:
    """The fewest digits that mean `value`, with an exponent only where it is very large or small."""
    if not math.isfinite(value):
        return json.dumps(value)
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    text = "".join(map(str, digits)).rstrip("0") or "0"
    exponent += len(digits) - len(text) if text != "0" else -exponent
    point = len(text) + exponent
    if 0 < point <= 21:
        whole, rest = text[:point].ljust(point, "0"), text[point:]
        shown = f"{whole}.{rest or '0'}"
    elif -6 < point <= 0:
        shown = f"0.{'0' * -point}{text}"
    else:
        shown = f"{text[0]}{'.' + text[1:] if len(text) > 1 else ''}e{point - 1}"
    return ("-" if sign else "") + shown


# ---------------------------------------------------------------- Classify and Regress requests


def examples_input(document: dict[str, Json]) -> Any:
    """The `tensorflow.serving.Input` of a Classify or Regress request.

    Whole numbers and booleans become int64 features, decimals float, strings and base64 bytes.

    Raises:
        StatusError: INVALID_ARGUMENT, for anything but objects of values or flat lists of one kind.
    """
    result: Any = message_class("tensorflow.serving.Input")()
    has_context = "context" in document
    if has_context:
        result.example_list_with_context.context.SetInParent()
        _fill_example(document["context"], result.example_list_with_context.context)
    if "examples" not in document:
        raise _invalid(
            f"JSON Value: {value_text(document)} When method is classify, key 'examples' is expected and "
            "was not found"
        )
    examples = document["examples"]
    if type(examples) is not list:
        raise _invalid(f"JSON Value: {value_text(document)} Expecting 'examples' value to be an list/array")
    if not examples:
        raise _invalid(f"JSON Value: {value_text(document)} 'examples' value is an empty array")
    target = result.example_list_with_context if has_context else result.example_list
    for example in examples:
        _fill_example(example, target.examples.add())
    return result


def _fill_example(value: Json, example: Any) -> None:
    if type(value) is not dict:
        raise _invalid(f"Example must be JSON object but got JSON {_type_name(value)}")
    for name, content in value.items():
        kind, values = "", []
        for item in content if type(content) is list else [content]:
            found, converted = _feature_value(item, name)
            if kind and found != kind:
                raise _invalid(
                    f"Unexpected element type in feature: {name} expecting type: {kind.removesuffix('_list')}"
                )
            kind = found
            values.append(converted)
        _octets(name)  # no text to protobuf otherwise
        feature = example.features.feature[name.encode("utf-8", "replace").decode()]
        if kind:
            getattr(feature, kind).value.extend(values)


def _feature_value(value: Json, name: str) -> tuple[str, Any]:
    """Which list of a Feature a value goes to, and as what."""
    if type(value) is bool:
        return "int64_list", int(value)
    if type(value) is str:
        return "bytes_list", _octets(value)
    if _is_base64(value):
        return "bytes_list", _from_base64(value)
    if not _is_number(value):
        raise _invalid(f"Feature: {name} has element with unexpected JSON type: {_type_name(value)}")
    if _is_whole(value):
        if value >= 2**63:
            raise _invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
        return "int64_list", value
    if not _lossless(value, DataType.DT_FLOAT):
        raise _lossy(value, "float")
    return "float_list", float(value)


# ---------------------------------------------------------------- answers


def predictions(tensors: Mapping[str, Array]) -> bytes:
    """The answer to a Predict in row form: a list with a value (or an object) per row.

    Raises:
        StatusError: INVALID_ARGUMENT, if the outputs are not batches of one size, or of a type that JSON
            cannot carry.
    """
    size: int | None = None
    for name, array in tensors.items():
        if not array.ndim:
            raise _invalid(f"Tensor name: {name} has no shape information ")
        if size is not None and len(array) != size:
            raise _invalid(f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}")
        size = len(array)
    if not size:
        return b'{\n    "predictions": []\n}'
    named = len(tensors) > 1
    columns = {
        name: _nested(_texts(name, array, 2 + named + array.ndim - 1), array.shape[1:], size)
        for name, array in tensors.items()
    }
    if named:
        keys = [f"\n{_INDENT * 3}{_string_text(name)}: " for name in columns]
        rows = [
            f"\n{_INDENT * 2}{{" + ",".join(map("".join, zip(keys, row, strict=True))) + f"\n{_INDENT * 2}}}"
            for row in zip(*columns.values(), strict=True)
        ]
        body = ",".join(rows)
    else:
        [texts] = columns.values()
        body = ", ".join(texts)
    return _encoded(f'{{\n    "predictions": [{body}\n    ]\n}}')


def outputs(tensors: Mapping[str, Array]) -> bytes:
    """The answer to a Predict in column form: a tensor, or an object of tensors.

    Raises:
        StatusError: INVALID_ARGUMENT, for a type that JSON cannot carry.
    """
    depth = 1 + (len(tensors) > 1)
    texts = {
        name: _nested(_texts(name, array, depth + array.ndim), array.shape, 1, depth)[0]
        for name, array in tensors.items()
    }
    if len(tensors) == 1:
        [body] = texts.values()
    else:
        body = ",".join(f"\n{_INDENT * 2}{_string_text(name)}: {text}" for name, text in texts.items())
        body = f"{{{body}\n{_INDENT}}}"
    return _encoded(f'{{\n    "outputs": {body}\n}}')


def classifications(response: bytes) -> bytes:
    """The answer that a serialized ClassificationResponse becomes: per example, pairs of label and score."""
    examples = []
    for result in _parts(response, 1):  # ClassificationResult result = 1
        for classes in _parts(result, 1):  # Classifications classifications = 1
            # Class classes = 1 {label = 1, score = 2}
            pairs = [(_parts(entry, 1), _parts(entry, 2)) for entry in _parts(classes, 1)]
            scores = _decimals(np.array([_float(score) for _, score in pairs], np.float32))
            labels = [_bytes_text(label[-1] if label else b"") for label, _ in pairs]
            shown = [f"[{label}, {score}]" for label, score in zip(labels, scores, strict=True)]
            examples.append(f"[{', '.join(shown)}]")
    return _encoded(f'{{\n    "results": [{", ".join(examples)}\n    ]\n}}')


def regressions(response: bytes) -> bytes:
    """The answer that a serialized RegressionResponse becomes: a number per example."""
    values = [
        _float(_parts(regression, 1)) for result in _parts(response, 1) for regression in _parts(result, 1)
    ]
    return _encoded(f'{{\n    "results": [{", ".join(_decimals(np.array(values, np.float32)))}]\n}}')


def error_body(message: str) -> bytes:
    """The body of an answer that is an error."""
    return _encoded(f'{{\n    "error": {_string_text(message)}\n}}')


def _parts(data: bytes, number: int) -> list[bytes]:
    """The payloads of field `number` of a message; a label is whatever bytes the model made."""
    return [data[start:stop] for tag, start, stop in fields(data, 0, len(data)) if tag >> 3 == number]


def _float(payloads: list[bytes]) -> float:
    return float(np.frombuffer(payloads[-1], "<f4")[0]) if payloads else 0.0


def _texts(name: str, array: Array, depth: int) -> list[str]:
    """Every element as JSON; `depth` is of what stands around an element."""
    if not array.size:
        return []
    data_type = array_data_type(array)
    flat = array.reshape(-1)
    if data_type in _DECIMALS:
        return _decimals(flat)
    if data_type in _INTEGERS:
        return list(map(str, flat.tolist()))
    if data_type == DataType.DT_BOOL:
        return ["true" if value else "false" for value in flat.tolist()]
    if data_type != DataType.DT_STRING:
        raise _invalid(f"Failed to write JSON value for tensor type: {short_name(data_type)}")
    if not name.endswith("_bytes"):
        return [_bytes_text(value) for value in flat.tolist()]
    inner, outer = f"\n{_INDENT * (depth + 1)}", f"\n{_INDENT * depth}"
    return [f'{{{inner}"b64": "{base64.b64encode(value).decode()}"{outer}}}' for value in flat.tolist()]


def _nested(texts: list[str], shape: Sequence[int], count: int, depth: int | None = None) -> list[str]:
    """`count` nested lists of `shape` out of the texts of all their elements.

    On one line each; or, with the depth of what stands around, a line per element.
    """
    for axis in reversed(range(len(shape))):
        size = shape[axis]
        if not size:
            texts = ["[]"] * (count * math.prod(shape[:axis]))
            continue
        first = last = ""
        separator = ", "
        if depth is not None:
            first, last = f"\n{_INDENT * (depth + axis + 1)}", f"\n{_INDENT * (depth + axis)}"
            separator = f",{first}"
        texts = [
            f"[{first}{separator.join(texts[start : start + size])}{last}]"
            for start in range(0, len(texts), size)
        ]
    return texts


def _decimals(values: Array) -> list[str]:
    """Floats in six digits where these mean the same value, else in as many as surely do.

    There is a point or an exponent in each of them, and NaN and infinities have JavaScript's names.
    """
    numbers = values.tolist()
    texts = list(map("%.6g".__mod__, numbers))
    with np.errstate(over="ignore"):
        again = np.array(list(map(float, texts)), np.float64).astype(values.dtype)
    exact = "%.9g" if values.dtype.itemsize == 4 else "%.17g"
    for position in np.flatnonzero(again != values).tolist():
        texts[position] = exact % numbers[position]
    texts = [text if "." in text or "e" in text else f"{text}.0" for text in texts]
    for position in np.flatnonzero(~np.isfinite(values)).tolist():
        texts[position] = json.dumps(numbers[position])
    return texts


def _string_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _bytes_text(data: bytes | str) -> str:
    return _string_text(data if isinstance(data, str) else data.decode("utf-8", "surrogateescape"))


def _encoded(text: str) -> bytes:
    # What came as no UTF-8 leaves so; half a surrogate pair, which cannot be written, leaves as "?".
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def _invalid(message: str) -> StatusError:
    return StatusError(StatusCode.INVALID_ARGUMENT, message)
