"""`ServerProcess`: the testing server in a process of its own, to start, pause, kill and restart.

    with ServerProcess(model_name="digits", model_base_path="/models/digits") as process:
        client = Client(process.target)

For what an embedded server cannot show: a server that is killed in mid-call, that hangs, that comes
back on the same port; and for TensorFlow outside the tests' own process. Which flags there are and what
the server does with them is the business of `options` and `__main__`.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from aioserving._types import DEFAULT, DefaultType
from aioserving.testing.options import ServerOptions, to_flags, with_flags

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ServerProcess", "ServerProcessError"]


class ServerProcessError(RuntimeError):
    """The process did not get ready, or is not running; the message ends with its standard error."""


class ServerProcess:
    """A testing server in its own process: `python -m aioserving.testing`.

    Args:
        callables: models without TensorFlow: name -> ``"package.module:attribute"``, where the attribute
            is a servable, a mapping of versions to servables, or a function that returns either.
        config: the models, as a `ModelServerConfig` message (or a view with `.pb`) or its text; it is
            written to a temporary file for ``--model_config_file``.
        port: TCP port; 0: any free one, which restarts keep; None: no TCP.
        rest_port: TCP port for REST; 0: any free one, which restarts keep; None: no REST. By default what
            the flag ``rest_api_port`` says, which is no REST.
        start_timeout: seconds until the server has to be ready, models loaded.
        env: environment variables on top of this process's own.
        options: the flags; by default the real ones, but a failed load is not repeated.
        **flags: single fields of `ServerOptions`, over those of `options`:
            ``model_name="digits", model_base_path="/models/digits"``.

    Use it as a context manager, sync or async, or with `start` and `close`. The process is ended with
    this one, however this one ends (a paused one when it is resumed).

    Attributes:
        port: the TCP port once started, else the one asked for.
        rest_port: the port of REST once started, else the one asked for; None: no REST.
        unix_socket: the Unix socket's path, or None.
    """

    def __init__(
        self,
        *,
        callables: Mapping[str, str] | None = None,
        config: Any = None,
        port: int | None = 0,
        rest_port: int | DefaultType | None = DEFAULT,
        start_timeout: float = 60.0,
        env: Mapping[str, str] | None = None,
        options: ServerOptions | None = None,
        **flags: Any,
    ) -> None:
        options = options or ServerOptions(max_num_load_retries=0, testing_host="127.0.0.1")
        options = with_flags(options, flags, "ServerProcess")
        self.options = dataclasses.replace(
            options,
            testing_callable=(
                *options.testing_callable,
                *(f"{name}={place}" for name, place in (callables or {}).items()),
            ),
        )
        self.port = port
        if rest_port is DEFAULT:
            rest_port = 0 if self.options.testing_pick_rest_port else self.options.rest_api_port or None
        self.rest_port = rest_port
        self.unix_socket = self.options.grpc_socket_path or None
        self.start_timeout = start_timeout
        self._stderr = _Lines()
        self._config_file = None if config is None else _write_config(config)
        self._env = dict(env or {})
        self._process: subprocess.Popen[str] | None = None
        self._paused = False
        self._readers: list[threading.Thread] = []
        self._finalizer: weakref.finalize[Any, ServerProcess] | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None when not running."""
        return self._process.pid if self._process is not None and self.running else None

    @property
    def stderr(self) -> str:
        """What the process, and its predecessors, said on standard error: the last 1,000 lines."""
        return self._stderr.text()

    @property
    def running(self) -> bool:
        """Whether the process is there (it may be paused)."""
        return self._process is not None and self._process.poll() is None

    @property
    def paused(self) -> bool:
        """Whether `pause` stopped the process and `resume` has not let it go on."""
        return self._paused and self.running

    @property
    def target(self) -> str:
        """What a client connects to: ``127.0.0.1:PORT``, or ``unix:PATH`` without TCP."""
        if self.port is None:
            return f"unix:{self.unix_socket}"
        host = self.options.testing_host
        return f"{'127.0.0.1' if host == '0.0.0.0' else host}:{self.port}"  # noqa: S104

    @property
    def rest_url(self) -> str:
        """What the paths of REST follow: ``http://127.0.0.1:PORT``.

        Raises:
            ServerProcessError: the server has no REST.
        """
        if self.rest_port is None:
            raise ServerProcessError(f"{self!r} has no REST; ask for it with ServerProcess(rest_port=0)")
        host = self.options.testing_host
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{self.rest_port}"  # noqa: S104

    @property
    def arguments(self) -> list[str]:
        """The command line, as `start` would run it now."""
        changes: dict[str, Any] = {
            "port": self.port or 0,
            "testing_pick_port": self.port == 0,
            "rest_api_port": self.rest_port or 0,
            "testing_pick_rest_port": self.rest_port == 0,
            "testing_announce": True,
            "testing_exit_with_parent": True,
        }
        if self._config_file is not None:
            changes["model_config_file"] = self._config_file
        options = dataclasses.replace(self.options, **changes)
        return [sys.executable, "-m", "aioserving.testing", *to_flags(options)]

    def start(self) -> None:
        """Start the process and wait until it serves.

        Raises:
            ServerProcessError: it ended or was not ready in time; the message has its standard error.
        """
        if self.running:
            raise ServerProcessError(f"{self!r} is running already")
        self._process = process = subprocess.Popen(  # noqa: S603 - our own module
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **self._env},
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        self._finalizer = weakref.finalize(self, _end, process)
        ready: collections.deque[str] = collections.deque()
        event = threading.Event()
        assert process.stdout is not None
        assert process.stderr is not None
        self._readers = [
            threading.Thread(target=_watch, args=(process.stdout, ready, event), daemon=True),
            threading.Thread(target=self._stderr.collect, args=(process.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        in_time = event.wait(self.start_timeout)
        if ready:
            for line in ready:
                word, _, place = line.partition(" ")
                number = place.rpartition(":")[2]
                if word == "rest":
                    self.rest_port = int(number)
                elif self.port is not None:
                    self.port = int(number)
            return
        # The end of standard output comes before the process's own.
        outcome = f"was not ready after {self.start_timeout} s"
        if in_time:
            with contextlib.suppress(subprocess.TimeoutExpired):
                outcome = f"ended with code {process.wait(10)}"
        self.kill()
        raise ServerProcessError(f"the server process {outcome}\n{self._stderr_text()}")

    def terminate(self, timeout: float = 30.0) -> int:
        """Ask the process to end (SIGTERM: calls in progress may finish); returns its exit code.

        Raises:
            ServerProcessError: it had to be killed after `timeout` seconds, or was not running.
        """
        process = self._running_process()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)  # a paused process sees SIGTERM only now
        self._paused = False
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerProcessError(
                f"the server process did not end within {timeout} s and was killed\n{self._stderr_text()}"
            ) from None
        self._ended()
        return code

    def kill(self) -> None:
        """End the process at once (SIGKILL), in the middle of whatever it does. Harmless if it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._ended()

    def pause(self) -> None:
        """Stop the process (SIGSTOP): its connections stay, and nobody answers.

        Raises:
            ServerProcessError: it is not running.
        """
        self._running_process().send_signal(signal.SIGSTOP)
        self._paused = True

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT).

        Raises:
            ServerProcessError: it is not running.
        """
        self._running_process().send_signal(signal.SIGCONT)
        self._paused = False

    def restart(self, grace: float | None = None) -> None:
        """End the process, if it is running, and start it again on the same port.

        Args:
            grace: seconds that SIGTERM gives the calls in progress, as in a rolling restart; None: SIGKILL.

        Raises:
            ServerProcessError: as `start`, and as `terminate` (it is down then).
        """
        if grace is not None and self.running:
            self.terminate(grace)
        self.kill()
        self.start()

    def close(self) -> None:
        """Kill the process and remove its temporary files; a second time does nothing."""
        self.kill()
        if self._config_file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._config_file)

    async def astart(self) -> None:
        """`start`, without blocking the event loop."""
        await asyncio.to_thread(self.start)

    async def aterminate(self, timeout: float = 30.0) -> int:
        """`terminate`, without blocking the event loop."""
        return await asyncio.to_thread(self.terminate, timeout)

    async def arestart(self, grace: float | None = None) -> None:
        """`restart`, without blocking the event loop."""
        await asyncio.to_thread(self.restart, grace)

    def __enter__(self) -> ServerProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> ServerProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        state = f"pid {self.pid}{' paused' if self._paused else ''}" if self.running else "not running"
        return f"<ServerProcess {self.target} {state}>"

    def _running_process(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            raise ServerProcessError(f"{self!r} is not running\n{self._stderr_text()}")
        return self._process

    def _ended(self) -> None:
        process, self._process = self._process, None
        self._paused = False
        if process is None:
            return
        if self._finalizer is not None:
            self._finalizer.detach()
        for reader in self._readers:
            reader.join(5)
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _stderr_text(self) -> str:
        return f"its standard error:\n{self.stderr or '(nothing)'}"


def _watch(stream: IO[str], ready: collections.deque[str], event: threading.Event) -> None:
    """Find the lines until ``ready``; then read on, so that a server that prints is not held up."""
    for line in stream:
        if not event.is_set() and line.startswith(("rest ", "ready ")):
            ready.append(line.strip())
            if line.startswith("ready "):
                event.set()
    event.set()


class _Lines:
    """The last lines of a stream, kept by one thread and read by others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: collections.deque[str] = collections.deque(maxlen=1000)

    def collect(self, stream: IO[str]) -> None:
        for line in stream:
            with self._lock:
                self._lines.append(line)

    def text(self) -> str:
        with self._lock:
            return "".join(self._lines)


def _end(process: subprocess.Popen[str]) -> None:
    """What is left of a `ServerProcess` that nobody closed."""
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _write_config(config: Any) -> str:
    """`config` as text in a new file, which is gone with this process at the latest."""
    if not isinstance(config, str):
        from google.protobuf import text_format

        config = text_format.MessageToString(getattr(config, "pb", config))
    descriptor, path = tempfile.mkstemp(prefix="aioserving-", suffix=".config")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(config)
    atexit.register(pathlib.Path(path).unlink, missing_ok=True)
    return path
