"""The record of a job: complete at any moment, of bounded size, and able to say what differs."""

from __future__ import annotations

import json
import pathlib

import pytest

pytest.importorskip("fsspec", reason="needs the extra `batch`")

from aioserving.jobs import manifest as record
from aioserving.jobs.errors import OutputError
from aioserving.jobs.manifest import MANIFEST, Manifest, Part, differences
from aioserving.jobs.storage import open_storage


def a_part(number: int) -> Part:
    return Part(number, (f"part-{number:05}.parquet",), number * 10, number * 10 + 10, 9)


def a_manifest(parts: int = 0) -> Manifest:
    return Manifest(
        settings={"model": "m", "keep": {"id": "id"}},
        version=3,
        model="m",
        fingerprint="f",
        inputs=[{"url": "a", "size": 1}],
        cursor={"file": 0, "row": 20, "offset": None},
        parts=[a_part(number) for number in range(parts)],
    )


def test_what_is_saved_is_loaded(tmp_path: pathlib.Path) -> None:
    """A manifest comes back as it was, and None where there is none."""
    storage = open_storage(tmp_path)
    assert Manifest.load(storage) is None
    manifest = a_manifest(2)
    manifest.save_inputs(storage)
    manifest.save(storage)
    assert Manifest.load(storage) == manifest
    assert manifest.next_part == 2


def test_the_manifest_does_not_grow_with_the_parts(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many parts only the last are in it; all of them can be had, and numbers go on."""
    monkeypatch.setattr(record, "_RECENT", 10)
    storage = open_storage(tmp_path)
    manifest = a_manifest()
    sizes = []
    for number in range(95):
        assert manifest.next_part == number
        manifest.parts.append(a_part(number))
        manifest.save(storage)
        sizes.append(len(storage.read(MANIFEST) or b""))
    loaded = Manifest.load(storage)
    assert loaded is not None
    assert loaded.next_part == 95
    assert len(loaded.parts) < 20
    assert loaded.all_parts(storage) == [a_part(number) for number in range(95)]
    assert max(sizes[50:]) <= max(sizes[:50]) + 50
    storage.remove("_aioserving/parts-00010.json")
    with pytest.raises(OutputError, match="from 10 on"):
        loaded.all_parts(storage)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 1}', b'{"format": 1, "parts": [[1]]}'])
def test_a_damaged_manifest_is_told(tmp_path: pathlib.Path, data: bytes) -> None:
    """What cannot be understood is an error that names the file, not a new beginning."""
    storage = open_storage(tmp_path)
    storage.write(MANIFEST, data)
    with pytest.raises(OutputError, match="manifest.json is damaged"):
        Manifest.load(storage)


def test_a_manifest_of_a_later_format_is_refused(tmp_path: pathlib.Path) -> None:
    """A job of a later version of this library is not gone on with by guesswork."""
    storage = open_storage(tmp_path)
    storage.write(MANIFEST, json.dumps({"format": 99}).encode())
    with pytest.raises(OutputError, match="format 99"):
        Manifest.load(storage)


def test_leftovers_are_removed_and_parts_are_not(tmp_path: pathlib.Path) -> None:
    """Files of parts that the manifest does not name go, whatever of them there is; all else stays."""
    storage = open_storage(tmp_path)
    manifest = a_manifest(2)
    manifest.save(storage)
    stay = ["part-00000.parquet", "part-00001.parquet", "_aioserving/bad-rows/part-00001.jsonl", "notes.txt"]
    go = [
        "part-00002.parquet",
        "part-00003.scores.npy",
        "_aioserving/bad-rows/part-00002.jsonl",
        "_aioserving/part-00002.parquet.tmp",
    ]
    for name in (*stay, *go):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(b"x")
    assert sorted(record.remove_leftovers(storage, manifest)) == sorted(go)
    assert sorted(storage.names()) == sorted([*stay, MANIFEST])


def test_removing_all_leaves_what_others_wrote(tmp_path: pathlib.Path) -> None:
    """A restart removes what jobs write, and nothing else."""
    storage = open_storage(tmp_path)
    a_manifest(1).save(storage)
    for name in ("part-00000.parquet", "_SUCCESS", "_aioserving/lock", "notes.txt", "part-1.csv"):
        (tmp_path / name).write_bytes(b"x")
    record.remove_all(storage)
    assert storage.names() == ["_aioserving/lock", "notes.txt", "part-1.csv"]


def test_differences_are_told_in_words() -> None:
    """Each setting that differs is named with what it was and is, long values cut short."""
    found = differences({"a": 1, "b": [1], "c": None}, {"a": 1, "b": [1, 2], "c": "x" * 200})
    assert list(found) == ["b", "c"]
    assert found["b"] == "b was [1] and is [1, 2]"
    assert found["c"].startswith("c was null and is ")
    assert len(found["c"]) < 150
    assert differences({"a": 1}, {"a": 1}) == {}


def test_how_files_differ_is_told_in_words() -> None:
    """Files that changed, went or came are counted and named, and another order is noticed."""
    before = [{"url": url, "size": 1} for url in "abc"]
    now = [{"url": "a", "size": 2}, *({"url": url, "size": 1} for url in "bdefgh")]
    assert record.input_differences(before, now) == [
        "1 input file changed: a",
        "1 input file gone: c",
        "5 input files new: d, e, f and 2 more",
    ]
    assert record.input_differences(before, before[::-1]) == ["the input files come in another order"]
    assert record.input_differences(before, before) == ["how the input is read differs"]


def test_only_files_that_were_read_need_be_the_same() -> None:
    """Going on is possible while the files up to the cursor are the same, the one in the middle too."""
    before = [{"url": url} for url in "abc"]
    now = [{"url": url} for url in "abd"]
    assert record.same_until(before, now, None)
    assert record.same_until(before, now, {"file": 1, "row": 5, "offset": None})
    assert record.same_until(before, now, {"file": 2, "row": 0, "offset": None})
    assert not record.same_until(before, now, {"file": 2, "row": 1, "offset": None})
