"""Message views: every one of them from its DESCRIPTOR, and what is particular to each.

The first part knows no message by name. It fills messages with protobuf's own API and holds the views
to that; what a view should read or take is worked out here from the DESCRIPTOR, not asked of the view.
"""

from __future__ import annotations

import copy
import json
import math
import pathlib
import pickle
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from google.protobuf import text_format
from google.protobuf.internal import api_implementation
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import messages
from aioserving.codec import encode_tensor
from aioserving.errors import DecodeError, ServingError, UnsupportedTypeError
from aioserving.messages import (
    AnyMessage,
    Class,
    ClassificationResponse,
    Classifications,
    Code,
    DataType,
    DictView,
    Example,
    ExampleList,
    Feature,
    Features,
    Field,
    GetModelMetadataResponse,
    GetModelStatusResponse,
    Input,
    ListView,
    LoggingConfig,
    Map,
    ModelConfig,
    ModelConfigList,
    ModelServerConfig,
    ModelSpec,
    ModelVersionStatus,
    MultiInferenceRequest,
    MultiInferenceResponse,
    PredictRequest,
    PredictResponse,
    RegressionResponse,
    ReloadConfigRequest,
    Repeated,
    SamplingConfig,
    ServableVersionPolicy,
    SignatureDef,
    SignatureDefMap,
    Status,
    StructuredValue,
    TensorInfo,
    TensorShapeProto,
    View,
)

Latest, Specific = ServableVersionPolicy.Latest, ServableVersionPolicy.Specific
State = ModelVersionStatus.State


def subclasses(base: type[View]) -> Iterator[type[View]]:
    for cls in base.__subclasses__():
        yield cls
        yield from subclasses(cls)


#: What tensorflow-serving-api 2.19, the oldest that is allowed, lacks; the newest has all of it.
NEWER_MESSAGES = {
    "PerTaskSamplingConfig",
    "PlatformConfig",
    "PlatformConfigMap",
    "PredictRequest.RequestOptions.Handshake",
}
NEWER_FIELDS = {
    "PredictRequest.RequestOptions": {"return_all_stoptokens", "max_cache_length", "handshake"},
    "SamplingConfig": {"per_task_sampling_configs"},
}


def installed(view_class: type[View]) -> bool:
    try:
        view_class()
    except ImportError:
        return False
    return True


DECLARED = sorted(
    {cls for cls in subclasses(View) if cls.__module__.startswith("aioserving") and cls._message_name},
    key=lambda cls: cls.__qualname__,
)
ALL = [cls for cls in DECLARED if installed(cls)]
NOT_INSTALLED = {cls.__qualname__ for cls in DECLARED} - {cls.__qualname__ for cls in ALL}
every_view = pytest.mark.parametrize("view_class", ALL, ids=lambda cls: cls.__qualname__)

INTEGERS = {3: 64, 4: -64, 5: 32, 13: -32, 15: 32, 16: 64, 17: 32, 18: 64, 7: -32, 6: -64}
TENSOR = np.array([[1.5, -2.0]], np.float32)


def descriptor_of(view_class: type[View]) -> Any:
    return view_class().pb.DESCRIPTOR


def fields_of(view_class: type[View]) -> list[Any]:
    return list(descriptor_of(view_class).fields)


def is_repeated(field: Any) -> bool:
    found = getattr(field, "is_repeated", None)
    return bool(field.label == field.LABEL_REPEATED if found is None else found)


def is_map(field: Any) -> bool:
    return is_repeated(field) and field.message_type is not None and field.message_type.GetOptions().map_entry


def scalar_sample(field: Any) -> Any:
    """A value that is not the field's default."""
    if field.full_name == "google.protobuf.Any.type_url":
        return "type.googleapis.com/tensorflow.serving.ModelSpec"
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.type in INTEGERS:
        return 2 ** (abs(INTEGERS[field.type]) - 1) - 1
    return {1: 0.1, 2: 0.25, 8: True, 9: "näme", 12: b"\x00\xff"}[field.type]


def fill(pb: Any, depth: int = 3, only: str | None = None) -> Any:
    """Set every field of a message (or one of them), of a oneof the last one, with protobuf's own API."""
    if pb.DESCRIPTOR.full_name == "tensorflow.TensorProto":
        pb.ParseFromString(encode_tensor(TENSOR))
        return pb
    if pb.DESCRIPTOR.full_name == "google.protobuf.Any" and only is None:
        pb.Pack(ModelSpec(name="packed").pb)
        return pb
    for field in pb.DESCRIPTOR.fields:
        if only not in (None, field.name):
            continue
        value = getattr(pb, field.name)
        if is_map(field):
            inner = field.message_type.fields_by_name["value"]
            if inner.message_type is None:
                value["kéy"] = scalar_sample(inner)
            elif depth:
                fill(value["kéy"], depth - 1)
        elif is_repeated(field):
            if field.message_type is None:
                value.extend([scalar_sample(field)] * 2)
            elif depth:
                fill(value.add(), depth - 1)
                value.add()
        elif field.message_type is not None:
            if depth:
                value.SetInParent()
                fill(value, depth - 1)
        else:
            setattr(pb, field.name, scalar_sample(field))
    return pb


def filled(view_class: type[View]) -> View:
    view = view_class()
    fill(view.pb)
    return view_class.wrap(view.pb)


def values_of(view: View) -> dict[str, Any]:
    """What each field that is set reads as."""
    return {field.name: getattr(view, field.name) for field, _ in view.pb.ListFields()}


def identical(left: Any, right: Any) -> bool:
    """Equality that also compares arrays, in any depth of lists and dicts."""
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(left, right) and left.dtype == right.dtype)
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return bool(left == right)


# ---------------------------------------------------------------------------------- every view: declaration


def test_every_message_of_the_package_is_exported() -> None:
    """A view is found under its own name, in the package or as an attribute of the view it is nested in."""
    for cls in DECLARED:
        found: Any = messages
        for part in cls.__qualname__.split("."):
            found = getattr(found, part)
        assert found is cls
        assert cls.__qualname__.split(".")[0] in messages.__all__


def test_the_exports_are_all_there() -> None:
    """Every name in ``__all__`` exists, sorted, and says it comes from the package."""
    assert messages.__all__ == sorted(messages.__all__)
    for name in messages.__all__:
        assert getattr(messages, name).__module__ in {
            "aioserving",
            "aioserving.messages",
            "aioserving.dtypes",
        }


def test_the_views_that_a_client_needs_are_there() -> None:
    """Each message of the protocol has exactly one view, and none is missing but in older installations."""
    assert NOT_INSTALLED <= NEWER_MESSAGES
    names = [cls._message_name for cls in DECLARED]
    assert {descriptor_of(cls).full_name for cls in ALL} <= set(names)
    assert len(names) == len(set(names))
    serving = (
        "ModelSpec PredictRequest PredictResponse ClassificationRequest ClassificationResponse "
        "ClassificationResult Classifications Class RegressionRequest RegressionResponse RegressionResult "
        "Regression MultiInferenceRequest MultiInferenceResponse InferenceTask InferenceResult "
        "GetModelMetadataRequest GetModelMetadataResponse SignatureDefMap GetModelStatusRequest "
        "GetModelStatusResponse ModelVersionStatus StatusProto ReloadConfigRequest ReloadConfigResponse "
        "Input ExampleList ExampleListWithContext ModelServerConfig ModelConfig ModelConfigList "
        "FileSystemStoragePathSourceConfig.ServableVersionPolicy "
        "FileSystemStoragePathSourceConfig.ServableVersionPolicy.Latest LoggingConfig SamplingConfig "
        "LogCollectorConfig PlatformConfig PlatformConfigMap"
    )
    assert {f"tensorflow.serving.{name}" for name in serving.split()} <= set(names)
    core = "Example Features Feature BytesList FloatList Int64List SignatureDef TensorInfo TensorShapeProto"
    assert {f"tensorflow.{name}" for name in core.split()} <= set(names)


@every_view
def test_declared_fields_are_the_fields_of_the_descriptor(view_class: type[View]) -> None:
    """Every declared field exists in the message, and every field of the message is declared."""
    declared = {name for name, value in vars(view_class).items() if isinstance(value, Field)}
    known = set(descriptor_of(view_class).fields_by_name)
    assert known <= declared
    assert declared - known <= NEWER_FIELDS.get(view_class.__qualname__, set())
    assert bool(declared - known) <= bool(NOT_INSTALLED)
    annotated = {name for name in view_class.__annotations__ if not name.startswith("_")}
    assert annotated == declared
    for name in known:
        field: Any = getattr(view_class, name)
        assert field.name == name
        assert field.__doc__
        assert field.__doc__.endswith(".")


def expected_annotation(field: Any) -> str:
    """A pattern for the annotation that tells type checkers what a field is."""
    wrapped = {"google.protobuf.Int64Value": "int", f"{Latest._message_name}": "int"}
    python = {1: "float", 2: "float", 8: "bool", 9: "str", 12: "bytes"}.get(field.type, "int")
    if is_map(field):
        value = field.message_type.fields_by_name["value"]
        if value.message_type is None:
            return "MapOf\\[int\\]"
        name = value.message_type.name
        return "Tensors" if name == "TensorProto" else rf"MapTo(Or)?\[{name.replace('Any', 'AnyMessage')}\b.*"
    if is_repeated(field):
        name = field.message_type and field.message_type.name
        return rf"Many\[{name}\]|ManyOr\[{name},.*" if name else rf"Items\[{python}\]"
    if field.enum_type is not None:
        return rf"{'Maybe' * field.has_presence}EnumOf\[{field.enum_type.name}\]"
    if field.message_type is None:
        if field.has_presence:
            return rf"Maybe\[{python}\]"
        return rf"Scalar\[{python}\]|Field\[{python}, {python} \| os.PathLike\[str\]\]"
    if field.message_type.full_name in wrapped:
        return rf"Wrapped\[{wrapped[field.message_type.full_name]}\]"
    if not field.message_type.fields:
        return "Flag"
    if field.message_type.name == "TensorProto":
        return "Tensor"
    name = field.message_type.name
    return rf"Sub(Or)?\[{ {'Any': 'AnyMessage', 'StatusProto': 'Status'}.get(name, name) }\b.*"


@every_view
def test_annotations_say_what_the_descriptor_says(view_class: type[View]) -> None:
    """The types that editors and mypy see are those of the message's fields."""
    for field in fields_of(view_class):
        annotation = view_class.__annotations__[field.name]
        assert re.fullmatch(expected_annotation(field), annotation), (field.full_name, annotation)


def test_enums_have_the_names_and_numbers_of_the_descriptors() -> None:
    """Each Python enum agrees with the protobuf enum of the fields that read as it."""
    seen = set()
    for view_class in ALL:
        for field in fields_of(view_class):
            if field.enum_type is None:
                continue
            value = values_of(view_class.wrap(fill(view_class().pb, only=field.name)))[field.name]
            numbers = {item.name: item.number for item in field.enum_type.values}
            if type(value) is DataType:
                numbers = {name: number for name, number in numbers.items() if number <= 100}
            members = {member.name: int(member) for member in type(value)}
            assert numbers.items() <= members.items()
            assert members == numbers or NOT_INSTALLED
            seen.add(type(value).__name__)
    assert seen == {
        "Code", "DataType", "DeterministicMode", "ModelType", "RequestState", "State", "TypeSpecClass",
    }  # fmt: skip
    bits = descriptor_of(SamplingConfig).enum_types_by_name["Attributes"].values
    assert {member.name: int(member) for member in SamplingConfig.Attributes} == {
        item.name: item.number for item in bits
    }


@every_view
def test_a_view_describes_itself(view_class: type[View]) -> None:
    """``dir``, the signature and the docstring offer the fields to those who type."""
    import inspect

    names = set(descriptor_of(view_class).fields_by_name)
    assert names <= set(dir(view_class()))
    assert {"pb", "to_text", "copy"} <= set(dir(view_class()))
    assert not [name for name in dir(view_class()) if name.startswith("_")]
    offered = set(inspect.signature(view_class).parameters) - {"pb"}
    assert names <= offered <= names | NEWER_FIELDS.get(view_class.__qualname__, set())
    assert view_class.__doc__


# ------------------------------------------------------------------------------------- every view: fields


@every_view
def test_fields_read_what_the_message_holds(view_class: type[View]) -> None:
    """A field set with protobuf's API reads, through the view, as the Python value for it."""
    for field in fields_of(view_class):
        view = view_class.wrap(fill(view_class().pb, only=field.name))
        value, raw = getattr(view, field.name), getattr(view.pb, field.name)
        assert view.has(field.name)
        if is_map(field):
            assert isinstance(value, Map)
            assert isinstance(value, MutableMapping)
            assert value.pb is raw
            assert list(value) == ["kéy"]
            check_item(field.message_type.fields_by_name["value"], value["kéy"], raw["kéy"])
        elif is_repeated(field):
            assert isinstance(value, Repeated)
            assert isinstance(value, MutableSequence)
            assert value.pb is raw
            assert len(value) == 2
            check_item(field, value[0], raw[0])
        else:
            check_item(field, value, raw)


def check_item(field: Any, value: Any, raw: Any) -> None:
    if field.enum_type is not None:
        assert value.name == field.enum_type.values_by_number[raw].name.removesuffix("_REF") or (
            value.name == field.enum_type.values_by_number[raw].name
        )
        assert value == raw
    elif field.message_type is None:
        assert type(value) is type(raw)
        assert value == raw
    elif isinstance(value, View):
        assert value.pb is raw
    elif isinstance(value, np.ndarray):
        assert identical(value, TENSOR)
        assert not value.flags.writeable
    elif isinstance(value, bool):
        assert value
        assert not field.message_type.fields
    else:
        (inner,) = field.message_type.fields
        assert value == getattr(raw, inner.name)


@every_view
def test_fields_set_what_they_read(view_class: type[View]) -> None:
    """Assigning what a field reads makes the message that protobuf's API makes; None or del clears it."""
    for field in fields_of(view_class):
        if view_class._readonly:
            continue
        source = view_class.wrap(fill(view_class().pb, only=field.name))
        value = getattr(source, field.name)
        target = view_class()
        setattr(target, field.name, value)
        assert target.pb == source.pb
        assert target == source
        # Set again over what is there: replaced, not merged.
        setattr(target, field.name, value)
        assert target.pb == source.pb
        assert view_class(**{field.name: value}) == source
        assert view_class({field.name: value}) == source
        delattr(target, field.name)
        assert not target.has(field.name)
        assert target.byte_size() == 0
        setattr(target, field.name, value)
        target.clear(field.name)
        assert target.byte_size() == 0
        if field.has_presence:
            setattr(target, field.name, value)
            setattr(target, field.name, None)
            assert not target.has(field.name)
            assert target.byte_size() == 0


@every_view
def test_fields_take_the_raw_value(view_class: type[View]) -> None:
    """Where a view, a list, a dict or an array may be given, protobuf's own object may be too."""
    for field in fields_of(view_class):
        if view_class._readonly:
            continue
        source = fill(view_class().pb, only=field.name)
        target = view_class()
        setattr(target, field.name, getattr(source, field.name))
        assert target.pb == source


@every_view
def test_reading_changes_nothing(view_class: type[View]) -> None:
    """Reading fields that are not set leaves them unset, in any depth."""

    def read_all(view: View, depth: int) -> None:
        for field in view.pb.DESCRIPTOR.fields:
            value = getattr(view, field.name)
            assert not view.has(field.name)
            if isinstance(value, View) and depth:
                read_all(value, depth - 1)
            elif isinstance(value, (Map, Repeated)):
                assert len(value) == 0
                assert list(value) == []
            elif field.has_presence and not isinstance(value, (View, bool)):
                assert value is None

    view = view_class()
    read_all(view, 4)
    assert view.byte_size() == 0
    assert view.pb.ListFields() == []


@every_view
def test_a_wrong_type_is_refused(view_class: type[View]) -> None:
    """An object that no field can hold is a TypeError that names the field; nothing changes."""
    for field in fields_of(view_class):
        label = f"{view_class.__qualname__}.{field.name}"
        is_tensor = field.message_type is not None and field.message_type.name == "TensorProto"
        for wrong in (object(), [object()], {"kéy": object()}, *[1j] * (not is_tensor)):
            before = filled(view_class)
            with pytest.raises(TypeError) as raised:
                view_class(**{field.name: wrong})
            assert re.search(
                r"expected .* got |has no field|must have one type|an object array may hold",
                str(raised.value),
            )
            if not view_class._readonly:
                with pytest.raises(TypeError):
                    setattr(before, field.name, wrong)
                assert before == filled(view_class)
        with pytest.raises(TypeError, match=re.escape(label)):
            view_class(**{field.name: object()})


@every_view
def test_a_value_out_of_range_is_refused_and_changes_nothing(view_class: type[View]) -> None:
    """Numbers beyond the field's type, unknown enum numbers and broken Unicode are ValueErrors."""
    for field in fields_of(view_class):
        if field.message_type is not None or is_repeated(field):
            continue
        wrong: list[Any] = []
        if field.enum_type is not None:
            wrong = [12345, "NO_SUCH_NAME"]
        elif field.type in INTEGERS:
            bits = INTEGERS[field.type]
            wrong = (
                [2 ** abs(bits), -1, 10**30]
                if bits < 0
                else [2 ** (bits - 1), -(2 ** (bits - 1)) - 1, 10**30]
            )
        elif field.type == 2:
            wrong = [1e39, -1e39, 10**400]
        elif field.type == 9:
            wrong = ["\ud800"]
        for value in wrong:
            label = re.escape(f"{view_class.__qualname__}.{field.name}")
            with pytest.raises(ValueError, match=label):
                view_class(**{field.name: value})
            if not view_class._readonly:
                view = view_class()
                with pytest.raises(ValueError, match=label):
                    setattr(view, field.name, value)
                assert view.pb.ListFields() == []


@every_view
def test_an_unknown_field_is_refused_with_the_near_name(view_class: type[View]) -> None:
    """A misspelt name is an AttributeError when set and a TypeError to a constructor, with the near name."""
    for field in fields_of(view_class):
        misspelt = field.name + "x"
        with pytest.raises(TypeError, match=f"{misspelt}.*did you mean '{field.name}'"):
            view_class(**{misspelt: 1})
        with pytest.raises(AttributeError, match=f"{misspelt}.*did you mean '{field.name}'"):
            setattr(view_class(), misspelt, 1)
        with pytest.raises(AttributeError, match=misspelt):
            view_class().has(misspelt)
        if not view_class._readonly:
            with pytest.raises(AttributeError, match=misspelt):
                view_class().clear(misspelt)
        with pytest.raises(TypeError, match=misspelt):
            view_class().copy(**{misspelt: 1})
    with pytest.raises(AttributeError, match="zzzzzz"):
        setattr(view_class(), "zzzzzz", 1)  # noqa: B010
    with pytest.raises(AttributeError, match="zzzzzz"):
        getattr(view_class(), "zzzzzz")  # noqa: B009


@every_view
def test_fields_of_a_oneof_exclude_each_other(view_class: type[View]) -> None:
    """Setting one field of a oneof clears the others; giving two to a constructor is a ValueError."""
    for oneof in descriptor_of(view_class).oneofs:
        if len(oneof.fields) < 2:
            continue
        view = view_class()
        assert view.which(oneof.name) is None
        for field in oneof.fields:
            value = getattr(view_class.wrap(fill(view_class().pb, only=field.name)), field.name)
            if view_class._readonly:
                continue
            setattr(view, field.name, value)
            assert view.which(oneof.name) == field.name
            assert [item.name for item in oneof.fields if view.has(item.name)] == [field.name]
        first, second, *_ = (
            (field.name, getattr(view_class.wrap(fill(view_class().pb, only=field.name)), field.name))
            for field in oneof.fields
        )
        for pair in (dict([first, second]), dict([second, first])):
            with pytest.raises(ValueError, match=f"exclude each other.*{oneof.name}"):
                view_class(**pair)
        assert view_class(**dict([first, (second[0], None)])).which(oneof.name) == first[0]
    with pytest.raises(AttributeError, match="no oneof 'nothing'"):
        view_class().which("nothing")


@every_view
def test_a_read_only_view_refuses_every_change(view_class: type[View]) -> None:
    """What is reached through a read-only view is read-only as well; the message itself is not."""
    view = view_class.wrap(filled(view_class).pb, readonly=True)
    before = view.to_bytes(deterministic=True)

    def refuse(view: View, depth: int) -> None:
        for field, _ in view.pb.ListFields():
            value = getattr(view, field.name)
            with pytest.raises(AttributeError, match="read-only"):
                setattr(view, field.name, value)
            with pytest.raises(AttributeError, match="read-only"):
                delattr(view, field.name)
            for change in changes(value):
                with pytest.raises(TypeError, match="read-only"):
                    change()
            inner = [value] if isinstance(value, View) else []
            if isinstance(value, (Map, Repeated)):
                inner = [
                    item
                    for item in (value.values() if isinstance(value, Map) else value)
                    if isinstance(item, View)
                ]
            for item in inner * bool(depth):
                refuse(item, depth - 1)
            with pytest.raises(TypeError, match="read-only"):
                view.clear(field.name)
        for change in (view.clear, lambda: view.merge(view)):
            with pytest.raises(TypeError, match="read-only"):
                change()

    refuse(view, 3)
    assert view.to_bytes(deterministic=True) == before
    # A copy stands alone, and the message can always be changed.
    if not view_class._readonly:
        name = next(iter(descriptor_of(view_class).fields_by_name), None)
        if name is not None:
            delattr(view.copy(), name)
    view.pb.Clear()
    assert view.byte_size() == 0


def changes(value: Any) -> list[Callable[[], Any]]:
    """Everything that changes a list or a dict."""
    if isinstance(value, (Map, DictView)):
        key = next(iter(value), None)
        of_the_first = [
            lambda: value.__setitem__(key, value[key]),
            lambda: value.__delitem__(key),
            lambda: value.pop(key),
            value.popitem,
        ]
        return [
            *of_the_first[: len(value) * 4],
            value.clear,
            lambda: value.update({}),
            lambda: value.setdefault("new", {}),
            lambda: value.__ior__({}),
        ]
    if isinstance(value, (Repeated, ListView)):
        of_the_first = [
            lambda: value.append(value[0]),
            lambda: value.insert(0, value[0]),
            lambda: value.__setitem__(0, value[0]),
            lambda: value.__delitem__(0),
        ]
        return [
            *of_the_first[: len(value) * 4],
            lambda: value.extend([]),
            lambda: value.__iadd__([]),
            lambda: value.__setitem__(slice(0, 1), []),
            lambda: value.__delitem__(slice(0, 1)),
            value.clear,
            value.reverse,
            value.pop,
            value.add,
            lambda: value.sort(key=str),
        ]
    return []


# ---------------------------------------------------------------------------- every view: what all of them do


@every_view
def test_a_view_holds_the_message_itself(view_class: type[View]) -> None:
    """Constructor and `wrap` hold the message that they are given, and a view of it; neither is copied."""
    pb = fill(view_class().pb)
    for view in (
        view_class(pb),
        view_class(pb=pb),
        view_class.wrap(pb),
        View.wrap(pb),
        view_class(view_class(pb)),
    ):
        assert type(view) is view_class
        assert view.pb is pb
    assert view_class.wrap(view_class.wrap(pb)).pb is pb
    with pytest.raises(AttributeError):
        view_class(pb).pb = pb
    if pb.ListFields():
        with pytest.raises(TypeError, match="not both"):
            view_class(pb, **{pb.ListFields()[0][0].name: None})


@every_view
def test_another_message_is_refused(view_class: type[View]) -> None:
    """A message of another type is a TypeError that names both types."""
    other = Status() if view_class is ModelSpec else ModelSpec(name="x")
    name = other.pb.DESCRIPTOR.full_name
    for wrong in (other, other.pb):
        with pytest.raises(TypeError, match=f"expected a .*{name}"):
            view_class.wrap(wrong)
        if view_class not in (AnyMessage, ModelServerConfig):
            with pytest.raises(
                TypeError, match=f"expected a .*{name}|expected a .*ModelSpec|expected a .*Status"
            ):
                view_class(wrong)
    for nothing in ("text", 3, b"bytes"):
        if view_class is not Feature:
            with pytest.raises(TypeError, match="expected"):
                view_class(nothing)
        with pytest.raises(TypeError, match="expected a protobuf message"):
            view_class.wrap(nothing)  # type: ignore[arg-type]


@every_view
def test_every_notation_brings_the_message_back(view_class: type[View]) -> None:
    """Bytes, text, JSON, dict, pickle and both kinds of copies give an equal message that is another one."""
    for view in (view_class(), filled(view_class)):
        again = [
            view_class.from_bytes(view.to_bytes()),
            view_class.from_bytes(bytearray(view.to_bytes())),
            view_class.from_bytes(memoryview(view.to_bytes(deterministic=True))),
            view_class.from_text(view.to_text()),
            view_class.from_json(view.to_json()),
            view_class.from_json(view.to_json(indent=None).encode()),
            view_class(view.to_dict()),
            pickle.loads(pickle.dumps(view)),
            copy.copy(view),
            copy.deepcopy(view),
            view.copy(),
        ]
        for other in again:
            assert type(other) is view_class
            assert other == view
            assert other.pb == view.pb
            assert other.pb is not view.pb
        assert view.byte_size() == len(view.to_bytes())
        assert view.is_initialized()
        assert json.loads(view.to_json()) is not None
        assert view.to_text() == text_format.MessageToString(view.pb, as_utf8=True)


@every_view
def test_to_dict_is_plain_python(view_class: type[View]) -> None:
    """`to_dict` has no views, messages or containers of protobuf in it, only Python's and numpy's own."""

    def check(value: Any) -> None:
        if type(value) is dict:
            for key, item in value.items():
                assert type(key) is str
                check(item)
        elif type(value) is list:
            for item in value:
                check(item)
        else:
            assert type(value) in {str, bytes, int, float, bool, np.ndarray} or isinstance(
                value, (State, int)
            )

    result = filled(view_class).to_dict()
    check(result)
    assert bool(result) == bool(filled(view_class).pb.ListFields())


@every_view
def test_copy_merge_and_clear(view_class: type[View]) -> None:
    """A copy is changed without the original; merging into an empty message copies; clear empties."""
    view = filled(view_class)
    if view_class._readonly:
        with pytest.raises(TypeError, match="read-only"):
            view.copy().merge(view)
        return
    target = view_class()
    target.merge(view)
    assert target == view
    assert target.pb is not view.pb
    target.clear()
    assert target.byte_size() == 0
    assert view == filled(view_class)
    target.merge(view.pb)
    assert target == view
    other = view_class()
    other.merge(view.to_dict())
    assert other == view
    for field in fields_of(view_class):
        if field.has_presence or is_repeated(field):
            changed = view.copy(
                **{field.name: None if field.has_presence else [] if not is_map(field) else {}}
            )
            assert not changed.has(field.name)
    with pytest.raises(TypeError):
        target.merge(object())  # type: ignore[arg-type]


@every_view
def test_equality_is_that_of_messages(view_class: type[View]) -> None:
    """Views are equal when their messages are, and to the raw message, from either side; none has a hash."""
    view, same, empty = filled(view_class), filled(view_class), view_class()
    assert view == same
    assert view == same.pb
    assert view.pb == same
    assert (view == empty) is (not view.pb.ListFields())
    assert view != 3
    assert view != (Status(error_message="x") if view_class is not Status else ModelSpec())
    with pytest.raises(TypeError, match="unhashable"):
        hash(view)


@every_view
def test_repr_and_html_are_short(view_class: type[View]) -> None:
    """A repr is one line that names the class and what is set, and neither grows with the data."""
    view = filled(view_class)
    assert repr(view).startswith(f"{view_class.__qualname__}(")
    assert "\n" not in repr(view)
    assert len(repr(view)) <= 1000
    assert repr(view_class()) in {f"{view_class.__qualname__}({inside})" for inside in ("", "[]", "{}")}
    html = view._repr_html_()
    assert html.startswith("<table>")
    assert html.count("<table>") == html.count("</table>")
    assert html.count("<td") == html.count("</td>")
    for field, _ in view.pb.ListFields():
        assert field.name in html


@every_view
def test_broken_bytes_text_and_json_are_decode_errors(view_class: type[View]) -> None:
    """What does not parse is a DecodeError that names the message or the place."""
    with pytest.raises(DecodeError, match=re.escape(view_class._message_name)):
        view_class.from_bytes(b"\xff\xff\xff")
    with pytest.raises(DecodeError, match=r"text, line 2, column 3: .*nothing_of_the_kind"):
        view_class.from_text("\n  nothing_of_the_kind: 1")
    for broken in ('{"nothing_of_the_kind": 1}', "{", "[1, 2", b"\xff", "3"):
        with pytest.raises(DecodeError):
            view_class.from_json(broken)
    with pytest.raises(TypeError, match="expected bytes, got str"):
        view_class.from_bytes("text")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        view_class.from_json(3)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- loading and binding


def run(code: str) -> str:
    """Run Python code in a fresh interpreter, warnings being errors; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_no_protobuf() -> None:
    """Neither protobuf nor a generated module is loaded before the first view is made."""
    loaded = run(
        """
        import sys
        import aioserving.messages
        print([name for name in sys.modules if "protobuf" in name or "_pb2" in name or name == "tensorflow"])
        aioserving.messages.ModelSpec()
        print(any(name.startswith("google.protobuf") for name in sys.modules), "tensorflow" in sys.modules)
        """
    )
    assert loaded.splitlines() == ["[]", "True False"]


def test_threads_may_make_the_first_view_together() -> None:
    """Views made by many threads at once, each the first of its class, are complete."""
    run(
        """
        import sys, threading
        import aioserving.messages as m
        sys.setswitchinterval(1e-6)
        makers = [
            lambda: m.ReloadConfigRequest(config=[{"name": "a", "model_version_policy": {"specific": [1]}}]),
            lambda: m.ModelConfig(name="a", model_version_policy={"latest": 2}),
            lambda: m.ServableVersionPolicy(specific=[1, 2]),
            lambda: m.SignatureDef(inputs={"x": {"tensor_shape": [1, None], "dtype": "DT_FLOAT"}}),
            lambda: m.TensorInfo(composite_tensor={"components": [{"name": "x"}]}),
            lambda: m.Input(example_list=[{"features": {"x": 1}}]),
        ] * 4
        barrier, failures = threading.Barrier(len(makers)), []
        def work(make):
            barrier.wait()
            try:
                view = make()
                assert type(view).from_bytes(view.to_bytes()) == view and view.byte_size() > 0
            except BaseException as error:
                failures.append(error)
        threads = [threading.Thread(target=work, args=(make,)) for make in makers]
        [t.start() for t in threads]; [t.join() for t in threads]
        assert not failures, failures
        """
    )


def test_a_newer_message_brings_its_new_fields() -> None:
    """Fields, messages and enums that are installed and that no view declares can be used."""

    class Old(View, message="tensorflow.SequenceExample"):
        """A view from before the message had any fields."""

        __slots__ = ()

    try:
        view: Any = Old({"context": {"feature": {"x": {"int64_list": {"value": [1]}}}}})
        view.feature_lists.feature_list["a"] = {"feature": [{"float_list": {"value": [1.0]}}]}
        assert view.context == Features({"x": 1})
        assert view.feature_lists.feature_list["a"].feature[0].float_list == [1.0]
        assert Old(view.to_dict()) == view
        assert "FeatureLists(" in repr(view)
    finally:
        for name in ("SequenceExample", "FeatureLists", "FeatureList"):
            messages._view._views.pop(f"tensorflow.{name}", None)


def test_a_field_that_is_not_installed_says_so() -> None:
    """A declared field that the installed descriptors lack is an AttributeError when used."""

    class Newer(View, message="tensorflow.NamedTensorProto"):
        """A view from after the message got a field."""

        __slots__ = ()

        name = messages._view.field("The name.")
        brand_new = messages._view.field("New.")

    try:
        view: Any = Newer({"name": "x"})
        assert view.name == "x"
        for use in (lambda: view.brand_new, lambda: setattr(view, "brand_new", 1)):
            with pytest.raises(AttributeError, match=r"tensorflow-serving-api has no .*Newer\.brand_new"):
                use()
    finally:
        messages._view._views.pop("tensorflow.NamedTensorProto", None)


def test_view_itself_stands_for_no_message() -> None:
    """The base class cannot be instantiated, and finds the class for a message that it wraps."""
    with pytest.raises(TypeError, match="View stands for no message"):
        View()
    with pytest.raises(TypeError, match="View stands for no message"):
        View.from_bytes(b"")
    from google.protobuf.timestamp_pb2 import Timestamp

    with pytest.raises(TypeError, match=r"message of TensorFlow Serving, got a google\.protobuf\.Timestamp"):
        View.wrap(Timestamp())


def test_a_subclass_of_a_view_is_a_view() -> None:
    """Users may add methods and properties, before or after the first view of the base class is made."""

    class Config(ModelConfig):
        """A ModelConfig with a property."""

        @property
        def directory(self) -> str:
            return self.base_path

        @directory.setter
        def directory(self, value: str) -> None:
            self.base_path = value

    config = Config(name="a", base_path="/a")
    config.directory = "/b"
    assert config.directory == "/b"
    assert isinstance(config.copy(), Config)
    assert config == ModelConfig(name="a", base_path="/b")
    assert ModelConfigList([config])[0].base_path == "/b"
    with pytest.raises(AttributeError, match="directry"):
        setattr(config, "directry", "/c")  # noqa: B010


# ----------------------------------------------------------------------------------- chains and assignment


def test_chained_assignment_reaches_any_depth() -> None:
    """Assignment through unset messages, lists and maps reaches the message at the end of the chain."""
    config = ModelServerConfig(model_config_list=[{"name": "a"}, {"name": "b"}])
    config.model_config_list[0].model_version_policy.latest = 2
    config.model_config_list[-1].logging_config.sampling_config.sampling_rate = 0.5
    config.model_config_list.config[1].version_labels["stable"] = 3
    policy = config.pb.model_config_list.config[0].model_version_policy
    assert policy.latest.num_versions == 2
    second = config.pb.model_config_list.config[1]
    assert second.logging_config.sampling_config.sampling_rate == 0.5
    assert dict(second.version_labels) == {"stable": 3}

    signatures = SignatureDefMap()
    signatures.setdefault("a").inputs.setdefault("x").coo_sparse.values_tensor_name = "x:0"
    assert signatures.pb.signature_def["a"].inputs["x"].coo_sparse.values_tensor_name == "x:0"
    request = ReloadConfigRequest()
    request.config.model_config_list.add(name="c").model_version_policy.specific.append(7)
    assert list(request.pb.config.model_config_list.config[0].model_version_policy.specific.versions) == [7]
    signature = SignatureDef(inputs={"x": {"name": "x:0"}})
    signature.inputs["x"].tensor_shape.dim.add(size=3).name = "rows"
    assert signature.pb.inputs["x"].tensor_shape.dim[0].name == "rows"


def test_assignment_is_whole_or_not_at_all() -> None:
    """An error in a value leaves the field as it was, and keeps an absent message absent."""
    config = ModelConfig(name="a", version_labels={"old": 1}, model_version_policy={"specific": [1, 2]})
    before = config.copy()
    attempts: list[Callable[[], Any]] = [
        lambda: setattr(config, "model_version_policy", {"specific": [3, "x"]}),
        lambda: setattr(config, "model_version_policy", {"latest": 1, "all": True}),
        lambda: setattr(config, "version_labels", {"new": 1, "bad": "x"}),
        lambda: setattr(config, "version_labels", {"new": 1, 2: 2}),
        lambda: config.version_labels.update({"new": 1, "bad": 2**70}),
        lambda: setattr(config.model_version_policy, "specific", [4, 5.5]),
        lambda: config.model_version_policy.specific.extend([4, None]),  # type: ignore[list-item]
        lambda: setattr(config.model_version_policy, "latest", 2**40),
        lambda: setattr(config.model_version_policy, "latest", -1),
        lambda: setattr(config.logging_config.log_collector_config, "type", "\ud800"),
        lambda: setattr(config.logging_config.sampling_config, "attributes", 2**31),
        lambda: setattr(config.logging_config.sampling_config, "sampling_rate", "x"),
    ]
    for attempt in attempts:
        with pytest.raises((TypeError, ValueError)):
            attempt()
        assert config == before
    spec = ModelSpec(version_label="stable")
    with pytest.raises(ValueError, match=r"ModelSpec\.version"):
        spec.version = 2**70
    assert spec.version_label == "stable"
    custom = ModelServerConfig([{"name": "a"}])
    with pytest.raises(ValueError, match=r"AnyMessage\.type_url"):
        custom.custom_model_config.type_url = "\ud800"
    assert custom.which("config") == "model_config_list"


ANYTHING = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(max_size=3),
        st.binary(max_size=3),
        st.complex_numbers(),
        st.sampled_from(
            [ModelSpec(name="x"), Status(error_code=5).pb, Feature(1), TENSOR, np.float32(3), State.END]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["name", "feature", "specific", "value", "dim", "kéy", 3]), inner, max_size=3
        ),
    ),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_assigned_fits_or_is_refused(data: st.DataObject) -> None:
    """Any value is either taken, or a TypeError or ValueError that leaves the message as it was."""
    view_class = data.draw(st.sampled_from([cls for cls in ALL if not cls._readonly and fields_of(cls)]))
    name = data.draw(st.sampled_from(sorted(descriptor_of(view_class).fields_by_name)))
    value = data.draw(ANYTHING)
    view = filled(view_class)
    try:
        setattr(view, name, value)
    except (TypeError, ValueError):
        assert view == filled(view_class)
        if value is not None:  # which stands for "not given" there
            with pytest.raises((TypeError, ValueError)):
                view_class(**{name: value})
    else:
        assert view_class.from_bytes(view.to_bytes()).to_bytes(deterministic=True) == view.to_bytes(
            deterministic=True
        )
        assert isinstance(repr(view), str)
        assert isinstance(view.to_dict(), dict)


def test_views_stay_alive_when_their_field_is_assigned() -> None:
    """A view, list or dict taken before an assignment to its field sees the new content."""
    config = ModelConfig(model_version_policy={"latest": 1}, version_labels={"a": 1})
    policy, labels = config.model_version_policy, config.version_labels
    config.model_version_policy = {"specific": [1]}
    config.version_labels = {"b": 2}
    assert policy.specific == [1]
    assert labels == {"b": 2}
    labels["c"] = 3
    policy.specific.append(2)
    assert config == ModelConfig(model_version_policy={"specific": [1, 2]}, version_labels={"b": 2, "c": 3})
    request = PredictRequest(output_filter=["a"])
    names = request.output_filter
    request.output_filter = ["b", "c"]
    names.append("d")
    assert request.output_filter == ["b", "c", "d"]


def test_reading_a_field_twice_gives_the_same_object() -> None:
    """A message, list or dict inside reads as one object for as long as it is in the field, and no longer."""
    config = ModelConfig(model_version_policy={"latest": 1})
    assert config.model_version_policy is config.model_version_policy
    assert config.version_labels is config.version_labels
    assert config.model_version_policy.specific.versions is config.model_version_policy.specific.versions
    policy, labels = config.model_version_policy, config.version_labels
    config.pb.Clear()
    assert config.model_version_policy is not policy
    config.model_version_policy.latest = 5
    config.version_labels["new"] = 1
    assert config == ModelConfig(model_version_policy={"latest": 5}, version_labels={"new": 1})
    config.pb.ClearField("version_labels")
    assert config.version_labels == {}
    assert config.version_labels is not labels
    spec = ModelSpec(version=1)
    request = PredictRequest(model_spec=spec)
    inner = request.model_spec
    request.pb.model_spec.CopyFrom(ModelSpec(name="copied").pb)
    assert request.model_spec is inner
    assert inner.name == "copied"


def test_what_is_assigned_is_copied() -> None:
    """As in protobuf, a message owns what is in it: later changes to what was assigned do not show."""
    spec = ModelSpec(name="a")
    request = PredictRequest(model_spec=spec)
    spec.name = "b"
    assert request.model_spec.name == "a"
    models = ModelConfigList([{"name": "a"}])
    model = models[0]
    models.append(model)
    model.name = "changed"
    assert [item.name for item in models] == ["changed", "a"]


def test_fields_may_be_assigned_to_themselves() -> None:
    """Assigning a field what it holds, or part of it, changes nothing and loses nothing."""
    config = ModelServerConfig([{"name": "a"}, {"name": "b"}])
    before = config.copy()
    config.model_config_list = config.model_config_list
    config.model_config_list.config = config.model_config_list.config
    config.model_config_list.config = list(config.model_config_list)
    config.model_config_list.config = config.model_config_list
    assert config == before
    config.model_config_list[:] = reversed(config.model_config_list)
    assert [model.name for model in config.model_config_list] == ["b", "a"]
    config.model_config_list += [{"name": "c"}]
    config.model_config_list.extend(config.model_config_list)
    assert [model.name for model in config.model_config_list] == ["b", "a", "c"] * 2
    signature = SignatureDef(inputs={"x": {"name": "x:0"}, "y": {"name": "y:0"}})
    signature.inputs = signature.inputs
    signature.inputs = {"x": signature.inputs["y"], "y": signature.inputs["x"]}
    assert {name: info.name for name, info in signature.inputs.items()} == {"x": "y:0", "y": "x:0"}
    empty = ModelConfig()
    empty.logging_config = empty.logging_config
    assert empty.has("logging_config")


# --------------------------------------------------------------------------------------------- ModelSpec


def test_version_is_an_int_or_none() -> None:
    """The wrapper reads as its value, zero differs from absent, and None clears it."""
    spec = ModelSpec(name="digits")
    assert spec.version is None
    spec.version = 0
    assert spec.version == 0
    assert spec.pb.HasField("version")
    assert spec == ModelSpec(name="digits", version={})
    for value in (7, np.int32(7), {"value": 7}, ModelSpec(version=7).pb.version):
        spec.version = value
        assert spec.version == 7
        assert type(spec.version) is int
    spec.version = 2**63 - 1
    assert spec.pb.version.value == 2**63 - 1
    spec.version = -5
    assert spec.version == -5
    spec.version = None
    assert not spec.pb.HasField("version")


def test_version_and_label_exclude_each_other() -> None:
    """The later one counts when set, both at once are an error, and an empty label is a label."""
    spec = ModelSpec(name="digits", version=1)
    spec.version_label = "stable"
    assert (spec.version, spec.version_label, spec.which("version_choice")) == (
        None,
        "stable",
        "version_label",
    )
    spec.version = 2
    assert [spec.version, spec.version_label] == [2, None]
    spec.version_label = ""
    assert [spec.version, spec.version_label] == [None, ""]
    spec.version_label = None
    assert spec.which("version_choice") is None
    with pytest.raises(ValueError, match="version and version_label exclude each other"):
        ModelSpec(version=1, version_label="stable")
    with pytest.raises(ValueError, match="exclude each other"):
        PredictRequest(model_spec={"version_label": "a", "version": 1})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("name", b"bytes"),
        ("name", 3),
        ("name", None),
        ("name", ["digits"]),
        ("version", "1"),
        ("version", 1.0),
        ("version", True),
        ("version", np.bool_(True)),
        ("version", [1]),
        ("version", {"valu": 1}),
        ("version", np.array([1, 2])),
    ],
)
def test_scalars_are_strict_about_types(name: str, wrong: Any) -> None:
    """What Python or protobuf would silently convert is refused: bytes for str, True or 1.0 for 1."""
    spec = ModelSpec()
    with pytest.raises(TypeError, match=rf"ModelSpec\.{name}: expected .*got "):
        setattr(spec, name, wrong)
    assert spec.pb.ListFields() == []


def test_numpy_scalars_are_numbers() -> None:
    """numpy's scalars do where Python's do, and str subclasses where str does."""
    status = ModelVersionStatus(version=np.int64(3), state=np.int32(30))
    assert (status.version, status.state) == (3, State.AVAILABLE)
    scored = Class(label=np.str_("a"), score=np.float32(0.25))
    assert (scored.label, scored.score) == ("a", 0.25)
    scored.score = 1
    scored.score = np.array(2.5)  # type: ignore[assignment]
    assert scored.score == 2.5
    shape = TensorShapeProto(unknown_rank=np.bool_(True))  # type: ignore[arg-type]
    assert shape.unknown_rank is True


def test_float32_keeps_special_values_and_refuses_overflow() -> None:
    """Infinity and NaN are values of float32; a finite number beyond it is none, and is refused."""
    scored = Class()
    for value in (math.inf, -math.inf, 3.4028234663852886e38, -3.4028234663852886e38, 1e-50):
        scored.score = value
        assert scored.score == np.float32(value)
    scored.score = math.nan
    assert math.isnan(scored.score)
    scored.score = 1.0
    for value in (3.41e38, -1e39, 1e308):
        with pytest.raises(ValueError, match=r"Class\.score: .* out of the range"):
            scored.score = value
    assert scored.score == 1.0
    with pytest.raises(TypeError, match=r"Class\.label: expected a str, got 1.5 \(float\)"):
        scored.label = 1.5  # type: ignore[assignment]
    frozen = ClassificationResponse(result=[[{"label": "a", "score": 0.5}]]).result[0][0]
    with pytest.raises(AttributeError, match="read-only"):
        frozen.score = 0.25


# ------------------------------------------------------------------------------------------ configuration


def test_version_policies_read_and_take_natural_values() -> None:
    """``latest`` is a number, ``specific`` a list, ``all`` a bool; setting one clears the others."""
    policy = ServableVersionPolicy()
    assert (policy.latest, policy.all, policy.specific == []) == (None, False, True)
    policy.latest = 2
    assert policy.latest == 2
    assert policy.pb.latest.num_versions == 2
    policy.specific = [1, 2]
    assert policy.specific == [1, 2]
    assert policy.specific.versions == [1, 2]
    assert [policy.latest, policy.all] == [None, False]
    policy.specific.append(3)
    policy.specific += [4]
    assert list(policy.pb.specific.versions) == [1, 2, 3, 4]
    policy.all = True
    assert [policy.all, policy.latest, policy.has("specific")] == [True, None, False]
    policy.latest = 0
    assert (policy.latest, policy.has("latest"), policy.all) == (0, True, False)
    policy.all = False
    assert policy.latest == 0
    policy.all = True
    policy.all = False
    assert policy.which("policy_choice") is None
    # An empty list that is set unloads everything; it is not the same as no policy.
    policy.specific = []
    assert policy.which("policy_choice") == "specific"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"specific": [1, 2]}, "specific { versions: 1 versions: 2 }"),
        ({"specific": {"versions": [1, 2]}}, "specific { versions: 1 versions: 2 }"),
        ({"specific": np.array([1, 2])}, "specific { versions: 1 versions: 2 }"),
        ({"specific": range(1, 3)}, "specific { versions: 1 versions: 2 }"),
        ({"specific": Specific([1, 2])}, "specific { versions: 1 versions: 2 }"),
        ({"specific": []}, "specific { }"),
        ({"latest": 2}, "latest { num_versions: 2 }"),
        ({"latest": {"num_versions": 2}}, "latest { num_versions: 2 }"),
        ({"latest": Latest(num_versions=2)}, "latest { num_versions: 2 }"),
        ({"latest": {}}, "latest { }"),
        ({"all": True}, "all { }"),
        ({"all": {}}, "all { }"),
        ({"all": ServableVersionPolicy.All()}, "all { }"),
        ({"all": False}, ""),
        ({"all": False, "latest": 1}, "latest { num_versions: 1 }"),
        ({"latest": None, "all": True}, "all { }"),
    ],
)
def test_every_way_to_write_a_policy(given: dict[str, Any], text: str) -> None:
    """Natural values, protobuf's own shape, views and arrays all make the message that text format makes."""
    want = ServableVersionPolicy.from_text(text)
    assert ServableVersionPolicy(given) == want
    assert ServableVersionPolicy(**given) == want
    assert ModelConfig(model_version_policy=given).model_version_policy == want
    config = ModelConfig(model_version_policy={"specific": [9]})
    config.model_version_policy = given
    assert config.model_version_policy == want


@pytest.mark.parametrize(
    "given",
    [
        {"specific": [1, 2.5]},
        {"specific": "12"},
        {"specific": 3},
        {"specific": {1: 2}},
        {"specific": [True]},
        {"specific": [2**63]},
        {"latest": "2"},
        {"latest": -1},
        {"latest": 2**32},
        {"all": 1},
        {"latets": 1},
    ],
)
def test_wrong_policies_are_refused(given: dict[str, Any]) -> None:
    """Wrong types, numbers out of range and unknown names are errors in every form."""
    with pytest.raises((TypeError, ValueError)) as raised:
        ModelConfig(model_version_policy=given)
    assert re.search(r"ServableVersionPolicy|Specific", str(raised.value))


def test_a_config_list_is_the_list_it_holds() -> None:
    """ModelConfigList behaves as a list of ModelConfigs, and a list stands for it."""
    models = ModelConfigList([ModelConfig(name="a"), {"name": "b"}, ModelConfig(name="c").pb])
    assert [model.name for model in models] == ["a", "b", "c"]
    assert len(models) == 3
    assert models[1].name == "b"
    assert models[-1].pb is models.pb.config[2]
    assert [model.name for model in models[1:]] == ["b", "c"]
    assert ModelConfig(name="b") in models
    assert ModelConfig(name="z") not in models
    assert models == [ModelConfig(name="a"), ModelConfig(name="b"), ModelConfig(name="c")]
    assert models == [model.pb for model in models]
    assert models != [ModelConfig(name="a")]
    models.sort(key=lambda model: model.name, reverse=True)
    del models[0]
    assert [model.name for model in models] == ["b", "a"]
    assert models.index(ModelConfig(name="a")) == 1
    models.insert(0, {"name": "z"})
    assert models.pop().name == "a"
    models[0] = ModelConfig(name="first")
    models.remove(ModelConfig(name="b"))
    assert ModelServerConfig(model_config_list=models) == ModelServerConfig([{"name": "first"}])
    assert bool(models)
    assert not ModelConfigList()
    with pytest.raises(TypeError, match="give a key"):
        models.sort()
    with pytest.raises(IndexError):
        models[5]
    with pytest.raises(IndexError):
        ModelConfigList().pop()
    with pytest.raises(TypeError, match=r"ModelConfigList\.config\[0\]: expected a ModelConfig"):
        models[0] = 3  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"ModelConfigList\.config\[1\]: expected a ModelConfig"):
        models.append("c")  # type: ignore[arg-type]


def test_a_server_config_takes_a_list_of_models() -> None:
    """Where a ModelServerConfig is asked for, a list of models, or a ModelConfigList, will do."""
    want = ModelServerConfig(model_config_list={"config": [{"name": "a"}]})
    models = ModelConfigList([{"name": "a"}])
    for shape in (
        [{"name": "a"}],
        (ModelConfig(name="a"),),
        models,
        models.pb,
        want,
        want.pb,
        want.to_dict(),
    ):
        assert ReloadConfigRequest(config=shape).config == want
        assert ModelServerConfig(shape) == want
    empty = ReloadConfigRequest(config=[])
    assert empty.config.which("config") == "model_config_list"
    with pytest.raises(TypeError, match=r"ReloadConfigRequest\.config: expected a ModelServerConfig"):
        ReloadConfigRequest(config="digits")  # type: ignore[arg-type]


def test_a_base_path_may_be_a_path(tmp_path: pathlib.Path) -> None:
    """Paths are taken where a string that is a path is meant."""
    config = ModelConfig(base_path=tmp_path)
    assert config.base_path == str(tmp_path)
    config.base_path = tmp_path / "b"
    assert config.pb.base_path == str(tmp_path / "b")
    with pytest.raises(TypeError, match=r"ModelConfig\.name"):
        ModelConfig(name=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"ModelConfig\.base_path: expected a str, got b'/a' \(bytes\)"):
        config.base_path = b"/a"  # type: ignore[assignment]


CONFIG_TEXT = """# two spellings, commas and comments, as the server takes them
model_config_list: {
  config: { name: "digits", base_path: "/models/digits", model_platform: "tensorflow"
    model_version_policy { specific { versions: 1 versions: 2 } }
    version_labels { key: 'stable' value: 1 } }
  config { name: 'other' base_path: '/models/other' model_version_policy: { all: {} } }
}
"""


def test_a_config_file_is_read_and_written(tmp_path: pathlib.Path) -> None:
    """Text comes from a string, a path or the name of a file, and `to_text` writes what can be read again."""
    path = tmp_path / "models config"
    path.write_text(CONFIG_TEXT, encoding="utf-8")
    config = ModelServerConfig.from_text(CONFIG_TEXT)
    assert config == ModelServerConfig.from_text(path)
    assert config == ModelServerConfig.from_text(str(path))
    digits, other = config.model_config_list
    assert digits.version_labels == {"stable": 1}
    assert digits.model_version_policy.specific == [1, 2]
    assert other.model_version_policy.all
    written = tmp_path / "written"
    assert config.to_text(written) == written.read_text(encoding="utf-8")
    assert ModelServerConfig.from_text(written) == config
    assert (
        ModelServerConfig.from_text("") == ModelServerConfig.from_text(" # nothing\n") == ModelServerConfig()
    )
    (tmp_path / "json").write_text(config.to_json(), encoding="utf-8")
    assert ModelServerConfig.from_json(tmp_path / "json") == config
    with pytest.raises(FileNotFoundError):
        ModelServerConfig.from_text(tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        ModelServerConfig.from_text(str(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("text", "line", "column", "reason"),
    [
        ("model_config_list {\n  config { nam: 'a' }\n}", 2, 12, "did you mean 'name'"),
        ("model_config_list {\n  config { name: 3 }\n}", 2, 18, "string"),
        ("model_config_list { config { name: 'a'\n  name: 'b' } }", 2, 9, 'multiple "name"'),
        ("model_config_list {\n  config { name: 'a' ", 2, 18, 'Expected "}"'),
        ("model_config_list {\n config {\n  version_labels { key: 'a' value: 'x' } } }", 3, 36, "integer"),
        ("model_config_list {}\ncustom_model_config {}", 2, 1, "oneof"),
        ("model_config_list { config { model_type: NOTHING } }", 1, 42, "NOTHING"),
        ("model_config_list { config {\n  name: 'a\n  ' } }", 2, 9, "'a"),
    ],
)
def test_errors_in_text_say_where(
    tmp_path: pathlib.Path, text: str, line: int, column: int, reason: str
) -> None:
    """A mistake in text format is a DecodeError with line, column, reason, and the file if there is one."""
    with pytest.raises(DecodeError, match=f"text, line {line}, column {column}: .*{reason}"):
        ModelServerConfig.from_text(text)
    path = tmp_path / "models.config"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DecodeError, match=rf"models\.config, line {line}, column {column}: .*{reason}"):
        ModelServerConfig.from_text(path)


def test_a_file_that_is_not_utf8_says_where(tmp_path: pathlib.Path) -> None:
    """Bytes that are no UTF-8 are a DecodeError with the place of the first of them."""
    path = tmp_path / "models.config"
    path.write_bytes(b"model_config_list {\n  config { name: '\xff' } }")
    with pytest.raises(DecodeError, match=r"models\.config, line 2, column 19: not UTF-8"):
        ModelServerConfig.from_text(path)


@given(st.text(alphabet="abn:{}[]<>'\"\\ \n#0x1-.,;/", max_size=40))
@settings(max_examples=200, deadline=None)
def test_text_and_json_never_fail_otherwise(text: str) -> None:
    """Whatever the text, it is read, or refused with a DecodeError."""
    for read, source in (
        (ModelServerConfig.from_text, "model_config_list {" + text),
        (ModelServerConfig.from_json, "{" + text),
    ):
        try:
            config = read(source)
        except DecodeError:
            continue
        assert ModelServerConfig.from_text(config.to_text()) == config


@given(st.binary(max_size=40))
@settings(max_examples=300, deadline=None)
def test_bytes_never_fail_otherwise(data: bytes) -> None:
    """Whatever the bytes, they are a message or a DecodeError, and what was read can be shown and written."""
    for view_class in (ModelServerConfig, PredictResponse, Example, SignatureDef, StructuredValue):
        try:
            view = view_class.from_bytes(data)
        except DecodeError:
            continue
        assert view_class.from_bytes(view.to_bytes()) == view or "nan" in view.to_text()
        assert isinstance(repr(view), str)
        assert view._repr_html_().startswith("<table>")


def test_labels_are_a_dict_of_numbers() -> None:
    """A map of scalars has all of a dict's behaviour, and refuses what is no number."""
    config = ModelConfig(version_labels={"stable": 1})
    labels = config.version_labels
    labels["canary"] = 2
    labels.update({"old": 0}, extra=4)
    labels |= {"more": 5}
    assert labels == {"stable": 1, "canary": 2, "old": 0, "extra": 4, "more": 5}
    assert dict(config.pb.version_labels) == labels
    assert (labels.get("nothing"), labels.get("old"), labels.pop("extra"), labels.pop("extra", None)) == (
        None, 0, 4, None,
    )  # fmt: skip
    assert "nothing" not in labels
    assert labels.__contains__(3) is False
    assert labels.setdefault("stable", 9) == 1
    assert labels.setdefault("new", 9) == 9
    assert sorted(labels | {"z": 1}) == ["canary", "more", "new", "old", "stable", "z"]
    assert ({"z": 1} | labels)["z"] == 1
    del labels["new"]
    for missing in ("new", 3):
        with pytest.raises(KeyError):
            labels[missing]  # type: ignore[index]
        with pytest.raises(KeyError):
            del labels[missing]  # type: ignore[arg-type]
    assert sorted(labels.items()) == [("canary", 2), ("more", 5), ("old", 0), ("stable", 1)]
    assert labels.copy() == copy.copy(labels) == copy.deepcopy(labels) == pickle.loads(pickle.dumps(labels))
    assert type(labels.copy()) is dict
    for key, value in (("a", "1"), ("a", 1.5), ("a", 2**63), (1, 1), ("a", None), ("a", True)):
        with pytest.raises((TypeError, ValueError), match=r"ModelConfig\.version_labels"):
            labels[key] = value  # type: ignore[index,assignment]
    with pytest.raises(TypeError, match="expected a dict"):
        config.version_labels = [("a", 1)]  # type: ignore[assignment]
    while labels:
        labels.popitem()
    assert len(config.pb.version_labels) == 0


def test_any_packs_and_unpacks() -> None:
    """A message assigned to an Any is packed; what is unpacked is a read-only view of its class."""
    config = LoggingConfig()
    sampling = SamplingConfig(sampling_rate=0.5)
    by_field = {"type_url": "x/tensorflow.serving.SamplingConfig", "value": sampling.to_bytes()}
    for packed in (sampling, sampling.pb, AnyMessage(sampling), by_field):
        config.custom_logging_config = packed
        inside = config.custom_logging_config
        assert inside.type_name == "tensorflow.serving.SamplingConfig"
        assert inside.unpack() == sampling
        assert inside.unpack(SamplingConfig).sampling_rate == 0.5
        with pytest.raises(AttributeError, match="read-only"):
            inside.unpack(SamplingConfig).sampling_rate = 1.0
    with pytest.raises(
        TypeError, match=r"expected a .*ModelSpec inside, got tensorflow\.serving\.SamplingConfig"
    ):
        config.custom_logging_config.unpack(ModelSpec)
    config.custom_logging_config.pack(ModelSpec(name="x").pb)
    assert config.custom_logging_config.unpack(ModelSpec).name == "x"
    assert repr(config) == (
        "LoggingConfig(custom_logging_config=AnyMessage("
        "type_url='type.googleapis.com/tensorflow.serving.ModelSpec', value=<3 bytes>))"
    )
    config.custom_logging_config.value = b"\xff"
    with pytest.raises(DecodeError, match="AnyMessage: not a tensorflow.serving.ModelSpec"):
        config.custom_logging_config.unpack()
    with pytest.raises(TypeError, match="got nothing"):
        AnyMessage().unpack()
    for wrong in ("x", 3, [1]):
        with pytest.raises(TypeError, match=r"custom_logging_config: expected a message of any type"):
            config.custom_logging_config = wrong  # type: ignore[assignment]
    frozen = GetModelMetadataResponse(metadata={"signature_def": SignatureDefMap()})
    with pytest.raises(TypeError, match="read-only"):
        frozen.metadata["signature_def"].pack(ModelSpec())


def test_text_and_json_with_packed_messages_load_what_they_need() -> None:
    """A message packed in an Any is readable as text and JSON though its type was not loaded before."""
    assert (
        run(
            """
        from aioserving.messages import ModelServerConfig
        kind = "type.googleapis.com/tensorflow.serving.SamplingConfig"
        config = ModelServerConfig.from_text("custom_model_config { [%s] { sampling_rate: 0.5 } }" % kind)
        print(config.custom_model_config.type_name)
        """
        )
        == "tensorflow.serving.SamplingConfig"
    )
    assert (
        run(
            """
        from aioserving.messages import ModelServerConfig
        kind = "type.googleapis.com/tensorflow.serving.SamplingConfig"
        config = ModelServerConfig(custom_model_config={"type_url": kind, "value": b""})
        print(config.to_json(indent=None))
        """
        )
        == '{"custom_model_config": {"@type": "type.googleapis.com/tensorflow.serving.SamplingConfig"}}'
    )
    assert (
        run(
            """
        from aioserving.messages import ModelServerConfig
        kind = "type.googleapis.com/tensorflow.serving.ModelSpec"
        config = ModelServerConfig.from_json('{"custom_model_config": {"@type": "%s", "name": "x"}}' % kind)
        print(config.custom_model_config.unpack().name)
        """
        )
        == "x"
    )
    unknown = ModelServerConfig(custom_model_config={"type_url": "a/b.C", "value": b""})
    with pytest.raises(ValueError, match=r"no JSON form.*b\.C"):
        unknown.to_json()


# ---------------------------------------------------------------------------------------- Predict and tensors


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.array(3, np.int64),
        np.zeros((0, 4), np.uint8),
        np.array([[True], [False]]),
        np.arange(12).reshape(3, 4).T,
        np.array([1, 2], ">i4"),
        [1.5, 2.5],
        [[1], [2]],
        7,
        2.5,
        True,
        np.float16(1.5),
    ],
    ids=repr,
)
def test_tensors_read_and_set_as_arrays(value: Any) -> None:
    """What numpy makes of a value is what comes back, read-only, and TensorFlow's own reading agrees."""
    want = np.asarray(value)
    request = PredictRequest(inputs={"x": value})
    request.inputs["y"] = value
    for name in "xy":
        array = request.inputs[name]
        assert identical(array, want.astype(want.dtype.newbyteorder("=")))
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert request.inputs == {"x": want, "y": want}
    assert request.inputs == {"x": request.inputs["x"], "y": request.pb.inputs["y"]}
    assert request.inputs != {"x": want}
    assert request.inputs != {"x": want, "y": np.append(want.ravel(), want.ravel()[:1])}


def test_strings_are_tensors_of_bytes() -> None:
    """Text and bytes, alone, in lists and in numpy's string arrays, become tensors of bytes."""
    request = PredictRequest(inputs={"a": "é", "b": [b"\x00\xff", b""], "c": np.array([["x"], ["yz"]])})
    assert request.inputs["a"].item() == "é".encode()
    assert request.inputs["b"].tolist() == [b"\x00\xff", b""]
    assert request.inputs["c"].tolist() == [[b"x"], [b"yz"]]
    assert request.inputs["b"].dtype == object
    assert repr(request.inputs) == "{'a': <string []>, 'b': <string [2]>, 'c': <string [2, 1]>}"


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ([[1, 2], [3]], ValueError),
        (None, TypeError),
        ({"a": 1}, TypeError),
        (object(), TypeError),
        ([None], TypeError),
        (np.array(["2020-01-01"], "M8[D]"), UnsupportedTypeError),
        (np.zeros(2, [("a", "i4")]), UnsupportedTypeError),
        (ModelSpec(), TypeError),
    ],
    ids=repr,
)
def test_what_is_no_tensor_is_refused(wrong: Any, error: type[Exception]) -> None:
    """Ragged lists, None, objects, dates and messages are errors that name the input, and change nothing."""
    request = PredictRequest(inputs={"x": [1]})
    before = request.copy()
    with pytest.raises(error, match=r"PredictRequest\.inputs\['y'\]"):
        request.inputs["y"] = wrong
    with pytest.raises(error, match=r"PredictRequest\.inputs\['x'\]"):
        request.inputs["x"] = wrong
    with pytest.raises(error, match=r"PredictRequest\.inputs\['y'\]"):
        request.inputs = {"a": [1], "y": wrong}
    assert request == before


def test_typed_fields_read_as_arrays() -> None:
    """A tensor as the server answers, one value per element, reads as the array it stands for."""
    response = PredictResponse.from_text(
        "outputs { key: 'y' value { dtype: DT_FLOAT float_val: 3 float_val: 4 "
        "tensor_shape { dim { size: 2 } dim { size: 1 } } } }"
        "model_spec { name: 'm' version { value: 7 } }"
    )
    assert identical(response.outputs["y"], np.array([[3], [4]], np.float32))
    assert response.model_spec.version == 7
    broken = PredictResponse.from_text("outputs { key: 'y' value { } }")
    with pytest.raises(ServingError):
        broken.outputs["y"]
    assert repr(broken) == "PredictResponse(outputs={'y': <INVALID []>})"
    bfloat = PredictResponse.from_text(
        "outputs { key: 'y' value { dtype: DT_BFLOAT16 tensor_shape { unknown_rank: true } } }"
    )
    assert repr(bfloat.outputs) == "{'y': <bfloat16 of unknown rank>}"


def test_responses_refuse_changes_in_any_depth() -> None:
    """A response cannot be changed through its view, only through ``.pb``; parts copied out of it can."""
    response = PredictResponse(model_spec={"name": "m", "version": 3}, outputs={"y": [1.0]})
    settings_of_fields: list[Callable[[], Any]] = [
        lambda: setattr(response, "model_spec", {}),
        lambda: setattr(response.model_spec, "name", "x"),
        lambda: setattr(response.model_spec, "version", 4),
        lambda: setattr(ModelSpec(response.model_spec), "name", "x"),
        lambda: setattr(PredictResponse(response.pb).model_spec, "name", "x"),
        lambda: setattr(PredictResponse.from_bytes(response.to_bytes()).model_spec, "name", "x"),
        lambda: setattr(response.copy().model_spec, "name", "x"),
        lambda: delattr(response.model_spec, "name"),
        lambda: delattr(response, "outputs"),
    ]
    for change in settings_of_fields:
        with pytest.raises(AttributeError, match="read-only"):
            change()
    mutations: list[Callable[[], Any]] = [
        lambda: response.outputs.update(y=[2.0]),
        response.outputs.clear,
        response.clear,
        response.model_spec.clear,
        lambda: response.merge(response),
    ]
    for mutate in mutations:
        with pytest.raises(TypeError, match="read-only"):
            mutate()
    status = GetModelStatusResponse([{"version": 1, "state": "END"}])
    with pytest.raises(AttributeError, match="read-only"):
        status[0].status.error_message = "x"
    with pytest.raises(TypeError, match="read-only"):
        status.append({"version": 2})
    result = MultiInferenceResponse([{"regression_result": [{"value": 1.0}]}])
    with pytest.raises(AttributeError, match="read-only"):
        result[0].regression_result[0].value = 2.0
    assert response == PredictResponse(model_spec={"name": "m", "version": 3}, outputs={"y": [1.0]})
    response.pb.model_spec.name = "changed"
    assert response.model_spec.name == "changed"
    spec = response.model_spec.copy(version=9)
    spec.name = "mine"
    assert (spec.name, spec.version, response.model_spec.version) == ("mine", 9, 3)
    assert response.copy(model_spec=spec).model_spec == spec
    thawed = pickle.loads(pickle.dumps(response.model_spec))
    thawed.name = "x"
    with pytest.raises(AttributeError):
        pickle.loads(pickle.dumps(response)).model_spec.name = "x"


def test_a_large_message_has_a_short_repr() -> None:
    """Tensors show as dtype and shape, lists by their first items, long strings are cut; HTML too."""
    request = PredictRequest(
        model_spec={"name": "x" * 10_000},
        inputs={f"input {i}": np.zeros((100, 100)) for i in range(30)},
        output_filter=[f"output {i}" for i in range(1000)],
    )
    assert len(repr(request)) < 600
    assert "'input 0': <float64 [100, 100]>" in repr(request)
    assert "... 24 more" in repr(request)
    assert "... 994 more" in repr(request)
    assert len(request._repr_html_()) < 3000
    models = ModelServerConfig([{"name": f"<b>{i}</b>", "version_labels": {"a": i}} for i in range(1000)])
    assert len(repr(models)) < 1001
    assert "&lt;b&gt;0" in models._repr_html_()
    assert "<b>0" not in models._repr_html_()
    assert "980 more" in models._repr_html_()
    deep = StructuredValue()
    inner = deep
    for _ in range(20):
        inner = inner.list_value.add()
    inner.string_value = "end"
    assert len(repr(deep)) < 1001
    assert repr(ExampleList([{"features": {"x": [1, 2]}}])) == (
        "ExampleList([Example(features={'x': Feature(int64_list=[1, 2])})])"
    )
    assert repr(ModelVersionStatus(state=30)) == "ModelVersionStatus(state=State.AVAILABLE)"
    assert repr(StructuredValue(none_value=True)) == "StructuredValue(none_value=True)"


# -------------------------------------------------------------------------------------------------- examples


@pytest.mark.parametrize(
    ("value", "kind", "want"),
    [
        (1, "int64_list", [1]),
        ([1, 2], "int64_list", [1, 2]),
        ([True, False], "int64_list", [1, 0]),
        (2.5, "float_list", [2.5]),
        ((0.5, math.inf), "float_list", [0.5, math.inf]),
        ("é", "bytes_list", ["é".encode()]),
        (b"\xff", "bytes_list", [b"\xff"]),
        (["a", b"b"], "bytes_list", [b"a", b"b"]),
        (bytearray(b"a"), "bytes_list", [b"a"]),
        (np.array([[1, 2], [3, 4]], np.uint8), "int64_list", [1, 2, 3, 4]),
        (np.array([0.5, 1.5], np.float64), "float_list", [0.5, 1.5]),
        (np.array(["a", "b"]), "bytes_list", [b"a", b"b"]),
        (np.array([b"a"], object), "bytes_list", [b"a"]),
        (np.array([True]), "int64_list", [1]),
        (np.float32(1.5), "float_list", [1.5]),
        ([np.int32(1), 2], "int64_list", [1, 2]),
        ([[1, 2], [3, 4]], "int64_list", [1, 2, 3, 4]),
        (range(3), "int64_list", [0, 1, 2]),
        ((x / 2 for x in range(2)), "float_list", [0.0, 0.5]),
        (np.array([], np.float32), "float_list", []),
        ([], None, []),
        ({"float_list": [1]}, "float_list", [1.0]),
        ({"bytes_list": {"value": [b"x"]}}, "bytes_list", [b"x"]),
        (Feature(int64_list=[5]), "int64_list", [5]),
    ],
    ids=repr,
)
def test_a_value_stands_for_a_feature(value: Any, kind: str | None, want: list[Any]) -> None:
    """The type of a value, or of the items of a list, decides which of the three lists holds it."""
    values = list(value) if hasattr(value, "gi_frame") else None  # a generator serves once only
    example = Example(features={"x": values or value})
    feature = example.features["x"]
    assert feature.which("kind") == kind
    assert ([] if feature.value is None else feature.value) == want
    target = Feature(bytes_list=[b"old"])
    if not isinstance(value, (dict, Feature)):
        target.value = values or value
        assert target == feature
    if kind:
        assert list(getattr(example.pb.features.feature["x"], kind).value) == want


@pytest.mark.parametrize(
    ("value", "error", "reason"),
    [
        ([1, "a"], TypeError, "must have one type, got int, str"),
        ([1, 2.0], TypeError, "must have one type, got float, int"),
        ([True, 1], TypeError, "must have one type, got bool, int"),
        ([b"a", 1.0, 2], TypeError, "must have one type"),
        (np.array([1, "a"], object), TypeError, "must have one type"),
        ([[1, 2], [3]], ValueError, "ragged"),
        ([[1], 2], ValueError, "ragged"),
        ([[[1], [2]], [[3]]], ValueError, "ragged"),
        (None, TypeError, "expected"),
        ([None], TypeError, "expected"),
        ([{}], TypeError, "expected"),
        (1j, TypeError, "expected"),
        (np.array([1j]), TypeError, "complex128"),
        (np.array(["2020"], "M8[Y]"), TypeError, "datetime64"),
        (2**63, ValueError, "from -9223372036854775808"),
        (np.array([2**63], np.uint64), ValueError, "from -9223372036854775808"),
        ([1.0, 1e39], ValueError, "out of the range"),
        (ModelSpec(), TypeError, "expected a Feature"),
        ({"float_lst": [1]}, TypeError, "did you mean 'float_list'"),
        ({"float_list": [1], "int64_list": [1]}, ValueError, "exclude each other"),
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_feature_is_refused(value: Any, error: type[Exception], reason: str) -> None:
    """Mixed types, ragged lists and what protobuf cannot hold are errors, and the example stays as it was."""
    example = Example(features={"x": 1})
    before = example.copy()
    with pytest.raises(error, match=reason) as raised:
        example.features["x"] = value
    assert "Feature" in str(raised.value)
    with pytest.raises(error, match=reason):
        example.features = {"a": 1, "b": value}
    with pytest.raises(error, match=reason):
        Example(features={"b": value})
    assert example == before


def test_features_are_the_dict_they_hold() -> None:
    """Features behave as a dict of features, and take their content or protobuf's own shape."""
    features = Features({"age": 42, "name": "Ada"})
    assert set(features) == {"age", "name"}
    assert features["age"].int64_list == [42]
    features["age"].int64_list.append(43)
    features["new"] = [0.5]
    assert features.feature["new"].value == [0.5]
    assert features["age"].value == [42, 43]
    assert features == {"age": Feature([42, 43]), "name": Feature("Ada"), "new": Feature(0.5)}
    assert "age" in features
    assert features.pop("new").float_list == [0.5]
    assert len(features) == 2
    shaped = Example(features={"feature": {"age": {"int64_list": {"value": [42]}}}})
    assert shaped == Example(features={"age": 42})
    # One feature that is called as the field is: still content.
    for tricky in ({"feature": 1}, {"feature": {"int64_list": [1]}}, {"feature": Feature(int64_list=[1])}):
        assert set(Features(tricky)) == {"feature"}
        assert Features(Features(tricky).to_dict()) == Features(tricky)
    both = Features({"feature": 1, "int64_list": 2})
    assert Features(both.to_dict()) == both
    assert Example(Example(features=both).to_dict()) == Example(features=both)
    assert Features({"feature": {}})["feature"].value is None
    assert Features(feature={"x": 1}) == Features({"x": 1})
    assert Features(feature={}) == Features({}) == Features()


def test_inputs_take_lists_of_examples() -> None:
    """Examples with and without a context exclude each other, and a list stands for an ExampleList."""
    examples = Input(example_list=[{"features": {"x": 1}}, Example(features={"x": 2})])
    assert [example.features["x"].value for example in examples.example_list] == [[1], [2]]
    examples.example_list_with_context = {
        "examples": examples.example_list.copy(),
        "context": {"features": {"c": "d"}},
    }
    assert not examples.has("example_list")
    assert len(examples.example_list_with_context.examples) == 2
    with pytest.raises(ValueError, match="exclude each other"):
        Input(example_list=[], example_list_with_context={})
    request = MultiInferenceRequest(
        tasks=[
            {"model_spec": {"name": "m", "signature_name": "s"}, "method_name": "tensorflow/serving/regress"}
        ],
        input={"example_list": [{"features": {"x": 1.0}}]},
    )
    assert request.tasks[0].model_spec.signature_name == "s"


def test_an_array_of_a_list_of_numbers() -> None:
    """numpy makes an array of a repeated field, of the dtype of its numbers."""
    feature = Feature([0.5, 1.5])
    assert np.asarray(feature.float_list).dtype == np.float32
    assert np.asarray(feature.float_list.value).tolist() == [0.5, 1.5]
    assert np.asarray(Feature([1, 2]).int64_list).dtype == np.int64
    assert np.asarray(Feature([b"a"]).bytes_list).tolist() == [b"a"]
    assert np.asarray(feature.float_list, dtype=np.float64).dtype == np.float64


# ------------------------------------------------------------------------------------- results and metadata


def test_results_are_lists() -> None:
    """Classifications, regressions and multi-inference results are indexed without naming their field."""
    classes = ClassificationResponse(
        result=[[{"label": "a", "score": 0.25}, Class(label="b", score=0.75)], []]
    )
    assert [(item.label, item.score) for item in classes.result[0]] == [("a", 0.25), ("b", 0.75)]
    assert classes.result[1] == []
    assert classes.result[0] == Classifications(
        classes=[Class(label="a", score=0.25), Class(label="b", score=0.75)]
    )
    numbers = RegressionResponse(result=[{"value": 1.5}])
    assert [item.value for item in numbers.result] == [1.5]
    multi = MultiInferenceResponse([{"regression_result": [{"value": 1.0}]}, {"classification_result": [[]]}])
    assert [item.which("result") for item in multi] == ["regression_result", "classification_result"]


def test_status_reads_as_enums() -> None:
    """State and code are Python enums, an error is a status or None, the response a list of versions."""
    response = GetModelStatusResponse(
        [
            {"version": 2, "state": State.AVAILABLE},
            {"version": 1, "state": "END", "status": {"error_code": 5}},
        ]
    )
    assert [(item.version, item.state) for item in response] == [(2, State.AVAILABLE), (1, State.END)]
    assert response[0].state is State.AVAILABLE
    assert response[0].error is None
    assert response[1].error == Status(error_code=Code.NOT_FOUND)
    assert response[1].status.error_code is Code.NOT_FOUND
    assert State.START < State.END


def test_enums_are_open_to_read_and_closed_to_set() -> None:
    """A number from a newer server reads as a member of its own; setting an unknown one is an error."""
    status = ModelVersionStatus.from_bytes(b"\x10\x63")
    assert status.state == 99
    assert isinstance(status.state, State)
    assert status.state.name == "UNRECOGNIZED_99"
    assert pickle.loads(pickle.dumps(status.state)) == status.state
    status.state = status.state
    assert status.pb.state == 99
    assert repr(status) == "ModelVersionStatus(state=State.UNRECOGNIZED_99)"
    for value in (30, "AVAILABLE", State.AVAILABLE, np.int64(30)):
        status.state = value
        assert status.state is State.AVAILABLE
    for wrong in (98, "available", "", -1, 2**40):
        with pytest.raises(
            ValueError, match=r"ModelVersionStatus\.state: expected one of UNKNOWN \(0\), START \(10\)"
        ):
            status.state = wrong
    for mistaken in (Code.OK, 30.0, True, None, b"END"):
        with pytest.raises(
            TypeError, match=r"ModelVersionStatus\.state: expected a ModelVersionStatus\.State"
        ):
            setattr(status, "state", mistaken)  # noqa: B010  # not what the annotation allows
    assert status.state is State.AVAILABLE


def test_dtypes_read_as_the_enum_of_the_dtype_table() -> None:
    """Data types are `aioserving.dtypes.DataType`; reference types of TF1 metadata are told by name."""
    info = TensorInfo(dtype=DataType.DT_FLOAT)
    assert info.dtype is DataType.DT_FLOAT
    info.dtype = "DT_STRING"
    assert info.pb.dtype == 7
    info.pb.dtype = 101
    assert info.dtype == 101
    assert isinstance(info.dtype, DataType)
    assert info.dtype.name == "DT_FLOAT_REF"
    assert info.copy(dtype=107).dtype.name == "DT_STRING_REF"
    info.pb.dtype = 999
    assert info.dtype.name == "UNRECOGNIZED_999"
    value = StructuredValue(tensor_dtype_value=0)
    assert value.tensor_dtype_value is DataType.DT_INVALID
    assert value.which("kind") == "tensor_dtype_value"


def test_shapes_read_and_take_sizes() -> None:
    """A list of sizes stands for a shape, None for an unknown one, and `sizes` gives it back."""
    info = TensorInfo(tensor_shape=[None, 784])
    assert info.tensor_shape.sizes == (None, 784)
    assert [dim.size for dim in info.pb.tensor_shape.dim] == [-1, 784]
    for sizes in ((-1, 784), np.array([-1, 784]), [{"size": -1}, TensorShapeProto.Dim(size=784)]):
        info.tensor_shape = sizes  # type: ignore[assignment]
        assert info.tensor_shape.sizes == (None, 784)
    info.tensor_shape = []
    assert info.tensor_shape.sizes == ()
    assert info.has("tensor_shape")
    assert TensorShapeProto(unknown_rank=True).sizes is None
    with pytest.raises(TypeError, match=r"TensorInfo\.tensor_shape: expected a TensorShapeProto"):
        info.tensor_shape = "12"  # type: ignore[assignment]
    with pytest.raises(TypeError, match="Dim"):
        info.tensor_shape = [1.5]  # type: ignore[list-item]


def test_metadata_unpacks_to_signatures() -> None:
    """The packed SignatureDefMap reads as a dict of signatures, and cannot be changed."""
    signatures = SignatureDefMap(
        {"serving_default": {"inputs": {"x": {"name": "x:0", "dtype": "DT_FLOAT", "tensor_shape": [None, 1]}},
                             "defaults": {"x": np.zeros((1, 1), np.float32)}, "method_name": "m"}}
    )  # fmt: skip
    response = GetModelMetadataResponse(model_spec={"name": "m"}, metadata={"signature_def": signatures})
    assert response.metadata["signature_def"].unpack() == signatures
    read = GetModelMetadataResponse.from_bytes(response.to_bytes()).signature_def
    assert read == signatures
    assert read is not None
    assert read["serving_default"].inputs["x"].tensor_shape.sizes == (None, 1)
    assert identical(read["serving_default"].defaults["x"], np.zeros((1, 1), np.float32))
    with pytest.raises(AttributeError, match="read-only"):
        read["serving_default"].method_name = "x"
    with pytest.raises(TypeError, match="read-only"):
        read.pop("serving_default")
    assert GetModelMetadataResponse().signature_def is None
    assert SignatureDefMap(signature_def={"signature_def": {"method_name": "m"}}) == SignatureDefMap(
        {"signature_def": {"method_name": "m"}}
    )


# -------------------------------------------------------------------------- lists and dicts, by comparison


class Draw(NamedTuple):
    """What an operation on a list or dict is called with."""

    value: int
    values: list[int]
    at: int
    part: slice
    key: str
    entries: dict[str, int]

    @classmethod
    def strategy(cls) -> st.SearchStrategy[Draw]:
        number, ends = st.integers(-5, 5), st.one_of(st.none(), st.integers(-5, 5))
        keys = st.sampled_from(["a", "b", "c", "signature_def"])
        return st.builds(
            cls,
            number,
            st.lists(number, max_size=4),
            st.integers(-4, 4),
            st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -2])),
            keys,
            st.dictionaries(keys, number),
        )


class Side:
    """A list or dict of numbers, and how it writes and reads one."""

    def __init__(
        self, target: Any, write: Callable[[int], Any] = int, read: Callable[[Any], int] = int
    ) -> None:
        self.target, self.write, self.read = target, write, read

    def writes(self, values: list[int]) -> list[Any]:
        return [self.write(value) for value in values]

    def entries(self, values: dict[str, int]) -> dict[str, Any]:
        return {key: self.write(value) for key, value in values.items()}

    def plain(self) -> Any:
        if isinstance(self.target, MutableMapping):
            return {key: self.read(value) for key, value in self.target.items()}
        return [self.read(item) for item in self.target]

    def outcome(self, operation: Callable[[Side, Any, Draw], Any], draw: Draw) -> Any:
        """What an operation returned or raised, in numbers."""
        try:
            result = operation(self, self.target, draw)
        except KeyError as error:
            return KeyError, error.args
        except (IndexError, ValueError, TypeError) as error:
            return type(error)
        if isinstance(result, list):
            return [self.read(item) for item in result]
        return self.read(result) if isinstance(result, View) else result


LIST_OPERATIONS: dict[str, Callable[[Side, Any, Draw], Any]] = {
    "append": lambda side, x, draw: x.append(side.write(draw.value)),
    "extend": lambda side, x, draw: x.extend(side.writes(draw.values)),
    "insert": lambda side, x, draw: x.insert(draw.at, side.write(draw.value)),
    "pop": lambda side, x, draw: x.pop(draw.at),
    "pop last": lambda side, x, draw: x.pop(),
    "remove": lambda side, x, draw: x.remove(side.write(draw.value)),
    "reverse": lambda side, x, draw: x.reverse(),
    "sort": lambda side, x, draw: x.sort(key=side.read, reverse=draw.at > 0),
    "clear": lambda side, x, draw: x.clear(),
    "get": lambda side, x, draw: x[draw.at],
    "get slice": lambda side, x, draw: x[draw.part],
    "set": lambda side, x, draw: x.__setitem__(draw.at, side.write(draw.value)),
    "set slice": lambda side, x, draw: x.__setitem__(draw.part, side.writes(draw.values)),
    "set slice to own": lambda side, x, draw: x.__setitem__(draw.part, x),
    "delete": lambda side, x, draw: x.__delitem__(draw.at),
    "delete slice": lambda side, x, draw: x.__delitem__(draw.part),
    "index": lambda side, x, draw: x.index(side.write(draw.value)),
    "count": lambda side, x, draw: x.count(side.write(draw.value)),
    "contains": lambda side, x, draw: side.write(draw.value) in x,
    "add in place": lambda side, x, draw: x.__iadd__(side.writes(draw.values)) is x,
    "extend by own": lambda side, x, draw: x.extend(x) if len(x) < 20 else None,
}

DICT_OPERATIONS: dict[str, Callable[[Side, Any, Draw], Any]] = {
    "set": lambda side, x, draw: x.__setitem__(draw.key, side.write(draw.value)),
    "get": lambda side, x, draw: x[draw.key],
    "get or": lambda side, x, draw: x.get(draw.key, -1),
    "delete": lambda side, x, draw: x.__delitem__(draw.key),
    "pop": lambda side, x, draw: x.pop(draw.key),
    "pop or": lambda side, x, draw: x.pop(draw.key, -1),
    "update": lambda side, x, draw: x.update(side.entries(draw.entries)),
    "set default": lambda side, x, draw: x.setdefault(draw.key, side.write(draw.value)),
    "contains": lambda side, x, draw: draw.key in x,
    "clear": lambda side, x, draw: x.clear(),
    "or in place": lambda side, x, draw: x.__ior__(side.entries(draw.entries)) is x,
    "keys": lambda side, x, draw: len(x.keys()),
}

SIDES: dict[str, Callable[[], tuple[Side, Side]]] = {
    "list of numbers": lambda: (Side([]), Side(Specific().versions)),
    "list of messages": lambda: (
        Side([]),
        Side(ModelConfigList(), lambda value: ModelConfig(name=str(value)), lambda item: int(item.name)),
    ),
    "list of raw messages": lambda: (
        Side([]),
        Side(
            ModelConfigList().config,
            lambda value: ModelConfig(name=str(value)).pb,
            lambda item: int(item.name),
        ),
    ),
    "dict of numbers": lambda: (Side({}), Side(ModelConfig().version_labels)),
    "dict of messages": lambda: (
        Side({}),
        Side(
            SignatureDefMap(), lambda value: {"method_name": str(value)}, lambda item: int(item.method_name)
        ),
    ),
}


@pytest.mark.parametrize("kind", SIDES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_lists_and_dicts_behave_as_those_of_python(kind: str, data: st.DataObject) -> None:
    """Any operations have the results, return values and errors that they have on a list or dict."""
    model, real = SIDES[kind]()
    operations = LIST_OPERATIONS if kind.startswith("list") else DICT_OPERATIONS
    for _ in range(data.draw(st.integers(1, 8))):
        name, draw = data.draw(st.sampled_from(sorted(operations))), data.draw(Draw.strategy())
        assert model.outcome(operations[name], draw) == real.outcome(operations[name], draw), name
        assert model.plain() == real.plain(), name
        assert len(model.target) == len(real.target)


def test_items_taken_out_live_on() -> None:
    """A view popped off a list or dict keeps its content, whatever happens to where it was."""
    models = ModelConfigList([{"name": "a"}, {"name": "b"}])
    popped = models.pop(0)
    models.clear()
    assert popped.name == "a"
    popped.name = "still mine"
    assert popped == ModelConfig(name="still mine")
    signatures = SignatureDefMap({"x": {"method_name": "m"}})
    taken = signatures.pop("x")
    signatures.clear()
    assert taken.method_name == "m"
    assert SignatureDefMap({"x": taken})["x"].method_name == "m"


def test_lists_add_and_compare_as_lists() -> None:
    """``+`` gives a list, ``==`` compares with lists and protobuf's containers, and with nothing else."""
    names = PredictRequest(output_filter=["a", "b"]).output_filter
    assert names + ["c"] == ["a", "b", "c"]  # noqa: RUF005
    assert ["z"] + names == ["z", "a", "b"]  # noqa: RUF005
    assert names == names.pb
    assert names != ("a", "b")
    assert names != "ab"
    assert names.copy() == copy.copy(names) == copy.deepcopy(names) == pickle.loads(pickle.dumps(names))
    assert type(names.copy()) is list
    assert names.count("a") == 1
    assert list(reversed(names)) == ["b", "a"]
    assert names[np.int64(1)] == "b"
    with pytest.raises(TypeError, match="unhashable"):
        hash(names)
    with pytest.raises(TypeError, match="holds no messages"):
        names.add()
    for wrong in ("ab", 3, None, {"a": 1}):
        with pytest.raises(TypeError, match=r"PredictRequest\.output_filter: expected a list"):
            names.extend(wrong)  # type: ignore[arg-type]
    configs = ModelConfigList([{"name": "a"}]).config
    duplicate = copy.deepcopy(configs)
    duplicate[0].name = "changed"
    assert configs[0].name == "a"
    assert repr(configs) == "[ModelConfig(name='a')]"


def test_the_implementation_is_the_one_asked_for() -> None:
    """The suite runs on the protobuf implementation that the environment asks for."""
    import os

    assert api_implementation.Type() == os.environ.get(
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", api_implementation.Type()
    )
