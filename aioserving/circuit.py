"""Failing fast while a whole fleet is down, and noticing when it is back.

One endpoint that is down is ejected, and others take its calls. When all are down, every call would wait,
retry and time out, and their attempts would meet the first server that returns all at once. A `Circuit`
refuses them at once instead, but for one probe at a time: closed, open and half-open, after Nygard's
"Release It!", as in Finagle's ``FailureAccrual`` whose probes come back with growing pauses. There is one
circuit for a client's fleet, not one for each endpoint: that is the business of health.

What counts as a failure is for the caller to say: an endpoint that could not be reached. An answer is
a success here, whatever its status code.
"""

from __future__ import annotations

import enum
import math
import random as random_module
from dataclasses import dataclass
from typing import Final

__all__ = ["Circuit", "CircuitOptions", "State", "Transition"]


class State(enum.Enum):
    """What a circuit does with calls."""

    #: Calls pass.
    CLOSED = "closed"
    #: No call passes until the next probe is due.
    OPEN = "open"
    #: One call has been let through as a probe; no other passes until it has ended.
    HALF_OPEN = "half-open"


#: Looked up once per call; as an attribute of the enum it would cost as much as the rest.
_CLOSED: Final = State.CLOSED


@dataclass(frozen=True, slots=True)
class Transition:
    """A change of state."""

    before: State
    after: State
    #: When, on the caller's clock.
    at: float
    #: Why, in a sentence.
    reason: str

    def __str__(self) -> str:
        return f"{self.before.value} -> {self.after.value}: {self.reason}"


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitOptions:
    """When a circuit opens and how it probes.

    Raises:
        ValueError: a setting is out of range.
    """

    #: Failures without a success in between that open it. With two of three endpoints down and not ejected,
    #: 20 in a row come about once in 3000 outcomes, so the number alone does not do; it is there for
    #: clients with few calls, of which a bad half second says little.
    threshold: int = 20
    #: Seconds that these failures must span at least: a hiccup, or a burst that fails together when one
    #: connection breaks, does not open it. A busy client has hundreds of outcomes in that time.
    span: float = 0.5
    #: Seconds within which the first probe follows.
    first_probe: float = 0.1
    #: Seconds within which any probe follows the last, failed or lost; so recovery is noticed in that time.
    last_probe: float = 1.0

    def __post_init__(self) -> None:
        if self.threshold < 1:
            raise ValueError(f"threshold must be at least 1, got {self.threshold!r}")
        if not 0 <= self.span < math.inf:
            raise ValueError(f"span must be a number of seconds, at least 0; got {self.span!r}")
        if not 0 < self.first_probe < math.inf:
            raise ValueError(f"first_probe must be a number of seconds above 0, got {self.first_probe!r}")
        if not self.first_probe <= self.last_probe < math.inf:
            raise ValueError(
                f"last_probe must be a number of seconds, at least first_probe; got {self.last_probe!r}"
            )


class Circuit:
    """Whether calls are let through to a fleet.

    Ask `allow` before an attempt, and say how it ended: `success`, `failure`, or `release` if it ended
    without telling anything of the fleet (it was cancelled). Those that change the state return the
    `Transition`; `allow` makes one only if it lets a probe pass: then it is in `last`.

    A probe that never ends is not waited for longer than `CircuitOptions.last_probe`, so however the caller
    behaves, an open circuit lets an attempt pass at least once in twice that time.

    Args:
        options: the settings.
        random: where chance comes from: probes of many clients should not coincide.
    """

    __slots__ = ("_due", "_first_at", "_probes", "_random", "_streak", "last", "options", "state")

    def __init__(self, options: CircuitOptions, random: random_module.Random) -> None:
        self.options = options
        #: What is done with calls now. Only read it.
        self.state = _CLOSED
        #: The last change of state, or None.
        self.last: Transition | None = None
        self._random = random
        #: Failures since the last success, while closed.
        self._streak = 0
        #: When the first of them was.
        self._first_at = 0.0
        #: Probes since it opened.
        self._probes = 0
        #: When the next probe may pass.
        self._due = 0.0

    def __repr__(self) -> str:
        if self.state is _CLOSED:
            return f"<Circuit closed, {self._streak} failures in a row>"
        return f"<Circuit {self.state.value} after {self._probes} probes>"

    def allow(self, now: float) -> bool:
        """Whether an attempt may be made `now`. While not closed, True makes it the probe."""
        if self.state is _CLOSED:
            return True
        if now < self._due:
            return False
        lost = self.state is State.HALF_OPEN
        self._probes += 1
        # A probe has the same patience whatever the pause before it: a server that has just come back may
        # be slow to answer.
        self._due = now + self.options.last_probe
        self._change(
            State.HALF_OPEN,
            now,
            f"probe {self._probes} is let through" + (", the last one was lost" if lost else ""),
        )
        return True

    def success(self, now: float) -> Transition | None:
        """An endpoint answered, or is known to be reachable again: this closes the circuit."""
        self._streak = 0
        if self.state is _CLOSED:
            return None
        return self._change(_CLOSED, now, "an endpoint answered")

    def failure(self, now: float) -> Transition | None:
        """An endpoint could not be reached."""
        if self.state is _CLOSED:
            if not self._streak:
                self._first_at = now
            self._streak += 1
            spanned = now - self._first_at
            if self._streak < self.options.threshold or spanned < self.options.span:
                return None
            return self._open(
                now, f"{self._streak} attempts in a row failed within {spanned:.3g} s, at all endpoints"
            )
        if self.state is State.HALF_OPEN:
            # It may also be an attempt that started before the circuit opened; that costs one pause.
            return self._reopen(now, f"probe {self._probes} failed")
        return None  # one that had started before it opened

    def all_down(self, now: float) -> Transition | None:
        """Every endpoint is known to be down: this opens the circuit, if it is closed."""
        if self.state is not _CLOSED:
            return None
        return self._open(now, "every endpoint is down")

    def release(self, now: float) -> Transition | None:
        """The probe ended without an outcome; another may follow after a pause."""
        if self.state is not State.HALF_OPEN:
            return None
        return self._reopen(now, f"probe {self._probes} ended without an outcome")

    def retry_after(self, now: float) -> float:
        """Seconds until another attempt may be let through; 0 if one may be now."""
        return 0.0 if self.state is _CLOSED else max(0.0, self._due - now)

    def _open(self, now: float, reason: str) -> Transition:
        self._probes = 0
        self._streak = 0
        return self._reopen(now, reason)

    def _reopen(self, now: float, reason: str) -> Transition:
        options = self.options
        # 30 doublings are beyond any two settings that make sense.
        pause = min(options.last_probe, options.first_probe * 2.0 ** min(self._probes, 30))
        self._due = now + pause * (0.5 + 0.5 * self._random.random())
        return self._change(State.OPEN, now, reason)

    def _change(self, after: State, now: float, reason: str) -> Transition:
        self.last = Transition(self.state, after, now, reason)
        self.state = after
        return self.last
