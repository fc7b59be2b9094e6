"""Settings: three places, their order, and what must not leak."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

import click

from aioserving import Client
from aioserving.cli.common import SETTINGS, Settings, confirm, duration
from aioserving.cli.failures import CommandError, ExitCode

pytestmark = pytest.mark.usefixtures("home")


def settings(given: Mapping[str, Any] | None = None, /, **environment: str) -> Settings:
    found = Settings(environment)
    for name, value in (given or {}).items():
        found.give(name, value)
    return found


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("3 s", 3.0),
        ("none", None),
        (7, 7.0),
    ],
)
def test_times(text: str | float, seconds: float | None) -> None:
    """Seconds, or with a unit."""
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-1", "5 days", "1e3", -2, True])
def test_what_is_no_time(text: str | float) -> None:
    """It is refused, not guessed."""
    with pytest.raises(ValueError, match="is no time"):
        duration(text)


def test_an_option_wins_over_the_environment_and_that_over_the_file() -> None:
    """The same setting in three places: the nearest one counts, and says where it is."""
    Path("aioserving.toml").write_text('target = "file:1"\nmodel = "of_file"\ntimeout = "5s"\n')
    found = settings({"target": ["option:1"]}, AIOSERVING_TARGET="a:1 b:2", AIOSERVING_MODEL="of_variable")
    assert found.targets == ["option:1"]
    assert (found.model, found.timeout, found.signature) == ("of_variable", 5.0, None)
    assert found.origin("target") == "option --target"
    assert found.origin("model") == "environment variable AIOSERVING_MODEL"
    assert found.origin("timeout") == "file aioserving.toml"
    assert found.origin("signature") == "default"
    assert settings(AIOSERVING_TARGET="a:1 b:2").targets == ["a:1", "b:2"]
    assert settings().targets == ["file:1"]


def test_every_setting_can_be_in_every_place() -> None:
    """Each has an option, a variable and a key, and the three are read to the same value."""
    texts = {
        "text": "x",
        "path": "/x",
        "list": "a:1 b:2",
        "flag": "true",
        "duration": "2m",
        "pairs": "a=1 b=2",
    }
    for setting in SETTINGS.values():
        text = texts[setting.kind]
        from_variable = settings(**{setting.variable: text}).get(setting.name)
        assert from_variable not in (None, ()), setting
        data = {"list": '["a:1", "b:2"]', "flag": "true", "pairs": '{a = "1", b = "2"}'}.get(
            setting.kind, f'"{text}"'
        )
        Path("aioserving.toml").write_text(f"{setting.name} = {data}\n")
        assert settings().get(setting.name) == from_variable, setting


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("AIOSERVING_TLS", "maybe", "AIOSERVING_TLS is true or false, not 'maybe'"),
        ("AIOSERVING_TIMEOUT", "soon", "AIOSERVING_TIMEOUT: 'soon' is no time"),
        ("AIOSERVING_METADATA", "x", "a header is NAME=VALUE"),
    ],
)
def test_values_of_the_wrong_kind(variable: str, text: str, message: str) -> None:
    """The error names the variable."""
    with pytest.raises(CommandError, match=message) as caught:
        settings(**{variable: text}).get(variable.removeprefix("AIOSERVING_").lower())
    assert caught.value.code == ExitCode.USAGE


def test_a_wrong_secret_is_not_shown() -> None:
    """A token of the wrong type in a file is refused without being printed."""
    Path("aioserving.toml").write_text("token = 123456\n")
    with pytest.raises(CommandError) as caught:
        settings().get("token")
    assert "123456" not in str(caught.value)


def test_of_a_token_and_a_file_of_one_the_nearer_counts() -> None:
    """A file on the command line beats a token in the environment; two in the same place are an error."""
    Path("token").write_text("from-file\n")
    both = settings(
        {"token_file": "token", "insecure_token": True, "target": ["a:1"]}, AIOSERVING_TOKEN="from-env"
    )
    assert "Token" in repr(both.credentials())
    assert "StaticToken" not in repr(both.credentials())
    with pytest.raises(CommandError, match="--token and option --token-file exclude each other"):
        settings({"token": "x", "token_file": "token"}).credentials()
    with pytest.raises(FileNotFoundError):
        settings({"token_file": "nowhere", "target": ["a:1"]}).credentials()


def test_no_secret_is_in_a_repr_or_an_error() -> None:
    """Neither a token nor a key shows up where something is printed."""
    found = settings({"token": "s3cret", "api_key": "k3y", "target": ["a:1"]})
    assert "s3cret" not in repr(found) + repr(found.credentials())
    with pytest.raises(CommandError, match="plain text") as caught:
        found.client()
    assert "s3cret" not in str(caught.value)
    assert "k3y" not in str(caught.value)
    with pytest.raises(CommandError) as caught:
        settings({"token": "white space", "target": ["a:1"]}).credentials()
    assert "white space" not in str(caught.value).replace("has white space in it", "")


def test_a_file_that_was_only_found_gets_no_token_from_elsewhere() -> None:
    """Whoever puts an aioserving.toml into a folder cannot collect the tokens of those who pass by."""
    Path("aioserving.toml").write_text('target = "evil:1"\ninsecure_token = true\n')
    with pytest.raises(CommandError, match="would get what environment variable AIOSERVING_TOKEN says"):
        settings(AIOSERVING_TOKEN="x").client_arguments()
    with pytest.raises(CommandError, match="option --api-key"):
        settings({"api_key": "x"}).client_arguments()
    named = settings({"config": "aioserving.toml"}, AIOSERVING_TOKEN="x")
    assert named.client_arguments()["credentials"] is not None
    elsewhere = settings({"target": ["good:1"]}, AIOSERVING_TOKEN="x")
    assert elsewhere.client_arguments()["credentials"] is not None
    Path("aioserving.toml").write_text('target = "own:1"\ntoken = "own"\ninsecure_token = true\n')
    assert settings().client_arguments()["credentials"] is not None


def test_tls_follows_from_its_files(tmp_path: Path) -> None:
    """Naming an authority or a server name encrypts; switching TLS off beside them is an error."""
    assert settings().tls() is None
    assert settings({"tls": True}).tls() is not None
    found = settings({"server_name": "models.example.org"}).tls()
    assert found is not None
    assert found.server_name == "models.example.org"
    with pytest.raises(
        CommandError, match="option --server-name is about TLS, which option --no-tls switches off"
    ):
        settings({"server_name": "x", "tls": False}).tls()
    assert settings({"tls": False}, AIOSERVING_SERVER_NAME="x").tls() is None
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(CommandError, match="TLS: .*ca"):
        settings({"ca": str(tmp_path / "ca.pem")}).tls()
    with pytest.raises(FileNotFoundError):
        settings({"ca": str(tmp_path / "no.pem")}).tls()


def test_the_client_gets_what_was_set() -> None:
    """Targets, timeout and headers arrive; overrides win; what does not go together is a usage error."""
    found = settings({"target": ["a:1"], "metadata": {"x-team": "red"}}, AIOSERVING_TIMEOUT="2m")
    arguments = found.client_arguments()
    assert (arguments["targets"], arguments["timeout"], arguments["metadata"]) == (
        ["a:1"],
        120.0,
        (("x-team", "red"),),
    )
    with found.client(targets="b:2") as client:
        assert isinstance(client, Client)
        assert [endpoint.target for endpoint in client.health().endpoints] == ["b:2"]
    with pytest.raises(CommandError) as caught:
        settings({"target": ["not a target"]}).client()
    assert caught.value.code == ExitCode.USAGE
    with pytest.raises(CommandError, match="there is no target"):
        settings().client()
    with pytest.raises(CommandError, match="none is named"):
        _ = settings().model
    with pytest.raises(CommandError, match="--version or --label"):
        _ = settings({"version": 1, "label": "x"}).version


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script that forgot --yes ends with an error; at a terminal, the answer counts."""
    with pytest.raises(CommandError, match="no terminal to ask"):
        confirm("Sure?")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    for answer in (True, False):
        monkeypatch.setattr(click, "confirm", lambda *_, _answer=answer, **__: _answer)
        assert confirm("Sure?") is answer
