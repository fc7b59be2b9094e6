"""`aioserving wait`: until servers answer, and models can serve."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.common import Command, Settings, connection_options, output_options, pass_settings
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving import AsyncClient
    from aioserving.cli.output import Progress

__all__ = ["command"]

#: Seconds between two looks at what is being waited for.
_LOOK = 0.25


@click.command(
    cls=Command,
    examples="""
        aioserving wait -t 127.0.0.1:8500 --timeout 2m
        aioserving wait digits faces -t 127.0.0.1:8500
        aioserving wait digits --version 7 -t 10.0.0.1:8500 -t 10.0.0.2:8500 --timeout none
        aioserving wait digits -t 127.0.0.1:8500 && aioserving predict -m digits --zeros -t 127.0.0.1:8500
    """,
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--version", type=int, metavar="NUMBER", help="Wait for this version.  [any]")
@connection_options
@output_options
@pass_settings
def command(settings: Settings, models: tuple[str, ...], version: int | None) -> None:
    """Wait until models are available on every target; without a model, until every target answers.

    It waits for servers that are still to come up, too, and ends when a model fails to load. --timeout is for
    all of it: the exit code is 4 when it is over.
    """
    named = settings.get("model")
    names = models or ((named,) if named else ())
    if version is not None and not names:
        raise CommandError("--version of which model?", ExitCode.USAGE)
    started = time.monotonic()
    found = asyncio.run(_wait(settings, names, version))
    seconds = round(time.monotonic() - started, 3)
    if settings.output.as_json:
        settings.output.json({"ready": True, "seconds": seconds, "models": found})
    elif names:
        for model in found:
            settings.output.line(f"{model['model']}: version {model['version']} is available", style="green")
    else:
        settings.output.line(f"ready: {', '.join(settings.targets)}", style="green")


async def _wait(settings: Settings, names: tuple[str, ...], version: int | None) -> list[dict[str, Any]]:
    async with settings.async_client() as client:
        with settings.output.progress(f"waiting for {', '.join(names or settings.targets)}") as progress:
            telling = asyncio.create_task(_tell(client, names, progress))
            try:
                if not names:
                    await client.wait_ready(every_endpoint=True)
                    return []
                waiting = [
                    asyncio.create_task(client.wait_until_available(name, version=version)) for name in names
                ]
                try:
                    found = await asyncio.gather(*waiting)
                finally:
                    for task in waiting:
                        task.cancel()
                    await asyncio.gather(*waiting, return_exceptions=True)
                return [
                    {"model": name, "version": status.version}
                    for name, status in zip(names, found, strict=True)
                ]
            finally:
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)


async def _tell(client: AsyncClient, names: tuple[str, ...], progress: Progress) -> None:
    """Say what the models, or the servers, are doing, as long as nobody stops it."""
    from aioserving import NotFoundError, ServingError

    while names:
        states = []
        for name in names:
            for endpoint in client.health().endpoints:
                try:
                    status = await client.get_model_status(name, target=endpoint.target, timeout=1.0)
                    state = ", ".join(str(item) for item in status if not item.ended) or str(status[0])
                except NotFoundError:
                    state = "not known to the server"
                except ServingError:
                    state = "no answer"
                states.append(f"{name} at {endpoint.target}: {state}")
        if states:
            progress.update("; ".join(states))
        await asyncio.sleep(_LOOK)
