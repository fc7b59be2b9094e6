"""The config file: where it is, what may be in it, and which of its values count."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")

from aioserving.cli.config_file import ConfigFile, find, load
from aioserving.cli.failures import CommandError, ExitCode

KEYS = ("target", "ca", "timeout", "token_file")
PATHS = ("ca", "token_file")


def read(text: str, folder: Path, profile: str | None = None) -> ConfigFile:
    path = folder / "some.toml"
    path.write_text(text)
    return load(str(path), profile, KEYS, PATHS, {})


def test_a_profile_stands_over_the_top(tmp_path: Path) -> None:
    """Values of the profile win; those it does not have come from the top; each says where it is from."""
    text = 'target = "a:1"\ntimeout = 5\nprofile = "p"\n[profiles.p]\ntarget = "b:2"\n[profiles.q]\n'
    found = read(text, tmp_path)
    assert (found.values["target"], found.values["timeout"]) == ("b:2", 5)
    assert found.profile == "p"
    assert found.profiles == ("p", "q")
    assert found.origin("target").endswith("some.toml, profile 'p'")
    assert found.origin("timeout").endswith("some.toml")
    assert read(text, tmp_path, "q").values["target"] == "a:1"


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    """A relative path means the same wherever the command is run; absolute ones and ~ stay what they are."""
    found = read('ca = "certs/ca.pem"\ntoken-file = "/run/token"', tmp_path)
    assert found.values == {"ca": str(tmp_path / "certs/ca.pem"), "token_file": "/run/token"}


@pytest.mark.parametrize(
    ("text", "profile", "message"),
    [
        ("tarket = 'a:1'", None, r"unknown key 'tarket' \(did you mean 'target'\?\)"),
        ("[profiles.p]\ncaa = 'x'", "p", r"unknown key 'profiles\.p\.caa' \(did you mean 'ca'\?\)"),
        ("[profiles.prod]\n[profiles.test]", "prd", "no profile 'prd' .did you mean 'prod'.*'prod', 'test'"),
        ("", "p", "no profile 'p'; it has none"),
        ("profiles = 3", None, "profiles are tables"),
        ("target =\n", None, "this is no TOML: .*line 1"),
    ],
)
def test_what_means_nothing_is_an_error(tmp_path: Path, text: str, profile: str | None, message: str) -> None:
    """A misspelt key would be ignored, and a call go elsewhere; so it is refused, with the nearest name."""
    with pytest.raises(CommandError, match=message) as caught:
        read(text, tmp_path, profile)
    assert caught.value.code == ExitCode.USAGE


def test_the_folder_s_file_stands_before_the_home_s(home: Path) -> None:
    """One file is read: ./aioserving.toml, which is remembered as found, else the one at home."""
    assert load(None, None, KEYS, PATHS, {}) == ConfigFile()
    at_home = home / ".config" / "aioserving" / "config.toml"
    at_home.parent.mkdir(parents=True)
    at_home.write_text("timeout = 1")
    assert find({}) == (at_home, False)
    assert load(None, None, KEYS, PATHS, {}).discovered is False
    Path("aioserving.toml").write_text("timeout = 2")
    found = load(None, None, KEYS, PATHS, {})
    assert (found.values["timeout"], found.discovered) == (2, True)
    other = home / "xdg"
    (other / "aioserving").mkdir(parents=True)
    (other / "aioserving" / "config.toml").touch()
    Path("aioserving.toml").unlink()
    assert find({"XDG_CONFIG_HOME": str(other)})[0] == other / "aioserving" / "config.toml"


def test_a_named_file_has_to_be_there(home: Path) -> None:
    """A file or profile that is asked for and is not there is an error, not a default."""
    with pytest.raises(CommandError, match=r"config file no\.toml: No such file"):
        load("no.toml", None, KEYS, PATHS, {})
    with pytest.raises(CommandError, match="no config file, and so no profile 'p'"):
        load(None, "p", KEYS, PATHS, {})
