"""`aioserving serve`: the testing server, with the flags of the real one."""

from __future__ import annotations

import logging
import os
import sys

import click

from aioserving.cli.common import Command
from aioserving.cli.failures import ExitCode

__all__ = ["command"]


class _ServeCommand(Command):
    """Help that has all flags of the server, too."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, and the flags as the server itself tells them."""
        from aioserving.testing.options import usage

        super().format_epilog(ctx, formatter)
        lines = usage().splitlines()[1:]
        with formatter.section("Flags"):
            formatter.write("\n".join(lines) + "\n")


@click.command(
    cls=_ServeCommand,
    context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]},
    examples="""
        aioserving serve --port=8500 --model_name=digits --model_base_path=/models/digits
        aioserving serve --model_config_file=models.config --rest_api_port=8501
        aioserving serve --testing_callable=half=my_package.models:half_plus_two --testing_host=127.0.0.1
    """,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED, metavar="[--FLAG=VALUE]...")
def command(flags: tuple[str, ...]) -> None:
    """Run the testing server, which answers as TensorFlow Serving does.

    It takes the real server's flags, and runs SavedModels (with TensorFlow installed) or Python callables. It
    is for tests and for trying things out; it is no server for production.

    Ctrl-C lets calls in progress end, a second one does not. The exit code is the server's own: 255 if it
    could not start.
    """
    from aioserving.testing.__main__ import main

    logging.getLogger("aioserving").setLevel(logging.NOTSET)
    code = main(flags)
    sys.stdout.flush()
    sys.stderr.flush()
    if code == ExitCode.USAGE:
        raise click.exceptions.Exit(code)
    os._exit(code)  # an ordinary exit would wait for a model that does not return
