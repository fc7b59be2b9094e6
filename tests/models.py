"""Callable models that tests serve: small, with exact answers, no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from aioserving.testing import CallableServable
from aioserving.testing.servable import CallableSignature

__all__ = ["digits", "many_signatures"]


def digits(version: int = 1, width: int = 784) -> CallableServable:
    """One input ``images`` float32 (-1, `width`); the row sums, and the version that computed them."""

    def run(images: Any) -> dict[str, Any]:
        return {
            "scores": images.sum(axis=-1, dtype=np.float32),
            "version": np.array(version, np.int64),
        }

    return CallableServable(
        run,
        inputs={"images": ("float32", (None, width))},
        outputs={"scores": ("float32", (None,)), "version": ("int64", ())},
        inline=True,
    )


def many_signatures() -> CallableServable:
    """``serving_default`` adds two inputs, ``strings`` joins texts, ``ticks`` takes nothing."""
    return CallableServable(
        {
            "serving_default": CallableSignature(
                function=lambda a, b: {"sum": a + b, "difference": a - b},
                inputs={"a": ("float32", (None,)), "b": ("float32", (None,))},
                outputs={"sum": ("float32", (None,)), "difference": ("float32", (None,))},
            ),
            "strings": CallableSignature(
                function=lambda names: {"greeting": np.array([b"hello " + name for name in names], object)},
                inputs={"names": ("string", (None,))},
                outputs={"greeting": ("string", (None,))},
            ),
            "ticks": CallableSignature(
                function=lambda: {"tick": np.array(1, np.int32)}, inputs={}, outputs={"tick": ("int32", ())}
            ),
        },
        inline=True,
    )
