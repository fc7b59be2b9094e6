"""Single-archive versions: what is in them, and getting that out without being tricked.

`unpack` writes the members of a ``.tar``, ``.tar.gz`` or ``.zip`` into a folder. It takes files and folders
and nothing else: no links (which could lead out, and which no SavedModel has), no devices, no paths that
lead elsewhere, no name twice, nothing that exceeds the limits, whatever the archive says its sizes are. A
single folder around everything, which is how many tools pack, is left out. It needs little memory,
whatever is in the archive.
"""

from __future__ import annotations

import gzip
import os
import posixpath
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from aioserving.repository.errors import InvalidNameError
from aioserving.repository.names import MODEL_FILES, Limits, check_member_path, check_members

__all__ = ["DamagedArchiveError", "OversizeArchiveError", "UnsafeMemberError", "unpack"]

_PIECE: Final = 1 << 20
#: What a reader of archives may ask for at a time: headers that claim more are no good.
_MOST: Final = 4 << 20
_LONGEST_NAMES: Final = 1 << 20
#: What readers of archives raise about what they read.
_DAMAGED: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    struct.error,
)


class UnsafeMemberError(ValueError):
    """An archive has a member that is not taken."""


class OversizeArchiveError(ValueError):
    """An archive has more in it than the limits allow."""


class DamagedArchiveError(ValueError):
    """An archive cannot be read to its end."""


def unpack(
    archive: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    limits: Limits,
    *,
    check: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Write the files in an archive into `folder`, which is there and empty; blocking.

    Args:
        archive: the file; its name says of which kind it is.
        folder: where to.
        limits: what may be in it.
        check: called every now and then with the bytes written so far; what it raises ends the work.

    Returns:
        The sizes of the files by their path in `folder`, "/"-separated.

    Raises:
        DamagedArchiveError: it cannot be read to its end, or is no such archive.
        OversizeArchiveError: there is more in it than allowed.
        UnsafeMemberError: it has a member that is not taken.
        OSError: the disk fails.
    """
    writer = _Writer(Path(folder), limits, os.path.getsize(archive), check)
    try:
        if os.fspath(archive).endswith(".zip"):
            _unpack_zip(archive, writer)
        else:
            _unpack_tar(archive, writer)
    except InvalidNameError as error:
        raise UnsafeMemberError(str(error)) from error
    except _DAMAGED as error:
        raise DamagedArchiveError(f"the archive is damaged: {error}") from error
    return writer.finish()


class _Writer:
    """Writes members, counting."""

    def __init__(
        self, folder: Path, limits: Limits, packed: int, check: Callable[[int], None] | None
    ) -> None:
        self.folder = folder
        self.limits = limits
        self.packed = packed
        self.check = check
        self.written = 0
        self.files: dict[str, int] = {}

    def admit(self, path: str) -> str:
        """The path of the next member, if it may be there."""
        plain = check_member_path(path)
        if plain in self.files:
            raise UnsafeMemberError(f"{plain!r} occurs twice")
        if len(self.files) >= self.limits.files:
            raise OversizeArchiveError(f"it has more than {self.limits.files} files")
        return plain

    def count(self, more: int) -> None:
        """Note bytes about to be written; the sizes that archives claim are not believed."""
        self.written += more
        if self.written > self.limits.bytes:
            raise OversizeArchiveError(f"it unpacks to more than {self.limits.bytes} bytes")
        if (
            self.written > self.limits.archive_ratio_from
            and self.written > self.packed * self.limits.archive_ratio
        ):
            raise OversizeArchiveError(
                f"it unpacks to more than {self.limits.archive_ratio:g} times its {self.packed} bytes"
            )
        if self.check is not None:
            self.check(self.written)

    def write(self, path: str, source: IO[bytes], size: int) -> None:
        plain = self.admit(path)
        target = self.folder / plain
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = open(target, "xb", buffering=0)  # noqa: SIM115 - closed below
        except (FileExistsError, NotADirectoryError) as error:
            raise UnsafeMemberError(f"{plain!r} is both a file and a folder") from error
        left = size
        with file:
            while left:
                data = source.read(min(left, _PIECE))
                if not data:
                    raise DamagedArchiveError(f"the archive is damaged: {plain!r} ends {left} bytes early")
                self.count(len(data))
                file.write(data)
                left -= len(data)
            # One read more, which checks the sum that a zip has of its member.
            if source.read(1):
                raise DamagedArchiveError(f"the archive is damaged: {plain!r} is longer than it should be")
        self.files[plain] = size

    def finish(self) -> dict[str, int]:
        """The files, after taking a single folder around everything away."""
        check_members(self.files)
        if self.files and not any(name in self.files for name in MODEL_FILES):
            heads = {path.partition("/")[0] for path in self.files}
            head = heads.pop()
            if not heads and any(f"{head}/{name}" in self.files for name in MODEL_FILES):
                # Under a name that nothing in the folder can have, as the folder may hold one like itself.
                around = self.folder / ".around"
                os.rename(self.folder / head, around)
                for item in os.listdir(around):
                    os.rename(around / item, self.folder / item)
                around.rmdir()
                return {posixpath.relpath(path, head): size for path, size in self.files.items()}
        return dict(self.files)


# ------------------------------------------------------------------------------------------------- tar


class _Guarded:
    """A file for `tarfile`: read forwards only, and not in the large pieces that a forged header asks for.

    tarfile steps back by one byte after each member, for which `gzip` would begin again from the start.
    """

    def __init__(self, file: IO[bytes], check: Callable[[], None]) -> None:
        self.file = file
        self.last = b""
        self._check = check
        self._at = 0  # how far `file` is read
        self._back = 0  # how far before that this is
        self._tail = b""

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MOST:
            raise DamagedArchiveError(f"the archive is damaged: a header claims {size} bytes")
        data = b""
        if self._back:
            data = self._tail[-self._back :][:size]
            self._back -= len(data)
        if len(data) < size:
            more = self.file.read(size - len(data))
            self._at += len(more)
            data += more
            self._tail = (
                (self._tail + more)[-tarfile.BLOCKSIZE :]
                if len(more) < tarfile.BLOCKSIZE
                else (more[-tarfile.BLOCKSIZE :])
            )
        self.last = data
        return data

    def seek(self, position: int) -> int:
        if position > self._at:
            self._back = 0
            while position > self._at:
                self._check()
                if not self.read(min(_PIECE, position - self._at)):
                    raise DamagedArchiveError("the archive is damaged: it ends too early")
        elif self._at - position <= len(self._tail):
            self._back = self._at - position
        else:
            raise DamagedArchiveError("the archive is damaged: its members overlap")
        return position

    def tell(self) -> int:
        return self._at - self._back


def _unpack_tar(archive: str | os.PathLike[str], writer: _Writer) -> None:
    with open(archive, "rb") as packed:
        plain = packed if not os.fspath(archive).endswith(".gz") else gzip.GzipFile(fileobj=packed, mode="rb")
        guarded = _Guarded(plain, lambda: writer.count(0))  # type: ignore[arg-type]
        tar: Any = tarfile.TarFile(fileobj=guarded, mode="r")  # type: ignore[arg-type]
        with tar:
            folders = 0
            while True:
                member = tar.next()
                if member is None:
                    break
                tar.members.clear()  # which tarfile would keep for ever
                if member.isdir():
                    folders += 1
                    if folders > writer.limits.files:
                        raise OversizeArchiveError(f"it has more than {writer.limits.files} folders")
                    if member.name.rstrip("/") not in (".", ""):
                        check_member_path(member.name.rstrip("/"))
                    continue
                if not member.isreg() or member.issparse():
                    kind = "link" if member.islnk() or member.issym() else "special file"
                    raise UnsafeMemberError(f"{member.name[:200]!r} is a {kind}")
                if writer.written + member.size > writer.limits.bytes:
                    raise OversizeArchiveError(f"it unpacks to more than {writer.limits.bytes} bytes")
                source = tar.extractfile(member)
                assert source is not None
                writer.write(member.name, source, member.size)
            # To tarfile a header that makes no sense is the end of the archive.
            if len(guarded.last) != tarfile.BLOCKSIZE or guarded.last.strip(b"\0"):
                raise DamagedArchiveError("the archive is damaged: it has no end")
        if plain is not packed:
            # To its end, where the sum of what was packed is; trailing zeros are usual, more is not.
            rest = 0
            while data := plain.read(_PIECE):
                rest += len(data)
                writer.count(0)
                if rest > _MOST or data.strip(b"\0"):
                    raise DamagedArchiveError("the archive is damaged: something follows its end")


# ------------------------------------------------------------------------------------------------- zip


def _unpack_zip(archive: str | os.PathLike[str], writer: _Writer) -> None:
    with open(archive, "rb") as file:
        _check_directory(file, writer.packed, writer.limits)
        with zipfile.ZipFile(file) as packed:
            members = packed.infolist()
            if sum(member.compress_size for member in members) > writer.packed:
                raise UnsafeMemberError("its members overlap")
            for member in members:
                mode = member.external_attr >> 16
                if member.is_dir():
                    check_member_path(member.filename.rstrip("/"))
                    continue
                if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
                    raise UnsafeMemberError(f"{member.filename[:200]!r} is a link or a special file")
                if member.flag_bits & 1:
                    raise UnsafeMemberError(f"{member.filename[:200]!r} is encrypted")
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise UnsafeMemberError(f"{member.filename[:200]!r} is not packed by deflate")
                if "\0" in member.orig_filename:
                    raise UnsafeMemberError(f"{member.orig_filename[:200]!r} has a control character in it")
                try:
                    with packed.open(member) as source:
                        writer.write(member.filename, source, member.file_size)
                except (NotImplementedError, RuntimeError) as error:
                    raise DamagedArchiveError(f"the archive cannot be read: {error}") from error


def _check_directory(file: IO[bytes], size: int, limits: Limits) -> None:
    """See that the list of members, which `zipfile` reads into memory, is not too long."""
    tail = min(size, 65_557)
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(data):
        raise DamagedArchiveError("the archive is damaged: it has no end")
    count, length = struct.unpack_from("<HL", data, at + 10)
    wide = data.rfind(b"PK\6\6", 0, at)
    if wide >= 0 and wide + 48 <= at and 0xFFFF in (count, length & 0xFFFF):
        count, length = struct.unpack_from("<QQ", data, wide + 32)
    if count > 2 * limits.files or length > 2 * limits.files * 1200 or length > _LONGEST_NAMES * 16:
        raise OversizeArchiveError(f"it has {count} members")
    file.seek(0)
