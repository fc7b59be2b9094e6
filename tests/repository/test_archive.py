"""Archives: what is in them comes out, and nothing that they try reaches beyond their folder."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from aioserving.repository.archive import (
    DamagedArchiveError,
    OversizeArchiveError,
    UnsafeMemberError,
    unpack,
)
from aioserving.repository.names import Limits
from tests.repository.stores import DATA, contents, version_files

FILES = {**version_files(1, 512 * 40), "assets/empty": b"", "assets/words": b"w" * 1000}
ENDINGS = ("tar", "tar.gz", "zip")


def member(name: str, data: bytes = b"", **attributes: object) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.size = len(data)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made, data


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as made:
        for info, data in members:
            made.addfile(info, io.BytesIO(data))
    return path


def pack(path: Path, files: dict[str, bytes], around: str = "") -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, data in files.items():
                made.writestr(around + name, data)
        return path
    return tar(path, *(member(around + name, data) for name, data in files.items()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "out"
    made.mkdir()
    return made


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("around", ["", "./", "7/", "assets/"])
def test_what_is_packed_comes_out(tmp_path: Path, folder: Path, ending: str, around: str) -> None:
    """Every kind of archive gives its files; one folder around everything, whatever its name, goes."""
    sizes = unpack(pack(tmp_path / f"7.{ending}", FILES, around), folder, Limits())
    assert contents(folder) == FILES
    assert sizes == {path: len(data) for path, data in FILES.items()}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "C:\\evil", "a\\..\\evil"])
def test_paths_that_lead_out_are_refused(tmp_path: Path, folder: Path, ending: str, name: str) -> None:
    """A member whose path leads elsewhere is refused, and written nowhere."""
    before = set(tmp_path.rglob("*"))
    archive = pack(tmp_path / f"7.{ending}", {name: b"evil"})
    with pytest.raises(UnsafeMemberError):
        unpack(archive, folder, Limits())
    assert set(tmp_path.rglob("*")) - before == {archive}


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, folder: Path, kind: bytes) -> None:
    """Nothing but files and folders is taken, also where a link would lead inside."""
    archive = tar(tmp_path / "7.tar", member("a", b"x"), member("b", type=kind, linkname="a"))
    with pytest.raises(UnsafeMemberError, match="is a"):
        unpack(archive, folder, Limits())


def test_links_and_secrets_in_a_zip_are_refused(tmp_path: Path, folder: Path) -> None:
    """A link in a zip is known by its mode, and encrypted members and unusual packing are not taken."""
    link = zipfile.ZipInfo("a")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    for number, (info, packing) in enumerate(
        ((link, zipfile.ZIP_STORED), (zipfile.ZipInfo("b"), zipfile.ZIP_BZIP2))
    ):
        path = tmp_path / f"{number}.zip"
        with zipfile.ZipFile(path, "w") as made:
            made.writestr(info, "/etc/passwd", packing)
        with pytest.raises(UnsafeMemberError):
            unpack(path, folder, Limits())


@pytest.mark.parametrize("ending", ["tar", "zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_doubles_are_refused(tmp_path: Path, folder: Path, ending: str) -> None:
    """The same name twice is refused: which of them counts depends on who reads."""
    path = tmp_path / f"7.{ending}"
    if ending == "zip":
        with zipfile.ZipFile(path, "w") as made:
            made.writestr("a", "1")
            made.writestr("a", "2")
    else:
        tar(path, member("a", b"1"), member("./a", b"2"))
    with pytest.raises(UnsafeMemberError, match="twice"):
        unpack(path, folder, Limits())


@pytest.mark.parametrize("ending", ENDINGS)
def test_limits_hold_whatever_the_archive_says(tmp_path: Path, folder: Path, ending: str) -> None:
    """Too many files, too many bytes and too large a ratio end the unpacking."""
    archive = pack(tmp_path / f"7.{ending}", {"saved_model.pb": bytes(1 << 20), "b": b"", "c": b""})
    for number, limits in enumerate((Limits(files=2), Limits(bytes=1 << 19))):
        target = folder / str(number)
        target.mkdir()
        with pytest.raises(OversizeArchiveError):
            unpack(archive, target, limits)
        assert sum(map(len, contents(target).values())) <= 1 << 20
    if ending != "tar":
        target = folder / "ratio"
        target.mkdir()
        with pytest.raises(OversizeArchiveError, match="times"):
            unpack(archive, target, Limits(archive_ratio=20, archive_ratio_from=1 << 16))
        assert (target / "saved_model.pb").stat().st_size < 1 << 20


@pytest.mark.parametrize("ending", ENDINGS)
def test_truncated_archives_are_damaged(tmp_path: Path, folder: Path, ending: str) -> None:
    """An archive that stops anywhere before its end is never taken for a whole one."""
    archive = pack(tmp_path / f"7.{ending}", FILES)
    data = archive.read_bytes()
    whole = len(data)
    if ending == "tar":  # what follows the last file is padding, of which one block has to be there
        whole = max(at for at in range(0, len(data), 512) if data[at - 512 : at].strip(b"\0")) + 512
    for number, cut in enumerate(sorted({0, 1, 511, 512, 513, 5000, whole // 2, whole - 600, whole - 1})):
        (tmp_path / "cut").mkdir(exist_ok=True)
        short = tmp_path / "cut" / f"7.{ending}"
        short.write_bytes(data[:cut])
        target = folder / str(number)
        target.mkdir()
        with pytest.raises((DamagedArchiveError, UnsafeMemberError)):
            unpack(short, target, Limits())


@pytest.mark.parametrize("ending", ENDINGS)
def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path, folder: Path, ending: str) -> None:
    """After a flipped bit an archive is refused, or all files come out; compressed ones are refused."""
    archive = pack(tmp_path / f"7.{ending}", FILES)
    data = bytearray(archive.read_bytes())
    refused = 0
    for number, at in enumerate(range(0, len(data), max(1, len(data) // 60))):
        data[at] ^= 0x10
        archive.write_bytes(data)
        target = folder / str(number)
        target.mkdir()
        try:
            sizes = unpack(archive, target, Limits())
        except (DamagedArchiveError, UnsafeMemberError, OversizeArchiveError):
            refused += 1
        else:
            assert len(sizes) == len(FILES)
        data[at] ^= 0x10
    assert refused > (40 if ending != "tar" else 0)


def test_headers_cannot_claim_memory(tmp_path: Path, folder: Path) -> None:
    """A long name of gigabytes, in little space, is refused before it is in memory."""
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 30
    with gzip.open(tmp_path / "7.tar.gz", "wb", compresslevel=1) as made:
        made.write(info.tobuf())
        for _ in range(64):
            made.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        with pytest.raises(DamagedArchiveError, match="claims"):
            unpack(tmp_path / "7.tar.gz", folder, Limits())
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_a_zip_cannot_claim_members(tmp_path: Path, folder: Path) -> None:
    """A list of members beyond the limits is not read at all."""
    archive = pack(tmp_path / "7.zip", {"a": b""})
    data = bytearray(archive.read_bytes())
    at = data.rfind(b"PK\5\6")
    struct.pack_into("<HH", data, at + 8, 60_000, 60_000)
    archive.write_bytes(data)
    with pytest.raises(OversizeArchiveError, match="60000 members"):
        unpack(archive, folder, Limits(files=1000))


def test_unpacking_can_be_stopped(tmp_path: Path, folder: Path) -> None:
    """What `check` raises ends the work."""

    def stop(written: int) -> None:
        raise KeyboardInterrupt

    checked: Callable[[int], None] = stop
    with pytest.raises(KeyboardInterrupt):
        unpack(pack(tmp_path / "7.tar", FILES), folder, Limits(), check=checked)
    assert not (folder / DATA).exists() or os.path.getsize(folder / DATA) == 0
