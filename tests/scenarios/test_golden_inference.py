"""Every recorded answer of a static server, repeated by the testing server over a real socket.

One server for each group, and the cases in recorded order, since some models count. What has to agree:
code, message, and the bytes of the response up to the order of maps; `tests.golden.exceptions` lists
what does not.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from aioserving.testing.server import ModelServer
from tests.golden import cases
from tests.golden.exceptions import explained, message_accepted

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.tensorflow

CASES = [
    case
    for group in ("A_main", "B_tensor_content", "E_batching", "F_sig_check")
    for case in cases.load(group)
]

# Recorded with a run timeout set inside the server; a client can only set a deadline.
DEADLINES = {"A_main/deadline_run_options": 0.2}


class Servers:
    """The servers of the groups, each started when its first case comes."""

    def __init__(self, folders: pytest.TempPathFactory, stack: contextlib.ExitStack) -> None:
        self._folders = folders
        self._stack = stack
        self._channels: dict[str, grpc.Channel] = {}

    def channel(self, group: str) -> grpc.Channel:
        """A channel to the server of `group`."""
        if group not in self._channels:
            server = self._stack.enter_context(self._server(group))
            channel = grpc.insecure_channel(
                server.target,
                options=[("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)],
            )
            self._channels[group] = self._stack.enter_context(channel)
        return self._channels[group]

    def _server(self, group: str) -> ModelServer:
        recorded = cases.server_config(group)
        flags: dict[str, Any] = {name: bool(value) for name, value in recorded.flags.items()}
        if recorded.batching_parameters is not None:
            path = self._folders.mktemp(group) / "batching_parameters.txt"
            path.write_text(recorded.batching_parameters)
            flags |= {"enable_batching": True, "batching_parameters_file": str(path)}
        return ModelServer(config=recorded.config, **flags)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """The running servers, stopped in the end."""
    with contextlib.ExitStack() as stack:
        yield Servers(tmp_path_factory, stack)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_recorded_answer_is_repeated(case: cases.Case, servers: Servers) -> None:
    """A request recorded with the real server ends with the recorded code, message and bytes."""
    reason = cases.skip_reason(case)
    if reason:
        pytest.skip(reason)
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = servers.channel(case.group).unary_unary(case.path)
    try:
        response = call(case.request, timeout=DEADLINES.get(case.id, case.timeout or 60))
        code, message = "OK", ""
    except grpc.RpcError as error:
        code, message, response = error.code().name, error.details() or "", b""
    waiver = explained(case)
    if waiver is not None and code in waiver.codes:
        assert message_accepted(case, message)
        return
    assert code == case.code, message
    if not case.client_deadline and case.id not in DEADLINES:  # else the text is the client library's own
        assert cases.same_message(case.message, message) or message_accepted(case, message), message
    if case.has_response:
        assert cases.same_response(case.method, case.response, response, approximate=case.approximate)
