"""aioserving.testing.rest: the REST interface over HTTP, embedded and as a process.

Counterparts of the REST tests in the real server's own `tensorflow_model_server_test.py`, all against a
`ServerProcess` that serves a TF1-style half_plus_two, which these tests build, as version 123:

    its test                      here
    testClassifyREST              test_classify_rest
    testRegressREST               test_regress_rest
    testPredictREST               test_predict_rest
    testPredictColumnarREST       test_predict_columnar_rest
    testGetStatusREST             test_get_status_rest
    testGetModelMetadataREST      test_get_model_metadata_rest
    testPrometheusEndpoint        test_prometheus_endpoint

The rest of the module needs no TensorFlow: its models are Python functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest

from aioserving._proto import message_class
from aioserving.testing import (
    CallableServable,
    CallableSignature,
    ModelServer,
    ServerProcess,
    StatusCode,
    StatusError,
    TensorSpec,
)
from aioserving.testing.process import ServerProcessError
from aioserving.testing.rest import HTTP_STATUS, Route, route
from tests.testing.servables import (
    PREDICT,
    RELOAD,
    predict_request,
    predicted,
    reload_request,
    sleeper,
    times,
)

aiohttp = pytest.importorskip("aiohttp", reason="REST needs aiohttp, which is not installed here")

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
ENV = {"PYTHONPATH": str(ROOT)}


class Http:
    """Requests to one server."""

    def __init__(self, session: Any, url: str) -> None:
        self.session = session
        self.url = url

    async def raw(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str, bytes]:
        """HTTP status, content type and body; `path` is sent as it is."""
        from yarl import URL

        url = URL(self.url + path, encoded=True)
        async with self.session.request(method, url, data=body, headers=headers) as response:
            return response.status, response.headers.get("Content-Type", ""), await response.read()

    async def get(self, path: str) -> tuple[int, Any]:
        """HTTP status and the JSON of the answer."""
        status, content_type, body = await self.raw("GET", path)
        assert content_type == "application/json"
        return status, json.loads(body)

    async def post(self, path: str, document: Any) -> tuple[int, Any]:
        """HTTP status and the JSON of the answer."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        status, content_type, answer = await self.raw("POST", path, body)
        assert content_type == "application/json"
        return status, json.loads(answer)


@contextlib.asynccontextmanager
async def http(url: str) -> AsyncIterator[Http]:
    """A session with one server."""
    # No "br, deflate" and no default content type: what is sent is what a test says.
    async with aiohttp.ClientSession(skip_auto_headers=["Content-Type"]) as session:
        yield Http(session, url)


def parsed_examples(inputs: Any) -> list[Any]:
    """The features of serialized examples."""
    example: Any = message_class("tensorflow.Example")
    return [example.FromString(data).features.feature for data in inputs]


def classify(inputs: Any) -> Any:
    """A class per int64 of feature `i`, scored with the float `f`, which may come from a context."""
    rows = parsed_examples(inputs)
    return {
        "classes": np.array([[b"c%d" % i for i in row["i"].int64_list.value] for row in rows], object),
        "scores": np.array([[row["f"].float_list.value[0]] * 2 for row in rows], np.float32),
    }


def regress(inputs: Any) -> Any:
    """The float `f` of every example, in a column."""
    return np.array([[row["f"].float_list.value[0]] for row in parsed_examples(inputs)], np.float32)


def fail(code: Any) -> Any:
    """End with the status whose number is asked for."""
    raise StatusError(int(code), "as you wish " + "x" * 2000)


def everything() -> CallableServable:
    """A model with a signature for every purpose of these tests."""
    strings = {"inputs": ("string", (None,))}
    named = {"n": TensorSpec("int64", (None,)), "s": TensorSpec("string", (None,), default=[b"unused"])}
    return CallableServable(
        {
            "serving_default": CallableSignature(
                function=lambda x: x / 2 + 2,
                inputs={"x": ("float32", (None,))},
                outputs={"y": ("float32", (None,))},
            ),
            "two": CallableSignature(
                function=lambda n, s: {"twice": n * 2, "s_bytes": s, "s": s},
                inputs=named,
                outputs={
                    "twice": ("int64", (None,)),
                    "s_bytes": ("string", (None,)),
                    "s": ("string", (None,)),
                },
            ),
            "classify": CallableSignature(
                function=classify,
                inputs=strings,
                outputs={"classes": ("string", (None, None)), "scores": ("float32", (None, None))},
            ),
            "regress": CallableSignature(
                function=regress, inputs=strings, outputs={"outputs": ("float32", (None, 1))}
            ),
            "fail": CallableSignature(
                function=fail, inputs={"code": ("int32", ())}, outputs={"y": ("int32", ())}
            ),
            "nothing": CallableSignature(function=lambda: 1, inputs={}, outputs={"y": ("int32", ())}),
            "echo": CallableSignature(
                function=lambda x: x, inputs={"x": ("float64", None)}, outputs={"y": ("float64", None)}
            ),
            "quantized": CallableSignature(
                function=lambda x: x.astype(np.int8),
                inputs={"x": ("float32", (None,))},
                outputs={"y": ("qint8", (None,))},
            ),
        }
    )


MODEL = everything()


@pytest.fixture
async def rest() -> AsyncIterator[Http]:
    """A server with one model, `m`."""
    async with ModelServer({"m": MODEL}, rest_port=0) as server, http(server.rest_url) as session:
        yield session


# ---------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("POST", "/v1/models/m:predict", Route("predict", "m")),
        ("POST", "/V1/Models/M:PREDICT", Route("predict", "M")),
        ("POST", "/v1/models/m/versions/007:classify", Route("classify", "m", 7)),
        ("POST", "/v1/models/m/labels/stable:regress", Route("regress", "m", None, "stable")),
        ("POST", "/v1/models/a%2Fb%3a%zz/labels/l%20+:predict", Route("predict", "a/b:%zz", None, "l +")),
        ("GET", "/v1/models/m", Route("status", "m")),
        ("GET", "/v1/models/m/versions/0", Route("status", "m", 0)),
        ("GET", "/v1/models/m/labels/l/METADATA", Route("metadata", "m", None, "l")),
        ("GET", "/v1/models/metadata", Route("status", "metadata")),
        ("GET", f"/v1/models/m/versions/{2**63 - 1}/metadata", Route("metadata", "m", 2**63 - 1)),
    ],
)
def test_routes(method: str, path: str, expected: Route) -> None:
    """URLs are read without regard to case, and only names and labels are percent-decoded."""
    assert route(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path", "message"),
    [
        ("POST", "/v1/models/m", "Malformed request: POST /v1/models/m"),
        ("GET", "/v1/models/m:predict", "Malformed request: GET /v1/models/m:predict"),
        ("PUT", "/v1/models/m:predict", "Malformed request: PUT /v1/models/m:predict"),
        ("POST", "/v1/models/m:sum", "Malformed request: POST /v1/models/m:sum"),
        (
            "POST",
            "/v1/models/m/versions/x:predict",
            "Malformed request: POST /v1/models/m/versions/x:predict",
        ),
        ("GET", "/v1/models/m/", "Malformed request: GET /v1/models/m/"),
        ("GET", "/v1/models", "Missing model name in request."),
        ("GET", "/v1/models/metadata/metadata/", "Malformed request: GET /v1/models/metadata/metadata/"),
        ("GET", f"/v1/models/m/versions/{2**63}", f"Failed to convert version: {2**63} to numeric."),
        (
            "GET",
            f"/v1/models/m/versions/{'9' * 5000}",
            f"Failed to convert version: {'9' * 5000} to numeric.",
        ),
    ],
)
def test_routes_refused(method: str, path: str, message: str) -> None:
    """A URL without a meaning is a bad argument, told with the method and the path as sent."""
    with pytest.raises(StatusError) as caught:
        route(method, path)
    assert (caught.value.code, caught.value.message) == (StatusCode.INVALID_ARGUMENT, message)


async def test_bad_urls(rest: Http) -> None:
    """Under /v1 a bad URL gets a JSON error, elsewhere a 404 without a body."""
    assert await rest.get("/v1/models") == (400, {"error": "Missing model name in request."})
    for method in ("POST", "PUT", "DELETE"):
        status, _, body = await rest.raw(method, "/v1/%6d?x=1", b"{}")
        assert (status, json.loads(body)) == (400, {"error": f"Malformed request: {method} /v1/%6d"})
    assert (await rest.raw("GET", "/"))[::2] == (404, b"")
    assert (await rest.raw("POST", "/v2/models/m:predict", b"{}"))[::2] == (404, b"")
    assert (await rest.raw("GET", "/monitoring/prometheus/metrics"))[0] == 404


# ---------------------------------------------------------------- Predict


async def test_predict_forms(rest: Http) -> None:
    """Rows are answered in rows, columns in columns; a query and an odd spelling do not matter."""
    assert await rest.post("/v1/models/m:predict", {"instances": [2, 3.5]}) == (
        200,
        {"predictions": [3, 3.75]},
    )
    assert await rest.post("/V1/MODELS/%6d:Predict?q", {"inputs": [[2]]}) == (200, {"outputs": [[3]]})
    assert await rest.post("/v1/models/m/versions/1:predict", {"inputs": 2}) == (200, {"outputs": 3})
    assert (await rest.raw("POST", "/v1/models/m:predict", b'{"inputs": [NaN, Infinity]}'))[2] == (
        b'{\n    "outputs": [\n        NaN,\n        Infinity\n    ]\n}'
    )


async def test_predict_named(rest: Http) -> None:
    """Several inputs and outputs go by name, as rows and as columns, with bytes in base64."""
    ask = {"signature_name": "two"}
    row = {"n": 2**62, "s": {"b64": "/w=="}}
    status, _, body = await rest.raw(
        "POST", "/v1/models/m:predict", json.dumps({**ask, "instances": [row, {"s": "ä", "n": -1}]}).encode()
    )
    assert status == 200
    first, second = json.loads(body.decode("utf-8", "surrogateescape"))["predictions"]
    assert first == {"twice": -(2**63), "s_bytes": {"b64": "/w=="}, "s": "\udcff"}
    assert second == {"twice": -2, "s_bytes": {"b64": "w6Q="}, "s": "ä"}
    assert await rest.post("/v1/models/m:predict", {**ask, "inputs": {"n": [1], "s": ["a"]}}) == (
        200,
        {"outputs": {"twice": [2], "s_bytes": [{"b64": "YQ=="}], "s": ["a"]}},
    )


@pytest.mark.parametrize(
    ("document", "status", "message"),
    [
        (b"", 400, "JSON Parse error: The document is empty"),
        (b"[" * 100_000, 400, "JSON Parse error: Terminate parsing due to Handler error."),
        ({}, 400, "Missing 'inputs' or 'instances' key"),
        ({"signature_name": "no"}, 400, 'Serving signature name: "no" not found in signature def'),
        (
            {"signature_name": "nothing", "inputs": {}},
            400,
            "Failed to get input map for signature: nothing",
        ),
        ({"signature_name": "two", "inputs": {"n": 1}}, 400, "Missing named input: s in 'inputs' object."),
        (
            {"signature_name": "echo", "instances": [True]},
            400,
            "Failed to process element: 0 of 'instances' list. Error: INVALID_ARGUMENT: JSON Value: true "
            "Type: True is not of expected type: double",
        ),
        (
            {"signature_name": "quantized", "instances": [1]},
            400,
            "Failed to write JSON value for tensor type: qint8",
        ),
        (
            {"signature_name": "two", "inputs": {"n": 1, "s": "\ud800"}},
            400,
            "JSON Parse error: The surrogate pair in string is invalid. at offset: 0",
        ),
        (
            b'{"signature_name": "echo", "inputs": ' + b"[" * 70 + b"1" + b"]" * 70 + b"}",
            501,
            "this server cannot hold tensors of 70 dimensions",
        ),
        (
            b'{"inputs": 1' + b"0" * 400 + b"}",
            400,
            "JSON Parse error: Number too big to be stored in double. at offset: 0",
        ),
        (
            b'{"inputs": 1' + b"0" * 5000 + b"}",
            400,
            "JSON Parse error: Number too big to be stored in double. at offset: 0",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_predict_refused(rest: Http, document: Any, status: int, message: str) -> None:
    """What is wrong with a Predict is told in the real server's words, signature defaults unused."""
    assert await rest.post("/v1/models/m:predict", document) == (status, {"error": message})


async def test_scalar_output_in_rows() -> None:
    """An output without dimensions cannot be told in rows, only as a column."""
    async with (
        ModelServer(
            {"s": CallableServable(np.sum, inputs={"a": ("float32", None)}, outputs={"y": ("float32", ())})},
            rest_port=0,
        ) as server,
        http(server.rest_url) as session,
    ):
        assert await session.post("/v1/models/s:predict", {"instances": [1, 2]}) == (
            400,
            {"error": "Tensor name: y has no shape information "},
        )
        assert await session.post("/v1/models/s:predict", {"inputs": [1, 2]}) == (200, {"outputs": 3})


async def test_unknown_models(rest: Http) -> None:
    """The model is looked up after the body was parsed, and before its tensors are read."""
    missing = {"error": "Servable not found for request: Latest(no)"}
    assert await rest.post("/v1/models/no:predict", {"inputs": "wrong"}) == (404, missing)
    assert (await rest.post("/v1/models/no:predict", b"["))[0] == 400
    assert await rest.post("/v1/models/no:regress", {"examples": [{}]}) == (404, missing)
    assert (await rest.post("/v1/models/no:regress", {"examples": 1}))[0] == 400
    assert await rest.post("/v1/models/m/versions/9:predict", {"inputs": 1}) == (
        404,
        {"error": "Servable not found for request: Specific(m, 9)"},
    )
    assert await rest.post("/v1/models/m/labels/no:predict", {"inputs": 1}) == (
        400,
        {"error": "Unrecognized servable version label: no"},
    )
    assert await rest.get("/v1/models/no/metadata") == (404, missing)


@pytest.mark.parametrize("code", [code for code in StatusCode if code])
async def test_http_statuses(rest: Http, code: StatusCode) -> None:
    """Every code has its HTTP status, and its text is not cut."""
    status, answer = await rest.post("/v1/models/m:predict", {"signature_name": "fail", "inputs": int(code)})
    assert status == HTTP_STATUS.get(code, 500)
    assert answer == {"error": "as you wish " + "x" * 2000}


def test_http_status_table() -> None:
    """The table of HTTP statuses is the real server's."""
    named = {code.name: HTTP_STATUS.get(code, 500) for code in StatusCode}
    assert named == {
        "OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400, "DEADLINE_EXCEEDED": 504,
        "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403, "RESOURCE_EXHAUSTED": 429,
        "FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE": 400, "UNIMPLEMENTED": 501,
        "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500, "UNAUTHENTICATED": 401,
    }  # fmt: skip


async def test_compressed_bodies(rest: Http) -> None:
    """A gzip body is decompressed; one that is not what it says counts as empty."""
    body = b'{"inputs": [2]}'
    zipped = {"Content-Encoding": "gzip"}
    status, _, answer = await rest.raw("POST", "/v1/models/m:predict", gzip.compress(body), **zipped)
    assert (status, json.loads(answer)) == (200, {"outputs": [3]})
    for bad in (body, gzip.compress(body)[:-9], b""):
        status, _, answer = await rest.raw("POST", "/v1/models/m:predict", bad, **zipped)
        assert (status, json.loads(answer)["error"]) == (400, "JSON Parse error: The document is empty")


async def test_large_body(rest: Http) -> None:
    """Bodies may be large, in both directions, and come after "100 Continue"."""
    values = np.random.default_rng(0).standard_normal((300, 1000))
    document = {"signature_name": "echo", "instances": values.tolist()}
    status, _, body = await rest.raw(
        "POST", "/v1/models/m:predict", io.BytesIO(json.dumps(document).encode()), Expect="100-continue"
    )
    assert status == 200
    np.testing.assert_array_equal(json.loads(body)["predictions"], values)


async def test_tensor_content_flag_is_grpc_s() -> None:
    """`--enable_serialization_as_tensor_content` changes nothing in REST, which has answers all the same."""
    async with (
        ModelServer({"m": MODEL}, rest_port=0, enable_serialization_as_tensor_content=True) as server,
        http(server.rest_url) as rest,
    ):
        assert await rest.post("/v1/models/m:predict", {"instances": [2]}) == (200, {"predictions": [3]})


# ---------------------------------------------------------------- Classify, Regress, status, metadata


async def test_classify(rest: Http) -> None:
    """Classes are pairs of label and score per example; features of the context count for all."""
    document = {
        "signature_name": "classify",
        "context": {"f": 0.5},
        "examples": [{"i": [1, 2]}, {"i": [3, 4], "f": 0.1}],
    }
    assert await rest.post("/v1/models/m:classify", document) == (
        200,
        {"results": [[["c1", 0.5], ["c2", 0.5]], [["c3", 0.1], ["c4", 0.1]]]},
    )


async def test_regress(rest: Http) -> None:
    """Regressions are numbers, one per example; decimals are float features, whole numbers are not."""
    document = {"signature_name": "regress", "examples": [{"f": 1.5}, {"f": [2.0]}]}
    status, _, body = await rest.raw("POST", "/v1/models/m:regress", json.dumps(document).encode())
    assert (status, body) == (200, b'{\n    "results": [1.5, 2.0]\n}')
    status, answer = await rest.post(
        "/v1/models/m:regress", {"signature_name": "regress", "examples": [{"f": 2}]}
    )
    assert (status, list(answer)) == (500, ["error"])
    assert "IndexError" in answer["error"]
    assert await rest.post("/v1/models/m:regress", {"signature_name": "no", "examples": [{}]}) == (
        400,
        {"error": "No signature was found with the name: no"},
    )
    assert await rest.post("/v1/models/m:classify", {"signature_name": "two", "examples": [{}]}) == (
        400,
        {"error": "Expected one input Tensor."},
    )


async def test_status() -> None:
    """The status of one version or all, the highest first, with load errors in full; labels are ignored."""
    broken = StatusError(StatusCode.DATA_LOSS, "broken")
    async with (
        ModelServer({"m": {1: times(1)}}, rest_port=0) as server,
        http(server.rest_url) as rest,
    ):
        server.add_version("m", 3, broken)
        for _ in range(200):
            if server.states("m").get(3) == "END":
                break
            await asyncio.sleep(0.02)
        good = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        bad = {
            "version": "3",
            "state": "END",
            "status": {"error_code": "DATA_LOSS", "error_message": "broken"},
        }
        assert await rest.get("/v1/models/m") == (200, {"model_version_status": [bad, good]})
        assert await rest.get("/v1/models/m/versions/1") == (200, {"model_version_status": [good]})
        assert await rest.get("/v1/models/m/labels/x") == (200, {"model_version_status": [bad, good]})
        assert await rest.get("/v1/models/m/versions/2") == (
            404,
            {"error": "Could not find version 2 of model m"},
        )
        assert await rest.get("/v1/models/x") == (
            404,
            {"error": "Could not find any versions of model x"},
        )


async def test_labels_and_names() -> None:
    """A label says which version answers; names and labels may be percent-encoded."""
    models = {"a/b": {1: times(1), 2: times(2)}}
    async with ModelServer(models, rest_port=0) as server, http(server.rest_url) as rest:
        async with grpc.aio.insecure_channel(server.target) as channel:
            reload = reload_request(("a/b", "/callable/a/b"), all=True, labels={"ä:1": 1, "two": 2})
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(RELOAD)
            await stub(reload)
        for path, answer in (("", 10), ("/labels/%C3%A4%3A1", 5), ("/labels/two", 10), ("/versions/1", 5)):
            found = await rest.post(f"/v1/models/a%2fb{path}:predict", {"inputs": [5]})
            assert found == (200, {"outputs": [answer]}), path
        status, answer = await rest.get("/v1/models/a%2Fb/labels/%C3%A4%3A1/metadata")
        assert (status, answer["model_spec"]["version"]) == (200, "1")


async def test_metadata_of_callables(rest: Http) -> None:
    """Metadata tells name and version, and every signature with fields that are at their defaults."""
    status, answer = await rest.get("/v1/models/m/metadata")
    assert status == 200
    assert answer["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert sorted(signatures) == sorted(MODEL.signatures)
    assert signatures["nothing"]["inputs"] == {}
    assert signatures["echo"]["inputs"]["x"] == {
        "dtype": "DT_DOUBLE",
        "name": "echo_x:0",
        "tensor_shape": {"dim": [], "unknown_rank": True},
    }


# ---------------------------------------------------------------- the server


async def test_both_at_once() -> None:
    """gRPC and REST are two doors to the same models, and REST calls do not count as gRPC's."""
    async with ModelServer({"m": times(2)}, rest_port=0) as server, http(server.rest_url) as session:
        async with grpc.aio.insecure_channel(server.target) as channel:
            stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
            answers = await asyncio.gather(
                stub(predict_request("m", [1.0])), session.post("/v1/models/m:predict", {"inputs": [1]})
            )
        assert predicted(answers[0]) == [2.0]
        assert answers[1] == (200, {"outputs": [2]})
        assert server.calls.total == 1
        assert server.rest_url in repr(server)


async def test_off_by_default() -> None:
    """Without being asked for there is no REST, and asking for its URL says how to have it."""
    async with ModelServer({"m": times(2)}) as server:
        assert server.rest_port is None
        assert not server.serves_rest
        with pytest.raises(RuntimeError, match="rest_port=0"):
            _ = server.rest_url
    assert ModelServer({"m": times(2)}, rest_api_port=8501).rest_port == 8501
    assert ModelServer({"m": times(2)}, rest_api_port=8501, rest_port=None).rest_port is None


async def test_restart_keeps_the_port() -> None:
    """After a restart REST is where it was; after a stop nobody is there."""
    async with ModelServer({"m": times(2)}, rest_port=0) as server:
        url = server.rest_url
        await server.restart()
        assert server.rest_url == url
        async with http(url) as rest:
            assert await rest.post("/v1/models/m:predict", {"inputs": [1]}) == (200, {"outputs": [2]})
            await server.stop()
            with pytest.raises(aiohttp.ClientConnectionError):
                await rest.get("/v1/models/m")


async def test_blocking_server() -> None:
    """The server on a thread of its own has REST, too."""
    with ModelServer({"m": times(2)}, rest_port=0) as server:
        assert server.rest_url == f"http://127.0.0.1:{server.rest_port}"
        async with http(server.rest_url) as rest:
            assert await rest.post("/v1/models/m:predict", {"inputs": [1]}) == (200, {"outputs": [2]})


async def test_port_in_use() -> None:
    """A port that is taken is an error that names it, and leaves nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = ModelServer({"m": times(2)}, rest_port=port)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            await server.start()
        assert not server.running
    async with server, http(server.rest_url) as rest:
        assert (await rest.get("/v1/models/m"))[0] == 200


async def test_equal_ports(caplog: pytest.LogCaptureFixture) -> None:
    """With the port of gRPC REST is left out, and the log says so."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with caplog.at_level(logging.ERROR, "aioserving.testing"):
        async with ModelServer({"m": times(2)}, port=port, rest_port=port) as server:
            assert server.running
            assert not server.serves_rest
    assert f"REST is not served: its port {port} is that of gRPC" in caplog.text


async def test_timeout() -> None:
    """`rest_api_timeout_in_ms` limits what a model may take: 504; none at 0."""
    models = {"m": sleeper(0.2)}
    for limit, expected in (
        (50, (504, {"error": "Timed out waiting for notification"})),
        (0, (200, {"outputs": [1]})),
    ):
        async with (
            ModelServer(models, rest_port=0, rest_api_timeout_in_ms=limit) as server,
            http(server.rest_url) as rest,
        ):
            assert await rest.post("/v1/models/m:predict", {"inputs": [1]}) == expected


async def test_threads() -> None:
    """`rest_api_num_threads` is how many models run at once; more requests wait."""
    running, most, lock = 0, 0, threading.Lock()

    def function(x: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.05)
        with lock:
            running -= 1
        return x

    spec = {"x": ("float32", (None,))}
    model = CallableServable(function, inputs=spec, outputs={"y": ("float32", (None,))})
    async with (
        ModelServer({"m": model}, rest_port=0, rest_api_num_threads=2) as server,
        http(server.rest_url) as rest,
    ):
        asked = [rest.post("/v1/models/m:predict", {"inputs": [n]}) for n in range(6)]
        assert [status for status, _ in await asyncio.gather(*asked)] == [200] * 6
    assert most == 2


async def test_stop_with_grace() -> None:
    """A stop with a grace lets requests end; one without cuts their connections."""
    started = threading.Event()

    def function(x: Any) -> Any:
        started.set()
        time.sleep(0.3)
        return x

    model = CallableServable(
        function, inputs={"x": ("float32", (None,))}, outputs={"y": ("float32", (None,))}
    )
    server = ModelServer({"m": model}, rest_port=0)
    for grace in (10.0, None):
        started.clear()
        await server.start()
        async with http(server.rest_url) as rest:
            asked = asyncio.ensure_future(rest.post("/v1/models/m:predict", {"inputs": [1]}))
            await asyncio.to_thread(started.wait, 10)
            began = time.monotonic()
            await server.stop(grace)
            assert time.monotonic() - began < 5
            if grace:
                assert await asked == (200, {"outputs": [1]})
            else:
                with pytest.raises(aiohttp.ClientConnectionError):
                    await asked


async def test_client_that_leaves() -> None:
    """A client that hangs up does not disturb the server, and its model is given back."""
    async with ModelServer({"m": sleeper(0.2)}, rest_port=0) as server, http(server.rest_url) as rest:
        asked = asyncio.ensure_future(rest.post("/v1/models/m:predict", {"inputs": [1]}))
        await asyncio.sleep(0.05)
        asked.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asked
        assert (await rest.post("/v1/models/m:predict", {"inputs": [1]}))[0] == 200
        server.remove_version("m", 1)
        for _ in range(200):
            if server.states("m") == {1: "END"}:
                break
            await asyncio.sleep(0.02)
        assert server.states("m") == {1: "END"}


async def test_model_bugs_are_reported() -> None:
    """What a function of a model raises is told as UNKNOWN, which is 500."""
    async with (
        ModelServer(
            {
                "m": CallableServable(
                    lambda x: x.nope, inputs={"x": ("bool", None)}, outputs={"y": ("bool", None)}
                )
            },
            rest_port=0,
        ) as server,
        http(server.rest_url) as session,
    ):
        status, answer = await session.post("/v1/models/m:predict", {"inputs": True})
        assert status == 500
        assert "AttributeError" in answer["error"]


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", "/monitoring/prometheus/metrics"),
        ('prometheus_config { enable: true path: "/m" }', "/m"),
        ('prometheus_config { enable: false path: "/m" }', None),
        ("", None),
    ],
)
async def test_monitoring_config(tmp_path: Path, text: str, path: str | None) -> None:
    """The monitoring file says whether and where there is a page for Prometheus."""
    (tmp_path / "monitoring").write_text(text)
    flags: dict[str, Any] = {"monitoring_config_file": str(tmp_path / "monitoring")}
    async with ModelServer({'"': MODEL}, rest_port=0, **flags) as server, http(server.rest_url) as rest:
        await rest.get("/v1/models/x")
        for place in ("/m", "/monitoring/prometheus/metrics"):
            status, content_type, body = await rest.raw("GET", place)
            assert status == (200 if place == path else 404)
            if place == path:
                assert content_type.startswith("text/plain")
                assert b"# TYPE :aioserving:testing:rest_requests counter\n" in body
                assert b':aioserving:testing:rest_requests{request="status",status="404"} 1\n' in body
                assert b'{model_name="\\"",version="1",state="AVAILABLE"} 1\n' in body


async def test_bad_monitoring_config(tmp_path: Path) -> None:
    """A monitoring file that cannot be read ends the start; without REST nobody reads it."""
    (tmp_path / "monitoring").write_text("prometheus { }")
    flags: dict[str, Any] = {"monitoring_config_file": str(tmp_path / "monitoring")}
    with pytest.raises(StatusError, match="Invalid protobuf file"):
        await ModelServer({"m": MODEL}, rest_port=0, **flags).start()
    async with ModelServer({"m": MODEL}, **flags):
        pass


async def test_without_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where aiohttp is missing, asking for REST names the extra; not asking works."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ImportError, match=r'pip install "aioserving\[testing\]"'):
        await ModelServer({"m": MODEL}, rest_port=0).start()
    async with ModelServer({"m": MODEL}) as server:
        assert server.running


def test_process_without_aiohttp() -> None:
    """A command line that asks for REST where aiohttp is missing ends with what to install."""
    code = (
        "import sys; sys.modules['aiohttp'] = None\n"
        "from aioserving.testing.__main__ import main\n"
        "flags = ['--testing_callable=m=tests.testing.servables:twice', '--testing_pick_port']\n"
        "sys.exit(main([*flags, '--testing_pick_rest_port']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, cwd=ROOT, timeout=60, capture_output=True, text=True
    )
    assert done.returncode == 255
    assert (
        'Failed to start server. Error: REST needs aiohttp: pip install "aioserving[testing]"' in done.stderr
    )


def test_aiohttp_is_imported_when_needed() -> None:
    """Importing and using the server without REST does not import aiohttp."""
    code = (
        "import sys, aioserving.testing as t, aioserving.testing.rest\n"
        "from tests.testing.servables import twice\n"
        "with t.ModelServer({'m': twice}): assert 'aiohttp' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=60)


async def test_ipv6_too() -> None:
    """On 0.0.0.0, REST also listens on IPv6, as the real server does."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with ModelServer({"m": MODEL}, rest_port=0, host="0.0.0.0") as server:
        for host in ("127.0.0.1", "[::1]"):
            async with http(f"http://{host}:{server.rest_port}") as rest:
                assert (await rest.get("/v1/models/m"))[0] == 200


# ---------------------------------------------------------------- the process


async def test_process_with_callables() -> None:
    """A process tells the port that it picked for REST, and keeps it over a restart."""
    callables = {"m": "tests.testing.servables:twice"}
    async with await asyncio.to_thread(ServerProcess, callables=callables, env=ENV, rest_port=0) as process:
        url = process.rest_url
        assert "Exporting HTTP/REST API at:127.0.0.1:" in process.stderr
        await process.arestart()
        assert process.rest_url == url
        async with http(url) as rest:
            assert await rest.post("/v1/models/m:predict", {"inputs": [1]}) == (200, {"outputs": [2]})


def test_process_without_rest() -> None:
    """A process without REST says so when asked for the URL; the flag of the real server is heeded."""
    with pytest.raises(ServerProcessError, match="rest_port=0"):
        _ = ServerProcess().rest_url
    process = ServerProcess(rest_api_port=8501)
    assert process.rest_url == "http://127.0.0.1:8501"
    assert "--rest_api_port=8501" in process.arguments
    assert "--testing_pick_rest_port=true" in ServerProcess(rest_port=0).arguments


# ---------------------------------------------------------------- the real server's own tests


def make_half_plus_two(path: Path) -> None:
    """A TF1-style half_plus_two with the signatures and tensor names of the real server's test model."""
    import tensorflow as tf

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        serialized = v1.placeholder(tf.string, name="tf_example")
        features = {
            "x": tf.io.FixedLenFeature([1], tf.float32),
            "x2": tf.io.FixedLenFeature([1], tf.float32, default_value=[0.0]),
        }
        examples = tf.io.parse_example(serialized, features)
        for tensor in examples.values():
            tensor.set_shape([None, 1])
        x = tf.identity(examples["x"], name="x")
        x2 = tf.identity(examples["x2"], name="x2")
        half, two, three = v1.Variable(0.5), v1.Variable(2.0), v1.Variable(3.0)
        y = tf.add(half * x, two, name="y")
        y2 = tf.add(half * x, three, name="y2")
        y3 = tf.add(half * x2, three, name="y3")
        session.run(v1.global_variables_initializer())
        info, build = v1.saved_model.utils.build_tensor_info, v1.saved_model.build_signature_def
        method = "tensorflow/serving/{}".format
        signatures = {
            "serving_default": build({"x": info(x)}, {"y": info(y)}, method("predict")),
            "classify_x_to_y": build({"inputs": info(serialized)}, {"scores": info(y)}, method("classify")),
            "regress_x_to_y": build({"inputs": info(serialized)}, {"outputs": info(y)}, method("regress")),
            "regress_x_to_y2": build({"inputs": info(serialized)}, {"outputs": info(y2)}, method("regress")),
            "regress_x2_to_y3": build({"inputs": info(x2)}, {"outputs": info(y3)}, method("regress")),
        }
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], signature_def_map=signatures)
        builder.save()


@pytest.fixture(scope="module")
def half_plus_two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A process that serves half_plus_two as `default`, version 123, with a page for Prometheus."""
    folder = tmp_path_factory.mktemp("half_plus_two")
    # TensorFlow's deprecation notes come by its own log, its own uses of old protobuf calls as warnings.
    code = f"from tests.testing.test_rest import *; make_half_plus_two(Path({str(folder / '00000123')!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, timeout=110)
    (folder / "monitoring.config").write_text(
        'prometheus_config { enable: true, path: "/monitoring/prometheus/metrics" }'
    )
    with ServerProcess(
        model_base_path=str(folder),
        rest_port=0,
        monitoring_config_file=str(folder / "monitoring.config"),
        start_timeout=110,
    ) as process:
        yield process


@pytest.fixture
async def served(half_plus_two: ServerProcess) -> AsyncIterator[Http]:
    """A session with that process."""
    async with http(half_plus_two.rest_url) as session:
        yield session


EXAMPLES = [{"x": 2.0}]


@pytest.mark.tensorflow
async def test_classify_rest(served: Http) -> None:
    """testClassifyREST: a class without a label, with its score."""
    document = {"signature_name": "classify_x_to_y", "examples": EXAMPLES}
    assert await served.post("/v1/models/default:classify", document) == (200, {"results": [[["", 3.0]]]})


@pytest.mark.tensorflow
async def test_regress_rest(served: Http) -> None:
    """testRegressREST: a number per example."""
    document = {"signature_name": "regress_x_to_y", "examples": EXAMPLES}
    assert await served.post("/v1/models/default:regress", document) == (200, {"results": [3.0]})


@pytest.mark.tensorflow
async def test_predict_rest(served: Http) -> None:
    """testPredictREST: rows in, rows out."""
    answer = await served.post("/v1/models/default:predict", {"instances": [2.0, 3.0, 4.0]})
    assert answer == (200, {"predictions": [3.0, 3.5, 4.0]})


@pytest.mark.tensorflow
async def test_predict_columnar_rest(served: Http) -> None:
    """testPredictColumnarREST: a column in, a column out."""
    answer = await served.post("/v1/models/default:predict", {"inputs": [2.0, 3.0, 4.0]})
    assert answer == (200, {"outputs": [3.0, 3.5, 4.0]})


@pytest.mark.tensorflow
async def test_get_status_rest(served: Http) -> None:
    """testGetStatusREST: exactly this."""
    status = {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert await served.get("/v1/models/default") == (200, {"model_version_status": [status]})


@pytest.mark.tensorflow
async def test_get_model_metadata_rest(served: Http) -> None:
    """testGetModelMetadataREST: all signatures, with nothing left out that is at its default."""
    column = {"dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}], "unknown_rank": False}
    x, x2 = ({"dtype": "DT_FLOAT", "tensor_shape": column, "name": name} for name in ("x:0", "x2:0"))
    y, y2, y3 = (
        {"dtype": "DT_FLOAT", "tensor_shape": column, "name": name} for name in ("y:0", "y2:0", "y3:0")
    )
    serialized = {
        "dtype": "DT_STRING",
        "tensor_shape": {"dim": [], "unknown_rank": True},
        "name": "tf_example:0",
    }

    def signature(method: str, inputs: Any, outputs: Any) -> Any:
        method_name = f"tensorflow/serving/{method}"
        return {"inputs": inputs, "outputs": outputs, "method_name": method_name, "defaults": {}}

    signatures = {
        "serving_default": signature("predict", {"x": x}, {"y": y}),
        "classify_x_to_y": signature("classify", {"inputs": serialized}, {"scores": y}),
        "regress_x_to_y": signature("regress", {"inputs": serialized}, {"outputs": y}),
        "regress_x_to_y2": signature("regress", {"inputs": serialized}, {"outputs": y2}),
        "regress_x2_to_y3": signature("regress", {"inputs": x2}, {"outputs": y3}),
    }
    assert await served.get("/v1/models/default/metadata") == (
        200,
        {
            "model_spec": {"name": "default", "signature_name": "", "version": "123"},
            "metadata": {"signature_def": {"signature_def": signatures}},
        },
    )


@pytest.mark.tensorflow
async def test_prometheus_endpoint(served: Http) -> None:
    """testPrometheusEndpoint: the page has metrics with their types."""
    status, _, body = await served.raw("GET", "/monitoring/prometheus/metrics")
    assert status == 200
    assert b"# TYPE" in body


@pytest.mark.tensorflow
async def test_errors_of_the_runtime(served: Http) -> None:
    """What TensorFlow says of a bad example arrives in full, as a bad argument."""
    status, answer = await served.post(
        "/v1/models/default:regress", {"signature_name": "regress_x_to_y", "examples": [{"x": 2}]}
    )
    assert status == 400
    assert "Data types don't match. Data type: int64 but expected type: float" in answer["error"]
