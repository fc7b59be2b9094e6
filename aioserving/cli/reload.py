"""`aioserving reload`: give servers another list of models, after a look at what that changes."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.changes import Change, observe
from aioserving.cli.common import (
    Command,
    Settings,
    complete_files,
    confirm,
    connection_options,
    each_target,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving import ModelServerConfig
    from aioserving.cli.output import Output
    from aioserving.reload import ReloadResult

__all__ = ["apply", "command", "read_models", "show_changes", "targets_of"]


@click.command(
    cls=Command,
    examples="""
        aioserving reload models.config --dry-run -t 127.0.0.1:8500
        aioserving reload models.config -t 127.0.0.1:8500
        aioserving reload new.config --old models.config --yes -t 10.0.0.1:8500 -t 10.0.0.2:8500
        aioserving reload models.config --yes --no-wait --json -t 127.0.0.1:8500
    """,
)
@click.argument("file", metavar="FILE", shell_complete=complete_files)
@click.option(
    "--old",
    metavar="FILE",
    help="The model_config_file in force, to see what else changes.",
    shell_complete=complete_files,
)
@click.option("--wait/--no-wait", default=True, help="Wait until the versions are available.  [wait]")
@click.option("--dry-run", is_flag=True, help="Show what would change, and change nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@connection_options
@output_options
@pass_settings
def command(settings: Settings, file: str, old: str | None, wait: bool, dry_run: bool, yes: bool) -> None:
    """Replace the models that servers serve by those of a model_config_file.

    What a reload does is shown first, and asked about. A server cannot be asked for its configuration, only
    for models by name: those that FILE does not name are unloaded, and are shown only if --old tells of them.

    Labels are moved when their versions are available, so that calls by label are answered throughout. A
    server that polls its own model_config_file undoes the reload: write that file there.
    """
    new = read_models(file)
    before = read_models(old) if old is not None else None
    changes = asyncio.run(_observe_all(settings, new, before))
    output = settings.output
    show_changes(output, changes, targets_of(settings))
    _warn(output, file, new, before)
    if before is None:
        output.note(f"models that {file} does not name are unloaded; --old FILE shows which")
    applied = False
    result: ReloadResult | None = None
    if not dry_run:
        if not yes and not confirm("Reload?"):
            raise CommandError("nothing was changed", ExitCode.NEGATIVE)
        result = apply(settings, lambda client: client.reload_config(new, old=before, wait=wait))
        applied = True
    if output.as_json:
        output.json(
            {
                "changes": [change.to_dict() for change in changes],
                "applied": applied,
                "loads": [
                    {"target": load.target, "model": load.status.model, "status": str(load.status)}
                    for load in (result.loads if result is not None else ())
                ],
            }
        )
    elif result is not None:
        for line in str(result).splitlines():
            output.line(line, style="green")


def read_models(path: str) -> ModelServerConfig:
    """The configuration in a file.

    Raises:
        CommandError: it is none, or the server would refuse it.
        OSError: it cannot be read.
    """
    from pathlib import Path

    from aioserving import DecodeError, InvalidConfigError, read_config

    try:
        return read_config(Path(path))
    except InvalidConfigError as error:
        raise CommandError(
            f"{path}: {'; '.join(map(str, error.problems))}",
            ExitCode.INVALID,
            advice=f"'aioserving config check {path}' lists all that is wrong",
        ) from error
    except (DecodeError, UnicodeDecodeError) as error:
        raise CommandError(
            str(error) if str(error).startswith(path) else f"{path}: {error}",
            ExitCode.INVALID,
            advice="it is text format of ModelServerConfig",
        ) from error


def targets_of(settings: Settings) -> int:
    """How many servers were named."""
    return len(settings.targets)


def show_changes(output: Output, changes: list[Change], targets: int) -> None:
    """The changes, a line each, under the server that they are for if there are several."""
    styles = {"+": "green", "-": "red", "~": "yellow"}
    for target in dict.fromkeys(change.target for change in changes):
        if targets > 1:
            output.line(f"{target}:", style="bold")
        for change in changes:
            if change.target == target:
                output.line(str(change), style=styles[change.sign])
    if not changes:
        output.line("no changes that the server can be asked about")


def apply(settings: Settings, change: Any) -> ReloadResult:
    """Let `change` reload the servers of a blocking client; what it hangs on is told while it does.

    Raises:
        RPCError: as `Client.reload_config`.
    """
    from aioserving import ConfigWarning

    with settings.client() as client, _told(settings.output), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)  # shown before
        found: ReloadResult = change(client)
        return found


@contextmanager
def _told(output: Output) -> Iterator[None]:
    """What the library logs of a reload that does not come back, on standard error."""
    handler = logging.Handler()
    handler.emit = lambda record: output.note(record.getMessage(), style="yellow")  # type: ignore[method-assign]
    handler.addFilter(lambda record: str(record.msg).startswith("the reload"))
    logger = logging.getLogger("aioserving")
    level = logger.level
    propagate = logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


def _warn(output: Output, path: str, new: ModelServerConfig, old: ModelServerConfig | None) -> None:
    from aioserving import check_config

    with open(path, encoding="utf-8") as file:
        text = file.read()
    for problem in check_config(new, old=old, text=text):
        output.note(f"{path}: {'error' if problem.refused else 'warning'}: {problem}", style="yellow")


async def _observe_all(
    settings: Settings, new: ModelServerConfig, old: ModelServerConfig | None
) -> list[Change]:
    """The changes to every server."""
    found = await each_target(settings, lambda client, target: observe(client, target, new, old))
    return [change for changes in found for change in changes]
