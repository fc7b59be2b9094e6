"""The whole story in one command: train, export, serve, predict concurrently, roll out a new version.

    python examples/quickstart.py

Real handwritten digits go to a real SavedModel behind a real socket; the server is `aioserving.testing`
in its own process, which behaves as TensorFlow's model server does. With the real one running, start
this with its address: python examples/quickstart.py 127.0.0.1:8500 (model `digits`, see digits_model.py).
"""

from __future__ import annotations

import asyncio
import collections
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from aioserving import AsyncClient, ModelConfig
from aioserving.testing import ServerProcess


async def export(folder: Path, version: int) -> None:
    """Train and export in another process: TensorFlow has no business in this one."""
    script = Path(__file__).with_name("digits_model.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), str(folder), str(version), stderr=subprocess.PIPE
    )
    _, errors = await process.communicate()  # TensorFlow's greetings, or why it failed
    if process.returncode:
        sys.exit(errors.decode())


def serve(folder: Path, *versions: int) -> list[ModelConfig]:
    """The server's configuration: these versions of this folder."""
    return [
        ModelConfig(name="digits", base_path=str(folder), model_version_policy={"specific": list(versions)})
    ]


async def look(client: AsyncClient, images: np.ndarray, labels: np.ndarray) -> None:
    """Signatures, status, and every image predicted by a call of its own, all at once."""
    print(await client.get_model_metadata("digits"), end="\n\n")
    print(await client.get_model_status("digits"), end="\n\n")

    digits = client.model("digits")
    await digits.predict(images[:1])  # fetches the signature and connects
    started = time.perf_counter()
    results = await asyncio.gather(*(digits.predict(image[np.newaxis]) for image in images))
    elapsed = time.perf_counter() - started
    answers = np.concatenate([result["digit"] for result in results])
    print(f"{len(images)} images, one call each, all at once: {len(images) / elapsed:,.0f} calls/s")
    right = answers == labels
    print(f"accuracy: {np.mean(right):.1%} (on images that training never saw: {np.mean(right[::2]):.1%})")
    print(client, end="\n\n")


async def roll_out(client: AsyncClient, folder: Path, images: np.ndarray) -> None:
    """Load version 2, then unload version 1, while calls go on; not one of them may fail."""
    answered: collections.Counter[int] = collections.Counter()
    stop = asyncio.Event()

    async def keep_calling() -> None:
        while not stop.is_set():
            result = await client.predict("digits", images[:8])
            answered[result.model_spec.version or 0] += 1

    print("rolling out version 2 while 16 callers go on …")
    callers = [asyncio.create_task(keep_calling()) for _ in range(16)]
    await export(folder, 2)
    await client.reload_config(serve(folder, 1, 2))
    await client.wait_until_available("digits", version=2)
    await asyncio.sleep(0.3)
    await client.reload_config(serve(folder, 2))
    while not (await client.get_model_status("digits", version=1))[0].ended:  # it unloads in its own time
        await asyncio.sleep(0.05)
    stop.set()
    await asyncio.gather(*callers)  # raises if any call failed
    print(
        f"{answered.total()} calls in the meantime, 0 lost: "
        + ", ".join(f"{count} answered by version {version}" for version, count in sorted(answered.items()))
    )
    print(await client.get_model_status("digits"), end="\n\n")


async def main(folder: Path, target: str | None) -> None:
    """Run against the server at `target`, or one of our own that serves `folder`."""
    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.float32)
    if target is not None:
        async with AsyncClient(target) as client:
            await look(client, images, labels)
        return
    print("training and exporting version 1 …")
    await export(folder, 1)
    print("starting the server (it imports TensorFlow) …\n")
    async with (
        ServerProcess(model_name="digits", model_base_path=str(folder)) as server,
        AsyncClient(server.target) as client,
    ):
        await look(client, images, labels)
        await roll_out(client, folder, images)
        await look(client, images, labels)
    print("TensorFlow was imported in this process:", "tensorflow" in sys.modules)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        asyncio.run(main(Path(temporary), sys.argv[1] if len(sys.argv) > 1 else None))
