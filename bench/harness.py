"""What the benchmarks share: clients and server in processes of their own, turns, ratios, and tables.

The comparison is fair in that every client gets the same server process, the same payload and the same
number of calls, and that clients take turns of a fraction of a second, in another order each round: what
else the machine does hits all alike. A ratio is taken within a round, and the median of all rounds is
what counts; beside it stands the range that holds the middle half of the rounds. Clients are started
anew several times per benchmark, because where a process's memory happens to lie changes its speed, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import pathlib
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import IO, Any

HERE = pathlib.Path(__file__).resolve().parent
RESULTS = HERE / "results"

#: Payloads by name: the shape of the float32 array sent.
SHAPES: Mapping[str, tuple[int, ...]] = {
    "3 KB": (1, 784),
    "600 KB": (1, 224, 224, 3),
    "19 MB": (32, 224, 224, 3),
}


def python_with(
    name: str, *requirements: str, install: bool = True, interpreter: str | None = None
) -> str | None:
    """A Python for a peer that is not installed here, in an environment that is made when first asked for.

    Args:
        name: of the environment, a folder below ``bench/.environments``.
        requirements: what pip installs, beside the versions of grpcio, protobuf and numpy that are here:
            these would otherwise be compared, too. Of those that are required, what is required counts.
        install: whether to make it if it is not there.
        interpreter: the Python to make it with where there is one of that name; else, this one.

    Returns:
        The interpreter; None if it could not be made, which is said.
    """
    folder = HERE / ".environments" / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "complete").exists():
        return str(python)
    if not install:
        return None
    folder.parent.mkdir(exist_ok=True)
    (folder.parent / ".gitignore").write_text("*\n", encoding="utf-8")
    same = [
        f"{library}=={importlib.metadata.version(library)}"
        for library in ("grpcio", "protobuf", "numpy")
        if not any(requirement.startswith(library) for requirement in requirements)
    ]
    base = interpreter if interpreter and runs(interpreter) else sys.executable
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        for command in ([base, "-m", "venv", "--clear", str(folder)], [*pip, *requirements, *same]):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    except (OSError, subprocess.SubprocessError) as error:
        print(f"No environment for {name}: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
        return None
    (folder / "complete").touch()
    return str(python)


def runs(interpreter: str) -> bool:
    """Whether there is such a Python; a name alone may be a version manager's, for one that is not there."""
    try:
        subprocess.run([interpreter, "-c", ""], check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def is_installed(library: str) -> bool:
    return importlib.util.find_spec(library) is not None


def has_tensorflow() -> bool:
    """Whether the official recipe can be run here."""
    return importlib.util.find_spec("tensorflow") is not None


@dataclasses.dataclass(frozen=True)
class Spread:
    """The median of some figures and the range that holds the middle half of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) == 1:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)

    @property
    def ratio(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of `values` do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def seconds(value: float) -> str:
    """A duration with a unit and three digits."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"


def megabytes(value: float) -> str:
    return f"{value / 1e6:.0f} MB"


@dataclasses.dataclass(frozen=True)
class Bar:
    """A figure that must not be exceeded, or must be reached, and what was measured."""

    what: str
    limit: float
    measured: float
    unit: str = "x"
    #: Whether the figure is to be reached.
    least: bool = False

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.least else self.measured <= self.limit

    def __str__(self) -> str:
        places = 0 if self.unit != "x" else 2
        verdict = "met" if self.met else "MISSED"
        return (
            f"| {self.what} | at {'least' if self.least else 'most'} {self.limit:g}{self.unit} | "
            f"{self.measured:.{places}f}{self.unit} | {verdict} |"
        )


@dataclasses.dataclass
class Report:
    """What one benchmark found: tables with a word to each, and the bars it is held to."""

    name: str
    title: str
    parts: list[str] = dataclasses.field(default_factory=list)
    bars: list[Bar] = dataclasses.field(default_factory=list)
    #: What a plot shows, by payload, calls at a time, and client or number of connections; the
    #: balancing's by scenario or kind of line, servers or seconds, and policy.
    figures: dict[tuple[str, int, str], float] = dataclasses.field(default_factory=dict)

    def text(self, words: str) -> None:
        self.parts.append(words)

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        lines = [head, ["---"] * len(head), *rows]
        self.parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))

    def markdown(self) -> str:
        parts = [f"# {self.title}", *self.parts]
        if self.bars:
            bars = "\n".join(map(str, self.bars))
            parts.append(f"| goal | | measured | |\n| --- | --- | --- | --- |\n{bars}")
        parts.append(machine())
        return "\n\n".join(parts) + "\n"


def machine() -> str:
    """What was measured on and with, in one line; no date."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next(
            (line.partition(":")[2].strip() for line in file if line.startswith("model name")), model
        )
    found = [f"Python {platform.python_version()}"]
    for name in ("grpcio", "protobuf", "numpy", "anyio", "tensorflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found.append(f"{name} {importlib.metadata.version(name)}")
    return f"Measured with {', '.join(found)} on {os.cpu_count()} cores of {model}, {platform.system()}."


def environment() -> dict[str, str]:
    """What measured processes run in: this one's environment, but they may keep compiled modules.

    Compiling the sources anew each time takes longer than the import itself.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


class _Process:
    """A child that answers on standard output and ends when its standard input does."""

    def __init__(self, script: str, *arguments: str, python: str = sys.executable) -> None:
        self.name = script
        # In a file, not a pipe: nobody would read it while the child runs.
        self._stderr: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [python, str(HERE / script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment(),
        )

    @property
    def cpu(self) -> float:
        """Seconds of CPU time so far, of all threads; nan where the system does not tell of others."""
        if sys.platform != "linux":
            return math.nan
        # The clock of a process by its id, as clock_getcpuclockid(3) makes it.
        return time.clock_gettime(~self._process.pid << 3 | 2)

    def ask(self, line: str | None = None) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if line is not None:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._process.wait()
            self._stderr.seek(0)
            raise RuntimeError(
                f"{self.name} ended with code {self._process.returncode}:\n{self._stderr.read()}"
            )
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()


class Server:
    """`server.py` for one payload, in a process of its own, with that payload's request in a file.

    Args:
        shape: of the array sent.
        kind: what is served and answered, one of `server.KINDS`.
        images: file with images that are sent, for the kind ``model`` and clients that send them.
    """

    def __init__(self, shape: tuple[int, ...], kind: str = "scores", images: str = "") -> None:
        from worker import inputs_of

        from aioserving.codec import encode_model_spec, encode_predict_request

        self.shape, self.kind, self.images = shape, kind, images
        self._process = _Process("server.py", ",".join(map(str, shape)), kind, images)
        _, port, rest_port, tcp_port = self._process.ask().split()
        self.target, self.rest = f"127.0.0.1:{port}", f"http://127.0.0.1:{rest_port}"
        self.tcp_port = int(tcp_port)
        request = encode_predict_request(
            inputs_of({"shape": shape, "kind": kind}), model_spec=encode_model_spec("m"), output_filter=()
        )
        self.request_size = len(request)
        with tempfile.NamedTemporaryFile(prefix="aioserving-bench-", suffix=".bin", delete=False) as file:
            file.write(request)
        self.request = file.name

    def __enter__(self) -> Server:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def cpu(self) -> float:
        """Seconds of CPU time that it has taken so far."""
        return self._process.cpu

    def close(self) -> None:
        self._process.close()
        os.unlink(self.request)


@dataclasses.dataclass(frozen=True)
class Turn:
    """What some calls in a row cost one client."""

    calls: int
    #: Seconds.
    wall: float
    #: Seconds of CPU time, of all the client process's threads.
    cpu: float
    #: Page faults.
    faults: int
    #: Times that a thread of the client gave up its core to wait.
    switches: int
    #: Seconds, of every call.
    latencies: Sequence[float]
    #: Seconds of CPU time that the server took meanwhile.
    server_cpu: float = 0.0

    @property
    def server_cpu_per_call(self) -> float:
        return self.server_cpu / self.calls

    @property
    def cores(self) -> float:
        """How many cores the client kept busy."""
        return self.cpu / self.wall

    @property
    def server_cores(self) -> float:
        """How many the server kept busy."""
        return self.server_cpu / self.wall

    @property
    def faults_per_call(self) -> float:
        return self.faults / self.calls

    @property
    def cpu_per_call(self) -> float:
        return self.cpu / self.calls

    @property
    def wall_per_call(self) -> float:
        return self.wall / self.calls

    @property
    def median_latency(self) -> float:
        return statistics.median(self.latencies)


class Worker:
    """`worker.py`: one client in a process of its own."""

    def __init__(self, client: str, server: Server, **settings: Any) -> None:
        from aioserving.transport import _OPTIONS

        self.client = client
        self.server = server
        everything = {
            "client": client,
            "target": server.target,
            "rest": server.rest,
            "tcp_port": server.tcp_port,
            "shape": server.shape,
            "kind": server.kind,
            "images": server.images,
            "request": server.request,
            "channel_options": list(_OPTIONS.items()),
            **settings,
        }
        self._process = _Process(
            "worker.py", json.dumps(everything), python=settings.get("python", sys.executable)
        )

    def wait_ready(self) -> None:
        """Return once it has made its first call."""
        hello = json.loads(self._process.ask())
        if hello["aioserving"] != self.client.startswith("predict"):
            raise RuntimeError(
                f"aioserving was {'' if hello['aioserving'] else 'not '}imported in {self.client!r}"
            )

    def turn(self, calls: int, concurrency: int) -> Turn:
        server_cpu = self.server.cpu
        answer = json.loads(self._process.ask(json.dumps({"calls": calls, "concurrency": concurrency})))
        server_cpu = self.server.cpu - server_cpu
        return Turn(calls=calls, server_cpu=server_cpu, **answer)

    def close(self) -> None:
        self._process.close()


@contextlib.contextmanager
def workers(server: Server, clients: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Worker]]:
    """A worker per entry of `clients`: label -> `client` and further settings."""
    with contextlib.ExitStack() as stack:
        found = {}
        for label, settings in clients.items():
            found[label] = Worker(server=server, **settings)
            stack.callback(found[label].close)
        for worker in found.values():  # they start at the same time
            worker.wait_ready()
        yield found


@dataclasses.dataclass
class Rounds:
    """The turns of several clients, round by round."""

    turns: dict[str, list[Turn]]

    def values(self, label: str, figure: str = "cpu_per_call") -> list[float]:
        """A property of a client's turns, in the order of the rounds."""
        return [float(getattr(turn, figure)) for turn in self.turns[label]]

    def ratio(self, label: str, base: str, figure: str = "cpu_per_call") -> Spread:
        """`figure` of one client in terms of another's in the same round."""
        pairs = zip(self.values(label, figure), self.values(base, figure), strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])

    def median(self, label: str, figure: str = "cpu_per_call") -> float:
        return statistics.median(self.values(label, figure))

    def latency(self, label: str, share: float) -> float:
        """Of all calls of a client, the latency that `share` of them do not exceed."""
        return percentile((value for turn in self.turns[label] for value in turn.latencies), share)


def interleave(
    server: Server,
    clients: Mapping[str, Mapping[str, Any]],
    *,
    calls: int,
    concurrency: int,
    rounds: int,
    generations: int = 1,
    warm_up: int | None = None,
) -> Rounds:
    """Let the clients take turns.

    Args:
        server: what they call.
        clients: label -> `client`, one of `worker.CLIENTS`, and further settings; ``calls`` and
            ``concurrency`` among them are this client's own.
        calls: calls per turn.
        concurrency: tasks or threads that make them.
        rounds: turns of every client in all.
        generations: how often the client processes are started anew.
        warm_up: calls of every client before it counts; as many as in a turn if not given.
    """
    shuffled = random.Random(0)  # the same order every time
    turns = {
        label: (int(settings.get("calls", calls)), int(settings.get("concurrency", concurrency)))
        for label, settings in clients.items()
    }
    found = Rounds({label: [] for label in clients})
    for generation in range(generations):
        share = rounds // generations + (generation < rounds % generations)
        if not share:
            continue
        with workers(server, clients) as running:
            for label, worker in running.items():
                worker.turn(warm_up or turns[label][0], turns[label][1])
            order = list(running.items())
            for _ in range(share):
                shuffled.shuffle(order)
                for label, worker in order:
                    found.turns[label].append(worker.turn(*turns[label]))
    return found


@dataclasses.dataclass(frozen=True)
class Options:
    """How long to measure."""

    #: As short as can be: to see that it runs, not to read figures off.
    quick: bool = False
    #: Factor on the number of rounds.
    scale: float = 1.0
    #: Whether to run what needs TensorFlow.
    tensorflow: bool = True
    #: Whether to run also what takes long and shows little new.
    full: bool = False
    #: Another checkout, whose aioserving is measured beside this one's; None for none.
    against: str | None = None

    @classmethod
    def from_arguments(cls, description: str | None, arguments: Sequence[str] | None = None) -> Options:
        parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
        cls.add_arguments(parser)
        return cls.from_namespace(parser.parse_args(arguments))

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--quick", action="store_true", help="only see that it runs; figures mean nothing"
        )
        parser.add_argument("--scale", type=float, default=1.0, help="factor on the number of rounds")
        parser.add_argument(
            "--no-tensorflow", action="store_true", help="leave out what needs TensorFlow, though it is there"
        )
        parser.add_argument("--full", action="store_true", help="also what takes long and shows little new")
        parser.add_argument("--against", metavar="PATH", help="another checkout to measure beside this one")

    @classmethod
    def from_namespace(cls, found: argparse.Namespace) -> Options:
        against = None if found.against is None else str(pathlib.Path(found.against).resolve())
        tensorflow = has_tensorflow() and not found.no_tensorflow
        return cls(found.quick, found.scale, tensorflow, found.full, against)

    def rounds(self, count: int) -> int:
        return 2 if self.quick else max(3, round(count * self.scale))

    def calls(self, count: int) -> int:
        return min(count, 8) if self.quick else count

    @property
    def generations(self) -> int:
        return 1 if self.quick else 3

    def others(self, label: str, client: str) -> dict[str, dict[str, str]]:
        """The same client of the other checkout, if there is one, for `interleave`."""
        return {} if self.against is None else {f"{label}, other": {"client": client, "path": self.against}}


def finish(report: Report) -> int:
    """Print a benchmark's report when it is run by itself; gives the exit code: 1 if a bar was missed."""
    print(report.markdown())
    return 0 if all(bar.met for bar in report.bars) else 1
