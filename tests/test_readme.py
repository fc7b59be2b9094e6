"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aioserving import write_config
from aioserving.testing import ModelServer

from .models import row_sums

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_blocks() -> None:
    """The pattern finds them: asynchronous, blocking, testing."""
    assert len(BLOCKS) >= 3


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block: str, tmp_path: Path) -> None:
    """Each block runs by itself against a server with the models and files that it names."""
    write_config(
        tmp_path / "models.config",
        [{"name": "digits", "base_path": "/callable/digits", "model_version_policy": {"specific": [1]}}],
    )
    np.save(tmp_path / "rows.npy", np.ones((600, 784), np.float32))
    models = {"digits": {1: row_sums(), 2: row_sums()}, "extra": {1: row_sums()}}
    with ModelServer(models, file_system_poll_wait_seconds=0.1) as server:
        code = block.replace("127.0.0.1:8500", server.target).replace("/models/", "/callable/")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr


def test_files_that_it_names_exist() -> None:
    """No link and no command points at nothing."""
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#h][^)]*)\)", page.read_text()):
            assert (page.parent / link.replace("\\", "")).exists(), f"{page.name}: {link}"
    for script in re.findall(r"python (\S+\.py)", README):
        assert (ROOT / script).exists(), script


def test_the_commands_that_it_shows_can_be_read() -> None:
    """Every `aioserving` command line has a command and options that there are."""
    click = pytest.importorskip("click", reason="needs the extra `cli`")
    pytest.importorskip("rich", reason="needs the extra `cli`")
    from aioserving.cli.group import root

    lines = re.findall(r"^aioserving (.*?)(?:\s#.*)?$", README, re.MULTILINE)
    assert len(lines) >= 7
    for line in lines:
        name, *arguments = shlex.split(line)
        command = root.get_command(click.Context(root), name)
        assert command is not None, line
        command.make_context(name, arguments, resilient_parsing=False)


def test_the_methods_that_it_lists_exist() -> None:
    """The table of methods is the clients' own."""
    from aioserving import AsyncClient, Client

    for kind in (AsyncClient, Client):
        methods = {name for name in vars(kind) if not name.startswith("_")}
        listed = set(re.findall(r"client\.(\w+)", README)) - {"py"}
        assert methods - {"aclose", "close"} <= listed
        assert listed <= methods | {"aclose", "close"}


def test_the_test_command_is_what_ci_runs() -> None:
    """CI installs the same extra and runs the same runner as the README's one command."""
    (command,) = re.findall(r"^(python3 -m venv .*-m pytest)$", README, re.MULTILINE)
    words = shlex.split(command)
    script = (ROOT / ".ci" / "run").read_text()
    assert ".[dev]" in words
    assert "install -e '.[dev]'" in script
    assert re.search(r'"\$full/python" -m pytest -p no:cacheprovider$', script, re.MULTILINE)
