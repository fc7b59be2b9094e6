"""What type checkers see of message views; checked with ``mypy --strict``, never run.

Each ``type: ignore`` is a mistake that the checker must find: one that it lets pass is reported as unused.
"""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import assert_type

from aioserving.messages import (
    AnyMessage,
    Class,
    ClassificationResponse,
    Code,
    DataType,
    Example,
    Feature,
    Features,
    FloatList,
    GetModelMetadataResponse,
    GetModelStatusResponse,
    Map,
    ModelConfig,
    ModelConfigList,
    ModelServerConfig,
    ModelSpec,
    ModelVersionStatus,
    PlatformConfigMap,
    PredictRequest,
    PredictResponse,
    ReloadConfigRequest,
    Repeated,
    SamplingConfig,
    ServableVersionPolicy,
    SignatureDefMap,
    Status,
    StructuredValue,
    TensorShapeProto,
    View,
)


def scalars(spec: ModelSpec, status: ModelVersionStatus, request: PredictRequest) -> None:
    """Scalars have their Python type, and None where they may be absent."""
    assert_type(spec.name, str)
    assert_type(spec.version, int | None)
    assert_type(spec.version_label, str | None)
    assert_type(status.version, int)
    assert_type(status.state, ModelVersionStatus.State)
    assert_type(status.status.error_code, Code)
    assert_type(status.error, Status | None)
    assert_type(request.client_id, bytes | None)
    assert_type(
        request.request_options.deterministic_mode, PredictRequest.RequestOptions.DeterministicMode | None
    )
    spec.version = 3
    spec.version = None
    spec.version_label = "stable"
    status.state = ModelVersionStatus.State.AVAILABLE
    status.state = "AVAILABLE"
    status.state = 30
    spec.name = 3  # type: ignore[assignment]
    spec.name = None  # type: ignore[assignment]
    spec.version = "3"  # type: ignore[assignment]
    spec.versoin = 3  # type: ignore[attr-defined]
    print(spec.versoin)  # type: ignore[attr-defined]
    status.state = 1.5  # type: ignore[assignment]


def chains(config: ModelServerConfig) -> None:
    """A chain has types to its end, through lists, maps and messages."""
    assert_type(config.model_config_list, ModelConfigList)
    assert_type(config.model_config_list[0], ModelConfig)
    assert_type(config.model_config_list[0:2], list[ModelConfig])
    assert_type(config.model_config_list[0].model_version_policy, ServableVersionPolicy)
    assert_type(config.model_config_list[0].model_version_policy.all, bool)
    assert_type(config.model_config_list[0].model_version_policy.specific[0], int)
    assert_type(config.model_config_list[0].version_labels["stable"], int)
    assert_type(config.model_config_list[0].logging_config.sampling_config.sampling_rate, float)
    assert_type(config.custom_model_config, AnyMessage)
    for model in config.model_config_list:
        assert_type(model, ModelConfig)
        assert_type(model.model_version_policy.latest, int | None)
        model.model_version_policy.latest = 2
    config.model_config_list[0].model_version_policy = {"specific": [1, 2]}
    config.model_config_list[0].model_version_policy.specific = [1, 2]
    config.model_config_list[0].model_version_policy.all = True
    config.model_config_list[0].base_path = pathlib.Path("/models/digits")
    config.model_config_list = [ModelConfig(name="digits"), {"name": "other"}]
    config.model_config_list.append({"name": "third"})
    config.model_config_list[0] = {"name": "first"}
    config.model_config_list[0] = config.model_config_list[1].pb
    config.custom_model_config = SamplingConfig(sampling_rate=0.5)
    config.model_config_list[0].version_labels = {"stable": 1}
    config.model_config_list[0].version_labels = {"stable": "1"}  # type: ignore[dict-item]
    config.model_config_list[0].model_version_policy.latest = "2"  # type: ignore[assignment]
    config.model_config_list[0].model_version_policy.specific = ["1"]  # type: ignore[list-item]
    config.model_config_list.append("third")  # type: ignore[arg-type]
    config.model_config_list.appendix  # type: ignore[attr-defined]  # noqa: B018


def constructors(raw: Any, config: ModelConfig) -> None:
    """Constructors know their fields, and take messages, views, mappings and natural values."""
    ModelSpec(name="digits", version=3)
    ModelSpec(raw)
    ModelSpec({"name": "digits"})
    ModelSpec(config)
    ModelServerConfig([config, {"name": "other"}])
    ModelServerConfig(model_config_list=[config])
    ModelConfig(
        name="a", base_path=pathlib.Path("/a"), model_version_policy={"latest": 1}, version_labels={"s": 1}
    )
    ModelConfigList([config])
    ReloadConfigRequest(config=[config, {"name": "other"}])
    Example(features={"age": 42, "name": "Ada", "pixels": np.zeros(4)})
    Features({"age": [42]})
    Feature([1.0, 2.0])
    TensorShapeProto([None, 784])
    ClassificationResponse(result=[[Class(label="a")], [{"label": "b"}]])
    PlatformConfigMap({"tensorflow": {}})
    ModelSpec(nme="digits")  # type: ignore[call-arg]
    ModelSpec(name=3)  # type: ignore[arg-type]
    ModelSpec("digits")  # type: ignore[arg-type]
    ModelSpec(3, name="digits")  # type: ignore[arg-type]


def tensors(request: PredictRequest, response: PredictResponse, value: StructuredValue) -> None:
    """Tensors read as arrays, and take what numpy makes one of."""
    assert_type(request.inputs["x"], npt.NDArray[Any])
    assert_type(response.outputs.get("y"), npt.NDArray[Any] | None)
    assert_type(list(response.outputs.items()), list[tuple[str, npt.NDArray[Any]]])
    assert_type(value.tensor_value, npt.NDArray[Any] | None)
    assert_type(value.none_value, bool)
    request.inputs["x"] = [1.0, 2.0]
    request.inputs = {"x": np.zeros(3), "y": [1], "z": request.pb.inputs["x"]}
    request.inputs[3] = [1.0]  # type: ignore[index]


def metadata(response: GetModelMetadataResponse, signatures: SignatureDefMap) -> None:
    """Metadata reads as signatures, tensor infos, dtypes and shapes."""
    assert_type(response.signature_def, SignatureDefMap | None)
    assert_type(response.metadata["signature_def"].unpack(), View)
    assert_type(response.metadata["signature_def"].unpack(SignatureDefMap), SignatureDefMap)
    info = signatures["serving_default"].inputs["x"]
    assert_type(info.dtype, DataType)
    assert_type(info.tensor_shape.sizes, tuple[int | None, ...] | None)
    assert_type(info.tensor_shape.dim[0].size, int)
    assert_type(info.name, str | None)
    info.tensor_shape = [None, 784]
    info.dtype = DataType.DT_FLOAT


def containers(status: GetModelStatusResponse, feature: Feature, config: ModelConfig) -> None:
    """Lists and dicts have the types of Python's."""
    assert_type(status[0].state, ModelVersionStatus.State)
    assert_type([item.version for item in status], list[int])
    assert_type(feature.float_list, FloatList)
    assert_type(feature.float_list[0], float)
    assert_type(feature.float_list.value, Repeated[float, float])
    assert_type(config.version_labels, Map[str, int, int])
    assert_type(config.version_labels.get("stable"), int | None)
    assert_type(config.version_labels.copy(), dict[str, int])
    feature.value = [1.0, 2.0]
    feature.float_list = [1.0]
    feature.float_list.append(2.0)
    feature.float_list.append("2")  # type: ignore[arg-type]


def common(config: ModelConfig) -> None:
    """What all views have keeps the type of the view."""
    assert_type(config.copy(), ModelConfig)
    assert_type(ModelConfig.from_text("name: 'a'"), ModelConfig)
    assert_type(ModelConfig.from_text(pathlib.Path("models.config")), ModelConfig)
    assert_type(ModelConfig.from_bytes(b""), ModelConfig)
    assert_type(ModelConfig.from_json("{}"), ModelConfig)
    assert_type(ModelConfig.wrap(config.pb), ModelConfig)
    assert_type(config.to_text(), str)
    assert_type(config.to_json(), str)
    assert_type(config.to_bytes(), bytes)
    assert_type(config.to_dict(), dict[str, Any])
    assert_type(config.byte_size(), int)
    assert_type(config.which("config"), str | None)
    assert_type(config.has("name"), bool)
    config.merge({"name": "b"})
    config.clear("name")
