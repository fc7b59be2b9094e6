"""The steps of `doctor` on sockets; what they are worth together is in test_diagnosis."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path

import pytest

from aioserving.cli import probing
from aioserving.cli.findings import Level
from aioserving.cli.probing import Place, connect, resolve
from aioserving.targets import parse_targets

pytestmark = pytest.mark.anyio


def place(port: int) -> Place:
    return Place("127.0.0.1", port, socket.AF_INET)


async def test_an_address_is_not_looked_up() -> None:
    """An address means itself, with its family."""
    for target, address, family in (
        ("10.1.2.3:8500", "10.1.2.3", socket.AF_INET),
        ("[::1]:8500", "::1", socket.AF_INET6),
    ):
        findings, places = await resolve(parse_targets(target)[0], {})
        assert [finding.level for finding in findings] == [Level.OK]
        assert places == [Place(address, 8500, family)]


async def test_a_name_that_does_not_exist_has_a_fix() -> None:
    """What is wrong is said, and there is nowhere to go."""
    findings, places = await resolve(parse_targets("no-such-host.invalid:8500")[0], {})
    assert places == []
    assert [finding.level for finding in findings] == [Level.ERROR]
    assert "no-such-host.invalid cannot be looked up" in findings[0].text
    assert findings[0].fix


async def test_the_proxy_is_connected_to_and_looks_names_up() -> None:
    """With a proxy in the environment nothing is looked up here, unless `no_proxy` names the host."""
    target = parse_targets("serving.example:8500")[0]
    proxied = {"http_proxy": "http://me:secret@proxy.example:3128"}
    findings, [found] = await resolve(target, proxied)
    assert found.proxy is not None
    assert found.proxy[:2] == ("proxy.example", 3128)
    assert str(found) == "serving.example:8500 through proxy.example:3128"
    assert "secret" not in str(found) + findings[0].text
    looked_up = await resolve(parse_targets("127.0.0.1:8500")[0], {**proxied, "no_proxy": "127.0.0.1"})
    assert looked_up[1] == [place(8500)]


async def test_a_path_that_is_no_socket(tmp_path: Path) -> None:
    """A missing path, a plain file and a socket are told apart."""
    missing = tmp_path / "missing"
    plain = tmp_path / "plain"
    plain.write_text("")
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        texts = []
        for one in (missing, plain, path):
            findings, places = await resolve(parse_targets(f"unix://{one}")[0], {})
            texts.append((findings[0].level, len(places)))
        assert texts == [(Level.ERROR, 0), (Level.ERROR, 0), (Level.OK, 1)]


async def test_addresses_are_tried_at_the_same_time() -> None:
    """Those that accept are kept; one that refuses is a note where gRPC takes another."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, and nobody listens
        there, gone = place(listener.getsockname()[1]), place(closed.getsockname()[1])
        target = parse_targets(f"localhost:{there.port}")[0]
        findings, good = await connect([gone, there], 5.0, target)
        assert good == [there]
        assert [finding.level for finding in findings] == [Level.NOTE, Level.OK]
        findings, good = await connect([gone], 5.0, target)
        assert good == []
        assert findings[0].level == Level.ERROR
        assert f"nobody listens at 127.0.0.1:{gone.port}" in findings[0].text


async def test_what_hangs_is_waited_for_by_nobody() -> None:
    """A lookup that never ends does not keep its caller, nor the process, from ending."""
    stuck = probing._in_daemon(lambda: time.sleep(60))
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(stuck, 0.05)
