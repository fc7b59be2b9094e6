"""Every example runs, and does what it says."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
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


@pytest.mark.timeout(300)
@pytest.mark.tensorflow
def test_web_app(tmp_path: Path) -> None:
    """One command serves the trained model over HTTP, the line it prints works, and Ctrl-C ends it all."""
    for needed in ("sklearn", "starlette", "uvicorn"):
        pytest.importorskip(needed, reason=f"needs {needed} (the examples extra)")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as unused:
        port = unused.getsockname()[1]
    with tempfile.TemporaryFile("w+") as file:
        process = subprocess.Popen(
            [sys.executable, str(EXAMPLES / "web_app.py"), str(port)],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches all processes of a terminal
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "TMPDIR": str(tmp_path)},
        )

        def said() -> str:
            return os.pread(file.fileno(), 1_000_000, 0).decode()

        try:
            end = time.monotonic() + 240
            while "Uvicorn running" not in said():
                assert process.poll() is None, said()
                assert time.monotonic() < end, said()
                time.sleep(0.1)
            [line] = [line for line in said().splitlines() if line.startswith("curl ")]
            _, url, option, body = shlex.split(line)
            assert option == "-d"
            request = urllib.request.Request(url, data=body.encode(), headers={"x-request-timeout": "10"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                found = json.load(answer)
            model_server = re.search(r"model server: 127\.0\.0\.1:(\d+)", said())
            assert model_server is not None
            socket.create_connection(("127.0.0.1", int(model_server[1]))).close()
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(60) == 0, said()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        out = said()
    assert (found["digit"], found["version"]) == (0, 1)
    assert found["scores"][0] > 0.5
    assert "Application shutdown complete" in out
    assert "Traceback" not in out, out
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(model_server[1])))
    assert list(tmp_path.iterdir()) == []
