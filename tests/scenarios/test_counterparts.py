"""Counterparts of the real server's own tests that run SavedModels: our client, the server's process.

`tests/README.md` has the table of which of their tests is which of ours. Here are those of
`tensorflow_model_server_test.py` that call a model over gRPC, with models built in TF1 and TF2 style
(`saved_models`), and the C++ tests of Predict, Classify, Regress, MultiInference and metadata as far as
a client can make their requests. Configurations and reloads without TensorFlow are the business of
`test_counterparts_config`; REST in its details is `tests/testing/test_rest.py`'s.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioserving import (
    ClassifyResult,
    Client,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
    RegressResult,
    RPCError,
)
from aioserving.messages import ClassificationRequest, Input, MultiInferenceRequest, RegressionRequest
from aioserving.testing.process import ServerProcess, ServerProcessError
from tests.scenarios import saved_models
from tests.scenarios.polling import eventually, rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tensorflow

VERSION = 123
X = [{"x": 2.0}]
CLASSIFY, REGRESS, PREDICT = (f"tensorflow/serving/{name}" for name in ("classify", "regress", "predict"))

#: Name of a model -> what writes a version of it.
MODELS = {
    "tf1": saved_models.export_half_plus_two_tf1,
    "tf2": saved_models.export_half_plus_two_tf2,
    "half_plus_three": saved_models.export_half_plus_three,
    "counter": saved_models.export_counter,
    "product": saved_models.export_product,
    "two_signatures": saved_models.export_two_signatures,
    "keras": saved_models.export_keras,
    "keras_mirrored": saved_models.export_keras_mirrored,
}

#: Folder names of versions and of what is none, and for some policies the versions that are served.
FOLDERS = ("non_numerical_child", "42", "33", "30", "21", "00017", "20170111173521", "5.denied")
POLICIES = {
    "policy_default": ("", [20170111173521]),
    "policy_latest": ("latest { }", [20170111173521]),
    "policy_latest_3": ("latest { num_versions: 3 }", [20170111173521, 42, 33]),
    "policy_all": ("all { }", [20170111173521, 42, 33, 30, 21, 17]),
    "policy_specific": ("specific { versions: 17 versions: 30 }", [30, 17]),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all models, and one with many versions of one of them."""
    pytest.importorskip("keras", reason="Keras, which should come with TensorFlow, makes two of the models")
    folder = tmp_path_factory.mktemp("models")
    for name, export in MODELS.items():
        export(folder / name / str(VERSION))
    versions = folder / "versions"
    versions.mkdir()
    for name in FOLDERS:
        os.symlink(folder / "tf1" / str(VERSION), versions / name)
    (folder / "renamed").mkdir()
    for version in (1, 2, 3):
        os.symlink(folder / "tf1" / str(VERSION), folder / "renamed" / str(version))
    return folder


def entry(name: str, base_path: Path, policy: str = "") -> str:
    policy = f"model_version_policy {{ {policy} }}" if policy else ""
    return f'config {{ name: "{name}" base_path: "{base_path}" model_platform: "tensorflow" {policy} }}\n'


@pytest.fixture(scope="module")
def config(models: Path) -> list[str]:
    """The models of the configuration file, as text, but for one that `test_model_config_reload` swaps."""
    return [
        *(entry(name, models / name) for name in MODELS),
        *(entry(name, models / "versions", policy) for name, (policy, _) in POLICIES.items()),
        entry("renamed", models / "renamed", "all { }"),
    ]


@pytest.fixture(scope="module")
def config_file(models: Path, config: list[str]) -> Path:
    path = models / "models.config"
    rewrite(path, f"model_config_list: {{ {''.join(config)} {entry('swapped_out', models / 'tf1')} }}")
    return path


@pytest.fixture(scope="module")
def process(config_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with all models, which reads its configuration file again every second."""
    socket = tmp_path_factory.mktemp("socket") / "serving.sock"
    with ServerProcess(
        model_config_file=str(config_file),
        model_config_file_poll_wait_seconds=1,
        file_system_poll_wait_seconds=0.1,
        rest_port=0,
        grpc_socket_path=str(socket),
        testing_manage_state_interval_ms=10,
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as connected:
        yield connected


both_styles = pytest.mark.parametrize("model", ["tf1", "tf2"])


def check_spec(result: Any, model: str, signature_name: str) -> None:
    spec = result.model_spec
    assert (spec.name, spec.version, spec.signature_name) == (model, VERSION, signature_name)


def check_predict(
    client: Client,
    model: str,
    value: Any,
    expected: float,
    *,
    output: str = "y",
    signature_name: str | None = None,
    **arguments: Any,
) -> None:
    """The real tests' check: one float, with and without a filter, of the right model_spec."""
    for output_filter in (None, [output]):
        result = client.predict(
            model, {"x": value}, signature_name=signature_name, output_filter=output_filter, **arguments
        )
        assert list(result) == [output]
        assert result[output].dtype == np.float32
        assert result[output].ravel().tolist() == [expected]
        check_spec(result, model, signature_name or "serving_default")


# The Python tests


@both_styles
def test_classify(client: Client, model: str) -> None:
    """One classification with one class, score 3; the model_spec is echoed."""
    result = client.classify(model, X, signature_name="classify_x_to_y")
    assert result.scores.tolist() == [[3.0]]
    assert (result[0].label, result[0].score) == ("", 3.0)
    check_spec(result, model, "classify_x_to_y")


@both_styles
def test_regress(client: Client, model: str) -> None:
    """One regression, 3; the model_spec is echoed."""
    result = client.regress(model, X, signature_name="regress_x_to_y")
    assert result.values.tolist() == [3.0]
    check_spec(result, model, "regress_x_to_y")


@both_styles
def test_multi_inference(client: Client, model: str) -> None:
    """Two results in order, each with its model_spec and version; inputs may be different tensors."""
    tasks = [("regress", "regress_x_to_y"), ("classify", "classify_x_to_y")]
    regress, classify = client.multi_inference(model, tasks, X)
    assert isinstance(regress, RegressResult)
    assert isinstance(classify, ClassifyResult)
    assert regress.values.tolist() == [3.0]
    assert classify[0].score == 3.0
    check_spec(regress, model, "regress_x_to_y")
    check_spec(classify, model, "classify_x_to_y")


@both_styles
def test_predict(client: Client, model: str) -> None:
    """3, with and without a filter; also in the one dimension less that the real test sends unchecked."""
    check_predict(client, model, [[2.0]], 3.0)
    check_predict(client, model, np.array([2.0], np.float32), 3.0, validate=False)


def test_status(client: Client) -> None:
    """One version, available, without an error."""
    (status,) = client.get_model_status("tf1")
    assert (status.version, status.available, status.error) == (VERSION, True, None)


@both_styles
def test_metadata(client: Client, model: str) -> None:
    """The one kind of metadata is the signatures, all of them; a request made from them is accepted."""
    metadata = client.get_model_metadata(model)
    assert (metadata.name, metadata.version) == (model, VERSION)
    assert list(metadata.proto.metadata) == ["signature_def"]
    assert set(metadata.signatures) == {
        "serving_default",
        "classify_x_to_y",
        "classify_x2_to_y3",
        "regress_x_to_y",
        "regress_x_to_y2",
        "regress_x2_to_y3",
    }
    assert list(metadata.internal_signatures) == ([] if model == "tf1" else ["__saved_model_init_op"])
    signature = metadata.signature()
    assert signature.inputs["x"].dtype == np.dtype(np.float32)
    assert signature.inputs["x"].shape == (-1, 1)
    assert client.predict(model, signature.example_inputs(2))["y"].tolist() == [[2.0], [2.0]]


def test_unix_socket(process: ServerProcess) -> None:
    """Predict over a Unix socket."""
    with Client(f"unix:{process.unix_socket}") as connected:
        check_predict(connected, "tf2", [[2.0]], 3.0)


def test_good_model_config(client: Client) -> None:
    """Models out of one config file are all served: half_plus_two gives 3, half_plus_three 4."""
    check_predict(client, "tf1", [[2.0]], 3.0)
    check_predict(client, "half_plus_three", 2.0, 4.0)
    # A signature may be called anything.
    assert client.regress("half_plus_three", X, signature_name=REGRESS).values.tolist() == [4.0]


def test_bad_model_config() -> None:
    """A malformed config ends the server, and standard error says why."""
    with pytest.raises(
        ServerProcessError, match=r"Error parsing text-format tensorflow\.serving\.ModelServerConfig"
    ):
        ServerProcess(config="improper model config file").start()


def test_model_config_reload(client: Client, config: list[str], config_file: Path, models: Path) -> None:
    """Within ten seconds after the file is rewritten, the new model is served, and the old one is not."""
    check_predict(client, "swapped_out", [[2.0]], 3.0)
    with pytest.raises(ModelNotFoundError):
        client.predict("swapped_in", {"x": 2.0})
    entries = [*config, entry("swapped_in", models / "half_plus_three")]
    rewrite(config_file, f"model_config_list: {{ {''.join(entries)} }}")
    client.wait_until_available("swapped_in", timeout=10)
    check_predict(client, "swapped_in", 2.0, 4.0)
    eventually(lambda: client.get_model_status("swapped_out")[0].ended)
    with pytest.raises(ModelNotFoundError, match=r"Latest\(swapped_out\)"):
        client.predict("swapped_out", {"x": [[2.0]]})
    check_predict(client, "tf1", [[2.0]], 3.0)


def test_tf_saved_model_save(client: Client) -> None:
    """A concrete function of TF2, 3 * 2 * x, is served as the default signature: 12."""
    check_predict(client, "product", 2.0, 12.0, output="output_0")


def test_tf_saved_model_save_multiple_signatures(client: Client) -> None:
    """Signatures of a TF2 export are called by their keys: 2 from the custom one, 1 from the default."""
    check_predict(client, "two_signatures", 1.0, 2.0, output="output", signature_name="custom_signature_key")
    check_predict(client, "two_signatures", 1.0, 1.0, output="output")


@pytest.mark.parametrize("model", ["keras", "keras_mirrored"])
def test_sequential_keras_saved_model_save(client: Client, model: str) -> None:
    """A Keras model, also one made under a distribution strategy, answers [[1]] with 2."""
    check_predict(client, model, [[1.0]], 2.0, output="output_0")


def rest(process: ServerProcess, path: str, document: Any = None) -> Any:
    """The JSON answer of a POST, or without a document of a GET."""
    body = None if document is None else json.dumps(document).encode()
    with urllib.request.urlopen(f"{process.rest_url}/v1/models/{path}", body, timeout=20) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        return json.load(answer)


@both_styles
def test_rest(process: ServerProcess, model: str) -> None:
    """REST answers for both styles as gRPC does: rows, columns, classes, regressions, status, metadata."""
    column = [[2.0], [3.0], [4.0]]
    answers = [[3.0], [3.5], [4.0]]
    assert rest(process, f"{model}:predict", {"instances": column}) == {"predictions": answers}
    assert rest(process, f"{model}/versions/{VERSION}:predict", {"inputs": column}) == {"outputs": answers}
    for method, results in (("classify", [[["", 3.0]]]), ("regress", [3.0])):
        document = {"signature_name": f"{method}_x_to_y", "examples": X}
        assert rest(process, f"{model}:{method}", document) == {"results": results}
    state = {
        "version": str(VERSION),
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    assert rest(process, model) == {"model_version_status": [state]}
    metadata = rest(process, f"{model}/metadata")
    assert metadata["model_spec"] == {"name": model, "signature_name": "", "version": str(VERSION)}
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["method_name"] == PREDICT


# The C++ tests: predict_util_test.cc


@both_styles
@pytest.mark.parametrize(
    ("inputs", "output_filter", "message"),
    [
        ({}, None, "input size does not match signature: 0!=1 len({}) != len({x}). Sent extra: {}. Missing "),
        (
            {"unknown_key1": ["any_value"], "unknown_key2": [1.0]},
            None,
            "Sent extra: {unknown_key1,unknown_key2}. Missing but required: {x}.",
        ),
        ({"x": ["any_value"]}, ["y"], "to be float but string is provided"),
        ({"x": [[2.0]]}, ["output_filter"], "output tensor alias not found in signature: output_filter"),
        ({"x": [[2.0]]}, ["y", "y"], "duplicate output tensor alias: y"),
    ],
    ids=["no inputs", "other inputs", "wrong type", "other output", "output twice"],
)
def test_predict_refusals(
    client: Client, model: str, inputs: dict[str, Any], output_filter: list[str] | None, message: str
) -> None:
    """What the client would refuse, sent unchecked, is INVALID_ARGUMENT in the real server's words."""
    given = {
        name: np.array(value, object if isinstance(value[0], str) else np.float32)
        for name, value in inputs.items()
    }
    with pytest.raises(InvalidArgumentError) as caught:
        client.predict(model, given, output_filter=output_filter, validate=False)
    assert message in str(caught.value)


@both_styles
def test_predict_on_other_signatures(client: Client, model: str) -> None:
    """Predict runs signatures that are for Classify and Regress, too, and misses what is not there."""
    for signature_name, output in (("regress_x2_to_y3", "outputs"), ("classify_x2_to_y3", "scores")):
        result = client.predict(model, {"inputs": [[2.0]]}, signature_name=signature_name)
        assert {name: value.tolist() for name, value in result.items()} == {output: [[4.0]]}
        check_spec(result, model, signature_name)
    with pytest.raises(FailedPreconditionError, match='Serving signature key "nope" not found'):
        client.predict(model, {"x": np.zeros(1)}, signature_name="nope", validate=False)


def test_predict_with_customized_signatures(client: Client) -> None:
    """A stateful model whose signatures take nothing, or only give: 0, 1, 0, 1, 4."""
    counter = [
        client.predict("counter", inputs, signature_name=signature_name)["output"].tolist()
        for signature_name, inputs in (
            ("get_counter", {}),
            ("incr_counter", {}),
            ("reset_counter", {}),
            ("incr_counter", {}),
            ("incr_counter_by", {"delta": np.float32(3)}),
        )
    ]
    assert counter == [0.0, 1.0, 0.0, 1.0, 4.0]


# classifier_test.cc, regressor_test.cc, and the context of util_test.cc


@both_styles
def test_examples_with_context(client: Client, model: str) -> None:
    """An example has the features of the context, unless it has its own; order is kept."""
    examples: list[dict[str, float]] = [{}, {"x": 6.0}, {"other": 1}]
    context = {"x": 2.0}
    regressed = client.regress(model, examples, context=context, signature_name="regress_x_to_y")
    assert regressed.values.tolist() == [3.0, 5.0, 3.0]
    classified = client.classify(model, examples, context=context, signature_name="classify_x_to_y")
    assert classified.scores.tolist() == [[3.0], [5.0], [3.0]]


EMPTY = {
    "no kind": Input(),
    "no examples": Input(example_list={}),
    "only a context": Input(
        example_list_with_context={
            "context": {"features": {"feature": {"x": {"float_list": {"value": [2.0]}}}}}
        }
    ),
}


@both_styles
@pytest.mark.parametrize("given", EMPTY.values(), ids=EMPTY)
def test_empty_inputs(client: Client, model: str, given: Input) -> None:
    """Without an example there is nothing to infer, in all three methods."""
    spec = {"name": model, "signature_name": "regress_x_to_y"}
    for call in (
        lambda: client.regress(RegressionRequest(model_spec=spec, input=given)),
        lambda: client.classify(
            ClassificationRequest(
                model_spec={"name": model, "signature_name": "classify_x_to_y"}, input=given
            )
        ),
        lambda: client.multi_inference(
            MultiInferenceRequest(tasks=[{"model_spec": spec, "method_name": REGRESS}], input=given)
        ),
    ):
        with pytest.raises(InvalidArgumentError, match=r"Input is empty\."):
            call()


@both_styles
@pytest.mark.parametrize(
    ("method", "signature_name", "message"),
    [
        ("classify", "nope", "No signature was found with the name: nope"),
        ("regress", "nope", "No signature was found with the name: nope"),
        ("classify", "regress_x_to_y", "outputs to contain at least one of"),
        ("regress", "classify_x_to_y", "No regression outputs found in SignatureDef"),
        ("classify", "serving_default", "No classification inputs found in SignatureDef"),
        ("regress", "serving_default", "No regression inputs found in SignatureDef"),
        ("classify", "classify_x2_to_y3", "to be float but string is provided"),
        ("regress", "regress_x2_to_y3", "to be float but string is provided"),
    ],
)
def test_signatures_of_another_kind(
    client: Client, model: str, method: str, signature_name: str, message: str
) -> None:
    """A signature that is not there, or not for this method, or takes no Examples, is refused."""
    call = client.classify if method == "classify" else client.regress
    with pytest.raises(InvalidArgumentError) as caught:
        call(model, X, signature_name=signature_name, validate=False)
    assert message in str(caught.value)


@both_styles
def test_missing_and_mistyped_features(client: Client, model: str) -> None:
    """The server names the feature that an example lacks, or has in another type or number."""
    for examples, told in (
        ([{"z": 1.0}], "Feature: x"),
        ([{"x": 2}], "Data types don't match"),
        ([{"x": [1.0, 2.0]}], "Number of float values"),
    ):
        with pytest.raises(InvalidArgumentError, match=told):
            client.regress(model, examples, signature_name="regress_x_to_y")


# multi_inference_test.cc


@both_styles
def test_two_regressions(client: Client, model: str) -> None:
    """Tasks of the same kind have their results in order; so has one task alone."""
    tasks = [("regress", "regress_x_to_y2"), ("regress", "regress_x_to_y")]
    assert [list(result) for result in client.multi_inference(model, tasks, X)] == [[4.0], [3.0]]
    (alone,) = client.multi_inference(model, tasks[1:], X)
    assert list(alone) == [3.0]
    check_spec(alone, model, "regress_x_to_y")


@both_styles
@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([("nope", REGRESS)], "INVALID_ARGUMENT", "Requested signature not found in model graph: nope"),
        (
            [("regress_x_to_y", REGRESS), ("regress_x_to_y", REGRESS)],
            "INVALID_ARGUMENT",
            "Duplicate evaluation of signature: regress_x_to_y",
        ),
        ([("serving_default", PREDICT)], "UNIMPLEMENTED", "Unsupported signature method_name: "),
        ([], "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    ],
    ids=["no signature", "duplicate", "method", "no tasks"],
)
def test_multi_inference_refusals(
    client: Client, model: str, tasks: list[tuple[str, str]], code: str, message: str
) -> None:
    """Tasks that the client would refuse, sent as a ready message, are refused by the server."""
    request = MultiInferenceRequest(
        tasks=[
            {"model_spec": {"name": model, "signature_name": signature_name}, "method_name": method}
            for signature_name, method in tasks
        ],
        input=examples_of_x(),
    )
    with pytest.raises(RPCError) as caught:
        client.multi_inference(request)
    assert caught.value.code == code
    assert message in str(caught.value)


def test_multi_inference_over_two_models(client: Client) -> None:
    """All tasks have to name one model."""
    request = MultiInferenceRequest(
        tasks=[
            {"model_spec": {"name": name, "signature_name": "regress_x_to_y"}, "method_name": REGRESS}
            for name in ("tf1", "tf2")
        ],
        input=examples_of_x(),
    )
    with pytest.raises(InvalidArgumentError, match="must access the same model name"):
        client.multi_inference(request)


def examples_of_x() -> Input:
    feature = {"x": {"float_list": {"value": [2.0]}}}
    return Input(example_list={"examples": [{"features": {"feature": feature}}]})


# file_system_storage_path_source_test.cc


@pytest.mark.parametrize("model", POLICIES)
def test_version_names_and_policies(client: Client, model: str) -> None:
    """Folders whose whole name is a number are versions, leading zeros and 64 bits included."""
    expected = POLICIES[model][1]
    eventually(lambda: all(item.available for item in client.get_model_status(model)))
    assert [item.version for item in client.get_model_status(model)] == expected
    for version in expected:
        assert client.predict(model, {"x": [[2.0]]}, version=version).model_spec.version == version
    assert client.predict(model, {"x": [[2.0]]}).model_spec.version == max(expected)


def test_renamed_version_folders(client: Client, models: Path) -> None:
    """A version whose folder is renamed or removed is not served any more; the others are."""
    eventually(lambda: [item.version for item in client.get_model_status("renamed").available] == [3, 2, 1])
    (models / "renamed" / "2").rename(models / "renamed" / "2.denied")
    (models / "renamed" / "3").unlink()
    eventually(lambda: [item.version for item in client.get_model_status("renamed").available] == [1])
    for version in (2, 3):
        with pytest.raises(ModelNotFoundError, match=rf"Specific\(renamed, {version}\)"):
            client.predict("renamed", {"x": [[2.0]]}, version=version)
    assert client.predict("renamed", {"x": [[2.0]]}).model_spec.version == 1
