"""`aioserving completion`: what makes a shell complete commands and options."""

from __future__ import annotations

import os
import sys

import click

from aioserving.cli.common import Command
from aioserving.cli.failures import CommandError, ExitCode

__all__ = ["command"]

_SHELLS = ("bash", "zsh", "fish")


@click.command(
    cls=Command,
    examples="""
        eval "$(aioserving completion bash)"
        aioserving completion bash > ~/.local/share/bash-completion/completions/aioserving
        aioserving completion zsh > ~/.zfunc/_aioserving
        aioserving completion fish > ~/.config/fish/completions/aioserving.fish
    """,
)
@click.argument("shell", required=False, type=click.Choice(_SHELLS))
def command(shell: str | None) -> None:
    """Print the script that makes a shell complete commands, options and profiles.

    Without a name it is for the shell that SHELL names. Bash has to be 4.4 or newer.
    """
    from click.shell_completion import get_completion_class

    from aioserving.cli.group import PROGRAM, root

    name = shell or os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(name) if name in _SHELLS else None
    if kind is None:
        raise CommandError(
            f"for which shell? {name!r} is none of {', '.join(_SHELLS)}" if name else "for which shell?",
            ExitCode.USAGE,
        )
    sys.stdout.write(kind(root, {}, PROGRAM, f"_{PROGRAM.upper()}_COMPLETE").source())
