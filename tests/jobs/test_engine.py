"""Jobs do every row once, go on where they stopped, and say what is wrong: rows, settings, versions."""

from __future__ import annotations

import asyncio
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pyarrow", reason="needs the extra `batch`")

import pyarrow as pa
import pyarrow.parquet as pq

from aioserving import AsyncClient, Client, errors
from aioserving.jobs import (
    ColumnError,
    InputError,
    Job,
    JobChangedError,
    JobError,
    JobSummary,
    OutputError,
    OutputExistsError,
    OutputLockedError,
    RowRefusedError,
    TooManyBadRowsError,
    VersionGoneError,
    engine,
    run_job,
    storage,
)
from aioserving.testing import CallableServable, ModelServer
from tests.models import graded
from tests.scenarios.jobs import expected, manifest, output, rows, sums


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    """Versions 1 of `sums`, the Examples' models, strings, and a model that answers once for all rows."""
    once = CallableServable(
        lambda x: {"y": x.sum(axis=1), "mean": np.float32(x.mean())},
        inputs={"x": ("float32", (None, 4))},
        outputs={"y": ("float32", (None,)), "mean": ("float32", ())},
        inline=True,
    )
    short = CallableServable(
        lambda x: {"y": x.sum(axis=1)[:-1]},
        inputs={"x": ("float32", (None, 4))},
        outputs={"y": ("float32", (None,))},
        inline=True,
    )
    greeting = CallableServable(
        lambda name: {"greeting": np.array([b"hello " + one for one in name], object)},
        inputs={"name": ("string", (None,))},
        outputs={"greeting": ("string", (None,))},
        inline=True,
    )
    models = {"m": {1: sums()}, "graded": graded(), "once": once, "short": short, "greeting": greeting}
    with ModelServer(models=models) as found:
        yield found


@pytest.fixture
def data(tmp_path: pathlib.Path) -> pathlib.Path:
    """1,050 rows in two files."""
    folder = tmp_path / "in"
    folder.mkdir()
    table = rows(1050)
    pq.write_table(table.slice(0, 700), folder / "a.parquet", row_group_size=130)
    pq.write_table(table.slice(700), folder / "b.parquet")
    return folder


def job_of(client: Any, source: Any, out: Any, **settings: Any) -> Job:
    settings = {
        "model": "m",
        "keep": ["id"],
        "batch_size": 50,
        "part_rows": 200,
        "max_in_flight": 3,
    } | settings
    return Job(client, input=source, output=out, **settings)


def score(server: Any, source: Any, out: Any, **settings: Any) -> JobSummary:
    async def work() -> JobSummary:
        async with AsyncClient(server.target) as client:
            return await job_of(client, source, out, **settings).run()

    return asyncio.run(work())


def fake_crash(monkeypatch: pytest.MonkeyPatch, at: int, *, after: bool) -> Callable[[], int]:
    """Let a job's process seem to die at its n-th change of the output; gives the number of changes made."""
    made = 0

    class CrashError(BaseException):
        pass

    def wrapped(method: Any) -> Any:
        def call(self: Any, *arguments: Any) -> Any:
            nonlocal made
            made += 1
            if made > at or (made == at and not after):
                raise CrashError("crashed")
            result = method(self, *arguments)
            if made == at:
                raise CrashError("crashed")
            return result

        return call

    for name in ("commit", "write", "remove", "discard"):
        monkeypatch.setattr(storage._LocalStorage, name, wrapped(getattr(storage._LocalStorage, name)))
    return lambda: made


def test_every_row_is_in_the_output_once_and_in_order(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Results stand beside what was kept, part by part, whatever the files, row groups and batches."""
    out = tmp_path / "out"
    summary = score(server, data, out)
    assert output(out) == expected(rows(1050))
    assert (out / "_SUCCESS").exists()
    assert [len(pq.read_table(path)) for path in sorted(out.glob("part-*"))] == [200] * 5 + [50]
    assert (summary.rows, summary.written, summary.refused, summary.parts) == (1050, 1050, 0, 6)
    assert (summary.calls, summary.version, summary.resumed, summary.runs) == (21, 1, 0, 1)
    assert summary.latency.count == 21
    assert sum(count for _, _, count in summary.histogram) == 21
    assert pq.read_table(out).num_rows == 1050  # nothing else in the folder looks like data
    metadata = pq.read_schema(out / "part-00000.parquet").metadata
    assert metadata[b"aioserving.version"] == b"1"


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 200, 201])
def test_any_number_of_rows(server: Any, tmp_path: pathlib.Path, count: int) -> None:
    """No row, one row, and numbers that the batch and the part do and do not divide."""
    pq.write_table(rows(count), tmp_path / "in.parquet")
    summary = score(server, tmp_path / "in.parquet", tmp_path / "out")
    assert output(tmp_path / "out") == expected(rows(count))
    assert summary.rows == count
    schema = pq.read_table(tmp_path / "out").schema
    assert schema.names == ["id", "v", "y"]


def test_a_complete_job_has_nothing_to_do(server: Any, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Run again, it calls nobody, changes no file, and says what was done."""
    out = tmp_path / "out"
    score(server, data, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"}
    calls = server.calls.total
    summary = score(server, data, out)
    assert server.calls.total == calls
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.name != "lock"} == before
    assert (summary.rows, summary.scored, summary.resumed) == (1050, 0, 1050)
    assert "nothing left to do" in str(summary)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_at_any_change_of_the_output_loses_and_repeats_nothing(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path, after: bool
) -> None:
    """Wherever it dies, before or after each single step, the next run ends with the undisturbed output."""
    undisturbed = tmp_path / "undisturbed"
    score(server, data, undisturbed, part_rows=400)
    wanted = output(undisturbed)
    redone = []
    with pytest.MonkeyPatch.context() as patch:
        made = fake_crash(patch, 1_000_000, after=after)
        score(server, data, tmp_path / "counted", part_rows=400)
        steps = made()
    for at in itertools.count(1):
        out = tmp_path / f"out-{at}"
        with pytest.MonkeyPatch.context() as patch:
            fake_crash(patch, at, after=after)
            if at <= steps:
                with pytest.raises(BaseException, match="crashed"):
                    score(server, data, out, part_rows=400)
            else:
                score(server, data, out, part_rows=400)
                break
        committed = manifest(out)["rows"] if (out / "_aioserving" / "manifest.json").exists() else 0
        summary = score(server, data, out, part_rows=400)
        assert output(out) == wanted
        assert summary.resumed == committed
        assert summary.rows == 1050
        assert not list(out.rglob("*.tmp"))
        assert (out / "_SUCCESS").exists()
        redone.append(summary.scored)
    assert at > 12
    assert min(redone) == 0


def test_cancelled_it_keeps_what_was_scored(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A cancelled job completes its part with the results that it has; the next one goes on behind them."""
    out = tmp_path / "out"
    with ModelServer(models={"m": sums(pause=0.003)}) as server:

        async def cancelled() -> None:
            async with AsyncClient(server.target) as client:
                job = job_of(client, data, out, part_rows=100_000)
                task = asyncio.create_task(job.run())
                while (progress := job.progress()) is None or progress.rows < 300:
                    await asyncio.sleep(0.002)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert progress.committed == 0
                after = job.progress()
                assert after is not None
                assert 300 <= after.committed < 1050
                assert "ended" in repr(job)

        asyncio.run(cancelled())
        committed = manifest(out)["rows"]
        summary = score(server, data, out)
    assert summary.resumed == committed >= 300
    assert committed % 50 == 0
    assert output(out) == expected(rows(1050))


def test_a_slow_job_completes_parts_by_time(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Where rows are slow, a part is completed after part_seconds, at the end of a batch."""
    with ModelServer(models={"m": sums(pause=0.02)}) as server:
        score(server, data, tmp_path / "out", part_rows=100_000, part_seconds=0.05)
    assert output(tmp_path / "out") == expected(rows(1050))
    assert 2 < len(list((tmp_path / "out").glob("part-*"))) <= 21


def test_a_failing_disk_ends_it_and_nothing_follows_the_gap(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a part cannot be written the job ends and says how to go on; later results are not written."""
    out = tmp_path / "out"
    commit = storage._LocalStorage.commit

    def refuse(self: Any, name: str) -> None:
        if name == "part-00002.parquet":
            raise OSError(28, "No space left on device")
        commit(self, name)

    monkeypatch.setattr(storage._LocalStorage, "commit", refuse)
    with pytest.raises(OutputError, match=r"No space left.*400 rows are safe"):
        score(server, data, out)
    monkeypatch.undo()
    assert manifest(out)["rows"] == 400
    assert sorted(path.name for path in out.glob("part-*")) == ["part-00000.parquet", "part-00001.parquet"]
    assert not list(out.rglob("*.tmp"))
    score(server, data, out)
    assert output(out) == expected(rows(1050))


# -- bad rows -----------------------------------------------------------------------------------------


@pytest.fixture
def bad_data(tmp_path: pathlib.Path) -> tuple[pathlib.Path, set[int]]:
    """230 rows in two files: some are null, some are refused by the server, one batch is bad as a whole."""
    table = rows(230, poison=(7, 120, 229))
    gone = {3, 60, *range(150, 200)}
    x = [None if number in gone else value for number, value in enumerate(table.column("x").to_pylist())]
    table = pa.table({"id": table.column("id"), "x": pa.array(x, table.schema.field("x").type)})
    folder = tmp_path / "bad"
    folder.mkdir()
    pq.write_table(table.slice(0, 110), folder / "1.parquet")
    pq.write_table(table.slice(110), folder / "2.parquet")
    return folder, gone | {7, 120, 229}


@pytest.mark.parametrize("on_error", ["skip", "aside"])
def test_bad_rows_are_left_out(
    server: Any, bad_data: tuple[pathlib.Path, set[int]], tmp_path: pathlib.Path, on_error: Any
) -> None:
    """Rows with nulls and rows that the server refuses are left out, no other; set aside, each is told."""
    source, bad = bad_data
    out = tmp_path / "out"
    summary = score(server, source, out, on_error=on_error, row_number="row")
    wanted = [row for row in expected(rows(230)) if row["id"] not in bad]
    found = output(out)
    assert [(row["id"], row["y"]) for row in found] == [(row["id"], row["y"]) for row in wanted]
    assert [row["row"] for row in found] == [row["id"] for row in wanted]
    assert (summary.rows, summary.written, summary.refused) == (230, 230 - len(bad), len(bad))
    lines = [
        json.loads(line)
        for path in sorted((out / "_aioserving").glob("bad-rows/*.jsonl"))
        for line in path.read_text().splitlines()
    ]
    if on_error == "skip":
        assert lines == []
        return
    assert [line["row"] for line in lines] == sorted(bad)
    assert all(line["values"] == {"id": line["row"]} for line in lines)
    poisoned = next(line for line in lines if line["row"] == 120)
    assert poisoned["file"].endswith("2.parquet")
    assert poisoned["file_row"] == 10
    assert poisoned["error"] == "InvalidArgumentError"
    assert poisoned["code"] == "INVALID_ARGUMENT"
    assert "poisoned" in poisoned["reason"]
    null = next(line for line in lines if line["row"] == 3)
    assert null["error"] == "BadRows"
    assert "null" in null["reason"]


@pytest.mark.parametrize(("poison", "null", "first"), [(120, 200, 120), (200, 120, 120)])
def test_a_bad_row_ends_the_job_in_its_place(
    server: Any, tmp_path: pathlib.Path, poison: int, null: int, first: int
) -> None:
    """The first bad row raises, named by its number and file; all batches before it are in the output."""
    table = rows(230, poison=(poison,))
    x = [None if number == null else value for number, value in enumerate(table.column("x").to_pylist())]
    pq.write_table(
        pa.table({"id": table.column("id"), "x": pa.array(x, table.schema.field("x").type)}),
        tmp_path / "in.parquet",
    )
    with pytest.raises(RowRefusedError, match=f"row {first} ") as caught:
        score(server, tmp_path / "in.parquet", tmp_path / "out")
    assert (caught.value.row, caught.value.file_row) == (first, first)
    assert caught.value.url.endswith("in.parquet")
    assert isinstance(caught.value.__cause__, errors.InvalidArgumentError) == (first == poison)
    assert output(tmp_path / "out") == expected(rows(230).slice(0, 100))
    with pytest.raises(RowRefusedError, match=f"row {first} "):
        score(server, tmp_path / "in.parquet", tmp_path / "out")
    with pytest.raises(JobChangedError, match='on_error was "raise" and is "skip"'):
        score(server, tmp_path / "in.parquet", tmp_path / "out", on_error="skip")
    summary = score(server, tmp_path / "in.parquet", tmp_path / "out", on_error="skip", on_change="continue")
    assert (summary.written, summary.refused, summary.resumed) == (228, 2, 100)
    assert [row["id"] for row in output(tmp_path / "out")] == [n for n in range(230) if n not in (120, 200)]
    assert "on_error" in str(summary.changes)


def test_too_many_bad_rows_end_the_job(
    server: Any, bad_data: tuple[pathlib.Path, set[int]], tmp_path: pathlib.Path
) -> None:
    """Beyond max_bad_rows it ends, at once when run again, and goes on with a higher limit."""
    source, bad = bad_data
    for _ in range(2):
        with pytest.raises(TooManyBadRowsError, match="max_bad_rows=3"):
            score(server, source, tmp_path / "out", on_error="skip", max_bad_rows=3)
    committed = manifest(tmp_path / "out")["rows"]
    assert 100 <= committed < 230
    summary = score(server, source, tmp_path / "out", on_error="skip", max_bad_rows=None)
    assert (summary.refused, summary.written, summary.resumed) == (len(bad), 230 - len(bad), committed)


def test_a_job_of_bad_rows_only(server: Any, tmp_path: pathlib.Path) -> None:
    """If no row can be sent, nothing is called, and the output has columns and no rows."""
    table = pa.table({"id": pa.array([1, 2, 3]), "x": pa.nulls(3, pa.list_(pa.float32(), 4))})
    pq.write_table(table, tmp_path / "in.parquet")
    summary = score(server, tmp_path / "in.parquet", tmp_path / "out", on_error="aside")
    assert (summary.rows, summary.written, summary.refused, summary.calls) == (3, 0, 3, 0)
    assert pq.read_table(tmp_path / "out").schema.names == ["id", "v", "y"]
    assert score(server, tmp_path / "in.parquet", tmp_path / "out", on_error="aside").scored == 0


def test_answers_have_a_row_for_each_row(server: Any, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """An output of another length ends the job; one value for all rows is refused before any call."""
    with pytest.raises(JobError, match=r"shape \(49,\) for 50 rows"):
        score(server, data, tmp_path / "1", model="short")
    with pytest.raises(JobError, match=r"'mean'.*output_filter=\['y'\]"):
        score(server, data, tmp_path / "2", model="once")
    score(server, data, tmp_path / "3", model="once", output_filter="y")
    assert pq.read_table(tmp_path / "3").schema.names == ["id", "y"]


# -- columns ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "told"),
    [
        (pa.table({"id": [1], "z": ["text"]}), "'x'"),
        (pa.table({"id": [1], "x": ["text"]}), "'x'"),
        (pa.table({"x": pa.array([[1, 2, 3, 4]], pa.list_(pa.float32(), 4))}), "no column 'id' to keep"),
    ],
)
def test_columns_that_cannot_be_sent_are_told_before_any_call(
    server: Any, tmp_path: pathlib.Path, table: Any, told: str
) -> None:
    """A missing column and one of a wrong type are refused by name; the output is left empty."""
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(ColumnError, match=told):
        score(server, tmp_path / "in.parquet", tmp_path / "out")
    assert not list((tmp_path / "out").glob("part-*"))
    pq.write_table(rows(10), tmp_path / "good.parquet")
    assert score(server, tmp_path / "good.parquet", tmp_path / "out").rows == 10  # no trace of the failure


def test_columns_are_named_and_renamed(server: Any, tmp_path: pathlib.Path) -> None:
    """Inputs take the columns they are told, one or several; kept columns get the names they are given."""
    table = rows(120)
    x = np.stack(table.column("x").to_numpy(zero_copy_only=False))
    wide = pa.table({"id": table.column("id"), **{f"c{i}": x[:, i] for i in range(4)}})
    pq.write_table(wide, tmp_path / "in.parquet")
    score(
        server,
        tmp_path / "in.parquet",
        tmp_path / "out",
        inputs={"x": ["c0", "c1", "c2", "c3"]},
        keep={"number": "id"},
        output_filter=["y"],
    )
    assert output(tmp_path / "out") == [{"number": row["id"], "y": row["y"]} for row in expected(table)]


@pytest.mark.parametrize(("method", "signature"), [("classify", "classify"), ("regress", "regress")])
def test_examples_are_classified_and_regressed(
    server: Any, tmp_path: pathlib.Path, method: Any, signature: str
) -> None:
    """Serialized Examples go to Classify and Regress, and a bad one is left out by itself."""
    from aioserving.tf_examples import serialize_examples

    values = [number / 100 for number in range(99)]
    examples = [serialize_examples([{"x": [value]}])[0] for value in values]
    examples.insert(40, serialize_examples([{"other": [1.0]}])[0])
    pq.write_table(pa.table({"e": pa.array(examples, pa.binary())}), tmp_path / "in.parquet")
    score(
        server,
        tmp_path / "in.parquet",
        tmp_path / "out",
        model="graded",
        signature=signature,
        method=method,
        keep=(),
        row_number="row",
        on_error="skip",
    )
    found = output(tmp_path / "out")
    assert [row["row"] for row in found] == [number for number in range(100) if number != 40]
    if method == "classify":
        assert found[0]["classes"] == [b"low", b"high"]
        assert [row["scores"][1] for row in found] == pytest.approx(values)
    else:
        assert [row["value"] for row in found] == pytest.approx([value / 2 + 2 for value in values])


@pytest.mark.parametrize("form", ["jsonl", "npy", "parquet"])
def test_strings_and_formats(server: Any, tmp_path: pathlib.Path, form: Any) -> None:
    """Strings go and come in every format."""
    pq.write_table(pa.table({"name": [f"n{i}" for i in range(120)]}), tmp_path / "in.parquet")
    out = tmp_path / "out"
    score(
        server,
        tmp_path / "in.parquet",
        out,
        model="greeting",
        keep=["name"],
        output_format=form,
        strings="utf8",
    )
    wanted = [f"hello n{i}" for i in range(120)]
    if form == "npy":
        parts = [np.load(path) for path in sorted(out.glob("part-*.greeting.npy"))]
        assert [item.decode() for part in parts for item in part.tolist()] == wanted
    elif form == "jsonl":
        lines = [line for path in sorted(out.glob("part-*.jsonl")) for line in path.read_text().splitlines()]
        assert [json.loads(line)["greeting"] for line in lines] == wanted
    else:
        assert [row["greeting"] for row in output(out)] == wanted


# -- what differs -------------------------------------------------------------------------------------


def interrupted(server: Any, source: pathlib.Path, out: pathlib.Path, **settings: Any) -> int:
    """Begin a job, and end it after some parts; gives the rows that are done."""
    begin = engine._Run._complete_part

    class StopError(Exception):
        pass

    def stop(self: Any) -> None:
        if self._manifest.next_part == 2:
            raise StopError
        begin(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine._Run, "_complete_part", stop)
        with pytest.raises(StopError):
            score(server, source, out, **settings)
    done = manifest(out)["rows"]
    assert done == 400
    return int(done)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"batch_size": 25}, "batch_size was 50 and is 25"),
        ({"keep": []}, "keep was"),
        ({"output_filter": ["y"]}, 'output_filter was null and is \\["y"\\]'),
        ({"output_format": "jsonl"}, "output_format"),
        ({"version": 2}, "version was null and is 2"),
        ({"inputs": {"x": "x"}}, "inputs was"),
    ],
)
def test_other_settings_are_refused(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path, change: dict[str, Any], told: str
) -> None:
    """What decides the rows must be as it was; the error says what differs, and nothing is touched."""
    out = tmp_path / "out"
    interrupted(server, data, out)
    before = manifest(out)
    with pytest.raises(JobChangedError, match=told):
        score(server, data, out, **change)
    assert manifest(out) == before
    score(server, data, out, max_in_flight=1, part_rows=300, version=1)  # these do not decide the rows
    assert output(out) == expected(rows(1050))


def test_another_input_is_refused_or_begun_anew(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A file that was replaced between runs is noticed; restart discards the output, all of it."""
    out = tmp_path / "out"
    interrupted(server, data, out)
    other = rows(90, start=5000)
    pq.write_table(other, data / "a.parquet")
    with pytest.raises(JobChangedError, match="1 input file changed"):
        score(server, data, out)
    with pytest.raises(JobChangedError, match="cannot be continued: files that were read"):
        score(server, data, out, on_change="continue")
    summary = score(server, data, out, on_change="restart")
    assert summary.rows == 90 + 350
    assert [row["id"] for row in output(out)] == [*range(5000, 5090), *range(700, 1050)]


def test_files_that_were_added_can_be_gone_on_with(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A complete job that is told to continue does what came after it, and only that."""
    out = tmp_path / "out"
    score(server, data, out)
    more = rows(60, start=2000)
    pq.write_table(more, data / "c.parquet")
    with pytest.raises(JobChangedError, match="1 input file new"):
        score(server, data, out)
    summary = score(server, data, out, on_change="continue")
    assert (summary.resumed, summary.scored, summary.rows) == (1050, 60, 1110)
    assert output(out) == expected(rows(1050)) + expected(more)
    assert summary.changes[0]["row"] == 1050


def test_columns_of_another_kind_cannot_be_continued(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Parts of one output have the same columns, whatever on_change says."""
    out = tmp_path / "out"
    interrupted(server, data, out)
    with pytest.raises(JobChangedError, match="cannot be continued with another keep"):
        score(server, data, out, keep=[], on_change="continue")
    with pytest.raises(JobChangedError, match="output's columns were"):
        score(
            server, data, out, model="once", output_filter=None, on_change="continue", keep=["id"]
        ) if False else (score(server, data, out, model="short", on_change="continue"))


def test_an_output_that_others_wrote_is_refused(
    server: Any, data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """A folder with files that no job's manifest tells of is left alone, also by restart."""
    for name in ("notes.txt", "part-00000.parquet"):
        out = tmp_path / name.partition(".")[0]
        out.mkdir()
        (out / name).write_bytes(b"precious")
        with pytest.raises(OutputExistsError, match=name):
            score(server, data, out, on_change="restart")
        assert (out / name).read_bytes() == b"precious"


def test_the_output_is_not_in_the_input(server: Any, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A job that would read what it writes is refused."""
    with pytest.raises(OutputError, match="files of the input in it"):
        score(server, data, data)
    with pytest.raises(OutputError, match="files of the input in it"):
        score(server, data, tmp_path)
    with pytest.raises(InputError, match="no such file"):
        score(server, tmp_path / "nothing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_jobs_on_one_output(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """While one writes, the other is refused and told who it is; the first is not disturbed."""
    with ModelServer(models={"m": sums(pause=0.005)}) as server:

        async def both() -> None:
            async with AsyncClient(server.target) as client:
                first = job_of(client, data, tmp_path / "out")
                running = asyncio.create_task(first.run())
                while (progress := first.progress()) is None or not progress.parts:
                    await asyncio.sleep(0.002)
                with pytest.raises(OutputLockedError, match="pid"):
                    await job_of(client, data, tmp_path / "out").run()
                with pytest.raises(RuntimeError, match="run once"):
                    await first.run()
                await running

        asyncio.run(both())
    assert output(tmp_path / "out") == expected(rows(1050))


# -- versions -----------------------------------------------------------------------------------------


def test_a_version_rolled_out_in_mid_job_does_not_mix_in(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """The version is that of the beginning, also in the run that goes on, though a newer one serves."""
    out = tmp_path / "out"
    with ModelServer(models={"m": {1: sums(1)}}) as server:
        interrupted(server, data, out)
        server.add_version("m", 2, sums(2))
        _wait_for(lambda: server.states("m").get(2) == "AVAILABLE")
        summary = score(server, data, out)
    assert summary.version == 1
    assert output(out) == expected(rows(1050))


def test_a_version_that_went_away_is_told(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """If the version is gone, the error says which are there and how to go on; continue takes another one."""
    out = tmp_path / "out"
    with ModelServer(models={"m": {1: sums(1)}}) as server:
        interrupted(server, data, out)
        server.add_version("m", 2, sums(2))
        server.remove_version("m", 1)
        _wait_for(lambda: server.states("m").get(1) == "END")
        with pytest.raises(VersionGoneError, match="version 1 of model 'm'.*served: 2") as caught:
            score(server, data, out)
        assert caught.value.available == (2,)
        with pytest.raises(JobChangedError, match="version was null and is 2"):
            score(server, data, out, version=2)
        summary = score(server, data, out, version=2, on_change="continue")
    assert summary.version == 2
    found = output(out)
    assert [row["v"] for row in found] == [1] * 400 + [2] * 650
    assert [row["y"] for row in found] == [row["y"] for row in expected(rows(1050))]


def test_a_version_that_goes_away_in_mid_job_is_told(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unloaded while the job runs, the version is waited for a little, then the job ends with what it has."""
    monkeypatch.setattr(engine, "_COME_BACK", 0.3)
    out = tmp_path / "out"
    with ModelServer(models={"m": {1: sums(1, pause=0.02)}}) as server:

        async def work() -> None:
            async with AsyncClient(server.target) as client:
                job = job_of(client, data, out, batch_size=10, max_in_flight=1)
                running = asyncio.create_task(job.run())
                while (progress := job.progress()) is None or progress.rows < 200:
                    await asyncio.sleep(0.002)
                await asyncio.to_thread(server.add_version, "m", 2, sums(2))
                await asyncio.to_thread(server.remove_version, "m", 1)
                with pytest.raises(VersionGoneError, match="served: 2"):
                    await running

        asyncio.run(work())
    done = manifest(out)["rows"]
    assert 200 <= done < 1050
    assert output(out) == expected(rows(1050).slice(0, done))


def test_a_label_is_looked_up_once(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A label is resolved when the job begins; where it points later does not matter to that job."""
    out = tmp_path / "out"
    with ModelServer(models={"m": {1: sums(1), 2: sums(2)}}) as server, Client(server.target) as client:
        config = [{"name": "m", "base_path": "/callable/m", "model_version_policy": {"specific": [1, 2]}}]
        client.reload_config([{**config[0], "version_labels": {"stable": 1}}])
        interrupted(server, data, out, version="stable")
        client.set_labels("m", {"stable": 2})
        assert client.get_model_metadata("m", version_label="stable").version == 2
        summary = score(server, data, out, version="stable")
        assert summary.version == 1
        with pytest.raises(errors.VersionLabelNotFoundError):
            score(server, data, tmp_path / "none", version="canary")
    assert output(out) == expected(rows(1050))


def _wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- faces --------------------------------------------------------------------------------------------


def test_it_runs_in_plain_code(server: Any, data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A blocking client's job is run without an event loop of one's own; so does `run_job`."""
    with Client(server.target) as client:
        job = job_of(client, str(data / "*.parquet"), tmp_path / "1")
        assert "not started" in repr(job)
        assert job.run_blocking().rows == 1050
        with pytest.raises(TypeError, match="run_blocking"):
            asyncio.run(job_of(client, data, tmp_path / "x").run())
    summary = run_job(server.target, model="m", input=data, output=tmp_path / "2", keep=["id"])
    assert output(tmp_path / "1") == output(tmp_path / "2")
    assert json.loads(json.dumps(summary.to_json()))["rows"] == 1050
    with pytest.raises(TypeError, match="await"):
        job_of(AsyncClient(server.target), data, tmp_path / "x").run_blocking()


def test_output_goes_to_any_filesystem(server: Any, data: pathlib.Path) -> None:
    """Input and output may be anywhere that fsspec reaches, and a job there goes on like any other."""
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(data.glob("*")):
        memory.pipe_file(f"/jobs-in/{path.name}", path.read_bytes())
    try:

        def stop(self: Any) -> None:
            raise RuntimeError("just before the end")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine._Run, "_complete", stop)
            with pytest.raises(RuntimeError, match="just before"):
                score(server, "memory://jobs-in/", "memory://jobs-out/")
        summary = score(server, "memory://jobs-in/", "memory://jobs-out/")
        assert (summary.resumed, summary.rows) == (1050, 1050)
        parts = sorted(memory.glob("/jobs-out/part-*"))
        with memory.open(parts[0]) as file:
            assert pq.read_table(file).num_rows == 200
        assert len(parts) == 6
    finally:
        for folder in ("/jobs-in", "/jobs-out"):
            if memory.exists(folder):
                memory.rm(folder, recursive=True)


@pytest.mark.parametrize(
    "setting",
    [
        {"batch_size": 0},
        {"part_rows": 0},
        {"max_in_flight": 0},
        {"max_bad_rows": -1},
        {"part_seconds": 0},
        {"outage": -1},
        {"on_error": "ignore"},
        {"on_change": "maybe"},
        {"output_format": "xls"},
        {"method": "guess"},
        {"strings": "latin1"},
        {"version": True},
        {"method": "classify", "output_filter": ["y"]},
    ],
)
def test_settings_are_checked_when_a_job_is_made(setting: dict[str, Any]) -> None:
    """A setting that is out of range is named, before anything is read or called."""
    with pytest.raises(ValueError, match=next(iter(setting)) if len(setting) == 1 else "output_filter"):
        Job(AsyncClient("127.0.0.1:1"), **{"model": "m", "input": "in", "output": "out", **setting})


def test_a_server_that_is_not_there_is_waited_for(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Nobody answering is an error after the outage's time, and the same job works once somebody does."""
    with ModelServer(models={"m": sums()}) as server:
        port = server.port
    with pytest.raises(errors.UnavailableError):
        asyncio.run(_to(port, data, tmp_path / "out", outage=0.2))
    with ModelServer(models={"m": sums()}, port=port):
        assert asyncio.run(_to(port, data, tmp_path / "out")).rows == 1050


async def _to(port: Any, data: pathlib.Path, out: pathlib.Path, **settings: Any) -> JobSummary:
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        return await job_of(client, data, out, **settings).run()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:moto")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:werkzeug")
def test_a_job_on_s3(
    server: Any, data: pathlib.Path, s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From and to an S3 interface: parts appear, the lock is exclusive, an ended job goes on."""
    import s3fs

    options = {**s3, "skip_instance_cache": True}
    files = s3fs.S3FileSystem(**options)
    files.mkdir("bucket")
    for path in sorted(data.glob("*")):
        files.pipe_file(f"bucket/in/{path.name}", path.read_bytes())
    monkeypatch.setattr(storage, "LEASE", 1.0)
    place = storage.open_storage("s3://bucket/locked", options)
    with place.lock(), pytest.raises(OutputLockedError, match="pid"):
        storage.open_storage("s3://bucket/locked", options).lock()
    with pytest.MonkeyPatch.context() as patch:
        complete = engine._Run._complete_part

        def stop(self: Any) -> None:
            if self._manifest.next_part == 2:
                raise RuntimeError("in between")
            complete(self)

        patch.setattr(engine._Run, "_complete_part", stop)
        with pytest.raises(RuntimeError, match="in between"):
            score(server, "s3://bucket/in/", "s3://bucket/out", storage_options=options)
    summary = score(server, "s3://bucket/in/", "s3://bucket/out", storage_options=options)
    assert (summary.resumed, summary.rows) == (400, 1050)
    files.invalidate_cache()
    found: list[dict[str, Any]] = []
    for path in sorted(files.glob("bucket/out/part-*")):
        with files.open(path) as file:
            found += pq.read_table(file).to_pylist()
    assert found == expected(rows(1050))
    assert files.exists("bucket/out/_SUCCESS")
