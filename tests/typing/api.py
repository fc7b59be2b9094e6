"""What type checkers must see of the public API; checked by mypy --strict, never run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import assert_type

from aioserving import (
    TLS,
    AdaptiveLimit,
    AsyncClient,
    Attempt,
    BlockingModel,
    ClassifyResult,
    Client,
    ClientHealth,
    ClientStats,
    HedgingPolicy,
    Model,
    ModelConfig,
    ModelMetadata,
    ModelServerConfig,
    ModelStatus,
    MultiInferenceResult,
    PoolOptions,
    PredictRequest,
    PredictResult,
    RegressResult,
    ReloadResult,
    State,
    Target,
    TensorSpec,
    Token,
    VersionStatus,
)


async def fetch() -> tuple[str, float]:
    return "token", 3600.0


def fleets() -> None:
    AsyncClient({"a:1": 1, "b:1": 2.5}, retry=None, hedging=HedgingPolicy(), balancing="round_robin")
    AsyncClient([Target("a:1", weight=2), "b:1"], tls=TLS(ca="ca.pem"), credentials=Token(fetch))
    Client("a:1", pool=PoolOptions(max_in_flight=AdaptiveLimit()), observers=[print])


async def asynchronous(images: NDArray[np.float32]) -> None:
    async with AsyncClient("127.0.0.1:8500", timeout=None, pool=PoolOptions()) as client:
        assert_type(client, AsyncClient)
        result = await client.predict("digits", {"images": images, "k": 3, "names": ["a"]}, timeout=1)
        assert_type(result, PredictResult)
        assert_type(result["scores"], NDArray[Any])
        assert_type(result.model_spec.version, int | None)
        await client.predict("digits", images)
        await client.predict("digits", [[1.0, 2.0]], version=1, output_filter=["scores"])
        await client.predict("digits", "text", version_label="stable", validate=False)
        await client.predict(PredictRequest())
        await client.predict(PredictRequest().pb, timeout=None)
        classes = await client.classify("m", {"x": images}, context={"k": 3}, signature_name="c")
        assert_type(classes, ClassifyResult)
        assert_type(classes[0].top(3)[0].score, float)
        assert_type(classes.scores, NDArray[np.float32])
        numbers = await client.regress("m", [{"x": 1.0}, b""])
        assert_type(numbers, RegressResult)
        assert_type(numbers[0], float)
        tasks = [("classify", "c"), ("regress", None)]
        assert_type(await client.multi_inference("m", tasks, [{"x": 1.0}]), MultiInferenceResult)
        await client.regress("m")  # type: ignore[call-overload]
        metadata = await client.get_model_metadata("digits")
        assert_type(metadata, ModelMetadata)
        assert_type(metadata.signatures["serving_default"].inputs["images"], TensorSpec)
        assert_type(metadata.signature().inputs["images"].shape, tuple[int, ...] | None)
        status = await client.get_model_status("digits")
        assert_type(status, ModelStatus)
        assert_type(status[0], VersionStatus)
        assert_type(status[0].state, State)
        assert_type(status[0].error, str | None)
        assert_type(await client.wait_until_available("digits", version=2), VersionStatus)
        reloaded = await client.reload_config(
            [ModelConfig(name="m", base_path="/m"), {"name": "n"}], wait=True
        )
        assert_type(reloaded, ReloadResult)
        await client.reload_config(Path("models.config"))
        await client.add_models({"name": "n"})
        await client.add_models([ModelConfig(name="m")])
        await client.set_labels("m", {"stable": 2, "old": None})
        assert_type(client.config, ModelServerConfig | None)
        assert_type(await client.wait_ready("m", every_endpoint=True), ClientHealth)
        assert_type(client.health().endpoints[0].missing_models, tuple[str, ...])
        assert_type(result.attempts, tuple[Attempt, ...])
        await client.predict("digits", images, compression="gzip")
        model = client.model("digits", version_label="stable")
        assert_type(model, Model)
        assert_type(await model.predict(images), PredictResult)
        assert_type(client.stats(), ClientStats)
        await client.predict(7)  # type: ignore[call-overload]
        await client.predict("digits")  # type: ignore[call-overload]
        await client.predict("digits", images, version="1")  # type: ignore[call-overload]


def blocking(images: NDArray[np.float32]) -> None:
    with Client(["a:8500", "b:8500"]) as client:
        assert_type(client, Client)
        assert_type(client.predict("digits", images), PredictResult)
        assert_type(client.predict(PredictRequest()), PredictResult)
        assert_type(client.get_model_metadata("digits"), ModelMetadata)
        assert_type(client.get_model_status("digits"), ModelStatus)
        assert_type(client.regress("m", [{"x": 1.0}]), RegressResult)
        model = client.model("digits")
        assert_type(model, BlockingModel)
        assert_type(model.classify({"x": images}), ClassifyResult)
        assert_type(model.predict(images), PredictResult)
