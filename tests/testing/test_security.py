"""aioserving.testing.security: the names by which tests know `aioserving.server_security`."""

from __future__ import annotations

import pytest

from aioserving import server_security
from aioserving.testing import security


@pytest.mark.parametrize("name", server_security.__all__)
def test_same_things_under_both_names(name: str) -> None:
    """A token file, scheme or identity of one module is one of the other."""
    assert getattr(security, name) is getattr(server_security, name)


def test_nothing_is_left_out() -> None:
    """Whatever guards a service can guard a testing server."""
    assert security.__all__ == server_security.__all__
