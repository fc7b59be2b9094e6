"""The program: how it finds commands, how it ends, and whether its help and its documentation are true."""

from __future__ import annotations

import contextlib
import logging
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("rich", reason="needs the extra `cli`")

import click

from aioserving.cli.common import SETTINGS
from aioserving.cli.failures import ExitCode
from aioserving.cli.group import COMMANDS, Root, root
from aioserving.testing import ServerProcess

from .conftest import Ran, Run
from .models_config import model, write
from .terminal import on_terminal

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "command-line.md"
MODULES = "import sys; print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"


def commands() -> Iterator[tuple[list[str], click.Command]]:
    """Every command with the words that name it, those of groups too."""
    context = click.Context(root, info_name="aioserving")

    def walk(words: list[str], command: click.Command) -> Iterator[tuple[list[str], click.Command]]:
        yield words, command
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                yield from walk([*words, name], inner)

    for name in COMMANDS:
        with contextlib.suppress(ImportError):  # which a test of its own finds
            command = root.get_command(context, name)
            assert command is not None
            yield from walk([name], command)


ALL = list(commands())


def help_of(words: list[str], command: click.Command) -> str:
    context = None
    for word in ["aioserving", *words[:-1]]:
        context = click.Context(click.Group(word), info_name=word, parent=context)
    return command.get_help(
        click.Context(command, info_name=words[-1], parent=context, max_content_width=500)
    )


# -- finding commands ---------------------------------------------------------------------------------------


def test_help_and_completion_load_nothing_heavy(environment: dict[str, str]) -> None:
    """`--help`, `--version` and the Tab key import neither numpy, gRPC, protobuf nor rich."""
    code = (
        f"import sys, atexit; atexit.register(lambda: exec({MODULES!r})); "
        "from aioserving.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    completing = {"_AIOSERVING_COMPLETE": "bash_complete", "COMP_WORDS": "aioserving re", "COMP_CWORD": "1"}
    for arguments, more in ((["--help"], {}), (["--version"], {}), ([], completing)):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
            env={**environment, **more},
            check=True,
        )
        loaded = set(done.stderr.split())
        assert "click" in loaded
        assert not loaded & {"numpy", "grpc", "google", "rich", "anyio", "asyncio", "tensorflow", "pyarrow"}
        assert done.stdout


def test_a_command_loads_only_its_own_module(environment: dict[str, str]) -> None:
    """Using one command does not import the others."""
    code = (
        "import sys; from aioserving.cli import main; main(['completion', 'fish']); "
        "print(sorted(m for m in sys.modules if m.startswith('aioserving.cli.')), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert "aioserving.cli.completion" in done.stderr
    assert "aioserving.cli.predict" not in done.stderr


def test_every_command_has_one_line_in_the_table(run: Run) -> None:
    """The help lists all of them; they load, are called so, and say what they do."""
    text = run("--help").out
    assert {words[0] for words, _ in ALL} == COMMANDS.keys()
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line.split()[0])}", text, re.MULTILINE)
    for words, command in ALL:
        assert command.name == words[-1]
        assert command.help
        assert command.help.strip().splitlines()[0].endswith((".", ":"))


@pytest.mark.parametrize(("words", "command"), ALL, ids=[" ".join(words) for words, _ in ALL])
def test_every_command_has_examples_that_parse(words: list[str], command: click.Command) -> None:
    """An example in the help is a command line that the command takes, with options that exist."""
    examples = list(command_lines(help_of(words, command).partition("Examples:")[2].partition("\n\n")[0]))
    own = [line for line in examples if line[1 : len(words) + 1] == words]
    assert own, f"no example of {' '.join(words)}"
    for line in examples:
        parse(line)


def command_lines(text: str) -> Iterator[list[str]]:
    """The calls of `aioserving` in lines of a shell."""
    for typed in text.splitlines():
        line = re.sub(r'"?\$\(([^)]*)\)"?', r" ; \1 ; ", typed)  # what is put into a command line is one, too
        found = shlex.shlex(line.strip(), posix=True, punctuation_chars="|&;<>()")
        found.whitespace_split = True
        call: list[str] = []
        for piece in [*found, "|"]:
            word = re.sub(r"^\$?\(+", "", piece)
            if set(word) <= set("|&;<>()"):
                if call[:1] == ["aioserving"]:
                    yield call
                call = []
            else:
                call.append(word)


def parse(line: list[str]) -> None:
    """Make the contexts that a command line would run in, without running it."""
    context = root.make_context("aioserving", line[1:])
    command: Any = root
    arguments = line[1:]
    while isinstance(command, click.Group):
        name, found, arguments = command.resolve_command(context, list(arguments))
        assert found is not None
        if {"--help", "-h"} & set(arguments):
            return
        context = found.make_context(str(name), list(arguments), parent=context)
        command = found
        # click 8.1 has it without the underscore, and later versions warn of that.
        first = "_protected_args" if hasattr(context, "_protected_args") else "protected_args"
        arguments = [*getattr(context, first), *context.args]


def test_a_misspelt_command_or_option_is_told_with_the_nearest(run: Run) -> None:
    """One line, exit code 2, and what was probably meant."""
    found = run("predct")
    assert found.code == ExitCode.USAGE
    assert "did you mean 'predict'?" in found.err
    assert len(found.err.splitlines()) == 1
    found = run("predict", "--sede", "1")
    assert found.code == ExitCode.USAGE
    assert "--seed" in found.err
    found = run("--target", "x", "status")
    assert "options of a command stand after its name" in found.err


def test_a_command_is_a_line_and_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name of the module has `_` for `-`; what it imports and lacks is told with exit code 12."""
    package = tmp_path / "some_commands"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "two_words.py").write_text(
        "import click\n@click.command()\ndef command(): click.echo('hello')\n"
    )
    (package / "lacks.py").write_text("import a_package_that_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    own = Root(name="x", table={"two-words": "Hello.", "lacks": "No."}, package="some_commands")
    assert own.run(["two-words"]) == 0
    assert own.run(["lacks"]) == ExitCode.MISSING_EXTRA
    assert logging.getLogger("aioserving").level == logging.NOTSET, "quiet only while the command runs"


def test_without_click_one_line_names_the_extra(environment: dict[str, str]) -> None:
    """On a machine without the extra there is no traceback."""
    code = (
        "import sys, importlib.util as u; found = u.find_spec; "
        "u.find_spec = lambda name, *more: None if name in ('click', 'rich') else found(name, *more); "
        "from aioserving.cli import main; sys.exit(main(['status']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment, check=False
    )
    assert done.returncode == ExitCode.MISSING_EXTRA
    assert done.stderr == "aioserving: the command line needs click and rich: pip install 'aioserving[cli]'\n"


# -- ending -------------------------------------------------------------------------------------------------


def test_exit_codes_of_processes(spawn: Callable[..., Ran], server: ServerProcess) -> None:
    """What a shell sees: yes, no, wrong usage, nobody there; errors are one line on standard error."""
    assert spawn("status", "digits", "-t", server.target).code == ExitCode.OK
    assert spawn("status", "nobody", "-t", server.target).code == ExitCode.NEGATIVE
    for arguments, code in (
        (("status",), ExitCode.USAGE),
        (("status", "digits", "-t", "127.0.0.1:1"), ExitCode.UNREACHABLE),
        (("metadata", "nobody", "-t", server.target), ExitCode.NOT_FOUND),
        (("predict", "-m", "many", "a=1", "-t", server.target), ExitCode.INVALID),
        (("predict", "-m", "many", "@no.npz", "-t", server.target), ExitCode.FILE),
    ):
        found = spawn(*arguments)
        assert found.code == code, found
        assert found.out == ""
        assert re.fullmatch(r"aioserving: error: [^\n]+\n", found.err), found.err


def test_traceback_on_request(run: Run) -> None:
    """By option or by variable; otherwise there is none."""
    arguments = ("status", "x", "-t", "127.0.0.1:1")
    assert "Traceback" not in run(*arguments).err
    assert "Traceback" in run(*arguments, "--traceback").err
    assert "Traceback" in run(*arguments, env={"AIOSERVING_TRACEBACK": "1"}).err


def test_errors_for_programs(run: Run) -> None:
    """With --json, standard error is one JSON object."""
    import json

    found = run("status", "x", "-t", "127.0.0.1:1", "--json")
    assert json.loads(found.err)["kind"] == "unreachable"
    assert found.out == ""


def test_a_bug_is_told_as_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody foresaw is one line with exit code 70."""
    monkeypatch.setattr("aioserving.cli.common.Settings.client", lambda self: 1 / 0)
    found = run("metadata", "x", "-t", "a:1")
    assert found.code == ExitCode.INTERNAL
    assert "unexpected ZeroDivisionError" in found.err


def test_ctrl_c(environment: dict[str, str], server: ServerProcess) -> None:
    """A command that waits ends at once, with 130 and without a traceback."""
    waiting = subprocess.Popen(
        [sys.executable, "-m", "aioserving", "wait", "nobody", "-t", server.target, "--timeout", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    with waiting:
        assert waiting.stderr is not None
        line = ""
        while "not known to the server" not in line:
            line = waiting.stderr.readline()
            assert line, "it ended by itself"
        waiting.send_signal(signal.SIGINT)
        out, err = waiting.communicate(timeout=30)
    assert waiting.returncode == ExitCode.INTERRUPTED
    assert out == ""
    assert err.splitlines() == ["aioserving: interrupted"]


def test_a_pipe_that_is_closed_early(environment: dict[str, str], server: ServerProcess) -> None:
    """`| head` gets its lines; the rest is not written, and nothing is said about it."""
    predict = "-m aioserving predict -m many --zeros --batch 100000 --rows 0"
    line = f"{sys.executable} {predict} -t {server.target} | head -n 2; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, timeout=60, env=environment, check=True
    )
    assert done.stdout.splitlines()[1:] == ["  ROW  DIFFERENCE  SUM", str(int(ExitCode.PIPE))]
    assert done.stderr == ""


def test_on_a_terminal_there_are_colours_and_lines(
    environment: dict[str, str], server: ServerProcess
) -> None:
    """The same command draws a table on a terminal and aligned text in a pipe; NO_COLOR takes the colours."""
    arguments = ("status", "digits", "-t", server.target)
    drawn = on_terminal(environment, *arguments)
    assert "\x1b[32mAVAILABLE" in drawn
    assert "─" in drawn
    plain = on_terminal({**environment, "NO_COLOR": "1"}, *arguments)
    assert "AVAILABLE" in plain
    assert "\x1b[32m" not in plain
    piped = subprocess.run(
        [sys.executable, "-m", "aioserving", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=True,
    ).stdout
    assert "\x1b" not in piped
    assert [line.split()[:3] for line in piped.splitlines()] == [
        ["MODEL", "VERSION", "STATE"],
        ["digits", "2", "AVAILABLE"],
        ["digits", "1", "AVAILABLE"],
    ]


def test_at_a_terminal_there_is_somebody_to_ask(
    environment: dict[str, str], server: ServerProcess, home: Path
) -> None:
    """A reload that is not wanted after all changes nothing; waiting is a line that changes."""
    file = write("models.config", model("digits", 1))
    arguments = ("reload", file, "-t", server.target)
    written = on_terminal(environment, *arguments, question="Reload? [y/N]", answer="n\n", code=1)
    assert "nothing was changed" in written
    assert "\x1b[31m- digits: unloads version 2" in written
    waited = on_terminal(environment, "wait", "digits", "many", "-t", server.target)
    assert "\x1b[32mdigits: version 2 is available" in waited


# -- documentation ------------------------------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """The table under a heading of the documentation, without its head."""
    text = DOCUMENTATION.read_text(encoding="utf-8").partition(f"## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_documented_exit_codes_are_the_codes() -> None:
    """The table in docs/command-line.md has every code and its meaning, word for word."""
    assert rows_of("Exit codes") == [[str(int(code)), code.meaning] for code in ExitCode]


def test_the_documented_variables_are_the_variables() -> None:
    """The table has every setting with option, variable and key; a second one, what else is read."""
    rows = rows_of("Settings")
    assert [row[:3] for row in rows] == [
        [setting.option, setting.variable, setting.name] for setting in SETTINGS.values()
    ]
    others = {row[0] for row in rows_of("Other variables")}
    source = "".join(
        path.read_text(encoding="utf-8")
        for name in ("common", "group", "output", "config_file")
        if (path := DOCUMENTATION.parents[1] / "aioserving" / "cli" / f"{name}.py")
    )
    read = set(re.findall(r'environment?\.get\("(\w+)"|environ\.get\("(\w+)"', source))
    found = {name for pair in read for name in pair if name} | {"AIOSERVING_TRACEBACK"}
    assert others >= found - {"TERM"}
    assert all(name in source for name in others - {"SHELL"})


def test_the_documentation_names_every_command_and_its_lines_parse() -> None:
    """Every command is told of, and what stands in the shell blocks is taken."""
    text = DOCUMENTATION.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in command_lines(block)]
    assert {line[1] for line in lines if len(line) > 1} >= set(COMMANDS)
    for line in lines:
        parse(line)
