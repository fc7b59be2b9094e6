"""Python views of TensorFlow Serving's protobuf messages, one class per message.

    config = ModelConfig(name="digits", base_path="/models/digits", version_labels={"stable": 1})
    config.model_version_policy.specific = [1, 2]
    config.pb                                   # the protobuf message itself, never a copy

A view holds a message and reads and sets its fields as Python objects: messages inside are views,
repeated fields are lists, maps are dicts, wrappers are values or None, enums are Python enums and
tensors numpy arrays. `View` tells the rules, and has what all views share: text format, JSON, bytes,
dicts, copies, comparison. The classes of responses refuse changes through the view.

Importing this package loads none of the generated protobuf modules, nor protobuf: the first view of
a class does. Sending messages, and checking them against signatures, is left to other modules; so is
the fast path of Predict, which needs no protobuf objects (`aioserving.codec`).
"""

from __future__ import annotations

from aioserving.dtypes import DataType
from aioserving.messages._any import AnyMessage
from aioserving.messages._config import (
    LogCollectorConfig,
    LoggingConfig,
    Metric,
    ModelConfig,
    ModelConfigList,
    ModelServerConfig,
    PerTaskSamplingConfig,
    PlatformConfig,
    PlatformConfigMap,
    ReloadConfigRequest,
    ReloadConfigResponse,
    SamplingConfig,
    ServableVersionPolicy,
)
from aioserving.messages._containers import Map, Repeated
from aioserving.messages._enums import Code, ModelType
from aioserving.messages._examples import (
    BytesList,
    Example,
    ExampleList,
    ExampleListWithContext,
    Feature,
    Features,
    FloatList,
    Input,
    Int64List,
)
from aioserving.messages._inference import (
    Class,
    ClassificationRequest,
    ClassificationResponse,
    ClassificationResult,
    Classifications,
    InferenceResult,
    InferenceTask,
    MultiInferenceRequest,
    MultiInferenceResponse,
    Regression,
    RegressionRequest,
    RegressionResponse,
    RegressionResult,
)
from aioserving.messages._metadata import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDef,
    SignatureDefMap,
    TensorInfo,
    TensorShapeProto,
)
from aioserving.messages._predict import PredictRequest, PredictResponse, PredictStreamedOptions
from aioserving.messages._spec import ModelSpec
from aioserving.messages._ssl_config import SSLConfig
from aioserving.messages._status import (
    GetModelStatusRequest,
    GetModelStatusResponse,
    ModelVersionStatus,
    Status,
)
from aioserving.messages._structures import (
    BoundedTensorSpecProto,
    DictValue,
    ListValue,
    NamedTupleValue,
    NoneValue,
    PairValue,
    StructuredValue,
    TensorSpecProto,
    TupleValue,
    TypeSpecProto,
)
from aioserving.messages._view import DictView, Field, ListView, View

for _class in (Code, DictView, Field, ListView, Map, ModelType, Repeated, View):
    _class.__module__ = __name__
del _class

__all__ = [
    "AnyMessage",
    "BoundedTensorSpecProto",
    "BytesList",
    "Class",
    "ClassificationRequest",
    "ClassificationResponse",
    "ClassificationResult",
    "Classifications",
    "Code",
    "DataType",
    "DictValue",
    "DictView",
    "Example",
    "ExampleList",
    "ExampleListWithContext",
    "Feature",
    "Features",
    "Field",
    "FloatList",
    "GetModelMetadataRequest",
    "GetModelMetadataResponse",
    "GetModelStatusRequest",
    "GetModelStatusResponse",
    "InferenceResult",
    "InferenceTask",
    "Input",
    "Int64List",
    "ListValue",
    "ListView",
    "LogCollectorConfig",
    "LoggingConfig",
    "Map",
    "Metric",
    "ModelConfig",
    "ModelConfigList",
    "ModelServerConfig",
    "ModelSpec",
    "ModelType",
    "ModelVersionStatus",
    "MultiInferenceRequest",
    "MultiInferenceResponse",
    "NamedTupleValue",
    "NoneValue",
    "PairValue",
    "PerTaskSamplingConfig",
    "PlatformConfig",
    "PlatformConfigMap",
    "PredictRequest",
    "PredictResponse",
    "PredictStreamedOptions",
    "Regression",
    "RegressionRequest",
    "RegressionResponse",
    "RegressionResult",
    "ReloadConfigRequest",
    "ReloadConfigResponse",
    "Repeated",
    "SSLConfig",
    "SamplingConfig",
    "ServableVersionPolicy",
    "SignatureDef",
    "SignatureDefMap",
    "Status",
    "StructuredValue",
    "TensorInfo",
    "TensorShapeProto",
    "TensorSpecProto",
    "TupleValue",
    "TypeSpecProto",
    "View",
]
