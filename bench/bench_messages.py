"""What a view costs over the raw protobuf attribute, printed as ratios of medians.

    python bench/bench_messages.py

Raw attribute and view are timed in turns, so that whatever else the machine does hits both alike.
The goal is 3.0 for reading and for setting a scalar.
"""

from __future__ import annotations

import statistics
import sys
import timeit
from typing import Any

from aioserving.messages import (
    Class,
    ModelConfig,
    ModelSpec,
    ModelVersionStatus,
    PredictRequest,
    SamplingConfig,
    TensorInfo,
    TensorShapeProto,
)

GOAL = 3.0
ROUNDS = 61
CALLS = 4000


def cases() -> list[tuple[str, str, str, Any, dict[str, Any]]]:
    """Label, statement on the message, statement on the view, view, and other names in both."""
    spec = ModelSpec(name="digits", version=3)
    labelled = ModelSpec(name="digits", version_label="stable")
    unlabelled = ModelSpec(name="digits")
    config = ModelConfig(name="digits", base_path="/models/digits")
    status = ModelVersionStatus(version=3, state="AVAILABLE")
    state = ModelVersionStatus.State.AVAILABLE
    sampling = SamplingConfig(sampling_rate=0.5)
    scored = Class(label="seven", score=0.5)
    dim = TensorShapeProto.Dim(size=3)
    shape = TensorShapeProto(unknown_rank=True)
    info = TensorInfo(dtype=1)
    request = PredictRequest(model_spec=spec)
    policy = ModelConfig(model_version_policy={"latest": 2}).model_version_policy
    return [
        ("str, get", "o.name", "o.name", config, {}),
        ("str, set", "o.name = 'digits'", "o.name = 'digits'", config, {}),
        ("int, get", "o.size", "o.size", dim, {}),
        ("int, set", "o.size = 7", "o.size = 7", dim, {}),
        ("float64, get", "o.sampling_rate", "o.sampling_rate", sampling, {}),
        ("float64, set", "o.sampling_rate = 0.25", "o.sampling_rate = 0.25", sampling, {}),
        ("float32, get", "o.score", "o.score", scored, {}),
        ("float32, set", "o.score = 0.25", "o.score = 0.25", scored, {}),
        ("bool, get", "o.unknown_rank", "o.unknown_rank", shape, {}),
        ("bool, set", "o.unknown_rank = True", "o.unknown_rank = True", shape, {}),
        ("enum, get", "o.state", "o.state", status, {}),
        ("enum, set", "o.state = 30", "o.state = state", status, {"state": state}),
        ("dtype, get", "o.dtype", "o.dtype", info, {}),
        ("optional str, get", "o.version_label", "o.version_label", labelled, {}),
        (
            # What the message alone does not tell: unset, or empty?
            "optional str, get None",
            "o.version_label if o.HasField('version_label') else None",
            "o.version_label",
            unlabelled,
            {},
        ),
        ("optional str, set", "o.version_label = 'new'", "o.version_label = 'new'", labelled, {}),
        ("Int64Value, get", "o.version.value", "o.version", spec, {}),
        ("Int64Value, get None", "o.version.value", "o.version", unlabelled, {}),
        ("Int64Value, set", "o.version.value = 4", "o.version = 4", spec, {}),
        ("chain, get", "o.model_spec.name", "o.model_spec.name", request, {}),
        ("chain, set", "o.model_spec.name = 'new'", "o.model_spec.name = 'new'", request, {}),
        ("latest, get", "o.latest.num_versions", "o.latest", policy, {}),
        ("latest, set", "o.latest.num_versions = 4", "o.latest = 4", policy, {}),
    ]


def main() -> int:
    """Time all cases; the exit code says whether the goal was met."""
    timers = []
    for label, raw, through_view, view, names in cases():
        timers.append(
            (
                label,
                timeit.Timer(raw, globals={"o": view.pb, **names}),
                timeit.Timer(through_view, globals={"o": view, **names}),
            )
        )
    raw_times: dict[str, list[float]] = {label: [] for label, _, _ in timers}
    view_times: dict[str, list[float]] = {label: [] for label, _, _ in timers}
    for _ in range(ROUNDS):
        for label, raw_timer, view_timer in timers:
            raw_times[label].append(raw_timer.timeit(CALLS) / CALLS * 1e9)
            view_times[label].append(view_timer.timeit(CALLS) / CALLS * 1e9)
    print(f"{'scalar':24} {'raw, ns':>8} {'view, ns':>9} {'ratio':>6}")
    worst = 0.0
    for label, _, _ in timers:
        raw_ns, view_ns = statistics.median(raw_times[label]), statistics.median(view_times[label])
        worst = max(worst, view_ns / raw_ns)
        print(f"{label:24} {raw_ns:8.0f} {view_ns:9.0f} {view_ns / raw_ns:6.2f}")
    print(f"worst ratio {worst:.2f}, goal {GOAL:.1f}")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
