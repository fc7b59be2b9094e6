"""New versions and labels on real server processes, while callers go on calling."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aioserving import AsyncClient, Client, ModelLoadError, VersionLabelNotFoundError, write_config
from aioserving.testing import ModelServer, ServerProcess, StatusCode, StatusError

from ..models import digits

ROOT = Path(__file__).parents[2]
IMAGES = np.ones((2, 784), np.float32)
BASE = "/callable/digits"


def process() -> ServerProcess:
    return ServerProcess(
        callables={"digits": "tests.models:versions", "many": "tests.models:many_signatures"},
        env={"PYTHONPATH": str(ROOT)},
        file_system_poll_wait_seconds=0.1,
    )


def one(*versions: int, **labels: int) -> list[dict[str, Any]]:
    return [
        {
            "name": "digits",
            "base_path": BASE,
            "model_version_policy": {"specific": versions},
            "version_labels": labels,
        }
    ]


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 90))


def test_a_label_moves_under_load_without_a_failed_call() -> None:
    """Version 2 is loaded, then `stable` moves to it; callers of `stable` see 1, then 2, and no error."""

    async def story() -> None:
        async with (
            process() as first,
            process() as second,
            AsyncClient([first.target, second.target]) as client,
        ):
            await client.reload_config(one(1), wait=True)
            await client.set_labels("digits", {"stable": 1})
            answers: list[int] = []
            enough = asyncio.Event()

            async def call() -> None:
                while not enough.is_set():
                    result = await client.predict("digits", IMAGES, version_label="stable")
                    answers.append(int(result["version"]))

            callers = [asyncio.create_task(call()) for _ in range(8)]
            result = await client.set_labels("digits", {"stable": 2, "old": 1})
            seen = len(answers)
            while len(answers) < seen + 100 and not any(caller.done() for caller in callers):
                await asyncio.sleep(0.01)
            enough.set()
            await asyncio.gather(*callers)
            assert {1, 2} == set(answers)
            assert set(answers[-50:]) == {2}
            assert {load.target for load in result.loads} == {first.target, second.target}
            assert result.config.model_config_list[0].version_labels == {"stable": 2, "old": 1}
            await client.set_labels("digits", {"old": None})
            with pytest.raises(VersionLabelNotFoundError):
                await client.predict("digits", IMAGES, version_label="old")

    run(story())


def test_a_version_that_cannot_be_loaded() -> None:
    """The reload waits, says which version failed and why; the label and the old version stay."""

    async def story() -> None:
        broken = StatusError(StatusCode.DATA_LOSS, "the file is cut")
        async with (
            ModelServer({}, file_system_poll_wait_seconds=0.1, max_num_load_retries=0) as server,
            AsyncClient(server.target) as client,
        ):
            for version, servable in {1: digits(1), 2: digits(2), 3: broken}.items():
                server.add_version("digits", version, servable)
            await client.reload_config(one(1, stable=1), wait=True)  # labelled in a second step
            with pytest.raises(ModelLoadError, match="DATA_LOSS: the file is cut") as caught:
                await client.set_labels("digits", {"stable": 3})
            assert [(f.model, f.version, f.target) for f in caught.value.failures] == [
                ("digits", 3, server.target)
            ]
            assert (await client.predict("digits", IMAGES, version_label="stable"))["version"] == 1
            with pytest.raises(ModelLoadError, match="version 3 of 'digits'"):
                await client.reload_config(one(1, 2, 3), wait=True, timeout=20)
            assert (await client.predict("digits", IMAGES, version=2))["version"] == 2

    run(story())


def test_the_same_from_plain_code(tmp_path: Path) -> None:
    """The blocking client reads the file, adds, labels and removes."""
    path = tmp_path / "models.config"
    write_config(path, one(1))
    with process() as server, Client(server.target) as client:
        assert client.config is None
        result = client.set_labels("digits", {"stable": 2}, config=path)
        assert client.config == result.config
        assert client.predict("digits", IMAGES, version_label="stable")["version"] == 2
        client.add_models({"name": "many", "base_path": "/callable/many"})
        assert client.predict("many", {"a": [1], "b": [2]})["sum"] == 3
        client.remove_models("many")
        assert [model.name for model in client.config.model_config_list] == ["digits"]
        assert client.reload_config(path, wait=True).loads[0].status.available
