"""`aioserving repository`: from blob store to served model; the service, and what can be asked of it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from aioserving.cli.common import (
    Group,
    Settings,
    complete_files,
    confirm,
    connection_options,
    output_options,
    pass_settings,
)
from aioserving.cli.failures import CommandError, ExitCode

if TYPE_CHECKING:
    from aioserving.repository.client import RepositoryClient
    from aioserving.repository.events import Event
    from aioserving.repository.fetch import FetchProgress
    from aioserving.repository.policy import Policy
    from aioserving.repository.results import VersionInfo
    from aioserving.repository.setup_file import Setup

__all__ = ["command"]

#: Where the service is, if no option says so.
VARIABLE: Final = "AIOSERVING_REPOSITORY"

#: Seconds for which a service that does not answer is waited for.
_OUTAGE: Final = 2.0

_STYLES: Final = {
    "AVAILABLE": "green",
    "promoted": "green",
    "candidate": "yellow",
    "canary": "yellow",
    "LOADING": "yellow",
    "quarantined": "red",
    "END": "dim",
    "retired": "dim",
}

_EVENT_STYLES: Final = {
    "promoted": "green",
    "available": "green",
    "quarantined": "red",
    "problem": "red",
    "missed": "yellow",
}


@click.group(
    cls=Group,
    examples="""
        aioserving repository serve set-up.yaml
        aioserving repository versions digits -t 127.0.0.1:8510
        aioserving repository rollout digits 7 --wait
    """,
)
def command() -> None:
    """Fetch versions from a blob store, and roll them out to model servers by policy.

    `serve` runs the service that a set-up file describes; the other commands ask it. It is found by --target,
    else by the environment variable AIOSERVING_REPOSITORY, else at 127.0.0.1:8510. (AIOSERVING_TARGET and
    targets in config files are model servers, and not used here.)
    """


_model = click.argument("model")
_version = click.argument("version", type=int, required=False, metavar="[VERSION]")


def _asks(function: Any) -> Any:
    """Options of a command that asks the service."""
    return connection_options(output_options(pass_settings(function)))


# -- the service --------------------------------------------------------------------------------------------


@command.command(
    "serve",
    examples="""
        aioserving repository serve set-up.yaml
        aioserving repository serve set-up.toml --check
    """,
)
@click.argument("file", metavar="SET_UP_FILE", shell_complete=complete_files)
@click.option("--check", is_flag=True, help="Only check the file.")
@output_options
@pass_settings
def serve(settings: Settings, file: str, check: bool) -> None:
    """Run the service that a set-up file (YAML or TOML) describes.

    The first line on standard output is "ready ADDRESS..." once it listens; what it does is told on standard
    error. SIGTERM and Ctrl-C end it when calls under way have ended, a second one ends it at once. What the
    model servers serve stays as it is, and the next start goes on from there.
    """
    setup = _load(file)
    if check:
        _tell_setup(settings, setup)
        return
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname).1s %(message)s"
    )
    logging.getLogger("aioserving").setLevel(logging.NOTSET)
    with _repository_errors():
        asyncio.run(_serve(settings, setup))


async def _serve(settings: Settings, setup: Setup) -> None:
    from aioserving.repository import service

    ending = asyncio.Event()

    def end() -> None:
        if ending.is_set():
            os._exit(1)  # somebody insists
        ending.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)

    def ready(running: service.RepositoryService) -> None:
        sys.stdout.write(f"ready {' '.join(running.addresses)}\n")
        sys.stdout.flush()

    await service.serve(setup, ending, ready=ready)


def _load(file: str) -> Setup:
    from aioserving.repository.setup_file import SetupError, load_setup

    try:
        return load_setup(file)
    except SetupError as error:
        for problem in error.problems[1:]:
            sys.stderr.write(f"{error.source}: {problem}\n")
        raise CommandError(f"{error.source}: {error.problems[0]}", ExitCode.USAGE) from error


def _tell_setup(settings: Settings, setup: Setup) -> None:
    output = settings.output
    if output.as_json:
        output.json(
            {
                "store": setup.store.url,
                "disk": str(setup.disk.path),
                "servers": {name: server.target for name, server in setup.servers.items()},
                "models": {name: policy.to_dict() for name, policy in setup.models.items()},
                "listen": setup.service.listen,
                "callers": None
                if setup.service.callers is None
                else {caller.name: caller.role for caller in setup.service.callers},
            }
        )
    output.table(("model", "policy"), [(name, str(policy)) for name, policy in setup.models.items()])
    output.line(
        f"{setup.source} is well: {len(setup.models)} models from {setup.store.url} for "
        f"{', '.join(setup.servers)}; listens at {', '.join(setup.service.listen)}"
    )


# -- asking -------------------------------------------------------------------------------------------------


def _target(settings: Settings) -> str:
    """Where the service is."""
    if settings.get("target") and settings.origin("target").startswith("option"):
        targets: list[str] = settings.get("target")
        if len(targets) > 1:
            raise CommandError("a repository service has one --target", ExitCode.USAGE)
        return targets[0]
    from aioserving.repository.client import DEFAULT_TARGET

    return os.environ.get(VARIABLE) or DEFAULT_TARGET


@contextmanager
def _client(settings: Settings) -> Iterator[RepositoryClient]:
    """A client of the service, whose errors say what to do about a service that is not there."""
    from aioserving.errors import UnavailableError
    from aioserving.repository.client import RepositoryClient

    target = _target(settings)
    try:
        client = RepositoryClient(
            target,
            timeout=settings.timeout,
            tls=settings.tls(),
            credentials=settings.credentials(),
            metadata=tuple((settings.get("metadata") or {}).items()),
            outage=_OUTAGE,
        )
    except ValueError as error:
        advice = "encrypt with --tls, or say --insecure-token where the network is to be trusted"
        plain = "plain text" in str(error)
        text = "credentials would be sent in plain text" if plain else str(error)
        raise CommandError(text, ExitCode.USAGE, advice=advice if plain else "") from error
    try:
        with client:
            yield client
    except UnavailableError as error:
        raise CommandError(
            str(error),
            ExitCode.UNREACHABLE,
            advice=f"is the repository service at {target}? --target, or {VARIABLE}, says where it is",
        ) from error


@contextmanager
def _repository_errors() -> Iterator[None]:
    """Errors of the repository itself, with exit codes of their own."""
    from aioserving.repository import errors

    try:
        yield
    except errors.AlreadyRunningError as error:
        raise CommandError(str(error), ExitCode.PRECONDITION) from error
    except errors.StoreUnavailableError as error:
        raise CommandError(str(error), ExitCode.UNREACHABLE) from error
    except errors.StoreAccessError as error:
        raise CommandError(str(error), ExitCode.DENIED) from error


@command.command("models", examples="aioserving repository models --json")
@_asks
def models(settings: Settings) -> None:
    """List the models that the store has, that are on disk, or that have a policy."""
    with _client(settings) as client:
        found = client.models()
    output = settings.output
    if output.as_json:
        output.json(
            [
                {
                    "model": model.name,
                    "policy": None if model.policy is None else model.policy.to_dict(),
                    "promoted": model.promoted,
                    "labels": model.labels,
                }
                for model in found
            ]
        )
    output.table(
        ("model", "serves", "labels", "policy"),
        [
            (
                model.name,
                " ".join(map(str, model.promoted)) or None,
                " ".join(f"{label}={version}" for label, version in sorted(model.labels.items())) or None,
                None if model.policy is None else str(model.policy),
            )
            for model in found
        ],
    )


@command.command(
    "versions",
    examples="""
        aioserving repository versions digits
        aioserving repository versions digits --json -t 127.0.0.1:8510
    """,
)
@_model
@_asks
def versions(settings: Settings, model: str) -> None:
    """List the versions of a model: in the store, on disk, and how each is on every server."""
    with _client(settings) as client:
        found = client.versions(model)
    output = settings.output
    if output.as_json:
        output.json(
            {
                "model": found.model,
                "policy": None if found.policy is None else found.policy.to_dict(),
                "waiting": found.waiting,
                "versions": [_version_as_dict(version) for version in found.versions],
            }
        )
        return
    servers = sorted({server for version in found.versions for server in version.servers})
    output.table(
        ("version", "store", "disk", *servers, "is", "labels"),
        [
            (
                version.version,
                None if version.store is None else _bytes(version.store.size),
                None if version.disk is None else _bytes(version.disk.size),
                *(
                    version.servers[server].state.name if server in version.servers else None
                    for server in servers
                ),
                version.role or None,
                " ".join(version.labels) or None,
            )
            for version in found.versions
        ],
        right=("version", "store", "disk"),
        styles=_STYLES,
    )
    for version in found.versions:
        if version.quarantine is not None:
            output.line(
                f"version {version.version} is in quarantine: {version.quarantine.reason}", style="red"
            )
        for server, status in version.servers.items():
            if status.error and version.quarantine is None:
                output.line(f"version {version.version} on {server}: {status.error}", style="red")
    for text in found.waiting:
        output.line(f"waits: {text}", style="yellow")


def _version_as_dict(version: VersionInfo) -> dict[str, Any]:
    store, disk, quarantine = version.store, version.disk, version.quarantine
    return {
        "version": version.version,
        "store": None if store is None else {"url": store.url, "archive": store.archive, "size": store.size},
        "disk": None if disk is None else {"path": disk.path, "size": disk.size, "current": disk.current},
        "servers": {
            server: {"state": status.state.name, "error": status.error}
            for server, status in version.servers.items()
        },
        "labels": version.labels,
        "wanted": version.wanted,
        "role": version.role or None,
        "quarantine": None
        if quarantine is None
        else {"reason": quarantine.reason, "since": quarantine.since},
    }


@command.command(
    "fetch",
    examples="""
        aioserving repository fetch digits
        aioserving repository fetch digits 7
    """,
)
@_model
@_version
@_asks
def fetch(settings: Settings, model: str, version: int | None) -> None:
    """Bring a version to the disk of the servers, without serving it; the newest if none is named.

    Ctrl-C stops it, unless somebody else waits for the same; what is there is kept for the next time.
    """
    output = settings.output
    with _client(settings) as client, client.fetch(model, version) as fetching:
        with _progress(settings, model) as show:
            for progress in fetching:
                show(progress)
        result = fetching.result()
    if output.as_json:
        output.json({"model": result.model, "version": result.version, "path": result.path})
    output.line(f"version {result.version} of {result.model} is in {result.path}")


@contextmanager
def _progress(settings: Settings, model: str) -> Iterator[Any]:
    """A function that shows the progress of a fetch on standard error: a bar on a terminal, else lines."""
    output = settings.output
    if not output.progress_on_terminal:
        last = ""

        def tell(progress: FetchProgress) -> None:
            nonlocal last
            if progress.state != last:
                last = progress.state
                size = "" if progress.bytes_total is None else f", {_bytes(progress.bytes_total)}"
                output.note(f"{progress.model} {progress.version}: {progress.state}{size}")

        yield tell
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=output.console(stderr=True), transient=True) as bar:
        task = bar.add_task(model, total=None)

        def draw(progress: FetchProgress) -> None:
            bar.update(
                task,
                description=f"{progress.model} {progress.version} {progress.state}",
                completed=progress.bytes_done,
                total=progress.bytes_total,
            )

        yield draw


@command.command(
    "policy",
    examples="""
        aioserving repository policy digits
        aioserving repository policy digits --set latest
        aioserving repository policy digits --set "latest 2" --pin 7
        aioserving repository policy digits --file policy.yaml
        aioserving repository policy digits --remove
    """,
)
@_model
@click.option(
    "--set", "wanted", metavar="VERSIONS", help="latest, 'latest N', all, or numbers: 3,5. The rest stays."
)
@click.option("--pin", type=int, metavar="VERSION", help="Serve this version and no other.")
@click.option("--unpin", is_flag=True, help="Serve what the policy says again.")
@click.option(
    "--file", metavar="FILE", help="Take all of the policy from a file: YAML, JSON or TOML; - for input."
)
@click.option("--remove", is_flag=True, help="Do not serve the model any more.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before --remove.")
@_asks
def policy(
    settings: Settings,
    model: str,
    wanted: str | None,
    pin: int | None,
    unpin: bool,
    file: str | None,
    remove: bool,
    yes: bool,
) -> None:
    """Show, or set, which versions of a model are served."""
    ways = [bool(file), remove, bool(wanted) or pin is not None or unpin]
    if sum(ways) > 1 or (unpin and pin is not None):
        raise CommandError("these options exclude each other", ExitCode.USAGE)
    given = _policy_from_file(file) if file else None
    if remove and not yes and not confirm(f"stop serving {model}?"):
        raise CommandError("not confirmed", ExitCode.NEGATIVE)
    with _client(settings) as client:
        if file:
            now = client.set_policy(model, given)
        elif remove:
            now = client.set_policy(model, None)
        elif any(ways):
            now = client.set_policy(model, _changed(client.get_policy(model), wanted, pin, unpin))
        else:
            now = client.get_policy(model)
    _tell_policy(settings, model, now)
    if now is None and not remove:
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


def _tell_policy(settings: Settings, model: str, now: Policy | None) -> None:
    output = settings.output
    if output.as_json:
        output.json(None if now is None else now.to_dict())
    output.line(f"{model}: {'there is no policy' if now is None else now}")


def _changed(before: Policy | None, wanted: str | None, pin: int | None, unpin: bool) -> Policy:
    from aioserving.repository.policy import Policy, PolicyError

    data: dict[str, Any] = {} if before is None else before.to_dict()
    if wanted is not None:
        numbers = wanted.replace(",", " ").split()
        data["versions"] = [int(text) for text in numbers] if all(map(str.isdecimal, numbers)) else wanted
    if pin is not None:
        data["pinned"] = pin
    if unpin:
        data.pop("pinned", None)
    try:
        return Policy.from_dict(data)
    except PolicyError as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


def _policy_from_file(file: str) -> Policy:
    from aioserving.repository.policy import PolicyError
    from aioserving.repository.setup_file import SetupError, read_policy

    content = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    try:
        return read_policy(content, None if file == "-" else Path(file))
    except (SetupError, PolicyError) as error:
        raise CommandError("; ".join(str(error).splitlines()), ExitCode.USAGE) from error


@command.command(
    "rollout",
    examples="""
        aioserving repository rollout digits
        aioserving repository rollout digits 7 --wait
    """,
)
@_model
@_version
@click.option("--wait", is_flag=True, help="Wait until it serves, or has failed; tell what happens.")
@_asks
def rollout(settings: Settings, model: str, version: int | None, wait: bool) -> None:
    """Bring a version to the servers now, whatever the hours; the newest if none is named.

    What is served goes on until the new version is loaded everywhere and has answered its probes.
    With --wait the exit code is 1 if it ends in quarantine.
    """
    output = settings.output
    with _client(settings) as client:
        if not wait:
            version = client.rollout(model, version)
            outcome = "under way"
        else:
            with client.watch(model=model, timeout=settings.timeout) as watching:
                watching.begin()
                version = client.rollout(model, version)
                outcome = _outcome(settings, client, watching, model, version)
    if output.as_json:
        output.json({"model": model, "version": version, "outcome": outcome})
    output.line(f"version {version} of {model}: {outcome}")
    if outcome == "quarantined":
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


def _outcome(settings: Settings, client: RepositoryClient, watching: Any, model: str, version: int) -> str:
    """How a rollout ends: ``"promoted"`` or ``"quarantined"``."""
    events: Iterator[Event] = iter(watching)
    event: Event | None = None
    while True:
        if event is None or event.kind == "missed":
            known = client.versions(model).version(version)
            if known is not None and known.role in ("promoted", "quarantined"):
                return known.role
        event = next(events)
        settings.output.note(str(event), style=_EVENT_STYLES.get(event.kind, ""))
        if event.version == version and event.kind in ("promoted", "quarantined"):
            return event.kind


@command.command(
    "rollback",
    examples="""
        aioserving repository rollback digits
        aioserving repository rollback digits 5
    """,
)
@_model
@_version
@_asks
def rollback(settings: Settings, model: str, version: int | None) -> None:
    """Go back to the version before, or to the one named; those above it go into quarantine."""
    with _client(settings) as client:
        version = client.rollback(model, version)
    output = settings.output
    if output.as_json:
        output.json({"model": model, "version": version})
    output.line(f"{model} goes back to version {version}")


@command.command(
    "release",
    examples="""
        aioserving repository release digits 3
    """,
)
@_model
@click.argument("version", type=int)
@_asks
def release(settings: Settings, model: str, version: int) -> None:
    """Take a version out of quarantine: policies may choose it again. `rollout` brings it now.

    The exit code is 1 if it was not in quarantine.
    """
    with _client(settings) as client:
        released = client.release_version(model, version)
    output = settings.output
    if output.as_json:
        output.json({"model": model, "version": version, "released": released})
    output.line(
        f"version {version} of {model} {'is out of quarantine' if released else 'was not in quarantine'}"
    )
    if not released:
        raise click.exceptions.Exit(ExitCode.NEGATIVE)


@command.command(
    "delete",
    examples="""
        aioserving repository delete digits 3 --yes
    """,
)
@_model
@click.argument("version", type=int)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@_asks
def delete(settings: Settings, model: str, version: int, yes: bool) -> None:
    """Delete a version from the disk, not from the store; refused while it is wanted or loaded."""
    if not yes and not confirm(f"delete version {version} of {model} from the disk?"):
        raise CommandError("not confirmed", ExitCode.NEGATIVE)
    with _client(settings) as client:
        client.delete_version(model, version)
    if settings.output.as_json:
        settings.output.json({"model": model, "version": version})
    settings.output.line(f"version {version} of {model} is deleted from the disk")


@command.command(
    "watch",
    examples="""
        aioserving repository watch
        aioserving repository watch digits --json
        aioserving repository watch --after 0
    """,
)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option(
    "--after",
    metavar="POSITION",
    help="What was seen already: a number, 0 for all that is kept, or what --json gave as position.",
)
@_asks
def watch(settings: Settings, model: str | None, after: str | None) -> None:
    """Tell what happens, as it happens, until Ctrl-C; --timeout ends it, too.

    With --json every event is one line. A service that goes away is waited for.
    """
    from aioserving.errors import DeadlineExceededError
    from aioserving.repository.client import Position

    try:
        since = None if after is None else int(after) if after.isdecimal() else Position.parse(after)
    except ValueError as error:
        raise CommandError(f"--after: {error}", ExitCode.USAGE) from error
    output = settings.output
    timeout = settings.timeout if settings.get("timeout") is not None else None
    with _client(settings) as client, client.watch(model=model, after=since, timeout=timeout) as events:
        try:
            for event in events:
                if output.as_json:
                    line = {**event.to_dict(), "position": str(events.position)}
                    sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
                else:
                    output.line(str(event), style=_EVENT_STYLES.get(event.kind, ""))
                sys.stdout.flush()
        except DeadlineExceededError:
            return  # it watched for as long as it was told to


@command.command(
    "plan",
    examples="""
        aioserving repository plan
        aioserving repository plan digits
        aioserving repository plan --setup set-up.yaml
    """,
)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option(
    "--setup", metavar="FILE", help="Work it out here, from a set-up file, instead of asking a service."
)
@_asks
def plan(settings: Settings, model: str | None, setup: str | None) -> None:
    """Print what would be done next, and why; nothing is done.

    The exit code is 0 also if there is nothing to do.
    """
    from aioserving.repository.results import PlannedStep

    steps: list[PlannedStep]
    if setup is not None:
        with _repository_errors():
            steps = asyncio.run(_plan(_load(setup)))
        steps = [step for step in steps if model is None or step.model in (None, model)]
    else:
        with _client(settings) as client:
            steps = list(client.plan(model))
    output = settings.output
    if output.as_json:
        output.json(
            [
                {
                    "step": step.kind,
                    "model": step.model,
                    "version": step.version,
                    "server": step.server,
                    "text": step.text,
                }
                for step in steps
            ]
        )
    for number, step in enumerate(steps, 1):
        output.line(f"{number}. {step.text}")
    if not steps:
        output.line("nothing to do")


async def _plan(setup: Setup) -> list[Any]:
    from aioserving.repository import conversion
    from aioserving.repository.service import open_controller

    async with open_controller(setup, start=False) as controller:
        found = await controller.plan()
    return [conversion.step_from_proto(conversion.step_to_proto(step)) for step in found.steps]


def _bytes(count: int | None) -> str:
    """A size for people."""
    if count is None:
        return "yes"
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
