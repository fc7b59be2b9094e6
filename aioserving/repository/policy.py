"""Policies: which versions of a model are to be served, under which labels, and how carefully they change.

    Policy(
        versions=Latest(1),
        labels={"stable": Label(), "canary": Label(seconds=600, probes=20)},
        hours=Hours("Europe/Berlin", ("mon-fri 22:00-05:00",)),
        max_concurrent_loads=1,
        probe=Probe(inputs={"x": [1.0]}, outputs={"y": [2.5]}),
    )

A policy is data: it says what is wanted, `plan` says what to do about it. `to_dict` gives plain JSON types
and `from_dict` reads them back, from a set-up file or the state on disk, and tells everything that is wrong
with them at once.
"""

from __future__ import annotations

import base64
import binascii
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta, timezone, tzinfo
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from aioserving.repository.errors import RepositoryError

__all__ = [
    "All",
    "Hours",
    "Label",
    "Latest",
    "Policy",
    "PolicyError",
    "PolicyProblem",
    "Probe",
    "Specific",
    "Versions",
]

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WINDOW: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))? +)?"
    r"(?P<start>\d{1,2}:\d{2})-(?P<end>\d{1,2}:\d{2})\Z"
)
_LARGEST_VERSION: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class PolicyProblem:
    """One thing that is wrong with a policy."""

    #: Names of the keys that lead to it, such as ``("labels", "canary", "seconds")``; empty: the whole.
    path: tuple[str, ...]
    #: What is wrong, and what would be right.
    text: str

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.text}" if self.path else self.text


class PolicyError(RepositoryError, ValueError):
    """A policy that makes no sense.

    Attributes:
        problems: what is wrong, a `PolicyProblem` each.
    """

    def __init__(self, problems: Sequence[PolicyProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems,)


def _refuse(text: str, *path: str) -> PolicyError:
    return PolicyError([PolicyProblem(path, text)])


# -- which versions -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Latest:
    """The `count` highest versions.

    Raises:
        PolicyError: `count` is no number from 1.
    """

    count: int = 1

    def __post_init__(self) -> None:
        if not _is_count(self.count):
            raise _refuse(f"latest must be a whole number, at least 1, got {self.count!r}")

    def select(self, known: Collection[int]) -> frozenset[int]:
        """Those of `known` that are wanted."""
        return frozenset(sorted(known)[-self.count :])

    def __str__(self) -> str:
        return "latest" if self.count == 1 else f"latest {self.count}"


@dataclass(frozen=True, slots=True)
class Specific:
    """These versions and no others; those that are not there yet are wanted once they are.

    Raises:
        PolicyError: there is none, or one is no version number.
    """

    versions: frozenset[int]

    def __init__(self, versions: Iterable[int]) -> None:
        object.__setattr__(self, "versions", frozenset(versions))
        if not self.versions:
            raise _refuse("name one version at least; to serve nothing, remove the policy")
        for version in self.versions:
            if not _is_version(version):
                raise _refuse(f"{version!r} is no version: a whole number, at least 0")

    def select(self, known: Collection[int]) -> frozenset[int]:
        """Those of `known` that are wanted."""
        return self.versions.intersection(known)

    def __str__(self) -> str:
        return ", ".join(map(str, sorted(self.versions)))


@dataclass(frozen=True, slots=True)
class All:
    """Every version that there is."""

    def select(self, known: Collection[int]) -> frozenset[int]:
        """Those of `known` that are wanted: all."""
        return frozenset(known)

    def __str__(self) -> str:
        return "all"


#: What `Policy.versions` can be.
Versions: TypeAlias = "Latest | Specific | All"


# -- labels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """Which version a label is on.

    Without arguments it is on the newest version that has been promoted, as ``stable`` should be. With
    `seconds` or `probes` it is a canary: it goes to a new version first, and once it has been there for so
    long, and so many probes were answered rightly, the version is promoted; between rollouts it is
    where the promoted version is, so that its callers are always answered. With `version` it stays there.

    Raises:
        PolicyError: a setting is out of range, or `version` comes with another.
    """

    #: The version, if it is a fixed one; it is then served, too.
    version: int | None = None
    #: Seconds that a new version has to do well under this label before it is promoted.
    seconds: float | None = None
    #: Probes that a new version has to answer rightly under this label before it is promoted.
    probes: int | None = None

    def __post_init__(self) -> None:
        if self.version is not None:
            if not _is_version(self.version):
                raise _refuse(f"{self.version!r} is no version: a whole number, at least 0", "version")
            if self.is_canary:
                raise _refuse("a label with a version of its own is no canary: leave out seconds and probes")
        if self.seconds is not None and not _is_seconds(self.seconds):
            raise _refuse(f"must be a number of seconds, at least 0, got {self.seconds!r}", "seconds")
        if self.probes is not None and not _is_count(self.probes):
            raise _refuse(f"must be a whole number, at least 1, got {self.probes!r}", "probes")

    @property
    def is_canary(self) -> bool:
        """Whether it goes to a new version before that is promoted."""
        return self.seconds is not None or self.probes is not None

    @property
    def is_promoted(self) -> bool:
        """Whether it is on the newest promoted version."""
        return self.version is None and not self.is_canary

    def to_dict(self) -> dict[str, Any]:
        """What `Policy.from_dict` reads."""
        return {key.name: value for key in fields(self) if (value := getattr(self, key.name)) is not None}


# -- hours --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Window:
    """Some days of the week (0 is Monday) from one minute of the day to another, maybe of the next."""

    days: frozenset[int]
    start: int
    end: int


@dataclass(frozen=True)
class Hours:
    """When new versions may be fetched, loaded and promoted.

    Repairs, such as bringing back a server that has restarted, and rollbacks of bad versions happen at any
    time.

    Args:
        timezone: name of the time zone, such as ``"Europe/Berlin"`` or ``"UTC"``.
        windows: ``"mon-fri 22:00-05:00"`` each; without days it is every day. A window that ends at or
            before its start ends on the next day; ``00:00-24:00`` is a whole day.

    Raises:
        PolicyError: there is no such time zone, or a window cannot be read.
    """

    timezone: str
    windows: tuple[str, ...]
    _parsed: tuple[_Window, ...] = field(init=False, repr=False, compare=False)
    _zone: tzinfo = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", tuple(self.windows))
        problems: list[PolicyProblem] = []
        parsed = []
        for index, window in enumerate(self.windows):
            try:
                parsed.append(_parse_window(window))
            except ValueError as error:
                problems.append(PolicyProblem(("windows", str(index)), str(error)))
        if not self.windows:
            problems.append(
                PolicyProblem(("windows",), "name one window at least, such as 'mon-fri 22:00-05:00'")
            )
        zone: tzinfo = timezone.utc
        try:
            zone = _zone(self.timezone)
        except ValueError as error:
            problems.append(PolicyProblem(("timezone",), str(error)))
        if problems:
            raise PolicyError(problems)
        object.__setattr__(self, "_parsed", tuple(parsed))
        object.__setattr__(self, "_zone", zone)

    def allow(self, now: float) -> bool:
        """Whether `now`, in seconds since 1970, lies in a window."""
        local = datetime.fromtimestamp(now, timezone.utc).astimezone(self._zone)
        minute, day = local.hour * 60 + local.minute, local.weekday()
        for window in self._parsed:
            if window.end > window.start:
                inside = day in window.days and window.start <= minute < window.end
            else:
                inside = (day in window.days and minute >= window.start) or (
                    (day - 1) % 7 in window.days and minute < window.end
                )
            if inside:
                return True
        return False

    def next_open(self, now: float) -> float:
        """When a window is open next, in seconds since 1970, to the minute; `now` if one is."""
        if self.allow(now):
            return now
        moment = datetime.fromtimestamp(now, timezone.utc).replace(second=0, microsecond=0)
        for _ in range(8 * 24 * 60):  # a week, and a day for what a change of the clock takes away
            moment += timedelta(minutes=1)
            if self.allow(moment.timestamp()):
                return moment.timestamp()
        return math.inf  # a window that every change of the clock skips

    def to_dict(self) -> dict[str, Any]:
        """What `Policy.from_dict` reads."""
        return {"timezone": self.timezone, "windows": list(self.windows)}


def _zone(name: str) -> tzinfo:
    import zoneinfo

    if not isinstance(name, str) or not name:
        raise ValueError(f"the time zone must be a name such as 'Europe/Berlin', got {name!r}")
    if name.upper() == "UTC":
        return timezone.utc  # there also where no time zone data is installed
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as error:
        known = zoneinfo.available_timezones()
        if not known:
            raise ValueError(
                f"no time zone {name!r}: this system has no time zone data; pip install tzdata"
            ) from error
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ValueError(
            f"no time zone {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        ) from error


def _parse_window(text: str) -> _Window:
    match = _WINDOW.match(text.strip().lower()) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"a window is 'mon-fri 22:00-05:00' or '22:00-05:00', got {text!r}")
    days: frozenset[int] = frozenset(range(7))
    if match["first"]:
        names = (match["first"], match["last"] or match["first"])
        for name in names:
            if name not in _DAYS:
                raise ValueError(f"{name!r} is no day; the days are {', '.join(_DAYS)}")
        first, last = map(_DAYS.index, names)
        days = frozenset((first + step) % 7 for step in range((last - first) % 7 + 1))
    return _Window(days, _minute(match["start"], most=24 * 60 - 1), _minute(match["end"], most=24 * 60))


def _minute(text: str, most: int) -> int:
    hour, minute = map(int, text.split(":"))
    if minute > 59 or hour * 60 + minute > most:
        raise ValueError(f"{text!r} is no time of the day")
    return hour * 60 + minute


# -- probe --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A request that a new version has to answer, on every server, before it gets a label.

    Raises:
        PolicyError: not exactly one of `inputs` and `request` is given, or a setting is out of range.
    """

    #: JSON values by input name, as for `AsyncClient.predict`.
    inputs: Mapping[str, Any] | None = None
    #: A recorded PredictRequest, serialized; model and version in it are replaced.
    request: bytes | None = field(default=None, repr=False)
    #: Values by output name that the answer has to have; None: any answer will do.
    outputs: Mapping[str, Any] | None = None
    #: How far a number may be off, absolutely or as a share of the expected one.
    tolerance: float = 1e-5
    #: Name of the signature that `inputs` are for; ``serving_default`` if None.
    signature_name: str | None = None
    #: Seconds that an answer may take.
    timeout: float = 10.0
    #: Seconds between two probes of a canary.
    interval: float = 5.0

    def __post_init__(self) -> None:
        problems = []
        if (self.inputs is None) == (self.request is None):
            problems.append(
                PolicyProblem((), "give either inputs or a recorded request (or a file with one)")
            )
        for name in ("inputs", "outputs"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, Mapping) or not all(map(_is_text, value))):
                problems.append(
                    PolicyProblem((name,), f"must be a mapping of names to values, got {value!r}")
                )
            elif value is not None:
                try:
                    plain = {key: _json(item) for key, item in value.items()}
                except TypeError as error:
                    problems.append(PolicyProblem((name,), str(error)))
                else:
                    object.__setattr__(self, name, plain)
        if self.request is not None:
            if self.signature_name is not None:
                problems.append(PolicyProblem(("signature_name",), "the recorded request names its own"))
            try:
                _parsed_request(self.request)
            except ValueError as error:
                problems.append(PolicyProblem(("request",), str(error)))
        for name in ("tolerance", "timeout", "interval"):
            value = getattr(self, name)
            if not _is_seconds(value) or (name == "timeout" and not value):
                problems.append(PolicyProblem((name,), f"must be a number, not negative, got {value!r}"))
        if problems:
            raise PolicyError(problems)

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **settings: Any) -> Probe:
        """A probe from a file: JSON with ``inputs`` and maybe ``outputs``, or a serialized PredictRequest.

        Args:
            path: the file; it is JSON if its name ends with ``.json``.
            **settings: further fields of the probe; they win.

        Raises:
            PolicyError: the file is neither.
            OSError: it cannot be read.
        """
        if Path(path).suffix == ".json":
            try:
                content = json.loads(Path(path).read_text(encoding="utf-8"))
            except ValueError as error:
                raise _refuse(f"{os.fspath(path)} is no JSON: {error}") from error
            if not isinstance(content, Mapping):
                raise _refuse(f"{os.fspath(path)} must hold an object with 'inputs'")
            problems: list[PolicyProblem] = []
            probe = _read_probe({**content, **settings}, problems)
            if probe is None or problems:
                raise PolicyError(problems)
            return probe
        return cls(request=Path(path).read_bytes(), **settings)

    def message(self, model: str, version: int) -> Any:
        """The recorded PredictRequest as a message, to be sent to `version` of `model`.

        Raises:
            ValueError: there is none; the probe has `inputs`.
        """
        if self.request is None:
            raise ValueError("this probe has inputs, no recorded request")
        message = _parsed_request(self.request)
        message.model_spec.name = model
        message.model_spec.ClearField("version_label")
        message.model_spec.version.value = version
        return message

    def difference(self, outputs: Mapping[str, Any]) -> str:
        """What is wrong with an answer, in words; empty if it is as expected.

        Args:
            outputs: arrays by output name.
        """
        for name, expected in (self.outputs or {}).items():
            if name not in outputs:
                return f"there is no output {name!r}, only {', '.join(map(repr, outputs)) or 'none'}"
            got = np.asarray(outputs[name])
            try:
                wanted = np.asarray(expected)
            except ValueError as error:
                return f"the expected value of {name!r} is no array: {error}"
            if got.shape != wanted.shape:
                return f"output {name!r} has shape {got.shape}, not {wanted.shape}"
            if got.dtype.kind in "fciub" and wanted.dtype.kind in "fciub":
                equal = np.isclose(got, wanted, rtol=self.tolerance, atol=self.tolerance, equal_nan=True)
            else:
                equal = _texts(got) == _texts(wanted)
            if not np.all(equal):
                where = tuple(int(place) for place in np.argwhere(~np.asarray(equal))[0])
                found, right = _plain(got[where]), _plain(wanted[where])
                return f"output {name!r} at {list(where)} is {found!r}, not {right!r}"
        return ""

    def to_dict(self) -> dict[str, Any]:
        """What `Policy.from_dict` reads; a recorded request as base64."""
        result: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value is None or value == item.default:
                continue
            result[item.name] = base64.b64encode(value).decode() if item.name == "request" else value
        return result


def _json(value: Any) -> Any:
    """A value in JSON types; arrays become lists.

    Raises:
        TypeError: it has none.
    """
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{value!r} cannot be written as JSON; give it in a recorded request") from error


def _parsed_request(data: bytes) -> Any:
    from google.protobuf.message import DecodeError

    from aioserving import _proto

    try:
        return _proto.message_class("tensorflow.serving.PredictRequest").FromString(data)
    except (DecodeError, TypeError) as error:
        raise ValueError(f"not a serialized PredictRequest: {error}") from error


def _texts(values: Any) -> Any:
    flat = [value if isinstance(value, bytes) else str(value).encode() for value in values.ravel().tolist()]
    return np.array(flat, dtype=object).reshape(values.shape)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


# -- the policy ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What is wanted of one model.

    Raises:
        PolicyError: settings that make no sense, alone or together.
    """

    #: Which versions are served.
    versions: Versions = field(default_factory=Latest)
    #: Serve this version and no other, whatever `versions` says; None: as `versions` says.
    pinned: int | None = None
    #: Labels by name.
    labels: Mapping[str, Label] = field(default_factory=dict)
    #: When versions may change; None: at any time.
    hours: Hours | None = None
    #: Servers and versions of this model that may be loading at once; None: no limit.
    max_concurrent_loads: int | None = None
    #: What a new version has to answer before it counts; None: being available is enough.
    probe: Probe | None = None
    #: Seconds that a server may be loading one version; then the version is given up.
    load_timeout: float = 300.0
    #: Versions that were served before, to be left on disk for a quick rollback.
    keep: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", dict(self.labels))
        problems = []
        if not isinstance(self.versions, (Latest, Specific, All)):
            problems.append(
                PolicyProblem(("versions",), f"must be Latest, Specific or All, got {self.versions!r}")
            )
        if self.pinned is not None and not _is_version(self.pinned):
            problems.append(
                PolicyProblem(("pinned",), f"{self.pinned!r} is no version: a whole number, at least 0")
            )
        for name in self.labels:
            if not _is_text(name) or not name or "/" in name or ":" in name:
                problems.append(PolicyProblem(("labels",), f"{name!r} is no label: REST cannot name it"))
        canaries = [name for name, label in self.labels.items() if label.is_canary]
        if len(canaries) > 1:
            problems.append(
                PolicyProblem(("labels",), f"only one label can be a canary, not {' and '.join(canaries)}")
            )
        for name in canaries:
            if self.labels[name].probes is not None and self.probe is None:
                problems.append(
                    PolicyProblem(("labels", name, "probes"), "needs a probe: the policy has none")
                )
        if self.max_concurrent_loads is not None and not _is_count(self.max_concurrent_loads):
            problems.append(
                PolicyProblem(
                    ("max_concurrent_loads",),
                    f"must be a whole number, at least 1, got {self.max_concurrent_loads!r}",
                )
            )
        if not _is_seconds(self.load_timeout) or not self.load_timeout:
            problems.append(
                PolicyProblem(
                    ("load_timeout",), f"must be a number of seconds above 0, got {self.load_timeout!r}"
                )
            )
        if not isinstance(self.keep, int) or isinstance(self.keep, bool) or self.keep < 0:
            problems.append(
                PolicyProblem(("keep",), f"must be a whole number, at least 0, got {self.keep!r}")
            )
        if problems:
            raise PolicyError(problems)

    @property
    def canary(self) -> tuple[str, Label] | None:
        """Name and rule of the canary label, if there is one."""
        for name, label in self.labels.items():
            if label.is_canary:
                return name, label
        return None

    def select(self, known: Collection[int]) -> frozenset[int]:
        """Those of the versions `known` that are to be served."""
        if self.pinned is not None:
            chosen = frozenset({self.pinned}.intersection(known))
        else:
            chosen = self.versions.select(known)
        fixed = {label.version for label in self.labels.values() if label.version is not None}
        return chosen | fixed.intersection(known)

    def allows(self, now: float) -> bool:
        """Whether versions may change at `now`, in seconds since 1970."""
        return self.hours is None or self.hours.allow(now)

    def to_dict(self) -> dict[str, Any]:
        """The policy in plain JSON types; what is as by default is left out."""
        result: dict[str, Any] = {"versions": _versions_to_dict(self.versions)}
        if self.pinned is not None:
            result["pinned"] = self.pinned
        if self.labels:
            result["labels"] = {name: label.to_dict() for name, label in self.labels.items()}
        if self.hours is not None:
            result["hours"] = self.hours.to_dict()
        if self.probe is not None:
            result["probe"] = self.probe.to_dict()
        for name, default in (("max_concurrent_loads", None), ("load_timeout", 300.0), ("keep", 1)):
            if getattr(self, name) != default:
                result[name] = getattr(self, name)
        return result

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, folder: str | os.PathLike[str] = ".") -> Policy:
        """Read what `to_dict` gives, and the shorter ways in which people write it.

        ``versions`` may be ``"latest"``, ``"latest 2"``, ``{"latest": 2}``, ``"all"``, or a list of
        versions; ``labels`` a list of names, or a mapping of names to rules, where null is the
        newest promoted version and a number that version; ``probe`` may have a ``file`` (see
        `Probe.from_file`).

        Args:
            data: the keys and values.
            folder: where the paths of files start.

        Raises:
            PolicyError: with everything that is wrong, each with the keys that lead to it.
        """
        problems: list[PolicyProblem] = []
        if not isinstance(data, Mapping):
            raise _refuse(f"a policy is a mapping of keys to values, got {data!r}")
        known = tuple(item.name for item in fields(cls))
        _check_keys(data, known, (), problems)
        given: dict[str, Any] = {}
        readers: Mapping[str, Callable[[Any, list[PolicyProblem]], Any]] = {
            "versions": _read_versions,
            "labels": _read_labels,
            "hours": _read_hours,
            "probe": lambda value, found: _read_probe(value, found, Path(folder)),
        }
        for name in known:
            if data.get(name) is None:
                continue
            if name in readers:
                before = len(problems)
                value = readers[name](data[name], problems)
                if len(problems) == before:
                    given[name] = value
            else:
                given[name] = data[name]
        try:
            policy = cls(**given)
        except PolicyError as error:
            # What was left out above may be what this one misses.
            problems += [
                problem for problem in error.problems if not problems or {*problem.path[:1]} <= {*data}
            ]
        if problems:
            raise PolicyError(problems)
        return policy

    def __str__(self) -> str:
        parts = [f"pinned to {self.pinned}" if self.pinned is not None else str(self.versions)]
        for name, label in self.labels.items():
            rule = " and ".join(
                filter(
                    None,
                    (
                        f"{label.seconds:g} s" if label.seconds is not None else "",
                        f"{label.probes} probes" if label.probes is not None else "",
                        f"version {label.version}" if label.version is not None else "",
                    ),
                )
            )
            parts.append(f"label {name}" + (f" ({rule})" if rule else ""))
        if self.hours is not None:
            parts.append(f"{', '.join(self.hours.windows)} {self.hours.timezone}")
        if self.max_concurrent_loads is not None:
            parts.append(f"{self.max_concurrent_loads} loads at once")
        if self.probe is not None:
            parts.append("probed")
        return "; ".join(parts)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_version(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_VERSION


def _is_seconds(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_keys(
    data: Mapping[str, Any], known: Sequence[str], path: tuple[str, ...], problems: list[PolicyProblem]
) -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            advice = f"did you mean {near[0]!r}?" if near else f"the keys are {', '.join(known)}"
            problems.append(PolicyProblem((*path, str(key)), f"there is no such key; {advice}"))


def _gather(problems: list[PolicyProblem], error: PolicyError, *path: str) -> None:
    problems += [PolicyProblem((*path, *problem.path), problem.text) for problem in error.problems]


def _read_versions(value: Any, problems: list[PolicyProblem]) -> Versions | None:
    try:
        if value == "all":
            return All()
        if isinstance(value, str) and (match := re.fullmatch(r"latest(?: +(\d+))?", value.strip())):
            return Latest(int(match[1] or 1))
        if isinstance(value, Mapping) and set(value) == {"latest"}:
            return Latest(value["latest"])
        if isinstance(value, Mapping) and set(value) == {"specific"}:
            value = value["specific"]
        if isinstance(value, Mapping) and set(value) == {"all"}:
            return All()
        if _is_version(value):
            return Specific([value])
        if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
            return Specific(value)
    except PolicyError as error:
        _gather(problems, error, "versions")
        return None
    except TypeError:  # versions that cannot be in a set
        pass
    problems.append(
        PolicyProblem(
            ("versions",), f"must be 'latest', 'latest N', 'all' or a list of versions, got {value!r}"
        )
    )
    return None


def _versions_to_dict(versions: Versions) -> Any:
    return sorted(versions.versions) if isinstance(versions, Specific) else str(versions)


def _read_labels(value: Any, problems: list[PolicyProblem]) -> dict[str, Label]:
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        value = dict.fromkeys(map(str, value))
    if not isinstance(value, Mapping):
        problems.append(
            PolicyProblem(("labels",), f"must be a list of names, or names with rules, got {value!r}")
        )
        return {}
    result = {}
    for name, rule in value.items():
        if _is_version(rule):
            rule = {"version": rule}  # noqa: PLW2901
        if rule is not None and not isinstance(rule, Mapping):
            problems.append(
                PolicyProblem(
                    ("labels", str(name)),
                    f"must be nothing, a version, or a mapping with seconds, probes or version, got {rule!r}",
                )
            )
            continue
        rule = dict(rule or {})  # noqa: PLW2901
        before = len(problems)
        _check_keys(rule, tuple(item.name for item in fields(Label)), ("labels", str(name)), problems)
        if len(problems) > before:
            continue
        try:
            result[name] = Label(**rule)
        except PolicyError as error:
            _gather(problems, error, "labels", str(name))
    return result


def _read_hours(value: Any, problems: list[PolicyProblem]) -> Hours | None:
    if not isinstance(value, Mapping):
        problems.append(
            PolicyProblem(("hours",), f"must be a mapping with timezone and windows, got {value!r}")
        )
        return None
    before = len(problems)
    _check_keys(value, ("timezone", "windows"), ("hours",), problems)
    for key in ("timezone", "windows"):
        if key not in value:
            problems.append(PolicyProblem(("hours", key), "is missing"))
    windows = value.get("windows", ())
    if not isinstance(windows, Sequence):
        problems.append(PolicyProblem(("hours", "windows"), f"must be a list, got {windows!r}"))
    if len(problems) > before:
        return None
    try:
        return Hours(value["timezone"], (windows,) if isinstance(windows, str) else tuple(windows))
    except PolicyError as error:
        _gather(problems, error, "hours")
        return None


def _read_probe(value: Any, problems: list[PolicyProblem], folder: Path | None = None) -> Probe | None:
    if not isinstance(value, Mapping):
        problems.append(
            PolicyProblem(("probe",), f"must be a mapping with inputs, request or file, got {value!r}")
        )
        return None
    before = len(problems)
    given = dict(value)
    known = [item.name for item in fields(Probe)]
    _check_keys(given, [*known, "file"] if folder is not None else known, ("probe",), problems)
    if isinstance(given.get("request"), str):
        try:
            given["request"] = base64.b64decode(given["request"], validate=True)
        except (binascii.Error, ValueError) as error:
            problems.append(PolicyProblem(("probe", "request"), f"is no base64: {error}"))
    elif given.get("request") is not None and not isinstance(given["request"], bytes):
        problems.append(PolicyProblem(("probe", "request"), "must be a PredictRequest in base64"))
    if len(problems) > before:
        return None
    try:
        if folder is not None and "file" in given:
            return Probe.from_file(folder / given.pop("file"), **given)
        return Probe(**given)
    except PolicyError as error:
        _gather(problems, error, "probe")
    except (OSError, TypeError) as error:
        problems.append(PolicyProblem(("probe", "file"), str(error)))
    return None
