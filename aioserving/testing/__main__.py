"""`python -m aioserving.testing`: the testing server as a process, with the real binary's flags.

    python -m aioserving.testing --port=8500 --model_name=digits --model_base_path=/models/digits

`--help` lists all flags. SIGTERM and Ctrl-C let the calls in progress end and exit with 0; a second one
exits at once. What happens is told on standard error, a line each.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aioserving.testing.options import FlagError, ServerOptions, parse, usage
from aioserving.testing.status import StatusError

if TYPE_CHECKING:
    from aioserving.testing.server import ModelServer

logger = logging.getLogger("aioserving.testing")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a server until it is told to end; returns the exit code of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        sys.stdout.write(usage() + "\n")
        return 0
    if "--version" in arguments:
        from importlib.metadata import version

        sys.stdout.write(f"aioserving testing server: {version('aioserving')}\n")
        return 0
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(message)s"
    )
    try:
        options, warnings = parse(arguments)
    except FlagError as error:
        sys.stderr.write(f"{error}\n(--help lists all flags)\n")
        return 2
    for warning in warnings:
        logger.warning(warning)
    # For the TensorFlow that a SavedModel imports: quiet (what it has to say of models comes as statuses),
    # and on the CPU, unless the user says otherwise.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    try:
        return asyncio.run(_serve(options))
    except (StatusError, OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"Failed to start server. Error: {error}\n")
        return 255  # what the real binary's -1 becomes


async def _serve(options: ServerOptions) -> int:
    from aioserving.testing.server import ModelServer

    models = {name: _imported(name, place) for name, place in map(_split, options.testing_callable)}
    server = ModelServer.from_options(options, models=models)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, stopping)
    if options.testing_exit_with_parent:
        threading.Thread(target=_exit_with_parent, daemon=True).start()
    starting = asyncio.ensure_future(server.start())
    stopped = asyncio.ensure_future(stopping.wait())
    await asyncio.wait({starting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if stopping.is_set():  # told to end while a model is still loading
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError, StatusError):
            await starting
        return 0
    await starting
    _announce(server, options)
    await stopped
    logger.info("stopping, with %d calls in progress", server.calls.running)
    await server.stop(options.testing_drain_seconds)
    return 0


def _on_signal(stopping: asyncio.Event) -> None:
    if stopping.is_set():
        os._exit(1)  # somebody insists
    stopping.set()


def _exit_with_parent() -> None:
    """Wait for the end of standard input, which comes also when the parent is killed."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(1)


def _announce(server: ModelServer, options: ServerOptions) -> None:
    if server.port is not None:
        logger.info("Running gRPC ModelServer at %s:%d ...", server.host, server.port)
    if server.unix_socket is not None:
        logger.info("Running gRPC ModelServer at UNIX socket %s ...", server.unix_socket)
    if server.serves_rest:
        logger.info("Exporting HTTP/REST API at:%s:%d ...", server.host, server.rest_port)
    if options.testing_port_file:
        # Renamed into place, so that nobody reads half a number.
        partial = f"{options.testing_port_file}.partial"
        with open(partial, "w", encoding="ascii") as file:
            file.write(f"{server.port or 0}\n")
        os.replace(partial, options.testing_port_file)
    if options.testing_announce:
        if server.serves_rest:
            sys.stdout.write(f"rest {server.rest_url}\n")
        sys.stdout.write(f"ready {server.target}\n")
        sys.stdout.flush()


def _split(flag: str) -> tuple[str, str]:
    name, equals, place = flag.partition("=")
    if not name or not equals or ":" not in place:
        raise ValueError(f"--testing_callable is MODEL=PACKAGE.MODULE:ATTRIBUTE, got {flag!r}")
    return name, place


def _imported(name: str, place: str) -> Any:
    """What to serve as model `name`: the attribute at `place`, or what it returns."""
    module_name, _, attributes = place.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for attribute in attributes.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--testing_callable={name}={place}: {error}") from error
    if isinstance(found, Mapping) or hasattr(found, "signatures"):
        return found
    return found() if callable(found) else found


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # an ordinary exit would wait for a model that does not return
