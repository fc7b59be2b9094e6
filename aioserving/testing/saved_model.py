"""SavedModels as models of the testing server, run by TensorFlow the way the C++ server runs them.

`load_servable` reads a version folder, restores its variables, runs its initializer and replays its
warm-up requests; the result feeds and fetches graph tensors by name in one session. TensorFlow is
imported by the first load, and nowhere else in this package.

Sessions are run below `tf.compat.v1.Session.run`, which would cast inputs to what the graph declares
and decorate error texts with Python tracebacks: the real server does neither.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aioserving._proto import message_class
from aioserving._types import Array
from aioserving.testing import inference
from aioserving.testing.batching import BatchingParameters, BatchingServable
from aioserving.testing.options import ServerOptions
from aioserving.testing.servable import Servable, as_data_type
from aioserving.testing.status import StatusCode, StatusError

__all__ = ["SavedModelServable", "load_servable"]

_INIT_OP = "__saved_model_init_op"
_INIT_COLLECTIONS = ("saved_model_main_op", "legacy_init_op")
_WARMUP_FILE = Path("assets.extra", "tf_serving_warmup_requests")
_MAX_WARMUP_RECORDS = 1000


def load_servable(path: str | os.PathLike[str], options: ServerOptions | None = None) -> Servable:
    """Load the SavedModel in the folder `path`, ready to serve.

    Args:
        path: a version folder, with `saved_model.pb` (or `saved_model.pbtxt`) in it.
        options: the tags of the meta graph, whether and how often warm-up requests are replayed,
            batching, and the parallelism of the session are taken from here.

    Raises:
        StatusError: the status with which the real server fails to load it.
        ImportError: TensorFlow is not installed.
    """
    options = options or ServerOptions()
    folder = Path(path)
    meta_graph = _find_meta_graph(_read(folder), [tag for tag in options.saved_model_tags.split(",") if tag])
    parameters = _batching_parameters(folder, options)
    servable: Servable = SavedModelServable(folder, meta_graph, _session_config(options))
    if parameters is not None:
        servable = BatchingServable(servable, parameters)
    try:
        if options.enable_model_warmup:
            _warm_up(servable, folder, options)
    except BaseException:
        servable.close()
        raise
    return servable


class SavedModelServable:
    """A loaded SavedModel; made by `load_servable`.

    Attributes:
        signatures: name -> `tensorflow.SignatureDef`.
        inline: False: a session blocks for as long as its graph takes.
        path: the version folder.
    """

    inline = False

    def __init__(self, folder: Path, meta_graph: Any, config: Any) -> None:
        tf = _tensorflow()
        self.path = folder
        self.signatures: Mapping[str, Any] = {
            name: _copy(definition) for name, definition in meta_graph.signature_def.items()
        }
        self._runtime = _Runtime()
        self._graph = tf.Graph()
        with self._runtime.statuses(), self._graph.as_default():
            tf.graph_util.import_graph_def(meta_graph.graph_def, name="")
        self._graph.finalize()
        self._session = tf.compat.v1.Session(graph=self._graph, config=config)
        self._tensors: dict[str, _Tensor | None] = {}
        try:
            self._restore(meta_graph)
            self._initialize(meta_graph)
        except BaseException:
            self._session.close()
            raise

    def __repr__(self) -> str:
        return f"<SavedModelServable {self.path} {sorted(self.signatures)}>"

    def run(self, feeds: Mapping[str, Array], fetches: Sequence[str], timeout: float | None) -> list[Array]:
        """Run the session once; see `Servable.run`."""
        if timeout is not None and timeout <= 0:
            raise StatusError(StatusCode.DEADLINE_EXCEEDED, "Timed out waiting for notification")
        fed, fetched = {}, []
        for name, array in feeds.items():
            tensor = self._tensor(name)
            if tensor is None:
                return self._run_by_name(feeds, fetches)
            fed[tensor.output] = array
        # The runtime wants each tensor once, and two outputs may be the same tensor.
        unique = list(dict.fromkeys(fetches))
        for name in unique:
            tensor = self._tensor(name)
            if tensor is None:
                return self._run_by_name(feeds, fetches)
            fetched.append(tensor)
        values = self._runtime.run(self._session, fed, [tensor.output for tensor in fetched], [], timeout)
        results = [_array(value, tensor.data_type) for value, tensor in zip(values, fetched, strict=True)]
        if len(unique) == len(fetches):
            return results
        return [results[unique.index(name)] for name in fetches]

    def close(self) -> None:
        """Release the session and its variables."""
        self._session.close()

    def _tensor(self, name: str) -> _Tensor | None:
        """The graph's tensor of that name, or None."""
        try:
            return self._tensors[name]
        except KeyError:
            found = self._tensors[name] = self._find_tensor(name)
            return found

    def _find_tensor(self, name: str) -> _Tensor | None:
        try:
            return _Tensor(self._graph.get_tensor_by_name(name if ":" in name else f"{name}:0"))
        except (KeyError, ValueError):
            return None

    def _run_by_name(self, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Array]:
        """A run that names what the graph does not have, which the runtime refuses in its own words."""
        return self._runtime.run_by_name(self._session, feeds, fetches)

    # Loading

    def _restore(self, meta_graph: Any) -> None:
        """Restore the variables; a model without a checkpoint is left without, as by the real loader."""
        variables = self.path / "variables" / "variables"
        if meta_graph.HasField("saver_def") and variables.with_suffix(".index").exists():
            saver = meta_graph.saver_def
            feeds = {saver.filename_tensor_name: _string(os.fspath(variables)), **self._assets(meta_graph)}
            self._run_operation(saver.restore_op_name, feeds)

    def _initialize(self, meta_graph: Any) -> None:
        """Run the initializer: the signature of TF2 exports, or the collections of TF1 ones."""
        operation = ""
        if _INIT_OP in meta_graph.signature_def:
            operation = meta_graph.signature_def[_INIT_OP].outputs[_INIT_OP].name
        else:
            for collection in _INIT_COLLECTIONS:
                if collection in meta_graph.collection_def:
                    values = meta_graph.collection_def[collection].node_list.value
                    if len(values) != 1:
                        raise StatusError(
                            StatusCode.FAILED_PRECONDITION, f"Expected exactly one main op in : {self.path}"
                        )
                    operation = values[0]
                    break
        if operation:
            self._run_operation(operation, self._assets(meta_graph))

    def _run_operation(self, name: str, feeds: Mapping[str, Array]) -> None:
        try:
            operation = self._graph.get_operation_by_name(name.removeprefix("^").partition(":")[0])
            fed = {
                self._graph.get_tensor_by_name(tensor)._as_tf_output(): array
                for tensor, array in feeds.items()
            }
        except (KeyError, ValueError) as error:
            raise StatusError(StatusCode.NOT_FOUND, str(error)) from error
        self._runtime.run(self._session, fed, [], [operation._c_op], None)

    def _assets(self, meta_graph: Any) -> dict[str, Array]:
        """What to feed for asset files: their paths, by tensor."""
        definitions = list(meta_graph.asset_file_def)
        if not definitions and "saved_model_assets" in meta_graph.collection_def:
            from tensorflow.core.protobuf import meta_graph_pb2

            for packed in meta_graph.collection_def["saved_model_assets"].any_list.value:
                definition = meta_graph_pb2.AssetFileDef()
                packed.Unpack(definition)
                definitions.append(definition)
        return {
            definition.tensor_info.name: _string(os.fspath(self.path / "assets" / definition.filename))
            for definition in definitions
        }


class _Tensor:
    """A tensor of the graph as the C interface wants it, and its data type (without REF)."""

    __slots__ = ("data_type", "output")

    def __init__(self, tensor: Any) -> None:
        self.output = tensor._as_tf_output()
        self.data_type: int = tensor.dtype.base_dtype.as_datatype_enum


class _Runtime:
    """The part of TensorFlow's C interface that runs sessions, with its errors as `StatusError`."""

    def __init__(self) -> None:
        tf = _tensorflow()
        from tensorflow.core.protobuf import config_pb2
        from tensorflow.python.client import pywrap_tf_session

        self._op_error = tf.errors.OpError
        self._c = pywrap_tf_session
        self._config = config_pb2

    @contextlib.contextmanager
    def statuses(self) -> Iterator[None]:
        """Raise errors of TensorFlow as `StatusError`, with the runtime's own text."""
        try:
            yield
        except self._op_error as error:
            raise StatusError(error.error_code, str(error.message)) from error
        except ValueError as error:
            raise StatusError(StatusCode.INVALID_ARGUMENT, str(error)) from error

    def run(
        self,
        session: Any,
        feeds: Mapping[Any, Array],
        fetches: list[Any],
        targets: list[Any],
        timeout: float | None,
    ) -> list[Any]:
        """Run a session; feeds, fetches and targets are those of the C interface."""
        options = None
        if timeout is not None:
            run_options = self._config.RunOptions(timeout_in_ms=max(1, min(int(timeout * 1000), 1 << 50)))
            options = self._c.TF_NewBufferFromString(run_options.SerializeToString())
        try:
            session._extend_graph()
            values: list[Any] = self._c.TF_SessionRun_wrapper(
                session._session, options, feeds, fetches, targets, None
            )
        except self._op_error as error:
            raise StatusError(error.error_code, str(error.message)) from error
        except UnicodeDecodeError as error:
            # The runtime's text quotes bytes of the request, and the code was lost on the way. A kernel
            # that refuses what it was fed says INVALID_ARGUMENT.
            text = error.object.decode("utf-8", "replace")
            raise StatusError(StatusCode.INVALID_ARGUMENT, text) from error
        finally:
            if options is not None:
                self._c.TF_DeleteBuffer(options)
        return values

    def run_by_name(self, session: Any, feeds: Mapping[str, Array], fetches: Sequence[str]) -> list[Any]:
        """Run a session once with names that the runtime looks up itself."""
        names = self._config.CallableOptions(feed=list(feeds), fetch=list(fetches))
        with self.statuses():
            run = session._make_callable_from_options(names)
            return list(run(*feeds.values()))


def _array(value: Any, data_type: int) -> Array:
    """What the runtime returned, as an array: it gives scalars as `bytes` or numpy scalars."""
    if type(value) is not np.ndarray:
        value = _string(value) if isinstance(value, bytes) else np.asarray(value)
    return as_data_type(value, data_type)


def _string(text: str | bytes) -> Array:
    array = np.empty((), object)
    array[()] = text.encode() if isinstance(text, str) else text
    return array


def _copy(message: Any) -> Any:
    """A copy, so that the graph that the message came with can be forgotten."""
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


# ---------------------------------------------------------------- reading


def _read(folder: Path) -> Any:
    """The SavedModel message of a version folder."""
    _tensorflow()
    from google.protobuf import message, text_format
    from tensorflow.core.protobuf import saved_model_pb2

    binary, text = folder / "saved_model.pb", folder / "saved_model.pbtxt"
    if binary.exists():
        data = binary.read_bytes()
        try:
            return saved_model_pb2.SavedModel.FromString(data)
        except message.DecodeError as error:
            if _ends_early(data):
                raise StatusError(StatusCode.OUT_OF_RANGE, "Read less bytes than requested") from error
            raise StatusError(StatusCode.DATA_LOSS, f"Can't parse {binary} as binary proto") from error
    if text.exists():
        try:
            return text_format.Parse(text.read_bytes(), saved_model_pb2.SavedModel())
        except text_format.ParseError as error:
            raise StatusError(StatusCode.DATA_LOSS, f"Can't parse {text} as text proto") from error
    raise StatusError(
        StatusCode.NOT_FOUND,
        "Specified file path does not appear to contain a SavedModel bundle (should have a file called "
        f"`saved_model.pb`)\nSpecified file path: {folder}",
    )


def _ends_early(data: bytes) -> bool:
    """Whether `data` stops within a field: then the real reader is out of file before it is out of sense."""
    position, end = 0, len(data)

    def varint() -> int | None:
        nonlocal position
        value = shift = 0
        while position < end and shift < 70:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7
        return None

    while position < end:
        tag = varint()
        length: int | None = 0
        if tag is not None and tag & 7 == 0:
            length = None if varint() is None else 0
        elif tag is not None and tag & 7 == 2:
            length = varint()
        elif tag is not None and tag & 7 in (1, 5):
            length = 8 if tag & 7 == 1 else 4
        elif tag is not None:
            return False  # groups do not occur, nor do wire types 6 and 7
        if tag is None or length is None:
            return position == end
        position += length
    return position > end


def _find_meta_graph(saved_model: Any, tags: Sequence[str]) -> Any:
    """The meta graph with exactly these tags."""
    for meta_graph in saved_model.meta_graphs:
        if set(meta_graph.meta_info_def.tags) == set(tags):
            return meta_graph
    raise StatusError(
        StatusCode.NOT_FOUND,
        f"Could not find meta graph def matching supplied tags: {{ {' '.join(tags)} }}. To inspect available "
        "tag-sets in the SavedModel, please use the SavedModel CLI: `saved_model_cli`",
    )


def _batching_parameters(folder: Path, options: ServerOptions) -> BatchingParameters | None:
    """How to batch, or None: the server's parameters, or the version folder's own where those are allowed."""
    if not options.enable_batching:
        return None
    own = folder / "batching_params.pbtxt"
    if options.enable_per_model_batching_parameters and own.exists():
        return BatchingParameters.from_file(own)
    if options.batching_parameters_file:
        return BatchingParameters.from_file(options.batching_parameters_file)
    return BatchingParameters()


def _session_config(options: ServerOptions) -> Any:
    both = options.tensorflow_session_parallelism
    return _tensorflow().compat.v1.ConfigProto(
        intra_op_parallelism_threads=both or options.tensorflow_intra_op_parallelism,
        inter_op_parallelism_threads=both or options.tensorflow_inter_op_parallelism,
    )


@functools.cache
def _tensorflow() -> Any:
    try:
        import tensorflow
    except ImportError as error:
        raise ImportError(
            "serving a SavedModel needs TensorFlow (pip install tensorflow); CallableServable does not"
        ) from error
    return tensorflow


# ---------------------------------------------------------------- warm-up


def _warm_up(servable: Servable, folder: Path, options: ServerOptions) -> None:
    """Replay the requests recorded with the model; an answer that is an error fails the load."""
    path = folder / _WARMUP_FILE
    if not path.exists():
        return
    iterations = max(1, options.num_request_iterations_for_warmup)
    for count, record in enumerate(_records(path), start=1):
        log: Any = message_class("tensorflow.serving.PredictionLog")()
        try:
            log.ParseFromString(record)
        except Exception as error:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Failed to parse warmup record: {record.decode('utf-8', 'replace')} from {path}",
            ) from error
        for _ in range(iterations):
            _replay(servable, log, options)
        if count > _MAX_WARMUP_RECORDS:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Number of warmup records exceeds the maximum ({_MAX_WARMUP_RECORDS}) at {path}",
            )


_REPLAYED = {
    "predict_log": inference.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}


def _replay(servable: Servable, log: Any, options: ServerOptions) -> None:
    kind = log.WhichOneof("log_type")
    if kind == "session_run_log":
        raise StatusError(
            StatusCode.UNIMPLEMENTED,
            f"Unsupported log_type for warmup: {log.DESCRIPTOR.fields_by_name[kind].number}",
        )
    answer = _REPLAYED.get(kind)
    if answer is not None:
        request = getattr(log, kind).request.SerializeToString()
        answer(servable, request, model_name="", version=0, options=options)


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file."""
    tf = _tensorflow()
    from tensorflow.python.lib.io import tf_record

    try:
        yield from tf_record.tf_record_iterator(os.fspath(path))
    except tf.errors.OpError as error:
        raise StatusError(error.error_code, str(error.message)) from error
