"""What a job has done, in one small file that is replaced as a whole: the point at which rows count.

    Manifest    the record of a job: what it is, which parts there are, where reading goes on
    Part        one part of the output, and the rows that it has
    differences  what tells two jobs apart, in words

A part's files appear first, then the manifest that names them. So at any moment the manifest names parts that
are there, whole; files that it does not name are of a part that was being written when the job ended, and are
written again. Whoever reads the output while the job runs reads the manifest's parts.

The manifest is JSON, ``_aioserving/manifest.json``, of a bounded size: earlier parts than the last thousand
or two are named in ``_aioserving/parts-*.json``, each written once. Which files the input had is in
``_aioserving/inputs.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from aioserving.jobs.errors import OutputError
from aioserving.jobs.storage import BOOKKEEPING, Storage

__all__ = ["MANIFEST", "Manifest", "Part", "differences", "is_of_job"]

#: Name of the manifest below the output.
MANIFEST: Final = f"{BOOKKEEPING}/manifest.json"
_INPUTS: Final = f"{BOOKKEEPING}/inputs.json"
#: Written when all is done, as Hadoop and Spark do, for what waits for it.
SUCCESS: Final = "_SUCCESS"

#: Version of this format.
_FORMAT: Final = 1
#: Parts that the manifest itself names at most.
_RECENT: Final = 1000

_PART: Final = re.compile(r"part-\d{5,}\.[^/]*")
_SIDE: Final = re.compile(rf"{BOOKKEEPING}/(bad-rows/part-\d{{5,}}\.jsonl|parts-\d+\.json|.*\.tmp)")


def part_name(number: int) -> str:
    """The beginning of the names of a part's files."""
    return f"part-{number:05}"


def bad_rows_name(number: int) -> str:
    """The file with the rows of a part that were set aside."""
    return f"{BOOKKEEPING}/bad-rows/{part_name(number)}.jsonl"


def is_of_job(name: str) -> bool:
    """Whether a file below the output is one that jobs write."""
    return bool(_PART.fullmatch(name)) or name.startswith(f"{BOOKKEEPING}/") or name == SUCCESS


def number_of(name: str) -> int | None:
    """The number of the part that a file is of; None if of none."""
    found = re.fullmatch(r"(?:.*/)?part-(\d{5,})\..*", name)
    return int(found.group(1)) if found and (_PART.fullmatch(name) or _SIDE.fullmatch(name)) else None


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the output."""

    #: From 0.
    number: int
    #: Names of its files.
    files: tuple[str, ...]
    #: Numbers of the first row of the input that it is about, and of the one after the last.
    start: int
    stop: int
    #: Rows that it has; the others were left out.
    rows: int

    def to_json(self) -> list[Any]:
        """As JSON can hold it."""
        return [self.number, list(self.files), self.start, self.stop, self.rows]

    @classmethod
    def from_json(cls, value: Sequence[Any]) -> Part:
        """What `to_json` made `value` of."""
        number, files, start, stop, rows = value
        return cls(number, tuple(files), start, stop, rows)


@dataclass(slots=True)
class Manifest:
    """The record of a job."""

    #: What decides the rows, by name: the model, columns, sizes; see `differences`.
    settings: dict[str, Any]
    #: The version that scores, and what the signature was.
    version: int
    #: Name of the model.
    model: str
    #: The schema of the output, as text; None until it is known.
    schema: str | None = None
    #: Fingerprint of the input.
    fingerprint: str = ""
    #: Files of the input: url, format, size, fingerprint each. In a file of their own.
    inputs: list[dict[str, Any]] = field(default_factory=list)
    #: Whether all rows are done.
    complete: bool = False
    #: Where reading goes on, as `Cursor.to_json` says it; None: at the beginning.
    cursor: dict[str, Any] | None = None
    #: Rows of the input that are done, those of them that are in the output, and those refused.
    rows: int = 0
    written: int = 0
    refused: int = 0
    #: Seconds of work so far, over all runs, and how many runs there were.
    seconds: float = 0.0
    runs: int = 0
    #: What was decided with ``on_change="continue"``: from which row on, and what changed.
    changes: list[dict[str, Any]] = field(default_factory=list)
    #: The last parts; and how many earlier ones are named in files of their own.
    parts: list[Part] = field(default_factory=list)
    earlier: int = 0

    @property
    def next_part(self) -> int:
        """Number of the part that is to be written next."""
        return self.parts[-1].number + 1 if self.parts else self.earlier

    @classmethod
    def load(cls, storage: Storage) -> Manifest | None:
        """The manifest in a place; None if there is none.

        Raises:
            OutputError: it cannot be understood.
        """
        data = storage.read(MANIFEST)
        if data is None:
            return None
        try:
            value = json.loads(data)
            kind = value.pop("format")
            if kind != _FORMAT:
                raise OutputError(
                    f"{storage.url}: the manifest is of format {kind}, and this version of aioserving knows "
                    f"format {_FORMAT}"
                )
            inputs = json.loads(storage.read(_INPUTS) or b"[]")
            value["parts"] = [Part.from_json(part) for part in value["parts"]]
            return cls(**value, inputs=inputs)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OutputError(
                f"{storage.url}: {MANIFEST} is damaged ({error}); remove the folder, or choose another"
            ) from error

    def save_inputs(self, storage: Storage) -> None:
        """Record the files of the input; before the manifest that is about them."""
        storage.write(_INPUTS, json.dumps(self.inputs, indent=0).encode())

    def save(self, storage: Storage) -> None:
        """Replace the manifest: from here on this is what was done."""
        if len(self.parts) >= 2 * _RECENT:
            older, self.parts = self.parts[:_RECENT], self.parts[_RECENT:]
            name = f"{BOOKKEEPING}/parts-{older[0].number:05}.json"
            storage.write(name, json.dumps([part.to_json() for part in older]).encode())
            self.earlier += len(older)
        value = {
            "format": _FORMAT,
            **{name: getattr(self, name) for name in self.__slots__ if name != "inputs"},
            "parts": [part.to_json() for part in self.parts],
        }
        storage.write(MANIFEST, json.dumps(value, indent=1).encode())

    def all_parts(self, storage: Storage) -> list[Part]:
        """All parts, also those named elsewhere."""
        found: list[Part] = []
        while len(found) < self.earlier:
            data = storage.read(f"{BOOKKEEPING}/parts-{len(found):05}.json")
            if data is None:
                raise OutputError(f"{storage.url}: the list of the parts from {len(found)} on is not there")
            found += [Part.from_json(part) for part in json.loads(data)]
        return found + self.parts


def remove_leftovers(storage: Storage, manifest: Manifest) -> list[str]:
    """Remove files of parts that the manifest does not name; gives their names."""
    removed = []
    for name in storage.names():
        number = number_of(name)
        if (number is not None and number >= manifest.next_part) or (
            name.startswith(f"{BOOKKEEPING}/") and name.endswith(".tmp")
        ):
            storage.remove(name)
            removed.append(name)
    return removed


def remove_all(storage: Storage) -> None:
    """Remove everything that a job wrote, the manifest first: without it nothing counts."""
    storage.remove(MANIFEST)
    for name in storage.names():
        if is_of_job(name) and not name.endswith("/lock"):
            storage.remove(name)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What differs between the settings of two jobs: a sentence for each, by the setting's name."""
    found = {}
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old != new:
            found[name] = f"{name} was {_shown(old)} and is {_shown(new)}"
    return found


def input_differences(before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]]) -> list[str]:
    """How the files of the input differ, in words."""
    old = {file["url"]: file for file in before}
    new = {file["url"]: file for file in now}
    changed = [url for url, file in new.items() if url in old and old[url] != file]
    found = []
    for what, urls in (
        ("changed", changed),
        ("gone", [url for url in old if url not in new]),
        ("new", [url for url in new if url not in old]),
    ):
        if urls:
            more = f" and {len(urls) - 3} more" if len(urls) > 3 else ""
            found.append(f"{len(urls)} input file{'s' * (len(urls) > 1)} {what}: {', '.join(urls[:3])}{more}")
    if not found and list(old) != list(new):
        found.append("the input files come in another order")
    return found or ["how the input is read differs"]


def same_until(
    before: Sequence[Mapping[str, Any]], now: Sequence[Mapping[str, Any]], cursor: Mapping[str, Any] | None
) -> bool:
    """Whether the files that were read so far, the one in the middle of which it is too, are the same."""
    count = 0 if cursor is None else cursor["file"] + (1 if cursor["row"] or cursor["offset"] else 0)
    return list(before[:count]) == list(now[:count])


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:97]}..."
