"""Which models a server is to serve: ModelServerConfig and what is in it, and ReloadConfig."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from aioserving.messages._any import AnyMessage
from aioserving.messages._enums import ModelType
from aioserving.messages._status import Status
from aioserving.messages._values import ProtoEnum, Where, enum_of
from aioserving.messages._view import DictView, ListView, MessageLike, View, field, positional

if TYPE_CHECKING:
    from aioserving.messages._view import (
        EnumOf,
        Field,
        Flag,
        Items,
        Many,
        MapOf,
        MapTo,
        Maybe,
        PbOr,
        Scalar,
        Sub,
        SubOr,
        Wrapped,
    )

__all__ = [
    "LogCollectorConfig",
    "LoggingConfig",
    "Metric",
    "ModelConfig",
    "ModelConfigList",
    "ModelServerConfig",
    "PerTaskSamplingConfig",
    "PlatformConfig",
    "PlatformConfigMap",
    "ReloadConfigRequest",
    "ReloadConfigResponse",
    "SamplingConfig",
    "ServableVersionPolicy",
]

_POLICY = "tensorflow.serving.FileSystemStoragePathSourceConfig.ServableVersionPolicy"
_LOGGING = "tensorflow_serving.config.logging_config_pb2"


class ServableVersionPolicy(View, message=_POLICY):
    """Which versions of a model to serve: ``latest = 2``, ``specific = [1, 2]`` or ``all = True``.

    The three exclude each other: setting one clears the others. None at all means ``latest = 1``.
    """

    __slots__ = ()

    class Latest(View, message=f"{_POLICY}.Latest", content="num_versions", as_value=True):
        """The highest versions; as a field of a policy it reads as their number."""

        __slots__ = ()

        num_versions: Scalar[int] = field("How many of them; zero counts as one.")

    class All(View, message=f"{_POLICY}.All", as_value=True):
        """Every version there is; as a field of a policy it reads as a bool."""

        __slots__ = ()

    class Specific(ListView[int, int], message=f"{_POLICY}.Specific", content="versions"):
        """Versions by number, as a list. An empty one that is set means no version: all are unloaded."""

        __slots__ = ()

        versions: Items[int] = field("The numbers.")

    latest: Wrapped[int] = field("How many of the highest versions to serve, or None.")
    all: Flag = field("Whether to serve every version.")
    specific: SubOr[Specific, Iterable[int]] = field("The versions to serve; `has` says whether it is set.")


class LogCollectorConfig(View, message="tensorflow.serving.LogCollectorConfig"):
    """Where logs go."""

    __slots__ = ()

    type: Scalar[str] = field("Kind of the log collector.")
    filename_prefix: Field[str, str | os.PathLike[str]] = field(
        "What the names of log files start with.", os.fspath
    )


class PerTaskSamplingConfig(View, message="tensorflow.serving.PerTaskSamplingConfig", module=_LOGGING):
    """How much one task logs."""

    __slots__ = ()

    dc: Scalar[str] = field("The data centre.")
    task_index: Maybe[int] = field("The task, or None.")
    sampling_rate: Scalar[float] = field("The share of requests to log, 0 to 1.")


class SamplingConfig(View, message="tensorflow.serving.SamplingConfig"):
    """How much is logged."""

    __slots__ = ()

    @enum_of("tensorflow.serving.SamplingConfig.Attributes")
    class Attributes(ProtoEnum):
        """What else to log of a request; a set of bits, so `attributes` is an int."""

        ATTR_DEFAULT = 0
        ATTR_REQUEST_ORIGIN = 1
        ATTR_REQUEST_CRITICALITY = 2

    sampling_rate: Scalar[float] = field("The share of requests to log, 0 to 1.")
    per_task_sampling_configs: Many[PerTaskSamplingConfig] = field("Other shares for single tasks.")
    attributes: Scalar[int] = field("What else to log: the sum of `Attributes`.")


class LoggingConfig(View, message="tensorflow.serving.LoggingConfig"):
    """Which requests a server logs, and where."""

    __slots__ = ()

    log_collector_config: Sub[LogCollectorConfig] = field("Where logs go.")
    sampling_config: Sub[SamplingConfig] = field("How much is logged.")
    custom_logging_config: SubOr[AnyMessage, View] = field("Settings of another logger.")


class ModelConfig(View, message="tensorflow.serving.ModelConfig"):
    """One model to serve."""

    __slots__ = ()

    name: Scalar[str] = field("The name that clients call it by.")
    base_path: Field[str, str | os.PathLike[str]] = field(
        "The directory of its version directories; absolute.", os.fspath
    )
    model_type: EnumOf[ModelType] = field("Deprecated; use `model_platform`.")
    model_platform: Scalar[str] = field("``tensorflow``, the only platform that the server knows by default.")
    model_version_policy: Sub[ServableVersionPolicy] = field("Which of its versions to serve.")
    version_labels: MapOf[int] = field("Names for versions: a dict of numbers.")
    logging_config: Sub[LoggingConfig] = field("Which of its requests to log.")


class ModelConfigList(
    ListView[ModelConfig, MessageLike], message="tensorflow.serving.ModelConfigList", content="config"
):
    """Models to serve, as a list."""

    __slots__ = ()

    config: Many[ModelConfig] = field("The models.")


class ModelServerConfig(View, message="tensorflow.serving.ModelServerConfig"):
    """What a server is to serve: the content of a ``--model_config_file``.

    A list of models stands for the config that has them. The two fields exclude each other.
    """

    __slots__ = ()

    if TYPE_CHECKING:
        pb: PbOr[Iterable[ModelConfig | MessageLike]] = positional(default=None, kw_only=False)

    model_config_list: SubOr[ModelConfigList, Iterable[ModelConfig | MessageLike]] = field("The models.")
    custom_model_config: SubOr[AnyMessage, View] = field("Settings of a server that is not the standard one.")

    @classmethod
    def _expected(cls) -> str:
        return "a ModelServerConfig (or a list of models, or a dict of its fields)"

    @classmethod
    def _take(cls, pb: Any, value: Any, where: Where, key: object) -> bool:
        if isinstance(value, ModelConfigList) or isinstance(
            getattr(value, "pb", value), ModelConfigList._message_class
        ):
            cls._fields["model_config_list"].fill(pb, value)
            return True
        if isinstance(value, (str, bytes, Mapping, View)) or not isinstance(value, Iterable):
            return False
        cls._fields["model_config_list"].fill(pb, value)
        return True


class PlatformConfig(View, message="tensorflow.serving.PlatformConfig"):
    """How a server loads models of one platform."""

    __slots__ = ()

    source_adapter_config: SubOr[AnyMessage, View] = field("Settings of what loads them.")


class PlatformConfigMap(
    DictView[str, PlatformConfig, MessageLike],
    message="tensorflow.serving.PlatformConfigMap",
    content="platform_configs",
):
    """How a server loads models, by platform: the content of a ``--platform_config_file``."""

    __slots__ = ()

    platform_configs: MapTo[PlatformConfig] = field("The platforms by name.")


class Metric(View, message="tensorflow.serving.Metric"):
    """How much a metric grew while a reload ran."""

    __slots__ = ()

    name: Scalar[str] = field("Name of the metric.")
    int64_value_increase: Maybe[int] = field("What it grew by, or None.")


class ReloadConfigRequest(View, message="tensorflow.serving.ReloadConfigRequest"):
    """A HandleReloadConfigRequest call: the config replaces the one in force."""

    __slots__ = ()

    config: SubOr[ModelServerConfig, Iterable[ModelConfig | MessageLike]] = field(
        "What to serve from now on."
    )
    metric_names: Items[str] = field("Metrics whose growth to report.")


class ReloadConfigResponse(View, message="tensorflow.serving.ReloadConfigResponse", readonly=True):
    """The answer to HandleReloadConfigRequest; read-only."""

    __slots__ = ()

    status: Sub[Status] = field("Always OK: a failure is the error of the call.")
    metric: Many[Metric] = field("How much the metrics grew.")
