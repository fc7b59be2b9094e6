"""Which names of models, versions and files are taken, and how much of everything: rules without I/O.

Stores, archives and the disk all ask here, so that no name from outside becomes a path before it was
looked at. A version is what the model server takes for one: a folder whose whole name is a signed 64-bit
integer, leading zeros allowed; it ignores every other name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final

from aioserving.repository.errors import InvalidNameError

__all__ = [
    "ARCHIVES",
    "MANIFEST",
    "MODEL_FILES",
    "PRIVATE",
    "Limits",
    "archive_version",
    "check_member_path",
    "check_members",
    "check_model_name",
    "is_model_name",
    "parse_version",
    "version_number",
]

#: Files that make a folder a SavedModel: one of them is there.
MODEL_FILES: Final = ("saved_model.pb", "saved_model.pbtxt")

#: The file in a version's folder that lists its other files with their SHA-256, as ``sha256sum`` writes it.
#: Beside an archive it is called as the archive is, with ``.sha256`` after it.
MANIFEST: Final = "SHA256SUMS"

#: How the names of single-archive versions end.
ARCHIVES: Final = (".tar", ".tar.gz", ".zip")

#: The folder below the disk's base that is the repository's own. No model can have this name.
PRIVATE: Final = ".aioserving"

_MODEL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}\Z")
_VERSION: Final = re.compile(r"-?[0-9]{1,40}\Z")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
_DRIVE: Final = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class Limits:
    """How large a version may be; what exceeds it is refused before it is brought to disk."""

    #: Files of one version.
    files: int = 10_000
    #: Bytes of one version, unpacked.
    bytes: int = 64 << 30
    #: How many times its own size an archive may unpack to ...
    archive_ratio: float = 200.0
    #: ... once that is more than so many bytes.
    archive_ratio_from: int = 64 << 20
    #: Bytes of a manifest.
    manifest_bytes: int = 4 << 20

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} must be more than 0, got {getattr(self, field.name)!r}")


def is_model_name(name: str) -> bool:
    """Whether `name` is one that a model can have here; see `check_model_name`."""
    return _MODEL.match(name) is not None


def check_model_name(name: str) -> str:
    """`name`, if a model can have it: ASCII letters, digits and ``_.-``, at most 200, no dot in front.

    The model server takes any text; a name here is a folder, a part of URLs and an argument, too.

    Raises:
        InvalidNameError: it is another.
    """
    if not is_model_name(name):
        raise InvalidNameError(
            f"{name!r} is no name for a model: letters, digits and '_', '.', '-', at most 200 of them, "
            "beginning with none of '.' and '-'"
        )
    return name


def version_number(name: str) -> int | None:
    """The version that the model server takes a folder called `name` for, or None: it ignores that."""
    if not _VERSION.match(name):
        return None
    number = int(name)
    return number if -(2**63) <= number < 2**63 else None


def parse_version(text: str) -> int:
    """The version that the folder or argument `text` names.

    Raises:
        InvalidNameError: the model server would ignore a folder of that name.
    """
    number = version_number(text)
    if number is None:
        raise InvalidNameError(f"{text!r} is no version: it takes a signed 64-bit integer")
    return number


def archive_version(name: str) -> tuple[int, str] | None:
    """The version and the ending (one of `ARCHIVES`) of a single-archive version's file, or None."""
    for ending in sorted(ARCHIVES, key=len, reverse=True):
        if name.endswith(ending):
            number = version_number(name.removesuffix(ending))
            return None if number is None else (number, ending)
    return None


def check_member_path(path: str) -> str:
    """`path` of a file within a version, "/"-separated and without a leading ``./``, if it is harmless.

    Raises:
        InvalidNameError: it is absolute, leads out or nowhere, is too long, or has characters that some
            system reads as something else.
    """
    plain = path.removeprefix("./")
    parts = plain.split("/")
    reason = ""
    if not plain or plain.startswith("/") or _DRIVE.match(plain):
        reason = "it is not a relative path"
    elif "\\" in plain or _UNPRINTABLE.search(plain):
        reason = "it has a backslash or a control character in it"
    elif any(part in ("", ".", "..") for part in parts):
        reason = "it has an empty part, '.' or '..' in it"
    elif len(parts) > 32 or len(plain) > 1024:
        reason = "it is too long or too deep"
    else:
        try:
            if max(len(part.encode()) for part in parts) > 255:
                reason = "a part of it is too long for a file name"
        except UnicodeEncodeError:
            reason = "it is not text"
    if reason:
        raise InvalidNameError(f"{path[:200]!r} is no path of a file in a version: {reason}")
    return plain


def check_members(paths: Iterable[str]) -> list[str]:
    """`paths` as `check_member_path` gives them, if they can all be files of one version.

    Raises:
        InvalidNameError: one is not harmless, occurs twice, or is a folder of another one.
    """
    found: list[str] = []
    files: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        plain = check_member_path(path)
        if plain in files:
            raise InvalidNameError(f"{plain!r} occurs twice")
        files.add(plain)
        found.append(plain)
        parent = plain.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    both = files & folders
    if both:
        raise InvalidNameError(f"{min(both)!r} is both a file and a folder")
    return found
