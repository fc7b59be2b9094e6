"""Jobs in a real notebook: its kernel runs an event loop already, and shows what is displayed in cells."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")
pytest.importorskip("ipykernel", reason="needs ipykernel and nbclient")
pytest.importorskip("nbclient", reason="needs ipykernel and nbclient")

import nbclient
import nbformat
import pyarrow.parquet as pq

from aioserving.testing import ServerProcess
from tests.scenarios.jobs import ROOT, expected, output, rows

# Of what Jupyter's own packages do.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server that takes four milliseconds a call."""
    with ServerProcess(
        callables={"m": "tests.scenarios.jobs:slow_sums"}, env={"PYTHONPATH": str(ROOT)}
    ) as process:
        yield process


def executed(monkeypatch: pytest.MonkeyPatch, *sources: str) -> tuple[Any, list[tuple[int, str, Any]]]:
    """A notebook with these cells, run; and the messages of the kernel: cell, kind and content."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    messages: list[tuple[int, str, Any]] = []

    class Client(nbclient.NotebookClient):  # type: ignore[misc]
        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            messages.append((cell_index, msg["msg_type"], msg["content"]))
            return super().process_message(msg, cell, cell_index)

    Client(notebook, timeout=60, kernel_name="python3").execute()
    return notebook, messages


def test_cells_show_one_output_that_changes_and_ends_with_the_summary(
    server: ServerProcess, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocking in one cell, awaited in another: a bar that is updated in place, and nothing else."""
    pq.write_table(rows(12_000), tmp_path / "in.parquet")
    settings = (
        f"model='m', input={str(tmp_path / 'in.parquet')!r}, keep=['id'], batch_size=50, max_in_flight=1"
    )
    blocking = f"""
from aioserving.jobs import run_job
summary = run_job({server.target!r}, output={str(tmp_path / "a")!r}, progress=True, {settings})
"""
    awaited = f"""
from aioserving import AsyncClient
from aioserving.jobs import Job
async with AsyncClient({server.target!r}) as client:
    summary = await Job(client, output={str(tmp_path / "b")!r}, {settings}).run(progress=True)
"""
    notebook, messages = executed(monkeypatch, blocking, awaited, "print(summary.rows)")
    for cell, folder in enumerate("ab"):
        assert output(tmp_path / folder) == expected(rows(12_000))
        kinds = [kind for number, kind, _ in messages if number == cell]
        contents = [content for number, _, content in messages if number == cell]
        assert kinds.count("display_data") == 1
        assert kinds.count("update_display_data") >= 3
        assert set(kinds) == {"status", "execute_input", "display_data", "update_display_data"}
        pages = [content["data"]["text/html"] for content in contents if "data" in content]
        done = [int(found[1]) for page in pages if (found := re.search(r'<progress value="(\d+)"', page))]
        assert done == sorted(done)
        assert len(set(done)) >= 3
        (last,) = notebook.cells[cell].outputs
        assert json.loads(json.dumps(last["data"])).keys() == {"text/html", "text/plain"}
        assert '<progress value="12000" max="12000"' in last["data"]["text/html"]
        assert "latency of 240 calls" in last["data"]["text/html"]
        assert "12,000 rows in 1 part" in last["data"]["text/plain"]
    assert notebook.cells[2].outputs[0]["text"] == "12000\n"
