"""What commands share: options, where their values come from, and a client made of them.

    @click.command(cls=Command, examples="aioserving status digits -t 127.0.0.1:8500")
    @click.argument("models", nargs=-1)
    @connection_options
    @output_options
    @pass_settings
    def command(settings: Settings, models: tuple[str, ...]) -> None:
        with settings.client() as client:
            settings.output.table(...)

A setting is taken from the command line, else from its environment variable, else from the config file.
Where two settings exclude each other (a token and a file of one), the one from the stronger source counts.
Credentials only go to servers that were named by somebody who may: see `Settings.credentials`.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from aioserving.cli import config_file
from aioserving.cli.failures import CommandError, ExitCode
from aioserving.cli.output import Output

if TYPE_CHECKING:
    from aioserving import AsyncClient, Client
    from aioserving.security import TLS, Credentials

__all__ = [
    "SETTINGS",
    "Command",
    "Group",
    "Setting",
    "Settings",
    "complete_files",
    "confirm",
    "connection_options",
    "duration",
    "each_target",
    "model_options",
    "output_options",
    "pass_settings",
]

_F = TypeVar("_F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Setting:
    """One thing that can be set for all commands."""

    #: Key in the config file, and name of the option with ``-`` for ``_``.
    name: str
    #: What the option's help says.
    help: str
    #: ``"text"``, ``"list"``, ``"flag"``, ``"duration"``, ``"path"`` or ``"pairs"``.
    kind: str = "text"
    #: What stands for a value in the help.
    metavar: str | None = None
    #: One letter, or empty.
    short: str = ""
    #: Whether its value is shown to nobody.
    secret: bool = False
    #: Its value where nobody says anything.
    default: Any = None
    #: Under which heading of the help it stands.
    section: str = "Connection"

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"AIOSERVING_{self.name.upper()}"

    @property
    def option(self) -> str:
        """Its option."""
        return "--" + self.name.replace("_", "-")


#: All of them, by name.
SETTINGS: Final[Mapping[str, Setting]] = {
    setting.name: setting
    for setting in (
        Setting(
            "target",
            "HOST:PORT, unix:PATH or dns:///HOST:PORT of a server; may be repeated.",
            "list",
            "TARGET",
            short="t",
        ),
        Setting(
            "timeout", "How long a call may take: 5, 500ms, 2m, none.  [60]", "duration", "TIME", default=60.0
        ),
        Setting(
            "token",
            "Bearer token. Everybody on this machine can read a command line: prefer --token-file or "
            "AIOSERVING_TOKEN.",
            secret=True,
        ),
        Setting("token_file", "File with a bearer token, read again when it is due.", "path", "FILE"),
        Setting("api_key", "Key, sent as x-api-key; better as AIOSERVING_API_KEY.", secret=True),
        Setting("tls", "Encrypt; on by itself with --ca, --cert or --server-name.", "flag"),
        Setting("ca", "Certificates of the authorities to trust, PEM.", "path", "FILE"),
        Setting("cert", "The client's certificate, PEM.", "path", "FILE"),
        Setting("key", "The client certificate's private key, PEM.", "path", "FILE"),
        Setting("server_name", "Name to look for in the server's certificate.", metavar="NAME"),
        Setting("insecure_token", "Send credentials without TLS, too, where all can read them.", "flag"),
        Setting("metadata", "Header of every call: name=value; may be repeated.", "pairs", "NAME=VALUE"),
        Setting("model", "Name of the model.", metavar="NAME", short="m", section="Model"),
        Setting("signature", "Signature.  [serving_default]", metavar="NAME", short="s", section="Model"),
        Setting("color", "Use colours, or do not.  [on terminals]", "flag", section="Output"),
    )
}

_PATHS: Final = tuple(name for name, setting in SETTINGS.items() if setting.kind == "path")
_TRUE: Final = {"1", "true", "yes", "on"}
_FALSE: Final = {"0", "false", "no", "off", ""}
_DURATION: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|)")
_UNITS: Final = {"ms": 0.001, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}

#: Where a value comes from, the strongest first.
_OPTION, _VARIABLE, _FILE, _DEFAULT = range(4)


def duration(text: str | float) -> float | None:
    """Seconds from ``"5"``, ``"500ms"``, ``"2m"``, ``"1h"``; None from ``"none"``.

    Raises:
        ValueError: it is no duration.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        if text >= 0:
            return float(text)
    elif isinstance(text, str):
        if text.strip().lower() == "none":
            return None
        found = _DURATION.fullmatch(text.strip().lower())
        if found is not None:
            return float(found[1]) * _UNITS[found[2]]
    raise ValueError(f"{text!r} is no time: write seconds, or 500ms, 2m, 1h, none")


class DurationType(click.ParamType):  # type: ignore[type-arg, unused-ignore] # generic since click 8.5
    """An option's value as `duration` reads it."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        """Seconds, or None for no limit."""
        try:
            return duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


# -- settings -----------------------------------------------------------------------------------------------


class Settings:
    """What a command was told, by options, environment and config file.

    Args:
        environment: environment variables; the process's own if None.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self._environment = os.environ if environment is None else environment
        self._given: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<Settings: {', '.join(self._given) or 'nothing'} given>"

    def give(self, name: str, value: Any) -> None:
        """What the command line says of `name`; None or nothing: it says nothing."""
        if value is not None and value != ():
            self._given[name] = value

    @cached_property
    def file(self) -> config_file.ConfigFile:
        """The config file in force.

        Raises:
            CommandError: it is wrong.
        """
        environment = self._environment
        return config_file.load(
            self._given.get("config") or environment.get("AIOSERVING_CONFIG") or None,
            self._given.get("profile") or environment.get("AIOSERVING_PROFILE") or None,
            SETTINGS,
            _PATHS,
            environment,
        )

    def get(self, name: str, default: Any = None) -> Any:
        """The value of a setting.

        Raises:
            CommandError: an environment variable or the config file has no value of the right kind.
        """
        source, value = self._find(name)
        return default if source == _DEFAULT else value

    def origin(self, name: str) -> str:
        """Where the value of a setting comes from, in words."""
        source, value = self._find(name)
        setting = SETTINGS[name]
        if source == _OPTION:
            return f"option --no{setting.option[1:]}" if value is False else f"option {setting.option}"
        if source == _VARIABLE:
            variable = "NO_COLOR" if name == "color" and setting.variable not in self._environment else ""
            return f"environment variable {variable or setting.variable}"
        return self.file.origin(name) if source == _FILE else "default"

    def _find(self, name: str) -> tuple[int, Any]:
        if name in self._given:
            return _OPTION, self._given[name]
        setting = SETTINGS[name]
        text = self._environment.get(setting.variable)
        if text is not None and (text or setting.kind == "flag"):
            return _VARIABLE, _parse(setting, text, setting.variable)
        if name == "color" and self._environment.get("NO_COLOR"):
            return _VARIABLE, False
        file = self.file
        if name in file.values:
            return _FILE, _parse(setting, file.values[name], f"{setting.name!r} in {file.path}")
        return _DEFAULT, None

    def _strongest(self, *names: str) -> str | None:
        """Which of settings that exclude each other counts.

        Raises:
            CommandError: two of them are from the same source.
        """
        found = sorted((self._find(name)[0], name) for name in names)
        found = [pair for pair in found if pair[0] != _DEFAULT]
        if not found:
            return None
        if len(found) > 1 and found[0][0] == found[1][0]:
            raise CommandError(
                f"{self.origin(found[0][1])} and {self.origin(found[1][1])} exclude each other",
                ExitCode.USAGE,
            )
        return found[0][1]

    @cached_property
    def output(self) -> Output:
        """Where to write to."""
        try:
            color = self.get("color")
        except CommandError:
            color = None  # whoever needs the file will hear of it; this is only about its message
        return Output(as_json=bool(self._given.get("json")), color=color, environment=self._environment)

    @property
    def targets(self) -> list[str]:
        """Addresses of the servers.

        Raises:
            CommandError: there are none.
        """
        found: list[str] = self.get("target", [])
        if not found:
            raise CommandError(
                "which server? there is no target",
                ExitCode.USAGE,
                advice="give --target HOST:PORT, set AIOSERVING_TARGET, or write it into a config file",
            )
        return found

    @property
    def model(self) -> str:
        """Name of the model.

        Raises:
            CommandError: there is none.
        """
        found: str | None = self.get("model")
        if not found:
            raise CommandError(
                "which model? none is named",
                ExitCode.USAGE,
                advice="give --model NAME, set AIOSERVING_MODEL, or write it into a config file",
            )
        return found

    @property
    def version(self) -> int | None:
        """Version of the model, or None.

        Raises:
            CommandError: a label is given, too.
        """
        version: int | None = self._given.get("version")
        if version is not None and "label" in self._given:
            raise CommandError("give --version or --label, not both", ExitCode.USAGE)
        return version

    @property
    def label(self) -> str | None:
        """Label of the version, or None."""
        found: str | None = self._given.get("label")
        return found

    @property
    def signature(self) -> str | None:
        """Name of the signature, or None."""
        found: str | None = self.get("signature")
        return found

    @property
    def timeout(self) -> float | None:
        """Seconds that a call may take; None: no limit."""
        found: float | None = self.get("timeout", SETTINGS["timeout"].default)
        return found

    def tls(self) -> TLS | None:
        """How connections are encrypted; None: not at all.

        Raises:
            CommandError: a file cannot be read or is not what it should be; or TLS is off, and options ask
                for it.
        """
        names = [name for name in ("ca", "cert", "key", "server_name") if self.get(name)]
        wanted = self.get("tls")
        if wanted is False:
            if any(self._find(name)[0] <= self._find("tls")[0] for name in names):
                raise CommandError(
                    f"{self.origin(names[0])} is about TLS, which {self.origin('tls')} switches off",
                    ExitCode.USAGE,
                )
            return None
        if not wanted and not names:
            return None
        from pathlib import Path

        from aioserving.security import TLS

        files = {name: Path(self.get(name)) if self.get(name) else None for name in ("ca", "cert", "key")}
        try:
            return TLS(files["ca"], files["cert"], files["key"], server_name=self.get("server_name"))
        except ValueError as error:
            raise CommandError(f"TLS: {error}", ExitCode.USAGE) from error

    def credentials(self) -> Credentials | None:
        """What calls carry to say who makes them; None: nothing.

        Credentials from the environment or from options are not sent to a target that stands in an
        ``aioserving.toml`` which was only found in the current folder: whoever wrote it could collect them.

        Raises:
            CommandError: two exclude each other, a file cannot be read, or they would go to such a target.
        """
        from pathlib import Path

        from aioserving.security import APIKey, Combined, StaticToken, Token

        plain = bool(self.get("insecure_token"))
        found: list[Credentials] = []
        used: list[str] = []
        try:
            if (name := self._strongest("token", "token_file")) is not None:
                used.append(name)
                if name == "token":
                    found.append(StaticToken(self.get(name), allow_plaintext=plain))
                else:
                    path = Path(self.get(name))
                    path.read_bytes()  # what is wrong with it is told now, and not by a call
                    found.append(
                        Token(lambda: path.read_text().strip(), lifetime=60.0, allow_plaintext=plain)
                    )
            if key := self.get("api_key"):
                used.append("api_key")
                found.append(APIKey(key, allow_plaintext=plain))
        except ValueError as error:
            raise CommandError(f"{self.origin(used[-1])}: {error}", ExitCode.USAGE) from error
        if self._find("target")[0] == _FILE and self.file.discovered:
            for name in used:
                if self._find(name)[0] != _FILE:
                    raise CommandError(
                        f"the target is from ./{config_file.LOCAL}, which was found in the current folder, "
                        f"and would get what {self.origin(name)} says",
                        ExitCode.USAGE,
                        advice=f"if it may, name the file: --config {config_file.LOCAL}",
                    )
        if len(found) > 1:
            return Combined(*found)
        return found[0] if found else None

    def client_arguments(self) -> dict[str, Any]:
        """What `Client` and `AsyncClient` are made with.

        Raises:
            CommandError: as `tls` and `credentials`, or there is no target.
        """
        return {
            "targets": self.targets,
            "timeout": self.timeout,
            "tls": self.tls(),
            "credentials": self.credentials(),
            "metadata": tuple((self.get("metadata") or {}).items()),
        }

    def client(self, **overrides: Any) -> Client:
        """A blocking client, to be used as a context manager.

        Args:
            **overrides: arguments of `Client`, over those of the settings.

        Raises:
            CommandError: as `client_arguments`, or the settings do not go together.
        """
        from aioserving import Client

        return self._make(Client, overrides)

    def async_client(self, **overrides: Any) -> AsyncClient:
        """The same for asyncio."""
        from aioserving import AsyncClient

        return self._make(AsyncClient, overrides)

    def _make(self, kind: Callable[..., _T], overrides: Mapping[str, Any]) -> _T:
        arguments = {**self.client_arguments(), **overrides}
        try:
            return kind(arguments.pop("targets"), **arguments)
        except (ValueError, TypeError) as error:
            text = str(error)
            if "plain text" in text:
                raise CommandError(
                    "credentials would be sent in plain text, which everybody on the way can read",
                    ExitCode.USAGE,
                    advice="encrypt with --tls, or say --insecure-token where the network is to be trusted",
                ) from error
            raise CommandError(text, ExitCode.USAGE) from error


_T = TypeVar("_T")


async def each_target(settings: Settings, function: Callable[[AsyncClient, str], Awaitable[_T]]) -> list[_T]:
    """Call a function for every server, all at once, with a client of that server alone.

    Args:
        settings: they say which servers; a name with several addresses (``dns:``) is several.
        function: given the client and the server's address.

    Returns:
        Its results, in the order of the servers.

    Raises:
        CommandError: as `Settings.client`.
        RPCError: a name cannot be looked up; or what `function` raises.
    """
    import asyncio

    async with settings.async_client() as client:
        targets = [endpoint.target for endpoint in client.health().endpoints]
        if not targets:  # names, which are looked up when they are needed
            await client.wait_ready()
            targets = [endpoint.target for endpoint in client.health().endpoints]

    async def one(target: str) -> _T:
        async with settings.async_client(targets=target) as client:
            return await function(client, target)

    return await asyncio.gather(*map(one, targets))


def _parse(setting: Setting, value: Any, where: str) -> Any:
    """The value of a setting from an environment variable (text) or a config file (anything)."""

    def wrong(what: str) -> CommandError:
        shown = "" if setting.secret else f", not {value!r}"
        return CommandError(f"{where} is {what}{shown}", ExitCode.USAGE)

    kind = setting.kind
    if kind == "flag":
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _TRUE | _FALSE:
            return value.lower() in _TRUE
        raise wrong("true or false")
    if kind == "duration":
        try:
            return duration(value)
        except ValueError as error:
            raise CommandError(f"{where}: {error}", ExitCode.USAGE) from error
    if kind == "list":
        items = value.split() if isinstance(value, str) else value
        if not isinstance(items, list) or not all(isinstance(item, str) and item for item in items):
            raise wrong("a text or a list of texts")
        return items
    if kind == "pairs":
        if isinstance(value, str):
            return dict(_pair(item, where) for item in value.split())
        if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
            raise wrong("a table of texts")
        return value
    if not isinstance(value, str):
        raise wrong("a text")
    return value


def _pair(text: str, where: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise CommandError(f"{where}: a header is NAME=VALUE", ExitCode.USAGE)
    return name, value


pass_settings = click.make_pass_decorator(Settings, ensure=True)


# -- options ------------------------------------------------------------------------------------------------


class SectionOption(click.Option):
    """An option that stands under a heading of its own in the help."""

    def __init__(self, *args: Any, section: str = "", **kwargs: Any) -> None:
        self.section = section
        super().__init__(*args, **kwargs)


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    settings = ctx.ensure_object(Settings)
    name = str(param.name)
    if name == "metadata" and value:
        value = dict(_pair(item, "--metadata") for item in value)
    elif name == "target" and value:
        value = list(value)
    settings.give(name, value)
    return value


def _option(name: str) -> Callable[[_F], _F]:
    setting = SETTINGS[name]
    names = [setting.option, *([f"-{setting.short}"] if setting.short else [])]
    extra: dict[str, Any] = {"help": setting.help}
    if setting.kind == "flag":
        names[0] = f"{setting.option}/--no{setting.option[1:]}"
        extra["default"] = None
    elif setting.kind in ("list", "pairs"):
        extra["multiple"] = True
    elif setting.kind == "duration":
        extra["type"] = DurationType()
    elif setting.kind == "path":
        extra["shell_complete"] = complete_files
    if setting.metavar:
        extra["metavar"] = setting.metavar
    return _kept(*names, section=setting.section, **extra)


def _kept(*names: str, section: str, **extra: Any) -> Callable[[_F], _F]:
    return click.option(
        *names, cls=SectionOption, section=section, expose_value=False, callback=_keep, **extra
    )


def complete_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
    """Names of files, for a shell, which knows them itself: the `shell_complete` of arguments that are."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _profiles(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of profiles, for a shell."""
    settings = Settings()
    settings.give("config", ctx.params.get("config"))
    try:
        return [name for name in settings.file.profiles if name.startswith(incomplete)]
    except CommandError:
        return []


def _all(*options: Callable[[Any], Any]) -> Callable[[_F], _F]:
    def decorate(function: _F) -> _F:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


#: Options for a command that reaches servers.
connection_options = _all(
    *(_option(name) for name, setting in SETTINGS.items() if setting.section == "Connection"),
    _kept(
        "--config",
        section="Connection",
        metavar="FILE",
        help="Config file to read.",
        shell_complete=complete_files,
    ),
    _kept(
        "--profile",
        section="Connection",
        metavar="NAME",
        help="Profile of the config file.",
        shell_complete=_profiles,
    ),
)

#: Options for a command about one model.
model_options = _all(
    _option("model"),
    _option("signature"),
    _kept("--version", section="Model", type=int, metavar="NUMBER", help="Version.  [the newest available]"),
    _kept("--label", section="Model", metavar="LABEL", help="Label of the version."),
)

#: Options for a command that answers.
output_options = _all(
    _kept("--json", section="Output", is_flag=True, default=None, help="Write JSON, for programs."),
    _option("color"),
    _kept(
        "--traceback",
        section="Output",
        is_flag=True,
        default=None,
        help="Show where an error comes from.",
    ),
)


class _Help:
    """Help with sections and examples, for commands and groups alike."""

    examples: str
    params: list[click.Parameter]

    def _write_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        command: Any = self
        for param in command.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                title = getattr(param, "section", "")
                sections.setdefault(f"{title} options" if title else "Options", []).append(record)
        for title in sorted(sections, key=lambda name: name != "Options"):
            with formatter.section(title):
                formatter.write_dl(sections[title])

    def _write_examples(self, formatter: click.HelpFormatter) -> None:
        if self.examples:
            with formatter.section("Examples"):
                for line in self.examples.splitlines():
                    formatter.write(f"{'':{formatter.current_indent}}{line}".rstrip() + "\n")


class Command(_Help, click.Command):
    """A command whose help ends with examples.

    Args:
        *args: see `click.Command`.
        examples: command lines, one or more, as they are typed.
        **kwargs: see `click.Command`.
    """

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        self.examples = inspect.cleandoc(examples)
        super().__init__(*args, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in sections."""
        self._write_options(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        self._write_examples(formatter)


class Group(_Help, click.Group):
    """Commands under one name; `Command`s by default.

    Args:
        *args: see `click.Group`.
        examples: command lines, one or more, as they are typed.
        **kwargs: see `click.Group`.
    """

    command_class = Command

    def __init__(self, *args: Any, examples: str = "", **kwargs: Any) -> None:
        self.examples = inspect.cleandoc(examples)
        super().__init__(*args, **kwargs)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, in sections, and the commands."""
        self._write_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        self._write_examples(formatter)


def confirm(question: str) -> bool:
    """Ask somebody at a terminal.

    Raises:
        CommandError: nobody is there to ask.
    """
    if not sys.stdin.isatty():
        raise CommandError(
            "there is no terminal to ask for a confirmation", ExitCode.USAGE, advice="say --yes, or --dry-run"
        )
    return click.confirm(question, default=False, err=True)
