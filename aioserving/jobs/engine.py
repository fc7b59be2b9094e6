"""Jobs: every row of some files scored by a model, the results in other files, exactly once.

    Job         what to score with what, and where to put it; `Job.run` does it, or goes on with it
    run_job     all of it in one call, for scripts and notebooks

How it works: a thread reads the files ahead, in a fixed order, and cuts them into batches of ``batch_size``
rows; `aioserving.scoring` sends them, several at a time, and hands results out in order; another thread
writes them. A part of the output is complete when it has the results of ``part_rows`` rows of the input: its
files are put in place, then the manifest that names them, and where reading goes on (see
`aioserving.jobs.manifest`). A job that ends, however it ends, goes on behind the last part that the manifest
names. Batches begin at the same rows whether it was interrupted or not, so the numbers are the same, too, to
the last bit.

The version of the model is looked up once, at the beginning, and every request names it.

What files look like is known to `inputs`, `columns` and `outputs`; retries of single calls are the client's.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import anyio
import numpy as np

from aioserving import errors
from aioserving._types import DEFAULT, Array, Metadata, Timeout
from aioserving.blocking import Client
from aioserving.client import AsyncClient, Model
from aioserving.dtypes import DataType
from aioserving.jobs import manifest as record
from aioserving.jobs.errors import (
    BadRows,
    ColumnError,
    JobChangedError,
    JobError,
    OutputError,
    OutputExistsError,
    RowRefusedError,
    TooManyBadRowsError,
    VersionGoneError,
)
from aioserving.jobs.inference import infer, output_specs
from aioserving.jobs.manifest import Manifest, Part
from aioserving.jobs.outputs import FORMATS, OutputColumns, OutputFormat, PartWriter, Strings, for_json
from aioserving.jobs.storage import Lock, Storage, open_storage
from aioserving.jobs.summary import JobProgress, JobSummary
from aioserving.latency import LatencyHistogram
from aioserving.prediction import PredictResult
from aioserving.scoring import PreparedBatches, ScoredBatch, Scoring, ScoringProgress
from aioserving.signature import Signature, TensorSpec
from aioserving.status import State

if TYPE_CHECKING:
    from aioserving.jobs.columns import Decoder
    from aioserving.jobs.inputs import Cursor, Inputs, Piece, Source
    from aioserving.jobs.progress import Progress
    from aioserving.targets import Targets

__all__ = ["Job", "Method", "OnBadRow", "OnChange", "run_job"]

logger = logging.getLogger("aioserving")

T = TypeVar("T")

#: What is called.
Method: TypeAlias = Literal["predict", "classify", "regress"]

#: What becomes of rows that cannot be scored.
OnBadRow: TypeAlias = Literal["raise", "skip", "aside"]

#: What becomes of an output that a job with other settings, input or version began.
OnChange: TypeAlias = Literal["refuse", "restart", "continue"]

#: Rows, and bytes of results, that are handed to the writing thread at a time.
_BLOCK_ROWS: Final = 8192
_BLOCK_BYTES: Final = 4 << 20
#: Rows that are read at a time, about.
_PIECE_ROWS: Final = 8192
#: Bytes of what is sent of them, at most, if a batch has less.
_PIECE_BYTES: Final = 8 << 20
#: Seconds for which servers are waited for before the first call.
_FIRST_CONTACT: Final = 30.0
#: Seconds for which a version that was unloaded, while others are served, may come back.
_COME_BACK: Final = 10.0
#: Why a row was left out is told in so many characters.
_REASON: Final = 1000


class Job:
    """A model's results for every row of some files, in other files, exactly once.

    ```python
    async with AsyncClient("127.0.0.1:8500") as client:
        job = Job(client, model="digits", input="data/*.parquet", output="out/", keep=["id"])
        summary = await job.run(progress=True)
    ```

    Run again after it was interrupted, at any moment and in any way, the same job goes on where it stopped;
    in the end the output has the same rows as if nothing had happened. Run again when it is complete, it does
    nothing. The output is a folder of ``part-*`` files; `aioserving.jobs.outputs` says what is in them.

    What decides the rows is noted in the output: the input's files (their sizes, and etags or times), the
    model's version, and all settings below but those marked with *. If any of it differs, the job is refused
    (`JobChangedError`), unless `on_change` says otherwise.

    Args:
        client: the client that makes the calls; of a blocking `Client`, use `run_blocking`.
        model: name of the model.
        input: path or URL of a file, a folder or a pattern, or several; see `aioserving.jobs.inputs`.
        output: folder, or URL of one, that this job has for itself. It is made if it is not there.
        version: number of the version, or its label; the newest available one if None. It is looked up when
            the job first begins, and used until its end, whatever is rolled out meanwhile.
        signature: name of the signature.
        method: ``"predict"``; ``"classify"`` and ``"regress"`` are for serialized tf.Examples.
        inputs: columns by the model's input, where names differ: ``{"x": "pixels"}``, or several columns for
            one input: ``{"x": ["a", "b"]}``. See `aioserving.jobs.columns`.
        decode: functions by input that make arrays of what is in a column, as images of paths or bytes.
        keep: columns of the input that the output has, too: names, or new names to names.
        row_number: name of a column of the output with the number of the row in the input; none if None.
        output_filter: names of the model's outputs to ask for; all if not given.
        batch_size: rows of a call.
        max_in_flight: * calls at a time; found while it runs if None.
        on_error: what becomes of rows that cannot be scored, because of their values or because the server
            refuses them: ``"raise"`` ends the job before the first one (`RowRefusedError`); ``"skip"`` leaves
            them out; ``"aside"`` does, too, and writes each, with its number, file, error and kept columns,
            to ``_aioserving/bad-rows/part-*.jsonl`` in the output.
        max_bad_rows: * rows that may be left out before the job ends (`TooManyBadRowsError`); None for any
            number.
        on_change: * what becomes of an output that another job began, or this one with another input or
            version: ``"refuse"``; ``"restart"`` removes it and begins anew; ``"continue"`` scores what is
            left as asked now, which is possible while the output's columns and the files read so far are the
            same.
        part_rows: * rows of the input to a part, a multiple of `batch_size` or rounded up to one.
        part_seconds: * seconds after which a part is completed though it has fewer rows, so that a slow job
            does not lose much by a power cut; None for never.
        input_format: format of the input, where the files' names do not tell.
        input_options: further arguments of `aioserving.jobs.inputs.open_inputs`.
        output_format: ``"parquet"``, ``"jsonl"`` or ``"npy"``.
        output_options: what the format takes; of Parquet, arguments of `pyarrow.parquet.ParquetWriter`.
        strings: what strings become in Parquet: ``"binary"``, or ``"utf8"``, which fails where they are none.
        storage_options: * arguments of the fsspec filesystems of input and output.
        output_storage_options: * those of the output, if they are others.
        outage: * seconds for which servers that do not answer are waited for.
        timeout: * seconds until a call fails; the client's own setting if not given.
        metadata: * gRPC metadata of the calls.

    Raises:
        ValueError: a setting is out of range, or two do not go together.
    """

    def __init__(
        self,
        client: AsyncClient | Client,
        *,
        model: str,
        input: Source,
        output: str | os.PathLike[str],
        version: int | str | None = None,
        signature: str = "serving_default",
        method: Method = "predict",
        inputs: Mapping[str, str | Sequence[str]] | None = None,
        decode: Mapping[str, Decoder] | None = None,
        keep: Sequence[str] | Mapping[str, str] = (),
        row_number: str | None = None,
        output_filter: Sequence[str] | None = None,
        batch_size: int = 256,
        max_in_flight: int | None = None,
        on_error: OnBadRow = "raise",
        max_bad_rows: int | None = None,
        on_change: OnChange = "refuse",
        part_rows: int = 100_000,
        part_seconds: float | None = 600.0,
        input_format: str | None = None,
        input_options: Mapping[str, Any] | None = None,
        output_format: OutputFormat = "parquet",
        output_options: Mapping[str, Any] | None = None,
        strings: Strings = "binary",
        storage_options: Mapping[str, Any] | None = None,
        output_storage_options: Mapping[str, Any] | None = None,
        outage: float = 300.0,
        timeout: Timeout = DEFAULT,
        metadata: Metadata = (),
    ) -> None:
        for name, value in (("batch_size", batch_size), ("part_rows", part_rows)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        if max_in_flight is not None and (not isinstance(max_in_flight, int) or max_in_flight < 1):
            raise ValueError(f"max_in_flight must be a whole number of at least 1, got {max_in_flight!r}")
        if max_bad_rows is not None and (not isinstance(max_bad_rows, int) or max_bad_rows < 0):
            raise ValueError(f"max_bad_rows must be a whole number of at least 0, got {max_bad_rows!r}")
        if part_seconds is not None and not part_seconds > 0:
            raise ValueError(
                f"part_seconds must be a number of seconds above 0, or None; got {part_seconds!r}"
            )
        if not outage >= 0:
            raise ValueError(f"outage must be a number of seconds, at least 0; got {outage!r}")
        for name, chosen, choices in (
            ("method", method, ("predict", "classify", "regress")),
            ("on_error", on_error, ("raise", "skip", "aside")),
            ("on_change", on_change, ("refuse", "restart", "continue")),
            ("output_format", output_format, tuple(FORMATS)),
            ("strings", strings, ("binary", "utf8")),
        ):
            if chosen not in choices:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {chosen!r}")
        if isinstance(version, bool) or not (version is None or isinstance(version, (int, str))):
            raise ValueError(f"version must be a number, a label or None; got {version!r}")
        if isinstance(keep, str):
            keep = (keep,)
        if isinstance(output_filter, str):
            output_filter = (output_filter,)
        if method != "predict" and output_filter:
            raise ValueError(f"output_filter is for method='predict', not {method!r}")
        self.client = client
        self.model = model
        self.input = input
        self.output = os.fspath(output)
        self.version = version
        self.batch_size = batch_size
        self.part_rows = -(-part_rows // batch_size) * batch_size
        self._signature_name = signature
        self._method: Method = method
        self._mapped = dict(inputs or {})
        self._decode = dict(decode or {})
        self._keep = dict(keep) if isinstance(keep, Mapping) else {name: name for name in keep}
        self._row_number = row_number
        self._output_filter = tuple(output_filter) if output_filter is not None else None
        self._max_in_flight = max_in_flight
        self._on_error = on_error
        self._max_bad_rows = max_bad_rows
        self._on_change = on_change
        self._part_seconds = part_seconds
        self._input_format = input_format
        self._input_options = dict(input_options or {})
        self._output_format: OutputFormat = output_format
        self._output_options = dict(output_options or {})
        self._strings: Strings = strings
        self._storage_options = dict(storage_options or {})
        self._output_storage_options = (
            self._storage_options if output_storage_options is None else dict(output_storage_options)
        )
        self._outage = outage
        self._timeout: Timeout = timeout
        self._metadata = metadata
        self._run: _Run | None = None

    def __repr__(self) -> str:
        state = "not started" if self._run is None else str(self._run)
        return f"<Job by {self.model!r} to {self.output}: {state}>"

    def settings(self) -> dict[str, Any]:
        """What decides the rows of the output, as the manifest holds it."""
        return {
            "model": self.model,
            "version": self.version,
            "signature": self._signature_name,
            "method": self._method,
            "inputs": {
                name: column if isinstance(column, str) else list(column)
                for name, column in sorted(self._mapped.items())
            },
            "decode": {name: _name_of(decoder) for name, decoder in sorted(self._decode.items())},
            "keep": self._keep,
            "row_number": self._row_number,
            "output_filter": None if self._output_filter is None else list(self._output_filter),
            "batch_size": self.batch_size,
            "on_error": self._on_error,
            "output_format": self._output_format,
            "output_options": {name: str(value) for name, value in sorted(self._output_options.items())},
            "strings": self._strings,
        }

    def progress(self) -> JobProgress | None:
        """How far the job is, from any thread; None before its first call."""
        return self._run.progress() if self._run is not None else None

    async def run(self, *, progress: bool | Progress = False) -> JobSummary:
        """Score what is left to score, and return when the output is complete.

        Cancelled (by Ctrl-C, too), it completes the part with the results that it has, gives the output free,
        and raises; the same job goes on from there.

        Args:
            progress: True shows it: a live bar on a terminal, a widget in a notebook, else a line now and
                then, by the logger ``aioserving`` where that tells such things, or on standard error. Or an
                object of one's own, see `aioserving.jobs.progress.Progress`.

        Raises:
            InputError: the input cannot be read; `InputChanged` if it is not what it was.
            ColumnError: the input has no columns for the model's inputs, or not of their type.
            OutputError: the output cannot be written: `OutputExistsError`, `OutputLockedError`.
            JobChangedError: another job began this output.
            RowRefusedError: a row cannot be scored; TooManyBadRowsError: too many cannot.
            VersionGoneError: the version that the output was begun with is no longer served.
            RPCError: servers cannot be reached, or fail otherwise, for longer than `outage`.
        """
        if not isinstance(self.client, AsyncClient):
            raise TypeError("a job of a blocking Client is run by run_blocking()")
        return await self._run_on(self.client, progress)

    def run_blocking(self, *, progress: bool | Progress = False) -> JobSummary:
        """As `run`, for plain code, with a blocking `Client`.

        Ctrl-C once completes the part with the results that there are, then raises KeyboardInterrupt; once
        more raises it at once. Either way the same job goes on from there.
        """
        client = self.client
        if not isinstance(client, Client):
            raise TypeError("a job of an AsyncClient is run by 'await job.run()'")
        begun, done = threading.Event(), threading.Event()

        async def work() -> JobSummary:
            begun.set()
            try:
                return await self._run_on(client._client, progress)
            finally:
                done.set()

        try:
            return client._run(work())
        except KeyboardInterrupt:
            if begun.wait(0.2) and not done.is_set():
                logger.warning("interrupted: completing what was scored; Ctrl-C again to end at once")
                done.wait()
            raise

    async def _run_on(self, client: AsyncClient, progress: bool | Progress) -> JobSummary:
        if self._run is not None:
            raise RuntimeError("a job is run once; make another one of the same settings")
        run = self._run = _Run(self, client)
        return await run.run(progress)


def run_job(
    targets: Targets,
    *,
    model: str,
    input: Source,
    output: str | os.PathLike[str],
    progress: bool | Progress = False,
    client_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> JobSummary:
    """Score files in one call, from plain code and from notebooks.

    ```python
    run_job("127.0.0.1:8500", model="digits", input="data/", output="out/", keep=["id"], progress=True)
    ```

    Args:
        targets: the servers, as `Client` takes them.
        model: see `Job`.
        input: see `Job`.
        output: see `Job`.
        progress: see `Job.run`.
        client_options: further arguments of `Client`: TLS, credentials, retries.
        **settings: further arguments of `Job`.

    Raises:
        JobError: see `Job.run`.
    """
    with Client(targets, **(client_options or {})) as client:
        job = Job(client, model=model, input=input, output=output, **settings)
        return job.run_blocking(progress=progress)


# -- one run ------------------------------------------------------------------------------------------


class _Rows(NamedTuple):
    """Rows of a piece that follow one another."""

    piece: _Read
    #: Number of the first one in the piece, and how many there are.
    offset: int
    size: int


@dataclass(eq=False, slots=True)
class _Read:
    """A piece as it was read, and what is needed of it."""

    piece: Piece
    #: A `pyarrow.RecordBatch` of the columns that are kept, under their new names; None if there are none.
    kept: Any
    #: What is sent of it, if that can be had of all rows at once: arrays by input.
    columns: Mapping[Any, Array] | None


@dataclass(eq=False, slots=True)
class _Cut:
    """A batch as it was cut from the input."""

    #: Number of its first row in the input, and of the one after the last.
    start: int
    stop: int
    #: Where its rows are.
    parts: list[_Rows]
    #: Rows that could not be sent, by their position in the batch, and why.
    bad: Mapping[int, str] = field(default_factory=dict)
    #: Positions of those that were sent; None for all.
    sent: Array | None = None

    def cursor(self) -> Cursor:
        """Where reading goes on after it."""
        read, offset, count = self.parts[-1]
        return read.piece.cursor_at(offset + count)

    def place(self, row: int) -> tuple[_Read, int]:
        """The piece that has a row of the input, and the row's number in it."""
        position = row - self.start
        for read, offset, count in self.parts:
            if position < count:
                return read, offset + position
            position -= count
        raise IndexError(row)

    def origin(self, row: int) -> tuple[int, int]:
        """The file, and the number in it, of a row of the input."""
        read, number = self.place(row)
        return read.piece.start.file, read.piece.start.row + number


@dataclass(eq=False, slots=True)
class _Scored:
    """A batch with its results, on its way to the file."""

    cut: _Cut
    #: Arrays by output, or None if no row has a result.
    outputs: Mapping[str, Array] | None
    #: Positions in the batch of the rows with results; None for all.
    good: Array | None
    #: What is to be said of rows that were set aside.
    aside: list[dict[str, Any]]
    refused: int


class _Run:
    """One run of a job: from the lock to the last part."""

    def __init__(self, job: Job, client: AsyncClient) -> None:
        self.job = job
        self._client = client
        self._began = time.monotonic()
        self._ended: float | None = None
        #: Up to when the manifest has counted this run's time.
        self._counted_until = self._began
        #: The one thread in which everything about the output happens, in order.
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="aioserving-job-output")
        # Set in that thread.
        self._inputs: Inputs | None = None
        self._storage: Storage | None = None
        self._lock: Lock | None = None
        self._manifest: Manifest | None = None
        self._writer: PartWriter | None = None
        self._aside: list[dict[str, Any]] = []
        self._part = _Counts()
        #: Whether results could not be written: nothing must follow them.
        self._failed = False
        # Set on the loop.
        self._columns: OutputColumns | None = None
        self._mapping: Any = None
        #: Whether what is sent of a piece is made at once, and how many rows a piece has.
        self._at_once, self._piece_rows = False, _PIECE_ROWS
        self._model: Model | None = None
        self._version = 0
        self._seen_spec = b""
        self._scoring: Scoring | None = None
        self._cuts: deque[list[_Cut]] = deque()
        #: Cut since the last batch that was sent, and nothing of it could be.
        self._unsent: list[_Cut] = []
        self._block: list[_Scored] = []
        self._block_rows = self._block_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._taken = self._resumed = self._refused = 0
        self._part_start = 0
        self._part_began = 0.0
        self._gone_since: float | None = None
        self._parts_done = 0
        self._committed = 0

    def __str__(self) -> str:
        if self._manifest is None:
            return "starting"
        state = "ended" if self._ended is not None else "running"
        return f"{state}, {self._taken:,} rows done, {self._committed:,} committed"

    # -- the story ------------------------------------------------------------------------------------

    async def run(self, progress: bool | Progress) -> JobSummary:
        from aioserving.jobs.progress import display_for

        loop = asyncio.get_running_loop()
        display = display_for(progress)
        ticking: asyncio.Task[None] | None = None
        summary: JobSummary | None = None
        try:
            if display is not None:
                display.begin(f"{self.job.model} to {self.job.output}")
                ticking = loop.create_task(_tick(display, self))
            await self._in_worker(self._open)
            summary = await self._work()
        finally:
            self._ended = time.monotonic()
            if ticking is not None:
                ticking.cancel()
            await _to_the_end(loop.run_in_executor(self._worker, self._close))
            self._worker.shutdown(wait=False)
            if display is not None:
                display.end(self.progress(), summary)
        return summary

    async def _in_worker(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def _work(self) -> JobSummary:
        assert self._inputs is not None
        before = self._manifest
        if before is not None:
            before = await self._compare(before)
        if before is not None and before.complete:
            self._manifest = before
            self._version = before.version
            self._taken = self._resumed = self._committed = before.rows
            await self._in_worker(self._tidy)
            return self._summary(before)
        signature = await self._look_up(before)
        self._prepare(signature)
        await self._in_worker(self._begin, before)
        manifest = self._manifest
        assert manifest is not None
        self._taken = self._resumed = self._committed = self._part_start = manifest.rows
        self._refused = manifest.refused
        self._check_refused("see the files of rows that were set aside")
        self._part_began = time.monotonic()
        try:
            await self._score(manifest)
            await self._hand_over(end=True)
            await self._settle()
            await self._in_worker(self._complete)
        except OutputError:
            raise
        except BaseException:
            await self._save_what_there_is()
            raise
        return self._summary(manifest)

    async def _score(self, manifest: Manifest) -> None:
        job = self.job
        scoring = self._scoring = Scoring(
            PreparedBatches(self._batches(manifest)),
            self._call,
            name=job.model,
            batch_size=job.batch_size,
            max_in_flight=job._max_in_flight,
            on_error="collect",
            outage=job._outage,
        )
        try:
            async with scoring as results:
                async for batch in results:
                    cuts = self._cuts.popleft()
                    for cut in cuts[:-1]:
                        self._add(cut, None)
                    self._add(cuts[-1], batch)
                    await self._maybe_hand_over()
        except errors.VersionNotFoundError as error:
            available = await self._available()
            raise VersionGoneError(job.model, self._version, available) from error
        for cut in self._unsent:
            self._add(cut, None)
            await self._maybe_hand_over()

    # -- the beginning --------------------------------------------------------------------------------

    def _open(self) -> None:
        """In the worker: list the input, lock the output, read what was done."""
        from aioserving.jobs.inputs import open_inputs

        job = self.job
        self._inputs = open_inputs(
            job.input,
            **{"format": job._input_format, "storage_options": job._storage_options, **job._input_options},
        )
        storage = self._storage = open_storage(job.output, job._output_storage_options)
        inside = [file.url for file in self._inputs.files if _is_below(file.url, storage.url)]
        if inside:
            raise OutputError(
                f"the output {storage.url} has files of the input in it ({inside[0]}): choose another folder"
            )
        self._lock = storage.lock()
        self._manifest = Manifest.load(storage)
        foreign = [name for name in storage.names() if not record.is_of_job(name)]
        if self._manifest is None:
            ours = [name for name in storage.names() if record.number_of(name) is not None]
            if foreign or ours:
                raise OutputExistsError(
                    f"{storage.url} has files already ({(foreign or ours)[0]}), and nothing says what job "
                    "wrote them: choose another folder, or empty it"
                )

    async def _compare(self, before: Manifest) -> Manifest | None:
        """What was done, if this is to go on; None to begin anew.

        Raises:
            JobChangedError: this job differs, and was not told what to do about that.
        """
        assert self._inputs is not None
        assert self._storage is not None
        job = self.job
        now = json.loads(json.dumps(job.settings()))
        changes = record.differences(before.settings, now)
        if now["version"] == before.version:
            changes.pop("version", None)  # the number of what was asked for otherwise
        files = [file.to_json() for file in self._inputs.files]
        fingerprint = self._inputs.fingerprint()
        told = list(changes.values())
        if fingerprint != before.fingerprint:
            told += record.input_differences(before.inputs, files)
        if not told:
            return before
        if job._on_change == "restart":
            logger.warning("discarding the output %s: %s", self._storage.url, "; ".join(told))
            await self._in_worker(record.remove_all, self._storage)
            return None
        if job._on_change == "refuse":
            raise JobChangedError(self._storage.url, told)
        fixed = [
            name
            for name in ("output_format", "strings", "row_number", "keep", "output_filter")
            if name in changes
        ]
        if fixed:
            raise JobChangedError(
                self._storage.url,
                told,
                f"it cannot be continued with another {fixed[0]}: the parts would not fit together; "
                'on_change="restart" discards the output and begins anew',
            )
        if fingerprint != before.fingerprint and not record.same_until(before.inputs, files, before.cursor):
            raise JobChangedError(
                self._storage.url,
                told,
                "it cannot be continued: files that were read already are not the same, so where to go on is "
                'not known; on_change="restart" discards the output and begins anew',
            )
        before.changes.append({"row": before.rows, "version": before.version, "changes": told})
        before.settings, before.inputs, before.fingerprint = now, files, fingerprint
        if "version" in changes or "model" in changes:
            before.version = 0  # to be looked up
        before.complete = False
        return before

    async def _look_up(self, before: Manifest | None) -> Signature:
        """The version that scores, from now on, and its signature."""
        job = self.job
        version = job.version if before is None or not before.version else before.version
        named: dict[str, Any] = (
            {"version_label": version} if isinstance(version, str) else {"version": version}
        )
        end = time.monotonic() + min(_FIRST_CONTACT, job._outage)
        pause, waiting = 0.1, False
        while True:
            try:
                found = await self._client.get_model_metadata(job.model, timeout=job._timeout, **named)
                break
            except errors.VersionNotFoundError as error:
                if before is not None and before.version and not await self._is_loading(before.version):
                    raise VersionGoneError(job.model, before.version, await self._available()) from error
                if time.monotonic() + pause > end or before is None:
                    raise
            except (
                errors.UnavailableError,
                errors.DeadlineExceededError,
                errors.ResourceExhaustedError,
            ) as error:
                if time.monotonic() + pause > end:
                    raise
                if not waiting:
                    waiting = True
                    logger.warning("the job by %r waits for a server: %s", job.model, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
        self._version = found.version
        self._model = self._client.model(job.model, version=found.version, signature_name=job._signature_name)
        return found.signature(job._signature_name)

    def _prepare(self, signature: Signature) -> None:
        """Find out which columns are read, sent and written."""
        import pyarrow as pa

        from aioserving.jobs.columns import make_mapping

        job, inputs = self.job, self._inputs
        assert inputs is not None
        self._mapping = make_mapping(
            signature, inputs.schema, method=job._method, inputs=job._mapped, decode=job._decode
        )
        missing = [column for column in job._keep.values() if column not in inputs.schema.names]
        if missing:
            raise ColumnError(
                f"the input has no column {missing[0]!r} to keep; it has {', '.join(inputs.schema.names)}",
                model=job.model,
                columns=tuple(missing),
            )
        kept = pa.schema([inputs.schema.field(column).with_name(name) for name, column in job._keep.items()])
        self._at_once, self._piece_rows = _reading(signature, job)
        self._columns = OutputColumns(
            self._specs(signature),
            kept,
            strings=job._strings,
            row_number=job._row_number,
            metadata={"aioserving.model": job.model, "aioserving.version": str(self._version)},
        )

    def _specs(self, signature: Signature) -> list[TensorSpec]:
        job = self.job
        if job._method != "predict":
            return output_specs(job._method)
        if job._output_filter is not None:
            signature.check_outputs(job._output_filter)
        specs = [
            spec
            for name, spec in signature.outputs.items()
            if job._output_filter is None or name in job._output_filter
        ]
        for spec in specs:
            if spec.shape == ():
                others = [other.name for other in specs if other.shape != ()]
                raise JobError(
                    f"output {spec.name!r} of model {job.model!r} is a single value for the whole batch, not "
                    f"one for each row; name the outputs to write: output_filter={others!r}"
                )
        return specs

    def _begin(self, before: Manifest | None) -> None:
        """In the worker: make the manifest, or tidy up behind an earlier run."""
        assert self._inputs is not None
        assert self._storage is not None
        assert self._columns is not None
        storage = self._storage
        schema = None if self._columns.schema is None else str(self._columns.schema.remove_metadata())
        if before is None:
            before = Manifest(
                settings=self.job.settings(),
                version=self._version,
                model=self.job.model,
                schema=schema,
                fingerprint=self._inputs.fingerprint(),
                inputs=[file.to_json() for file in self._inputs.files],
            )
        elif before.parts or before.earlier:
            if schema is not None and before.schema is not None and schema != before.schema:
                raise JobChangedError(
                    storage.url,
                    [f"the output's columns were {before.schema!r} and would be {schema!r}"],
                    'on_change="restart" discards the output and begins anew',
                )
            removed = record.remove_leftovers(storage, before)
            if removed:
                logger.info("removed what an interrupted run left in %s: %s", storage.url, ", ".join(removed))
        else:
            record.remove_leftovers(storage, before)
        before.version = self._version
        before.schema = before.schema or schema
        before.complete = False
        before.runs += 1
        storage.remove(record.SUCCESS)
        before.save_inputs(storage)
        before.save(storage)
        self._manifest = before
        self._part = _Counts(before.rows, before.rows)
        self._parts_done = before.next_part

    # -- reading --------------------------------------------------------------------------------------

    def _batches(self, manifest: Manifest) -> Iterator[Mapping[Any, Any]]:
        """In the scoring's reading thread: the columns to send, batch by batch."""
        from aioserving.jobs.inputs import Cursor

        assert self._inputs is not None
        job = self.job
        cursor = Cursor.from_json(manifest.cursor) if manifest.cursor is not None else None
        needed = list(dict.fromkeys([*self._mapping.columns, *job._keep.values()]))
        pieces = self._inputs.pieces(start=cursor, columns=needed, piece_rows=self._piece_rows)
        with contextlib.ExitStack() as stack:
            if any("://" in file.url for file in self._inputs.files):
                # The scoring's thread reads ahead, too, but not as far as a network's pauses are long.
                pieces = stack.enter_context(_Ahead(pieces))
            else:
                stack.callback(getattr(pieces, "close", lambda: None))
            for cut in self._cut(pieces, manifest.rows):
                columns = self._sendable(cut)
                if columns is None:
                    self._unsent.append(cut)
                    continue
                unsent, self._unsent = self._unsent, []
                self._cuts.append([*unsent, cut])
                yield columns

    def _cut(self, pieces: Iterator[Piece], row: int) -> Iterator[_Cut]:
        """Batches of one size, whatever the pieces; the first row has the number `row`."""
        size = self.job.batch_size
        parts: list[_Rows] = []
        waiting = 0
        for piece in pieces:
            read = self._as_read(piece)
            rows, offset = len(piece), 0
            while offset < rows:
                count = min(size - waiting, rows - offset)
                parts.append(_Rows(read, offset, count))
                waiting += count
                offset += count
                if waiting == size:
                    yield _Cut(row, row + size, parts)
                    row += size
                    parts, waiting = [], 0
        if waiting:
            yield _Cut(row, row + waiting, parts)

    def _as_read(self, piece: Piece) -> _Read:
        import pyarrow as pa

        keep = self.job._keep
        kept = None
        if keep:
            kept = pa.RecordBatch.from_arrays(
                [piece.batch.column(column) for column in keep.values()], names=list(keep)
            )
        columns: Mapping[Any, Array] | None = None
        if self._at_once:
            # Rows that cannot be sent are looked for in their batch.
            with contextlib.suppress(BadRows):
                columns = self._mapping.inputs(piece.batch)
        return _Read(piece, kept, columns)

    def _sendable(self, cut: _Cut) -> Mapping[Any, Any] | None:
        """What is sent of a batch; None if nothing can be."""
        import pyarrow as pa

        if len(cut.parts) == 1:
            read, offset, count = cut.parts[0]
            if read.columns is not None:
                return {name: array[offset : offset + count] for name, array in read.columns.items()}
        slices = [read.piece.batch.slice(offset, count) for read, offset, count in cut.parts]
        batch = slices[0] if len(slices) == 1 else pa.concat_batches(slices)
        found: Mapping[Any, Any]
        try:
            found = self._mapping.inputs(batch)
        except BadRows as bad:
            if self.job._on_error == "raise":
                position, why = next(iter(bad.rows.items()))
                raise self._row_refused(cut, cut.start + position, why) from None
            cut.bad = bad.rows
        else:
            return found
        keep = np.ones(batch.num_rows, bool)
        keep[list(cut.bad)] = False
        cut.sent = np.flatnonzero(keep)
        if not len(cut.sent):
            return None
        found = self._mapping.inputs(batch.take(pa.array(cut.sent)))
        return found

    def _row_refused(self, cut: _Cut, row: int, why: str) -> RowRefusedError:
        assert self._inputs is not None
        file, number = cut.origin(row)
        return RowRefusedError(row, self._inputs.files[file].url, number, why)

    # -- calls ----------------------------------------------------------------------------------------

    async def _call(self, columns: Any) -> PredictResult:
        """One call; gives as many rows as were sent, of the version that was asked for."""
        assert self._model is not None
        assert self._columns is not None
        job = self.job
        try:
            if job._method == "predict":
                rows = len(next(iter(columns.values()))) if isinstance(columns, Mapping) else len(columns)
                result = await self._model.predict(
                    columns, output_filter=job._output_filter, timeout=job._timeout, metadata=job._metadata
                )
            else:
                rows = len(columns)
                result = await infer(
                    self._model,
                    job._method,
                    list(columns),
                    timeout=job._timeout,
                    metadata=job._metadata,
                )
        except errors.ModelNotFoundError as error:
            await self._look_for_version(error)
            raise
        if result._model_spec != self._seen_spec:
            version = result.model_spec.version
            if version is not None and version != self._version:
                raise JobError(
                    f"version {self._version} of model {job.model!r} was asked for, and version {version} "
                    "answered"
                )
            self._seen_spec = result._model_spec
            self._gone_since = None
        self._columns.check(result, rows)
        return result

    async def _look_for_version(self, error: errors.ModelNotFoundError) -> None:
        """Raise `VersionGoneError` if waiting is no use: others are served, this one is not about to be."""
        now = time.monotonic()
        available = await self._available()
        if not available or self._version in available or await self._is_loading(self._version):
            self._gone_since = None
            return
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since >= min(_COME_BACK, self.job._outage):
            raise VersionGoneError(self.job.model, self._version, available) from error

    async def _available(self) -> list[int]:
        try:
            status = await self._client.get_model_status(self.job.model, timeout=10.0)
        except errors.ServingError:
            return []
        return [one.version for one in status if one.available]

    async def _is_loading(self, version: int) -> bool:
        try:
            status = await self._client.get_model_status(self.job.model, timeout=10.0)
        except errors.ServingError:
            return False
        return any(one.version == version and one.state in (State.START, State.LOADING) for one in status)

    # -- writing --------------------------------------------------------------------------------------

    def _add(self, cut: _Cut, batch: ScoredBatch | None) -> None:
        """Take a batch, in order, with its results if it has any."""
        refused: list[tuple[int, str, errors.ServingError | None]] = [
            (cut.start + position, why, None) for position, why in cut.bad.items()
        ]
        good = cut.sent
        outputs: Mapping[str, Array] | None = None
        if batch is not None:
            outputs = batch.outputs if len(batch) else None
            if batch.errors:
                sent = cut.sent if cut.sent is not None else np.arange(cut.stop - cut.start)
                places = [bad.row - batch.start for bad in batch.errors]
                refused += [
                    (cut.start + int(sent[place]), str(bad.error), bad.error)
                    for place, bad in zip(places, batch.errors, strict=True)
                ]
                good = np.delete(sent, places)
                if self.job._on_error == "raise":
                    row, why, error = refused[0]
                    raise self._row_refused(cut, row, why) from error
        aside: list[dict[str, Any]] = []
        if refused and self.job._on_error == "aside":
            aside = [self._told(cut, row, why, error) for row, why, error in sorted(refused, key=_first)]
        self._taken = cut.stop
        self._block.append(_Scored(cut, outputs, good, aside, len(refused)))
        self._block_rows += cut.stop - cut.start
        if outputs is not None:
            self._block_bytes += sum(array.nbytes for array in outputs.values())
        if refused:
            self._refused += len(refused)
            self._check_refused(refused[-1][1])

    def _check_refused(self, last: str) -> None:
        limit = self.job._max_bad_rows
        if limit is not None and self._refused > limit:
            raise TooManyBadRowsError(self._refused, limit, last)

    def _told(self, cut: _Cut, row: int, why: str, error: errors.ServingError | None) -> dict[str, Any]:
        """What the file of rows that were set aside says of one."""
        assert self._inputs is not None
        file, number = cut.origin(row)
        read, place = cut.place(row)
        kept = {} if read.kept is None else read.kept.slice(place, 1).to_pylist()[0]
        return {
            "row": row,
            "file": self._inputs.files[file].url,
            "file_row": number,
            "error": type(error).__name__ if error is not None else "BadRows",
            "code": error.code if isinstance(error, errors.RPCError) else None,
            "reason": why[:_REASON],
            "values": for_json(kept),
        }

    async def _maybe_hand_over(self) -> None:
        end = self._taken - self._part_start >= self.job.part_rows
        if not end and self.job._part_seconds is not None:
            end = time.monotonic() - self._part_began >= self.job._part_seconds
        if end or self._block_rows >= _BLOCK_ROWS or self._block_bytes >= _BLOCK_BYTES:
            await self._hand_over(end=end)

    async def _hand_over(self, *, end: bool) -> None:
        """Have what was taken written, and the part completed at its end; waits for what is being written."""
        await self._settle()
        block, self._block = self._block, []
        self._block_rows = self._block_bytes = 0
        if end:
            self._part_start = self._taken
            self._part_began = time.monotonic()
        self._writing = asyncio.get_running_loop().run_in_executor(self._worker, self._write, block, end)

    async def _settle(self) -> None:
        """Wait for what is being written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                self._writing = writing
                raise

    async def _save_what_there_is(self) -> None:
        """Complete the part with the results that came before whatever ended the run."""
        try:
            if self._writing is not None:
                await _to_the_end(self._writing)
            block, self._block = self._block, []
            loop = asyncio.get_running_loop()
            await _to_the_end(loop.run_in_executor(self._worker, self._write, block, True))
        except Exception:
            logger.warning("what was scored last could not be written to %s", self.job.output, exc_info=True)

    def _write(self, block: list[_Scored], end: bool) -> None:
        """In the worker: write results, and complete the part."""
        if self._failed:
            return
        self._failed = True
        try:
            if block:
                self._write_rows(block)
            if end:
                self._complete_part()
            self._failed = False
        except OSError as error:
            assert self._manifest is not None
            raise OutputError(
                f"{self.job.output}: the output cannot be written: {error}. {self._manifest.rows:,} rows are "
                "safe; run the same job again to go on when that is mended"
            ) from error

    def _write_rows(self, block: list[_Scored]) -> None:

        assert self._columns is not None
        part = self._part
        if block[0].cut.start != part.stop:
            raise RuntimeError(f"row {block[0].cut.start} would follow row {part.stop - 1}")
        part.cursor = block[-1].cut
        part.stop = block[-1].cut.stop
        for scored in block:
            part.refused += scored.refused
            self._aside += scored.aside
        with_rows = [scored for scored in block if scored.outputs is not None]
        if not with_rows:
            return
        numbers = None
        if self.job._row_number:
            numbers = np.concatenate(
                [
                    np.arange(scored.cut.start, scored.cut.stop)
                    if scored.good is None
                    else scored.cut.start + scored.good
                    for scored in with_rows
                ]
            )
        kept = _kept_of(with_rows) if self.job._keep else None
        outputs = [scored.outputs for scored in with_rows if scored.outputs is not None]
        batch = self._columns.batch(kept, numbers, outputs)
        self._open_writer().write(batch)
        part.rows += batch.num_rows

    def _open_writer(self) -> PartWriter:
        assert self._manifest is not None
        assert self._storage is not None
        assert self._columns is not None
        if self._writer is None:
            self._writer = FORMATS[self.job._output_format](
                record.part_name(self._manifest.next_part),
                self._columns.schema,
                self._storage.scratch,
                self.job._output_options,
            )
        return self._writer

    def _complete_part(self) -> None:
        """In the worker: put the part's files in place, then the manifest that names them."""
        assert self._manifest is not None
        assert self._storage is not None
        assert self._lock is not None
        manifest, storage, part = self._manifest, self._storage, self._part
        if part.stop == part.start:
            return
        number = manifest.next_part
        files: tuple[str, ...] = ()
        writer = self._writer
        if writer is not None:
            writer.close()
            files = tuple(writer.files)
        self._lock.check()
        if writer is not None:
            for name in files:
                storage.commit(name)
            self._writer = None
        aside, self._aside = self._aside, []
        if aside:
            lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in aside)
            storage.write(record.bad_rows_name(number), lines.encode())
        assert part.cursor is not None
        assert self._columns is not None
        if manifest.schema is None and self._columns.schema is not None:
            manifest.schema = str(self._columns.schema.remove_metadata())
        manifest.parts.append(Part(number, files, part.start, part.stop, part.rows))
        manifest.cursor = part.cursor.cursor().to_json()
        manifest.rows = part.stop
        manifest.written += part.rows
        manifest.refused += part.refused
        self._count_seconds()
        manifest.save(storage)
        self._part = _Counts(part.stop, part.stop)
        self._parts_done = number + 1
        self._committed = manifest.rows

    def _count_seconds(self) -> None:
        """Add the time since this was last called to that of all runs."""
        assert self._manifest is not None
        now = time.monotonic()
        self._manifest.seconds += now - self._counted_until
        self._counted_until = now

    def _complete(self) -> None:
        """In the worker: all rows are done."""
        assert self._manifest is not None
        assert self._storage is not None
        assert self._lock is not None
        assert self._columns is not None
        manifest, storage, columns = self._manifest, self._storage, self._columns
        try:
            self._lock.check()
            if (
                not manifest.written
                and not any(part.files for part in manifest.parts)
                and columns.schema is not None
            ):
                # No row has a result: a file without rows still says which columns there would have been.
                writer = self._open_writer()
                writer.write(_no_rows(columns.schema))
                writer.close()
                for name in writer.files:
                    storage.commit(name)
                self._writer = None
                manifest.parts.append(
                    Part(manifest.next_part, tuple(writer.files), manifest.rows, manifest.rows, 0)
                )
            self._count_seconds()
            manifest.complete = True
            manifest.save(storage)
            storage.write(record.SUCCESS, b"")
        except OSError as error:
            raise OutputError(f"{self.job.output}: the output cannot be completed: {error}") from error

    def _tidy(self) -> None:
        """In the worker: what is left to do if the last run ended right behind its last row."""
        assert self._manifest is not None
        assert self._storage is not None
        record.remove_leftovers(self._storage, self._manifest)
        if self._storage.read(record.SUCCESS) is None:
            self._storage.write(record.SUCCESS, b"")

    def _close(self) -> None:
        """In the worker: let go of files and of the lock."""
        writer, self._writer = self._writer, None
        storage, lock = self._storage, self._lock
        try:
            if writer is not None and storage is not None:
                with contextlib.suppress(OSError):
                    writer.abort()
                for name in writer.files:
                    with contextlib.suppress(OSError):
                        storage.discard(name)
        finally:
            if lock is not None:
                lock.release()
            if storage is not None:
                storage.close()

    # -- facts ----------------------------------------------------------------------------------------

    def progress(self) -> JobProgress:
        scoring = self._scoring
        facts: ScoringProgress | None = scoring.progress() if scoring is not None else None
        now = self._ended if self._ended is not None else time.monotonic()
        return JobProgress(
            rows=self._taken,
            total=self._inputs.rows if self._inputs is not None else None,
            resumed=self._resumed,
            committed=self._committed,
            refused=self._refused,
            parts=self._parts_done,
            in_flight=facts.in_flight if facts is not None else 0,
            max_in_flight=facts.max_in_flight if facts is not None else 0,
            retries=facts.retries if facts is not None else 0,
            failing_for=facts.failing_for if facts is not None else 0.0,
            seconds=now - self._began,
            rows_per_second=facts.rows_per_second if facts is not None else 0.0,
            latency=facts.latency if facts is not None else LatencyHistogram().snapshot(),
        )

    def _summary(self, manifest: Manifest) -> JobSummary:
        scoring = self._scoring
        latencies = scoring.latencies() if scoring is not None else LatencyHistogram()
        facts = scoring.progress() if scoring is not None else None
        return JobSummary(
            model=self.job.model,
            version=self._version,
            output=self.job.output,
            rows=manifest.rows,
            written=manifest.written,
            refused=manifest.refused,
            parts=manifest.next_part,
            resumed=self._resumed,
            scored=manifest.rows - self._resumed,
            seconds=time.monotonic() - self._began,
            total_seconds=manifest.seconds,
            runs=manifest.runs,
            calls=facts.batches if facts is not None else 0,
            retries=facts.retries if facts is not None else 0,
            latency=latencies.snapshot(),
            histogram=tuple(latencies.buckets()),
            changes=tuple(manifest.changes),
        )


def _kept_of(block: Sequence[_Scored]) -> Any:
    """The kept columns of the rows that have results: whole runs of a piece, not batch by batch."""
    import pyarrow as pa

    slices: list[Any] = []
    run: _Rows | None = None
    for scored in block:
        if scored.good is not None:
            if run is not None:
                slices.append(_kept_slice(run))
                run = None
            whole = pa.concat_batches([_kept_slice(part) for part in scored.cut.parts])
            slices.append(whole.take(pa.array(scored.good)))
            continue
        for part in scored.cut.parts:
            if run is not None and run.piece is part.piece and run.offset + run.size == part.offset:
                run = _Rows(run.piece, run.offset, run.size + part.size)
                continue
            if run is not None:
                slices.append(_kept_slice(run))
            run = part
    if run is not None:
        slices.append(_kept_slice(run))
    return slices[0] if len(slices) == 1 else pa.concat_batches(slices)


def _kept_slice(rows: _Rows) -> Any:
    return rows.piece.kept.slice(rows.offset, rows.size)


@dataclass(slots=True)
class _Counts:
    """Of the part that is being written."""

    #: Numbers of its first row in the input, and of the one after the last.
    start: int = 0
    stop: int = 0
    rows: int = 0
    refused: int = 0
    #: The last batch in it.
    cursor: _Cut | None = None


class _Ahead:
    """Reads pieces in a thread of its own, one ahead of who uses them."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._queue: queue.Queue[Piece | BaseException | None] = queue.Queue(1)
        self._stop = False
        self._thread = threading.Thread(target=self._read, name="aioserving-job-input", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<_Ahead, {'stopped' if self._stop else 'reading'}>"

    def __enter__(self) -> Iterator[Piece]:
        return iter(self)

    def __exit__(self, *_: object) -> None:
        self._stop = True
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._queue.get_nowait()  # what it may be waiting to hand over
            self._thread.join(0.005)

    def __iter__(self) -> Iterator[Piece]:
        while (found := self._queue.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
            del found  # while it waits for the next one it keeps none

    def _read(self) -> None:
        end: BaseException | None = None
        try:
            for piece in self._pieces:
                self._queue.put(piece)
                del piece
                if self._stop:
                    break
        except BaseException as error:
            end = error
        finally:
            close = getattr(self._pieces, "close", None)
            if close is not None:
                close()
            if not self._stop:
                self._queue.put(end)


async def _to_the_end(future: asyncio.Future[Any]) -> None:
    """Wait for what must not be left half done, however often this is cancelled; raises its error."""
    with anyio.CancelScope(shield=True):
        while not future.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({future})
    future.result()


async def _tick(display: Progress, run: _Run) -> None:
    """Show how far it is, now and then."""
    while True:
        await asyncio.sleep(display.interval)
        display.update(run.progress())


def _reading(signature: Signature, job: Job) -> tuple[bool, int]:
    """Whether a piece's arrays may be made at once, and its rows: a multiple of the batch size, about."""
    rows = _PIECE_ROWS
    known = job._method == "predict" and not job._decode
    size = 0
    for spec in signature.inputs.values():
        if (
            spec.shape is None
            or any(one < 0 for one in spec.shape[1:])
            or spec.data_type == DataType.DT_STRING
        ):
            known = False
        else:
            size += math.prod(spec.shape[1:]) * spec.dtype.itemsize
    if known and size:
        rows = min(rows, max(1, _PIECE_BYTES // size))
    elif not known:
        rows = max(1, rows // 4)
    return known, max(1, rows // job.batch_size) * job.batch_size


def _no_rows(schema: Any) -> Any:
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)


def _first(item: tuple[Any, ...]) -> Any:
    return item[0]


def _is_below(url: str, folder: str) -> bool:
    if "://" not in folder:
        return os.path.abspath(url).startswith(os.path.join(os.path.abspath(folder), ""))
    return url.startswith(folder.rstrip("/") + "/")


def _name_of(function: Any) -> str:
    """What tells one function from another in a file."""
    module, name = (
        getattr(function, "__module__", ""),
        getattr(function, "__qualname__", type(function).__name__),
    )
    return f"{module}.{name}"
