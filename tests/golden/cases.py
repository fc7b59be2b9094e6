"""The recordings of the real server, ready to replay and to compare with.

`load` gives the cases of a group in recorded order; `server_config` gives the configuration that the
group was recorded under. Recorded configurations, requests and messages name folders ``$MODELS`` and
``$TESTDATA``: `substitute` and `request_with_folders` put real folders in, `anonymous` and
`anonymous_response` take them out again. `same_code`, `same_message` and `same_response` say whether an
answer is the recorded one.

``$MODELS`` is the `models` folder here. ``$TESTDATA`` is a folder of models that belong to TensorFlow
Serving and stay outside this repository; `skip_reason` tells for each case whether it can be replayed.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from aioserving._proto import message_class

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = [
    "MODELS",
    "Case",
    "ServerConfig",
    "anonymous",
    "anonymous_response",
    "canonical",
    "groups",
    "load",
    "request_class",
    "request_with_folders",
    "response_class",
    "same_code",
    "same_message",
    "same_response",
    "server_config",
    "skip_reason",
    "substitute",
    "testdata_dir",
]

HERE = Path(__file__).resolve().parent

#: The models made for the recordings, ``$MODELS``.
MODELS = HERE / "models"

#: Method (short name) -> its request and response messages.
_MESSAGES = {
    "Predict": ("PredictRequest", "PredictResponse"),
    "Classify": ("ClassificationRequest", "ClassificationResponse"),
    "Regress": ("RegressionRequest", "RegressionResponse"),
    "MultiInference": ("MultiInferenceRequest", "MultiInferenceResponse"),
    "GetModelMetadata": ("GetModelMetadataRequest", "GetModelMetadataResponse"),
    "GetModelStatus": ("GetModelStatusRequest", "GetModelStatusResponse"),
    "HandleReloadConfigRequest": ("ReloadConfigRequest", "ReloadConfigResponse"),
}

#: Groups whose server never changes: without the upstream models, the rest of their cases still holds.
_STATIC_GROUPS = frozenset({"A_main", "B_tensor_content", "E_batching", "F_sig_check"})

#: Models whose floats depend on the CPU (the recordings' own words: "may differ in the last bits").
_APPROXIMATE_MODELS = frozenset({"mnist", "mnist_sm"})

_NO_TESTDATA = "needs the upstream models, and there is no ../shared/golden/testdata beside the repository"


@dataclass(frozen=True)
class Case:
    """One recorded call. Requests and messages still name ``$MODELS`` and ``$TESTDATA``."""

    group: str
    name: str
    #: Position within the group, from 1.
    seq: int
    #: As on the wire, ``/tensorflow.serving.PredictionService/Predict``.
    path: str
    #: Short name of the method, ``Predict``.
    method: str
    #: Name of the gRPC status code.
    code: str
    #: The status message.
    message: str
    has_response: bool
    description: str
    notes: str
    #: How often the recorder sent the request in a row; the answer recorded is the first one.
    sent: int
    #: Deadline of the recorded call in seconds, or None.
    timeout: float | None
    #: The model names in the request, as far as its text shows them.
    models: tuple[str, ...] = field(repr=False)
    needs_testdata: bool = field(repr=False)

    @property
    def id(self) -> str:
        """``group/name``, the key of the recordings' index and of `exceptions`."""
        return f"{self.group}/{self.name}"

    @functools.cached_property
    def request(self) -> bytes:
        """The serialized request, as recorded."""
        return (HERE / self.group / f"{self.name}.request.bin").read_bytes()

    @functools.cached_property
    def response(self) -> bytes:
        """The serialized response, as recorded; empty when there is none."""
        return (HERE / self.group / f"{self.name}.response.bin").read_bytes()

    @property
    def approximate(self) -> bool:
        """Whether floats of the answer depend on the CPU in their last bits."""
        return not _APPROXIMATE_MODELS.isdisjoint(self.models)

    @property
    def client_deadline(self) -> bool:
        """Whether the recorded status is the client library's own: its deadline passed before an answer."""
        return self.code == "DEADLINE_EXCEEDED" and self.timeout is not None


@dataclass(frozen=True)
class ServerConfig:
    """What a group's server was started with."""

    #: Text of the ModelServerConfig, with real folders.
    config: str
    #: Flags of tensorflow_model_server that were not at their default.
    flags: Mapping[str, int]
    #: Text of the batching parameters file, or None where batching was off.
    batching_parameters: str | None


def testdata_dir() -> Path | None:
    """The folder of the upstream models, ``$TESTDATA``, or None where it is absent."""
    folder = HERE.parents[2] / "shared" / "golden" / "testdata"
    return folder if folder.is_dir() else None


def groups() -> list[str]:
    """Names of all groups with cases, sorted."""
    return sorted({path.parent.name for path in HERE.glob("*/_server.json")})


@functools.cache
def load(group: str) -> list[Case]:
    """The cases of `group` in the order they were recorded in."""
    upstream = set(re.findall(r'name: "([^"]*)" base_path: "\$TESTDATA', _server(group)["config"]))
    whole_group = group not in _STATIC_GROUPS and (
        bool(upstream) or any("$TESTDATA" in path.read_text() for path in (HERE / group).glob("*.json"))
    )
    cases = []
    for path in (HERE / group).glob("*.json"):
        if path.name == "_server.json":
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        models = tuple(
            dict.fromkeys(re.findall(r'^ *name: "([^"]*)"$', record["request_text"] or "", re.MULTILINE))
        )
        cases.append(
            Case(
                group=group,
                name=record["name"],
                seq=record["seq"],
                path=record["method"],
                method=record["method"].rpartition("/")[2],
                code=record["grpc_status_name"],
                message=record["status_message"],
                has_response=record["has_response"],
                description=record["description"],
                notes=record.get("notes", "").strip(),
                sent=2 if "repeat_same_status" in record else 1,
                timeout=record.get("client_timeout_s"),
                models=models,
                needs_testdata=whole_group or not upstream.isdisjoint(models),
            )
        )
    return sorted(cases, key=lambda case: case.seq)


def skip_reason(case: Case) -> str | None:
    """Why `case` cannot be replayed here, or None if it can."""
    return _NO_TESTDATA if case.needs_testdata and testdata_dir() is None else None


def server_config(group: str, *, models: Path | str | None = None) -> ServerConfig:
    """What the server of `group` was started with, with real folders.

    Where the upstream models are absent, they are left out of the configuration of the groups that do
    not change it; the cases that need them are those with a `skip_reason`.

    Args:
        group: name of the group.
        models: the folder to put for ``$MODELS``, where a story writes into it; default: `MODELS`.
    """
    recorded = _server(group)
    config = recorded["config"]
    if testdata_dir() is None and group in _STATIC_GROUPS:
        config = "\n".join(line for line in config.splitlines() if "$TESTDATA" not in line)
    return ServerConfig(
        config=substitute(config, models=models),
        flags=recorded["flags"],
        batching_parameters=recorded["batching_parameters"],
    )


def _server(group: str) -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads((HERE / group / "_server.json").read_text(encoding="utf-8"))
    return recorded


def request_class(method: str) -> type[Message]:
    """The request message of `method` (its short name)."""
    return message_class(f"tensorflow.serving.{_MESSAGES[method][0]}")


def response_class(method: str) -> type[Message]:
    """The response message of `method` (its short name)."""
    return message_class(f"tensorflow.serving.{_MESSAGES[method][1]}")


def substitute(text: str, *, models: Path | str | None = None) -> str:
    """`text` with real folders for ``$MODELS`` and ``$TESTDATA`` (which stays if it is absent)."""
    text = text.replace("$MODELS", str(models or MODELS))
    testdata = testdata_dir()
    return text if testdata is None else text.replace("$TESTDATA", str(testdata))


def anonymous(text: str, *, models: Path | str | None = None) -> str:
    """The opposite of `substitute`."""
    text = text.replace(str(models or MODELS), "$MODELS")
    testdata = testdata_dir()
    return text if testdata is None else text.replace(str(testdata), "$TESTDATA")


def request_with_folders(case: Case, *, models: Path | str | None = None) -> bytes:
    """The request of `case` with real folders in its base paths; other requests as recorded."""
    if case.method != "HandleReloadConfigRequest":
        return case.request
    try:
        request: Any = request_class(case.method).FromString(case.request)
    except DecodeError:
        return case.request
    if not request.config.HasField("model_config_list"):
        return case.request
    for config in request.config.model_config_list.config:
        config.base_path = substitute(config.base_path, models=models)
    serialized: bytes = request.SerializeToString()
    return serialized


def anonymous_response(method: str, response: bytes, *, models: Path | str | None = None) -> bytes:
    """`response` with ``$MODELS`` and ``$TESTDATA`` for the real folders in the statuses it reports."""
    if method != "GetModelStatus":
        return response
    message: Any = response_class(method).FromString(response)
    for version in message.model_version_status:
        if version.status.error_message:
            version.status.error_message = anonymous(version.status.error_message, models=models)
    serialized: bytes = message.SerializeToString()
    return serialized


def same_code(case: Case, code: str) -> bool:
    """Whether `code`, a name such as ``"NOT_FOUND"``, is the recorded one."""
    return code == case.code


def same_message(expected: str, actual: str) -> bool:
    """Whether two status messages (of which `actual` went through `anonymous`) are the same.

    The prefix that protobuf puts before a DebugString, and the blanks that it adds to make the text
    differ from process to process, do not count.
    """
    return expected == actual or _settled(expected) == _settled(actual)


def _settled(message: str) -> str:
    if "goo.gle/debug" not in message:
        return message
    return re.sub(r" +", " ", re.sub(r"goo\.gle/debug\w* *", "", message))


def same_response(method: str, expected: bytes, actual: bytes, *, approximate: bool = False) -> bool:
    """Whether two serialized responses of `method` are the same bytes, up to the order of map entries.

    Args:
        method: short name of the method.
        expected: one response.
        actual: the other.
        approximate: allow 32-bit floats to differ by 1e-5, relatively, as `Case.approximate` says.
    """
    if expected == actual:
        return True
    descriptor = response_class(method).DESCRIPTOR
    if canonical(expected, descriptor) == canonical(actual, descriptor):
        return True
    if not approximate:
        return False
    return _close(response_class(method).FromString(expected), response_class(method).FromString(actual))


def canonical(data: bytes, descriptor: Any) -> bytes:
    """The serialized message `data` with the entries of its maps, at any depth, sorted.

    Nothing else is touched: the order of fields, their encoding and unknown fields stay.
    """
    out: list[bytes] = []
    run: list[bytes] = []  # the entries of one map, which a writer puts one after the other
    run_number = 0
    any_type: Any = None
    for number, head, payload in _fields(data):
        kind = descriptor.fields_by_number.get(number)
        piece = head + payload if payload is not None else head
        is_map = False
        if kind is not None and payload is not None:
            if kind.type == FieldDescriptor.TYPE_MESSAGE:
                is_map = kind.message_type.GetOptions().map_entry
                piece = head + canonical(payload, kind.message_type)
            elif descriptor.full_name == "google.protobuf.Any" and number == 1:
                any_type = message_class(payload.decode().rpartition("/")[2]).DESCRIPTOR
            elif descriptor.full_name == "google.protobuf.Any" and any_type is not None:
                piece = head + canonical(payload, any_type)
        if run and not (is_map and number == run_number):
            out += sorted(run)
            run = []
        if is_map:
            run_number = number
            run.append(piece)
        else:
            out.append(piece)
    return b"".join(out + sorted(run))


def _fields(data: bytes) -> Iterator[tuple[int, bytes, bytes | None]]:
    """Number, head and payload of each field; a field that is not length-delimited is all head."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        wire_type = tag & 7
        if wire_type == 2:
            length, position = _varint(data, position)
            yield tag >> 3, data[start:position], data[position : position + length]
            position += length
            continue
        if wire_type == 0:
            _, position = _varint(data, position)
        else:
            position += {1: 8, 5: 4}[wire_type]
        yield tag >> 3, data[start:position], None


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def _close(expected: Any, actual: Any) -> bool:
    """Whether two messages are equal but for the last bits of their floats."""
    if isinstance(expected, float):
        return bool(abs(expected - actual) <= 1e-5 * max(1.0, abs(expected)))
    if not isinstance(expected, Message):
        return bool(expected == actual)
    if [kind.name for kind, _ in expected.ListFields()] != [kind.name for kind, _ in actual.ListFields()]:
        return False
    for kind, left in expected.ListFields():
        right = getattr(actual, kind.name)
        if hasattr(left, "keys"):
            if left.keys() != right.keys() or not all(_close(left[key], right[key]) for key in left):
                return False
        elif hasattr(left, "__len__") and not isinstance(left, str | bytes):
            if len(left) != len(right) or not all(map(_close, left, right)):
                return False
        elif not _close(left, right):
            return False
    return True
