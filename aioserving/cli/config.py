"""`aioserving config`: what the command line goes by, and what is in a server's model_config_file."""

from __future__ import annotations

import re
from typing import Any

import click

from aioserving.cli.common import (
    SETTINGS,
    Group,
    Settings,
    complete_files,
    connection_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import ExitCode
from aioserving.cli.reload import read_models

__all__ = ["command"]


@click.group(
    cls=Group,
    examples="""
        aioserving config show
        aioserving config check models.config
        aioserving config diff old.config new.config
    """,
)
def command() -> None:
    """Show the settings in force; check and compare model_config_files, without a server."""


@command.command(
    "show",
    examples="""
        aioserving config show
        aioserving config show --profile production --json
    """,
)
@connection_options
@output_options
@pass_settings
def show(settings: Settings) -> None:
    """Show every setting, and where its value comes from; secrets stay secret.

    An option wins over an environment variable, and that over the config file: the one that --config or
    AIOSERVING_CONFIG names, else ./aioserving.toml, else ~/.config/aioserving/config.toml.
    """
    rows: list[dict[str, Any]] = []
    for name, setting in SETTINGS.items():
        value = settings.get(name, setting.default)
        if value is not None and setting.secret:
            value = "(hidden)"
        elif name == "metadata" and value:
            value = dict.fromkeys(value, "(hidden)")
        rows.append(
            {
                "setting": name,
                "value": value,
                "from": settings.origin(name),
                "variable": setting.variable,
            }
        )
    file = settings.file
    if settings.output.as_json:
        settings.output.json(
            {
                "file": str(file.path) if file.path is not None else None,
                "profile": file.profile,
                "profiles": list(file.profiles),
                "settings": rows,
            }
        )
        return
    settings.output.line(f"config file: {file.path or 'none'}")
    if file.profiles:
        settings.output.line(f"profiles: {', '.join(file.profiles)}; in force: {file.profile or 'none'}")
    settings.output.table(
        ("setting", "value", "from"),
        [(row["setting"], _shown(row["value"]), row["from"]) for row in rows],
        styles={"default": "dim"},
    )


def _shown(value: Any) -> str | None:
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}={item}" for key, item in value.items())
    return None if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@command.command(
    "check",
    examples="""
        aioserving config check models.config
        aioserving config check new.config --old models.config --look --strict
        aioserving config check models.config --json
    """,
)
@click.argument("files", nargs=-1, required=True, metavar="FILE...", shell_complete=complete_files)
@click.option(
    "--old",
    metavar="FILE",
    help="The file in force: changes that servers refuse are found, too.",
    shell_complete=complete_files,
)
@click.option("--look", is_flag=True, help="Look whether the base paths are on this machine.")
@click.option("--strict", is_flag=True, help="Let warnings count as errors.")
@output_options
@pass_settings
def check(settings: Settings, files: tuple[str, ...], old: str | None, look: bool, strict: bool) -> None:
    """Find what a server would refuse in a model_config_file, or hang on, with line and column.

    The exit code is 1 if there are errors (with --strict, also warnings).
    """
    from pathlib import Path

    from aioserving import DecodeError, check_config

    before = read_models(old) if old is not None else None
    found: list[dict[str, Any]] = []
    for file in files:
        try:
            text = Path(file).read_text(encoding="utf-8")
            problems = check_config(text or "\n", old=before, text=text, look=look)
        except (DecodeError, UnicodeDecodeError) as error:
            line, column, message = _place(str(error))
            found.append(_problem(file, line, column, "error", None, message))
            continue
        found += [
            _problem(
                file,
                problem.line,
                problem.column,
                "error" if problem.refused else "warning",
                problem.model,
                problem.text,
            )
            for problem in problems
        ]
    if settings.output.as_json:
        settings.output.json(found)
    for problem in found:
        style = "red" if problem["severity"] == "error" else "yellow"
        settings.output.line(_line(problem), style=style)
    if not found:
        settings.output.line("no problems found", style="green")
    if any(strict or problem["severity"] == "error" for problem in found):
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


def _problem(
    file: str, line: int | None, column: int | None, severity: str, model: str | None, text: str
) -> dict[str, Any]:
    return {
        "file": file,
        "line": line,
        "column": column,
        "severity": severity,
        "model": model,
        "text": " ".join(text.split()),
    }


def _line(problem: dict[str, Any]) -> str:
    """As compilers write it, so that editors find the place."""
    place = "".join(f":{problem[key]}" for key in ("line", "column") if problem[key] is not None)
    model = f"model {problem['model']!r}: " if problem["model"] is not None else ""
    return f"{problem['file']}{place}: {problem['severity']}: {model}{problem['text']}"


def _place(text: str) -> tuple[int | None, int | None, str]:
    """Line, column and the rest of an error about text format."""
    found = re.search(r"line (\d+), column (\d+):? ?", text)
    if found is None:
        return None, None, text
    return int(found[1]), int(found[2]), text[found.end() :]  # before it is what was read


@command.command(
    "diff",
    examples="""
        aioserving config diff models.config new.config
        aioserving config diff models.config new.config --json
    """,
)
@click.argument("old", metavar="OLD", shell_complete=complete_files)
@click.argument("new", metavar="NEW", shell_complete=complete_files)
@output_options
@pass_settings
def diff(settings: Settings, old: str, new: str) -> None:
    """Show what changes from one model_config_file to another; the exit code is 1 if anything does."""
    from aioserving import diff_configs

    found = diff_configs(read_models(old), read_models(new))
    if settings.output.as_json:
        settings.output.json(
            {
                "added": [{"model": model.name, "base_path": model.base_path} for model in found.added],
                "removed": [{"model": model.name, "base_path": model.base_path} for model in found.removed],
                "changed": {
                    name: [{"field": change.name, "old": change.old, "new": change.new} for change in changes]
                    for name, changes in found.changed.items()
                },
            }
        )
    styles = {"+": "green", "-": "red", "~": "yellow"}
    for line in str(found).splitlines():
        settings.output.line(line, style=styles.get(line[:1], ""))
    if found:
        raise click.exceptions.Exit(ExitCode.NEGATIVE)
