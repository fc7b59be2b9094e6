"""aioserving.repository.results: what a service answers."""

from __future__ import annotations

from aioserving.repository.results import ModelVersions, PlannedStep, VersionInfo


def test_a_version_by_its_number() -> None:
    """A version is found by number, and None is what is not there."""
    versions = ModelVersions("digits", (VersionInfo(3), VersionInfo(1)))
    assert versions.version(1) == VersionInfo(1)
    assert versions.version(2) is None


def test_steps_read_as_sentences() -> None:
    """A plan is printed as it was put into words."""
    assert str(PlannedStep("fetch", "fetch version 3 of digits", "digits", 3)) == "fetch version 3 of digits"
