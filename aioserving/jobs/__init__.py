"""Jobs over files: millions of rows scored, exactly once, at the speed of the servers (extra ``batch``).

    from aioserving.jobs import run_job

    run_job("127.0.0.1:8500", model="digits", input="data/*.parquet", output="out/", progress=True)

    engine     Job: reads, scores, writes, goes on where it stopped
    inputs     which files there are, and their rows piece by piece
    columns    columns of the input as the model's inputs
    inference  Classify and Regress with answers in columns
    outputs    the model's outputs as columns of files
    manifest   what was done: the point at which rows count
    storage    folders and object stores where files appear whole; the lock
    progress   a bar, a widget or lines
    summary    how far a job is, and what it did
    errors     what can go wrong with files, columns, rows and the output

Needs pyarrow, fsspec and rich: ``pip install 'aioserving[batch]'``. Nothing here is imported by `aioserving`
itself, and names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving.jobs.columns import ColumnMapping as ColumnMapping
    from aioserving.jobs.columns import ExampleMapping as ExampleMapping
    from aioserving.jobs.engine import Job as Job
    from aioserving.jobs.engine import run_job as run_job
    from aioserving.jobs.errors import BadRows as BadRows
    from aioserving.jobs.errors import ColumnError as ColumnError
    from aioserving.jobs.errors import InputChanged as InputChanged
    from aioserving.jobs.errors import InputError as InputError
    from aioserving.jobs.errors import JobChangedError as JobChangedError
    from aioserving.jobs.errors import JobError as JobError
    from aioserving.jobs.errors import OutputError as OutputError
    from aioserving.jobs.errors import OutputExistsError as OutputExistsError
    from aioserving.jobs.errors import OutputLockedError as OutputLockedError
    from aioserving.jobs.errors import RowRefusedError as RowRefusedError
    from aioserving.jobs.errors import TooManyBadRowsError as TooManyBadRowsError
    from aioserving.jobs.errors import VersionGoneError as VersionGoneError
    from aioserving.jobs.inputs import Cursor as Cursor
    from aioserving.jobs.inputs import Inputs as Inputs
    from aioserving.jobs.inputs import open_inputs as open_inputs
    from aioserving.jobs.progress import LiveProgress as LiveProgress
    from aioserving.jobs.progress import LogProgress as LogProgress
    from aioserving.jobs.progress import NotebookProgress as NotebookProgress
    from aioserving.jobs.progress import Progress as Progress
    from aioserving.jobs.summary import JobProgress as JobProgress
    from aioserving.jobs.summary import JobSummary as JobSummary

#: Name -> the module that defines it, imported when the name is first used.
_EXPORTS = {
    "BadRows": "errors",
    "ColumnError": "errors",
    "ColumnMapping": "columns",
    "Cursor": "inputs",
    "ExampleMapping": "columns",
    "InputChanged": "errors",
    "InputError": "errors",
    "Inputs": "inputs",
    "Job": "engine",
    "JobChangedError": "errors",
    "JobError": "errors",
    "JobProgress": "summary",
    "JobSummary": "summary",
    "LiveProgress": "progress",
    "LogProgress": "progress",
    "NotebookProgress": "progress",
    "OutputError": "errors",
    "OutputExistsError": "errors",
    "OutputLockedError": "errors",
    "Progress": "progress",
    "RowRefusedError": "errors",
    "TooManyBadRowsError": "errors",
    "VersionGoneError": "errors",
    "open_inputs": "inputs",
    "run_job": "engine",
}

__all__ = [
    "BadRows",
    "ColumnError",
    "ColumnMapping",
    "Cursor",
    "ExampleMapping",
    "InputChanged",
    "InputError",
    "Inputs",
    "Job",
    "JobChangedError",
    "JobError",
    "JobProgress",
    "JobSummary",
    "LiveProgress",
    "LogProgress",
    "NotebookProgress",
    "OutputError",
    "OutputExistsError",
    "OutputLockedError",
    "Progress",
    "RowRefusedError",
    "TooManyBadRowsError",
    "VersionGoneError",
    "open_inputs",
    "run_job",
]


def __getattr__(name: str) -> Any:
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
