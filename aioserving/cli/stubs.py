"""`aioserving stubs`: a typed Python module for served models; what it says is `stub_module`'s."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import click

from aioserving.cli.common import Command, Settings, connection_options, output_options, pass_settings
from aioserving.cli.failures import CommandError, ExitCode

__all__ = ["command"]


@click.command(
    cls=Command,
    examples="""
        aioserving stubs digits -t 127.0.0.1:8500 > digits_model.py
        aioserving stubs digits faces -t 127.0.0.1:8500 --blocking --output models.py
        aioserving stubs digits -t 127.0.0.1:8500 --output digits_model.py --check
    """,
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="File to write."
)
@click.option("--check", is_flag=True, help="Write nothing; the exit code is 1 if FILE would change.")
@click.option("--blocking", is_flag=True, help="Add a class over the blocking client for each model.")
@click.option("--version", type=int, metavar="NUMBER", help="Version to ask.  [the newest available]")
@click.option("--label", metavar="LABEL", help="Label of the version to ask.")
@connection_options
@output_options
@pass_settings
def command(
    settings: Settings,
    models: tuple[str, ...],
    output: Path | None,
    check: bool,
    blocking: bool,
    version: int | None,
    label: str | None,
) -> None:
    """Write a typed Python module for served models, from their signatures.

    The module has a class for each model, a method for each signature with a keyword for each input, and
    a dataclass for each signature's outputs. It passes mypy --strict and is as ruff format leaves it. The
    same signatures give the same text, so that --check, in CI, tells whether a server still fits the code.
    """
    if check and output is None:
        raise CommandError("--check compares a file: name it with --output", ExitCode.USAGE)
    if version is not None and label is not None:
        raise CommandError("give --version or --label, not both", ExitCode.USAGE)
    names = list(dict.fromkeys(models or (settings.model,)))
    from aioserving.cli.stub_module import difference, generate, header_command

    with settings.client() as client:
        found = [client.get_model_metadata(name, version=version, version_label=label) for name in names]
    made_by = header_command(names, blocking=blocking, version=version, label=label)
    text = generate(found, command=made_by, blocking=blocking)
    if output is None:
        if settings.output.as_json:
            settings.output.json({"models": names, "source": text})
        else:
            sys.stdout.write(text)
        return
    old = _read(output)
    changed = old != text
    if check:
        lines = difference(old or "", text, str(output)) if changed else []
        if settings.output.as_json:
            settings.output.json({"models": names, "file": str(output), "changed": changed, "diff": lines})
        for line in lines:
            settings.output.line(line, style={"+": "green", "-": "red"}.get(line[:1], ""))
        if changed:
            what = "is not there" if old is None else "does not fit the signatures any more"
            raise CommandError(
                f"{output} {what}", ExitCode.NEGATIVE, advice=f"{made_by} --output {output} writes it anew"
            )
    elif changed:
        _write(output, text)
    if settings.output.as_json:
        if not check:
            settings.output.json({"models": names, "file": str(output), "changed": changed})
    else:
        settings.output.note(f"{output}: {'written' if changed else 'up to date'}")


def _read(path: Path) -> str | None:
    """What is in the file; None if there is none."""
    try:
        return path.read_bytes().decode()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is no Python source: {error}", ExitCode.FILE) from error


def _write(path: Path, text: str) -> None:
    """All of the text or none, whatever happens meanwhile; the file keeps its permissions."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            umask = os.umask(0)
            os.umask(umask)
            mode = 0o666 & ~umask
        os.chmod(temporary, mode & 0o777)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
