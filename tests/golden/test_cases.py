"""The loader of the recordings, and its comparisons: a comparison that cannot fail would prove nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from aioserving._proto import message_class
from tests.golden import cases
from tests.golden.exceptions import EXCEPTIONS, message_accepted

INDEX = json.loads((cases.HERE / "INDEX.json").read_text())


def case_of(case_id: str) -> cases.Case:
    group, _, name = case_id.partition("/")
    return next(case for case in cases.load(group) if case.name == name)


def test_every_recorded_case_is_loaded() -> None:
    """The groups together have exactly the cases of the recordings' index, with its codes and messages."""
    loaded = {case.id: case for group in cases.groups() for case in cases.load(group)}
    assert loaded.keys() == {row["path"] for row in INDEX}
    for row in INDEX:
        case = loaded[row["path"]]
        assert (case.path, case.code) == (row["method"], row["code"])
        assert case.message.startswith(row["message"])  # which the index cuts


def test_cases_come_in_recorded_order() -> None:
    """Stories are replayed in the order in which they happened."""
    for group in cases.groups():
        sequence = [case.seq for case in cases.load(group)]
        assert sequence == sorted(set(sequence))


def test_empty_folders_of_the_models_survive_version_control() -> None:
    """Folders without files belong to the recordings, and version control would drop them."""
    for folder in ("empty_version_dir/1", "no_versions", "non_numeric/abc"):
        assert (cases.MODELS / folder).is_dir()


def test_the_table_of_exceptions_names_recorded_cases() -> None:
    """A row for a case that does not exist would excuse nothing."""
    assert EXCEPTIONS.keys() <= {row["path"] for row in INDEX}


def test_a_waived_message_is_held_to_its_pattern() -> None:
    """An exception for a message accepts what its row describes, and nothing else."""
    case = case_of("A_main/uninit_vars")
    assert message_accepted(case, case.message)
    assert not message_accepted(case, "Could not find variable sequential/dense/kernel.")
    assert not message_accepted(case_of("A_main/hp2_basic"), case.message)


def test_map_entries_may_come_in_any_order() -> None:
    """The real server writes map entries in random order, so that order does not count."""
    case = case_of("A_main/mio_all")
    response: Any = cases.response_class("Predict").FromString(case.response)
    outputs = dict(response.outputs)
    rewritten = [_entry(name, outputs[name].SerializeToString()) for name in sorted(outputs, reverse=True)]
    ascending = b"".join(reversed(rewritten))
    descending = b"".join(rewritten)
    spec = case.response[case.response.index(b"\x12", sum(map(len, rewritten))) :]
    assert ascending != descending
    assert cases.same_response("Predict", ascending + spec, descending + spec)
    assert cases.same_response("Predict", case.response, descending + spec)


def _entry(name: str, tensor: bytes) -> bytes:
    body = b"\x0a" + bytes([len(name)]) + name.encode() + b"\x12" + bytes([len(tensor)]) + tensor
    return b"\x0a" + bytes([len(body)]) + body


def test_map_entries_within_any_may_come_in_any_order() -> None:
    """Metadata holds its map inside an Any; its order does not count either."""
    case = case_of("A_main/meta_multi_io")
    response: Any = cases.response_class("GetModelMetadata").FromString(case.response)
    signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
    response.metadata["signature_def"].Unpack(signatures)
    packed = response.metadata["signature_def"]
    names = sorted(signatures.signature_def)
    orders = []
    for order in (names, names[::-1]):
        pieces = []
        for name in order:
            single: Any = message_class("tensorflow.serving.SignatureDefMap")()
            single.signature_def[name].CopyFrom(signatures.signature_def[name])
            pieces.append(single.SerializeToString(deterministic=True))
        packed.value = b"".join(pieces)
        orders.append(response.SerializeToString())
    assert orders[0] != orders[1]
    assert cases.same_response("GetModelMetadata", *orders)
    assert cases.same_response("GetModelMetadata", case.response, orders[1])


@pytest.mark.parametrize("position", range(0, 57, 3))
def test_a_different_byte_is_seen(position: int) -> None:
    """Everything but the order of maps counts: each byte of an answer is compared."""
    case = case_of("A_main/hp2_basic")
    changed = bytearray(case.response)
    changed[position % len(changed)] ^= 1
    try:
        same = cases.same_response("Predict", case.response, bytes(changed))
    except (IndexError, KeyError):  # no message at all any more
        same = False
    assert not same


def test_the_encoding_counts_too() -> None:
    """Equal values in tensor_content instead of typed fields are a different answer."""
    typed, content = (
        case_of("A_main/dtype_int32_vec_content"),
        case_of("B_tensor_content/dtype_int32_vec_content"),
    )
    assert typed.request == content.request
    assert not cases.same_response("Predict", typed.response, content.response)


def test_floats_of_the_image_models_may_differ_in_the_last_bits() -> None:
    """What depends on the CPU is compared with a tolerance, and only that."""
    case = case_of("A_main/mnist_batch2")
    assert case.approximate
    assert not case_of("A_main/hp2_basic").approximate
    response: Any = cases.response_class("Predict").FromString(case.response)
    (output,) = response.outputs.values()
    output.float_val[0] += 1e-7
    nearly = response.SerializeToString()
    output.float_val[0] += 0.1
    wrong = response.SerializeToString()
    assert nearly != case.response
    assert cases.same_response("Predict", case.response, nearly, approximate=True)
    assert not cases.same_response("Predict", case.response, nearly)
    assert not cases.same_response("Predict", case.response, wrong, approximate=True)


def test_the_prefix_of_a_debug_string_does_not_count() -> None:
    """Protobuf varies the prefix and the blanks of a DebugString from process to process; the rest counts."""
    message = case_of("A_main/hp2_regress_default").message
    assert "goo.gle/debugonly" in message
    varied = message.replace("goo.gle/debugonly    ", "goo.gle/debugproto  ")
    assert cases.same_message(message, varied)
    assert not cases.same_message(message, varied.replace("DT_FLOAT", "DT_DOUBLE"))
    assert not cases.same_message("Input is empty.", "Input is  empty.")


def test_folders_are_put_in_and_taken_out() -> None:
    """Recorded paths name $MODELS; a replay has real folders, and its answers are compared without them."""
    case = case_of("D_loaderr/001_reload_corrupt_pb")
    request: Any = cases.request_class(case.method).FromString(cases.request_with_folders(case))
    paths = [config.base_path for config in request.config.model_config_list.config]
    assert str(cases.MODELS / "corrupt_pb") in paths
    assert cases.anonymous(cases.substitute(case.message)) == case.message
    assert str(cases.MODELS) in cases.substitute(case.message)
    status = case_of("D_loaderr/002_status_corrupt_pb")
    response: Any = cases.response_class(status.method).FromString(status.response)
    for version in response.model_version_status:
        version.status.error_message = cases.substitute(version.status.error_message)
    answer = response.SerializeToString()
    assert answer != status.response
    assert cases.anonymous_response(status.method, answer) == status.response


def test_configurations_name_real_folders() -> None:
    """Every configuration is ready to use, but for the upstream models where they are absent."""
    for group in cases.groups():
        assert "$MODELS" not in cases.server_config(group).config
    assert cases.server_config("E_batching").batching_parameters is not None
    assert cases.server_config("B_tensor_content").flags["enable_serialization_as_tensor_content"] == 1


def test_missing_upstream_models_skip_their_cases_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the upstream models, the static groups go on with the others, and stories say why they stop."""
    monkeypatch.setattr(cases, "testdata_dir", lambda: None)
    assert "upstream models" in (cases.skip_reason(case_of("A_main/hp2_basic")) or "")
    assert cases.skip_reason(case_of("A_main/mio_all")) is None
    assert cases.skip_reason(case_of("D_loaderr/001_reload_corrupt_pb")) is not None
    config = cases.server_config("A_main").config
    assert "$TESTDATA" not in config
    assert 'name: "multi_io"' in config
    assert 'name: "half_plus_two"' not in config
