"""The testing server's REST interface: TensorFlow Serving's HTTP API over the models of a `ModelManager`.

    POST /v1/models/NAME[/versions/N|/labels/L]:predict|classify|regress
    GET  /v1/models/NAME[/versions/N|/labels/L][/metadata]

What a URL means, what a status becomes in HTTP, and the page for Prometheus are decided here; bodies are
the business of `json_tensor`, and requests are answered by `inference`, as those that come over gRPC are.

HTTP itself is aiohttp's, which comes with the extra ``testing`` and is imported when a server is started.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import functools
import gzip
import logging
import os
import re
import socket
import time
import urllib.parse
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aioserving._proto import message_class
from aioserving.codec import decode_predict_response, encode_model_spec, encode_predict_request
from aioserving.dtypes import DataType
from aioserving.testing import inference, json_tensor
from aioserving.testing.options import ServerOptions, read_text_proto
from aioserving.testing.servable import as_data_type
from aioserving.testing.status import StatusCode, StatusError
from aioserving.wire import delimited

if TYPE_CHECKING:
    from aiohttp import web

    from aioserving.testing.manager import Lease, ModelManager
    from aioserving.testing.servable import Servable

__all__ = ["HTTP_STATUS", "RestServer", "Route", "route"]

_T = TypeVar("_T")

logger = logging.getLogger("aioserving.testing")

#: HTTP status of every code; those that are not here are 500.
HTTP_STATUS = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}

_METRICS_PATH = "/monitoring/prometheus/metrics"

_FLAGS = re.IGNORECASE | re.ASCII
_MODEL = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"
_POST = re.compile(_MODEL + ":(classify|regress|predict)", _FLAGS)
_GET = re.compile(_MODEL.replace("/([^/:]+)", "(?:/([^/:]+))?", 1) + "(?:/(metadata))?", _FLAGS)
_PREFIX = re.compile("/v1/.*", _FLAGS | re.DOTALL)


@dataclass(frozen=True)
class Route:
    """What a request asks for."""

    #: ``predict``, ``classify``, ``regress``, ``status`` or ``metadata``.
    verb: str
    #: Name of the model.
    model: str
    #: The version asked for, if any.
    version: int | None = None
    #: The label asked for, if any.
    label: str | None = None

    def model_spec(self, signature_name: str = "") -> Any:
        """The `ModelSpec` that says the same."""
        spec: Any = message_class("tensorflow.serving.ModelSpec")(
            name=self.model, signature_name=signature_name
        )
        if self.version is not None:
            spec.version.value = self.version
        elif self.label is not None:
            spec.version_label = self.label
        return spec


def route(method: str, path: str) -> Route:
    """What `method` on `path` (as sent: still percent-encoded, no query) asks for.

    Upper and lower case mean the same, but for the names of models and labels.

    Raises:
        StatusError: INVALID_ARGUMENT, for a URL without a meaning.
    """
    pattern = {"POST": _POST, "GET": _GET}.get(method)
    match = pattern.fullmatch(path) if pattern is not None else None
    if match is None:
        raise StatusError(StatusCode.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    name, number, label, verb = match.groups()
    version = None
    if number is not None:
        version = int(number[:20])
        if len(number) > 20 or version >= 2**63:
            raise StatusError(StatusCode.INVALID_ARGUMENT, f"Failed to convert version: {number} to numeric.")
    if name is None:
        raise StatusError(StatusCode.INVALID_ARGUMENT, "Missing model name in request.")
    verb = (verb or "status").lower()
    return Route(
        verb, urllib.parse.unquote(name), version, None if label is None else urllib.parse.unquote(label)
    )


class RestServer:
    """The HTTP side of one testing server, on the running event loop.

    Args:
        manager: the models.
        options: the server's flags; ``rest_api_num_threads``, ``rest_api_timeout_in_ms`` and
            ``monitoring_config_file`` count here.
        get_model_status: answers a serialized GetModelStatusRequest.

    Attributes:
        port: where it listens, or None.
        requests: answers given so far, by what was asked (``predict``, ``GET`` and so on) and HTTP status.
        running: requests in progress.

    Raises:
        StatusError: the monitoring configuration cannot be read.
    """

    def __init__(
        self,
        manager: ModelManager,
        options: ServerOptions,
        get_model_status: Callable[[bytes], Awaitable[bytes]],
    ) -> None:
        self.port: int | None = None
        self.requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self.running = 0
        self._manager = manager
        self._get_model_status = get_model_status
        timeout = options.rest_api_timeout_in_ms
        self._timeout = timeout / 1000 if timeout > 0 else None
        # Inside, numbers travel as bytes; with that flag, the real server could not read its own answers.
        self._predict_options = _PredictOptions(options.enable_signature_method_name_check)
        self._options = options
        self._metrics_path = _metrics_path(options.monitoring_config_file)
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._runner: web.ServerRunner | None = None
        self._idle = asyncio.Event()

    async def start(self, host: str, port: int) -> None:
        """Listen on `host` and `port` (0: any free one); ``0.0.0.0`` is every address, IPv6 as well.

        Raises:
            ImportError: aiohttp is not installed; the message names the extra.
            OSError: the port cannot be listened on.
        """
        web = import_aiohttp()
        listener = _listen(host, port)
        self._threads = concurrent.futures.ThreadPoolExecutor(
            self._options.rest_api_num_threads or 4 * (os.cpu_count() or 1), "aioserving.testing REST"
        )
        # Requests that are still there when `stop` gets to closing connections are not waited for.
        self._runner = web.ServerRunner(
            web.Server(self._handle, access_log=None, auto_decompress=False), shutdown_timeout=_CLOSE_TIMEOUT
        )
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        self.port = listener.getsockname()[1]

    async def stop(self, grace: float | None = None) -> None:
        """Stop listening, and close all connections; a second time does nothing.

        Args:
            grace: seconds that requests in progress have to end by themselves; None: they are cancelled.
        """
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        if grace and self.running:
            self._idle.clear()
            try:
                await asyncio.wait_for(self._idle.wait(), grace)
            except (TimeoutError, asyncio.TimeoutError):
                logger.info("%d REST requests did not end in %g s", self.running, grace)
        await runner.cleanup()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    def __repr__(self) -> str:
        state = "stopped" if self._runner is None else f"on port {self.port}"
        return f"<RestServer {state}; {self.requests.total()} requests, {self.running} running>"

    # Requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        from aiohttp import web

        path = _path(request)
        content_type, what = "application/json", request.method
        self.running += 1
        try:
            if path == self._metrics_path:
                what, status, content_type = "metrics", 200, "text/plain"
                body = self._metrics()
            elif not _PREFIX.fullmatch(path):
                return web.Response(status=404, body=b"")
            else:
                try:
                    asked = route(request.method, path)
                    what = asked.verb
                    body, status = await self._answer(asked, await _read(request)), 200
                except StatusError as error:
                    body, status = json_tensor.error_body(error.message), HTTP_STATUS.get(error.code, 500)
            self.requests[what, status] += 1
            return web.Response(status=status, body=body, content_type=content_type)
        finally:
            self.running -= 1
            if not self.running:
                self._idle.set()

    async def _answer(self, asked: Route, body: bytes) -> bytes:
        """The body of the answer.

        Raises:
            StatusError: what it ends with instead.
        """
        try:
            if asked.verb == "status":
                return await self._status(asked)
            if asked.verb == "metadata":
                return await self._metadata(asked)
            if asked.verb == "predict":
                return await self._predict(asked, body)
            return await self._examples(asked, body)
        except StatusError:
            raise
        except RecursionError as error:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT, "JSON Parse error: Terminate parsing due to Handler error."
            ) from error
        except Exception as error:  # our own mistake, or a model's that nobody foresaw
            logger.exception("REST request %s failed", asked)
            raise StatusError(StatusCode.INTERNAL, f"{type(error).__name__}: {error}") from error

    async def _predict(self, asked: Route, body: bytes) -> bytes:
        document, signature_name = await self._in_thread(lambda: _parsed(body))
        began = time.monotonic()
        spec = asked.model_spec(signature_name)
        lease = self._manager.resolve(spec)

        def work() -> bytes:
            signature = _signature(lease.servable, signature_name)
            declared = {alias: info.dtype for alias, info in signature.inputs.items()}
            if not declared:
                raise StatusError(
                    StatusCode.INVALID_ARGUMENT,
                    f"Failed to get input map for signature: {signature_name or 'DEFAULT'}",
                )
            tensors, row = json_tensor.predict_inputs(document, declared)
            request = encode_predict_request(
                tensors,
                model_spec=encode_model_spec(asked.model, signature_name=signature_name),
                data_types=declared,
            )
            response = inference.predict(
                lease.servable,
                request,
                model_name=lease.name,
                version=lease.version,
                options=self._predict_options,
                timeout=self._left(began),
            )
            arrays, _ = decode_predict_response(response)
            for alias, array in arrays.items():
                arrays[alias] = _as_declared(array, signature.outputs[alias].dtype)
            return json_tensor.predictions(arrays) if row else json_tensor.outputs(arrays)

        return await self._in_thread(work, lease)

    async def _examples(self, asked: Route, body: bytes) -> bytes:
        """Classify or Regress."""

        def read() -> bytes:
            document, signature_name = _parsed(body)
            examples: bytes = json_tensor.examples_input(document).SerializeToString()
            spec: bytes = asked.model_spec(signature_name).SerializeToString()
            # ClassificationRequest and RegressionRequest {model_spec = 1, input = 2}
            return delimited(1, spec) + delimited(2, examples)

        request = await self._in_thread(read)
        began = time.monotonic()
        answer, write = {
            "classify": (inference.classify, json_tensor.classifications),
            "regress": (inference.regress, json_tensor.regressions),
        }[asked.verb]
        lease = self._manager.resolve(asked.model_spec())

        def work() -> bytes:
            return write(
                answer(
                    lease.servable,
                    request,
                    model_name=lease.name,
                    version=lease.version,
                    options=self._options,
                    timeout=self._left(began),
                )
            )

        return await self._in_thread(work, lease)

    async def _status(self, asked: Route) -> bytes:
        request: Any = message_class("tensorflow.serving.GetModelStatusRequest")()
        request.model_spec.CopyFrom(asked.model_spec())
        response = await self._get_model_status(request.SerializeToString())
        message: Any = message_class("tensorflow.serving.GetModelStatusResponse").FromString(response)
        return _json(message).encode()

    async def _metadata(self, asked: Route) -> bytes:
        request: Any = message_class("tensorflow.serving.GetModelMetadataRequest")()
        request.model_spec.CopyFrom(asked.model_spec())
        request.metadata_field.append("signature_def")
        call = inference.parse("GetModelMetadata", request.SerializeToString())
        lease = self._manager.resolve(call.model_spec)

        def work() -> bytes:
            data = call.run(
                lease.servable,
                model_name=lease.name,
                version=lease.version,
                options=self._options,
                timeout=None,
            )
            response: Any = message_class("tensorflow.serving.GetModelMetadataResponse").FromString(data)
            signatures: Any = message_class("tensorflow.serving.SignatureDefMap")()
            response.metadata["signature_def"].Unpack(signatures)
            # In parts, as the real server does it: an Any would bring its type's URL along.
            text = (
                f'{{\n"model_spec":{_json(response.model_spec)},\n'
                f'"metadata": {{"signature_def": {_json(signatures)}}}\n}}\n'
            )
            return text.encode()

        return await self._in_thread(work, lease)

    def _left(self, began: float) -> float | None:
        return None if self._timeout is None else max(0.0, began + self._timeout - time.monotonic())

    async def _in_thread(self, work: Callable[[], _T], lease: Lease | None = None) -> _T:
        """Run `work` in a thread, and give `lease` back when it ended: also when nobody waits any more."""

        def release() -> None:
            if lease is not None:
                lease.release()

        if self._threads is None:
            release()
            raise StatusError(StatusCode.UNAVAILABLE, "the server is stopping")
        loop = asyncio.get_running_loop()
        future = self._threads.submit(work)
        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                release()
            else:
                future.add_done_callback(lambda _: _call_soon(loop, release))

    def _metrics(self) -> bytes:
        """A page in Prometheus's text format."""
        lines = ["# TYPE :aioserving:testing:rest_requests counter"]
        for (what, status), count in sorted(self.requests.items()):
            lines.append(f':aioserving:testing:rest_requests{{request="{what}",status="{status}"}} {count}')
        lines.append("# TYPE :aioserving:testing:model_version_state gauge")
        for model in sorted(self._manager.states.models):
            name = model.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
            for version, state in self._manager.states.versions(model):
                lines.append(
                    f':aioserving:testing:model_version_state{{model_name="{name}",version="{version}",'
                    f'state="{state.state.name}"}} 1'
                )
        return ("\n".join(lines) + "\n").encode()


def import_aiohttp() -> Any:
    """`aiohttp.web`, which only REST needs.

    Raises:
        ImportError: it is not installed; the message says what to install.
    """
    try:
        from aiohttp import web
    except ImportError as error:
        raise ImportError('REST needs aiohttp: pip install "aioserving[testing]"') from error
    return web


#: Seconds that closing a connection waits for a request in progress, before that is cancelled.
_CLOSE_TIMEOUT = 0.01


@dataclass(frozen=True)
class _PredictOptions:
    """See `inference.InferenceOptions`."""

    enable_signature_method_name_check: bool
    enable_serialization_as_tensor_content: bool = True


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(function)


def _parsed(body: bytes) -> tuple[dict[str, Any], str]:
    document = json_tensor.parse_object(body)
    return document, json_tensor.signature_name(document)


def _signature(servable: Servable, name: str) -> Any:
    name = name or "serving_default"
    signature = servable.signatures.get(name)
    if signature is None:
        raise StatusError(
            StatusCode.INVALID_ARGUMENT, f'Serving signature name: "{name}" not found in signature def'
        )
    return signature


_QUANTIZED = frozenset(
    {DataType.DT_QINT8, DataType.DT_QUINT8, DataType.DT_QINT16, DataType.DT_QUINT16, DataType.DT_QINT32}
)


def _as_declared(array: Any, data_type: int) -> Any:
    """`array`, typed as quantized if it was declared so: JSON has no place for those."""
    return as_data_type(array, data_type) if data_type in _QUANTIZED else array


def _path(request: web.BaseRequest) -> str:
    """The path as it was sent, without a query."""
    target = request.raw_path
    if "://" in target.partition("?")[0]:  # what proxies are sent
        return urllib.parse.urlsplit(target).path
    return re.split("[?#]", target, maxsplit=1)[0]


async def _read(request: web.BaseRequest) -> bytes:
    """The whole body, decompressed; nothing at all if that fails, as in the real server."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    body = await request.content.read()
    if "gzip" in request.headers.get("Content-Encoding", "").lower():
        try:
            return gzip.decompress(body)
        except (OSError, EOFError, zlib.error):
            return b""
    return body


def _json(message: Any) -> str:
    from google.protobuf import json_format

    text: str = json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, indent=1
    )
    return text


def _listen(host: str, port: int) -> socket.socket:
    try:
        if host == "0.0.0.0" and socket.has_dualstack_ipv6():  # noqa: S104 - what we were told
            return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error


def _metrics_path(monitoring_config_file: str) -> str | None:
    """Where the page for Prometheus is, if the configuration asks for one."""
    if not monitoring_config_file:
        return None
    config: Any = read_text_proto(monitoring_config_file, _monitoring_config_class()())
    prometheus = config.prometheus_config
    return (prometheus.path or _METRICS_PATH) if prometheus.enable else None


@functools.cache
def _monitoring_config_class() -> Any:
    """`tensorflow.serving.MonitoringConfig`, which tensorflow-serving-api leaves out."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="monitoring_config.proto", package="tensorflow.serving", syntax="proto3"
    )
    prometheus = file.message_type.add(name="PrometheusConfig")
    prometheus.field.add(name="enable", number=1, type=kinds.TYPE_BOOL, label=kinds.LABEL_OPTIONAL)
    prometheus.field.add(name="path", number=2, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    monitoring = file.message_type.add(name="MonitoringConfig")
    monitoring.field.add(
        name="prometheus_config",
        number=1,
        type=kinds.TYPE_MESSAGE,
        type_name=".tensorflow.serving.PrometheusConfig",
        label=kinds.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.MonitoringConfig"))
