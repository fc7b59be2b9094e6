"""Whether an endpoint is well: what is noticed, and who is ejected for how long.

Decisions are functions of counts and the clock. Passive signs: failures in a row, and endpoints whose
share of failures or whose latency is out of line with the fleet's (Envoy's outlier detection has the same
three). Active ones, which `monitor` brings: an endpoint that cannot be reached, or does not answer a probe.

    unreachable   no connection, or no answer to a probe: certain, so any number may be out at a time;
                  probed until it answers, ten times a second at first
    an outlier    it answers, but badly: a judgement, so at most `HealthOptions.most_ejected` of the fleet
                  are out at a time, each for a time that grows with every ejection
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

__all__ = [
    "ClientHealth",
    "EndpointHealth",
    "Health",
    "HealthOptions",
    "HealthState",
    "find_outliers",
    "may_eject",
]


@dataclass(frozen=True, kw_only=True)
class HealthOptions:
    """When an endpoint is ejected, for how long, and how it gets back."""

    #: Failures in a row after which an endpoint is ejected; 0: never.
    consecutive_failures: int = 5
    #: Seconds between two looks for outliers.
    interval: float = 2.0
    #: Calls that an endpoint must have had between two looks to be judged.
    minimum_calls: int = 20
    #: Share of failed calls, above the fleet's median, at which an endpoint is an outlier; 1: never.
    failure_share: float = 0.4
    #: Latency, in terms of the fleet's median, at which an endpoint is an outlier; infinity: never. (The
    #: balancer's estimate ends at ten times the mean.)
    latency_factor: float = 8.0
    #: Seconds of an outlier's first ejection; twice as long every time, and less again with good behaviour.
    ejection: float = 5.0
    #: Seconds of the longest ejection.
    longest_ejection: float = 60.0
    #: Share of the fleet, 0 to 1, that may be out as outliers at the same time.
    most_ejected: float = 0.34
    #: Seconds without any answer on a connection with calls under way, after which it is probed.
    probe_after: float = 1.0
    #: Seconds that a probe may take.
    probe_timeout: float = 1.0
    #: Seconds between two probes of an endpoint that is out, at first and at most.
    probe_interval: tuple[float, float] = (0.1, 1.0)
    #: Seconds between two questions to an endpoint for a model that it did not have.
    model_interval: float = 0.5

    def __post_init__(self) -> None:
        for name in ("consecutive_failures", "minimum_calls"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be a whole number, at least 0, got {value!r}")
        for name in ("failure_share", "most_ejected"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share, 0 to 1, got {getattr(self, name)!r}")
        names = ("interval", "ejection", "longest_ejection", "probe_after", "probe_timeout", "model_interval")
        for name in names:
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of seconds above 0, got {getattr(self, name)!r}")
        if not self.latency_factor > 1:
            raise ValueError(f"latency_factor must be above 1, got {self.latency_factor!r}")
        first, most = self.probe_interval
        if not 0 < first <= most:
            raise ValueError(
                f"probe_interval must be two numbers of seconds, rising, got {self.probe_interval!r}"
            )


#: What an endpoint's state is called: it gets calls, none, or fewer than its share.
HealthState = str
HEALTHY: Final = "healthy"
OUTLIER: Final = "outlier"
UNREACHABLE: Final = "unreachable"


class Health:
    """What is known of one endpoint's health.

    Args:
        options: when to eject.
    """

    __slots__ = (
        "_options",
        "calls",
        "ejected_at",
        "ejections",
        "failures",
        "in_a_row",
        "next_probe",
        "pause",
        "reason",
        "state",
        "until",
    )

    def __init__(self, options: HealthOptions) -> None:
        self._options = options
        self.state: HealthState = HEALTHY
        #: Why it is out.
        self.reason = ""
        self.ejected_at = 0.0
        #: When an outlier gets its next chance.
        self.until = 0.0
        #: How often it was ejected as an outlier, less what good behaviour has made good.
        self.ejections = 0
        self.in_a_row = 0
        #: Calls and failed ones since the last look for outliers.
        self.calls = 0
        self.failures = 0
        #: When an unreachable one is to be probed next, and the pause after that.
        self.next_probe = 0.0
        self.pause = 0.0

    def __repr__(self) -> str:
        return f"<Health: {self.state}{f' ({self.reason})' if self.reason else ''}>"

    def succeeded(self) -> None:
        """A call was answered."""
        self.calls += 1
        self.in_a_row = 0

    def failed(self) -> bool:
        """A call failed, and the endpoint is to blame; gives whether there were too many in a row."""
        self.calls += 1
        self.failures += 1
        self.in_a_row += 1
        most = self._options.consecutive_failures
        return self.state == HEALTHY and 0 < most <= self.in_a_row

    def lose(self, reason: str, now: float) -> None:
        """It cannot be reached: out until a probe is answered."""
        if self.state != UNREACHABLE:
            if self.state == HEALTHY:
                self.ejected_at = now
            self.state = UNREACHABLE
            self.pause = self._options.probe_interval[0]
            self.next_probe = now + self.pause
        self.reason = reason

    def eject(self, reason: str, now: float) -> float:
        """Out as an outlier; gives for how many seconds."""
        options = self._options
        seconds = float(min(options.ejection * 2.0**self.ejections, options.longest_ejection))
        self.state, self.reason, self.ejected_at, self.until = OUTLIER, reason, now, now + seconds
        self.ejections += 1
        return seconds

    def probe_due(self, now: float) -> bool:
        """Whether it is time to see if it is back; the next time is then put off."""
        if self.state == HEALTHY or now < (self.next_probe if self.state == UNREACHABLE else self.until):
            return False
        least, most = self._options.probe_interval
        self.pause = min(max(self.pause, least) * 2, most)
        if self.state == UNREACHABLE:
            self.next_probe = now + self.pause
        else:
            self.until = now + self.pause
        return True

    def recover(self, now: float) -> float:
        """It is well again; gives the seconds that it was out."""
        seconds = now - self.ejected_at
        self.state, self.reason = HEALTHY, ""
        self.in_a_row = self.calls = self.failures = 0
        self.pause = 0.0
        return seconds

    def next_interval(self) -> None:
        """Begin to count anew for the next look at outliers; good behaviour is rewarded."""
        if self.state == HEALTHY and self.ejections and self.calls and not self.failures:
            self.ejections -= 1
        self.calls = self.failures = 0


@dataclass(frozen=True, slots=True)
class EndpointHealth:
    """How one endpoint is, for `client.health()`."""

    target: str
    #: ``"healthy"``, ``"outlier"`` or ``"unreachable"``.
    state: HealthState
    #: Why it is out; empty if it is well.
    reason: str
    #: Models (with version or label, if callers name one) that others have and this one does not.
    missing_models: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether it gets calls."""
        return self.state == HEALTHY

    def __str__(self) -> str:
        missing = f", without {', '.join(self.missing_models)}" if self.missing_models else ""
        return f"{self.target}: {self.state}{f' ({self.reason})' if self.reason else ''}{missing}"


@dataclass(frozen=True, slots=True)
class ClientHealth:
    """How the endpoints of a client are; `print` it, or ask whether it is `ok`."""

    endpoints: tuple[EndpointHealth, ...]
    #: ``"closed"`` if calls are made; ``"open"`` or ``"half-open"`` if nothing answers.
    circuit: str

    @property
    def ok(self) -> bool:
        """Whether calls are made, to at least one endpoint that is well."""
        return self.circuit == "closed" and any(endpoint.ok for endpoint in self.endpoints)

    def __str__(self) -> str:
        return "\n".join([f"circuit {self.circuit}", *map(str, self.endpoints)])


def may_eject(fleet: Iterable[Health], most_ejected: float) -> bool:
    """Whether a further endpoint may be ejected as an outlier: not more than a share, and never the last.

    Args:
        fleet: all endpoints.
        most_ejected: share of the fleet that may be out; one may always be, of two and more.
    """
    states = [health.state for health in fleet]
    outliers = states.count(OUTLIER)
    return states.count(HEALTHY) > 1 and outliers + 1 <= max(1, int(len(states) * most_ejected))


def find_outliers(
    fleet: Sequence[tuple[Health, float | None]], options: HealthOptions
) -> list[tuple[int, str]]:
    """Endpoints that are out of line with the fleet, the worst first, with the reason.

    Args:
        fleet: every endpoint's health and expected latency in seconds (None if unknown).
        options: what out of line means.

    Returns:
        Indices into `fleet`. At least three endpoints with enough calls are needed: of two, nobody knows
        who is the odd one.
    """
    judged = [
        (index, health.failures / health.calls, latency)
        for index, (health, latency) in enumerate(fleet)
        if health.state == HEALTHY and health.calls >= max(options.minimum_calls, 1)
    ]
    if len(judged) < 3:
        return []
    usual_share = _median([share for _, share, _ in judged])
    latencies = [latency for _, _, latency in judged if latency is not None]
    usual_latency = _median(latencies) if len(latencies) >= 3 else 0.0
    found: list[tuple[float, int, str]] = []
    for index, share, latency in judged:
        if options.failure_share < 1 and share - usual_share >= options.failure_share:
            reason = f"{share:.0%} of its calls failed, {usual_share:.0%} are usual"
            found.append((1 + share, index, reason))
        elif latency is not None and usual_latency and latency >= usual_latency * options.latency_factor:
            reason = f"its latency is {latency * 1e3:.3g} ms, {usual_latency * 1e3:.3g} ms are usual"
            found.append((1 - usual_latency / latency, index, reason))
    return [(index, reason) for _, index, reason in sorted(found, reverse=True)]


def _median(values: list[float]) -> float:
    # The standard library's brings `decimal` and `fractions` along.
    return sorted(values)[len(values) // 2]
