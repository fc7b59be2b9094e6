"""GetModelStatus's answer as a sequence of versions."""

from __future__ import annotations

from typing import Any

import pytest

from aioserving import DecodeError, State, VersionStatus, _proto
from aioserving.status import ModelStatus


def response(*versions: tuple[int, int, int, str]) -> bytes:
    message: Any = _proto.message_class("tensorflow.serving.GetModelStatusResponse")()
    for version, state, code, text in versions:
        item = message.model_version_status.add(version=version, state=state)
        item.status.error_code = code
        item.status.error_message = text
    data: bytes = message.SerializeToString()
    return data


def test_versions_states_and_errors() -> None:
    """Highest version first; an error is its code's name and text."""
    status = ModelStatus.from_response("m", response((1, 30, 0, ""), (3, 50, 15, "cut"), (2, 20, 0, "")))
    assert list(status) == [
        VersionStatus(3, State.END, "DATA_LOSS: cut"),
        VersionStatus(2, State.LOADING),
        VersionStatus(1, State.AVAILABLE),
    ]
    assert (len(status), status[0].version, status[1:]) == (3, 3, status.versions[1:])
    assert [item.version for item in status.available] == [1]
    assert [item.version for item in status.failed] == [3]
    assert status[0].ended
    assert str(status) == "m: version 3 END (DATA_LOSS: cut), version 2 LOADING, version 1 AVAILABLE"
    assert len(status.proto.model_version_status) == 3


def test_what_a_newer_server_may_send() -> None:
    """Unknown states and codes are shown, not an error."""
    status = ModelStatus.from_response("m", response((1, 77, 99, "")))
    assert (status[0].state, status[0].error) == (State.UNKNOWN, "99")


def test_an_empty_answer() -> None:
    """No versions is a valid, empty status."""
    assert str(ModelStatus.from_response("m", b"")) == "m: no versions"


def test_bytes_that_are_none() -> None:
    """Garbage is a DecodeError."""
    with pytest.raises(DecodeError):
        ModelStatus.from_response("m", b"\xff\xff")


def test_states_are_protobufs() -> None:
    """Names and numbers are those of `ModelVersionStatus.State`."""
    enum = _proto.message_class("tensorflow.serving.ModelVersionStatus").DESCRIPTOR.enum_types_by_name[
        "State"
    ]
    assert {value.name: value.number for value in enum.values} == {state.name: state.value for state in State}
