"""TensorFlow Serving's protobuf messages, loaded without running TensorFlow.

The only place in aioserving that knows where `tensorflow_serving.*_pb2` and
`tensorflow.core.*_pb2` come from. `message_class("tensorflow.serving.PredictRequest")` gives a
message class, loading on first use just the generated modules it needs (a few milliseconds each).

How TensorFlow stays out
    Importing `tensorflow.core.framework.tensor_pb2` runs `tensorflow/__init__.py` first: two
    seconds and half a gigabyte for modules that need none of it. Here a generated module's *code*
    is found with the ordinary path finder (parents are located, never executed) and run in a module
    object of our own, whose `import` statements for the two packages come back to this loader.
    `sys.modules["tensorflow"]` is never touched, not even for a moment. So there is no window in
    which another thread could see half a TensorFlow (a stand-in parent package in `sys.modules`,
    the better known trick, has one), and a later, earlier or simultaneous `import tensorflow` is
    simply unaffected.

Why there is one set of classes
    A generated module adds its descriptor to protobuf's default pool, where adding the same bytes
    again is a no-op, and asks protobuf for a class per descriptor, which returns the existing class
    if there is one. Whoever comes first, TensorFlow or this loader, the other gets the same classes.

Slim installs
    Without an installed `tensorflow`, its messages come from `tensorflow_core.binpb`, a
    FileDescriptorSet made by `python -m aioserving._proto.generate` from an installed TensorFlow.
    It is used only then: an installed TensorFlow may have newer descriptors, and the pool takes one
    definition per file name.
"""

from __future__ import annotations

import builtins
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = ["DESCRIPTOR_SET", "MODULES", "load_module", "message_class"]

#: File name, inside this package, of the descriptors used where TensorFlow is not installed.
DESCRIPTOR_SET = "tensorflow_core.binpb"

#: Where each message that a client meets is defined: full protobuf name -> generated module.
MODULES: Mapping[str, str] = {
    f"{package}.{name}": module
    for package, module, names in (
        ("tensorflow", "tensorflow.core.framework.tensor_pb2", "TensorProto"),
        ("tensorflow", "tensorflow.core.framework.tensor_shape_pb2", "TensorShapeProto"),
        ("tensorflow", "tensorflow.core.example.example_pb2", "Example SequenceExample"),
        (
            "tensorflow",
            "tensorflow.core.example.feature_pb2",
            "Feature Features BytesList FloatList Int64List FeatureList FeatureLists",
        ),
        ("tensorflow", "tensorflow.core.protobuf.meta_graph_pb2", "MetaGraphDef SignatureDef TensorInfo"),
        ("tensorflow", "tensorflow.core.protobuf.saved_model_pb2", "SavedModel"),
        ("tensorflow", "tensorflow.core.protobuf.named_tensor_pb2", "NamedTensorProto"),
        ("tensorflow.serving", "tensorflow_serving.apis.model_pb2", "ModelSpec"),
        ("tensorflow.serving", "tensorflow_serving.apis.predict_pb2", "PredictRequest PredictResponse"),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.classification_pb2",
            "Class Classifications ClassificationResult ClassificationRequest ClassificationResponse",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.regression_pb2",
            "Regression RegressionResult RegressionRequest RegressionResponse",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.inference_pb2",
            "InferenceTask InferenceResult MultiInferenceRequest MultiInferenceResponse",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.input_pb2",
            "Input ExampleList ExampleListWithContext",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.get_model_metadata_pb2",
            "GetModelMetadataRequest GetModelMetadataResponse SignatureDefMap",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.get_model_status_pb2",
            "GetModelStatusRequest GetModelStatusResponse ModelVersionStatus",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.model_management_pb2",
            "ReloadConfigRequest ReloadConfigResponse Metric",
        ),
        ("tensorflow.serving", "tensorflow_serving.apis.status_pb2", "StatusProto"),
        ("tensorflow.serving", "tensorflow_serving.apis.logging_pb2", "LogMetadata"),
        (
            "tensorflow.serving",
            "tensorflow_serving.apis.prediction_log_pb2",
            "PredictionLog PredictLog ClassifyLog RegressLog MultiInferenceLog",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.config.model_server_config_pb2",
            "ModelServerConfig ModelConfig ModelConfigList",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.config.logging_config_pb2",
            "LoggingConfig SamplingConfig",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.config.log_collector_config_pb2",
            "LogCollectorConfig",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.config.platform_config_pb2",
            "PlatformConfig PlatformConfigMap",
        ),
        (
            "tensorflow.serving",
            "tensorflow_serving.config.file_system_storage_path_source_pb2",
            "FileSystemStoragePathSourceConfig",
        ),
    )
    for name in names.split()
}

_PACKAGES = ("tensorflow", "tensorflow_serving")
_modules: dict[str, types.ModuleType] = {}
_classes: dict[str, type[Message]] = {}
# Reentrant: a generated module loads its dependencies while it is being loaded itself.
_lock = threading.RLock()


def message_class(full_name: str) -> type[Message]:
    """The protobuf class of `full_name`, such as ``"tensorflow.serving.PredictRequest"``.

    Nested messages go by their protobuf name (``"tensorflow.TensorInfo.CooSparse"``). The class is
    the one that TensorFlow and `tensorflow_serving.apis` use in this process.

    Raises:
        KeyError: no listed module defines a message of that name.
        ImportError: `tensorflow-serving-api` is not installed.
    """
    found = _classes.get(full_name)
    if found is None:
        outer = full_name
        while outer not in MODULES:
            outer, _, _ = outer.rpartition(".")
            if not outer:
                raise KeyError(full_name)
        found = getattr(load_module(MODULES[outer]), outer.rpartition(".")[2])
        for part in full_name[len(outer) :].split(".")[1:]:
            found = getattr(found, part)
        _classes[full_name] = found
    return found


def load_module(name: str) -> types.ModuleType:
    """The generated module `name` (``"tensorflow_serving.apis.predict_pb2"``), run at most once.

    Raises:
        ImportError: there is no such module, or `tensorflow-serving-api` is not installed.
    """
    module = _modules.get(name)
    if module is not None:
        return module
    with _lock:
        module = _modules.get(name)
        if module is None:
            module = _modules[name] = _run(name)
    return module


def _run(name: str) -> types.ModuleType:
    spec = _find(name)
    if spec is None:
        if name.startswith("tensorflow."):
            return _from_descriptor_set(name)
        hint = "upgrade" if _find("tensorflow_serving.apis.model_pb2") else "install"
        raise ImportError(
            f"cannot find {name}: {hint} tensorflow-serving-api (pip install -U tensorflow-serving-api; "
            "add --no-deps to leave out TensorFlow, which aioserving does not need)",
            name=name,
        )
    module = types.ModuleType(name)
    module.__spec__, module.__loader__, module.__file__ = spec, spec.loader, spec.origin
    module.__package__ = name.rpartition(".")[0]
    # A module's `import` statements call the `__import__` of *its* builtins: ours, in this one.
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import}
    code = spec.loader.get_code(name)  # type: ignore[union-attr]  # source files have one
    exec(code, module.__dict__)  # noqa: S102 - code of an installed package, as `import` runs it
    if name.startswith("tensorflow_serving."):
        _publish(name, module)
    return module


def _find(name: str) -> ModuleSpec | None:
    """Locate a module without running its parents, which is what `importlib.util.find_spec` does."""
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    full_name = ""
    for part in name.split("."):
        full_name = f"{full_name}.{part}" if full_name else part
        spec = PathFinder.find_spec(full_name, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    # A namespace package left behind by an uninstall has no loader to read code with.
    return spec if spec is not None and spec.loader is not None else None


def _import(
    name: str,
    globals: Mapping[str, object] | None = None,
    locals: Mapping[str, object] | None = None,
    fromlist: Sequence[str] | None = (),
    level: int = 0,
) -> Any:
    """`__import__` for generated modules: ``from package import x_pb2`` and ``from x_pb2 import *``."""
    if level == 0 and name.partition(".")[0] in _PACKAGES and fromlist:
        if name.endswith("_pb2"):
            return load_module(name)
        return types.SimpleNamespace(**{item: load_module(f"{name}.{item}") for item in fromlist})
    return builtins.__import__(name, globals, locals, fromlist or (), level)


def _publish(name: str, module: types.ModuleType) -> None:
    """Let ``from tensorflow_serving.apis import x_pb2`` find `module`, so that it needs no TensorFlow either.

    `tensorflow_serving` and its subpackages are empty, so importing them costs nothing. A module
    that somebody else imported already stays: it holds the same classes.
    """
    package, _, leaf = name.rpartition(".")
    parent = builtins.__import__(package, fromlist=("*",))
    if sys.modules.setdefault(name, module) is module:
        setattr(parent, leaf, module)


def _from_descriptor_set(name: str) -> types.ModuleType:
    """What `name`, a module of `tensorflow`, would hold, built from the descriptors we ship."""
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.Default()
    file_name = name.removesuffix("_pb2").replace(".", "/") + ".proto"
    try:
        file = pool.FindFileByName(file_name)
    except KeyError:
        _add_descriptor_set(pool)
        try:
            file = pool.FindFileByName(file_name)
        except KeyError:
            raise ImportError(
                f"cannot find {name}: TensorFlow is not installed, and aioserving ships no {file_name}",
                name=name,
            ) from None
    module = types.ModuleType(name, f"Messages of {file_name}.")
    module.__dict__["DESCRIPTOR"] = file
    for message_name, descriptor in file.message_types_by_name.items():
        setattr(module, message_name, message_factory.GetMessageClass(descriptor))
    for dependency in file.public_dependencies:
        # Generated code reaches what a file re-exports through an alias that protoc makes of its name.
        target = dependency.name.removesuffix(".proto").replace("/", ".") + "_pb2"
        alias = target.replace("_", "__").replace(".", "_dot_")
        setattr(module, alias, _from_descriptor_set(target))
    return module


def _add_descriptor_set(pool: Any) -> None:
    from importlib import import_module, resources

    from google.protobuf import descriptor_pb2

    data = resources.files(__name__).joinpath(DESCRIPTOR_SET).read_bytes()
    # In dependency order, as `generate` wrote them: the pool wants a file's imports first.
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        try:
            pool.FindFileByName(file.name)  # another library brought its own copy; keep that one
        except KeyError:
            for dependency in file.dependency:
                if dependency.startswith("google/protobuf/"):  # known to the pool once imported
                    import_module(dependency.removesuffix(".proto").replace("/", ".") + "_pb2")
            pool.AddSerializedFile(file.SerializeToString())
