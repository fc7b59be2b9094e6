"""A web app that asks a model: an image per HTTP request, many requests per call to the model server.

    python examples/web_app.py

trains a model of handwritten digits, serves it with `aioserving.testing` in a process of its own, and starts
the app on port 8000 (another one: `python examples/web_app.py 8001`). With a model server running, start the
app alone, here with two workers:

    AIOSERVING_TARGETS=10.0.0.1:8500,10.0.0.2:8500 uvicorn --app-dir examples web_app:app --workers 2

Each worker has its own client, opened and closed by the app's lifespan. That is after any fork: gRPC does not
survive one with open channels, so make no call at import if gunicorn runs with --preload. (uvicorn's own
workers are spawned, which is always safe.)
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypedDict

import anyio
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from aioserving import AsyncClient, errors
from aioserving.batching import BatchedModel

MODEL = "digits"
#: Seconds that a request may take if it does not say, and at most.
TIMEOUT, LONGEST = 1.0, 10.0

logger = logging.getLogger("web_app")


class State(TypedDict):
    """What the requests of a worker share."""

    client: AsyncClient
    digits: BatchedModel


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[State]:
    """Open the client when the app starts; when it ends, let calls under way end and close it."""
    targets = os.environ.get("AIOSERVING_TARGETS", "127.0.0.1:8500").split(",")
    async with AsyncClient(targets) as client, client.model(MODEL).batched(max_batch_size=128) as digits:
        yield {"client": client, "digits": digits}


async def predict(request: Request[State]) -> Response:
    """``{"image": [64 numbers]}`` -> ``{"digit": 7, "scores": [10 numbers], "version": 1}``."""
    # One deadline for reading, waiting and predicting; it travels to the model server.
    with contextlib.suppress(ClientDisconnect), anyio.fail_after(timeout_of(request)):
        image = await image_of(request)
        async with cancelled_by_disconnect(request):
            result = await request.state["digits"].predict(image[np.newaxis])  # a batch of one row
            return JSONResponse(
                {
                    "digit": int(result["digit"][0]),
                    "scores": result["scores"][0].tolist(),
                    "version": result.model_spec.version,
                }
            )
    return Response(status_code=499)  # nobody is there to read it


def timeout_of(request: Request[State]) -> float:
    """Seconds that the request gives us in its header ``x-request-timeout``."""
    try:
        timeout = float(request.headers.get("x-request-timeout", TIMEOUT))
    except ValueError:
        timeout = 0.0
    if not timeout > 0:  # also NaN
        raise HTTPException(400, "x-request-timeout must be a positive number of seconds")
    return min(timeout, LONGEST)


async def image_of(request: Request[State]) -> np.ndarray:
    """The image in the body. Its size is checked by the client, which knows the model's signature."""
    try:
        image = np.asarray((await request.json())["image"], np.float64)
    except (KeyError, TypeError, ValueError):
        raise HTTPException(400, 'the body must be JSON: {"image": [64 numbers from 0 to 16]}') from None
    if not ((image >= 0) & (image <= 16)).all():
        raise HTTPException(422, "pixels must be numbers from 0 to 16")
    return image


@contextlib.asynccontextmanager
async def cancelled_by_disconnect(request: Request[State]) -> AsyncIterator[None]:
    """Cancel the body of this `async with` when the client hangs up; its request has been read."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    with anyio.CancelScope() as scope:
        watcher = asyncio.create_task(watch())
        try:
            yield
        finally:
            watcher.cancel()


#: HTTP status of errors, the first that fits.
STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (TimeoutError, 504),  # DeadlineExceededError is one
    (errors.InvalidArgumentError, 422),  # InvalidInputError, or the model refuses a value
    (errors.MessageTooLargeError, 413),
    (errors.ResourceExhaustedError, 503),  # too many wait, here or there
    (errors.UnavailableError, 503),
    (errors.ModelNotFoundError, 503),  # it is ours to have it served
    (errors.ClientStateError, 503),  # we are closing
    (errors.ServingError, 502),  # whatever else is wrong with the model server or its answer
)


async def failed(request: Request, error: Exception) -> Response:
    """The answer to a request whose call failed: what concerns the caller; the log has the whole story."""
    status = next(status for kind, status in STATUSES if isinstance(error, kind))
    if status < 500 and isinstance(error, errors.RPCError):
        return JSONResponse({"error": error.details}, status)
    logger.warning("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
    code = error.code if isinstance(error, errors.RPCError) else type(error).__name__
    return JSONResponse({"error": code}, status, {"retry-after": "1"} if status == 503 else None)


async def refused(request: Request, error: Exception) -> Response:
    """The answer to a request that is wrong or has no route."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def live(request: Request[State]) -> Response:
    """200 as long as the event loop turns."""
    return JSONResponse({"live": True})


async def ready(request: Request[State]) -> Response:
    """200 if some endpoint has the model, else 503; how all of them are."""
    client = request.state["client"]
    reason = ""
    try:
        await client.wait_ready(MODEL, timeout=0.5)
    except errors.RPCError as error:
        reason = error.details
    health = client.health()
    return JSONResponse(
        {"ready": not reason, "reason": reason, **dataclasses.asdict(health)}, 503 if reason else 200
    )


async def stats(request: Request[State]) -> Response:
    """Counts and latencies: of calls to the model server, and of the batches that they carried."""
    client, digits = request.state["client"].stats(), request.state["digits"].stats()
    return JSONResponse({"client": dataclasses.asdict(client), "batching": dataclasses.asdict(digits)})


app = Starlette(
    routes=[
        Route("/predict", predict, methods=["POST"]),
        Route("/live", live),
        Route("/ready", ready),
        Route("/stats", stats),
    ],
    exception_handlers={errors.ServingError: failed, TimeoutError: failed, HTTPException: refused},
    lifespan=lifespan,
)


def main(port: int = 8000) -> None:
    """Train, export and serve the model, and run the app until Ctrl-C or SIGTERM."""
    import uvicorn
    from quickstart import export
    from sklearn.datasets import load_digits

    from aioserving.testing import ServerProcess

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        print("training and exporting the model …", flush=True)
        asyncio.run(export(Path(folder), 1))
        print("starting the model server …", flush=True)
        with ServerProcess(model_name=MODEL, model_base_path=folder) as server:
            os.environ["AIOSERVING_TARGETS"] = server.target
            image = load_digits().data[0].astype(int).tolist()
            print(f"model server: {server.target}\napp: http://127.0.0.1:{port}, try\n")
            print(f"curl http://127.0.0.1:{port}/predict -d '{{\"image\": {image}}}'\n", flush=True)
            uvicorn.run(app, port=port)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
