"""`aioserving bench` against a real server process: what it measures, writes and refuses."""

from __future__ import annotations

import csv
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from aioserving.testing import ServerProcess

from .conftest import Run

QUICK = ("--duration", "300ms", "--warmup", "50ms")


def test_closed_loop(on: Run) -> None:
    """A line for each number of callers, all calls succeeding, more callers doing more."""
    found = on("bench", "-m", "digits", "-c", "1,4", "--batch-size", "3", *QUICK)
    assert found.code == 0, found
    head, one, four = found.lines
    assert head.split()[:4] == ["CALLERS", "CALLS/S", "ROWS/S", "P50"]
    assert (one.split()[0], four.split()[0]) == ("1", "4")
    calls, rows = (float(cell.replace(",", "")) for cell in one.split()[1:3])
    assert rows == pytest.approx(3 * calls, abs=0.2)
    assert "concurrency 4 (2 of 2)" in found.err


def test_open_loop_for_programs(on: Run, tmp_path: Path) -> None:
    """JSON, CSV and a plot of the same numbers; the rate is what was asked for, and lag is told."""
    pytest.importorskip("matplotlib", reason="needs the extra `bench`")
    found = on(
        "bench", "-m", "digits", "--rate", "50,100", "--arrivals", "constant", "--json", *QUICK,
        "--csv", str(tmp_path / "x.csv"), "--plot", str(tmp_path / "x.svg"),
    )  # fmt: skip
    assert found.code == 0, found
    data = found.json
    assert (data["model"], data["version"], data["rows"], data["batched"]) == ("digits", 2, 1, False)
    assert [item["rate"] for item in data["measurements"]] == [50, 100]
    assert [item["calls"] for item in data["measurements"]] == [
        pytest.approx(15, abs=2),
        pytest.approx(30, abs=3),
    ]
    for item in data["measurements"]:
        assert item["errors"] == {}
        assert 0 < item["latency"]["p50"] <= item["latency"]["p99"] <= item["latency"]["max"]
        assert item["lag"]["p50"] < 0.5
    lines = list(csv.DictReader((tmp_path / "x.csv").read_text().splitlines()))
    assert [float(line["p50"]) for line in lines] == [item["latency"]["p50"] for item in data["measurements"]]
    assert "asked for" in (tmp_path / "x.svg").read_text()


def test_batched(on: Run) -> None:
    """Calls can be gathered by the client, also where an output has no rows."""
    data = on("bench", "-m", "digits", "-c", "16", "--batched", "--json", *QUICK).json
    assert data["batched"] is True
    assert data["measurements"][0]["errors"] == {}
    assert data["measurements"][0]["calls"] > 16


def test_inputs(on: Run, home: Path, tmp_path: Path) -> None:
    """Inputs from files are cut into batches; what does not fit is refused before anything is measured."""
    np.save(tmp_path / "rows.npy", np.zeros((10, 784), np.float32))
    np.savez(tmp_path / "both.npz", a=np.zeros(4, np.float32), b=np.ones(4, np.float32))
    np.savez(tmp_path / "uneven.npz", a=np.zeros(4, np.float32), b=np.ones(3, np.float32))

    def rows(*arguments: str) -> object:
        found = on("bench", *arguments, "-c", "1", "--json", *QUICK)
        return found.json["rows"] if found.code == 0 else (found.code, found.err)

    assert rows("-m", "digits", f"images=@{tmp_path}/rows.npy", "-b", "4") == 4
    assert rows("-m", "many", f"@{tmp_path}/both.npz", "-b", "2") == 2
    assert rows("-m", "many", "-s", "ticks") == 1
    assert rows("-m", "digits", "--shape", "images=7,784") == 7
    for arguments, code, text in (
        (("-m", "many", f"@{tmp_path}/uneven.npz"), 6, "different numbers of rows: a: 4, b: 3"),
        (("-m", "digits", f"@{tmp_path}/rows.npy", "-b", "11"), 6, "have 10 rows"),
        (("-m", "digits", f"x=@{tmp_path}/rows.npy"), 6, "unknown input 'x'"),
        (("-m", "digits", "@none.npy"), 11, "none.npy"),
    ):
        found = rows(*arguments)
        assert isinstance(found, tuple), arguments
        assert found[0] == code, found
        assert text in found[1]


def test_latency_limit(on: Run) -> None:
    """The highest load within the limit is told; if there is none, the exit code is 1."""
    found = on("bench", "-m", "digits", "-c", "1:4", "--latency-limit", "10s", *QUICK)
    assert found.code == 0, found
    assert found.lines[-1] == "up to 4 callers, p99 stays within 10 s"
    assert len(found.lines) == 4
    found = on("bench", "-m", "digits", "-c", "1:4", "--latency-limit", "1ms",
               "--percentile", "100", "--json", *QUICK)  # fmt: skip
    assert found.json["latency_limit"]["percentile"] == 100
    none = on("bench", "-m", "digits", "-r", "5:10", "--latency-limit", "0.000001", *QUICK)
    assert none.code == 1
    assert "not even with 5 calls/s" in none.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("-c", "1", "-r", "1"), "not both"),
        (("-c", "0"), "--concurrency"),
        (("-r", "x"), "no rate"),
        (("-d", "0"), "duration"),
        (("-c", "8", "--latency-limit", "1s"), "give two"),
        (("--plot", "x.txt"), ".png"),
        (("--json", "--csv", "-"), "standard output"),
    ],
)
def test_wrong_usage(on: Run, arguments: tuple[str, ...], text: str) -> None:
    """What makes no sense is told in one line before a server is asked."""
    found = on("bench", "-m", "digits", *arguments)
    assert found.code == 2, found
    assert text in found.err
    assert len(found.err.splitlines()) == 1


def test_servers_that_do_not_answer(run: Run, on: Run) -> None:
    """A server that is not there, or a model that it does not have, ends with their own exit codes."""
    assert run("bench", "-m", "digits", "-t", "127.0.0.1:1", *QUICK).code == 3
    assert on("bench", "-m", "nobody", *QUICK).code == 5
    assert run("bench", "-m", "digits").code == 2


def test_csv_to_standard_output(on: Run) -> None:
    """With `--csv -` standard output is CSV alone."""
    found = on("bench", "-m", "digits", "-c", "1", "--csv", "-", *QUICK)
    [line] = csv.DictReader(found.lines)
    assert (line["kind"], line["load"]) == ("concurrency", "1")


def test_ctrl_c(environment: dict[str, str], server: ServerProcess) -> None:
    """What was measured until Ctrl-C is shown, and the exit code says that it was stopped."""
    command = [sys.executable, "-m", "aioserving", "bench", "-m", "digits", "-t", server.target]
    running = subprocess.Popen(
        [*command, "-c", "1,2,3", "-d", "400ms", "--warmup", "0"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    with running:
        assert running.stderr is not None
        for line in running.stderr:
            if line.startswith("concurrency 2"):
                break
        running.send_signal(signal.SIGINT)
        assert running.stdout is not None
        out = running.stdout.read()
        running.wait(30)
    assert running.returncode == 130
    assert re.match(r"CALLERS .*\n +1 ", out)
