"""The repository's demo runs by one command, ends by itself, and tells the story that it promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("fsspec", "grpc_health", "yaml"):
    pytest.importorskip(package, reason="needs the extra `repository`")

DEMO = Path(__file__).parents[2] / "examples" / "repository" / "demo.py"


@pytest.mark.nightly  # its short version, without TensorFlow, is test_repository_service.py's first story
@pytest.mark.tensorflow
def test_the_demo(tmp_path: Path) -> None:
    """1 -> 2 -> 4 -> 2 with no call lost; 3 answers wrongly and nobody but its probe ever asks it."""
    done = subprocess.run(
        [sys.executable, str(DEMO)],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert re.findall(r"client: version (\d) answers", out)[-1] == "2", out
    order = list(dict.fromkeys(re.findall(r"client: version (\d) answers", out)))
    assert order == ["1", "2", "4"], out
    assert re.search(r"service: quarantined double 3", out), out
    story = re.search(
        r"(\d+) calls, 0 failed: (\d+) by version 1, (\d+) by version 2, (\d+) by version 4\n", out
    )
    assert story is not None, out
    assert int(story[1]) == sum(map(int, story.groups()[1:]))
    assert "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == [], "it cleans up"
