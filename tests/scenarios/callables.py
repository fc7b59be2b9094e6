"""Models for a server process without TensorFlow: half_plus_two and its like, in several versions.

Named on a command line as ``NAME=tests.scenarios.callables:ATTRIBUTE``; a configuration then finds them
under ``/callable/NAME``, as if that were a folder of version folders.
"""

from __future__ import annotations

import numpy as np

from aioserving.testing import CallableServable, StatusCode, StatusError

__all__ = ["flawed", "half_plus_three", "half_plus_two", "many_versions", "two_versions"]


def _half_plus(number: float) -> CallableServable:
    """A model of vectors, y = x/2 + `number`."""
    return CallableServable(
        lambda x: {"y": x / np.float32(2) + np.float32(number)},
        inputs={"x": ("float32", (None,))},
        outputs={"y": ("float32", (None,))},
        inline=True,
    )


half_plus_two = {123: _half_plus(2)}
half_plus_three = {123: _half_plus(3)}
#: The same number as above for another model, and a larger one: what is served tells where it is from.
two_versions = {123: _half_plus(10), 124: _half_plus(11)}
many_versions = {version: _half_plus(version) for version in (1, 17, 21, 30, 33, 42)}
#: A version that loads, and one that does not.
flawed = {1: StatusError(StatusCode.DATA_LOSS, "broken on purpose"), 2: _half_plus(2)}
