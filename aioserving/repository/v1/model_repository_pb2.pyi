from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Policy(_message.Message):
    __slots__ = ("latest", "specific", "all", "pinned", "labels", "hours", "max_concurrent_loads", "probe", "load_timeout", "keep")
    class Latest(_message.Message):
        __slots__ = ("count",)
        COUNT_FIELD_NUMBER: _ClassVar[int]
        count: int
        def __init__(self, count: _Optional[int] = ...) -> None: ...
    class Specific(_message.Message):
        __slots__ = ("versions",)
        VERSIONS_FIELD_NUMBER: _ClassVar[int]
        versions: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, versions: _Optional[_Iterable[int]] = ...) -> None: ...
    class All(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    class Label(_message.Message):
        __slots__ = ("version", "time", "probes")
        VERSION_FIELD_NUMBER: _ClassVar[int]
        TIME_FIELD_NUMBER: _ClassVar[int]
        PROBES_FIELD_NUMBER: _ClassVar[int]
        version: int
        time: _duration_pb2.Duration
        probes: int
        def __init__(self, version: _Optional[int] = ..., time: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., probes: _Optional[int] = ...) -> None: ...
    class Hours(_message.Message):
        __slots__ = ("timezone", "windows")
        TIMEZONE_FIELD_NUMBER: _ClassVar[int]
        WINDOWS_FIELD_NUMBER: _ClassVar[int]
        timezone: str
        windows: _containers.RepeatedScalarFieldContainer[str]
        def __init__(self, timezone: _Optional[str] = ..., windows: _Optional[_Iterable[str]] = ...) -> None: ...
    class Probe(_message.Message):
        __slots__ = ("inputs_json", "request", "outputs_json", "tolerance", "signature_name", "timeout", "interval")
        INPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
        REQUEST_FIELD_NUMBER: _ClassVar[int]
        OUTPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
        TOLERANCE_FIELD_NUMBER: _ClassVar[int]
        SIGNATURE_NAME_FIELD_NUMBER: _ClassVar[int]
        TIMEOUT_FIELD_NUMBER: _ClassVar[int]
        INTERVAL_FIELD_NUMBER: _ClassVar[int]
        inputs_json: str
        request: bytes
        outputs_json: str
        tolerance: float
        signature_name: str
        timeout: _duration_pb2.Duration
        interval: _duration_pb2.Duration
        def __init__(self, inputs_json: _Optional[str] = ..., request: _Optional[bytes] = ..., outputs_json: _Optional[str] = ..., tolerance: _Optional[float] = ..., signature_name: _Optional[str] = ..., timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., interval: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Policy.Label
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Policy.Label, _Mapping]] = ...) -> None: ...
    LATEST_FIELD_NUMBER: _ClassVar[int]
    SPECIFIC_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HOURS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_LOADS_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    KEEP_FIELD_NUMBER: _ClassVar[int]
    latest: Policy.Latest
    specific: Policy.Specific
    all: Policy.All
    pinned: int
    labels: _containers.MessageMap[str, Policy.Label]
    hours: Policy.Hours
    max_concurrent_loads: int
    probe: Policy.Probe
    load_timeout: _duration_pb2.Duration
    keep: int
    def __init__(self, latest: _Optional[_Union[Policy.Latest, _Mapping]] = ..., specific: _Optional[_Union[Policy.Specific, _Mapping]] = ..., all: _Optional[_Union[Policy.All, _Mapping]] = ..., pinned: _Optional[int] = ..., labels: _Optional[_Mapping[str, Policy.Label]] = ..., hours: _Optional[_Union[Policy.Hours, _Mapping]] = ..., max_concurrent_loads: _Optional[int] = ..., probe: _Optional[_Union[Policy.Probe, _Mapping]] = ..., load_timeout: _Optional[_Union[_duration_pb2.Duration, _Mapping]] = ..., keep: _Optional[int] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models",)
    MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "policy", "promoted", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    name: str
    policy: Policy
    promoted: _containers.RepeatedScalarFieldContainer[int]
    labels: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., promoted: _Optional[_Iterable[int]] = ..., labels: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ListVersionsRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class ListVersionsResponse(_message.Message):
    __slots__ = ("model", "versions", "policy", "waiting")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    model: str
    versions: _containers.RepeatedCompositeFieldContainer[Version]
    policy: Policy
    waiting: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[Version, _Mapping]]] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., waiting: _Optional[_Iterable[str]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("version", "store", "disk", "servers", "labels", "wanted", "quarantine", "role")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    SERVERS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    version: int
    store: StoreCopy
    disk: DiskCopy
    servers: _containers.RepeatedCompositeFieldContainer[ServedVersion]
    labels: _containers.RepeatedScalarFieldContainer[str]
    wanted: bool
    quarantine: Quarantine
    role: str
    def __init__(self, version: _Optional[int] = ..., store: _Optional[_Union[StoreCopy, _Mapping]] = ..., disk: _Optional[_Union[DiskCopy, _Mapping]] = ..., servers: _Optional[_Iterable[_Union[ServedVersion, _Mapping]]] = ..., labels: _Optional[_Iterable[str]] = ..., wanted: bool = ..., quarantine: _Optional[_Union[Quarantine, _Mapping]] = ..., role: _Optional[str] = ...) -> None: ...

class StoreCopy(_message.Message):
    __slots__ = ("url", "archive", "size")
    URL_FIELD_NUMBER: _ClassVar[int]
    ARCHIVE_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    url: str
    archive: bool
    size: int
    def __init__(self, url: _Optional[str] = ..., archive: bool = ..., size: _Optional[int] = ...) -> None: ...

class DiskCopy(_message.Message):
    __slots__ = ("path", "size", "current")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    path: str
    size: int
    current: bool
    def __init__(self, path: _Optional[str] = ..., size: _Optional[int] = ..., current: bool = ...) -> None: ...

class ServedVersion(_message.Message):
    __slots__ = ("server", "state", "error")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNKNOWN: _ClassVar[ServedVersion.State]
        STATE_START: _ClassVar[ServedVersion.State]
        STATE_LOADING: _ClassVar[ServedVersion.State]
        STATE_AVAILABLE: _ClassVar[ServedVersion.State]
        STATE_UNLOADING: _ClassVar[ServedVersion.State]
        STATE_END: _ClassVar[ServedVersion.State]
    STATE_UNKNOWN: ServedVersion.State
    STATE_START: ServedVersion.State
    STATE_LOADING: ServedVersion.State
    STATE_AVAILABLE: ServedVersion.State
    STATE_UNLOADING: ServedVersion.State
    STATE_END: ServedVersion.State
    SERVER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    server: str
    state: ServedVersion.State
    error: str
    def __init__(self, server: _Optional[str] = ..., state: _Optional[_Union[ServedVersion.State, str]] = ..., error: _Optional[str] = ...) -> None: ...

class Quarantine(_message.Message):
    __slots__ = ("reason", "since")
    REASON_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, reason: _Optional[str] = ..., since: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class FetchVersionRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class FetchVersionResponse(_message.Message):
    __slots__ = ("progress", "fetched")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FETCHED_FIELD_NUMBER: _ClassVar[int]
    progress: FetchProgress
    fetched: FetchedVersion
    def __init__(self, progress: _Optional[_Union[FetchProgress, _Mapping]] = ..., fetched: _Optional[_Union[FetchedVersion, _Mapping]] = ...) -> None: ...

class FetchProgress(_message.Message):
    __slots__ = ("model", "version", "state", "bytes_done", "bytes_total", "files_done", "files_total")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATE_UNSPECIFIED: _ClassVar[FetchProgress.State]
        STATE_WAITING: _ClassVar[FetchProgress.State]
        STATE_LISTING: _ClassVar[FetchProgress.State]
        STATE_FETCHING: _ClassVar[FetchProgress.State]
        STATE_VERIFYING: _ClassVar[FetchProgress.State]
        STATE_UNPACKING: _ClassVar[FetchProgress.State]
        STATE_DONE: _ClassVar[FetchProgress.State]
    STATE_UNSPECIFIED: FetchProgress.State
    STATE_WAITING: FetchProgress.State
    STATE_LISTING: FetchProgress.State
    STATE_FETCHING: FetchProgress.State
    STATE_VERIFYING: FetchProgress.State
    STATE_UNPACKING: FetchProgress.State
    STATE_DONE: FetchProgress.State
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    FILES_DONE_FIELD_NUMBER: _ClassVar[int]
    FILES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    state: FetchProgress.State
    bytes_done: int
    bytes_total: int
    files_done: int
    files_total: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., state: _Optional[_Union[FetchProgress.State, str]] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., files_done: _Optional[int] = ..., files_total: _Optional[int] = ...) -> None: ...

class FetchedVersion(_message.Message):
    __slots__ = ("model", "version", "path")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    path: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ..., path: _Optional[str] = ...) -> None: ...

class DeleteVersionRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class DeleteVersionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetPolicyRequest(_message.Message):
    __slots__ = ("model", "policy")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    model: str
    policy: Policy
    def __init__(self, model: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class SetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class GetPolicyRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class GetPolicyResponse(_message.Message):
    __slots__ = ("policy",)
    POLICY_FIELD_NUMBER: _ClassVar[int]
    policy: Policy
    def __init__(self, policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class RolloutRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RolloutResponse(_message.Message):
    __slots__ = ("version", "policy")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    version: int
    policy: Policy
    def __init__(self, version: _Optional[int] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("version", "policy")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    version: int
    policy: Policy
    def __init__(self, version: _Optional[int] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ...) -> None: ...

class ReleaseVersionRequest(_message.Message):
    __slots__ = ("model", "version")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: int
    def __init__(self, model: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ReleaseVersionResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: bool = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("steps",)
    STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("kind", "text", "model", "version", "server")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    kind: str
    text: str
    model: str
    version: int
    server: str
    def __init__(self, kind: _Optional[str] = ..., text: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., server: _Optional[str] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("model", "after", "epoch")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    model: str
    after: int
    epoch: str
    def __init__(self, model: _Optional[str] = ..., after: _Optional[int] = ..., epoch: _Optional[str] = ...) -> None: ...

class WatchResponse(_message.Message):
    __slots__ = ("epoch", "event", "missed", "begun")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    event: Event
    missed: Missed
    begun: Begun
    def __init__(self, epoch: _Optional[str] = ..., event: _Optional[_Union[Event, _Mapping]] = ..., missed: _Optional[_Union[Missed, _Mapping]] = ..., begun: _Optional[_Union[Begun, _Mapping]] = ...) -> None: ...

class Begun(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Missed(_message.Message):
    __slots__ = ("count", "reason")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    count: int
    reason: str
    def __init__(self, count: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("number", "at", "kind", "text", "model", "version", "server")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[Event.Kind]
        KIND_STARTED: _ClassVar[Event.Kind]
        KIND_STOPPED: _ClassVar[Event.Kind]
        KIND_POLICY: _ClassVar[Event.Kind]
        KIND_FOUND: _ClassVar[Event.Kind]
        KIND_FETCHING: _ClassVar[Event.Kind]
        KIND_FETCHED: _ClassVar[Event.Kind]
        KIND_FETCH_FAILED: _ClassVar[Event.Kind]
        KIND_ROLLOUT: _ClassVar[Event.Kind]
        KIND_RELOAD: _ClassVar[Event.Kind]
        KIND_RELOAD_FAILED: _ClassVar[Event.Kind]
        KIND_AVAILABLE: _ClassVar[Event.Kind]
        KIND_LOAD_FAILED: _ClassVar[Event.Kind]
        KIND_PROBED: _ClassVar[Event.Kind]
        KIND_PROBE_FAILED: _ClassVar[Event.Kind]
        KIND_LABEL: _ClassVar[Event.Kind]
        KIND_PROMOTED: _ClassVar[Event.Kind]
        KIND_UNLOADED: _ClassVar[Event.Kind]
        KIND_QUARANTINED: _ClassVar[Event.Kind]
        KIND_RELEASED: _ClassVar[Event.Kind]
        KIND_DELETED: _ClassVar[Event.Kind]
        KIND_SERVER_DOWN: _ClassVar[Event.Kind]
        KIND_SERVER_UP: _ClassVar[Event.Kind]
        KIND_SERVER_RESTARTED: _ClassVar[Event.Kind]
        KIND_PROBLEM: _ClassVar[Event.Kind]
    KIND_UNSPECIFIED: Event.Kind
    KIND_STARTED: Event.Kind
    KIND_STOPPED: Event.Kind
    KIND_POLICY: Event.Kind
    KIND_FOUND: Event.Kind
    KIND_FETCHING: Event.Kind
    KIND_FETCHED: Event.Kind
    KIND_FETCH_FAILED: Event.Kind
    KIND_ROLLOUT: Event.Kind
    KIND_RELOAD: Event.Kind
    KIND_RELOAD_FAILED: Event.Kind
    KIND_AVAILABLE: Event.Kind
    KIND_LOAD_FAILED: Event.Kind
    KIND_PROBED: Event.Kind
    KIND_PROBE_FAILED: Event.Kind
    KIND_LABEL: Event.Kind
    KIND_PROMOTED: Event.Kind
    KIND_UNLOADED: Event.Kind
    KIND_QUARANTINED: Event.Kind
    KIND_RELEASED: Event.Kind
    KIND_DELETED: Event.Kind
    KIND_SERVER_DOWN: Event.Kind
    KIND_SERVER_UP: Event.Kind
    KIND_SERVER_RESTARTED: Event.Kind
    KIND_PROBLEM: Event.Kind
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    number: int
    at: _timestamp_pb2.Timestamp
    kind: Event.Kind
    text: str
    model: str
    version: int
    server: str
    def __init__(self, number: _Optional[int] = ..., at: _Optional[_Union[_timestamp_pb2.Timestamp, _Mapping]] = ..., kind: _Optional[_Union[Event.Kind, str]] = ..., text: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., server: _Optional[str] = ...) -> None: ...
