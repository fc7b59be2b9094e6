"""A deadline is the sooner of the call's own timeout and the ambient anyio scope."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys

import anyio
import pytest

from aioserving.deadline import deadline_after


def test_timeout_counts_from_now() -> None:
    """Seconds become a point in time; None and infinity become none."""

    async def story() -> None:
        assert deadline_after(2.5, 1000.0) == 1002.5
        assert deadline_after(0, 1000.0) == 1000.0
        assert deadline_after(None, 1000.0) is None
        assert deadline_after(math.inf, 1000.0) is None

    asyncio.run(story())


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan])
def test_a_negative_timeout_is_refused(timeout: float) -> None:
    """Neither the past nor NaN is a limit."""
    with pytest.raises(ValueError, match="timeout must be"):
        deadline_after(timeout, 1000.0)


def test_the_ambient_scope() -> None:
    """The innermost of nested anyio scopes counts if it is the sooner; a shield hides those outside."""

    async def story() -> None:
        now = asyncio.get_running_loop().time()
        with anyio.fail_after(10):
            assert deadline_after(None, now) == pytest.approx(now + 10, abs=0.5)
            assert deadline_after(20, now) == pytest.approx(now + 10, abs=0.5)
            assert deadline_after(5, now) == now + 5
            with anyio.move_on_after(1):
                assert deadline_after(5, now) == pytest.approx(now + 1, abs=0.5)
            with anyio.CancelScope(shield=True):
                assert deadline_after(5, now) == now + 5
                assert deadline_after(None, now) is None
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert deadline_after(5, now) == -math.inf

    asyncio.run(story())


def test_anyios_backend_is_not_imported_for_nothing() -> None:
    """Where no scope was ever made, looking for one would cost an import; afterwards scopes are seen."""
    code = """
import asyncio, sys
from aioserving.deadline import deadline_after, _SCOPES
async def story():
    assert deadline_after(None, 0.0) is None
    assert _SCOPES not in sys.modules
    import anyio
    with anyio.fail_after(10):
        assert _SCOPES in sys.modules
        assert deadline_after(None, 0.0) is not None
asyncio.run(story())
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
