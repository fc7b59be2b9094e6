"""Models for the tests of the testing server: Python functions, and the requests that fit them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from aioserving._proto import message_class
from aioserving.testing import CallableServable, StatusCode, StatusError

PREDICT = "/tensorflow.serving.PredictionService/Predict"
STATUS = "/tensorflow.serving.ModelService/GetModelStatus"
RELOAD = "/tensorflow.serving.ModelService/HandleReloadConfigRequest"
METADATA = "/tensorflow.serving.PredictionService/GetModelMetadata"


def times(factor: float, *, inline: bool = False) -> CallableServable:
    """A model that multiplies `x` by `factor`, giving `y`."""
    return CallableServable(
        lambda x: {"y": x * np.float32(factor)},
        inputs={"x": ("float32", (None,))},
        outputs={"y": ("float32", (None,))},
        inline=inline,
    )


def sleeper(seconds: float) -> CallableServable:
    """A model that takes its time."""

    def function(x: Any) -> Any:
        time.sleep(seconds)
        return {"y": x}

    return CallableServable(function, inputs={"x": ("float32", (None,))}, outputs={"y": ("float32", (None,))})


def both_versions() -> dict[int, CallableServable | StatusError]:
    """A model of two good versions and a broken one."""
    return {1: times(1), 2: times(2), 3: StatusError(StatusCode.DATA_LOSS, "broken on purpose")}


def slow() -> CallableServable:
    """A model that takes half a second."""
    return sleeper(0.5)


def endless() -> CallableServable:
    """A model that takes an hour."""
    return sleeper(3600)


twice = times(2)


def predict_request(
    model: str, values: Any = (1.0, 2.0), *, version: int | None = None, label: str | None = None
) -> bytes:
    """A serialized PredictRequest with `x`."""
    request: Any = message_class("tensorflow.serving.PredictRequest")()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    array = np.asarray(values, np.float32)
    tensor = request.inputs["x"]
    tensor.dtype = 1
    for size in array.shape:
        tensor.tensor_shape.dim.add(size=size)
    tensor.tensor_content = array.tobytes()
    data: bytes = request.SerializeToString()
    return data


def predicted(data: bytes) -> list[float]:
    """The `y` of a serialized PredictResponse."""
    response: Any = message_class("tensorflow.serving.PredictResponse").FromString(data)
    return list(response.outputs["y"].float_val)


def predicted_version(data: bytes) -> int:
    """The version that answered a Predict."""
    response: Any = message_class("tensorflow.serving.PredictResponse").FromString(data)
    version: int = response.model_spec.version.value
    return version


def status_request(model: str) -> bytes:
    """A serialized GetModelStatusRequest for all versions."""
    request: Any = message_class("tensorflow.serving.GetModelStatusRequest")()
    request.model_spec.name = model
    data: bytes = request.SerializeToString()
    return data


def statuses(data: bytes) -> list[tuple[int, str, int, str]]:
    """Version, state, error code and message of a serialized GetModelStatusResponse."""
    response: Any = message_class("tensorflow.serving.GetModelStatusResponse").FromString(data)
    return [
        (
            item.version,
            item.State.Name(item.state),
            item.status.error_code,
            item.status.error_message,
        )
        for item in response.model_version_status
    ]


def reload_request(*models: tuple[str, str], metric_names: tuple[str, ...] = (), **policy: Any) -> bytes:
    """A serialized ReloadConfigRequest for models of (name, base path); `policy` is of the first one."""
    request: Any = message_class("tensorflow.serving.ReloadConfigRequest")()
    configs = request.config.model_config_list
    configs.SetInParent()
    for name, base_path in models:
        configs.config.add(name=name, base_path=base_path, model_platform="tensorflow")
    if policy.get("all"):
        configs.config[0].model_version_policy.all.SetInParent()
    for label, version in policy.get("labels", {}).items():
        configs.config[0].version_labels[label] = version
    request.metric_names.extend(metric_names)
    data: bytes = request.SerializeToString()
    return data
