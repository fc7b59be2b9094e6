"""Every recorded answer of a static server, repeated by the testing server over a real socket.

One server for each group, and the cases in recorded order, since some models count. What has to agree:
code, message, and the bytes of the response up to the order of maps; `tests.golden.exceptions` lists
what does not.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import grpc
import pytest

from aioserving.testing.server import ModelServer
from tests.golden import cases
from tests.golden.exceptions import explained, message_accepted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.skipif(importlib.util.find_spec("tensorflow") is None, reason="needs TensorFlow"),
]

GROUPS = ["A_main", "B_tensor_content", "F_sig_check"]

# Recorded with a run timeout set inside the server; a client can only set a deadline.
DEADLINES = {"A_main/deadline_run_options": 0.2}


@pytest.fixture(scope="module")
def channels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, grpc.Channel]]:
    """One channel to one server for each group, started when the first of its cases runs."""
    servers = {}
    open_channels = _Channels(servers, tmp_path_factory)
    try:
        yield open_channels
    finally:
        for channel in open_channels.values():
            channel.close()
        for server in servers.values():
            server.__exit__(None, None, None)


class _Channels(dict[str, grpc.Channel]):
    def __init__(self, servers: dict[str, ModelServer], folders: pytest.TempPathFactory) -> None:
        self._servers = servers
        self._folders = folders

    def __missing__(self, group: str) -> grpc.Channel:
        recorded = cases.server_config(group)
        flags = {name: bool(value) for name, value in recorded.flags.items()}
        server = ModelServer(config=recorded.config, **flags)
        target = server.__enter__().target
        self._servers[group] = server
        channel = self[group] = grpc.insecure_channel(
            target, options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]
        )
        return channel


@pytest.mark.parametrize(
    "case", [case for group in GROUPS for case in cases.load(group)], ids=lambda case: case.id
)
def test_the_recorded_answer_is_repeated(case: cases.Case, channels: dict[str, grpc.Channel]) -> None:
    """A request recorded with the real server ends with the recorded code, message and bytes."""
    reason = cases.skip_reason(case)
    if reason:
        pytest.skip(reason)
    timeout = DEADLINES.get(case.id, case.timeout or 60)
    waiver = explained(case)
    call = channels[case.group].unary_unary(case.path)
    try:
        response = call(case.request, timeout=timeout)
        code, message = "OK", ""
    except grpc.RpcError as error:
        code, message, response = error.code().name, error.details(), b""
    if waiver is not None and code in waiver.codes:
        assert message_accepted(case, message)
        return
    assert code == case.code, message
    if not case.client_deadline and case.id not in DEADLINES:
        assert cases.same_message(case.message, message) or message_accepted(case, message), message
    if case.has_response:
        assert cases.same_response(case.method, case.response, response, approximate=case.approximate)


def test_exceptions_are_needed() -> None:
    """A row of the table of exceptions names a recorded case: a stale one would excuse nothing."""
    recorded = {case.id for group in cases.groups() for case in cases.load(group)}
    from tests.golden.exceptions import EXCEPTIONS

    assert set(EXCEPTIONS) <= recorded
