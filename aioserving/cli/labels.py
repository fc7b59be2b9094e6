"""`aioserving labels`: which versions labels stand for, and moving them without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from aioserving.cli.changes import resolve_label
from aioserving.cli.common import (
    Group,
    Settings,
    complete_files,
    confirm,
    connection_options,
    each_target,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode
from aioserving.cli.reload import apply, read_models

if TYPE_CHECKING:
    from aioserving import AsyncClient, ModelServerConfig

__all__ = ["command"]


@click.group(
    cls=Group,
    examples="""
        aioserving labels show digits stable canary -t 127.0.0.1:8500
        aioserving labels move digits stable 2 --models models.config -t 127.0.0.1:8500
    """,
)
def command() -> None:
    """Show and move version labels.

    A server keeps labels in its configuration, which it cannot be asked for, and which a reload replaces as a
    whole. So whoever moves a label has to have that configuration: --models FILE.
    """


_models_option = click.option(
    "--models",
    "file",
    required=True,
    metavar="FILE",
    help="The server's model_config_file, as it is in force.",
    shell_complete=complete_files,
)
_write_option = click.option(
    "--write/--no-write",
    default=True,
    help="Write the new labels into the file, too, which loses its comments.  [write]",
)
_yes_option = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@command.command(
    "show",
    examples="""
        aioserving labels show digits stable -t 127.0.0.1:8500
        aioserving labels show digits --models models.config -t 127.0.0.1:8500 --json
    """,
)
@click.argument("model")
@click.argument("labels", nargs=-1, metavar="[LABEL]...")
@click.option(
    "--models",
    "file",
    metavar="FILE",
    help="Show the labels that this model_config_file has.",
    shell_complete=complete_files,
)
@connection_options
@output_options
@pass_settings
def show(settings: Settings, model: str, labels: tuple[str, ...], file: str | None) -> None:
    """Show which version each label stands for, on every target.

    Servers do not list their labels: name them, or the model_config_file that has them. The exit code is 1 if
    a server does not have one, or another version for it than the file says.
    """
    expected = _labels(read_models(file), model) if file is not None else {}
    names = labels or tuple(expected)
    if not names:
        raise CommandError(
            "which labels? servers do not list them",
            ExitCode.USAGE,
            advice="name them, or the model_config_file that has them: --models FILE",
        )
    found = asyncio.run(_resolve_all(settings, model, names))
    rows = [
        {"model": model, "label": label, "version": version, "file": expected.get(label), "target": target}
        for label, version, target in found
    ]
    if settings.output.as_json:
        settings.output.json(rows)
    columns = ("label", "version", "file", "target") if expected else ("label", "version", "target")
    settings.output.table(
        columns, [tuple(row[column] for column in columns) for row in rows], right=("version", "file")
    )
    if any(row["version"] is None or row["file"] not in (None, row["version"]) for row in rows):
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


@command.command(
    "set",
    examples="""
        aioserving labels set digits stable=2 canary=3 --models models.config -t 127.0.0.1:8500
        aioserving labels set digits canary=none --models models.config --yes -t 127.0.0.1:8500
    """,
)
@click.argument("model")
@click.argument("labels", nargs=-1, required=True, metavar="LABEL=VERSION...")
@_models_option
@_write_option
@_yes_option
@connection_options
@output_options
@pass_settings
def set_(settings: Settings, model: str, labels: tuple[str, ...], file: str, write: bool, yes: bool) -> None:
    """Point labels at versions; LABEL=none takes one away. Other labels stay.

    In two steps where it has to be: the version is loaded first, and the label moves when it is available.
    Until then calls by label go where they went.
    """
    wanted = dict(_pair(text) for text in labels)
    _apply(settings, model, wanted, file, write, yes)


@command.command(
    "move",
    examples="""
        aioserving labels move digits stable 2 --models models.config -t 127.0.0.1:8500
        aioserving labels move digits stable 2 --models models.config --no-write --yes -t 127.0.0.1:8500
    """,
)
@click.argument("model")
@click.argument("label")
@click.argument("version", type=int)
@_models_option
@_write_option
@_yes_option
@connection_options
@output_options
@pass_settings
def move(settings: Settings, model: str, label: str, version: int, file: str, write: bool, yes: bool) -> None:
    """Move a label that is there to another version; `labels set` makes new ones.

    In two steps where it has to be: the version is loaded first, and the label moves when it is available.
    Until then calls by label go where they went.
    """
    present = _labels(read_models(file), model)
    if label not in present:
        raise CommandError(
            f"{file}: model {model!r} has no label {label!r}, but {', '.join(map(repr, present)) or 'none'}",
            ExitCode.NOT_FOUND,
            advice="'aioserving labels set' makes one",
        )
    _apply(settings, model, {label: version}, file, write, yes)


def _apply(
    settings: Settings, model: str, wanted: Mapping[str, int | None], file: str, write: bool, yes: bool
) -> None:
    from aioserving import write_config

    config = read_models(file)
    before = _labels(config, model)
    moves = {label: version for label, version in wanted.items() if before.get(label) != version}
    output = settings.output
    for label, version in moves.items():
        output.line(f"~ {model}: {label}: {_shown(before.get(label))} -> {_shown(version)}", style="yellow")
    if not moves:
        output.line(f"{file} has these labels already; the servers are told again")
    if not yes and not confirm("Change labels?"):
        raise CommandError("nothing was changed", ExitCode.NEGATIVE)
    result = apply(settings, lambda client: client.set_labels(model, wanted, config=config))
    if write:
        write_config(file, result.config)
    if output.as_json:
        output.json(
            {
                "model": model,
                "labels": _labels(result.config, model),
                "before": before,
                "written": file if write else None,
            }
        )
    else:
        now = ", ".join(f"{label} {version}" for label, version in _labels(result.config, model).items())
        output.line(f"{model}: {now or 'no labels'}", style="green")


def _labels(config: ModelServerConfig, model: str) -> dict[str, int]:
    from aioserving.configuration import without_models

    for found in config.model_config_list:
        if found.name == model:
            return dict(sorted(found.version_labels.items()))
    try:
        without_models(config, model)  # which knows how to say it
    except ValueError as error:
        raise CommandError(str(error), ExitCode.NOT_FOUND) from error
    raise AssertionError(model)


def _pair(text: str) -> tuple[str, int | None]:
    label, equals, version = text.partition("=")
    if label and equals and version.lower() in ("", "none"):
        return label, None
    try:
        if label and equals:
            return label, int(version)
    except ValueError:
        pass
    raise CommandError(f"{text!r}: write LABEL=VERSION, or LABEL=none", ExitCode.USAGE)


def _shown(version: int | None) -> str:
    return "none" if version is None else str(version)


async def _resolve_all(
    settings: Settings, model: str, labels: tuple[str, ...]
) -> list[tuple[str, int | None, str]]:
    """(label, version, target) of every label on every server."""

    async def one(client: AsyncClient, target: str) -> list[tuple[str, int | None, str]]:
        # Whether there is such a model: of an unknown one the server says only that the label is unknown.
        await client.get_model_status(model)
        return [(label, await resolve_label(client, model, label), target) for label in labels]

    found = await each_target(settings, one)
    return [row for rows in found for row in rows]
