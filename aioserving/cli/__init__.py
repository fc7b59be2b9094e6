"""The `aioserving` command: a model server at the end of a command line.

    aioserving status digits --target 127.0.0.1:8500

Finding, asking and reloading servers is the library's work; this package turns options, environment
variables and a config file into its arguments, its results into tables and JSON, its errors into one line and
an exit code.

    group         the commands by name, loaded when they are used; how the program ends
    common        options that commands share, and where their values come from
    config_file   the TOML file with profiles
    failures      exit codes; what an error means, and what to do next
    output        tables, plain text, JSON; colours on terminals only
    arrays        inputs of models from text, files and signatures; results to files
    rows          examples from JSON, JSON lines and CSV
    everything else   one command each, called `command`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

#: What `main` needs beside the client; `failures.ExitCode.MISSING_EXTRA` says it in numbers.
_EXTRA = ("click", "rich")
_MISSING_EXTRA = 12
_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the console script of the package.

    Args:
        arguments: those after the program's name; `sys.argv`'s if None.

    Returns:
        The exit code, one of `failures.ExitCode`.
    """
    import importlib.util

    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        sys.stderr.write(
            f"aioserving: the command line needs {' and '.join(missing)}: pip install 'aioserving[cli]'\n"
        )
        return _MISSING_EXTRA
    try:
        from aioserving.cli.group import root

        return root.run(sys.argv[1:] if arguments is None else list(arguments))
    except KeyboardInterrupt:  # while modules were being loaded
        return _INTERRUPTED
