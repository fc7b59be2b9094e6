"""What `doctor` says of this machine, as functions of versions and variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from aioserving.cli.findings import Finding, Level
from aioserving.cli.surroundings import (
    _FLOORS,
    PACKAGES,
    clock,
    floors,
    import_costs,
    installed,
    proxies,
    proxy_of,
    variables,
    versions,
)
from aioserving.targets import Target

TARGET = Target("127.0.0.1:8500")
GOOD = {
    "aioserving": "0.1.0", "grpcio": "1.85.1", "protobuf": "7.36.2", "numpy": "2.4.6", "anyio": "4.16.0",
    "tensorflow-serving-api": "2.21.0", "ml_dtypes": "0.6.0", "tensorflow": None, "uvloop": None,
}  # fmt: skip


def worst(findings: list[Finding]) -> Finding:
    return max(findings, key=lambda finding: finding.level)


def said(findings: list[Finding], level: Level) -> list[str]:
    return [finding.text for finding in findings if finding.level == level]


def test_good_versions() -> None:
    """What is known to be good is one line, with everything that is installed and nothing that is not."""
    [finding] = versions(GOOD, python=(3, 11, 7))
    assert finding.level == Level.OK
    assert "grpcio 1.85.1" in finding.text
    assert "uvloop" not in finding.text


@pytest.mark.parametrize(
    ("package", "version", "system", "level", "issue"),
    [
        ("grpcio", "1.71.0", "darwin", Level.ERROR, "grpc/grpc#39588"),
        ("grpcio", "1.72.0", "darwin", Level.ERROR, "grpc/grpc#39588"),
        ("grpcio", "1.75.1", "linux", Level.NOTE, "grpc/grpc#43092"),
        ("grpcio", "1.83.0", "linux", Level.NOTE, "grpc/grpc#43092"),
        ("grpcio", "1.78.0", "linux", Level.NOTE, "grpc/grpc#25364"),
        ("protobuf", "5.28.0", "linux", Level.NOTE, "protocolbuffers/protobuf#29708"),
        ("protobuf", "6.33.6", "linux", Level.NOTE, "protocolbuffers/protobuf#29708"),
    ],
)
def test_known_versions(package: str, version: str, system: str, level: Level, issue: str) -> None:
    """Versions with a known problem are told, with the public report and what to do."""
    findings = versions({**GOOD, package: version}, system=system)
    [found] = [finding for finding in findings if issue in finding.text and finding.level == level]
    assert version in found.text
    assert "pip install -U" in found.fix


@pytest.mark.parametrize(
    ("package", "version", "system", "issue"),
    [
        ("grpcio", "1.71.2", "darwin", "#39588"),
        ("grpcio", "1.72.1", "darwin", "#39588"),
        ("grpcio", "1.72.0", "linux", "#39588"),
        ("grpcio", "1.75.0", "linux", "#43092"),
        ("grpcio", "1.84.0", "linux", "#43092"),
        ("grpcio", "1.80.0", "linux", "#25364"),
        ("protobuf", "5.27.5", "linux", "#29708"),
        ("protobuf", "6.33.7", "linux", "#29708"),
        ("protobuf", "7.36.2", "linux", "#29708"),
    ],
)
def test_versions_beside_the_known_ones(package: str, version: str, system: str, issue: str) -> None:
    """Neighbours of the versions with a problem, and other systems, are not accused of it."""
    assert not any(issue in finding.text for finding in versions({**GOOD, package: version}, system=system))


def test_versions_that_do_not_work() -> None:
    """What is too old or missing is an error; a pure Python protobuf and missing dtypes are told."""
    assert "older than 1.71" in said(versions({**GOOD, "grpcio": "1.60.0"}), Level.ERROR)[0]
    assert said(versions({**GOOD, "numpy": None}), Level.ERROR) == ["numpy is not installed"]
    missing = worst(versions({**GOOD, "tensorflow-serving-api": None}))
    assert "--no-deps" in missing.fix
    assert "Python 3.9.1 is too old" in said(versions(GOOD, python=(3, 9, 1)), Level.ERROR)
    assert "pure Python" in worst(versions(GOOD, implementation="python")).text
    assert "bfloat16" in said(versions({**GOOD, "ml_dtypes": None}), Level.NOTE)[0]


def test_installed() -> None:
    """What is installed here is found; floors are those of the metadata, or else of the project's file."""
    found = installed()
    assert all(found[name] for name in PACKAGES)
    assert floors().keys() == _FLOORS.keys()
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for name, floor in _FLOORS.items():
        assert f'"{name}>={floor}"' in project


@pytest.mark.anyio
async def test_import_costs() -> None:
    """An import in a new process is timed; one that brings TensorFlow, or fails, is told as such."""
    [light] = await import_costs()
    assert light.level == Level.OK
    told = 'print(\'{"seconds": 0.1, "tensorflow": true, "modules": 5}\')'
    assert "TensorFlow is imported with it" in worst(await import_costs(told)).text
    slow = 'print(\'{"seconds": 9.9, "tensorflow": false, "modules": 5}\')'
    assert worst(await import_costs(slow)).level == Level.NOTE
    broken = worst(await import_costs("import sys; sys.exit('ImportError: no libfoo')"))
    assert (broken.level, "no libfoo" in broken.text) == (Level.ERROR, True)


def test_proxies() -> None:
    """A proxy that gRPC would use is a warning; one that is exempt or of another kind is not."""
    environ = {"http_proxy": "http://joe:secret@proxy:3128"}
    found = worst(proxies(TARGET, environ))
    assert (found.level, "proxy:3128" in found.text, "no_proxy" in found.fix) == (Level.WARNING, True, True)
    assert "secret" not in found.text + found.fix
    assert proxy_of(TARGET, environ) == ("proxy", 3128, "joe:secret")
    assert worst(proxies(TARGET, {})).level == Level.OK
    assert "exempts 127.0.0.1" in proxies(TARGET, {**environ, "no_proxy": "127.0.0.0/8"})[0].text
    assert "Unix sockets" in proxies(Target("unix:///run/s"), environ)[0].text
    assert "gRPC takes no other" in proxies(TARGET, {"http_proxy": "socks5://proxy:1080"})[0].text
    assert "lower case" in proxies(TARGET, {"HTTP_PROXY": "http://proxy:3128"})[1].text
    assert proxy_of(TARGET, {"http_proxy": "http://proxy:port"}) is None
    assert proxy_of(TARGET, {"http_proxy": "http://proxy"}) == ("proxy", 80, "")


def test_variables(tmp_path: Path) -> None:
    """Variables that change what gRPC does are told with what they do; those of others are not."""
    assert said(variables({"PATH": "/bin", "GRPC_VERBOSITY": "NONE"}), Level.OK)
    assert "slows every call" in said(variables({"GRPC_TRACE": "all"}), Level.WARNING)[0]
    assert said(variables({"GRPC_SOMETHING": "x" * 100}), Level.NOTE)[0].startswith("GRPC_SOMETHING=xxx")
    assert "..." in said(variables({"GRPC_SOMETHING": "x" * 100}), Level.NOTE)[0]
    assert worst(variables({"PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"})).level == Level.WARNING
    assert worst(variables({"GRPC_VERBOSITY": "debug"})).level == Level.NOTE
    roots = tmp_path / "roots.pem"
    name = "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH"
    assert worst(variables({name: str(roots)})).level == Level.ERROR
    roots.write_text("nothing")
    assert worst(variables({name: str(roots)})).level == Level.ERROR
    roots.write_text("-----BEGIN CERTIFICATE-----")
    assert worst(variables({name: str(roots)})).level == Level.NOTE


def test_clock() -> None:
    """A clock that is before the installation is wrong; any later one may be right."""
    assert clock(now=1_000.0, newest=2_000.0)[0].level == Level.ERROR
    assert clock(now=2_000.0, newest=1_000.0)[0].level == Level.OK
    assert clock()[0].level == Level.OK
