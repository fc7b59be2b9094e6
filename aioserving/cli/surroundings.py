"""`doctor`'s checks of this machine: versions, what an import costs, proxies and variables, the clock.

Functions of versions and of an environment, apart from `installed` and `import_costs`, which look.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aioserving.cli.findings import Finding, Level, error, note, ok, warning
from aioserving.targets import Target, proxy_note

__all__ = ["clock", "import_costs", "installed", "proxies", "proxy_of", "variables", "versions"]

#: The packages whose versions matter, by what pip calls them.
PACKAGES: Final = ("aioserving", "grpcio", "protobuf", "numpy", "anyio", "tensorflow-serving-api")

#: Those that may be missing, too.
OPTIONAL: Final = ("tensorflow", "ml_dtypes", "uvloop")

#: The oldest that aioserving works with, should its own metadata not say.
_FLOORS: Final = {
    "grpcio": "1.71",
    "protobuf": "5.29",
    "numpy": "1.26",
    "anyio": "4.8",
    "tensorflow-serving-api": "2.19",
}

_UPPER: Final = ("HTTP_PROXY", "HTTPS_PROXY", "GRPC_PROXY")
_PROXIES: Final = ("grpc_proxy", "https_proxy", "http_proxy")


def _numbers(version: str) -> tuple[int, ...]:
    """``"1.75.1rc2"`` as (1, 75, 1): enough to compare releases."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, found.group().split("."))) if found else ()


@dataclass(frozen=True)
class _Known:
    """Versions of a package that have a known problem."""

    package: str
    #: Whether a version has it, as numbers.
    affected: Callable[[tuple[int, ...]], bool]
    level: Level
    text: str
    fix: str
    #: Systems, as `sys.platform` calls them, on which it was seen; empty: all.
    systems: tuple[str, ...] = ()


#: Each with the public report that it is from.
_KNOWN: Final = (
    # https://github.com/grpc/grpc/issues/39588: wheels of 1.70.0, 1.71.0 and 1.72.0 for macOS were built with
    # an alpha of Cython 3.1 whose coroutines leak (cython/cython#6878). Fixed by grpc/grpc#39609 and its
    # backports #39636 (1.71.x: 1.71.2) and #39632 (1.72.x).
    _Known(
        "grpcio",
        lambda version: (
            version[:2] == (1, 70) or (1, 71) <= version < (1, 71, 2) or version in {(1, 72), (1, 72, 0)}
        ),
        Level.ERROR,
        "grpcio {version} leaks memory in every asyncio call on macOS (grpc/grpc#39588)",
        "pip install -U grpcio",
        ("darwin",),
    ),
    # https://github.com/grpc/grpc/issues/43092: 1.5 to 7 % less throughput of grpc.aio from 1.75.1 to 1.83;
    # the client itself is measured with 1.85.
    _Known(
        "grpcio",
        lambda version: (1, 75, 1) <= version < (1, 84),
        Level.NOTE,
        "grpcio {version} is slower in asyncio calls than 1.75.0, by 1 to 7 % (grpc/grpc#43092)",
        "pip install -U grpcio, if that matters",
    ),
    # https://github.com/grpc/grpc/issues/25364: seen in our own trials with 1.71 to 1.78, and not with
    # 1.80 to 1.85.
    _Known(
        "grpcio",
        lambda version: version < (1, 80),
        Level.NOTE,
        "grpcio {version} logs spurious BlockingIOErrors where two event loops of one process use it "
        "(grpc/grpc#25364)",
        "pip install -U grpcio, if there are several loops",
    ),
    # https://github.com/protocolbuffers/protobuf/issues/29708, bisected to 5.28.0 in ray-project/ray#65216.
    _Known(
        "protobuf",
        lambda version: (5, 28) <= version <= (6, 33, 6),
        Level.NOTE,
        "protobuf {version} is slow with messages of 10 MB (protocolbuffers/protobuf#29708); tensors are not "
        "affected, which aioserving reads and writes itself, but messages that you make are",
        "pip install -U protobuf, if you send ready PredictRequests",
    ),
)


def installed() -> dict[str, str | None]:
    """Versions of the packages that matter; None for those that are not there."""
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def floors() -> dict[str, str]:
    """The oldest version of each package that aioserving works with, as its metadata says."""
    found = dict(_FLOORS)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for line in importlib.metadata.requires("aioserving") or ():
            match = re.fullmatch(r"([A-Za-z0-9_.-]+)>=([0-9.]+)", line.partition(";")[0].strip())
            if match is not None and match[1] in found:
                found[match[1]] = match[2]
    return found


def versions(
    found: Mapping[str, str | None],
    *,
    python: tuple[int, ...] = sys.version_info[:3],
    system: str = sys.platform,
    implementation: str = "upb",
) -> list[Finding]:
    """What is to say about the versions of packages.

    Args:
        found: versions by package; None for what is not installed.
        python: version of Python.
        system: as `sys.platform` calls it.
        implementation: protobuf's own name for how it is implemented.
    """
    shown = ", ".join(f"{name} {found[name]}" for name in (*PACKAGES, *OPTIONAL) if found.get(name))
    findings = [ok(f"Python {'.'.join(map(str, python))} on {platform.machine()} {system}, {shown}")]
    if python < (3, 10):
        findings.append(error(f"Python {'.'.join(map(str, python))} is too old", "use Python 3.10 or newer"))
    for name, floor in floors().items():
        version = found.get(name)
        if version is None and name != "tensorflow-serving-api":
            findings.append(error(f"{name} is not installed", f"pip install {name}"))
        elif version is None:
            findings.append(
                error(
                    f"{name} is not installed, and has the messages of TensorFlow Serving",
                    f"pip install --no-deps {name}",
                )
            )
        elif _numbers(version) < _numbers(floor):
            findings.append(
                error(
                    f"{name} {version} is older than {floor}, the oldest that is tested",
                    f"pip install -U {name}",
                )
            )
    for known in _KNOWN:
        version = found.get(known.package)
        if version and known.affected(_numbers(version)) and system.startswith(known.systems or ("",)):
            findings.append(Finding(known.level, known.text.format(version=version), known.fix))
    if implementation == "python":
        findings.append(
            warning(
                "protobuf runs in pure Python, many times slower than its usual C implementation",
                "unset PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION, or install a wheel for this Python",
            )
        )
    if not found.get("ml_dtypes"):
        findings.append(
            note("ml_dtypes is not installed: models with bfloat16, float8 or int4 cannot be called",
                 "pip install 'aioserving[dtypes]', if there are such models")
        )  # fmt: skip
    return findings


def protobuf_implementation() -> str:
    """Protobuf's own name for how it is implemented: ``"upb"``, ``"cpp"`` or ``"python"``."""
    from google.protobuf.internal import api_implementation

    return str(api_implementation.Type())


_IMPORT: Final = """
import json, sys, time
began = time.perf_counter()
from aioserving import AsyncClient
taken = time.perf_counter() - began
print(json.dumps({"seconds": taken, "tensorflow": "tensorflow" in sys.modules, "modules": len(sys.modules)}))
"""


async def import_costs(script: str = _IMPORT, python: str = sys.executable) -> list[Finding]:
    """How long ``import aioserving`` takes in a new process, and whether it brings TensorFlow along."""
    process = await asyncio.create_subprocess_exec(
        python, "-c", script, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        return [
            error(
                f"a new process cannot import aioserving: {last}", "reinstall aioserving in this environment"
            )
        ]
    told: dict[str, Any] = json.loads(output)
    taken = f"import aioserving takes {told['seconds']:.2f} s and {told['modules']} modules"
    findings = [ok(f"{taken}, without TensorFlow")]
    if told["tensorflow"]:
        findings = [
            warning(
                f"{taken}, and TensorFlow is imported with it",
                "aioserving does not do that: python -X importtime tells who does",
            )
        ]
    elif told["seconds"] > 2:
        findings.append(
            note(
                f"{told['seconds']:.1f} s are long for an import",
                "is the disk slow, or the file cache cold? try again",
            )
        )
    return findings


def proxy_of(target: Target, environ: Mapping[str, str]) -> tuple[str, int, str] | None:
    """Host, port and ``user:password`` of the proxy that gRPC goes through to `target`; None: none."""
    if proxy_note(target, environ) is None:
        return None
    from urllib.parse import unquote, urlsplit

    variable = next(name for name in _PROXIES if name in environ)
    parts = urlsplit(environ[variable])
    user = unquote(parts.netloc.rpartition("@")[0])
    try:
        return parts.hostname or "", parts.port or 80, user
    except ValueError:
        return None  # a port that is none: gRPC cannot read it either


def proxies(target: Target, environ: Mapping[str, str]) -> list[Finding]:
    """What the environment's proxies mean for connections to `target`."""
    findings: list[Finding] = []
    text = proxy_note(target, environ)
    if text is not None:
        findings.append(
            warning(
                text.partition(";")[0],
                text.partition("if it should not, ")[2] or "unset the variable",
            )
        )
    else:
        variable = next((name for name in _PROXIES if environ.get(name)), None)
        if variable is None:
            findings.append(ok("no proxy: none of grpc_proxy, https_proxy and http_proxy is set"))
        elif target.scheme in ("unix", "unix-abstract", "vsock"):
            findings.append(ok(f"{variable} is set, and does not apply to Unix sockets"))
        elif not environ[variable].lower().startswith("http://"):
            findings.append(
                note(
                    f"{variable} names no http:// proxy, and gRPC takes no other: it goes directly",
                    f"write http://..., or unset {variable}",
                )
            )
        else:
            findings.append(ok(f"{variable} is set, and no_grpc_proxy or no_proxy exempts {target.host}"))
    ignored = [name for name in _UPPER if environ.get(name) and not environ.get(name.lower())]
    if ignored:
        findings.append(
            note(f"gRPC does not look at {' and '.join(ignored)}: only names in lower case count",
                 f"set {ignored[0].lower()}, if gRPC is to use that proxy")
        )  # fmt: skip
    return findings


#: What gRPC's variables do that somebody who looks for a problem should know, and what to do about it.
_VARIABLES: Final[Mapping[str, tuple[Level, str, str]]] = {
    "GRPC_TRACE": (
        Level.WARNING,
        "makes gRPC write down what it does, which slows every call",
        "unset it when you have seen enough",
    ),
    "GRPC_ENABLE_FORK_SUPPORT": (
        Level.NOTE,
        "does not make it safe to fork with open channels in asyncio: children hang or crash all the same",
        "connect after forking, or use multiprocessing's 'spawn'",
    ),
    "GRPC_DNS_RESOLVER": (
        Level.NOTE,
        "chooses how gRPC looks names up; 'ares' does not know all that the system's resolver does",
        "unset it if names are found by other programs and not by gRPC",
    ),
    "GRPC_POLL_STRATEGY": (
        Level.NOTE,
        "chooses how gRPC waits for sockets; 'poll' is slower than 'epoll1'",
        "unset it unless it is needed",
    ),
    "GRPC_SSL_CIPHER_SUITES": (
        Level.NOTE,
        "limits the ciphers of TLS connections",
        "if handshakes fail, unset it and try again",
    ),
    "GRPC_EXPERIMENTS": (
        Level.NOTE,
        "switches experiments of gRPC on or off",
        "unset it unless somebody of gRPC told you to set it",
    ),
}


def variables(environ: Mapping[str, str]) -> list[Finding]:
    """What variables of the environment, beside proxies, do to gRPC and protobuf."""
    findings: list[Finding] = []
    for name in sorted(environ):
        value = environ[name]
        shown = f"{name}={value if len(value) <= 60 else value[:57] + '...'}"
        if name in _VARIABLES and value:
            level, what, fix = _VARIABLES[name]
            findings.append(Finding(level, f"{shown} {what}", fix))
        elif name == "GRPC_VERBOSITY":
            if value.upper() in ("DEBUG", "INFO"):
                findings.append(
                    note(f"{shown} has gRPC write to standard error", "unset it, or set it to ERROR")
                )
        elif name == "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH" and value:
            findings.append(_roots(shown, value))
        elif name == "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION" and value == "python":
            findings.append(warning(f"{shown} makes protobuf many times slower", "unset it"))
        elif name.startswith("GRPC_"):
            findings.append(note(f"{shown} is set"))
    return findings or [ok("no variable changes how gRPC and protobuf work")]


def _roots(shown: str, path: str) -> Finding:
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
    except OSError as problem:
        return error(f"{shown}: {problem.strerror}, so that no server's certificate can be verified",
                     "let it name a PEM file, or unset it")  # fmt: skip
    if "-----BEGIN CERTIFICATE-----" not in text:
        return error(
            f"{shown} names a file without certificates in PEM", "let it name a PEM file, or unset it"
        )
    return note(
        f"{shown} is trusted instead of the system's authorities",
        "unset it, or use --ca, if that is not meant",
    )


def clock(now: float | None = None, newest: float | None = None) -> list[Finding]:
    """Whether the clock can be right; certificates and tokens are judged by it, deadlines are not.

    Args:
        now: what it says, in seconds since 1970.
        newest: the time of something that is certainly past; by default, when aioserving was installed.
    """
    now = time.time() if now is None else now
    if newest is None:
        newest = os.stat(__file__).st_mtime
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < newest - 60:
        past = time.strftime("%Y-%m-%d %H:%M", time.gmtime(newest))
        return [
            error(
                f"the clock says {text}, before aioserving was installed ({past}): certificates and tokens "
                "will seem not yet valid, or valid still",
                "set the clock, and keep it set (NTP)",
            )
        ]
    return [ok(f"{text}; deadlines do not depend on it, they travel as what is left of them")]
