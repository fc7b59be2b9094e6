"""AsyncClient against the testing server over real sockets: answers, bad input, faults, life."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import pickle
import time
import warnings
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import anyio
import grpc
import numpy as np
import pytest
from grpc import aio

from aioserving import (
    AsyncClient,
    ClassifyResult,
    ClientClosedError,
    ConfigWarning,
    DeadlineExceededError,
    DecodeError,
    EventLoopError,
    FailedPreconditionError,
    InvalidArgumentError,
    InvalidConfigError,
    InvalidInputError,
    MessageTooLargeError,
    ModelConfig,
    ModelNotFoundError,
    PoolOptions,
    RegressResult,
    RPCError,
    SignatureNotFoundError,
    State,
    UnavailableError,
    UnknownError,
    VersionLabelNotFoundError,
    VersionNotFoundError,
    _proto,
    write_config,
)
from aioserving.messages import (
    ClassificationRequest,
    Example,
    InferenceTask,
    Input,
    ModelServerConfig,
    MultiInferenceRequest,
    PredictRequest,
    RegressionRequest,
)
from aioserving.testing import CallableServable, FaultProxy, ModelServer, StatusCode, StatusError

from .models import digits, graded, many_signatures
from .test_transport import free_port, serving

IMAGES = np.arange(3 * 784, dtype=np.float32).reshape(3, 784) / 1000


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


@contextlib.asynccontextmanager
async def served(
    models: dict[str, Any] | None = None, *, pool: PoolOptions | None = None, **arguments: Any
) -> AsyncIterator[tuple[ModelServer, AsyncClient]]:
    given = models if models is not None else {"digits": digits(), "many": many_signatures()}
    async with (
        ModelServer(given, file_system_poll_wait_seconds=0.02) as server,
        AsyncClient(server.target, pool=pool, **arguments) as client,
    ):
        yield server, client


# -- predict ------------------------------------------------------------------------------------------


def test_predict() -> None:
    """The first thing a user does: arrays in, arrays out, and the version that answered."""

    async def story() -> None:
        async with served() as (_, client):
            result = await client.predict("digits", {"images": IMAGES})
            np.testing.assert_allclose(result["scores"], IMAGES.sum(axis=1), rtol=1e-6)
            assert set(result) == {"scores", "version"}
            assert len(result) == 2
            spec = result.model_spec
            assert (spec.name, spec.version, spec.signature_name) == ("digits", 1, "serving_default")
            assert "scores" in result
            assert "score" not in result
            with pytest.raises(KeyError, match="the outputs are"):
                result["score"]
            assert repr(result) == (
                "<PredictResult of digits version 1: scores: float32 (3,), version: int64 ()>"
            ) or repr(result) == (
                "<PredictResult of digits version 1: version: int64 (), scores: float32 (3,)>"
            )

    run(story())


def test_outputs_are_read_only_views() -> None:
    """Results share the received bytes; writing needs a copy of one's own."""

    async def story() -> None:
        async with served() as (_, client):
            result = await client.predict("digits", IMAGES)
            with pytest.raises(ValueError, match="read-only"):
                result["scores"][0] = 1
            result["scores"].copy()[0] = 1

    run(story())


def test_inputs_alone_as_lists_and_as_strings() -> None:
    """One input needs no name, lists take the signature's dtype, strings go in and come out."""

    async def story() -> None:
        async with served() as (_, client):
            assert (await client.predict("digits", [[1] * 784]))["scores"].tolist() == [784.0]
            result = await client.predict("many", {"a": [1, 2], "b": [3.5, 4]})
            assert result["sum"].tolist() == [4.5, 6.0]
            result = await client.predict("many", ["Ada", "Bob"], signature_name="strings")
            assert result["greeting"].tolist() == [b"hello Ada", b"hello Bob"]
            assert (await client.predict("many", {}, signature_name="ticks"))["tick"] == 1

    run(story())


def test_output_filter() -> None:
    """Only the outputs asked for come back; a filter that the server would refuse is not sent."""

    async def story() -> None:
        async with served() as (server, client):
            result = await client.predict("many", {"a": [1], "b": [2]}, output_filter=["sum"])
            assert dict(result) == {"sum": np.array([3.0], np.float32)}
            result = await client.predict("many", {"a": [1], "b": [2]}, output_filter="sum")
            assert list(result) == ["sum"]
            sent = server.calls.methods["Predict"]
            with pytest.raises(InvalidInputError, match="did you mean 'sum'"):
                await client.predict("many", {"a": [1], "b": [2]}, output_filter=["sun"])
            assert server.calls.methods["Predict"] == sent

    run(story())


def test_signatures_are_fetched_once() -> None:
    """Concurrent first calls share one metadata request, and later calls make none."""

    async def story() -> None:
        async with served() as (server, client):
            await asyncio.gather(*(client.predict("digits", IMAGES) for _ in range(50)))
            await client.predict("digits", IMAGES)
            assert server.calls.methods == {"GetModelMetadata": 1, "Predict": 51}

    run(story())


def test_signatures_are_fetched_again_when_the_version_changes() -> None:
    """After a new version answered, inputs are checked against its signature."""

    async def story() -> None:
        async with served({"digits": {1: digits(1)}}) as (server, client):
            await client.predict("digits", IMAGES)
            server.add_version("digits", 2, digits(2, width=10))
            await client.wait_until_available("digits", version=2, timeout=10)
            while (await client.predict("digits", IMAGES)).model_spec.version == 1:
                await asyncio.sleep(0.01)
            with pytest.raises(InvalidInputError, match=r"expects float32 \(-1, 10\)"):
                await client.predict("digits", IMAGES)
            assert (await client.predict("digits", np.ones((1, 10))))["version"] == 2

    run(story())


def test_a_refusal_by_an_old_signature_is_looked_into(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs for a new version pass though no answer of it was seen yet."""
    monkeypatch.setattr("aioserving.client._BELIEVE", 0.0)

    async def story() -> None:
        async with served({"digits": {1: digits(1)}}) as (server, client):
            await client.predict("digits", IMAGES)
            server.add_version("digits", 2, digits(2, width=10))
            await client.wait_until_available("digits", version=2, timeout=10)
            result = await client.predict("digits", np.ones((1, 10), np.float32))
            assert result["version"] == 2

    run(story())


def test_validate_false_sends_as_it_is() -> None:
    """No metadata call, no checks: what is wrong is for the server to say."""

    async def story() -> None:
        async with served() as (server, client):
            result = await client.predict("digits", {"images": IMAGES}, validate=False)
            np.testing.assert_allclose(result["scores"], IMAGES.sum(axis=1), rtol=1e-6)
            with pytest.raises(InvalidInputError, match="Expects arg"):
                await client.predict("digits", {"images": IMAGES.astype("f8")}, validate=False)
            with pytest.raises(InvalidInputError, match="must be a mapping"):
                await client.predict("digits", IMAGES, validate=False)
            assert server.calls.methods == {"Predict": 2}

    run(story())


def test_raw_protobufs_both_ways() -> None:
    """A ready PredictRequest, raw or as a view, is sent as it is; the response is there as a message."""

    async def story() -> None:
        async with served() as (server, client):
            request: Any = _proto.message_class("tensorflow.serving.PredictRequest")()
            request.model_spec.name = "many"
            for name in "ab":
                request.inputs[name].dtype = 1
                request.inputs[name].tensor_shape.dim.add(size=2)
                request.inputs[name].float_val.extend([1.0, 2.0])
            for ready in (request, PredictRequest(request)):
                result = await client.predict(ready)
                assert result["sum"].tolist() == [2.0, 4.0]
                assert type(result.proto).DESCRIPTOR.full_name == "tensorflow.serving.PredictResponse"
                assert list(result.proto.outputs["sum"].float_val) == [2.0, 4.0]
                assert result.proto.SerializeToString() == result.serialized or len(result) > 1
            assert server.calls.methods == {"Predict": 2}
            with pytest.raises(TypeError, match="carries its own inputs"):
                await client.predict(request, {"a": 1})  # type: ignore[call-overload]
            with pytest.raises(TypeError, match="name or a PredictRequest"):
                await client.predict(7)  # type: ignore[call-overload]

    run(story())


def test_versions_and_labels() -> None:
    """A version by number or label, and the highest if none is given."""

    async def story() -> None:
        async with served({"digits": {1: digits(1), 2: digits(2)}}) as (_, client):
            config = [
                ModelConfig(
                    name="digits",
                    base_path="/callable/digits",
                    model_version_policy={"specific": [1, 2]},
                    version_labels={"stable": 1},
                )
            ]
            await client.reload_config(config)
            answers = [
                (await client.predict("digits", IMAGES, **choice))["version"].item()
                for choice in ({}, {"version": 1}, {"version": 2}, {"version_label": "stable"})
            ]
            assert answers == [2, 1, 2, 1]
            stable = client.model("digits", version_label="stable")
            assert (await stable.predict(IMAGES))["version"] == 1

    run(story())


def test_a_model_handle_has_the_same_methods() -> None:
    """`client.model(...)` fills in name and version."""

    async def story() -> None:
        async with served({"digits": {1: digits(1), 2: digits(2)}}) as (server, client):
            model = client.model("digits", version=1)
            assert model.name == "digits"
            assert repr(model).startswith("<Model 'digits', version=1 of <AsyncClient of 127.0.0.1:")
            assert (await model.predict(IMAGES))["version"] == 1
            assert (await model.get_model_metadata()).version == 1
            assert [status.version for status in await model.get_model_status()] == [1]
            assert (await model.get_model_status(target=server.target)).available
            assert (await model.wait_until_available(timeout=5)).version == 1

    run(story())


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_compression(compression: Any) -> None:
    """Rows that repeat themselves take a hundredth of the bytes; the answer is the same."""

    async def story() -> None:
        rows = np.zeros((64, 784), np.float32)
        async with (
            served() as (server, _),
            FaultProxy(server.target) as proxy,
            AsyncClient(proxy.target) as client,
        ):
            await client.predict("digits", rows)
            before = proxy.stats().bytes_to_target
            result = await client.predict("digits", rows, compression=compression)
            assert proxy.stats().bytes_to_target - before < rows.nbytes / 100
            assert result["scores"].tolist() == [0.0] * 64
            result = await client.model("digits").predict(rows, compression=compression)
            assert result["scores"].tolist() == [0.0] * 64

    run(story())


def test_an_unknown_compression_is_refused() -> None:
    """Before anything is sent."""

    async def story() -> None:
        async with served() as (server, client):
            with pytest.raises(ValueError, match="'gzip', 'deflate' or None, got 'zip'"):
                await client.predict("digits", IMAGES, compression="zip")  # type: ignore[arg-type]
            assert not server.calls.methods

    run(story())


# -- metadata, status, reload ---------------------------------------------------------------------------


def test_metadata() -> None:
    """Signatures with names, dtypes and shapes."""

    async def story() -> None:
        async with served() as (_, client):
            metadata = await client.get_model_metadata("digits")
            images = metadata.signatures["serving_default"].inputs["images"]
            assert (images.dtype, images.shape) == (np.float32, (-1, 784))
            assert (metadata.name, metadata.version) == ("digits", 1)
            assert sorted((await client.get_model_metadata("many")).signatures) == [
                "serving_default",
                "strings",
                "ticks",
            ]

    run(story())


def test_status() -> None:
    """Every version with its state; unloaded ones stay as END; a failed load tells its error."""

    async def story() -> None:
        broken = StatusError(StatusCode.DATA_LOSS, "the file is cut")
        async with served({"digits": {1: digits(1), 2: digits(2)}}) as (server, client):
            status = await client.get_model_status("digits")
            assert [(item.version, item.state, item.error) for item in status] == [
                (2, State.AVAILABLE, None),
                (1, State.AVAILABLE, None),
            ]
            assert (await client.get_model_status("digits", version=1))[0].version == 1
            assert type(status.proto).DESCRIPTOR.full_name == "tensorflow.serving.GetModelStatusResponse"
            server.add_version("digits", 3, broken)
            with pytest.raises(FailedPreconditionError, match="DATA_LOSS: the file is cut"):
                await client.wait_until_available("digits", version=3, timeout=20)
            status = await client.get_model_status("digits")
            assert str(status[0]) == "version 3 END (DATA_LOSS: the file is cut)"
            with pytest.raises(ModelNotFoundError):
                await client.get_model_status("nobody")
            with pytest.raises(VersionNotFoundError):
                await client.get_model_status("digits", version=9)

    run(story())


def test_wait_until_available_waits_for_a_server_to_come_up() -> None:
    """It may be called before the server is there, and says what it saw last when time is up."""

    async def story() -> None:
        port = free_port()
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(DeadlineExceededError, match="last seen: .*onnect"):
                await client.wait_until_available("digits", timeout=0.3)
            waiting = asyncio.create_task(client.wait_until_available("digits", timeout=30))
            await asyncio.sleep(0)
            async with ModelServer({"digits": digits()}, port=port):
                assert (await waiting).version == 1
                with pytest.raises(DeadlineExceededError, match="does not know it"):
                    await client.wait_until_available("nobody", timeout=0.2)

    run(story())


def test_wait_until_available_waits_for_every_target() -> None:
    """With several servers, one of them being ready is not enough."""

    async def story() -> None:
        async with (
            ModelServer({"digits": {1: digits()}}, file_system_poll_wait_seconds=0.02) as one,
            ModelServer({"digits": {2: digits()}}, file_system_poll_wait_seconds=0.02) as two,
            AsyncClient([one.target, two.target]) as client,
        ):
            with pytest.raises(DeadlineExceededError) as caught:
                await client.wait_until_available("digits", version=2, timeout=0.3)
            assert caught.value.endpoint == one.target
            one.add_version("digits", 2, digits(2))
            assert (await client.wait_until_available("digits", version=2, timeout=20)).version == 2
            with pytest.raises(ValueError, match="none of this client's"):
                await client.get_model_status("digits", target="elsewhere:1")

    run(story())


def test_wait_ready_and_health() -> None:
    """Ready is one endpoint that answers, or every one, with the models asked for."""

    async def story() -> None:
        async with served() as (server, client):
            dead = f"127.0.0.1:{free_port()}"
            assert (await client.wait_ready("digits", "many", every_endpoint=True, timeout=10)).ok
            client.add_targets(dead)
            health = await client.wait_ready("digits", timeout=10)
            assert [endpoint.target for endpoint in health.endpoints] == [server.target, dead]
            with pytest.raises(DeadlineExceededError, match=f"{dead}: .*onnect"):
                await client.wait_ready(every_endpoint=True, timeout=1.5)
            with pytest.raises(DeadlineExceededError, match="model 'nobody' is not available"):
                await client.wait_ready("nobody", timeout=1.5)
            client.remove_targets(dead)
            assert str(client.health()) == f"circuit closed\n{server.target}: healthy"
            with pytest.raises(ValueError, match="none of this client's"):
                client.remove_targets(dead)
            with pytest.raises(ValueError, match="given to the constructor"):
                client.add_targets("dns:///localhost:8500")

    run(story())


def test_an_address_in_other_words_is_the_same_endpoint() -> None:
    """`ipv4:`, upper case and brackets make no second endpoint of one that is there."""
    client = AsyncClient(["127.0.0.1:8500", "LocalHost:8500"])
    client.add_targets({"ipv4:127.0.0.1:8500": 3.0, "localhost:8500": 2.0})
    found = {endpoint.target: endpoint.weight for endpoint in client.stats().endpoints}
    assert found == {"127.0.0.1:8500": 3.0, "LocalHost:8500": 2.0}
    client.remove_targets("ipv4:127.0.0.1:8500")
    assert [endpoint.target for endpoint in client.stats().endpoints] == ["LocalHost:8500"]


def test_a_client_of_a_large_fleet_uses_a_part_of_it() -> None:
    """As many endpoints as `subset` says; when one of them goes, another takes its place."""
    fleet = [f"10.0.0.{number}:8500" for number in range(1, 101)]
    client = AsyncClient(fleet, pool=PoolOptions(subset=5, subset_id="me"))
    used = [endpoint.target for endpoint in client.stats().endpoints]
    assert len(used) == 5
    again = AsyncClient(list(reversed(fleet)), pool=PoolOptions(subset=5, subset_id="me"))
    assert [endpoint.target for endpoint in again.stats().endpoints] == used
    client.remove_targets(used[0])
    after = [endpoint.target for endpoint in client.stats().endpoints]
    assert len(after) == 5
    assert set(used[1:]) < set(after)
    client.add_targets(used[0])
    assert {endpoint.target for endpoint in client.stats().endpoints} == set(used)
    others = [AsyncClient(fleet, pool=PoolOptions(subset=5)) for _ in range(20)]
    assert len({endpoint.target for other in others for endpoint in other.stats().endpoints}) > 30


def test_stats_tell_of_endpoints_and_models() -> None:
    """Counts and latencies, printed for people."""

    async def story() -> None:
        async with served() as (server, client):
            for _ in range(3):
                await client.predict("digits", IMAGES)
            with pytest.raises(ModelNotFoundError):
                await client.predict("nobody", IMAGES)
            stats = client.stats()
            found = {model.model: (model.calls, model.errors, model.latency.count) for model in stats.models}
            assert found == {"digits": (3, 0, 3), "nobody": (0, 0, 0)}
            assert stats.endpoints[0].state == "healthy"
            assert stats.endpoints[0].latency.count == stats.calls - 1
            assert "digits: 3 calls: mean" in str(stats)
            assert f"{server.target}: healthy, 0 in flight" in str(stats)

    run(story())


def test_results_and_errors_tell_their_story() -> None:
    """An endpoint that refuses is gone around, and the result says so; the error of all names all."""

    async def story() -> None:
        dead = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        async with served() as (server, _), AsyncClient([dead[0], server.target]) as client:
            results = [await client.predict("digits", IMAGES) for _ in range(20)]
            assert {result.attempts[-1].target for result in results} == {server.target}
            assert {len(result.attempts) for result in results} <= {1, 2}
        async with AsyncClient(dead) as client:
            with pytest.raises(UnavailableError) as caught:
                await client.predict("digits", IMAGES, timeout=5)
            assert {attempt.target for attempt in caught.value.attempts} == set(dead)
            assert f"{len(caught.value.attempts)} attempts in" in str(caught.value)
            again = pickle.loads(pickle.dumps(caught.value))
            assert again.attempts == caught.value.attempts

    run(story())


def test_reload_config() -> None:
    """Models given as views, dicts, messages or one config; a platform is filled in; others are unloaded."""

    async def story() -> None:
        async with served() as (server, client):
            view = ModelConfig(name="digits", base_path="/callable/digits")
            as_dict = {"name": "many", "base_path": "/callable/many"}
            await client.reload_config([view, as_dict])
            await client.reload_config([view.pb])
            assert view.model_platform == ""  # the caller's own config is not touched
            with pytest.raises(ModelNotFoundError):
                while True:
                    await client.predict("many", {"a": [1], "b": [1]})
            await client.reload_config(ModelServerConfig(model_config_list=[view, as_dict]))
            assert (await client.wait_until_available("many")).version == 1
            await client.reload_config(ModelServerConfig(model_config_list=[view]).pb)
            assert server.calls.methods["HandleReloadConfigRequest"] == 4

    run(story())


@pytest.mark.parametrize("wrong", [{"name": "digits"}, 7, ModelConfig(name="x").pb])
def test_reload_config_refuses_what_is_no_list(wrong: Any) -> None:
    """A single model's config or a number is not a list of models."""

    async def story() -> None:
        async with served() as (server, client):
            with pytest.raises(TypeError):
                await client.reload_config(wrong)
            assert not server.calls.methods

    run(story())


def test_reload_errors() -> None:
    """What the server refuses and what fails to load are told apart."""

    async def story() -> None:
        broken = StatusError(StatusCode.DATA_LOSS, "the file is cut")
        models = {"digits": digits(), "broken": {1: broken}}
        async with ModelServer({}, file_system_poll_wait_seconds=0.02) as server:
            for name, servable in models.items():
                versions = servable if isinstance(servable, dict) else {1: servable}
                for version, item in versions.items():
                    server.add_version(name, version, item)
            async with AsyncClient(server.target) as client:
                good = ModelConfig(name="digits", base_path="/callable/digits")
                relative = ModelConfig(name="x", base_path="relative")
                for wrong, own, servers in (
                    ([good, good], "named twice", "multiple times"),
                    ([relative], "must be absolute", "absolute path"),
                ):
                    with pytest.raises(InvalidConfigError, match=own):
                        await client.reload_config(wrong)
                    with pytest.raises(InvalidArgumentError, match=servers):
                        await client.reload_config(wrong, check=False)
                with pytest.raises(UnknownError, match="the file is cut"):
                    await client.reload_config(
                        [good, ModelConfig(name="broken", base_path="/callable/broken")]
                    )
                assert (await client.predict("digits", IMAGES))["version"] == 1
                with pytest.raises(FailedPreconditionError, match="not currently available"):
                    await client.reload_config(
                        [ModelConfig(name="digits", base_path="/callable/digits", version_labels={"a": 9})]
                    )

    run(story())


def test_reload_goes_to_every_target() -> None:
    """A client of several servers configures them all."""

    async def story() -> None:
        async with (
            ModelServer({"digits": digits(), "many": many_signatures()}) as one,
            ModelServer({"digits": digits(), "many": many_signatures()}) as two,
            AsyncClient([one.target, two.target]) as client,
        ):
            await client.reload_config([ModelConfig(name="digits", base_path="/callable/digits")])
            assert one.calls.methods["HandleReloadConfigRequest"] == 1
            assert two.calls.methods["HandleReloadConfigRequest"] == 1

    run(story())


def test_reload_from_a_text_and_a_path(tmp_path: Path) -> None:
    """The content of a `--model_config_file`, or the file, is sent as it is; errors in it have lines."""

    async def story() -> None:
        async with served() as (server, client):
            text = 'model_config_list { config { name: "digits" base_path: "/callable/digits" } }'
            path = tmp_path / "models.config"
            written = write_config(path, text)
            for source in (text, path, str(path)):
                result = await client.reload_config(source, wait=True)
                assert result.config == written == client.config
                assert [str(load) for load in result.loads] == [
                    f"{server.target}: digits: version 1 AVAILABLE"
                ]
            with pytest.raises(DecodeError, match=r"line 1, column 30: .*nmae.*did you mean 'name'"):
                await client.reload_config(text.replace("name:", "nmae:"))
            with pytest.raises(InvalidConfigError, match="line 1, column 45: model 'digits'"):
                await client.reload_config(text.replace("/callable", "callable"))
            with pytest.raises(FileNotFoundError):
                await client.reload_config(tmp_path / "missing.config")
            assert server.calls.methods["HandleReloadConfigRequest"] == 3

    run(story())


def test_models_are_added_and_removed() -> None:
    """One change at a time to the config that was applied last; nothing else is lost."""

    async def story() -> None:
        async with served() as (_, client):
            with pytest.raises(ValueError, match="give it as config="):
                await client.add_models(ModelConfig(name="many", base_path="/callable/many"))
            assert client.config is None
            await client.reload_config([ModelConfig(name="digits", base_path="/callable/digits")])
            added = await client.add_models({"name": "many", "base_path": "/callable/many"})
            assert [model.name for model in added.config.model_config_list] == ["digits", "many"]
            assert [load.status.model for load in added.loads] == ["many"]
            assert (await client.predict("many", {"a": [1], "b": [2]}))["sum"] == 3
            with pytest.raises(ValueError, match="did you mean 'many'"):
                await client.remove_models("mani")
            result = await client.remove_models(["digits"])
            assert [model.name for model in result.config.model_config_list] == ["many"]
            assert client.config == result.config
            # Added again at once, while it is still being unloaded.
            result = await client.add_models([ModelConfig(name="digits", base_path="/callable/digits")])
            assert [model.name for model in result.config.model_config_list] == ["many", "digits"]
            assert (await client.predict("digits", IMAGES))["version"] == 1
            given = [ModelConfig(name="digits", base_path="/callable/digits")]
            result = await client.add_models(
                [ModelConfig(name="many", base_path="/callable/many")], config=given, wait=False
            )
            assert [model.name for model in result.config.model_config_list] == ["digits", "many"]
            assert result.loads == ()

    run(story())


def test_what_a_reload_waits_for_without_end_is_told(tmp_path: Path) -> None:
    """A folder without versions: a warning before, and the reason in the error after."""

    async def story() -> None:
        async with served() as (_, client):
            models = [ModelConfig(name="nothing", base_path=tmp_path)]
            with (
                pytest.warns(ConfigWarning, match="no version in it"),
                pytest.raises(DeadlineExceededError, match="no version of 'nothing' under"),
            ):
                await client.reload_config(models, timeout=3.5)

    run(story())


# -- bad input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"model": "nobody"}, ModelNotFoundError),
        ({"version": 9}, VersionNotFoundError),
        ({"version_label": "nothing"}, VersionLabelNotFoundError),
        ({"signature_name": "serving_defualt"}, SignatureNotFoundError),
    ],
)
@pytest.mark.parametrize("validate", [True, False])
def test_what_is_not_there(arguments: dict[str, Any], kind: type[RPCError], validate: bool) -> None:
    """Unknown model, version, label and signature: the same class with and without validation."""

    async def story() -> None:
        async with served() as (_, client):
            model = arguments.get("model", "digits")
            rest = {name: value for name, value in arguments.items() if name != "model"}
            with pytest.raises(kind) as caught:
                await client.predict(model, {"images": IMAGES}, validate=validate, timeout=10, **rest)
            assert caught.value.model == model
            assert caught.value.code == kind.default_code

    run(story())


def test_version_and_label_together_are_refused() -> None:
    """A request can carry one of them only."""

    async def story() -> None:
        async with served() as (server, client):
            with pytest.raises(InvalidArgumentError, match="not both"):
                await client.predict("digits", IMAGES, version=1, version_label="stable")
            with pytest.raises(InvalidArgumentError, match="must be a name"):
                await client.predict("", IMAGES)
            assert not server.calls.methods

    run(story())


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"imagse": IMAGES},
        {"images": IMAGES, "extra": IMAGES},
        {"images": IMAGES.astype(np.complex64)},
        {"images": IMAGES[:, :10]},
        {"images": [[1.0, 2.0], [3.0]]},
        {"images": None},
        None,
        {"images": [[None] * 784]},
        "text",
    ],
)
def test_bad_inputs_are_not_sent(inputs: Any) -> None:
    """Missing, extra, misspelt, wrong in dtype or shape, ragged, None: refused by name before sending."""

    async def story() -> None:
        async with served() as (server, client):
            with pytest.raises(InvalidInputError, match="digits/serving_default") as caught:
                await client.predict("digits", inputs)
            assert caught.value.endpoint is None
            assert "Predict" not in server.calls.methods
            assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


# -- faults ---------------------------------------------------------------------------------------------


def test_an_unreachable_host() -> None:
    """UNAVAILABLE at once, a ConnectionError too, with the address in it."""

    async def story() -> None:
        target = f"127.0.0.1:{free_port()}"
        async with AsyncClient(target) as client:
            with pytest.raises(ConnectionError) as caught:
                await client.predict("digits", IMAGES)
            assert isinstance(caught.value, UnavailableError)
            assert caught.value.endpoint == target

    run(story())


def test_a_dead_endpoint_beside_a_live_one() -> None:
    """A target that refuses gets the next call only after its rest, so most calls succeed at once."""

    async def story() -> None:
        async with (
            ModelServer({"digits": digits()}) as server,
            AsyncClient([f"127.0.0.1:{free_port()}", server.target]) as client,
        ):
            failures = 0
            for _ in range(20):
                try:
                    await client.predict("digits", {"images": IMAGES}, validate=False)
                except UnavailableError:
                    failures += 1
            assert failures <= 2

    run(story())


def test_the_sooner_deadline_travels_to_the_server() -> None:
    """`timeout=` or the ambient anyio scope, whichever ends first, is the gRPC deadline."""

    async def story() -> None:
        async with served(timeout=50) as (server, client):
            await client.predict("digits", IMAGES)
            seen = []

            async def deadline(**arguments: Any) -> float:
                await client.predict("digits", IMAGES, **arguments)
                left = server.calls.last_deadline("Predict")
                assert left is not None
                seen.append(left)
                return left

            assert 40 < await deadline() < 51
            assert 5 < await deadline(timeout=8) < 9
            with anyio.fail_after(4):
                assert 2 < await deadline(timeout=8) < 5
                assert 0 < await deadline(timeout=1.5) < 2
            with anyio.move_on_after(3):
                assert 1 < await deadline(timeout=None) < 4
            await client.predict("digits", IMAGES, timeout=None)
            assert server.calls.last_deadline("Predict") is None
            assert (await client.predict("digits", IMAGES, timeout=float("inf")))["version"] == 1

    run(story())


@contextlib.asynccontextmanager
async def stuck() -> AsyncIterator[tuple[asyncio.Event, asyncio.Event, Any, str]]:
    """A server whose calls do not end before `release` is set; yields (started, release, counts, target)."""
    started, release = asyncio.Event(), asyncio.Event()
    counts = {"ended": 0}

    async def wait(request: bytes, context: Any) -> bytes:
        started.set()
        try:
            await release.wait()
        finally:
            counts["ended"] += 1
        return b""

    async with serving(wait) as server:
        try:
            yield started, release, counts, server.target
        finally:
            release.set()


def test_a_deadline_that_passes() -> None:
    """DeadlineExceededError, a TimeoutError, after about the time given; nothing stays in flight."""

    async def story() -> None:
        async with stuck() as (_, _, _, target), AsyncClient(target) as client:
            begun = time.monotonic()
            with pytest.raises(TimeoutError) as caught:
                await client.predict("digits", {"x": IMAGES}, validate=False, timeout=0.1)
            assert isinstance(caught.value, DeadlineExceededError)
            assert time.monotonic() - begun < 5
            with pytest.raises(DeadlineExceededError):
                await client.predict("digits", {"x": IMAGES}, timeout=0.1)  # while fetching the signature
            with pytest.raises(DeadlineExceededError, match="before the call was sent"):
                await client.predict("digits", {"x": IMAGES}, validate=False, timeout=0)
            with pytest.raises(ValueError, match="timeout"):
                await client.predict("digits", {"x": IMAGES}, timeout=-1)
            with pytest.raises(TimeoutError), anyio.fail_after(0.1):
                await client.predict("digits", {"x": IMAGES}, validate=False)
            assert client.stats().in_flight <= 1  # the shared metadata request has its own deadline

    run(story())


def test_cancelling_before_during_and_after_sending() -> None:
    """At whatever step a call is cancelled, the client stays usable and no count leaks."""

    async def story() -> None:
        async with served() as (_, client):
            await client.predict("digits", IMAGES)
            for steps in range(15):
                task = asyncio.create_task(client.predict("digits", IMAGES))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                (outcome,) = await asyncio.gather(task, return_exceptions=True)
                assert isinstance(outcome, asyncio.CancelledError) or outcome["version"] == 1
                assert client.stats().in_flight == 0
            assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


def test_cancelling_during_the_first_call_costs_others_nothing() -> None:
    """Who shares a metadata request does not share its cancellation."""

    async def story() -> None:
        async with served() as (server, client):
            first = asyncio.create_task(client.predict("digits", IMAGES))
            others = [asyncio.create_task(client.predict("digits", IMAGES)) for _ in range(5)]
            await asyncio.sleep(0)
            first.cancel()
            for result in await asyncio.gather(*others):
                assert result["version"] == 1
            assert server.calls.methods["GetModelMetadata"] == 1

    run(story())


def test_a_cancelled_call_ends_at_the_server() -> None:
    """The server is told that nobody waits any more."""

    async def story() -> None:
        async with stuck() as (started, _, counts, target), AsyncClient(target) as client:
            task = asyncio.create_task(client.predict("digits", {"x": IMAGES}, validate=False))
            await started.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            deadline = time.monotonic() + 5
            while not counts["ended"]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            assert client.stats().in_flight == 0

    run(story())


def test_a_response_beyond_the_limit() -> None:
    """A set limit gives MessageTooLargeError; without one, answers beyond grpcio's 4 MB pass."""

    async def story() -> None:
        def grow(n: Any) -> dict[str, Any]:
            return {"y": np.zeros(int(n), np.float32)}

        model = CallableServable(grow, inputs={"n": ("int32", ())}, outputs={"y": ("float32", (None,))})
        async with served({"grow": model}, max_message_size=100_000) as (server, limited):
            assert (await limited.predict("grow", 1000))["y"].shape == (1000,)
            with pytest.raises(MessageTooLargeError, match="max_message_size"):
                await limited.predict("grow", 50_000)
            assert (await limited.predict("grow", 1000))["y"].shape == (1000,)
            async with AsyncClient(server.target) as client:
                assert (await client.predict("grow", 5_000_000))["y"].shape == (5_000_000,)

    run(story())


@pytest.mark.parametrize("answer", [b"\xff\xff\xff", b"\x0a\x05\x0a\x01y\x12\x90"])
def test_malformed_response_bytes(answer: bytes) -> None:
    """Bytes that are no answer are a DecodeError that names call and endpoint; the client goes on."""

    async def story() -> None:
        async def garble(request: bytes, context: Any) -> bytes:
            return answer

        async with serving(garble) as server, AsyncClient(server.target) as client:
            for call in (
                client.predict("digits", {"x": IMAGES}, validate=False),
                client.get_model_status("digits"),
                client.get_model_metadata("digits"),
                client.predict("digits", IMAGES),
            ):
                with pytest.raises(DecodeError, match=server.target):
                    await call
            assert client.stats().in_flight == 0

    run(story())


def test_a_server_that_goes_away_in_mid_call() -> None:
    """The caller gets UNAVAILABLE (or CANCELLED by a graceful server) at once, not a hang."""

    async def story() -> None:
        async with AsyncClient("127.0.0.1:1") as nobody:
            assert nobody.stats().calls == 0
        started = asyncio.Event()

        async def wait(request: bytes, context: Any) -> bytes:
            started.set()
            await asyncio.Event().wait()
            return b""

        handler = grpc.unary_unary_rpc_method_handler(wait)

        class Handlers(grpc.GenericRpcHandler):
            def service(self, handler_call_details: Any) -> Any:
                return handler

        server = aio.server()
        server.add_generic_rpc_handlers((Handlers(),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with AsyncClient(f"127.0.0.1:{port}") as client:
            task = asyncio.create_task(client.predict("digits", {"x": IMAGES}, validate=False))
            await started.wait()
            await server.stop(None)
            with pytest.raises(RPCError) as caught:
                await task
            assert caught.value.code in ("UNAVAILABLE", "CANCELLED")
            assert client.stats().in_flight == 0

    run(story())


def test_a_server_without_metadata() -> None:
    """A server that tells no signatures says how to go on without them."""

    async def story() -> None:
        async def refuse(request: bytes, context: Any) -> bytes:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
            return b""

        async with serving(refuse) as server, AsyncClient(server.target) as client:
            with pytest.raises(RPCError, match="validate=False"):
                await client.predict("digits", IMAGES)

    run(story())


# -- the pool beneath -----------------------------------------------------------------------------------


def test_calls_beyond_the_limit_wait_their_turn() -> None:
    """No connection carries more calls than its limit, and all of them are answered."""

    async def story() -> None:
        running, most = 0, 0

        async def note(x: Any) -> Any:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1
            return x

        model = CallableServable(
            note, inputs={"x": ("float32", (None,))}, outputs={"y": ("float32", (None,))}
        )
        pool = PoolOptions(connections_per_endpoint=2, max_in_flight_per_connection=3)
        async with served({"slow": model}, pool=pool) as (server, client):
            results = await asyncio.gather(*(client.predict("slow", [float(i)]) for i in range(100)))
            assert [result["y"].item() for result in results] == list(range(100))
            assert most <= 6
            assert server.calls.connections == 2
            stats = client.stats()
            assert (stats.calls, stats.errors, stats.in_flight, stats.waiting) == (101, 0, 0, 0)
            assert [len(endpoint.connections) for endpoint in stats.endpoints] == [2]

    run(story())


def test_a_servers_stream_limit_refuses_nothing() -> None:
    """Below the limit of streams that a server sets, 300 calls at once all succeed."""

    async def story() -> None:
        async def echo(request: bytes, context: Any) -> bytes:
            await asyncio.sleep(0.001)
            return b""

        async with serving(echo, max_concurrent_streams=100) as server, AsyncClient(server.target) as client:
            await asyncio.gather(
                *(client.predict("digits", {"x": [1.0]}, validate=False) for _ in range(300))
            )

    run(story())


def test_waiting_for_a_connection_is_part_of_the_deadline() -> None:
    """A caller that gets no connection in time is told what holds it up."""

    async def story() -> None:
        pool = PoolOptions(connections_per_endpoint=1, max_in_flight_per_connection=1)
        async with stuck() as (started, release, _, target), AsyncClient(target, pool=pool) as client:
            first = asyncio.create_task(client.predict("m", {"x": [1.0]}, validate=False))
            await started.wait()
            with pytest.raises(DeadlineExceededError, match="max_in_flight_per_connection=1") as caught:
                await client.predict("m", {"x": [1.0]}, validate=False, timeout=0.05)
            assert caught.value.model == "m"
            release.set()
            await first

    run(story())


# -- life -----------------------------------------------------------------------------------------------


def test_made_at_import_outside_any_loop() -> None:
    """Constructing does no I/O and needs no loop; the first call binds."""
    client = AsyncClient("127.0.0.1:8500")
    assert repr(client) == "<AsyncClient of 127.0.0.1:8500: not connected>"
    asyncio.run(client.aclose())

    async def story() -> None:
        late = AsyncClient(await asyncio.sleep(0, "127.0.0.1:1"))
        async with ModelServer({"digits": digits()}) as server:
            client = AsyncClient(server.target)
            assert (await client.predict("digits", IMAGES))["version"] == 1
            assert "connections open" in repr(client)
            await client.aclose()
            assert "closed" in repr(client)
        await late.aclose()

    run(story())


def test_a_second_loop_is_refused() -> None:
    """A client used in a second `asyncio.run` or another thread's loop says what to do."""
    client = AsyncClient("127.0.0.1:1")

    async def bind() -> None:
        with pytest.raises(UnavailableError):
            await client.predict("m", {"x": [1.0]}, validate=False)

    asyncio.run(bind())

    async def again() -> None:
        await client.predict("m", {"x": [1.0]}, validate=False)

    with pytest.raises(EventLoopError, match="a first asyncio.run"):
        asyncio.run(again())

    async def close() -> None:
        await client.aclose()  # the loop that it was bound to is gone: nothing hangs

    asyncio.run(close())
    gc.collect()


def test_another_running_loop_is_refused() -> None:
    """While its own loop lives on, a client cannot be used or closed from another one."""

    async def story() -> None:
        async with served() as (_, client):
            await client.predict("digits", IMAGES)

            async def elsewhere() -> None:
                with pytest.raises(EventLoopError, match="another event loop"):
                    await client.predict("digits", IMAGES)

            await asyncio.to_thread(asyncio.run, elsewhere())
            assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


def test_no_loop_at_all() -> None:
    """Driving the coroutine by hand gives an error that points to `Client`."""
    client = AsyncClient("127.0.0.1:1")
    with pytest.raises(EventLoopError, match=r"aioserving\.Client"):
        client.predict("m", {"x": 1}, validate=False).send(None)


def test_use_after_close() -> None:
    """Every method of a closed client says that it is closed; closing again is fine."""

    async def story() -> None:
        async with served() as (_, client):
            await client.aclose()
            await client.aclose()
            for call in (
                client.predict("digits", IMAGES),
                client.get_model_metadata("digits"),
                client.get_model_status("digits"),
                client.wait_until_available("digits"),
                client.reload_config([]),
                client.model("digits").predict(IMAGES),
            ):
                with pytest.raises(ClientClosedError):
                    await call
            assert repr(client).endswith(": closed>")

    run(story())


def test_a_graceful_close_lets_calls_end() -> None:
    """Calls under way get their answers, new ones are refused."""

    async def story() -> None:
        async with stuck() as (started, release, _, target):
            client = AsyncClient(target)
            task = asyncio.create_task(client.predict("m", {"x": [1.0]}, validate=False))
            await started.wait()
            closing = asyncio.create_task(client.aclose())
            await asyncio.sleep(0)
            with pytest.raises(ClientClosedError):
                await client.predict("m", {"x": [1.0]}, validate=False)
            release.set()
            assert dict(await task) == {}
            await closing

    run(story())


def test_a_close_with_grace_cuts_off_what_takes_longer() -> None:
    """After the grace, waiting callers get ClientClosedError."""

    async def story() -> None:
        async with stuck() as (started, _, _, target):
            client = AsyncClient(target)
            task = asyncio.create_task(client.predict("m", {"x": [1.0]}, validate=False))
            first_call = asyncio.create_task(client.predict("m", {"x": [1.0]}))
            await started.wait()
            await client.aclose(grace=0.05)
            for waiting in (task, first_call):
                with pytest.raises(ClientClosedError):
                    await waiting

    run(story())


def test_an_unclosed_client_warns() -> None:
    """Forgetting to close is a ResourceWarning that names the client, and its sockets go."""

    async def story() -> None:
        async with ModelServer({"digits": digits()}) as server:
            client = AsyncClient(server.target)
            await client.predict("digits", IMAGES)
            with pytest.warns(ResourceWarning, match="unclosed <AsyncClient of 127.0.0.1"):
                del client
                gc.collect()

    run(story())


def test_an_unused_client_does_not_warn() -> None:
    """What never connected has nothing to close."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = AsyncClient("127.0.0.1:8500")
        del client
        gc.collect()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "such as"),
        ([], "at least one"),
        ("localhost", "no port"),
        ("localhost:", "no port"),
        (":8500", "no port"),
        ("localhost:99999", "no port"),
        ("http://localhost:8500", "has no 'http' scheme"),
        ("grpc://localhost:8500", "write 'localhost:8500'"),
        (["a:1", "a:1"], "twice"),
        ([None], "string"),
    ],
)
def test_targets_are_checked(target: Any, message: str) -> None:
    """A malformed target is refused when the client is made."""
    with pytest.raises(ValueError, match=message):
        AsyncClient(target)


@pytest.mark.parametrize(
    "target", ["dns:///localhost:8500", "unix:///tmp/s", "unix:s", "[::1]:8500", "ipv4:127.0.0.1:8500"]
)
def test_grpc_targets_are_taken(target: str) -> None:
    """Names, Unix sockets and addresses, as gRPC writes them."""
    assert target in repr(AsyncClient(target))


def test_unix_socket_and_dns_targets(tmp_path: Any) -> None:
    """Both serve calls."""

    async def story() -> None:
        path = str(tmp_path / "s")
        async with ModelServer({"digits": digits()}, unix_socket=path) as server:
            port = server.target.rpartition(":")[2]
            for target in (f"unix://{path}", f"dns:///localhost:{port}"):
                async with AsyncClient(target) as client:
                    assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


def test_metadata_is_sent() -> None:
    """The client's own headers and a call's go out together."""

    async def story() -> None:
        seen: list[dict[str, Any]] = []

        async def note(request: bytes, context: Any) -> bytes:
            seen.append(dict(context.invocation_metadata()))
            return b""

        async with (
            serving(note) as server,
            AsyncClient(server.target, metadata=[("x-api-key", "k")]) as client,
        ):
            await client.predict("m", {"x": [1.0]}, validate=False, metadata=[("x-call", "1")])
            await client.predict("m", {"x": [1.0]}, validate=False)
        assert (seen[0]["x-api-key"], seen[0]["x-call"]) == ("k", "1")
        assert seen[1]["x-api-key"] == "k"
        assert "x-call" not in seen[1]

    run(story())


def test_errors_pickle() -> None:
    """Errors cross process boundaries with their attributes."""
    error = ModelNotFoundError("no", model="m", endpoint="e:1", method="Predict")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is ModelNotFoundError
    assert (str(again), again.code, again.model) == (str(error), "NOT_FOUND", "m")


# -- classify, regress, multi_inference ---------------------------------------------------------------


def test_classify_and_regress() -> None:
    """Examples in, classes and numbers out, with labels, arrays, the message and the version."""

    async def story() -> None:
        async with served({"graded": graded()}) as (_, client):
            columns = {"x": np.array([0.25, 2.0])}
            result = await client.classify("graded", columns, signature_name="classify")
            assert [item.label for item in result] == ["low", "high"]
            assert result.scores.tolist() == [[0.75, 0.25], [-1.0, 2.0]]
            assert (result.model_spec.version, result.model_spec.signature_name) == (1, "classify")
            numbers = await client.regress("graded", [{"x": 2.0}], signature_name="regress", version=1)
            assert numbers.values.tolist() == [3.0]
            model = client.model("graded", signature_name="regress")
            assert list(await model.regress([{}, {"x": 4.0}], context={"x": 2.0})) == [3.0, 4.0]
            classifier = client.model("graded", signature_name="classify")
            assert (await classifier.classify({"x": 2.0}))[0].top(1)[0].label == "high"
            tasks = [("classify", "classify"), ("regress", "regress")]
            first, second = await model.multi_inference(tasks, columns)
            assert isinstance(first, ClassifyResult)
            assert isinstance(second, RegressResult)
            assert second.values.tolist() == [2.125, 3.0]
            assert second.model_spec.version == 1

    run(story())


def test_signatures_of_one_model_are_fetched_together() -> None:
    """The first MultiInference asks for the metadata once, however many its tasks; so do calls at once."""

    async def story() -> None:
        async with served({"graded": graded(), "many": many_signatures()}) as (server, client):
            tasks = [("classify", "classify"), ("regress", "regress")]
            await client.multi_inference("graded", tasks, [{"x": 2.0}])
            assert server.calls.methods["GetModelMetadata"] == 1
            await asyncio.gather(
                client.predict("many", {"a": [1], "b": [2]}),
                client.predict("many", {"names": ["a"]}, signature_name="strings"),
                client.predict("many", {}, signature_name="ticks"),
            )
            assert server.calls.methods["GetModelMetadata"] == 2
            with pytest.raises(ModelNotFoundError):
                await client.multi_inference("nobody", tasks, [{"x": 2.0}])

    run(story())


def test_ready_inference_requests_are_sent_as_they_are() -> None:
    """Messages and views, which carry all that there is; the server judges them."""

    async def story() -> None:
        async with served({"graded": graded()}) as (_, client):
            given = Input(example_list=[Example(features={"x": 2.0})])
            spec = {"name": "graded", "signature_name": "regress"}
            request = RegressionRequest(model_spec=spec, input=given)
            for ready in (request, request.pb):
                assert (await client.regress(ready)).values.tolist() == [3.0]
            multi = MultiInferenceRequest(
                tasks=[{"model_spec": spec, "method_name": "tensorflow/serving/regress"}], input=given
            )
            assert (await client.multi_inference(multi))[0][0] == 3.0
            classify = ClassificationRequest(
                model_spec={"name": "graded", "signature_name": "classify"}, input=given
            )
            assert (await client.classify(classify))[0].score == 2.0
            with pytest.raises(TypeError, match="a ClassificationRequest, got RegressionRequest"):
                await client.classify(request)
            with pytest.raises(TypeError, match="carries its own inputs"):
                await client.regress(request, [{"x": 1.0}])  # type: ignore[call-overload]
            with pytest.raises(InvalidArgumentError, match="Input is empty"):
                await client.regress(RegressionRequest(model_spec=spec))

    run(story())


def test_bad_examples_and_tasks_are_refused_before_anything_is_sent() -> None:
    """What the server is certain to refuse costs no call; its own word comes where that is not certain."""

    async def story() -> None:
        async with served({"graded": graded()}) as (_, client):
            await client.classify("graded", {"x": 1.0}, signature_name="classify")
            await client.get_model_metadata("graded")
            x = [{"x": 1.0}]
            pair = ("classify", "classify")
            for name in ("regress", "other_input", "three_outputs"):  # fetches the signatures
                with contextlib.suppress(InvalidInputError):
                    await client.regress("graded", x, signature_name=name)
            for name in ("three_outputs", "other_input"):
                with contextlib.suppress(InvalidInputError):
                    await client.classify("graded", x, signature_name=name)
            calls = client.stats().calls
            refused: list[tuple[Any, str]] = [
                (client.classify("graded", [], signature_name="classify"), "there are no examples"),
                (
                    client.regress("graded", [{"x": None}], signature_name="regress"),
                    "feature 'x' of example 0",
                ),
                (client.regress("graded", x, signature_name="classify"), "exactly one output, 'outputs'"),
                (client.regress("graded", x, signature_name="other_input"), "exactly one input, 'inputs'"),
                (client.classify("graded", x, signature_name="three_outputs"), "one or two outputs"),
                (client.classify("graded", x, signature_name="regress"), "'classes' or 'scores'"),
                (client.multi_inference("graded", [], x), "there are no tasks"),
                (
                    client.multi_inference("graded", [pair, ("regress", "classify")], x),
                    "tasks 0 and 1 both use",
                ),
                (client.multi_inference("graded", [("predict", None)], x), "method 'predict'"),
                (
                    client.multi_inference(
                        "graded",
                        [
                            pair,
                            InferenceTask(
                                model_spec={"name": "other"}, method_name="tensorflow/serving/regress"
                            ),
                        ],
                        x,
                    ),
                    "task 1 is for model 'other'",
                ),
            ]
            for call, told in refused:
                with pytest.raises(InvalidInputError, match=told) as caught:
                    await call
                assert caught.value.model == "graded"
            assert client.stats().calls == calls
            with pytest.raises(SignatureNotFoundError):
                await client.classify("graded", x)
            with pytest.raises(InvalidArgumentError, match="x .*is required but could not be found"):
                await client.regress("graded", [{"y": 1.0}], signature_name="regress")
            with pytest.raises(ModelNotFoundError):
                await client.regress("nobody", x)
            with pytest.raises(DeadlineExceededError):
                await client.regress("graded", x, signature_name="regress", timeout=0)
            for call, told in (
                (client.regress("graded", [], signature_name="regress", validate=False), "Input is empty"),
                (client.classify("graded", x, validate=False), "No signature was found"),
                (client.multi_inference("graded", [pair, pair], x, validate=False), "Duplicate evaluation"),
            ):
                with pytest.raises(InvalidArgumentError, match=told) as refusal:
                    await call
                assert not isinstance(refusal.value, InvalidInputError)

    run(story())
