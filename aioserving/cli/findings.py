"""What `doctor` finds: findings with their fixes, gathered in checks, gathered in a report."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Check", "Finding", "Level", "error", "note", "ok", "skipped", "warning"]


class Level(enum.IntEnum):
    """How bad something is; the higher, the worse."""

    #: Not looked at, because of something found before.
    SKIPPED = 0
    OK = 1
    #: Worth knowing.
    NOTE = 2
    #: Works, and will bite.
    WARNING = 3
    #: Calls fail because of it, or would.
    ERROR = 4


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    level: Level
    #: What was found, in one line.
    text: str
    #: What to do about it; empty if there is nothing to do.
    fix: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"level": self.level.name.lower(), "text": self.text, "fix": self.fix or None}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at."""

    #: What was looked at: ``"connect"``.
    name: str
    findings: Sequence[Finding] = field(default_factory=tuple)
    #: How long it took.
    seconds: float = 0.0

    @property
    def level(self) -> Level:
        """That of its worst finding."""
        return max((finding.level for finding in self.findings), default=Level.OK)

    @property
    def failed(self) -> bool:
        """Whether calls fail because of what was found, so that looking further is no use."""
        return self.level == Level.ERROR

    def to_dict(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "name": self.name,
            "level": self.level.name.lower(),
            "seconds": round(self.seconds, 6),
            "findings": [finding.to_dict() for finding in self.findings],
        }


def ok(text: str) -> Finding:
    """Something that is as it should be."""
    return Finding(Level.OK, text)


def note(text: str, fix: str = "") -> Finding:
    """Something worth knowing."""
    return Finding(Level.NOTE, text, fix)


def warning(text: str, fix: str) -> Finding:
    """Something that works, and will bite."""
    return Finding(Level.WARNING, text, fix)


def error(text: str, fix: str) -> Finding:
    """Something because of which calls fail."""
    return Finding(Level.ERROR, text, fix)


def skipped(names: Iterable[str], why: str) -> list[Check]:
    """Checks that were not made, and why."""
    return [Check(name, (Finding(Level.SKIPPED, why),)) for name in names]
