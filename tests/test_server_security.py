"""aioserving.server_security: who is let in, who is not, and with which code."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aioserving.security import TLS, APIKey, Combined, Credentials, Headers, StaticToken, Token, obtain
from aioserving.server_security import (
    APIKeys,
    Authentication,
    Call,
    ClientCertificates,
    Grant,
    Identity,
    Refused,
    Scheme,
    Tokens,
    current_identity,
    write_tokens,
)
from aioserving.ssl_config import write_ssl_config
from aioserving.testing import ModelServer, ServerProcess
from tests.testing.servables import PREDICT, STATUS, predict_request, predicted, status_request, times

ROOT = Path(__file__).parents[1]
SECRET = "s3cr3t-of-all-secrets"
HEALTH = "/grpc.health.v1.Health/Check"


class Clock:
    """Time that passes when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def admitted(scheme: Scheme, *metadata: tuple[str, Any], **context: Any) -> Any:
    """Whom a scheme takes the caller for; the code and text of its refusal."""
    call = Call("/p.S/M", metadata, {name: [item.encode()] for name, item in context.items()})
    try:
        identity = await scheme.identify(call)
    except Refused as refused:
        return refused.code.name, refused.details
    return identity


def bearer(token: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {token}")


# ----------------------------------------------------------------------------------------------- schemes


@pytest.mark.anyio
async def test_tokens() -> None:
    """A known token is its owner; others are refused, and a call without one is for the next scheme."""
    clock = Clock()
    scheme = Tokens(
        {SECRET: Grant("joe", methods=frozenset({"Predict"})), "old": Grant("ann", expires_at=1010.0)},
        clock=clock,
    )
    assert await admitted(scheme, bearer(SECRET)) == Identity("joe", "token", frozenset({"Predict"}))
    assert await admitted(scheme, ("authorization", f"bearer {SECRET}")) == await admitted(
        scheme, bearer(SECRET)
    )
    assert await admitted(scheme) is None
    assert await admitted(scheme, ("x-api-key", SECRET)) is None
    invalid = ("UNAUTHENTICATED", "the token is not valid")
    for wrong in ("", SECRET[:-1], f"{SECRET}x", SECRET.upper(), "ölé"):
        assert await admitted(scheme, bearer(wrong)) == invalid
    other = ("UNAUTHENTICATED", "expected authorization: Bearer TOKEN")
    assert await admitted(scheme, ("authorization", f"Basic {SECRET}")) == other
    assert await admitted(scheme, ("authorization", SECRET)) == other
    assert await admitted(scheme, bearer("old")) == Identity("ann", "token")
    clock.now = 1010.0
    assert await admitted(scheme, bearer("old")) == ("UNAUTHENTICATED", "the token has expired")


@pytest.mark.anyio
async def test_a_header_that_comes_twice_is_refused() -> None:
    """Of two tokens a proxy might have read the other one."""
    scheme = Tokens([SECRET])
    twice = await admitted(scheme, bearer(SECRET), bearer(SECRET))
    assert twice == ("UNAUTHENTICATED", "authorization is to be sent once, as text")


@pytest.mark.anyio
async def test_api_keys() -> None:
    """A key comes alone in its header, which may be another one."""
    assert await admitted(APIKeys([SECRET]), ("x-api-key", SECRET)) == Identity("caller", "API key")
    wrong = await admitted(APIKeys([SECRET]), ("x-api-key", "x"))
    assert wrong == ("UNAUTHENTICATED", "the API key is not valid")
    assert await admitted(APIKeys([SECRET], header="x-key"), ("x-key", SECRET)) == Identity(
        "caller", "API key"
    )


@pytest.mark.anyio
async def test_verification_by_a_function(caplog: pytest.LogCaptureFixture) -> None:
    """Sync or async, it says whose a token is; when it fails nobody is let in, and nothing is shown."""

    async def verify(token: str) -> Grant | None:
        return Grant("joe") if token == SECRET else None

    def fail(token: str) -> Grant | None:
        raise ConnectionError(token)

    for function in (verify, lambda token: Grant("joe") if token == SECRET else None):
        assert await admitted(Tokens(function), bearer(SECRET)) == Identity("joe", "token")
        assert await admitted(Tokens(function), bearer("x")) == ("UNAUTHENTICATED", "the token is not valid")
    with caplog.at_level(logging.INFO):
        outcome = await admitted(Tokens(fail), bearer(SECRET))
    assert outcome == ("UNAVAILABLE", "the token cannot be verified now")
    assert "verifying a token failed (ConnectionError)" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.anyio
async def test_a_file_of_tokens_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is taken out is refused from the next call on; a broken file lets nobody in until it is mended."""
    path = tmp_path / "tokens"
    write_tokens(path, {SECRET: Grant("joe", 2e9, frozenset({"Predict"})), "other": Grant()})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    clock = Clock()
    scheme = Tokens(path, clock=clock)
    assert await admitted(scheme, bearer(SECRET)) == Identity("joe", "token", frozenset({"Predict"}))
    clock.now = 2e9
    assert await admitted(scheme, bearer(SECRET)) == ("UNAUTHENTICATED", "the token has expired")
    write_tokens(path, ["other"])
    assert await admitted(scheme, bearer(SECRET)) == ("UNAUTHENTICATED", "the token is not valid")
    assert await admitted(scheme, bearer("other")) == Identity("caller", "token")
    for trouble in (path.unlink, lambda: path.write_text(f'"{SECRET}'), lambda: path.write_text("[]")):
        trouble()
        for _ in range(2):
            assert await admitted(scheme, bearer("other")) == (
                "UNAVAILABLE",
                "the token cannot be verified now",
            )
    assert SECRET not in caplog.text
    write_tokens(path, [SECRET])
    assert await admitted(scheme, bearer(SECRET)) == Identity("caller", "token")
    assert os.listdir(tmp_path) == ["tokens"]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"a": 1}', '{"a": {"nam": "x"}}', '{"a": {"name": 1}}', '{"a": {"expires_at": "x"}}',
     '{"a": {"methods": "Predict"}}'],
)  # fmt: skip
def test_what_is_no_file_of_tokens_is_refused(tmp_path: Path, content: str) -> None:
    """A server does not start with it; the error shows nothing that is in it."""
    path = tmp_path / "f"
    path.write_text(content)
    with pytest.raises(ValueError, match="f is not a file of tokens: a JSON object of tokens"):
        Tokens(path)


def test_wrong_arguments(tmp_path: Path) -> None:
    """Nothing to check by, an empty token, or a file that is not there."""
    with pytest.raises(ValueError, match="needs a scheme"):
        Authentication()
    with pytest.raises(ValueError, match="a token is empty"):
        Tokens(["a", ""])
    with pytest.raises(FileNotFoundError):
        Tokens(tmp_path / "nowhere")


@pytest.mark.anyio
async def test_secrets_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every known token is compared, in digests of one length, wherever the right one stands."""
    compared = []

    def compare(left: bytes, right: bytes) -> bool:
        compared.append((len(left), len(right)))
        return hmac.compare_digest(left, right)

    monkeypatch.setattr("aioserving.server_security.hmac", type("hmac", (), {"compare_digest": compare}))
    scheme = Tokens(["a", "bb", "ccc", "dddd"])
    for token in ("a", "dddd", "x" * 1000):
        compared.clear()
        await admitted(scheme, bearer(token))
        assert compared == [(64, 64)] * 4


@pytest.mark.anyio
async def test_client_certificates() -> None:
    """Names in subjectAltName count, the common name only where there are none."""
    anybody, joe = ClientCertificates(), ClientCertificates(["joe"])
    assert await admitted(anybody) is None
    assert await admitted(anybody, x509_common_name="ann") == Identity("ann", "certificate")
    assert await admitted(joe, x509_common_name="joe") == Identity("joe", "certificate")
    stranger = ("UNAUTHENTICATED", "the client certificate is for ann, who is not known here")
    assert await admitted(joe, x509_common_name="joe", x509_subject_alternative_name="ann") == stranger
    assert await admitted(joe, x509_subject_alternative_name="joe") == Identity("joe", "certificate")


@pytest.mark.anyio
async def test_who_may_call_what() -> None:
    """The first scheme with credentials decides; a known caller without the right is PERMISSION_DENIED."""
    guard = Authentication(
        Tokens({SECRET: Grant("joe"), "few": Grant("ann", methods=frozenset({"M"}))}),
        APIKeys(["key"]),
        allow=lambda identity, method: identity.name != "joe" or not method.endswith("/Reload"),
    )

    async def outcome(method: str, *metadata: tuple[str, str]) -> Any:
        try:
            return (await guard.admit(Call(f"/p.S/{method}", metadata))).name
        except Refused as refused:
            return refused.code.name, refused.details

    assert await outcome("M", bearer(SECRET)) == "joe"
    assert await outcome("Reload", bearer(SECRET)) == ("PERMISSION_DENIED", "joe may not call Reload")
    assert await outcome("M", bearer("few")) == "ann"
    assert await outcome("N", bearer("few")) == ("PERMISSION_DENIED", "ann may not call N")
    assert await outcome("Reload", ("x-api-key", "key")) == "caller"
    assert await outcome("M", bearer("wrong"), ("x-api-key", "key")) == (
        "UNAUTHENTICATED",
        "the token is not valid",
    )
    assert await outcome("M") == (
        "UNAUTHENTICATED",
        "the call has no credentials; expected authorization: Bearer TOKEN or x-api-key: API KEY",
    )


def test_nothing_shows_a_secret(tmp_path: Path) -> None:
    """Reprs tell how many are known, not which."""
    write_tokens(tmp_path / "f", [SECRET])
    shown = repr(
        Authentication(
            Tokens({SECRET: Grant("joe")}), Tokens(tmp_path / "f"), APIKeys([SECRET]),
            Tokens(lambda token: None), ClientCertificates(["joe"]),
        )
    )  # fmt: skip
    assert SECRET not in shown
    assert "<Tokens in authorization, 1 known>" in shown
    assert "<APIKeys in x-api-key, 1 known>" in shown
    assert repr(Call("/p.S/M", (bearer(SECRET),))) == "<Call of /p.S/M>"


# -------------------------------------------------------------------------------------- services of one's own


@contextlib.asynccontextmanager
async def own_service(guard: Authentication, credentials: Any = None) -> AsyncIterator[str]:
    """A service with methods of every kind, each saying who calls it."""

    def who() -> bytes:
        identity = current_identity()
        return b"nobody" if identity is None else identity.name.encode()

    async def one(request: Any, context: Any) -> bytes:
        return who()

    async def some(request: Any, context: Any) -> Any:
        yield who()
        yield who()

    async def write(request: Any, context: Any) -> None:
        await context.write(who())

    handlers: dict[str, Any] = {
        "UU": grpc.unary_unary_rpc_method_handler(one),
        "US": grpc.unary_stream_rpc_method_handler(some),
        "SU": grpc.stream_unary_rpc_method_handler(one),
        "SS": grpc.stream_stream_rpc_method_handler(some),
        "W": grpc.unary_stream_rpc_method_handler(write),
    }
    server = grpc.aio.server(interceptors=[guard])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("p.S", handlers),))
    port = (
        server.add_secure_port("127.0.0.1:0", credentials)
        if credentials
        else server.add_insecure_port("127.0.0.1:0")
    )
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def each_kind(channel: Any, metadata: Any) -> list[Any]:
    """What each method answers, or its code."""

    async def requests() -> AsyncIterator[bytes]:
        yield b"x"

    answers: list[Any] = []
    calls: list[Any] = [
        channel.unary_unary("/p.S/UU")(b"x", metadata=metadata, timeout=20),
        channel.unary_stream("/p.S/US")(b"x", metadata=metadata, timeout=20),
        channel.stream_unary("/p.S/SU")(requests(), metadata=metadata, timeout=20),
        channel.stream_stream("/p.S/SS")(requests(), metadata=metadata, timeout=20),
        channel.unary_stream("/p.S/W")(b"x", metadata=metadata, timeout=20),
        channel.unary_unary("/p.S/Nope")(b"x", metadata=metadata, timeout=20),
    ]
    for call in calls:
        try:
            answers.append([item async for item in call] if hasattr(call, "__aiter__") else await call)
        except grpc.aio.AioRpcError as error:
            answers.append(error.code().name)
    return answers


LET_IN = [b"joe", [b"joe", b"joe"], b"joe", [b"joe", b"joe"], [b"joe"], "UNIMPLEMENTED"]


@pytest.mark.anyio
@pytest.mark.parametrize("certificates", [False, True])
async def test_every_kind_of_call(certificates: bool) -> None:
    """Unary and streaming calls, both ways of writing streams: let in with the name, or refused."""
    schemes: list[Scheme] = [Tokens({SECRET: Grant("joe")})]
    if certificates:  # decides in another place
        schemes.append(ClientCertificates())
    async with own_service(Authentication(*schemes)) as target, grpc.aio.insecure_channel(target) as channel:
        assert await each_kind(channel, (bearer(SECRET),)) == LET_IN
        refused = await each_kind(channel, (bearer("x"),))
        assert refused[:5] == ["UNAUTHENTICATED"] * 5
        assert (await each_kind(channel, ()))[:5] == ["UNAUTHENTICATED"] * 5


class Authority:
    """Makes certificates, as keyword arguments of those who need them."""

    def __init__(self) -> None:
        trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")
        self._authority = trustme.CA()
        self.certificate: bytes = self._authority.cert_pem.bytes()

    def issue(self, *names: str) -> dict[str, Any]:
        made = self._authority.issue_cert(*names)
        chain = b"".join(item.bytes() for item in made.cert_chain_pems)
        return {"key": made.private_key_pem.bytes(), "certificate": chain}


@pytest.fixture(scope="module")
def authority() -> Authority:
    """One for all tests."""
    return Authority()


@pytest.mark.anyio
async def test_the_name_in_a_real_certificate(authority: Authority) -> None:
    """Over mutual TLS, the caller is the one that its certificate names."""
    server = authority.issue("127.0.0.1")
    credentials = grpc.ssl_server_credentials(
        [(server["key"], server["certificate"])], authority.certificate, True
    )
    guard = Authentication(ClientCertificates(["joe"]))
    outcomes = []
    async with own_service(guard, credentials) as target:
        for name in ("joe", "ann"):
            tls = TLS(authority.certificate, **authority.issue(name))
            async with grpc.aio.secure_channel(target, tls.current(target)[0]) as channel:
                outcomes.append(await each_kind(channel, ()))
    assert outcomes[0] == LET_IN
    assert outcomes[1][:5] == ["UNAUTHENTICATED"] * 5


# ----------------------------------------------------------------------------------------- the testing server


async def called(
    channel: grpc.aio.Channel, credentials: Credentials | None = None, method: str = PREDICT
) -> str:
    """``"ok"``, or the code that a call with these credentials ends with; retried once as our client does."""
    request = {PREDICT: predict_request("m"), STATUS: status_request("m")}.get(method, b"")
    stub: Any = channel.unary_unary(method)
    for attempt in range(2):
        metadata = () if credentials is None else await obtain(credentials)
        try:
            answer = await stub(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            code: str = error.code().name
            if code == "UNAUTHENTICATED" and credentials and not attempt and credentials.invalidate(metadata):
                continue
            return code
        assert method != PREDICT or predicted(answer) == [2.0, 4.0]
        return "ok"
    raise AssertionError("two attempts end in an answer or a code")


@pytest.mark.anyio
async def test_the_testing_server_takes_interceptors() -> None:
    """All its services ask for credentials but health checks, which may be asked for them, too."""
    for health in (False, True):
        guard = Authentication(
            Tokens({SECRET: Grant("joe", methods=frozenset({"Predict"}))}), APIKeys([SECRET]), health=health
        )
        server = ModelServer({"m": times(2)}, interceptors=[guard], enable_grpc_healthcheck_service=True)
        async with server, grpc.aio.insecure_channel(server.target) as channel:
            assert await called(channel) == "UNAUTHENTICATED"
            assert await called(channel, StaticToken(SECRET)) == "ok"
            assert await called(channel, StaticToken("x")) == "UNAUTHENTICATED"
            assert await called(channel, StaticToken(SECRET), STATUS) == "PERMISSION_DENIED"
            assert await called(channel, APIKey(SECRET), STATUS) == "ok"
            assert await called(channel, Combined(StaticToken(SECRET), APIKey("x"))) == "ok"
            assert await called(channel, Headers({"x-other": "y"})) == "UNAUTHENTICATED"
            assert await called(channel, None, HEALTH) == ("UNAUTHENTICATED" if health else "ok")


def serving(**flags: Any) -> ServerProcess:
    return ServerProcess(
        callables={"m": "tests.testing.servables:twice"}, env={"PYTHONPATH": str(ROOT)}, **flags
    )


@pytest.mark.anyio
async def test_a_token_revoked_in_mid_run_is_replaced(tmp_path: Path) -> None:
    """A server process that forgets the token in use costs no call: the refusal fetches the next one."""
    path = tmp_path / "tokens"
    write_tokens(path, ["token-1"])
    fetched = []

    def fetch() -> tuple[str, float]:
        (secret,) = json.loads(path.read_text())
        fetched.append(secret)
        return secret, 3600.0

    token = Token(fetch)
    outcomes: list[str] = []
    async with serving(testing_token_file=str(path)) as process:
        assert "token-1" not in " ".join(process.arguments)
        async with grpc.aio.insecure_channel(process.target) as channel:
            assert await called(channel, StaticToken("token-0")) == "UNAUTHENTICATED"
            for number in range(100):
                if number == 50:
                    write_tokens(path, ["token-2"])
                outcomes.append(await called(channel, token))
                await asyncio.sleep(0.01)
            assert await called(channel, StaticToken("token-1")) == "UNAUTHENTICATED"
        assert "token-" not in process.stderr
    assert fetched == ["token-1", "token-2"]
    assert set(outcomes) == {"ok"}


@pytest.mark.anyio
async def test_tokens_that_expire_in_mid_run_cost_no_call(tmp_path: Path) -> None:
    """Tokens of one second, renewed early, let every call through; none is fetched more often than needed."""
    path = tmp_path / "tokens"
    write_tokens(path, ["none"])
    issued_tokens: dict[str, Grant] = {}

    def fetch() -> tuple[str, float]:
        issued_tokens[f"token-{len(issued_tokens)}"] = Grant(expires_at=time.time() + 1.0)
        write_tokens(path, issued_tokens)
        return f"token-{len(issued_tokens) - 1}", 1.0

    token = Token(fetch)
    outcomes = []
    async with (
        serving(testing_token_file=str(path)) as process,
        grpc.aio.insecure_channel(process.target) as channel,
    ):
        began = time.monotonic()
        while time.monotonic() - began < 3:
            outcomes.append(await called(channel, token))
            await asyncio.sleep(0.005)
        assert await called(channel, StaticToken("token-0")) == "UNAUTHENTICATED"
    assert set(outcomes) == {"ok"}
    assert 3 <= len(issued_tokens) <= 8


@pytest.mark.anyio
async def test_keys_and_certificates_by_flags(tmp_path: Path, authority: Authority) -> None:
    """A process that knows keys and client names lets in either, over the TLS of its file."""
    write_tokens(tmp_path / "keys", [SECRET])
    write_ssl_config(
        tmp_path / "tls", **authority.issue("127.0.0.1"), ca=authority.certificate, client_verify=True
    )
    flags = {
        "testing_api_key_file": str(tmp_path / "keys"),
        "testing_client_names": "joe,ann",
        "ssl_config_file": str(tmp_path / "tls"),
    }
    outcomes = []
    async with serving(**flags) as process:
        for name in ("joe", "eve"):
            for credentials in (None, APIKey(SECRET), APIKey("x")):
                tls = TLS(authority.certificate, **authority.issue(name))
                arguments = [("grpc.use_local_subchannel_pool", 1)]
                async with grpc.aio.secure_channel(
                    process.target, tls.current(process.target)[0], arguments
                ) as channel:
                    outcomes.append(await called(channel, credentials))
    assert outcomes == ["ok", "ok", "UNAUTHENTICATED", "UNAUTHENTICATED", "ok", "UNAUTHENTICATED"]


def test_a_process_with_a_wrong_file_does_not_start(tmp_path: Path) -> None:
    """The file's name is told on standard error, and nothing that is in it."""
    (tmp_path / "tokens").write_text(f"[{SECRET}]")
    from aioserving.testing.process import ServerProcessError

    with pytest.raises(ServerProcessError, match="tokens is not a file of tokens") as caught:
        serving(testing_token_file=str(tmp_path / "tokens")).start()
    assert SECRET not in str(caught.value)
