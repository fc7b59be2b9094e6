"""Callable models that tests serve: small, with exact answers, no TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from aioserving._proto import message_class
from aioserving.testing import CallableServable, StatusCode, StatusError
from aioserving.testing.servable import CallableSignature

__all__ = ["digits", "graded", "many_signatures", "row_sums", "versions"]


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


def row_sums() -> CallableServable:
    """One input ``images`` float32 (-1, 784); ``scores``, the row sums: every output has a batch axis."""
    return CallableServable(
        lambda images: {"scores": images.sum(axis=-1, dtype=np.float32)},
        inputs={"images": ("float32", (None, 784))},
        outputs={"scores": ("float32", (None,))},
        inline=True,
    )


def versions() -> dict[int, CallableServable]:
    """Versions 1 and 2 of `digits`."""
    return {1: digits(1), 2: digits(2)}


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


def _floats(inputs: Any, name: str = "x") -> Any:
    """The feature `name` of serialized Examples, read by protobuf; required, as in most models."""
    values = []
    for serialized in inputs:
        example: Any = message_class("tensorflow.Example").FromString(serialized)
        feature = example.features.feature
        if name not in feature:
            raise StatusError(
                StatusCode.INVALID_ARGUMENT,
                f"Name: <unknown>, Feature: {name} (data type: float) is required but could not be found.",
            )
        values.append(feature[name].float_list.value[0])
    return np.array(values, np.float32)


def graded() -> CallableServable:
    """Examples with a float ``x``: ``classify`` gives low 1-x and high x, ``regress`` x/2+2, and bad ones."""

    def classify(inputs: Any) -> dict[str, Any]:
        x = _floats(inputs)
        labels = np.tile(np.array([[b"low", b"high"]], object), (len(x), 1))
        return {"classes": labels, "scores": np.stack([1 - x, x], axis=1)}

    def regress(inputs: Any) -> dict[str, Any]:
        return {"outputs": _floats(inputs) / 2 + 2}

    examples = {"inputs": ("string", (None,))}
    number = {"outputs": ("float32", (None,))}
    return CallableServable(
        {
            "classify": CallableSignature(
                function=classify,
                inputs=examples,
                outputs={"classes": ("string", (None, 2)), "scores": ("float32", (None, 2))},
            ),
            "regress": CallableSignature(function=regress, inputs=examples, outputs=number),
            "other_input": CallableSignature(
                function=lambda x: {"outputs": x}, inputs={"x": ("float32", (None,))}, outputs=number
            ),
            "three_outputs": CallableSignature(
                function=lambda inputs: {"scores": inputs, "b": inputs, "c": inputs},
                inputs=examples,
                outputs=dict.fromkeys(("scores", "b", "c"), ("string", (None,))),
            ),
        },
        inline=True,
    )
