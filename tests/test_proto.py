"""`aioserving._proto`: TensorFlow Serving's messages without TensorFlow, and one set of classes with it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import textwrap

import pytest

from aioserving import _proto
from aioserving._proto import generate

HAS_TENSORFLOW = importlib.util.find_spec("tensorflow") is not None
needs_tensorflow = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(not HAS_TENSORFLOW, reason="TensorFlow is not installed (slim environment)"),
]


def run_python(code: str, **environment: str) -> str:
    """Run `code` in a fresh interpreter; what it prints, or a failed test with its traceback."""
    import os

    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=110,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", **environment},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


#: What the installed tensorflow-serving-api has: the oldest one that is supported lacks PlatformConfig.
PRESENT = sorted(
    name
    for name, module in _proto.MODULES.items()
    if module.startswith("tensorflow.") or _proto._find(module) is not None
)

LOAD_ALL = f"""
    import sys
    from aioserving import _proto
    classes = {{name: _proto.message_class(name) for name in {PRESENT}}}
"""


def test_at_most_platform_configs_are_missing() -> None:
    """Every message but PlatformConfig is in every supported tensorflow-serving-api."""
    assert {name.rpartition(".")[2] for name in set(_proto.MODULES) - set(PRESENT)} <= {
        "PlatformConfig",
        "PlatformConfigMap",
    }


@pytest.mark.parametrize("name", PRESENT)
def test_every_listed_message_loads_under_its_own_name(name: str) -> None:
    """The table of modules names the module that defines each message."""
    assert _proto.message_class(name).DESCRIPTOR.full_name == name


def test_nested_messages_go_by_their_protobuf_name() -> None:
    """A message inside a message is found through its parent."""
    kind = _proto.message_class("tensorflow.TensorInfo.CooSparse")
    assert kind.DESCRIPTOR.full_name == "tensorflow.TensorInfo.CooSparse"


def test_an_unknown_message_is_a_key_error() -> None:
    """A misspelt name is not taken for a missing package."""
    with pytest.raises(KeyError, match="Predictrequest"):
        _proto.message_class("tensorflow.serving.Predictrequest")


def test_loading_every_message_runs_no_tensorflow() -> None:
    """Not one module named tensorflow is in `sys.modules` afterwards, not even a stand-in."""
    out = run_python(
        LOAD_ALL + "\n    print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'keras')])"
    )
    assert out == "[]"


def test_importing_aioserving_loads_no_generated_module() -> None:
    """Protobuf modules are loaded by the first call that needs them, not at import."""
    out = run_python(
        """
        import sys, aioserving
        print([m for m in sys.modules if m.endswith('_pb2') or m.split('.')[0] in ('tensorflow', 'keras')])
        """
    )
    assert out == "[]"


def test_tensorflow_serving_modules_need_no_tensorflow_afterwards() -> None:
    """Users' own `from tensorflow_serving.apis import …` finds what was loaded, so it costs nothing."""
    out = run_python(
        LOAD_ALL
        + """
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
    import tensorflow_serving.apis.model_pb2 as model_pb2
    print(predict_pb2.PredictRequest is classes["tensorflow.serving.PredictRequest"],
          model_pb2.ModelSpec is classes["tensorflow.serving.ModelSpec"],
          "tensorflow" in sys.modules)
    """
    )
    assert out == "True True False"


def test_messages_pickle() -> None:
    """Raw messages of tensorflow_serving go through pickle (multiprocessing) without TensorFlow."""
    out = run_python(
        LOAD_ALL
        + """
    import pickle
    spec = classes["tensorflow.serving.ModelSpec"](name="digits")
    print(pickle.loads(pickle.dumps(spec)) == spec, "tensorflow" in sys.modules)
    """
    )
    assert out == "True False"


def test_a_missing_serving_api_names_what_to_install() -> None:
    """Without tensorflow-serving-api the error says how to get it, and how without TensorFlow."""
    out = run_python(
        """
        from importlib.machinery import PathFinder
        from aioserving import _proto
        real = PathFinder.find_spec
        PathFinder.find_spec = classmethod(
            lambda cls, name, path=None, target=None:
                None if name.startswith("tensorflow_serving") else real(name, path, target))
        try:
            _proto.message_class("tensorflow.serving.ModelSpec")
        except ImportError as error:
            print(error)
        """
    )
    assert "pip install -U tensorflow-serving-api" in out
    assert "--no-deps" in out


NO_TENSORFLOW = """
    from importlib.machinery import PathFinder
    real_find_spec = PathFinder.find_spec
    PathFinder.find_spec = classmethod(
        lambda cls, name, path=None, target=None:
            None if name == "tensorflow" else real_find_spec(name, path, target))
"""


def test_without_tensorflow_the_shipped_descriptors_serve() -> None:
    """A slim install has every message, of TensorFlow too, and they carry data."""
    out = run_python(
        NO_TENSORFLOW
        + LOAD_ALL
        + """
    request = classes["tensorflow.serving.PredictRequest"]()
    request.inputs["x"].dtype = 1
    request.inputs["x"].float_val.append(1.5)
    again = type(request).FromString(request.SerializeToString())
    print(again == request, again.inputs["x"].float_val[0],
          isinstance(again.inputs["x"], classes["tensorflow.TensorProto"]))
    """
    )
    assert out == "True 1.5 True"


@pytest.mark.parametrize("implementation", ["upb", "python"])
def test_both_protobuf_runtimes_load(implementation: str) -> None:
    """The pure-Python protobuf runtime loads the same modules, with and without TensorFlow's files."""
    for prefix in ("", NO_TENSORFLOW):
        out = run_python(
            prefix + LOAD_ALL + "\n    print(len(classes))",
            PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION=implementation,
        )
        assert out == str(len(PRESENT))


def test_threads_load_one_set_of_classes() -> None:
    """Many threads that ask at the same moment get the same class and no half-made module."""
    out = run_python(
        f"""
        import threading
        from aioserving import _proto
        barrier, found = threading.Barrier(8), []
        def load():
            barrier.wait()
            found.append({{name: _proto.message_class(name) for name in {PRESENT}}})
        threads = [threading.Thread(target=load) for _ in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        print(len(found), all(classes == found[0] for classes in found))
        """
    )
    assert out == "8 True"


CHECK_TENSORFLOW = """
    assert tf.constant([1.0]).numpy()[0] == 1.0
    from tensorflow.core.framework import tensor_pb2
    from tensorflow_serving.apis import predict_pb2, get_model_metadata_pb2
    proto = tf.make_tensor_proto([1.0, 2.0])
    assert isinstance(proto, classes["tensorflow.TensorProto"])
    assert tensor_pb2.TensorProto is classes["tensorflow.TensorProto"]
    assert predict_pb2.PredictRequest is classes["tensorflow.serving.PredictRequest"]
    request = predict_pb2.PredictRequest()
    request.inputs["x"].CopyFrom(proto)
    assert isinstance(request, _proto.message_class("tensorflow.serving.PredictRequest"))
    assert tf.make_ndarray(request.inputs["x"]).tolist() == [1.0, 2.0]
    assert tf.saved_model.save and tf.compat.v1.Session and tf.train.Example
    assert tf.train.Example is classes["tensorflow.Example"]
    print("complete")
"""


class TestBesideTensorFlow:
    """Whatever the order, TensorFlow is complete and there is one set of classes."""

    pytestmark = needs_tensorflow

    def test_tensorflow_after(self) -> None:
        """A later import gives a complete TensorFlow."""
        assert run_python(LOAD_ALL + "\n    import tensorflow as tf" + CHECK_TENSORFLOW) == "complete"

    def test_tensorflow_before(self) -> None:
        """An earlier import is not disturbed."""
        assert run_python("\n    import tensorflow as tf" + LOAD_ALL + CHECK_TENSORFLOW) == "complete"

    def test_tensorflow_lazily(self) -> None:
        """An import between two messages, when half of them are loaded, is no problem either."""
        out = run_python(
            """
    from aioserving import _proto
    _proto.message_class("tensorflow.TensorProto")
    import tensorflow as tf
    """
            + LOAD_ALL
            + CHECK_TENSORFLOW
        )
        assert out == "complete"

    @pytest.mark.parametrize("head_start", [0.0, 0.05, 0.5])
    def test_tensorflow_in_another_thread(self, head_start: float) -> None:
        """An import that runs in another thread at the same moment gives a complete TensorFlow."""
        out = run_python(
            f"""
    import threading, time
    from aioserving import _proto
    def load_tensorflow():
        import tensorflow
    thread = threading.Thread(target=load_tensorflow)
    thread.start()
    time.sleep({head_start})  # different stages of TensorFlow's own import
    classes = {{name: _proto.message_class(name) for name in {PRESENT}}}
    thread.join()
    import tensorflow as tf
    """
            + CHECK_TENSORFLOW
        )
        assert out == "complete"

    def test_the_shipped_descriptors_are_what_the_script_writes(self) -> None:
        """`python -m aioserving._proto.generate` reproduces the shipped file for this TensorFlow."""
        import importlib.metadata
        import importlib.resources

        from google.protobuf import descriptor_pb2

        if not importlib.metadata.version("tensorflow").startswith("2.21."):
            pytest.skip("the shipped descriptors were made with TensorFlow 2.21")
        shipped = importlib.resources.files(_proto).joinpath(_proto.DESCRIPTOR_SET).read_bytes()
        parse = descriptor_pb2.FileDescriptorSet.FromString
        assert parse(shipped) == parse(generate.descriptor_set())
