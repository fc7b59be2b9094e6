"""`aioserving status`: how servers, and the versions of models on them, are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.common import (
    Command,
    Settings,
    connection_options,
    each_target,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import ExitCode, describe

if TYPE_CHECKING:
    from aioserving import AsyncClient

__all__ = ["command"]

STYLES = {
    "AVAILABLE": "green",
    "READY": "green",
    "LOADING": "yellow",
    "START": "yellow",
    "UNLOADING": "yellow",
    "END": "dim",
    "NOT FOUND": "red",
    "FAILED": "red",
}

#: A model that no server has: one that says so is there.
_NOBODY = "aioserving-is-anybody-there"


@click.command(
    cls=Command,
    examples="""
        aioserving status -t 127.0.0.1:8500
        aioserving status digits -t 127.0.0.1:8500
        aioserving status digits faces -t 10.0.0.1:8500 -t 10.0.0.2:8500 --json
        aioserving status digits -t 127.0.0.1:8500 && echo available
    """,
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@connection_options
@output_options
@pass_settings
def command(settings: Settings, models: tuple[str, ...]) -> None:
    """Show which versions of models servers have, and how each version is.

    Every target is asked. A server cannot be asked which models it has: name them. Without a name (and
    without AIOSERVING_MODEL, or a model in the config file) it is only seen whether servers answer.

    The exit code is 0 if every model has an available version on every target, else 1; if no target answers,
    it says why.
    """
    named = settings.get("model")
    names = models or ((named,) if named else ())
    found = asyncio.run(_ask_all(settings, names or (_NOBODY,)))
    failures = [error for _, error in found if error is not None]
    if failures and len(failures) == len(found):
        raise failures[0]
    answers = [answer for answer, _ in found]
    if not names:
        answers = [_reachable(answer) for answer in answers]
    if settings.output.as_json:
        settings.output.json(answers)
    elif names:
        settings.output.table(
            ("model", "version", "state", "target", "error"),
            [
                (answer["model"], version["version"], version["state"], answer["target"], version["error"])
                for answer in answers
                for version in answer["versions"] or [_no_version(answer)]
            ],
            right=("version",),
            styles=STYLES,
        )
    else:
        rows = [(answer["target"], answer["state"], answer["error"]) for answer in answers]
        settings.output.table(("target", "state", "error"), rows, styles=STYLES)
    if failures or not all(answer["available"] for answer in answers):
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


async def _ask_all(
    settings: Settings, names: tuple[str, ...]
) -> list[tuple[dict[str, Any], Exception | None]]:
    """What every server says of every model; and the error, if there is no answer."""

    async def ask(client: AsyncClient, target: str) -> list[tuple[dict[str, Any], Exception | None]]:
        return await asyncio.gather(*(_ask(client, target, name) for name in names))

    by_target = await each_target(settings, ask)
    return [answers[number] for number in range(len(names)) for answers in by_target]


async def _ask(client: AsyncClient, target: str, model: str) -> tuple[dict[str, Any], Exception | None]:
    from aioserving import ModelNotFoundError, RPCError

    answer: dict[str, Any] = {"model": model, "target": target, "available": False, "versions": []}
    try:
        status = await client.get_model_status(model)
    except ModelNotFoundError as error:
        return {**answer, "state": "NOT FOUND", "error": error.details}, None
    except RPCError as error:
        return {**answer, "state": "FAILED", "error": describe(error).message}, error
    versions = [{"version": item.version, "state": item.state.name, "error": item.error} for item in status]
    best = next(iter(status.available), status[0])
    state, available = best.state.name, best.available
    return {**answer, "available": available, "state": state, "error": None, "versions": versions}, None


def _reachable(answer: dict[str, Any]) -> dict[str, Any]:
    there = answer["state"] != "FAILED"
    return {
        "target": answer["target"],
        "available": there,
        "state": "READY" if there else "FAILED",
        "error": None if there else answer["error"],
    }


def _no_version(answer: dict[str, Any]) -> dict[str, Any]:
    return {"version": None, "state": answer["state"], "error": answer["error"]}
