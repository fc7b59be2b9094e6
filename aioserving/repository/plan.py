"""What to do next: a pure function of what is wanted and what is found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps to take now, in order; false if there is nothing to do or to wait for. `print` it."""

    steps: tuple[object, ...] = ()
