"""aioserving.testing.pytest_plugin: used by a test suite of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

ROOT = Path(__file__).parents[2]

SUITE = """
    import grpc
    import grpc.aio
    import pytest

    from tests.testing.servables import PREDICT, predict_request, predicted, times

    REQUEST = predict_request("m")

    def test_sync(model_server):
        first, second = model_server({"m": times(2)}), model_server({"m": times(3)}, grpc_max_threads=3)
        for server, expected in [(first, [2.0, 4.0]), (second, [3.0, 6.0])]:
            with grpc.insecure_channel(server.target) as channel:
                assert predicted(channel.unary_unary(PREDICT)(REQUEST, timeout=20)) == expected

    @pytest.mark.anyio
    async def test_async(model_server, anyio_backend_name):
        server = model_server({"m": times(2)})
        async with grpc.aio.insecure_channel(server.target) as channel:
            assert predicted(await channel.unary_unary(PREDICT)(REQUEST, timeout=20)) == [2.0, 4.0]

    @pytest.fixture
    def anyio_backend():
        return "asyncio"

    def test_process(model_server_process):
        process = model_server_process(
            callables={"m": "tests.testing.servables:twice"}, env={"PYTHONPATH": ROOT}
        )
        with grpc.insecure_channel(process.target) as channel:
            assert predicted(channel.unary_unary(PREDICT)(REQUEST, timeout=20)) == [2.0, 4.0]
        PIDS.append(process.pid)

    PIDS = []

    def test_process_is_gone():
        import psutil

        assert PIDS and not psutil.pid_exists(PIDS[0])

    def test_server_is_ended_after_a_failure(model_server):
        KEPT.append(model_server({"m": times(2)}))
        assert False, "on purpose"

    KEPT = []

    def test_server_is_gone():
        assert KEPT and not KEPT[0].running
"""


def test_fixtures(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixtures start servers for sync and async tests, and end them, also when a test fails."""
    pytester.makeconftest('pytest_plugins = ["aioserving.testing.pytest_plugin"]')
    pytester.makepyfile(SUITE.replace("ROOT", repr(str(ROOT))))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    result = pytester.runpytest_subprocess("-W", "error", "-p", "no:cacheprovider", timeout=100)
    result.assert_outcomes(passed=5, failed=1)
    result.stdout.fnmatch_lines(["*on purpose*"])


def test_fixtures_are_listed(pytester: pytest.Pytester) -> None:
    """Without the plugin named, the fixtures do not exist; with it, pytest lists them and what they do."""
    assert "model_server" not in pytester.runpytest_subprocess("--fixtures").stdout.str()
    pytester.makeconftest('pytest_plugins = ["aioserving.testing.pytest_plugin"]')
    listed = pytester.runpytest_subprocess("--fixtures").stdout.str()
    assert "Start embedded servers" in listed
    assert "Start servers as processes" in listed
