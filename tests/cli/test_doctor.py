"""`aioserving doctor`: how findings are shown, and what the exit code says."""

from __future__ import annotations

import re

from .conftest import Run


def test_healthy(on: Run) -> None:
    """A server that is well: a line for each check, under its place, and exit code 0."""
    found = on("doctor", "--model", "digits")
    assert (found.code, found.err) == (0, "")
    assert found.lines[0] == "this machine"
    names = [
        match[1] for line in found.lines if (match := re.match(r"  (?:ok|note|warning) +(\S[\w ]*?)  ", line))
    ]
    assert names == [
        "versions", "import", *(["variables"] if "variables" in names else []), "clock", "proxy", "resolve",
        "connect", "tls", "protocol", "call", "health", "model", "metadata", "messages", "round trip",
    ]  # fmt: skip
    assert not any(line.startswith("  error") for line in found.lines)


def test_what_is_wrong_comes_with_its_fix(on: Run) -> None:
    """A finding that makes calls fail has its fix below, and the exit code is 1."""
    found = on("doctor", "--model", "digit")
    assert found.code == 1
    [place] = [number for number, line in enumerate(found.lines) if line.startswith("  error")]
    assert "the server knows no model 'digit'" in found.lines[place]
    assert found.lines[place + 1].strip() == "-> did you mean 'digits'?"
    assert any(line.startswith("  skipped  metadata    the model cannot be called") for line in found.lines)


def test_for_programs(on: Run) -> None:
    """With --json all of it is one document."""
    found = on("doctor", "--model", "digits", "--json")
    assert found.json["healthy"] is True
    here, there = found.json["places"]
    assert here["place"] == "this machine"
    assert {check["name"] for check in there["checks"]} >= {"connect", "model", "round trip"}
    assert all(check["seconds"] < 60 for check in there["checks"])
    wrong = on("doctor", "--model", "x", "--json")
    assert (wrong.code, wrong.json["healthy"]) == (1, False)


def test_several_targets(run: Run, on: Run) -> None:
    """Each target is looked at by itself, also when one before it fails."""
    found = on("doctor", "--target", "127.0.0.1:1", "--json")
    first, second = found.json["places"][1:]
    assert found.code == 1
    assert first["place"] == "127.0.0.1:1"
    assert [check["level"] for check in first["checks"] if check["name"] == "connect"] == ["error"]
    assert not any(check["level"] == "error" for check in second["checks"])


def test_this_machine_alone(run: Run) -> None:
    """Without a target there is still this machine to look at."""
    found = run("doctor", "--json")
    assert found.code == 0
    assert [place["place"] for place in found.json["places"]] == ["this machine"]


def test_times(run: Run) -> None:
    """A time that is none, or no time at all, is refused."""
    assert run("doctor", "--check-timeout", "none").code == 2
    assert run("doctor", "--check-timeout", "0").code == 2


def test_secrets_are_not_shown(on: Run) -> None:
    """Neither a token nor a proxy's password is in what is shown."""
    found = on(
        "doctor", "--token", "s3cret-token", "--insecure-token", "--json",
        env={"http_proxy": "http://joe:s3cret-password@127.0.0.1:9", "no_proxy": ""},
    )  # fmt: skip
    assert "s3cret" not in found.out + found.err
    assert "127.0.0.1:9" in found.out
