"""The config file of the command line: TOML, with profiles.

    target = "127.0.0.1:8500"

    [profiles.production]
    target = ["10.0.0.1:8500", "10.0.0.2:8500"]
    ca = "ca.pem"
    token_file = "token"

Values at the top go for all profiles that do not say otherwise; ``profile = "production"`` at the top says
which one is used when none is named. Relative paths start at the file. One file is read: the one that is
named, else ``./aioserving.toml``, else ``~/.config/aioserving/config.toml``. What the keys mean, and what
stands above the file, is `common`'s.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aioserving.cli.failures import CommandError, ExitCode

__all__ = ["ConfigFile", "find", "load"]

#: The file of a folder, which may be somebody else's.
LOCAL = "aioserving.toml"


@dataclass(frozen=True)
class ConfigFile:
    """What was read; without a file, nothing."""

    #: The values in force, by key.
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: The file, or None.
    path: Path | None = None
    #: The profile in force, or None.
    profile: str | None = None
    #: Keys whose values come from the profile.
    from_profile: frozenset[str] = frozenset()
    #: Names of all profiles.
    profiles: tuple[str, ...] = ()
    #: Whether it was only found in the current folder, where anybody may have put it.
    discovered: bool = False

    def origin(self, key: str) -> str:
        """Where the value of `key` stands, in words."""
        profile = f", profile {self.profile!r}" if key in self.from_profile else ""
        return f"file {self.path}{profile}"


def find(environment: Mapping[str, str]) -> tuple[Path | None, bool]:
    """The file to read if none is named, and whether it is the current folder's."""
    local = Path(LOCAL)
    if local.is_file():
        return local, True
    home = environment.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    path = Path(home, "aioserving", "config.toml")
    return (path, False) if path.is_file() else (None, False)


def load(
    path: str | None,
    profile: str | None,
    keys: Collection[str],
    paths: Collection[str],
    environment: Mapping[str, str],
) -> ConfigFile:
    """Read a file and choose a profile.

    Args:
        path: the file; None for the one that `find` finds.
        profile: name of the profile; None for the one that the file names.
        keys: what a file may have.
        paths: those of the keys whose values are paths.
        environment: environment variables.

    Raises:
        CommandError: it cannot be read, is no TOML, has a key that means nothing, or no such profile.
    """
    discovered = False
    if path is not None:
        found: Path | None = Path(path)
    else:
        found, discovered = find(environment)
    if found is None:
        if profile is not None:
            raise CommandError(
                f"there is no config file, and so no profile {profile!r}",
                ExitCode.USAGE,
                advice="name the file with --config, or write ~/.config/aioserving/config.toml",
            )
        return ConfigFile()
    top = _read(found)
    profiles = top.pop("profiles", {})
    if not isinstance(profiles, dict) or not all(isinstance(values, dict) for values in profiles.values()):
        raise _wrong(found, "profiles are tables: [profiles.NAME]")
    chosen = profile if profile is not None else top.pop("profile", None)
    top.pop("profile", None)
    if chosen is not None and chosen not in profiles:
        has = f"it has {', '.join(map(repr, profiles))}" if profiles else "it has none"
        raise _wrong(found, f"no profile {chosen!r}{_near(str(chosen), profiles)}; {has}")
    for where, values in (("", top), *((f"profiles.{name}.", table) for name, table in profiles.items())):
        for key in values:
            if key.replace("-", "_") not in keys:
                raise _wrong(found, f"unknown key '{where}{key}'{_near(key, keys)}")
    from_top = {key.replace("-", "_"): value for key, value in top.items()}
    from_profile = {key.replace("-", "_"): value for key, value in profiles.get(chosen, {}).items()}
    merged = {**from_top, **from_profile}
    for key in paths:
        if isinstance(value := merged.get(key), str):
            merged[key] = str(found.parent / Path(value).expanduser())
    return ConfigFile(merged, found, chosen, frozenset(from_profile), tuple(profiles), discovered)


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise CommandError(
                "reading a config file needs tomli on Python 3.10: pip install 'aioserving[cli]'",
                ExitCode.MISSING_EXTRA,
            ) from error
    try:
        with path.open("rb") as file:
            loaded: dict[str, Any] = tomllib.load(file)
            return loaded
    except OSError as error:
        raise CommandError(f"config file {path}: {error.strerror}", ExitCode.USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise _wrong(path, f"this is no TOML: {error}") from error


def _wrong(path: Path, what: str) -> CommandError:
    return CommandError(f"config file {path}: {what}", ExitCode.USAGE)


def _near(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""
