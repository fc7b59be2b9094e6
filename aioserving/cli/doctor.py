"""`aioserving doctor`: where the way to a server, or to a model on it, ends; the checks are `diagnosis`'s."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.common import (
    Command,
    DurationType,
    Settings,
    connection_options,
    model_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving.cli.diagnosis import Patient
    from aioserving.cli.findings import Check
    from aioserving.client import AsyncClient

__all__ = ["command"]

_STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red", "skipped": "dim"}


@click.command(
    cls=Command,
    examples="""
        aioserving doctor -t 127.0.0.1:8500
        aioserving doctor -t models.example.com:443 --tls -m digits
        aioserving doctor -t dns:///serving.default.svc:8500 -m digits --json
        aioserving doctor
    """,
)
@click.option(
    "--check-timeout",
    type=DurationType(),
    default="5",
    show_default=True,
    metavar="TIME",
    help="How long each check may take.",
)
@connection_options
@model_options
@output_options
@pass_settings
def command(settings: Settings, check_timeout: float | None) -> None:
    """Find out where the way to a server ends, and what to do about it.

    Looks, in this order, at this machine (versions, what an import costs, variables, clock) and for each
    target at the proxies in between, the name, TCP, TLS, who speaks there, a call with the credentials, the
    model, its signature, sizes of messages, and the time that a call takes. What follows a check that
    fails is skipped. Without a target, only this machine is looked at.

    The exit code is 1 if something is wrong that makes calls fail; notes and warnings do not count.
    """
    if check_timeout is None or not check_timeout > 0:
        raise CommandError("--check-timeout is a time above 0", ExitCode.USAGE)
    found = asyncio.run(_run(settings, check_timeout))
    failed = [check for checks in found.values() for check in checks if check.failed]
    if settings.output.as_json:
        settings.output.json(
            {
                "healthy": not failed,
                "places": [
                    {"place": place, "checks": [check.to_dict() for check in checks]}
                    for place, checks in found.items()
                ],
            }
        )
    if failed:
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


async def _run(settings: Settings, timeout: float) -> dict[str, list[Check]]:
    from aioserving.cli.diagnosis import examine, examine_here

    patient = _patient(settings, timeout)

    def tell(check: Check) -> None:
        _show(settings, check)

    settings.output.line("this machine", style="bold")
    found = {"this machine": await examine_here(patient, tell)}
    for target in patient.targets:
        settings.output.line()
        settings.output.line(target, style="bold")
        found[target] = await examine(patient, target, tell)
    return found


def _patient(settings: Settings, timeout: float) -> Patient:
    from aioserving.cli.diagnosis import Patient
    from aioserving.cli.probing import TLSFiles

    targets: list[str] = settings.get("target", [])
    arguments: dict[str, Any] = settings.client_arguments() if targets else {}
    files = None
    if arguments.get("tls") is not None:
        paths = {
            name: Path(settings.get(name)) if settings.get(name) else None for name in ("ca", "cert", "key")
        }
        files = TLSFiles(paths["ca"], paths["cert"], paths["key"], settings.get("server_name"))

    def client(target: str, seconds: float) -> AsyncClient:
        return settings.async_client(targets=target, timeout=seconds, retry=None)

    return Patient(
        targets=targets,
        client=client,
        tls=files,
        model=settings.get("model"),
        version=settings.version,
        label=settings.label,
        signature=settings.signature,
        credentials=arguments.get("credentials") is not None,
        timeout=timeout,
    )


def _show(settings: Settings, check: Check) -> None:
    output = settings.output
    name = check.name
    for finding in check.findings:
        level = finding.level.name.lower()
        output.line(
            f"  {level:<7}  {name:<10}  {finding.text}", style=_STYLES[level] if level != "ok" else ""
        )
        if finding.fix:
            output.line(f"  {'':<7}  {'':<10}  -> {finding.fix}")
        name = ""
