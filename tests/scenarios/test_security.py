"""Who is let in and who is not, over real sockets: certificates, tokens, and both changing under load."""

from __future__ import annotations

import asyncio
import datetime
import itertools
import logging
import os
import re
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
import pytest

from aioserving import (
    TLS,
    AsyncClient,
    PermissionDeniedError,
    RPCError,
    StaticToken,
    Token,
    UnauthenticatedError,
    UnavailableError,
)
from aioserving.events import CallEnded, CredentialsRefreshed, Event
from aioserving.testing import ModelServer
from aioserving.testing.security import (
    Authentication,
    Call,
    ClientCertificates,
    Grant,
    Identity,
    write_tokens,
)
from tests.models import digits
from tests.scenarios.leaks import settled

trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

DAY = datetime.timedelta(days=1)
AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
CA: bytes = AUTHORITY.cert_pem.bytes()
OTHER_CA: bytes = OTHER_AUTHORITY.cert_pem.bytes()
IMAGES = [[1.0] * 784]


def issued(*names: str, by: Any = AUTHORITY, **options: Any) -> tuple[bytes, bytes]:
    """A key, and a certificate with its chain."""
    made = by.issue_cert(*names, **options)
    return made.private_key_pem.bytes(), b"".join(item.bytes() for item in made.cert_chain_pems)


SERVER = issued("127.0.0.1", "models.example.org")
CLIENT = issued("client@example.org")


def put(path: Path, content: bytes) -> Path:
    """A file that appears whole."""
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    return path


def run(coroutine: Coroutine[Any, Any, None], seconds: float = 60.0) -> None:
    asyncio.run(asyncio.wait_for(coroutine, seconds))


def served(
    pair: tuple[bytes, bytes] | None = SERVER, client_ca: bytes | None = None, port: int = 0, **options: Any
) -> ModelServer:
    """A server of ``digits`` with a certificate; it asks for the client's where there is a `client_ca`."""
    credentials = None
    if pair is not None:
        credentials = grpc.ssl_server_credentials([pair], client_ca, client_ca is not None)
    return ModelServer({"digits": digits()}, credentials=credentials, port=port, **options)


async def failure(server: ModelServer, **options: Any) -> RPCError:
    """How a call fails that has half a minute, and how soon: no later than after a few attempts."""
    async with AsyncClient(server.target, timeout=30, **options) as client:
        begun = time.monotonic()
        with pytest.raises(RPCError) as caught:
            await client.predict("digits", IMAGES)
        assert time.monotonic() - begun < 15
        return caught.value


# ------------------------------------------------------------------------------------------------------ TLS


def _expired() -> tuple[bytes, bytes]:
    now = datetime.datetime.now(datetime.timezone.utc)
    return issued("127.0.0.1", not_before=now - 2 * DAY, not_after=now - DAY)


_TLS_CASES: dict[str, tuple[Callable[[], ModelServer], Callable[[], TLS | None], str]] = {
    "wrong authority": (
        served,
        lambda: TLS(OTHER_CA),
        r"not from an authority that this client trusts; give that authority's certificate as TLS\(ca=",
    ),
    "expired": (lambda: served(_expired()), lambda: TLS(CA), "the server's certificate has expired"),
    "wrong name": (
        lambda: served(issued("elsewhere.org")),
        lambda: TLS(CA),
        r"not for the name in the target; call it by a name that it is for, or give .* TLS\(server_name=",
    ),
    "no client certificate": (
        lambda: served(client_ca=CA),
        lambda: TLS(CA),
        r"wants a client certificate; see TLS\(certificate=, key=\)|see TLS\(certificate=, key=\)",
    ),
    "strange client certificate": (
        lambda: served(client_ca=CA),
        lambda: TLS(CA, *reversed(issued("stranger@example.org", by=OTHER_AUTHORITY))),
        "does not accept the client's certificate|refuses the client's certificate",
    ),
    "plaintext to TLS": (served, lambda: None, r"perhaps it speaks TLS only; see tls=TLS\("),
    "TLS to plaintext": (lambda: served(None), lambda: TLS(CA), "does not speak TLS on this port"),
}


@pytest.mark.parametrize("case", _TLS_CASES)
def test_a_connection_that_cannot_be_says_why(case: str) -> None:
    """Each misfit of certificates fails as UNAVAILABLE, long before the deadline, and says what to do."""
    make_server, make_tls, advice = _TLS_CASES[case]

    async def story() -> None:
        async with make_server() as server:
            error = await failure(server, tls=make_tls())
            assert isinstance(error, UnavailableError)
            assert re.search(advice, error.details), error.details
            assert server.calls.total == 0
            async with AsyncClient(server.target, tls=make_tls()) as client:
                before = asyncio.all_tasks()
                with pytest.raises(RPCError, match="^not ready in time: .*failed to connect"):
                    await client.wait_ready(timeout=1)
                assert await settled(client, before) == []

    run(story())


def test_the_right_certificates_are_let_in() -> None:
    """With the authority, the name and the client's certificate right, the same calls are answered."""

    async def story() -> None:
        key, certificate = CLIENT
        async with served(issued("models.example.org"), client_ca=CA) as server:
            tls = TLS(CA, certificate, key, server_name="models.example.org")
            async with AsyncClient(server.target, tls=tls) as client:
                assert (await client.wait_ready("digits", timeout=20)).ok
                assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


class _Names(ClientCertificates):
    """Lets in whoever has a certificate, and counts by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    async def identify(self, call: Call) -> Identity | None:
        identity = await super().identify(call)
        if identity is not None:
            self.seen[identity.name] += 1
        return identity


async def _load(client: AsyncClient, stop: asyncio.Event, failures: list[BaseException]) -> int:
    """Calls one after the other until told to stop; how many were answered."""
    answered = 0
    while not stop.is_set():
        try:
            await client.predict("digits", IMAGES, timeout=20)
            answered += 1
        except Exception as error:
            failures.append(error)
        await asyncio.sleep(0.002)
    return answered


async def _until(condition: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, what
        await asyncio.sleep(0.01)


def test_a_client_certificate_that_changes_on_disk(tmp_path: Path) -> None:
    """Rotated under load: no call fails, and before long every call comes with the new certificate."""

    async def story() -> None:
        key, certificate = CLIENT
        files: dict[str, Any] = {
            "ca": put(tmp_path / "ca.pem", CA),
            "certificate": put(tmp_path / "client.pem", certificate),
            "key": put(tmp_path / "client.key", key),
        }
        names = _Names()
        async with (
            served(client_ca=CA, interceptors=[Authentication(names)]) as server,
            AsyncClient(server.target, tls=TLS(**files, reload=0.1)) as client,
        ):
            stop = asyncio.Event()
            failures: list[BaseException] = []
            callers = [asyncio.create_task(_load(client, stop, failures)) for _ in range(8)]
            await _until(lambda: names.seen["client@example.org"] >= 50, "calls with the first certificate")
            key, certificate = issued("next@example.org")
            put(files["certificate"], certificate)
            put(files["key"], key)
            await _until(lambda: names.seen["next@example.org"] >= 50, "calls with the second certificate")
            names.seen.clear()
            await asyncio.sleep(0.3)
            stop.set()
            answered = sum(await asyncio.gather(*callers))
            print(f"\n{answered} calls, {len(failures)} failed; at last: {dict(names.seen)}")
            assert failures == []
            assert set(names.seen) == {"next@example.org"}

    run(story())


def test_an_authority_that_is_replaced_in_a_rolling_restart(tmp_path: Path) -> None:
    """First clients trust both authorities, then one server after the other changes: no call fails."""

    async def story() -> None:
        path = put(tmp_path / "ca.pem", CA)
        async with served() as one, served() as two:
            servers = [one, two]
            targets = [server.target for server in servers]
            async with AsyncClient(targets, tls=TLS(path, reload=0.1)) as client:
                stop = asyncio.Event()
                failures: list[BaseException] = []
                callers = [asyncio.create_task(_load(client, stop, failures)) for _ in range(8)]
                await _until(lambda: min(server.calls.total for server in servers) >= 50, "calls")
                put(path, CA + OTHER_CA)
                await asyncio.sleep(0.5)
                renewed = []
                for server in servers:
                    await server.stop(grace=5)
                    new = served(issued("127.0.0.1", by=OTHER_AUTHORITY), port=server.port or 0)
                    await new.start()
                    renewed.append(new)
                    await _until(lambda new=new: new.calls.total >= 20, "calls at the restarted server")  # type: ignore[misc]
                stop.set()
                answered = sum(await asyncio.gather(*callers))
                print(f"\n{answered} calls, {len(failures)} failed")
                assert failures == []
            for server in renewed:
                await server.stop(0)

    run(story())


# --------------------------------------------------------------------------------------------------- tokens


SECRET = "s3cr3t-Zf9Qk2"  # which is to be found nowhere


def _token(text: str) -> StaticToken:
    return StaticToken(text, allow_plaintext=True)


def test_tokens_missing_wrong_and_revoked(tmp_path: Path) -> None:
    """Refused with a reason, and tried once; one that is revoked fails from the next call on."""

    async def story() -> None:
        path = tmp_path / "tokens.json"
        write_tokens(path, [SECRET, "other"])
        async with served(None, testing_token_file=str(path)) as server:
            for credentials, reason in ((None, "no credentials"), (_token("wrong"), "not valid")):
                server.calls.reset()
                error = await failure(server, credentials=credentials)
                assert isinstance(error, UnauthenticatedError)
                assert reason in error.details
                assert len(error.attempts) == 1
            async with AsyncClient(server.target, credentials=_token(SECRET)) as client:
                for _ in range(20):
                    await client.predict("digits", IMAGES)
                write_tokens(path, ["other"])
                with pytest.raises(UnauthenticatedError, match="the token is not valid"):
                    await client.predict("digits", IMAGES)
                assert client.health().ok  # the server is well: it says no
                write_tokens(path, {SECRET: Grant("reader", methods=frozenset({"GetModelMetadata"}))})
                with pytest.raises(PermissionDeniedError, match="reader may not call Predict"):
                    await client.predict("digits", IMAGES)
                write_tokens(path, [SECRET])
                assert (await client.predict("digits", IMAGES))["version"] == 1

    run(story())


def test_tokens_that_expire_in_mid_run_are_renewed(tmp_path: Path) -> None:
    """Tokens of a second each, taken out of the server's file when they expire: no call fails."""

    async def story() -> None:
        path = tmp_path / "tokens.json"
        grants: dict[str, Grant] = {"not yet": Grant()}
        write_tokens(path, grants)
        numbers = itertools.count()

        async def fetch() -> tuple[str, float]:
            await asyncio.sleep(0.05)
            token = f"{SECRET}-{next(numbers)}"
            grants[token] = Grant(expires_at=time.time() + 1.0)
            write_tokens(path, grants)
            return token, 1.0

        async with (
            served(None, testing_token_file=str(path)) as server,
            AsyncClient(server.target, credentials=Token(fetch, allow_plaintext=True, early=0.4)) as client,
        ):
            stop = asyncio.Event()
            failures: list[BaseException] = []
            callers = [asyncio.create_task(_load(client, stop, failures)) for _ in range(8)]
            await asyncio.sleep(4)
            stop.set()
            answered = sum(await asyncio.gather(*callers))
            fetched = next(numbers)
            print(f"\n{answered} calls with {fetched} tokens, {len(failures)} failed")
            assert failures == []
            assert answered > 50
            assert 4 <= fetched <= 20

    run(story())


def test_a_token_revoked_in_mid_run_is_replaced(tmp_path: Path) -> None:
    """The token in use is revoked under load: it is fetched anew, once, and no call fails."""

    async def story() -> None:
        path = tmp_path / "tokens.json"
        write_tokens(path, [f"{SECRET}-0", f"{SECRET}-1"])
        numbers = itertools.count()
        events: list[Event] = []

        async def fetch() -> str:
            await asyncio.sleep(0.02)
            return f"{SECRET}-{next(numbers)}"

        async with (
            served(None, testing_token_file=str(path)) as server,
            AsyncClient(
                server.target, credentials=Token(fetch, allow_plaintext=True), observers=[events.append]
            ) as client,
        ):
            stop = asyncio.Event()
            failures: list[BaseException] = []
            callers = [asyncio.create_task(_load(client, stop, failures)) for _ in range(8)]
            await _until(lambda: server.calls.total >= 50, "calls")
            write_tokens(path, [f"{SECRET}-1"])
            server.calls.reset()
            await _until(lambda: server.calls.total >= 50, "calls after the revocation")
            stop.set()
            answered = sum(await asyncio.gather(*callers))
            print(f"\n{answered} calls, {len(failures)} failed")
            assert failures == []
            assert next(numbers) == 2
            assert any(isinstance(event, CredentialsRefreshed) for event in events)

    run(story())


def test_a_refresh_that_fails(tmp_path: Path) -> None:
    """While the old token is good, nobody notices; then calls fail at once, unsent, and say what happened."""

    async def story() -> None:
        path = tmp_path / "tokens.json"
        write_tokens(path, [SECRET])
        broken = False

        async def fetch() -> tuple[str, float]:
            if broken:
                raise ConnectionError(f"the issuer of {SECRET} is down")
            return SECRET, 1.5

        credentials = Token(fetch, allow_plaintext=True, early=1.0)
        async with (
            served(None, testing_token_file=str(path)) as server,
            AsyncClient(server.target, credentials=credentials) as client,
        ):
            await client.predict("digits", IMAGES)
            broken = True
            begun = time.monotonic()
            good = 0
            failed: UnauthenticatedError | None = None
            sent = 0
            while failed is None:
                sent = server.calls.total
                try:
                    await client.predict("digits", IMAGES)
                    good += 1
                except UnauthenticatedError as error:
                    failed = error
                assert time.monotonic() - begun < 20
                await asyncio.sleep(0.02)
            assert "fetching credentials failed (ConnectionError)" in str(failed)
            assert isinstance(failed.__cause__, ConnectionError)
            assert SECRET not in str(failed)
            assert server.calls.total == sent
            assert good >= 10
            broken = False
            end = time.monotonic() + 20
            while True:
                try:
                    await client.predict("digits", IMAGES)
                    break
                except UnauthenticatedError:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.05)

    run(story())


def test_tokens_are_never_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A token is in no log line, event, error, traceback, repr, statistic or output, whatever happens."""
    told: list[str] = []
    events: list[Event] = []

    def tell(*things: object) -> None:
        for thing in things:
            told.extend((str(thing), repr(thing)))
            if isinstance(thing, BaseException):
                told.extend(traceback.format_exception(thing))
                told.extend((repr(vars(thing)), repr(getattr(thing, "debug", ""))))

    async def story() -> None:
        path = tmp_path / "tokens.json"
        write_tokens(path, [SECRET])

        async def fetch() -> str:
            return SECRET

        for credentials in (_token(SECRET), Token(fetch, allow_plaintext=True)):
            write_tokens(path, [SECRET])
            async with (
                served(None, testing_token_file=str(path)) as server,
                AsyncClient(
                    server.target, credentials=credentials, observers=[events.append], timeout=5
                ) as client,
            ):
                tell(credentials, client)
                await client.predict("digits", IMAGES)
                write_tokens(path, ["another"])
                for model in ("digits", "nothing"):
                    with pytest.raises(RPCError) as caught:
                        await client.predict(model, IMAGES)
                    tell(caught.value)
                await server.stop(0)
                with pytest.raises(RPCError) as caught:
                    await client.predict("digits", IMAGES)
                tell(caught.value, client, client.stats(), client.health(), client._calls, client._pool)
        with pytest.raises(ValueError, match="plaintext") as refused:
            AsyncClient("127.0.0.1:1", credentials=StaticToken(SECRET))
        tell(refused.value)
        with pytest.raises(ValueError, match="white space") as malformed:
            StaticToken(f"{SECRET} {SECRET}")
        tell(malformed.value)

    with caplog.at_level(logging.DEBUG):
        run(story())
    tell(*events)
    told.extend(record.getMessage() for record in caplog.records)
    told.append(caplog.text)
    told.extend(capfd.readouterr())
    assert any(isinstance(event, CallEnded) for event in events)
    assert len(told) > 50
    assert [text for text in told if SECRET in text] == []
