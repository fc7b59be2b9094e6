"""`aioserving score`: a job over files, see `aioserving.jobs`."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.common import (
    Command,
    DurationType,
    Settings,
    complete_files,
    connection_options,
    model_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving.jobs import JobSummary, Progress

__all__ = ["command"]


@click.command(
    cls=Command,
    examples="""
        aioserving score data/rows.parquet out/ -m digits --keep id -t 127.0.0.1:8500
        aioserving score 'data/*.csv' out/ -m prices --input x=a,b,c --format jsonl -t 127.0.0.1:8500
        aioserving score s3://bucket/rows/ s3://bucket/scores/ -m digits --on-error aside -t 10.0.0.1:8500
        aioserving score rows.tfrecord out/ -m census --method classify -s classify -t 127.0.0.1:8500
        aioserving score data/ out/ -m digits --version 7 --on-change restart --json -t 127.0.0.1:8500
    """,
)
@click.argument("source", nargs=-1, required=True, metavar="INPUT...", shell_complete=complete_files)
@click.argument("output", metavar="OUTPUT", shell_complete=complete_files)
@click.option(
    "--method",
    type=click.Choice(["predict", "classify", "regress"]),
    default="predict",
    help="What is called.  [predict]",
)
@click.option(
    "--input",
    "inputs",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Column of an input, or several: x=a,b,c.  [of its name]",
)
@click.option(
    "--keep",
    multiple=True,
    metavar="COLUMN",
    help="Column to have in the output, too; NEW=COLUMN renames it.",
)
@click.option("--row-number", metavar="NAME", help="Column of the output for the number of the row.")
@click.option("--output", "filter_", multiple=True, metavar="NAME", help="Ask for this output only.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), default=256, metavar="ROWS", help="Rows of a call.  [256]"
)
@click.option(
    "--in-flight",
    type=click.IntRange(min=1),
    metavar="NUMBER",
    help="Calls at a time.  [found while it runs]",
)
@click.option(
    "--on-error",
    type=click.Choice(["raise", "skip", "aside"]),
    default="raise",
    help="Rows that cannot be scored end the job, are left out, or are set aside with their errors.  [raise]",
)
@click.option(
    "--max-bad-rows", type=click.IntRange(min=0), metavar="NUMBER", help="Rows that may be left out.  [any]"
)
@click.option(
    "--on-change",
    type=click.Choice(["refuse", "restart", "continue"]),
    default="refuse",
    help="If another job began the output: refuse, begin anew, or go on with what is left.  [refuse]",
)
@click.option(
    "--part-rows",
    type=click.IntRange(min=1),
    default=100_000,
    metavar="ROWS",
    help="Rows of a file of the output.  [100000]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["parquet", "jsonl", "npy"]),
    default="parquet",
    help="Format of the output.  [parquet]",
)
@click.option("--input-format", metavar="FORMAT", help="Format of the input.  [by the files' names]")
@click.option(
    "--strings",
    type=click.Choice(["binary", "utf8"]),
    default="binary",
    help="What strings are in the output.  [binary]",
)
@click.option(
    "--storage-option",
    "storage",
    multiple=True,
    metavar="NAME=VALUE",
    help="Setting of the fsspec filesystem, such as endpoint_url=...; may be repeated.",
)
@click.option(
    "--outage",
    type=DurationType(),
    default="5m",
    metavar="TIME",
    help="How long to wait for servers that do not answer.  [5m]",
)
@click.option("--progress/--no-progress", default=True, help="Show the progress on standard error.  [yes]")
@model_options
@connection_options
@output_options
@pass_settings
def command(
    settings: Settings,
    source: tuple[str, ...],
    output: str,
    method: Any,
    inputs: tuple[str, ...],
    keep: tuple[str, ...],
    row_number: str | None,
    filter_: tuple[str, ...],
    batch_size: int,
    in_flight: int | None,
    on_error: Any,
    max_bad_rows: int | None,
    on_change: Any,
    part_rows: int,
    format_: Any,
    input_format: str | None,
    strings: Any,
    storage: tuple[str, ...],
    outage: float | None,
    progress: bool,
) -> None:
    """Score files, each row exactly once.

    INPUT is a file, a folder, a pattern or a URL, or several; OUTPUT is a folder that the job has for itself.
    Ended in any way, at any moment, the same command goes on where it stopped. The version of the model is
    looked up once, and is the same for all rows. Ctrl-C keeps what was scored; a second one does not wait for
    that.

    Needs the extra `batch`.
    """
    model = settings.model
    arguments: dict[str, Any] = {
        "model": model,
        "input": list(source),
        "output": output,
        "version": settings.version if settings.label is None else settings.label,
        "signature": settings.signature or "serving_default",
        "method": method,
        "inputs": {name: _columns(text) for name, text in _pairs(inputs, "--input")},
        "keep": dict(_pair(text, "--keep") if "=" in text else (text, text) for text in keep),
        "row_number": row_number,
        "output_filter": filter_ or None,
        "batch_size": batch_size,
        "max_in_flight": in_flight,
        "on_error": on_error,
        "max_bad_rows": max_bad_rows,
        "on_change": on_change,
        "part_rows": part_rows,
        "output_format": format_,
        "input_format": input_format,
        "strings": strings,
        "storage_options": {name: _value(text) for name, text in _pairs(storage, "--storage-option")},
        "outage": float("inf") if outage is None else outage,
    }
    summary = asyncio.run(_score(settings, arguments, progress))
    if settings.output.as_json:
        settings.output.json(summary.to_json())
    else:
        for line in str(summary).splitlines():
            settings.output.line(line)


async def _score(settings: Settings, arguments: dict[str, Any], progress: bool) -> JobSummary:
    from aioserving.jobs import InputError, Job, JobChangedError, OutputError, VersionGoneError

    async with settings.async_client() as client:
        try:
            job = Job(client, **arguments)
        except ValueError as error:
            raise CommandError(str(error), ExitCode.USAGE) from error
        try:
            return await job.run(progress=_display(settings) if progress else False)
        except (InputError, OutputError) as error:
            raise CommandError(str(error), ExitCode.FILE) from error
        except (JobChangedError, VersionGoneError) as error:
            raise CommandError(str(error), ExitCode.PRECONDITION) from error


def _display(settings: Settings) -> Progress:
    from aioserving.jobs import LiveProgress, LogProgress

    if settings.output.progress_on_terminal:
        return LiveProgress(settings.output.console(stderr=True), summarize=False)

    def write(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    return LogProgress(write, summarize=False)


def _pairs(texts: Sequence[str], option: str) -> list[tuple[str, str]]:
    return [_pair(text, option) for text in texts]


def _pair(text: str, option: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise CommandError(f"{option} is NAME=VALUE, got {text!r}", ExitCode.USAGE)
    return name, value


def _columns(text: str) -> str | list[str]:
    return text.split(",") if "," in text else text


def _value(text: str) -> Any:
    """A storage option's value: JSON where it is any, else text."""
    import json

    try:
        return json.loads(text)
    except ValueError:
        return text
