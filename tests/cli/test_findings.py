"""What `doctor` finds, as values: a check is as bad as its worst finding."""

from __future__ import annotations

import json

import pytest

from aioserving.cli.findings import Check, Finding, Level, error, note, ok, skipped, warning

FINDINGS = (ok("a"), note("b"), warning("c", "mend c"), error("d", "mend d"))


@pytest.mark.parametrize("count", range(len(FINDINGS) + 1))
def test_a_check_is_as_bad_as_its_worst_finding(count: int) -> None:
    """Whatever the order; one without findings is well, and only errors end what follows."""
    level = (Level.OK, Level.OK, Level.NOTE, Level.WARNING, Level.ERROR)[count]
    for findings in (FINDINGS[:count], FINDINGS[:count][::-1]):
        check = Check("connect", findings)
        assert check.level == level
        assert check.failed == (level == Level.ERROR)


def test_levels_can_be_compared() -> None:
    """What was not looked at is not worse than what is well."""
    assert Level.SKIPPED < Level.OK < Level.NOTE < Level.WARNING < Level.ERROR


def test_skipped_checks_say_why() -> None:
    """One of each name, in order, none of which has failed."""
    checks = skipped(["tls", "model"], "there is no connection")
    assert [check.name for check in checks] == ["tls", "model"]
    assert all(check.findings == (Finding(Level.SKIPPED, "there is no connection"),) for check in checks)
    assert not any(check.failed for check in checks)
    assert {check.level for check in checks} == {Level.SKIPPED}


def test_scripts_get_plain_values() -> None:
    """JSON has names of levels, and null where there is nothing to do."""
    found = json.loads(json.dumps(Check("clock", FINDINGS[:3], 0.12345678).to_dict()))
    assert found["name"] == "clock"
    assert found["level"] == "warning"
    assert found["seconds"] == 0.123457
    assert found["findings"] == [
        {"level": "ok", "text": "a", "fix": None},
        {"level": "note", "text": "b", "fix": None},
        {"level": "warning", "text": "c", "fix": "mend c"},
    ]
