"""aioserving.testing.process and __main__: the server as a process, with its whole command line."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil  # type: ignore[import-untyped]
import pytest

from aioserving.testing import ServerProcess
from aioserving.testing import __main__ as command
from aioserving.testing.process import ServerProcessError
from tests.testing.servables import (
    PREDICT,
    RELOAD,
    STATUS,
    predict_request,
    predicted,
    predicted_version,
    reload_request,
    status_request,
    statuses,
)

ROOT = Path(__file__).parents[2]
#: Lets the process find the models of these tests, whatever folder pytest was started in.
ENV = {"PYTHONPATH": str(ROOT)}
CALLABLES = {"m": "tests.testing.servables:twice"}


@pytest.fixture
def process() -> Iterator[ServerProcess]:
    """A running process with one model."""
    with ServerProcess(callables=CALLABLES, env=ENV) as process:
        yield process


def call(target: str, method: str, request: bytes, timeout: float = 20) -> bytes:
    """One call over a connection of its own."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(target, options) as channel:
        stub: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        return stub(request, timeout=timeout)


def failure(target: str, timeout: float) -> str:
    """Name of the code that a Predict ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(target, PREDICT, predict_request("m"), timeout)
    name: str = caught.value.code().name
    return name


def run(*flags: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    return subprocess.run(
        [sys.executable, "-m", "aioserving.testing", *flags],
        env={**os.environ, **ENV},
        timeout=timeout,
        capture_output=True,
        text=True,
        check=False,
    )


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends within so many seconds."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_serves_until_it_is_left() -> None:
    """Within ``with``, the process serves; after it, it is gone."""
    with ServerProcess(callables=CALLABLES, env=ENV) as process:
        assert process.running
        assert process.target == f"127.0.0.1:{process.port}"
        assert predicted(call(process.target, PREDICT, predict_request("m"))) == [2.0, 4.0]
        assert repr(process) == f"<ServerProcess {process.target} pid {process.pid}>"
        pid = process.pid
    assert pid is not None
    assert gone(pid, 0)
    assert not process.running
    assert repr(process) == f"<ServerProcess {process.target} not running>"
    process.close()
    assert f"Running gRPC ModelServer at 127.0.0.1:{process.port} ..." in process.stderr


@pytest.mark.anyio
async def test_async_use() -> None:
    """The async context manager and methods do not block the event loop."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticking = asyncio.ensure_future(tick())
    async with ServerProcess(callables=CALLABLES, env=ENV) as process:
        first = process.pid
        await process.arestart()
        assert process.pid != first
        assert await process.aterminate() == 0
        await process.astart()
        assert process.running
    ticking.cancel()
    assert ticks > 10


def test_sigterm_drains() -> None:
    """SIGTERM lets the call in progress end well, and exits with 0."""
    with ServerProcess(callables={"m": "tests.testing.servables:slow"}, env=ENV) as process:
        answers: list[bytes] = []
        caller = threading.Thread(
            target=lambda: answers.append(call(process.target, PREDICT, predict_request("m")))
        )
        caller.start()
        time.sleep(0.25)
        assert process.terminate() == 0
        caller.join(10)
        assert predicted(answers[0]) == [1.0, 2.0]
        assert "stopping, with 1 calls in progress" in process.stderr
        with pytest.raises(ServerProcessError, match="is not running"):
            process.terminate()


def test_sigterm_with_a_model_that_does_not_return() -> None:
    """After the time to drain, the process ends, whatever its models do."""
    callables = {"m": "tests.testing.servables:endless"}
    with ServerProcess(callables=callables, env=ENV, testing_drain_seconds=0.2) as process:
        assert failure(process.target, 0.3) == "DEADLINE_EXCEEDED"
        begun = time.monotonic()
        assert process.terminate() == 0
        assert time.monotonic() - begun < 20


def test_ctrl_c(process: ServerProcess) -> None:
    """SIGINT ends the process as SIGTERM does, without a traceback."""
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    assert gone(pid)
    assert "Traceback" not in process.stderr


def test_kill_and_restart_on_the_same_port(process: ServerProcess) -> None:
    """A killed server is gone at once, and a restart brings it back where clients look for it."""
    port, pid = process.port, process.pid
    process.kill()
    assert failure(f"127.0.0.1:{port}", 5) == "UNAVAILABLE"
    process.restart()
    assert process.port == port
    assert process.pid != pid
    assert predicted(call(process.target, PREDICT, predict_request("m"))) == [2.0, 4.0]
    with pytest.raises(ServerProcessError, match="is running already"):
        process.start()


def test_graceful_restart() -> None:
    """A restart with grace lets the call in progress end well; the port stays; a paused one comes back."""
    with ServerProcess(callables={"m": "tests.testing.servables:slow"}, env=ENV) as process:
        port = process.port
        answers: list[bytes] = []
        caller = threading.Thread(
            target=lambda: answers.append(call(process.target, PREDICT, predict_request("m")))
        )
        caller.start()
        time.sleep(0.25)
        process.restart(grace=20)
        caller.join(10)
        assert predicted(answers[0]) == [1.0, 2.0]
        assert process.port == port
        process.pause()
        process.restart()
        assert not process.paused
        assert predicted(call(process.target, PREDICT, predict_request("m"))) == [1.0, 2.0]
        process.kill()
        process.restart(grace=20)  # of one that is down: a start
        assert process.running


def test_pause_and_resume(process: ServerProcess) -> None:
    """A paused server takes connections and answers nothing; resumed, it goes on; paused, it can be ended."""
    process.pause()
    assert process.paused
    assert repr(process) == f"<ServerProcess {process.target} pid {process.pid} paused>"
    assert failure(process.target, 0.5) == "DEADLINE_EXCEEDED"
    process.resume()
    assert not process.paused
    assert predicted(call(process.target, PREDICT, predict_request("m"))) == [2.0, 4.0]
    process.pause()
    assert process.terminate() == 0
    assert not process.paused
    for action in (process.pause, process.resume):
        with pytest.raises(ServerProcessError, match="is not running"):
            action()


def test_process_that_does_not_start() -> None:
    """A failed start tells the exit code and what the process said, and leaves nothing."""
    server = ServerProcess(callables={"m": "tests.testing.servables:both_versions"}, env=ENV)
    with pytest.raises(ServerProcessError) as caught:
        server.start()
    message = str(caught.value)
    assert message.startswith("the server process ended with code 255\nits standard error:\n")
    assert (
        "Failed to start server. Error: UNKNOWN: 1 servable(s) did not become available: "
        "{{{name: m version: 3} due to error: DATA_LOSS: broken on purpose}, }"
    ) in message
    assert not server.running


def test_process_that_is_not_ready_in_time(tmp_path: Path) -> None:
    """A start that takes too long ends with the process killed."""
    server = ServerProcess(model_base_path=str(tmp_path / "gone"), start_timeout=1.5, env=ENV)
    with pytest.raises(ServerProcessError, match=r"was not ready after 1\.5 s") as caught:
        server.start()
    assert "Could not find base path" in str(caught.value)
    assert not server.running


def test_misspelt_flag() -> None:
    """A flag that nobody knows is refused before any process is started."""
    with pytest.raises(TypeError, match="near it: 'model_name'"):
        ServerProcess(model_nam="x")


def test_never_orphaned(tmp_path: Path) -> None:
    """A process whose parent is killed ends, too."""
    script = (
        "import os, signal, sys\n"
        "from aioserving.testing import ServerProcess\n"
        f"process = ServerProcess(callables={CALLABLES!r}).__enter__()\n"
        "print(process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    parent = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **ENV},
        timeout=60,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    assert gone(int(parent.stdout))


def test_forgotten_process() -> None:
    """A process that nobody holds any more is ended by the garbage collector."""
    process = ServerProcess(callables=CALLABLES, env=ENV)
    process.start()
    pid = process.pid
    assert pid is not None
    del process
    gc.collect()
    assert gone(pid, 5)


def test_configuration_file() -> None:
    """`config` becomes --model_config_file, which goes when the process goes."""
    entry = 'model_config_list { config { name: "n" base_path: "/callable/m" model_platform: "tensorflow" } }'
    with ServerProcess(callables=CALLABLES, config=entry, env=ENV) as process:
        for name in ("m", "n"):
            assert predicted(call(process.target, PREDICT, predict_request(name))) == [2.0, 4.0]
        call(process.target, RELOAD, reload_request(("m", "/callable/m")))
        [flag] = [flag for flag in process.arguments if flag.startswith("--model_config_file=")]
        path = Path(flag.partition("=")[2])
        assert path.exists()
    assert not path.exists()


def test_callables_of_every_kind() -> None:
    """--testing_callable takes a servable, a function that makes one, and a mapping of versions."""
    callables = {"one": "tests.testing.servables:twice", "made": "tests.testing.servables:slow"}
    with ServerProcess(callables=callables, env=ENV) as process:
        for name in callables:
            assert statuses(call(process.target, STATUS, status_request(name))) == [(1, "AVAILABLE", 0, "")]


@pytest.mark.tensorflow
def test_saved_model() -> None:
    """--model_name and --model_base_path serve a folder of SavedModels, TensorFlow staying over there."""
    folder = ROOT / "tests" / "golden" / "models" / "versions"
    with ServerProcess(model_name="v", model_base_path=str(folder)) as process:
        answer = call(process.target, PREDICT, predict_request("v"))
        assert (predicted(answer), predicted_version(answer)) == ([11.0, 12.0], 10)
        assert process.stderr.count(" I loaded ") == process.stderr.count(" I Running gRPC ModelServer ") == 1


def test_unix_socket_alone(tmp_path: Path) -> None:
    """Without a TCP port, the process is reached by its Unix socket."""
    with ServerProcess(
        callables=CALLABLES, env=ENV, port=None, grpc_socket_path=str(tmp_path / "s")
    ) as process:
        assert process.target == f"unix:{tmp_path / 's'}"
        assert predicted(call(process.target, PREDICT, predict_request("m"))) == [2.0, 4.0]


def test_port_file(tmp_path: Path) -> None:
    """--testing_pick_port takes a free port and --testing_port_file tells it, when the server is ready."""
    path = tmp_path / "port"
    server = subprocess.Popen(
        [
            *(sys.executable, "-m", "aioserving.testing", "--testing_pick_port"),
            *("--testing_host=127.0.0.1", f"--testing_port_file={path}"),
            "--testing_callable=m=tests.testing.servables:twice",
        ],
        env={**os.environ, **ENV},
    )
    try:
        for _ in range(600):
            if path.exists():
                break
            time.sleep(0.05)
        answer = call(f"127.0.0.1:{int(path.read_text())}", PREDICT, predict_request("m"))
        assert predicted(answer) == [2.0, 4.0]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0


def test_port_in_use() -> None:
    """A port that is taken ends the start with its number."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(
            f"--port={port}",
            "--testing_host=127.0.0.1",
            "--testing_callable=m=tests.testing.servables:twice",
        )
    assert done.returncode == 255
    assert f"Failed to start server. Error: cannot listen on 127.0.0.1:{port}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "text"),
    [
        (["--prot=1"], 2, "unknown flag --prot; the nearest is --port"),
        ([], 255, "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (["--model_config_file=/gone"], 255, "NOT_FOUND: /gone; No such file or directory"),
        (["--model_base_path=relative"], 255, "Expected model default to have an absolute path or URI"),
        (["--testing_callable=m"], 255, "--testing_callable is MODEL=PACKAGE.MODULE:ATTRIBUTE, got 'm'"),
        (["--testing_callable=m=nope:x"], 255, "--testing_callable=m=nope:x: No module named 'nope'"),
        (["--testing_callable=m=os:nope"], 255, "module 'os' has no attribute 'nope'"),
        (["--help"], 0, ""),
        (["--version"], 0, ""),
    ],
)
def test_command_line(
    flags: list[str], code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """A command line that cannot work ends with a code and one line saying why; help is no error."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert command.main(flags) == code
    output = capsys.readouterr()
    assert text in output.err
    assert bool(output.out) == (code == 0)


def test_ignored_flag_warns() -> None:
    """A real flag without effect is accepted; the process says so once, and in one line."""
    done = run("--enable_profiler=false", "--model_base_path=relative")
    lines = done.stderr.splitlines()
    assert done.returncode == 255
    assert len(lines) == 2
    assert lines[0].endswith("--enable_profiler has no effect on the testing server")


def test_malformed_configuration_file(tmp_path: Path) -> None:
    """A configuration file that cannot be read ends the start as the real server's does."""
    (tmp_path / "c").write_text("model_config_list { confg {} }")
    done = run(f"--model_config_file={tmp_path / 'c'}")
    assert done.returncode == 255
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:" in done.stderr
    assert f"INVALID_ARGUMENT: Invalid protobuf file: '{tmp_path / 'c'}'" in done.stderr


def test_sigterm_while_starting(tmp_path: Path) -> None:
    """A server that waits for its models ends on SIGTERM, with 0."""
    server = subprocess.Popen(
        [sys.executable, "-m", "aioserving.testing", f"--model_base_path={tmp_path / 'gone'}"],
        env={**os.environ, **ENV},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    assert "Could not find base path" in server.stderr.readline()
    server.send_signal(signal.SIGTERM)
    assert server.communicate(timeout=20)[1] == ""
    assert server.returncode == 0
