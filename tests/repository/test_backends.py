"""Backends: every kind of store tells the same of its files, and fails in the repository's own words."""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

from aioserving.repository.backends import (
    ChangedError,
    NoRangesError,
    _entry,
    _s3_checksum,
    _seconds,
    _translate,
    open_backend,
    public_url,
)
from aioserving.repository.errors import NotInStoreError, StoreAccessError, StoreError, StoreUnavailableError
from tests.repository.stores import Blobs, web

pytestmark = pytest.mark.anyio


class Collected(bytearray):
    def __call__(self, pieces: Sequence[bytes]) -> None:
        for piece in pieces:
            self.extend(piece)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://key:secret@bucket/models", "s3://bucket/models"),
        ("https://user:secret@host:8000/models?token=secret", "https://host:8000/models"),
        ("memory://models", "memory://models"),
        ("/models", "file:///models"),
    ],
)
def test_urls_are_shown_without_secrets(url: str, shown: str) -> None:
    """Users, passwords and queries stay out of reprs, errors and logs."""
    assert public_url(url) == shown


def test_checksums_of_every_store_are_understood() -> None:
    """GCS, Azure and web servers give an MD5 in base64, S3 one as the ETag unless it came in parts."""
    digest = hashlib.md5(b"abc")
    packed = base64.b64encode(digest.digest()).decode()
    for info in (
        {"md5Hash": packed, "etag": "x"},
        {"content_settings": {"content_md5": bytearray(digest.digest())}, "etag": "x"},
        {"Content-MD5": packed},
    ):
        assert _entry("a", {"size": 3, **info}).checksum == f"md5:{digest.hexdigest()}"
    assert _entry("a", {"size": 3, "ETag": '"x"'}).checksum == "etag:x"
    assert _entry("a", {"size": 3, "md5Hash": "nonsense!"}).checksum is None
    assert _s3_checksum(digest.hexdigest()) == f"md5:{digest.hexdigest()}"
    assert _s3_checksum(digest.hexdigest() + "-2") == f"etag:{digest.hexdigest()}-2"


def test_times_of_every_store_are_understood() -> None:
    """Datetimes, numbers, ISO texts and those of HTTP are the same moment."""
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    for form in (when, when.timestamp(), "2026-01-02T03:04:05Z", "Fri, 02 Jan 2026 03:04:05 GMT"):
        assert _seconds(form) == when.timestamp()
    assert _seconds("yesterday") is None
    assert _seconds(None) is None


class Refused(Exception):
    status = 403


class NoCredentialsError(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (PermissionError("no"), StoreAccessError),
        (Refused("no"), StoreAccessError),
        (NoCredentialsError("none"), StoreAccessError),
        (FileNotFoundError("x"), NotInStoreError),
        (ConnectionResetError("x"), StoreUnavailableError),
        (asyncio.TimeoutError(), StoreUnavailableError),
        (EOFError(), StoreUnavailableError),
    ],
)
def test_errors_are_those_of_the_repository(error: Exception, kind: type[StoreError]) -> None:
    """Whatever a filesystem raises is told apart by what can be done about it."""
    assert type(_translate(error, "it")) is kind


def test_mistakes_of_programs_stay_what_they_are() -> None:
    """An error that no store makes is not taken for one of a store."""
    assert _translate(TypeError("x"), "it") is None


def test_expired_tokens_are_known_by_their_code() -> None:
    """S3's code counts, whatever kind of error s3fs made of it."""
    cause: Any = Exception("expired")
    cause.response = {"Error": {"Code": "TokenRefreshRequired"}}
    error = OSError(22, "expired")
    error.__cause__ = cause
    assert type(_translate(error, "it")) is StoreAccessError


async def test_local_files_are_read_as_listed(tmp_path: Path) -> None:
    """A range gives its bytes; a file that is another than the listing said is refused, one gone is told."""
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "a").write_bytes(b"0123456789")
    backend = open_backend(str(tmp_path), {})
    assert await backend.folders() == ["m"]
    (entry,) = (await backend.trees(["m"]))["m"]
    got = Collected()
    await backend.read("m/a", entry, 2, 5, got)
    await backend.read("m/a", entry, 8, None, got)
    assert bytes(got) == b"23489"
    (tmp_path / "m" / "a").write_bytes(b"other")
    with pytest.raises(ChangedError):
        await backend.read("m/a", entry, 0, None, got)
    (tmp_path / "m" / "a").unlink()
    with pytest.raises(NotInStoreError):
        await backend.read("m/a", entry, 0, None, got)
    assert await backend.trees(["m", "n"]) == {"m": [], "n": []}
    assert "file://" in repr(backend)
    await backend.close()


async def test_web_files_are_read_as_listed() -> None:
    """Pages of links make a tree; ranges, changes, refusals and absences are told as everywhere."""
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs({"m/1/a b": b"0123456789", "m/1/sub/c": b"c"})
    with web(blobs):
        backend = open_backend(blobs.url, {})
        entries = {entry.path: entry for entry in (await backend.trees(["m"]))["m"]}
        assert {path: entry.size for path, entry in entries.items()} == {"1/a b": 10, "1/sub/c": 1}
        got = Collected()
        await backend.read("m/1/a b", entries["1/a b"], 2, 5, got)
        assert bytes(got) == b"234"
        blobs.ranges = False
        with pytest.raises(NoRangesError):
            await backend.read("m/1/a b", entries["1/a b"], 2, 5, got)
        blobs.forbidden = 1
        with pytest.raises(StoreAccessError):
            await backend.read("m/1/a b", entries["1/a b"], 0, None, got)
        blobs.files["m/1/a b"] = b"other 5678"
        with pytest.raises(ChangedError):
            await backend.read("m/1/a b", entries["1/a b"], 0, None, got)
        blobs.vanish.add("m/1/a b")
        with pytest.raises(NotInStoreError):
            await backend.read("m/1/a b", entries["1/a b"], 0, None, got)
        assert await backend.trees(["nothing"]) == {"nothing": []}
        blobs.gone.add("m/1/sub/c")
        assert [entry.path for entry in (await backend.trees(["m"]))["m"]] == ["1/a b"]
        await backend.close()


async def test_what_a_sink_raises_comes_through() -> None:
    """A failure of the one who takes the bytes ends the read, and is not taken for one of the store."""
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs({"m/a": bytes(5 << 20)})

    def full(pieces: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    with web(blobs):
        backend = open_backend(blobs.url, {})
        (entry,) = (await backend.trees(["m"]))["m"]
        with pytest.raises(ZeroDivisionError):
            await backend.read("m/a", entry, 0, None, full)
        await backend.close()


async def test_a_cancelled_read_writes_nothing_more() -> None:
    """Once a cancelled read has ended, nothing goes to its sink any more."""
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs({"m/a": bytes(8 << 20)})
    blobs.delay["m/a"] = 0.01
    with web(blobs):
        backend = open_backend(blobs.url, {})
        (entry,) = (await backend.trees(["m"]))["m"]
        got = Collected()
        reading = asyncio.ensure_future(backend.read("m/a", entry, 0, None, got))
        while not got:
            await asyncio.sleep(0.01)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        size = len(got)
        await asyncio.sleep(0.3)
        assert len(got) == size < 8 << 20
        await backend.close()
