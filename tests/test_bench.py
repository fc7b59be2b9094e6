"""The benchmarks run and print their tables; what they measure is not judged here, only that they do."""

from __future__ import annotations

import importlib
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

BENCH = pathlib.Path(__file__).resolve().parent.parent / "bench"


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`bench/harness.py`, which is a script's neighbour, not a package's module."""
    monkeypatch.syspath_prepend(str(BENCH))
    yield importlib.import_module("harness")
    for name in ("harness", "plots", "worker", "bench_scaling"):
        sys.modules.pop(name, None)


def run(script: str, *arguments: str) -> str:
    """Standard output of a benchmark; it may miss its goals here, but not fail."""
    done = subprocess.run(
        [sys.executable, str(BENCH / script), "--quick", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def rows(output: str) -> list[list[str]]:
    """The cells of every line of a Markdown table."""
    lines = [line for line in output.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


@pytest.mark.parametrize(
    ("script", "labels", "ratios"),
    [
        ("bench_cold_start.py", ["grpc, prepared bytes", "`AsyncClient`", "`Client`"], 2),
        ("bench_predict.py", ["bare grpc.aio", "`client.predict`", "`client.model(...).predict`"], 8),
        ("bench_blocking.py", ["native blocking stub", "`Client.predict`"], 8),
        ("bench_connections.py", ["600 KB"], 4),
    ],
)
def test_a_benchmark_prints_every_client_and_its_ratio(script: str, labels: list[str], ratios: int) -> None:
    """Every benchmark runs by itself and prints a row per client, with ratios and their spread."""
    output = run(script, "--no-tensorflow")
    cells = [cell for row in rows(output) for cell in row]
    for label in labels:
        assert label in cells, output
    assert len(re.findall(r"\d+\.\d\dx \(\d+\.\d\d to \d+\.\d\d\)", output)) == ratios, output
    assert "Measured with Python" in output


@pytest.mark.tensorflow
def test_the_official_recipe_runs_beside_aioserving() -> None:
    """The peers' table has the recipe, compared with the client of its kind."""
    found = {row[2]: row for row in rows(run("bench_peers.py")) if len(row) == 8}
    assert found["`await AsyncClient.predict`"][4] == ""
    # Even in so short a run: the recipe costs more CPU time than it takes to miss this.
    assert float(found["official recipe, grpc.aio"][4].partition("x")[0]) > 0.5


def test_rest_and_grpc_are_compared_with_a_server_and_without() -> None:
    """The digits go over both, to a model and to prepared answers, and the server's share is told."""
    for name in ("sklearn", "requests"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name}, which the comparison needs, is not installed")
    output = run("bench_mnist.py", "--no-tensorflow")
    table = [row for row in rows(output) if len(row) == 8]
    for server in ("aioserving.testing", "prepared answers"):
        clients = [row[2] for row in table if row[1] == server]
        assert "REST, `requests`, one at a time" in clients, output
        assert "`batched().predict`, 256 at a time" in clients, output
    shares = [row for row in rows(output) if len(row) == 5 and row[0] == "1"]
    assert len(shares) == 3
    assert all(re.fullmatch(r"-?\d+%", row[1]) for row in shares)


def test_a_job_is_compared_with_bare_calls_and_its_memory_told() -> None:
    """Jobs and bare calls take turns over the same file, and a run over it tells the memory it takes."""
    for name in ("pyarrow", "fsspec"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name}, of the extra 'batch', is not installed")
    output = run("bench_jobs.py", "--no-tensorflow")
    found = {row[0]: row[1:] for row in rows(output)}
    assert re.fullmatch(r"[\d,]+", found["a job, Parquet to Parquet"][0]), output
    assert re.fullmatch(r"\d+\.\d\dx \(.*\)", found["bare grpc.aio, prepared bytes"][1]), output
    if sys.platform == "linux":
        assert re.fullmatch(r"-?\d+ MB", found["2,048"][0]), output


def test_scaling_tells_what_limits(harness: ModuleType) -> None:
    """A curve that flattens is told by who is busy: the machine, one process, or nobody."""
    scaling = importlib.import_module("bench_scaling")
    cores = 8
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scaling.os, "cpu_count", lambda: cores)
        assert scaling.limit_of(0.95, 0.5) == "client CPU"
        assert scaling.limit_of(0.5, 0.95) == "server CPU"
        assert scaling.limit_of(0.4, 0.4).endswith("waiting")
        assert scaling.limit_of(1.0, 7.0) == "all cores of the machine"
        assert scaling.limit_of(0.5, 0.7, servers=2).endswith("waiting")
        assert scaling.limit_of(1.0, float("nan")) == ""


def test_scaling_prints_its_limits_beside_the_clients() -> None:
    """Calls at a time, sizes with memcpy and loopback TCP, and connections: a table each."""
    output = run("bench_scaling.py")
    cells = [cell for row in rows(output) for cell in row]
    for cell in ("limit: loopback TCP", "limit: memcpy", "`model.batched().predict`", "connections to each"):
        assert cell in cells, output


@pytest.fixture
def instructions(harness: ModuleType) -> Iterator[ModuleType]:
    """`bench/bench_instructions.py`."""
    yield importlib.import_module("bench_instructions")
    sys.modules.pop("bench_instructions", None)


def test_more_instructions_than_the_baseline_allows_are_a_regression(instructions: ModuleType) -> None:
    """Up to the tolerance a count passes, beyond it fails; what has no baseline is said and not judged."""
    known = {"a": 1000, "b": 1000}
    assert instructions.compare({"a": 1050, "b": 1000}, known, 0.05)[1]
    table, met = instructions.compare({"a": 1051, "b": 1000}, known, 0.05)
    assert not met
    assert "REGRESSION" in table
    table, met = instructions.compare({"c": 5}, known, 0.05)
    assert met
    assert "no baseline" in table
    assert instructions.compare({"a": 5}, None, 0.05)[1]


def test_a_baseline_keeps_what_is_there_of_other_versions(
    instructions: ModuleType, tmp_path: pathlib.Path
) -> None:
    """Updating one case leaves the other cases, and other versions, as they were."""
    path = tmp_path / "instructions.json"
    path.write_text('{"other versions": {"a": 1}}')
    instructions.update(path, {"a": 2, "b": 3})
    instructions.update(path, {"b": 4})
    found = json.loads(path.read_text())
    assert found == {"other versions": {"a": 1}, instructions.versions(): {"a": 2, "b": 4}}


def test_a_missing_valgrind_is_said(instructions: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check cannot pass where nothing can be counted; as one of many benchmarks it is left out."""
    monkeypatch.setenv("PATH", "")
    assert instructions.main([]) == 2
    assert instructions.main() == 0


@pytest.mark.parametrize("case", ["encode 3 KB", "decode 1M int64_val below 128", "predict"])
def test_cases_of_instructions_run(case: str) -> None:
    """What is counted runs by itself, without valgrind and without a server."""
    done = subprocess.run(
        [sys.executable, str(BENCH / "instructions_case.py"), "2", case],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_all_cases_of_instructions_have_a_baseline() -> None:
    """The committed baseline has every case, for at least one combination of versions."""
    known = json.loads((BENCH / "instructions.json").read_text())
    text = (BENCH / "bench_instructions.py").read_text()
    for counts in known.values():
        assert all(count > 0 and f'"{case}"' in text for case, count in counts.items())
        assert "predict" in counts


def test_run_writes_what_it_prints(tmp_path: pathlib.Path) -> None:
    """`run.py` writes a benchmark's report to a file of its name, the same text that it prints."""
    output = run("run.py", "--no-tensorflow", "--results", str(tmp_path), "import")
    written = (tmp_path / "import.md").read_text(encoding="utf-8")
    assert written in output
    assert [path.name for path in tmp_path.iterdir()] == ["import.md"]
    assert "| import: time of `from aioserving import AsyncClient` | at most 1.5x |" in output


def test_run_refuses_a_name_that_is_no_benchmark() -> None:
    """A misspelt name is an error that lists the benchmarks, not an empty run."""
    done = subprocess.run(
        [sys.executable, str(BENCH / "run.py"), "imports"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmark 'imports'" in done.stderr
    assert "cold_start" in done.stderr


def test_ratios_are_taken_within_a_round(harness: ModuleType) -> None:
    """A slow round that hits both clients alike leaves their ratio as it was."""

    def turn(cpu: float) -> object:
        return harness.Turn(calls=10, wall=cpu, cpu=cpu, faults=0, switches=0, latencies=[cpu / 10])

    rounds = harness.Rounds({"a": [turn(1), turn(50), turn(1)], "b": [turn(2), turn(100), turn(4)]})
    assert rounds.ratio("b", "a") == harness.Spread(2.0, 2.0, 3.0)
    assert rounds.median("a") == pytest.approx(0.1)
    assert rounds.latency("b", 0.99) == pytest.approx(10.0)


def test_a_bar_is_met_up_to_its_limit(harness: ModuleType) -> None:
    """A goal is met by exactly its figure and missed by more."""
    assert str(harness.Bar("x", 1.25, 1.25)) == "| x | at most 1.25x | 1.25x | met |"
    assert str(harness.Bar("x", 20, 20, least=True)) == "| x | at least 20x | 20.00x | met |"
    assert not harness.Bar("x", 20, 19.99, least=True).met
    assert str(harness.Bar("x", 60, 61.4, " MB")) == "| x | at most 60 MB | 61 MB | MISSED |"


def test_measured_processes_keep_compiled_modules(
    harness: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import is not timed with the compiling of its sources, which happens once per installation."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("SOMETHING_ELSE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in harness.environment()
    assert harness.environment()["SOMETHING_ELSE"] == "1"


def test_a_worker_that_fails_says_why(harness: ModuleType) -> None:
    """A client that cannot start ends the run with its own traceback, not with silence."""
    with harness.Server((1, 4)) as server:
        worker = harness.Worker("predict", server, connections=0)
        try:
            with pytest.raises(RuntimeError, match="connections_per_endpoint must be"):
                worker.wait_ready()
        finally:
            worker.close()


def test_plots_depend_on_the_figures_alone(harness: ModuleType, tmp_path: pathlib.Path) -> None:
    """The same figures draw the same file: no date, no random ids."""
    if importlib.util.find_spec("matplotlib") is None:
        pytest.skip("matplotlib, of the extra 'bench', is not installed")
    plots = importlib.import_module("plots")
    figures = {("3 KB", 1, "1"): 1.0, ("3 KB", 1, "2"): 1.5, ("19 MB", 1, "1"): 1.0, ("19 MB", 1, "2"): 0.9}
    drawn = []
    for name in ("a.svg", "b.svg"):
        plots.connections(figures, tmp_path / name)
        plots.peers(figures, tmp_path / f"peers-{name}")
        plots.mnist({("server", 1, "REST"): 3.0, ("server", 1, "predict"): 1.0}, tmp_path / f"mnist-{name}")
        limits = {("bandwidth", 1000, "limit: memcpy"): 1e9, ("bandwidth", 2000, "limit: memcpy"): 2e9}
        plots.scaling({**limits, ("rate", 1, "predict"): 9.0}, tmp_path / f"scaling-{name}")
        drawn.append("".join(path.read_text() for path in sorted(tmp_path.glob(f"*{name}"))))
    assert drawn[0] == drawn[1]
    assert "predict of 19 MB" in drawn[0]
    assert not re.search(r"\d{4}-\d\d-\d\d", drawn[0])
