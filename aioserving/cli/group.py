"""The commands by name, each loaded when it is used; and how the program ends.

`aioserving --help`, and shell completion, know the commands from the table `COMMANDS` alone. A further
command is a line in it, and a module of its name with a click command called `command`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import click

from aioserving.cli.common import Group
from aioserving.cli.failures import ExitCode, describe

__all__ = ["COMMANDS", "Root", "root"]

PROGRAM: Final = "aioserving"

#: Name of a command -> what it does. Its module has the same name, with ``_`` for ``-``.
COMMANDS: Final[Mapping[str, str]] = {
    "status": "Which versions of models servers have, and how each is.",
    "metadata": "What a model takes and gives: its signatures.",
    "predict": "Run a model.",
    "classify": "Classify examples.",
    "regress": "Find a number for each example.",
    "score": "Score files, each row once: Parquet, CSV, JSON lines, arrays, TFRecords.",
    "wait": "Wait until models are available.",
    "reload": "Replace the models that servers serve.",
    "labels": "Show and move version labels.",
    "config": "Show the settings in force; check and compare model_config_files.",
    "bench": "Load a server and measure it.",
    "doctor": "Find out where the way to a server ends, and what to do about it.",
    "stubs": "Write a typed Python module for served models.",
    "repository": "Fetch versions from a blob store, and roll them out to servers by policy.",
    "serve": "Run the testing server.",
    "completion": "Print a script that makes a shell complete commands.",
}


class Root(Group):
    """The program: `run` it.

    Args:
        *args: see `click.Group`.
        table: what commands there are, with a line about each.
        package: where their modules are.
        **kwargs: see `click.Group`.
    """

    def __init__(
        self,
        *args: Any,
        table: Mapping[str, str] = COMMANDS,
        package: str = "aioserving.cli",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._table = table
        self._package = package

    # -- finding commands -----------------------------------------------------------------------------------

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the commands, in the order of the table."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, from its module."""
        if cmd_name not in self._table:
            return None
        module = importlib.import_module(f"{self._package}.{cmd_name.replace('-', '_')}")
        found: click.Command = module.command
        found.name = cmd_name
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` names, or a usage error that names the nearest."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], self._table, n=1)
            if not near or "Did you mean" in error.message:
                raise
            text = f"{error.message.rstrip('.')}; did you mean {near[0]!r}?"
            raise click.UsageError(text, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table, without loading what is in it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self._table.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Names of commands for a shell, without loading them."""
        from click.shell_completion import CompletionItem

        commands = [
            CompletionItem(name, help=text)
            for name, text in self._table.items()
            if name.startswith(incomplete)
        ]
        return commands + (
            click.Command.shell_complete(self, ctx, incomplete) if incomplete[:1] == "-" else []
        )

    # -- running --------------------------------------------------------------------------------------------

    def main(self, args: Sequence[str] | None = None, *_: Any, **__: Any) -> NoReturn:
        """`run` the program and exit, as click's own tools expect it."""
        sys.exit(self.run(sys.argv[1:] if args is None else list(args)))

    def run(self, arguments: Sequence[str]) -> int:
        """Run a command line; what goes wrong is one line on standard error.

        Returns:
            The exit code.
        """
        # gRPC's core has its own opinion of what is worth a line on standard error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # What the library logs on the way to an error is in the error; commands that want it say so.
        logger = logging.getLogger("aioserving")
        level = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            self._main_shell_completion({}, PROGRAM)
            code = self._run(arguments)
            sys.stdout.flush()
        except BrokenPipeError:
            code = ExitCode.PIPE
        except (KeyboardInterrupt, click.Abort):
            _tell("interrupted", ())
            code = ExitCode.INTERRUPTED
        finally:
            logger.setLevel(level)  # whoever runs a command line in a process of their own goes on as before
        if code == ExitCode.PIPE:
            _let_go()
        with contextlib.suppress(BrokenPipeError):
            sys.stderr.flush()
        return int(code)

    def _run(self, arguments: Sequence[str]) -> int:
        try:
            with self.make_context(PROGRAM, list(arguments)) as ctx:
                self.invoke(ctx)
            return ExitCode.OK
        except click.exceptions.Exit as error:
            return error.exit_code
        except (BrokenPipeError, click.Abort):
            raise
        except click.NoSuchOption as error:
            if error.ctx is None or error.ctx.parent is not None:
                return _report(error, arguments)
            text = f"{error.format_message().rstrip('.')}; options of a command stand after its name"
            return _report(click.UsageError(text, error.ctx), arguments)
        except Exception as error:
            return _report(error, arguments)


def _report(error: Exception, arguments: Sequence[str]) -> int:
    """Tell what went wrong; returns the exit code."""
    failure = describe(error)
    if "--traceback" in arguments or os.environ.get("AIOSERVING_TRACEBACK", "") not in ("", "0"):
        sys.stderr.write("".join(traceback.format_exception(error)))
    if "--json" in arguments:
        import json

        sys.stderr.write(json.dumps(failure.to_dict(), ensure_ascii=False) + "\n")
    else:
        _tell(f"error: {failure}", arguments)
    return failure.code


def _tell(text: str, arguments: Sequence[str]) -> None:
    from aioserving.cli.output import Output

    color = False if "--no-color" in arguments else True if "--color" in arguments else None
    Output(color=color).note(f"{PROGRAM}: {text}", style="red")


def _let_go() -> None:
    """Write no more to a pipe that nobody reads; else the interpreter would complain at its end."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, sys.stdout.fileno())
    except (OSError, ValueError):  # there is no file beneath
        pass
    finally:
        os.close(devnull)


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from aioserving import __version__

        sys.stdout.write(f"{PROGRAM} {__version__}\n")
        ctx.exit()


root = Root(
    name=PROGRAM,
    help="Ask, load and manage TensorFlow Serving from a command line.\n\n"
    "Options stand after the command. 'aioserving COMMAND --help' tells about each, with examples.",
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_version,
            help="Show the version and exit.",
        )
    ],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    examples="""
        aioserving status digits --target 127.0.0.1:8500
        aioserving predict -t 127.0.0.1:8500 -m digits images=@images.npy
        aioserving config show
    """,
)
