"""The model that engines score with; a server is given it as ``rows=tests.engines.servables:rows``."""

from __future__ import annotations

from typing import Any

import numpy as np

from aioserving.testing import CallableServable, StatusCode, StatusError

__all__ = ["rows"]


def _rows(version: int) -> CallableServable:
    """Sums, doubles and texts of two numbers, and the version; refuses what is below 0."""

    def run(x: Any) -> dict[str, Any]:
        if (x < 0).any():
            raise StatusError(StatusCode.INVALID_ARGUMENT, "a number is below 0")
        sums = x.sum(axis=1, dtype=np.float32)
        return {
            "sum": sums,
            "double": x * np.float32(2),
            "text": np.array([b"%d" % value for value in sums], object),
            "version": np.full(len(x), version, np.int64),
        }

    return CallableServable(
        run,
        inputs={"x": ("float32", (None, 2))},
        outputs={
            "sum": ("float32", (None,)),
            "double": ("float32", (None, 2)),
            "text": ("string", (None,)),
            "version": ("int64", (None,)),
        },
        inline=True,
    )


#: Two versions, of which a server is told to serve one or both.
rows = {1: _rows(1), 2: _rows(2)}
