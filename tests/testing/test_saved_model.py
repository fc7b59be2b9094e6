"""SavedModels: loading as the C++ server loads, running by tensor name, errors in the runtime's own words."""

from __future__ import annotations

import concurrent.futures
import shutil
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from aioserving._proto import message_class
from aioserving.dtypes import numpy_dtype
from aioserving.testing import saved_model
from aioserving.testing.batching import BatchingServable
from aioserving.testing.options import ServerOptions
from aioserving.testing.saved_model import load_servable
from aioserving.testing.servable import array_data_type, as_data_type
from aioserving.testing.status import StatusCode, StatusError
from tests.golden import cases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from aioserving.testing.servable import Servable

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def tf() -> Any:
    import tensorflow

    return tensorflow


@pytest.fixture
def load() -> Iterator[Callable[..., Servable]]:
    """Load a recorded model by name, or any folder; closed in the end."""
    loaded: list[Servable] = []

    def load_one(path: str | Path, **options: Any) -> Servable:
        folder = cases.MODELS / path if isinstance(path, str) else path
        loaded.append(load_servable(folder, ServerOptions(**options)))
        return loaded[-1]

    yield load_one
    for servable in loaded:
        servable.close()


def run(
    servable: Servable, signature: str = "serving_default", timeout: float | None = None, **inputs: Any
) -> Any:
    """Run a signature by aliases; the outputs by alias."""
    definition = servable.signatures[signature]
    feeds = {definition.inputs[alias].name: value for alias, value in inputs.items()}
    aliases = sorted(definition.outputs)
    arrays = servable.run(feeds, [definition.outputs[alias].name for alias in aliases], timeout)
    return dict(zip(aliases, arrays, strict=True))


def refused(call: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(StatusError) as caught:
        call()
    return caught.value.code.name, caught.value.message


def array(*values: float, dtype: str = "float32") -> np.ndarray:
    return np.array(values, dtype)


def string(value: bytes) -> np.ndarray:
    made: np.ndarray = np.empty((), object)
    made[()] = value
    return made


# Running


def test_variables_are_restored_and_outputs_come_by_name(load: Callable[..., Servable]) -> None:
    """A TF2 export runs with its checkpoint's values, and gives each output that is fetched."""
    outputs = run(load("versions/3"), x=array(1, 2))
    assert outputs["y"].tolist() == [4, 5]
    assert outputs["version"].tolist() == 3
    assert outputs["version"].shape == ()


@pytest.mark.parametrize(
    "name",
    [
        "float32",
        "float64",
        "int32",
        "uint8",
        "int16",
        "int8",
        "complex64",
        "int64",
        "bool",
        "bfloat16",
        "uint16",
        "complex128",
        "float16",
        "uint32",
        "uint64",
        "qint8",
        "quint8",
        "qint32",
        "qint16",
        "quint16",
        "float8_e5m2",
        "float8_e4m3fn",
        "int4",
        "uint4",
    ],
)
@pytest.mark.parametrize("shape", [(), (3,), (0, 2)])
def test_every_dtype_passes_through(load: Callable[..., Servable], name: str, shape: tuple[int, ...]) -> None:
    """Arrays of every dtype go into the graph and come out again, with dtype and shape, also as scalars."""
    servable = load("identity_any/1")
    data_type = servable.signatures[name].inputs["x"].dtype
    if name.startswith("q"):
        given = as_data_type(np.ones(shape, name[1:] if name != "quint8" else "uint8"), data_type)
    else:
        given = np.ones(shape).astype(numpy_dtype(data_type))
    output = run(servable, name, x=given)["y"]
    assert array_data_type(output) == data_type
    assert output.shape == shape
    assert output.tobytes() == given.tobytes()


def test_strings_pass_through(load: Callable[..., Servable]) -> None:
    """Strings are object arrays of bytes, with any bytes in them; a scalar is an array too."""
    servable = load("identity_any/1")
    given: np.ndarray = np.array([[b"", b"\0\xff"], [b"a\0", b"\xc3\xa9"]], object)
    assert run(servable, "string", x=given)["y"].tolist() == given.tolist()
    scalar = run(servable, "string", x=string(b"\0x\0"))["y"]
    assert (scalar.shape, scalar.dtype, scalar[()]) == ((), np.dtype(object), b"\0x\0")


def test_any_layout_can_be_fed(load: Callable[..., Servable]) -> None:
    """Views on a request, unaligned, read-only, broadcast or strided, are read right."""
    servable = load("identity_any/1")
    data = b"\0" + np.arange(6, dtype="f4").tobytes()
    unaligned = np.frombuffer(data, "<f4", offset=1)
    assert not unaligned.flags.aligned
    for given in (
        unaligned,
        np.broadcast_to(np.float32(7), (2, 3)),
        unaligned.reshape(2, 3).T,
        unaligned[::-2],
    ):
        assert run(servable, "float32", x=given)["y"].tolist() == given.tolist()


def test_one_tensor_may_be_fetched_twice(load: Callable[..., Servable]) -> None:
    """Two outputs that are one tensor of the graph are both answered."""
    servable = load("versions/1")
    definition = servable.signatures["serving_default"]
    name = definition.outputs["y"].name
    other = definition.outputs["version"].name
    results = servable.run({definition.inputs["x"].name: array(1)}, [name, other, name], None)
    assert [result.tolist() for result in results] == [[2], 1, [2]]


def test_runs_at_the_same_time_do_not_mix(load: Callable[..., Servable]) -> None:
    """A session is run from many threads at once, and each gets its own answer."""
    servable = load("multi_io/1")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda i: run(servable, a=array(i), b=array(i))["sum"].tolist(), range(200)))
    assert sums == [[2 * i] for i in range(200)]


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "message"),
    [
        (
            "div",
            {"x": array(0, dtype="i4")},
            "INVALID_ARGUMENT",
            "Integer division by zero\n\t [[{{function_node __inference_div_818}}{{node FloorDiv}}]]",
        ),
        ("div", {"x": array(0)}, "INVALID_ARGUMENT", "Expects arg[0] to be int32 but float is provided"),
        (
            "matmul",
            {"a": np.ones((2, 3), "f4"), "b": np.ones((2, 2), "f4")},
            "INVALID_ARGUMENT",
            "Matrix size-incompatible: In[0]: [2,3], In[1]: [2,2]\n"
            "\t [[{{node PartitionedCall_2/PartitionedCall/MatMul}}]]",
        ),
        (
            "assert",
            {"msg": string("é".encode()), "ok": np.array(False)},
            "INVALID_ARGUMENT",
            "assertion failed: [é]\n\t [[{{function_node __inference_asrt_848}}{{node Assert}}]]",
        ),
    ],
)
def test_kernel_errors_are_the_runtimes_own(
    load: Callable[..., Servable], signature: str, inputs: dict[str, Any], code: str, message: str
) -> None:
    """An error text is what the C++ server sends, without the decorations of Python sessions."""
    assert refused(lambda: run(load("failing/1"), signature, **inputs)) == (code, message)


def test_an_error_text_that_is_not_utf_8_is_told_anyway(load: Callable[..., Servable]) -> None:
    """Bytes that an error text quotes from a request are replaced where they are no text."""
    bad: np.ndarray = np.array([b"\xff\xfe"], object)
    code, message = refused(lambda: run(load("examples/1"), "predict_parsed", examples=bad))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith("Could not parse example input, value: '\ufffd\ufffd'")


def test_tensors_that_the_graph_lacks_are_refused_by_the_runtime(load: Callable[..., Servable]) -> None:
    """A name that is not in the graph, or has no such output, ends with the runtime's text for it."""
    sparse = load("sparse/1")
    assert refused(lambda: run(sparse, "dense_sparse", sp=array(1))) == (
        "INVALID_ARGUMENT",
        "Tensor :0, specified in either feed_devices or fetch_devices was not found in the Graph",
    )
    assert refused(lambda: run(load("versions/1"), "__saved_model_init_op")) == (
        "OUT_OF_RANGE",
        "Node 'NoOp' (type: 'NoOp', num of outputs: 0) does not have output 0",
    )


def test_a_placeholder_that_is_not_fed_is_named(load: Callable[..., Servable]) -> None:
    """An output whose graph needs more than was fed ends with the runtime's text."""
    servable = load("versions/1")
    fetch = servable.signatures["serving_default"].outputs["y"].name
    code, message = refused(lambda: servable.run({}, [fetch], None))
    assert code == "INVALID_ARGUMENT"
    assert message.startswith(
        "You must feed a value for placeholder tensor 'serving_default_x' with dtype float"
    )


def test_a_timeout_stops_the_graph(load: Callable[..., Servable]) -> None:
    """A run that outlives its timeout ends then, with the text that the real server has."""
    servable = load("failing/1")
    began = time.monotonic()
    assert refused(lambda: run(servable, "slow", timeout=0.2, n=array(10**6, dtype="i4")[0])) == (
        "DEADLINE_EXCEEDED",
        "Timed out waiting for notification",
    )
    assert time.monotonic() - began < 30
    assert (
        refused(lambda: run(servable, "slow", timeout=0, n=array(1, dtype="i4")[0]))[0] == "DEADLINE_EXCEEDED"
    )
    assert run(servable, "slow", timeout=60, n=array(1, dtype="i4")[0])["y"].shape == ()


def test_a_closed_session_says_so(load: Callable[..., Servable]) -> None:
    """After close, a run ends as that of a closed session."""
    servable = load("versions/1")
    run(servable, x=array(1))
    servable.close()
    assert refused(lambda: run(servable, x=array(1))) == ("CANCELLED", "Session has been closed.")


def test_the_repr_tells_folder_and_signatures(load: Callable[..., Servable]) -> None:
    """Looking at a servable tells where it came from."""
    assert repr(load("versions/1")) == (
        f"<SavedModelServable {cases.MODELS / 'versions' / '1'} ['__saved_model_init_op', 'serving_default']>"
    )


# Loading


@pytest.mark.parametrize(
    ("model", "record"),
    [
        ("corrupt_pb/1", "D_loaderr/002_status_corrupt_pb"),
        ("train_tag/1", "D_loaderr/014_status_train_tag"),
        ("empty_version_dir/1", "D_loaderr/020_status_empty_version_dir"),
        ("mixed/4", "D2_states/006_status_mixed"),
    ],
)
def test_load_errors_are_the_recorded_ones(load: Callable[..., Servable], model: str, record: str) -> None:
    """A folder that cannot be loaded fails with the code and text that the real server reports."""
    group, _, name = record.partition("/")
    (case,) = [case for case in cases.load(group) if case.name == name]
    status: Any = cases.response_class(case.method).FromString(case.response)
    expected = status.model_version_status[0].status
    code, message = refused(lambda: load(model))
    assert StatusCode[code] == expected.error_code
    assert cases.anonymous(message) == expected.error_message


def test_a_folder_that_is_not_there_has_no_saved_model(load: Callable[..., Servable], tmp_path: Path) -> None:
    """A missing folder is NOT_FOUND, with the path in the text."""
    code, message = refused(lambda: load(tmp_path / "17"))
    assert code == "NOT_FOUND"
    assert message.endswith(f"Specified file path: {tmp_path / '17'}")


def test_a_missing_checkpoint_shows_when_a_variable_is_read(load: Callable[..., Servable]) -> None:
    """A model without its variables loads, and fails in the recorded way when it runs."""
    (case,) = [case for case in cases.load("D_loaderr") if case.name == "010_predict_missing_variables"]
    servable = load("missing_variables/1")
    assert refused(lambda: run(servable, x=array(1))) == (case.code, case.message)


def test_a_corrupt_checkpoint_fails_the_load(load: Callable[..., Servable], tmp_path: Path) -> None:
    """An unreadable checkpoint is an error of the load, in the runtime's words."""
    shutil.copytree(cases.MODELS / "versions" / "3", tmp_path / "1")
    (tmp_path / "1" / "variables" / "variables.data-00000-of-00001").write_bytes(b"")
    code, message = refused(lambda: load(tmp_path / "1"))
    assert code in {"DATA_LOSS", "OUT_OF_RANGE"}
    assert "Traceback" not in message
    assert "RestoreV2" in message or "variables" in message


def test_an_unknown_operation_fails_the_load(load: Callable[..., Servable], tmp_path: Path) -> None:
    """A graph with an operation that this TensorFlow does not have is NOT_FOUND, with its name."""
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    meta_graph = model.meta_graphs.add()
    meta_graph.meta_info_def.tags.append("serve")
    meta_graph.graph_def.node.add(name="x", op="NoSuchOperation")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    code, message = refused(lambda: load(tmp_path))
    assert code == "NOT_FOUND"
    assert "Op type not registered 'NoSuchOperation'" in message


def test_a_text_saved_model_loads(load: Callable[..., Servable], tmp_path: Path) -> None:
    """saved_model.pbtxt is read where there is no binary one, and refused when it is no SavedModel."""
    from google.protobuf import text_format
    from tensorflow.core.protobuf import saved_model_pb2

    shutil.copytree(cases.MODELS / "multi_io" / "1", tmp_path / "1")
    binary = tmp_path / "1" / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(binary.read_bytes())
    binary.unlink()
    text = tmp_path / "1" / "saved_model.pbtxt"
    text.write_text(text_format.MessageToString(model))
    assert run(load(tmp_path / "1"), a=array(1), b=array(2))["sum"].tolist() == [3]
    text.write_text("meta_graphs { nonsense")
    assert refused(lambda: load(tmp_path / "1")) == ("DATA_LOSS", f"Can't parse {text} as text proto")


def test_the_tags_choose_the_meta_graph(load: Callable[..., Servable]) -> None:
    """The meta graph with exactly the tags of the flag is loaded."""
    assert run(load("train_tag/1", saved_model_tags="train"), x=array(4))["y"].tolist() == [8]
    assert refused(lambda: load("train_tag/1", saved_model_tags="train,gpu")) == (
        "NOT_FOUND",
        "Could not find meta graph def matching supplied tags: { train gpu }. To inspect available tag-sets "
        "in the SavedModel, please use the SavedModel CLI: `saved_model_cli`",
    )


def test_tables_and_asset_files_of_a_tf2_model(
    load: Callable[..., Servable], tmp_path: Path, tf: Any
) -> None:
    """A TF2 export with a vocabulary file works wherever its folder was moved to."""
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("zero\none\ntwo\n")

    class Lookup(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            initializer = tf.lookup.TextFileInitializer(
                str(vocabulary),
                tf.string,
                tf.lookup.TextFileIndex.WHOLE_LINE,
                tf.int64,
                tf.lookup.TextFileIndex.LINE_NUMBER,
            )
            self.table = tf.lookup.StaticHashTable(initializer, -1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])  # type: ignore[untyped-decorator]
        def find(self, words: Any) -> Any:
            return {"ids": self.table.lookup(words)}

    module = Lookup()
    tf.saved_model.save(module, str(tmp_path / "made"), signatures=module.find)
    (tmp_path / "made").rename(tmp_path / "1")
    vocabulary.unlink()
    words: np.ndarray = np.array([b"two", b"none", b"zero"], object)
    assert run(load(tmp_path / "1"), words=words)["ids"].tolist() == [2, -1, 0]


def test_tables_and_asset_files_of_a_tf1_model(
    load: Callable[..., Servable], tmp_path: Path, tf: Any
) -> None:
    """A TF1 export runs its main op with the paths of its asset files, and its saver's restore op."""
    tf1 = tf.compat.v1
    vocabulary = tmp_path / "words.txt"
    vocabulary.write_text("zero\none\ntwo\n")
    with tf1.Graph().as_default(), tf1.Session() as session:
        asset = tf1.constant(str(vocabulary), name="vocabulary")
        tf1.add_to_collection(tf1.GraphKeys.ASSET_FILEPATHS, asset)
        initializer = tf.lookup.TextFileInitializer(
            asset,
            tf.string,
            tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64,
            tf.lookup.TextFileIndex.LINE_NUMBER,
        )
        table = tf.lookup.StaticHashTable(initializer, -1)
        words = tf1.placeholder(tf.string, [None], name="words")
        offset = tf1.get_variable("offset", initializer=np.int64(100), use_resource=True)
        ids = table.lookup(words) + offset
        session.run([tf1.global_variables_initializer(), tf1.tables_initializer()])
        info = tf1.saved_model.build_tensor_info
        signature = tf1.saved_model.build_signature_def(
            {"words": info(words)}, {"ids": info(ids)}, "tensorflow/serving/predict"
        )
        builder = tf1.saved_model.Builder(str(tmp_path / "made"))
        builder.add_meta_graph_and_variables(
            session,
            ["serve"],
            signature_def_map={"serving_default": signature},
            assets_collection=tf1.get_collection(tf1.GraphKeys.ASSET_FILEPATHS),
            main_op=tf1.tables_initializer(),
        )
        builder.save()
    (tmp_path / "made").rename(tmp_path / "1")
    vocabulary.unlink()
    given: np.ndarray = np.array([b"two", b"none"], object)
    assert run(load(tmp_path / "1"), words=given)["ids"].tolist() == [102, 99]


def test_the_parallelism_of_sessions_can_be_set() -> None:
    """The flags for threads reach the session; the common one sets both kinds."""
    config = saved_model._session_config
    both = config(ServerOptions(tensorflow_session_parallelism=3))
    assert (both.intra_op_parallelism_threads, both.inter_op_parallelism_threads) == (3, 3)
    each = config(ServerOptions(tensorflow_intra_op_parallelism=1, tensorflow_inter_op_parallelism=2))
    assert (each.intra_op_parallelism_threads, each.inter_op_parallelism_threads) == (1, 2)


def test_without_tensorflow_the_error_says_what_to_install() -> None:
    """Loading a SavedModel without TensorFlow names both ways out; importing the module needs none."""
    code = (
        "import sys; sys.modules['tensorflow'] = None\n"
        "from aioserving.testing.saved_model import load_servable\n"
        "try: load_servable('anywhere')\n"
        "except ImportError as error: print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install tensorflow" in result.stdout
    assert "CallableServable" in result.stdout


# Warm-up


def test_warm_up_requests_are_replayed(
    load: Callable[..., Servable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded requests run before a model is ready, as often as the flag says; or not at all."""
    seen: list[int] = []
    original = saved_model.SavedModelServable.run

    def counting(self: Any, *arguments: Any) -> Any:
        seen.append(1)
        return original(self, *arguments)

    monkeypatch.setattr(saved_model.SavedModelServable, "run", counting)
    load("warm_ok/1")
    assert len(seen) == 1
    load("warm_ok/1", num_request_iterations_for_warmup=3)
    assert len(seen) == 4
    load("warm_ok/1", enable_model_warmup=False)
    assert len(seen) == 4
    load("warm_empty_log/1")
    assert len(seen) == 4


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        (
            "warm_bad_input/1",
            "INVALID_ARGUMENT",
            "Signature input alias: x(feed name: serving_default_x:0) not ",
        ),
        ("warm_bad_sig/1", "FAILED_PRECONDITION", 'Serving signature key "nope" not found.'),
        ("warm_classify_on_predict/1", "INVALID_ARGUMENT", "No classification inputs found in SignatureDef"),
        ("warm_garbage/1", "INVALID_ARGUMENT", "Failed to parse warmup record: "),
        ("warm_1001/1", "INVALID_ARGUMENT", "Number of warmup records exceeds the maximum (1000) at "),
    ],
)
def test_a_failing_warm_up_fails_the_load(
    load: Callable[..., Servable], model: str, code: str, message: str
) -> None:
    """A warm-up request that ends with an error, and a log that cannot be read, are errors of the load."""
    found, text = refused(lambda: load(model))
    assert found == code
    assert text.startswith(message)


def _with_log(tf: Any, folder: Path, record: bytes) -> Path:
    shutil.copytree(cases.MODELS / "versions" / "3", folder)
    (folder / "assets.extra").mkdir()
    with tf.io.TFRecordWriter(str(folder / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(record)
    return folder


def test_session_runs_cannot_be_replayed(load: Callable[..., Servable], tmp_path: Path, tf: Any) -> None:
    """A recorded SessionRun is UNIMPLEMENTED, as in the real server."""
    log: Any = message_class("tensorflow.serving.PredictionLog")()
    log.session_run_log.SetInParent()
    folder = _with_log(tf, tmp_path / "1", log.SerializeToString())
    code, message = refused(lambda: load(folder))
    assert code == "UNIMPLEMENTED"
    assert message.startswith("Unsupported log_type for warmup: ")


def test_a_damaged_warm_up_file_fails_the_load(
    load: Callable[..., Servable], tmp_path: Path, tf: Any
) -> None:
    """Records are checked; a file that is no log of records is DATA_LOSS."""
    folder = _with_log(tf, tmp_path / "1", b"")
    (folder / "assets.extra" / "tf_serving_warmup_requests").write_bytes(b"nothing of the kind, really")
    assert refused(lambda: load(folder))[0] == "DATA_LOSS"


# Batching


def test_batching_is_on_request(load: Callable[..., Servable], tmp_path: Path) -> None:
    """The flag wraps models for batching, with the server's parameters or, if allowed, their own."""
    shared = tmp_path / "shared.txt"
    shared.write_text("max_batch_size { value: 2 }")
    folder = tmp_path / "1"
    shutil.copytree(cases.MODELS / "multi_io" / "1", folder)
    (folder / "batching_params.pbtxt").write_text("max_batch_size { value: 3 }")
    flags = {"enable_batching": True, "batching_parameters_file": str(shared)}
    sizes = []
    for options in (
        {"enable_batching": True},
        flags,
        {**flags, "enable_per_model_batching_parameters": True},
    ):
        servable = load(folder, **options)
        assert isinstance(servable, BatchingServable)
        sizes.append(servable.parameters.max_batch_size)
    assert sizes == [1000, 2, 3]
    assert not isinstance(load(folder), BatchingServable)


def test_bad_batching_parameters_fail_the_load(load: Callable[..., Servable], tmp_path: Path) -> None:
    """Parameters that contradict each other, or cannot be read, are errors of the load."""
    path = tmp_path / "parameters.txt"
    flags = {"enable_batching": True, "batching_parameters_file": str(path)}
    path.write_text("max_batch_size { value: 4 } allowed_batch_sizes: 2")
    assert refused(lambda: load("multi_io/1", **flags)) == (
        "INVALID_ARGUMENT",
        "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 2; expected 4",
    )
    path.write_text("max_batch_siez { value: 4 }")
    assert refused(lambda: load("multi_io/1", **flags)) == (
        "INVALID_ARGUMENT",
        f"Invalid protobuf file: '{path}'",
    )


def test_concurrent_requests_share_a_run(
    load: Callable[..., Servable], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With batching, calls at the same time become one run of the session."""
    sizes: list[int] = []
    original = saved_model.SavedModelServable.run

    def recording(self: Any, feeds: Any, *arguments: Any) -> Any:
        sizes.append(len(next(iter(feeds.values()))))
        return original(self, feeds, *arguments)

    monkeypatch.setattr(saved_model.SavedModelServable, "run", recording)
    path = tmp_path / "parameters.txt"
    path.write_text(
        "max_batch_size { value: 4 } batch_timeout_micros { value: 60000000 } num_batch_threads { value: 1 }"
    )
    servable = load("multi_io/1", enable_batching=True, batching_parameters_file=str(path))
    barrier = threading.Barrier(4)

    def call(i: int) -> list[float]:
        barrier.wait()
        result: list[float] = run(servable, a=array(i), b=array(1))["sum"].tolist()
        return result

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(call, range(4))) == [[1], [2], [3], [4]]
    assert sizes == [4]
