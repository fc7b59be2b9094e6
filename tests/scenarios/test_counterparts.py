"""Counterparts of the real server's own Python tests, run by our client against the testing server's process.

The rows of `tensorflow_model_server_test.py` that call Classify, Regress, MultiInference, Predict on
SavedModels, GetModelMetadata and GetModelStatus over gRPC (the reference, section 10.2):

| their test | here |
| --- | --- |
| testGetModelStatus | test_status_and_metadata |
| testGetModelMetadata | test_status_and_metadata |
| testClassify, testClassifyTf2 | test_classify[tf1], [tf2] |
| testRegress, testRegressTf2 | test_regress[tf1], [tf2] |
| testMultiInference, testMultiInferenceTf2 | test_multi_inference[tf1], [tf2] |
| testPredictSavedModel | test_predict[tf1], [tf2] |
| testPredictUDS | test_unix_socket |
| test_tf_saved_model_save | test_predict[tf2] (a TF2 export; the numbers are half_plus_two's) |
| testGoodModelConfig | test_good_model_config |
| testBadModelConfig | test_bad_model_config |
| test_tf_saved_model_save_multiple_signatures | test_classify[tf2], test_regress[tf2] |
| testModelConfigReload, …WithZeroPollPeriod, testGoodGrpcChannelArgs | not here: config, flags |
| test_sequential_keras_…, test_distrat_…, TfLite, test_tf_text, profiler | not here: other runtimes |
| test…REST, testPrometheusEndpoint | not here: belong to the REST part |

The models compute y = x/2 + 2, as half_plus_two does; they are built here, in TF1 and TF2 style.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from aioserving import ClassifyResult, Client, RegressResult
from aioserving.testing.process import ServerProcess, ServerProcessError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.tensorflow

VERSION = 123
X = [{"x": 2.0}]


def export_tf1(folder: Path) -> None:
    """Signatures with their own method names, and a placeholder of unknown rank's equal: any batch."""
    import tensorflow.compat.v1 as tf1

    utils, definition = tf1.saved_model.utils, tf1.saved_model.signature_def_utils.build_signature_def
    graph = tf1.Graph()
    with graph.as_default(), tf1.Session(graph=graph) as session:
        serialized = tf1.placeholder(tf1.string, name="tf_example")
        x = tf1.io.parse_example(serialized, {"x": tf1.io.FixedLenFeature([1], tf1.float32)})["x"]
        y = x / 2.0 + 2.0
        fed = tf1.placeholder(tf1.float32, [None, 1], name="x_in")
        predicted = fed / 2.0 + 2.0

        def made(inputs: dict[str, Any], outputs: dict[str, Any], method: str) -> Any:
            return definition(
                {name: utils.build_tensor_info(value) for name, value in inputs.items()},
                {name: utils.build_tensor_info(value) for name, value in outputs.items()},
                f"tensorflow/serving/{method}",
            )

        builder = tf1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={
                "serving_default": made({"x": fed}, {"y": predicted}, "predict"),
                "classify_x_to_y": made({"inputs": serialized}, {"scores": y}, "classify"),
                "regress_x_to_y": made({"inputs": serialized}, {"outputs": y}, "regress"),
            },
        )
        builder.save()


def export_tf2(folder: Path) -> None:
    """Every signature says that it is for Predict, as TensorFlow 2 exports do."""
    import tensorflow as tf

    def parsed(inputs: Any) -> Any:
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return x / 2.0 + 2.0

    examples = [tf.TensorSpec([None], tf.string, name="inputs")]
    module = tf.Module()
    module.predict = tf.function(
        lambda x: {"y": x / 2.0 + 2.0}, input_signature=[tf.TensorSpec([None, 1], tf.float32, name="x")]
    )
    module.classify = tf.function(lambda inputs: {"scores": parsed(inputs)}, input_signature=examples)
    module.regress = tf.function(lambda inputs: {"outputs": parsed(inputs)}, input_signature=examples)
    tf.saved_model.save(
        module,
        str(folder),
        signatures={
            "serving_default": module.predict,
            "classify_x_to_y": module.classify,
            "regress_x_to_y": module.regress,
        },
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a TF1-style and a TF2-style model."""
    folder = tmp_path_factory.mktemp("models")
    export_tf1(folder / "tf1" / str(VERSION))
    export_tf2(folder / "tf2" / str(VERSION))
    return folder


def config(models: Path) -> str:
    listed = "".join(
        f'config {{ name: "{name}" base_path: "{models / name}" model_platform: "tensorflow" }}\n'
        for name in ("tf1", "tf2")
    )
    return f"model_config_list {{ {listed} }}"


@pytest.fixture(scope="module")
def process(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    path = tmp_path_factory.mktemp("socket") / "serving.sock"
    with ServerProcess(config=config(models), grpc_socket_path=str(path)) as running:
        yield running


@pytest.fixture(scope="module")
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as connected:
        yield connected


both_styles = pytest.mark.parametrize("model", ["tf1", "tf2"])


def check_spec(result: Any, model: str, signature_name: str) -> None:
    spec = result.model_spec
    assert (spec.name, spec.version, spec.signature_name) == (model, VERSION, signature_name)


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
    """Two results in order, each with its model_spec and version."""
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
    """3, with and without a filter; the model_spec is echoed."""
    for output_filter in (None, ["y"]):
        result = client.predict(model, {"x": [[2.0]]}, output_filter=output_filter)
        assert result["y"].dtype == "float32"
        assert result["y"].tolist() == [[3.0]]
        check_spec(result, model, "serving_default")


def test_status_and_metadata(client: Client) -> None:
    """One version, available, without an error; the metadata is the signatures'."""
    (status,) = client.get_model_status("tf1")
    assert (status.version, status.error) == (VERSION, None)
    metadata = client.get_model_metadata("tf1")
    assert (metadata.name, metadata.version) == ("tf1", VERSION)
    assert list(metadata.proto.metadata) == ["signature_def"]
    inputs = metadata.signature().example_inputs(2)
    assert client.predict("tf1", inputs)["y"].tolist() == [[2.0], [2.0]]


def test_unix_socket(process: ServerProcess) -> None:
    """Predict over a Unix socket."""
    with Client(f"unix:{process.unix_socket}") as connected:
        assert connected.predict("tf2", {"x": [[2.0]]})["y"].tolist() == [[3.0]]


def test_good_model_config(client: Client) -> None:
    """Two models out of one config file are both served."""
    assert [client.regress(name, X, signature_name="regress_x_to_y")[0] for name in ("tf1", "tf2")] == [
        3.0
    ] * 2


def test_bad_model_config() -> None:
    """A malformed config ends the server, and standard error says why."""
    with pytest.raises(
        ServerProcessError, match=r"Error parsing text-format tensorflow\.serving\.ModelServerConfig"
    ):
        ServerProcess(config="improper model config file").start()


@both_styles
def test_missing_and_mistyped_features(client: Client, model: str) -> None:
    """The server names the feature that an example lacks, or has in another type."""
    from aioserving import InvalidArgumentError

    for examples, told in (([{"z": 1.0}], "Feature: x"), ([{"x": 2}], "Data types don't match")):
        with pytest.raises(InvalidArgumentError, match=told):
            client.regress(model, examples, signature_name="regress_x_to_y")
