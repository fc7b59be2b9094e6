"""Stores: what counts as a version, when it is complete, and what finding that out costs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="needs the extra `repository`")

import fsspec

from aioserving.repository import (
    CorruptVersionError,
    Disk,
    Fetcher,
    IncompleteVersionError,
    InvalidNameError,
    LimitExceededError,
    Limits,
    NotInStoreError,
    Store,
    StoreAccessError,
    StoreUnavailableError,
    backends,
)
from aioserving.repository import fetch as fetch_module
from aioserving.repository.backends import Backend
from aioserving.repository.store import missing_shards, parse_manifest
from tests.repository.stores import (
    DATA,
    INDEX,
    Blobs,
    contents,
    manifest_of,
    version_files,
    web,
    write_version,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


def numbers(versions: list[Any]) -> list[int]:
    return [version.version for version in versions]


# ------------------------------------------------------------------------------- what counts as a version


async def test_versions_are_those_of_the_model_server(root: Path) -> None:
    """A folder whose whole name is a signed 64-bit integer is a version; no other is, nor is an empty one."""
    for name in (
        "1",
        "00000123",
        "-5",
        "9223372036854775807",
        "9223372036854775808",
        "v2",
        "1.5",
        "2_",
        "+3",
    ):
        write_version(root / "m" / name, version_files())
    (root / "m" / "77").mkdir()
    async with Store.open(str(root)) as store:
        found = await store.versions("m")
        assert numbers(found) == [-5, 1, 123, 9223372036854775807]
        assert [version.name for version in found] == ["-5", "1", "00000123", "9223372036854775807"]
        assert {version.kind for version in found} == {"directory"}
        assert await store.models() == ["m"]
        assert await store.versions("other") == []


async def test_of_two_names_for_one_number_the_last_counts(root: Path) -> None:
    """As in the model server, the name that is last in lexicographic order is the version."""
    for name in ("1", "00001"):
        write_version(root / "m" / name, version_files())
    (root / "m" / "1.tar").write_bytes(b"")
    async with Store.open(str(root), settle=0.0) as store:
        (version,) = await store.versions("m")
    assert version.name == "1"


async def test_names_that_no_model_can_have_are_left_out(root: Path) -> None:
    """Folders of other names are no models, and asking for one is refused before it becomes a path."""
    for name in ("good", ".hidden", "with space"):
        (root / name).mkdir()
    async with Store.open(str(root)) as store:
        assert await store.models() == ["good"]
        for bad in ("../good", "", ".", "a/b", "/etc", ".aioserving", "a\n"):
            with pytest.raises(InvalidNameError):
                await store.versions(bad)


async def test_versions_beyond_the_limits_are_not_offered(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A version with too many files or bytes is left out and told of; fetching it by force is refused."""
    write_version(root / "m" / "1", version_files())
    async with Store.open(str(root)) as store:
        (version,) = await store.versions("m")
    for limits in (Limits(files=2), Limits(bytes=100)):
        async with Store.open(str(root), limits=limits) as store:
            with caplog.at_level(logging.WARNING, "aioserving.repository"):
                assert await store.versions("m") == []
            assert "the limit is" in caplog.text
            with pytest.raises(LimitExceededError):
                await store.files(version)


async def test_links_out_of_a_local_store_are_refused(root: Path, tmp_path: Path) -> None:
    """A link within the store is the file that it leads to; one that leads out makes the version none."""
    (tmp_path / "secret").write_bytes(b"secret")
    write_version(root / "m" / "1", version_files())
    write_version(root / "m" / "2", version_files())
    (root / "m" / "1" / "more").symlink_to(root / "m" / "2" / INDEX)
    (root / "m" / "2" / "more").symlink_to(tmp_path / "secret")
    async with Store.open(str(root), settle=0.0) as store:
        (version,) = await store.versions("m")
        assert version.version == 1
        assert "more" in {file.path for file in await store.files(version)}


# ------------------------------------------------------------------------------------ when it is complete


async def test_a_half_uploaded_version_is_not_offered(root: Path) -> None:
    """Without its SavedModel, or a shard that the names of others tell of, a version is none."""
    files = version_files()
    write_version(root / "m" / "1", {DATA: files[DATA], INDEX: files[INDEX]})
    write_version(root / "m" / "2", {**files, "variables/variables.data-00000-of-00002": b""})
    write_version(root / "m" / "3", {"saved_model.pb": files["saved_model.pb"], DATA: files[DATA]})
    async with Store.open(str(root), settle=0.0) as store:
        assert await store.versions("m") == []
        write_version(root / "m" / "1", files)
        assert numbers(await store.versions("m")) == [1]


async def test_a_fresh_version_has_to_rest(root: Path) -> None:
    """What was changed just now is offered only after two equal listings, `settle` seconds apart."""
    files = version_files()
    write_version(root / "m" / "1", files, age=0)
    async with Store.open(str(root), settle=0.05) as store:
        look, count = store._look, 0

        async def growing(names: Any) -> None:
            nonlocal count
            count += 1
            (root / "m" / "1" / f"file{count}").write_bytes(b"more")
            await look(names)

        store._look = growing  # type: ignore[method-assign]
        assert await store.versions("m") == []
        assert store.unsettled() == {("m", 1)}
        store._look = look  # type: ignore[method-assign]
        assert numbers(await store.versions("m")) == [1]
        assert store.unsettled() == set()


async def test_a_manifest_says_when_a_version_is_whole(root: Path) -> None:
    """With all files of its manifest a version counts at once, however fresh; without one it does not."""
    files = version_files()
    write_version(
        root / "m" / "1", {"SHA256SUMS": manifest_of({**files, "assets/words": b"w"}), **files}, age=0
    )
    async with Store.open(str(root), settle=30.0) as store:
        await store._look(["m"])
        assert store.unsettled() == {("m", 1)}
        write_version(root / "m" / "1", {"assets/words": b"w"}, age=0)
        (version,) = await store.versions("m")
        sums = {file.path: file.checksum for file in await store.files(version)}
        assert (
            sums["assets/words"] == "sha256:50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326"
        )
        (root / "m" / "1" / INDEX).unlink()
        with pytest.raises(IncompleteVersionError, match="index"):
            await store.files(version)


async def test_manifests_that_make_no_sense_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manifest that is none, or names files outside, makes a version that is not offered, and says why."""
    for number, manifest in enumerate((b"nonsense", b"0" * 64 + b"  ../../etc/passwd\n", b"\xff\xfe")):
        write_version(root / "m" / str(number), {**version_files(), "SHA256SUMS": manifest})
    async with Store.open(str(root), settle=0.0) as store:
        assert await store.versions("m") == []
    assert caplog.text.count("cannot be read") == 3


def test_manifests_are_what_sha256sum_writes() -> None:
    """Text and binary marks, a leading ``./`` and a digest alone are understood; doubles are refused."""
    digest = "ab" * 32
    assert parse_manifest(f"{digest}  ./a/b\n{digest} *c\n\n".encode()) == {"a/b": digest, "c": digest}
    assert parse_manifest(digest.encode()) == {"": digest}
    for bad in (b"", b"\n", f"{digest}  a\n{digest}  a\n".encode(), f"{digest}  /a\n".encode()):
        with pytest.raises(ValueError, match=r"."):
            parse_manifest(bad)


@pytest.mark.parametrize(
    ("paths", "missing"),
    [
        ((), ""),
        ((INDEX, DATA), ""),
        ((DATA,), INDEX),
        ((INDEX,), DATA),
        ((INDEX, "variables/variables.data-00001-of-00002"), "variables/variables.data-00000-of-00002"),
    ],
)
def test_shards_tell_of_each_other(paths: tuple[str, ...], missing: str) -> None:
    """From one shard's name follows which others there are."""
    assert missing_shards(paths) == missing


async def test_a_fingerprint_is_one_of_the_contents(root: Path) -> None:
    """The fingerprint stays as long as nothing changes, and is another when a file is."""
    write_version(root / "m" / "1", version_files(1))
    async with Store.open(str(root), settle=0.0) as store:
        (first,) = await store.versions("m")
        (same,) = await store.versions("m")
        assert same.fingerprint == first.fingerprint
        assert same.size == sum(map(len, version_files(1).values()))
        write_version(root / "m" / "1", version_files(2))
        (other,) = await store.versions("m")
        assert other.fingerprint != first.fingerprint


# ------------------------------------------------------------------------------------------ what it costs


class Counted(Backend):
    """A memory filesystem whose calls are counted."""

    calls: list[str]

    async def trees(self, folders: Any, known: Any = None) -> Any:
        self.calls += [f"list {folder}" for folder in folders]
        return await super().trees(folders, known)

    async def read(self, path: str, *arguments: Any) -> None:
        self.calls.append(f"read {path}")
        await super().read(path, *arguments)


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory", global_store=False, skip_instance_cache=True)
    yield fs
    fs.store.clear()


async def test_hundreds_of_models_cost_one_listing_each(memory: Any) -> None:
    """A listing a model finds thousands of versions; asked again, unchanged ones cost nothing else."""
    manifest = manifest_of({"saved_model.pb": b"x"})
    for model in range(100):
        for version in range(10):
            memory.pipe_file(f"/shelf/m{model}/{version}/saved_model.pb", b"x")
            memory.pipe_file(f"/shelf/m{model}/{version}/SHA256SUMS", manifest)
    store = Store.open("memory://shelf")
    backend = store._backend = Counted(memory, "/shelf", "memory://shelf")
    backend.calls = []
    backend.flat = True
    names = [f"m{model}" for model in range(100)]
    found = await store.listings(names)
    assert sum(map(len, found.values())) == 1000
    assert [call for call in backend.calls if "list" in call] == [f"list {name}" for name in names]
    assert len([call for call in backend.calls if "read" in call]) == 1000
    backend.calls.clear()
    assert await store.listings(names) == found
    assert backend.calls == ["list "], "all models in one listing, and no manifest is read again"
    backend.calls.clear()
    assert await store.versions("m7") == found["m7"]
    assert backend.calls == ["list m7"]
    backend.calls.clear()
    memory.pipe_file("/shelf/m7/11/saved_model.pb", b"x")
    memory.pipe_file("/shelf/m7/11/SHA256SUMS", manifest)
    assert numbers((await store.listings(names))["m7"])[-1] == 11
    assert backend.calls == ["list ", "read m7/11/SHA256SUMS"]
    await store.close()


async def test_web_servers_are_not_asked_for_what_is_known() -> None:
    """Of a complete version only the name is looked for; a new one is looked into."""
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs()
    for version in range(1, 6):
        blobs.put(f"m/{version}", version_files(version))
    with web(blobs):
        async with Store.open(blobs.url, settle=0.0) as store:
            first = await store.versions("m")
            assert numbers(first) == [1, 2, 3, 4, 5]
            blobs.log.clear()
            assert await store.versions("m") == first
            assert [path for _, path, _ in blobs.log] == ["m/"]
            blobs.put("m/6", version_files(6))
            del blobs.files["m/1/saved_model.pb"]
            blobs.files = {path: data for path, data in blobs.files.items() if not path.startswith("m/2/")}
            blobs.log.clear()
            assert numbers(await store.versions("m")) == [1, 3, 4, 5, 6]
            assert not any(path.startswith(("m/1/", "m/3/")) for _, path, _ in blobs.log)
            assert await store.models() == ["m"]


# ------------------------------------------------------------------------------------------ kinds of stores


async def test_a_memory_store(memory: Any, tmp_path: Path) -> None:
    """What fsspec has no event loop for is listed and fetched too."""
    files = version_files(1, 200_000)
    for path, data in files.items():
        memory.pipe_file(f"/shelf/m/1/{path}", data)
    store = Store.open("memory://shelf", settle=0.0)
    store._backend = Backend(memory, "/shelf", "memory://shelf")
    async with store, Fetcher(store, Disk(tmp_path / "disk"), chunk_bytes=1 << 16) as fetcher:
        (version,) = await store.versions("m")
        assert await store.models() == ["m"]
        path = await fetcher.fetch(version)
    assert contents(path) == files


async def test_s3(tmp_path: Path, s3: dict[str, Any]) -> None:
    """Over the real protocol: listed in pages, fetched in stripes with MD5 where the ETag is one."""
    files = version_files(1, 3_000_000)
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, **s3)
    fs.mkdir("bucket")
    for path, data in files.items():
        fs.pipe_file(f"bucket/models/m/1/{path}", data)
    fs.pipe_file("bucket/models/m/1/", b"")  # as consoles make folders
    fs.pipe_file("bucket/models/other/x", b"")
    async with Store.open("s3://bucket/models", storage_options=s3, settle=0.1) as store:
        assert await store.models() == ["m", "other"]
        (version,) = await store.versions("m")
        assert version.url == "s3://bucket/models/m/1"
        assert {(file.checksum or "")[:4] for file in await store.files(version)} == {"md5:"}
        async with Fetcher(store, Disk(tmp_path / "disk"), chunk_bytes=1 << 18) as fetcher:
            path = await fetcher.fetch(version)
        assert contents(path) == files
        assert await store.versions("nothing") == []
        for name in files:
            fs.rm_file(f"bucket/models/m/1/{name}")
        fs.rm_file("bucket/models/m/1/")
        with pytest.raises(NotInStoreError):
            await store.files(version)
    async with Store.open("s3://missing/models", storage_options=s3) as store:
        with pytest.raises((NotInStoreError, StoreUnavailableError)):
            await store._call(lambda backend: backend.read("x", file_entry(), 0, None, print))
    fs.close_session(fs.loop, fs._s3)


def put_in_parts(fs: Any, key: str, data: bytes, *sizes: int) -> str:
    """Upload in parts of these sizes; gives the ETag."""
    where = {"Bucket": "bucket", "Key": key}
    upload = {**where, "UploadId": fs.call_s3("create_multipart_upload", **where)["UploadId"]}
    parts, at = [], 0
    for number, size in enumerate(sizes, 1):
        answer = fs.call_s3("upload_part", **upload, PartNumber=number, Body=data[at : at + size])
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
        at += size
    assert at == len(data)
    done = fs.call_s3("complete_multipart_upload", **upload, MultipartUpload={"Parts": parts})
    return str(done["ETag"]).strip('"')


@pytest.fixture
def in_parts(s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A version whose variables came in parts, and a list of wrong bits, one for each time they are read."""
    fs = fsspec.filesystem("s3", skip_instance_cache=True, use_listings_cache=False, **s3)
    fs.mkdir("bucket")
    flips: list[int] = []
    reads: list[int] = []
    read = Store.read

    async def flipping(self: Store, version: Any, file: Any, start: int, end: int | None, sink: Any) -> None:
        at = flips.pop(0) if file.path == DATA and start == 0 and flips else -1
        begin = start
        if file.path == DATA:
            reads.append(start)

        def flipped(pieces: Any) -> None:
            nonlocal begin
            for piece in pieces:
                data = bytearray(piece)
                if begin <= at < begin + len(data):
                    data[at - begin] ^= 1
                begin += len(data)
                sink((bytes(data),))

        await read(self, version, file, start, end, flipped)

    monkeypatch.setattr(Store, "read", flipping)

    def put(*sizes: int) -> dict[str, bytes]:
        files = version_files(1, sum(sizes))
        for path in ("saved_model.pb", INDEX):
            fs.pipe_file(f"bucket/models/m/1/{path}", files[path])
        put_in_parts(fs, f"models/m/1/{DATA}", files[DATA], *sizes)
        return files

    put.flips, put.reads = flips, reads  # type: ignore[attr-defined]
    yield put
    fs.close_session(fs.loop, fs._s3)


MIB = 1 << 20


async def fetched(s3: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    async with (
        Store.open("s3://bucket/models", storage_options=s3, settle=0.0) as store,
        Fetcher(store, Disk(tmp_path / "disk")) as fetcher,
    ):
        (version,) = await store.versions("m")
        return contents(await fetcher.fetch(version))


async def test_uploads_in_parts_are_checked(
    in_parts: Any, s3: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The ETag of an upload in parts tells of a flipped bit: the file is read again, and then right."""
    files = in_parts(5 * MIB, 5 * MIB, 1000)
    in_parts.flips[:] = [6_000_000]
    assert await fetched(s3, tmp_path) == files
    assert in_parts.reads == [0, 0]
    assert f"another ETag: {DATA} has" in caplog.text
    assert "way of its own" not in caplog.text


async def test_uploads_in_parts_that_come_wrong_each_time(
    in_parts: Any, s3: dict[str, Any], tmp_path: Path
) -> None:
    """Bits that are wrong in another place each time are the way's fault: the version is refused."""
    in_parts(5 * MIB, 1000)
    in_parts.flips[:] = [0, 6000, 77]
    with pytest.raises(CorruptVersionError, match=f"another ETag: {DATA}"):
        await fetched(s3, tmp_path)


@pytest.mark.parametrize("sizes", [(6 * MIB, 5 * MIB, 1000), (5 * MIB, 6 * MIB, 1000)])
async def test_uploads_in_parts_of_different_sizes(
    in_parts: Any,
    s3: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    sizes: tuple[int, ...],
) -> None:
    """Where the first part does not tell how large the others are, each is asked for, and it counts."""
    files = in_parts(*sizes)
    assert await fetched(s3, tmp_path / "well") == files
    assert (in_parts.reads, "ETag" in caplog.text) == ([0], False)
    in_parts.flips[:] = [6_000_000]
    assert await fetched(s3, tmp_path / "flipped") == files
    assert (in_parts.reads, "way of its own" in caplog.text) == ([0, 0, 0], False)


async def test_etags_that_are_made_in_another_way(
    in_parts: Any,
    s3: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No good file is refused: what comes twice as the same bytes is taken, and that is told."""
    files = in_parts(5 * MIB, 1000)
    original = fetch_module._PartsMD5.hexdigest
    monkeypatch.setattr(fetch_module._PartsMD5, "hexdigest", lambda self: original(self)[::-1])
    assert await fetched(s3, tmp_path) == files
    assert in_parts.reads == [0, 0]
    assert "a way of its own" in caplog.text


async def test_stores_that_tell_no_parts(
    in_parts: Any, s3: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the sizes that uploads usually have are tried, and what they do not fit is not refused."""
    head = backends._S3._head

    async def silent(self: Any, path: str, **more: Any) -> Any:
        found = dict(await head(self, path))
        found.pop("PartsCount", None)
        return found

    monkeypatch.setattr(backends._S3, "_head", silent)
    files = in_parts(6 * MIB, 5 * MIB, 1000)
    assert await fetched(s3, tmp_path) == files
    assert in_parts.reads == [0]


def test_sizes_of_parts() -> None:
    """A size of parts is taken for granted only if it is the only usual one that makes so many."""
    assert backends._usual_parts(100 * MIB, 13) == ((8 * MIB,) * 12 + (4 * MIB,), False)
    assert backends._usual_parts(100 * MIB, 2) is None, "50 MiB, or 60, or 64, or 80"
    assert backends._usual_parts(100 * MIB, 9) is None, "no usual size"
    assert backends._usual_parts(100, 1) == ((100,), True)
    assert backends._equal_parts(100, 3, 40) == ((40, 40, 20), True)
    assert backends._equal_parts(100, 3, 50) is None
    assert backends._equal_parts(100, 3, 33) is None


def file_entry() -> Any:
    from aioserving.repository.backends import Entry

    return Entry("x", 1, "")


# ------------------------------------------------------------------------------------------ credentials


async def test_expired_credentials_are_replaced_once() -> None:
    """Refused access opens the filesystem anew with fresh options, once a call; then it is an error."""
    pytest.importorskip("aiohttp", reason="fsspec's web filesystem needs aiohttp")
    blobs = Blobs()
    blobs.put("m/1", version_files())
    asked = []

    def options() -> dict[str, Any]:
        asked.append(1)
        return {}

    with web(blobs):
        async with Store.open(blobs.url, storage_options=options, settle=0.0) as store:
            assert len(asked) == 1
            blobs.forbidden = 1
            assert numbers(await store.versions("m")) == [1]
            assert len(asked) == 2
            blobs.forbidden = 2
            with pytest.raises(StoreAccessError):
                await store.models()
            assert len(asked) == 3


async def test_stores_that_cannot_be_opened_say_why() -> None:
    """A store without its package, and settings that make no sense, are told when it is opened."""
    with pytest.raises(ImportError, match="needs a package"):
        Store.open("abfs://container/models")
    with pytest.raises(ValueError, match="settle"):
        Store.open("memory://x", settle=-1)
    store = Store.open("s3://key:secret@bucket/models?x=1") if _has("s3fs") else None
    assert store is None or "secret" not in repr(store)


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


async def test_a_manifest_may_not_be_huge(root: Path) -> None:
    """A manifest beyond its limit is not read."""
    write_version(root / "m" / "1", {**version_files(), "SHA256SUMS": b"x" * 2000})
    async with Store.open(str(root), limits=Limits(manifest_bytes=1000), settle=0.0) as store:
        assert await store.versions("m") == []
        write_version(root / "m" / "2", version_files())
        (version,) = await store.versions("m")
        (root / "m" / "2" / "SHA256SUMS").write_bytes(b"x" * 2000)
        with pytest.raises(CorruptVersionError, match="1000 bytes"):
            await store.files(version)
