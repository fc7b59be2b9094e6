"""Every example runs, and does what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.tensorflow
def test_quickstart() -> None:
    """Accuracy is that of a trained model, no call is lost in the roll-out, both versions answer."""
    pytest.importorskip("sklearn", reason="needs scikit-learn (the examples extra)")
    out = run_example("quickstart.py")
    accuracies = [float(percent) for percent in re.findall(r"never saw: ([\d.]+)%", out)]
    assert len(accuracies) == 2
    assert min(accuracies) > 94
    story = re.search(
        r"(\d+) calls in the meantime, 0 lost: (\d+) answered by version 1, (\d+) answered by v", out
    )
    assert story is not None, out
    total, first, second = map(int, story.groups())
    assert total == first + second
    assert min(first, second) > 0
    assert "version 2 AVAILABLE, version 1 END" in out
    assert "TensorFlow was imported in this process: False" in out
    assert len(re.findall(r"1797 images, one call each, all at once: [\d,]+ calls/s", out)) == 2
