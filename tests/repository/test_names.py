"""Names: only what is harmless as a path, and a version exactly where the model server sees one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving.repository.errors import InvalidNameError
from aioserving.repository.names import (
    PRIVATE,
    Limits,
    archive_version,
    check_member_path,
    check_members,
    check_model_name,
    is_model_name,
    parse_version,
    version_number,
)
from aioserving.testing import rules


@pytest.mark.parametrize("name", ["m", "my_model", "Model-2.1", "0", "a" * 200, "_"])
def test_ordinary_names_are_taken(name: str) -> None:
    """Letters, digits and the marks that are harmless in paths, URLs and shells make a name."""
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", ".hidden", "-f", "a b", "a\n", "a\0", "é", "a" * 201, PRIVATE, "a:b"],
)
def test_other_names_are_refused(name: str) -> None:
    """What could be another path, an option or the repository's own folder is no name."""
    assert not is_model_name(name)
    with pytest.raises(InvalidNameError):
        check_model_name(name)


@given(
    st.one_of(st.text(max_size=25), st.integers().map(str), st.from_regex(r"-?0*[0-9]{1,20}", fullmatch=True))
)
def test_versions_are_those_of_the_model_server(name: str) -> None:
    """A name is a version here if it is one for the testing server, which follows the real one."""
    assert version_number(name) == rules.version_number(name)
    if version_number(name) is None:
        with pytest.raises(InvalidNameError):
            parse_version(name)
    else:
        assert parse_version(name) == version_number(name)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("7.tar", (7, ".tar")),
        ("007.tar.gz", (7, ".tar.gz")),
        ("-1.zip", (-1, ".zip")),
        ("7", None),
        ("7.tgz", None),
        ("v7.tar", None),
        (".tar", None),
        ("7.tar.gz.sha256", None),
    ],
)
def test_archives_are_named_by_their_version(name: str, found: tuple[int, str] | None) -> None:
    """What stands before the ending has to be a version."""
    assert archive_version(name) == found


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/etc/passwd",
        "..",
        "../a",
        "a/../b",
        "a//b",
        "a/",
        "./",
        "C:/a",
        "c:a",
        "a\\b",
        "a\x00b",
        "a/./b",
        chr(0xDC80),
        "a/" * 40 + "a",
        "a" * 256,
        "x/" * 15 + "a" * 1024,
    ],
)
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    """Absolute paths, steps up, drives, empty parts and what no file can be called are no members."""
    with pytest.raises(InvalidNameError):
        check_member_path(path)


def test_members_are_one_tree_of_files() -> None:
    """A leading ``./`` goes; one name twice, also in two spellings, and a file as a folder are refused."""
    assert check_members(["./a", "b/c", "b/d"]) == ["a", "b/c", "b/d"]
    for bad in (["a", "./a"], ["a", "a"], ["a", "a/b"], ["a/b/c", "a/b"]):
        with pytest.raises(InvalidNameError):
            check_members(bad)


def test_limits_have_to_allow_something() -> None:
    """A limit of nothing is a mistake, and told with its name."""
    with pytest.raises(ValueError, match="files"):
        Limits(files=0)
