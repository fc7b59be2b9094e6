"""aioserving.security: TLS and its files, credentials and their life, and what is never shown."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import hmac
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving import UnauthenticatedError
from aioserving.security import (
    TLS,
    APIKey,
    CachedCredentials,
    Combined,
    Credentials,
    Headers,
    StaticToken,
    Token,
    check_metadata,
    check_plaintext,
    connection_advice,
    google_auth,
    obtain,
)

SECRET = "s3cr3t-of-all-secrets"
UTC = datetime.timezone.utc


class Clock:
    """Time that passes when told to."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Issuer:
    """A token service: counts what it is asked, and answers when told to."""

    def __init__(self, lifetime: Any = None) -> None:
        self.lifetime = lifetime
        self.asked = 0
        self.error: BaseException | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Any:
        self.asked += 1
        number = self.asked
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return f"{SECRET}-{number}", self.lifetime


def bearer(number: int) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {SECRET}-{number}"),)


async def settle() -> None:
    """Let tasks that are ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


# --------------------------------------------------------------------------------------- fixed credentials


def test_a_static_token_is_one_tuple_for_ever() -> None:
    """Every call gets the same object; scheme and header may be others."""
    token = StaticToken(SECRET)
    assert token.metadata() == (("authorization", f"Bearer {SECRET}"),)
    assert token.metadata() is token.metadata()
    assert StaticToken(SECRET, "Basic", header="proxy-authorization").metadata() == (
        ("proxy-authorization", f"Basic {SECRET}"),
    )
    assert APIKey(SECRET).metadata() == (("x-api-key", SECRET),)
    assert APIKey(SECRET, "x-goog-api-key").metadata() == (("x-goog-api-key", SECRET),)
    assert Headers({"x-tenant": "a b", "x-raw-bin": b"\x00\xff"}).metadata() == (
        ("x-tenant", "a b"),
        ("x-raw-bin", b"\x00\xff"),
    )


def test_what_never_changes_is_not_worth_a_second_try() -> None:
    """A refused fixed token stays refused."""
    for credentials in (StaticToken(SECRET), APIKey(SECRET), Headers({"a": "b"})):
        assert credentials.invalidate(credentials.metadata()) is False


@pytest.mark.parametrize(
    ("token", "error", "reason"),
    [
        ("", ValueError, "the token is empty"),
        (f"{SECRET}\n", ValueError, r"begins or ends with white space \(from a file\? strip\(\) it\)"),
        (f"{SECRET} x", ValueError, "has white space in it"),
        (f"{SECRET}\nx: y", ValueError, "has characters besides printable ASCII"),
        (f"{SECRET}é", ValueError, "has characters besides printable ASCII"),
        (SECRET.encode(), TypeError, "a token is text, got bytes"),
        (None, TypeError, "a token is text, got NoneType"),
    ],
)
def test_what_cannot_be_a_token_is_refused_without_showing_it(
    token: Any, error: type[Exception], reason: str
) -> None:
    """The error says what is wrong with the token, not what it is."""
    for kind in (StaticToken, APIKey):
        with pytest.raises(error, match=reason) as caught:
            kind(token)
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "error", "reason"),
    [
        (
            "Authorization",
            "x",
            ValueError,
            r"lower-case letters, digits and _.- \(lower case: 'authorization'\)",
        ),
        ("a b", "x", ValueError, "names are lower-case letters"),
        ("", "x", ValueError, "names are lower-case letters"),
        (":path", "x", ValueError, "names are lower-case letters"),
        (3, "x", TypeError, "the name of a header is text, got int"),
        ("grpc-timeout", "x", ValueError, "reserved for gRPC itself"),
        ("content-type", "x", ValueError, "reserved for gRPC itself"),
        ("te", "x", ValueError, "reserved for gRPC itself"),
        ("x-bin", "x", TypeError, "a name with -bin is for bytes, not str"),
        ("x", b"x", TypeError, "expected text, got bytes; bytes are sent as x-bin"),
        ("x", 3, TypeError, "expected text, got int"),
        ("x", f"{SECRET}\r\ny: z", ValueError, "its value has characters besides printable ASCII"),
        ("x", f" {SECRET}", ValueError, "its value begins or ends with white space"),
    ],
)
def test_headers_that_grpc_cannot_send_are_refused(
    name: Any, value: Any, error: type[Exception], reason: str
) -> None:
    """Names and values are checked where they are given, and values are not shown."""
    with pytest.raises(error, match=reason) as caught:
        Headers({name: value})
    assert SECRET not in str(caught.value)


@given(
    st.dictionaries(
        st.text(max_size=6), st.one_of(st.text(max_size=6), st.binary(max_size=6), st.none()), max_size=3
    )
)
def test_whatever_passes_the_check_can_be_sent(headers: dict[str, Any]) -> None:
    """What the check lets through is what gRPC's protocol allows: names, and kinds of values."""
    try:
        pairs = check_metadata(tuple(headers.items()))
    except (TypeError, ValueError):
        return
    for name, value in pairs:
        assert name == name.lower()
        assert name.isascii()
        assert isinstance(value, bytes) == name.endswith("-bin")
        assert isinstance(value, bytes) or (value.isprintable() and value.isascii())


# ----------------------------------------------------------------------------------------- cached and fetched


@pytest.mark.anyio
async def test_a_token_is_fetched_once_and_kept() -> None:
    """The first caller waits; after that it is the same tuple, at no await, until it is due."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    assert token.metadata() is None
    first = await obtain(token)
    assert first == bearer(1)
    clock.now += 3600 - 61
    assert token.metadata() is first
    assert issuer.asked == 1


@pytest.mark.anyio
async def test_concurrent_callers_share_one_fetch() -> None:
    """A hundred callers who need a token at once make one request."""
    issuer = Issuer(3600)
    issuer.gate.clear()
    token = Token(issuer)
    callers = [asyncio.create_task(obtain(token)) for _ in range(100)]
    await settle()
    assert issuer.asked == 1
    issuer.gate.set()
    assert await asyncio.gather(*callers) == [bearer(1)] * 100
    assert issuer.asked == 1


@pytest.mark.anyio
async def test_a_cancelled_caller_leaves_the_fetch_to_the_others() -> None:
    """The caller who started it may go; so may all of them, and the next one still profits."""
    issuer = Issuer(3600)
    issuer.gate.clear()
    token = Token(issuer)
    first, second = asyncio.create_task(obtain(token)), asyncio.create_task(obtain(token))
    await settle()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not second.done()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    issuer.gate.set()
    assert await obtain(token) == bearer(1)
    assert issuer.asked == 1


@pytest.mark.anyio
async def test_it_is_renewed_early_in_the_background() -> None:
    """From a minute before the end a new one is fetched, once, while the old one goes on being sent."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    await obtain(token)
    clock.now += 3600 - 59
    issuer.gate.clear()
    assert [token.metadata() for _ in range(5)] == [bearer(1)] * 5
    await settle()
    assert [token.metadata() for _ in range(5)] == [bearer(1)] * 5
    assert issuer.asked == 2
    issuer.gate.set()
    await settle()
    assert token.metadata() == bearer(2)
    assert issuer.asked == 2


@pytest.mark.anyio
async def test_a_failed_renewal_keeps_what_is_valid(caplog: pytest.LogCaptureFixture) -> None:
    """The old token is sent until just before its end; attempts come at growing intervals."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    await obtain(token)
    clock.now += 3600 - 59
    issuer.error = RuntimeError(f"no luck with {SECRET}")
    asked = []
    with caplog.at_level(logging.WARNING):
        for _ in range(53):  # seconds, up to six before the end
            assert await obtain(token) == bearer(1)
            await settle()
            asked.append(issuer.asked)
            clock.now += 1
    assert asked[0] == 2
    assert 4 <= asked[-1] <= 8
    assert "fetching credentials failed (RuntimeError)" in caplog.text
    assert SECRET not in caplog.text
    clock.now += 5
    with pytest.raises(UnauthenticatedError):
        await obtain(token)
    issuer.error = None
    clock.now += 60
    assert (await obtain(token))[0][1].startswith(f"Bearer {SECRET}")  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_failing_is_told_to_all_and_not_repeated_at_once() -> None:
    """All who wait get an error of their own with the cause; a storm of callers makes few attempts."""
    clock, issuer = Clock(), Issuer()
    issuer.error = ConnectionError(SECRET)
    token = Token(issuer, clock=clock)
    issuer.gate.clear()
    callers = [asyncio.create_task(obtain(token)) for _ in range(5)]
    await settle()
    issuer.gate.set()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert len({id(outcome) for outcome in outcomes}) == 5
    for outcome in outcomes:
        assert isinstance(outcome, UnauthenticatedError)
        assert outcome.__cause__ is issuer.error
        assert "failed (ConnectionError)" in str(outcome)
        assert SECRET not in str(outcome)
    for _ in range(100):
        with pytest.raises(UnauthenticatedError, match="ConnectionError"):
            await obtain(token)
    assert issuer.asked == 1
    clock.now += 0.6
    with pytest.raises(UnauthenticatedError):
        await obtain(token)
    assert issuer.asked == 2
    clock.now += 0.6
    with pytest.raises(UnauthenticatedError):
        await obtain(token)
    assert issuer.asked == 2  # a second has to pass now
    issuer.error = None
    clock.now += 0.5
    assert await obtain(token) == bearer(3)


@pytest.mark.anyio
async def test_a_refused_token_is_dropped_once() -> None:
    """The first refusal drops it; those of calls that carried the old one do not drop the new one."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    old = await obtain(token)
    clock.now += 10
    assert token.invalidate(old) is True
    assert token.metadata() is None
    new = await obtain(token)
    assert new == bearer(2)
    assert token.invalidate(old) is True
    assert token.metadata() is new
    assert issuer.asked == 2


@pytest.mark.anyio
async def test_a_server_that_refuses_everything_does_not_storm_the_issuer() -> None:
    """However many calls are refused, a refusal makes a new token be fetched once a second at most."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    for _ in range(200):
        pairs = await obtain(token)
        if token.invalidate(pairs):
            await obtain(token)
        clock.now += 0.05
    assert issuer.asked <= 11


@pytest.mark.parametrize(
    ("lifetime", "seconds"),
    [
        (100, 100),
        (100.5, 100.5),
        (datetime.timedelta(minutes=5), 300),
        (datetime.datetime(2030, 1, 1, 0, 10, tzinfo=UTC), 600),
        (datetime.datetime(2030, 1, 1, 1, 10, tzinfo=datetime.timezone(datetime.timedelta(hours=1))), 600),
        (None, math.inf),
    ],
)
@pytest.mark.anyio
async def test_lifetimes(lifetime: Any, seconds: float) -> None:
    """Seconds, timedeltas and points in time say when a token ends; it is not sent in its last moments."""
    clock = Clock()
    wall = datetime.datetime(2030, 1, 1, tzinfo=UTC).timestamp()
    token = Token(Issuer(lifetime), clock=clock, wall_clock=lambda: wall, early=0)
    start = clock.now
    await obtain(token)
    if seconds == math.inf:
        clock.now = 1e12
        assert token.metadata() == bearer(1)
        return
    clock.now = start + seconds - min(5, seconds / 10) - 0.01
    assert token.metadata() == bearer(1)
    clock.now += 0.02
    assert token.metadata() is None


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (
            (SECRET, 1_900_000_000),
            "ValueError: a number is the seconds that are left.*point in time as datetime",
        ),
        ((SECRET, math.nan), "ValueError: a number is the seconds"),
        ((SECRET, datetime.datetime(2030, 1, 1)), "ValueError: .*needs a time zone"),
        ((SECRET, "3600"), "TypeError: a lifetime is seconds.*got str"),
        ((SECRET, True), "TypeError: a lifetime is seconds.*got bool"),
        ((SECRET, 0), "ValueError: what was fetched has expired already"),
        ((SECRET, -5), "ValueError: what was fetched has expired already"),
        ((SECRET, 1, 2), "TypeError: a token comes alone or with its lifetime, got a tuple of 3"),
        (None, "TypeError: a token is text, got NoneType"),
        ({"token": SECRET}, "TypeError: a token is text, got dict"),
        (f"{SECRET}\n", r"ValueError: the token begins or ends with white space"),
    ],
)
@pytest.mark.anyio
async def test_what_a_callable_returns_is_checked(value: Any, reason: str) -> None:
    """Anything but a token, alone or with a sensible lifetime, is a failed attempt that says why."""
    import re

    token = Token(lambda: value)
    with pytest.raises(UnauthenticatedError) as caught:
        await obtain(token)
    cause = caught.value.__cause__
    assert re.match(reason, f"{type(cause).__name__}: {cause}"), cause
    assert SECRET not in f"{caught.value} {cause}"


@pytest.mark.anyio
async def test_kinds_of_callables() -> None:
    """Functions run in a thread; coroutine functions, and what returns an awaitable, on the loop."""
    threads = []

    def plain() -> str:
        threads.append(threading.current_thread())
        return SECRET

    async def coroutine() -> str:
        threads.append(threading.current_thread())
        return SECRET

    class Callable_:
        async def __call__(self) -> str:
            return await coroutine()

    functions: list[Callable[[], Any]] = [
        plain,
        coroutine,
        lambda: coroutine(),  # noqa: PLW0108 - a function that is not one of coroutines
        functools.partial(coroutine),
        Callable_(),
    ]
    for function in functions:
        assert await obtain(Token(function)) == (("authorization", f"Bearer {SECRET}"),)
    here = threading.current_thread()
    assert [thread is here for thread in threads] == [False, True, True, True, True]
    assert await obtain(Token(plain, scheme="", header="x-key")) == (("x-key", SECRET),)


@pytest.mark.anyio
async def test_a_callable_that_hangs_is_given_up() -> None:
    """After `timeout` callers get an error, whether the function is async or blocks its thread."""
    release = threading.Event()
    for function in (lambda: release.wait(20), Event_forever()):
        token = Token(function, timeout=0.05)  # type: ignore[arg-type]
        began = time.monotonic()
        with pytest.raises(UnauthenticatedError, match="TimeoutError"):
            await obtain(token)
        assert time.monotonic() - began < 5
    release.set()


class Event_forever:
    async def __call__(self) -> str:
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")


@pytest.mark.anyio
async def test_a_callable_that_cancels_itself_is_a_failure() -> None:
    """An attempt that ends in a cancellation of its own leaves nobody waiting."""

    async def fetch() -> str:
        raise asyncio.CancelledError

    with pytest.raises(UnauthenticatedError, match="cancelled"):
        await asyncio.wait_for(obtain(Token(fetch)), 5)


def test_a_lost_event_loop_does_not_block_the_next_one() -> None:
    """A fetch whose loop was closed under it is begun anew by the next caller, on that one's loop."""
    calls = []

    async def fetch() -> tuple[str, float]:
        calls.append(1)
        if len(calls) == 1:
            await asyncio.Event().wait()
        return SECRET, 3600

    token = Token(fetch)
    loop = asyncio.new_event_loop()
    task = loop.create_task(obtain(token))
    loop.run_until_complete(settle())
    pending = list(asyncio.all_tasks(loop))
    loop.close()
    assert asyncio.run(asyncio.wait_for(obtain(token), 5)) == (("authorization", f"Bearer {SECRET}"),)
    for item in (task, *pending):
        item._log_destroy_pending = False  # type: ignore[attr-defined]  # it is what is tested
        with contextlib.suppress(RuntimeError):
            item.get_coro().close()


def test_threads_and_loops_share_one_fetch() -> None:
    """Callers on several event loops at once make one request, and all get its answer."""
    calls = []
    everybody = threading.Barrier(5)

    def fetch() -> tuple[str, float]:
        calls.append(1)
        everybody.wait(20)
        time.sleep(0.05)
        return SECRET, 3600

    token = Token(fetch)
    found: list[Any] = []

    def use() -> None:
        async def run() -> None:
            waiting = asyncio.create_task(obtain(token))
            await settle()
            await asyncio.get_running_loop().run_in_executor(None, everybody.wait, 20)
            found.append(await waiting)

        asyncio.run(run())

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == [(("authorization", f"Bearer {SECRET}"),)] * 4
    assert len(calls) == 1


@pytest.mark.anyio
async def test_nothing_is_left_behind() -> None:
    """After a thousand cancelled callers there is no task, and the token is there."""
    issuer = Issuer(3600)
    issuer.gate.clear()
    token = Token(issuer)
    before = asyncio.all_tasks()
    for _ in range(1000):
        caller = asyncio.create_task(obtain(token))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
    issuer.gate.set()
    assert await obtain(token) == bearer(1)
    await settle()
    assert asyncio.all_tasks() == before
    assert issuer.asked == 1


@given(data=st.data())
def test_any_life_of_a_token(data: st.DataObject) -> None:
    """Whatever the issuer and the clock do: an expired token is never sent, a valid one never withheld."""

    async def live() -> None:
        clock, issuer = Clock(), Issuer()
        token = Token(issuer, clock=clock)
        ends: dict[str, float] = {}
        for _ in range(data.draw(st.integers(1, 12))):
            issuer.lifetime = data.draw(st.sampled_from([1, 30, 100, 3600]))
            issuer.error = data.draw(st.sampled_from([None, None, OSError()]))
            began, asked = clock.now, issuer.asked
            try:
                pairs: Any = await obtain(token)
            except UnauthenticatedError:
                pairs = None
            await settle()
            if issuer.asked > asked and issuer.error is None:
                ends[f"Bearer {SECRET}-{issuer.asked}"] = began + issuer.lifetime
            if pairs is None:
                assert all(end - min(5, 0.1 * 3600) <= clock.now for end in ends.values())
            else:
                assert ends[pairs[0][1]] > clock.now
            clock.now += data.draw(st.sampled_from([0.1, 1, 20, 60, 95, 4000]))

    asyncio.run(live())


# ---------------------------------------------------------------------------------------------- other schemes


class Signed(Credentials):
    """A company's scheme, in ten lines."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def metadata(self) -> tuple[tuple[str, str], ...]:
        signature = hmac.digest(self._secret, b"now", "sha256")
        return (("x-time", "now"), ("x-signature", signature.hex()))


class Fetched(CachedCredentials):
    """A scheme that has to fetch more than a token."""

    async def fetch(self) -> tuple[tuple[tuple[str, str], ...], float]:
        return (("x-user", "joe"), ("x-session", SECRET)), 60.0


class Empty(Credentials):
    """A scheme that never has anything."""

    def metadata(self) -> None:
        return None


@pytest.mark.anyio
async def test_schemes_of_ones_own() -> None:
    """One method makes a scheme; another base class adds fetching; one that fails says so."""
    assert (await obtain(Signed(b"key")))[0] == ("x-time", "now")
    assert await obtain(Fetched()) == (("x-user", "joe"), ("x-session", SECRET))
    with pytest.raises(UnauthenticatedError, match="<Empty> has nothing to send"):
        await obtain(Empty())


@pytest.mark.anyio
async def test_combined_credentials() -> None:
    """Parts go out in order, as one tuple while none changes; a refusal reaches every part."""
    clock, issuer = Clock(), Issuer(3600)
    token = Token(issuer, clock=clock)
    both = Combined(token, APIKey("key"))
    assert both.metadata() is None
    first = await obtain(both)
    assert first == (*bearer(1), ("x-api-key", "key"))
    assert both.metadata() is first
    clock.now += 10
    assert both.invalidate(first) is True
    second = await obtain(both)
    assert second == (*bearer(2), ("x-api-key", "key"))
    assert both.invalidate(first) is True
    assert both.metadata() is second
    fixed = Combined(APIKey("key"), Headers({"x-tenant": "a"}))
    assert fixed.invalidate(fixed.metadata() or ()) is False
    with pytest.raises(ValueError, match="needs credentials"):
        Combined()


class Google:
    """What google-auth's credentials look like from outside."""

    def __init__(self) -> None:
        self.refreshed: list[Any] = []
        self.valid = False
        self.expiry: datetime.datetime | None = None

    def refresh(self, request: Any) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.refreshed.append(request)
        self.valid = True
        self.expiry = (datetime.datetime.now(UTC) + datetime.timedelta(hours=1)).replace(tzinfo=None)

    def apply(self, headers: dict[str, str]) -> None:
        headers["Authorization"] = f"Bearer {SECRET}-{len(self.refreshed)}"
        headers["x-goog-user-project"] = "p"


@pytest.mark.anyio
async def test_google_auth_credentials() -> None:
    """They are applied, in lower case, kept until their (naive, UTC) expiry, and renewed in a thread."""
    inner = Google()
    credentials = google_auth(inner, request="request")
    pairs = await obtain(credentials)
    assert pairs == (*bearer(1), ("x-goog-user-project", "p"))
    assert credentials.metadata() is pairs
    assert inner.refreshed == ["request"]
    assert "valid for 359" in repr(credentials)
    assert credentials.invalidate(pairs)
    assert (await obtain(credentials))[0] == bearer(2)[0]
    ready = Google()
    ready.valid = True
    assert (await obtain(google_auth(ready, request="r")))[0] == bearer(0)[0]
    assert ready.refreshed == []


def test_google_auth_wants_its_own_credentials() -> None:
    """Another object is refused, and the usual slip is named."""
    with pytest.raises(TypeError, match=r"got tuple; google.auth.default\(\) gives a pair"):
        google_auth((Google(), "project"))
    with pytest.raises(TypeError, match="got str$"):
        google_auth("x")


def test_google_auth_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where google-auth is missing the error says what to install."""
    import sys

    monkeypatch.setitem(sys.modules, "google.auth.transport.requests", None)
    with pytest.raises(ImportError, match=r"aioserving\[google\]"):
        google_auth(Google())


@pytest.mark.anyio
async def test_real_google_auth_credentials() -> None:
    """The library's own class for a given token works unchanged."""
    module = pytest.importorskip("google.oauth2.credentials", reason="google-auth is not installed")
    credentials = google_auth(module.Credentials(SECRET), request=object())
    assert await obtain(credentials) == (("authorization", f"Bearer {SECRET}"),)


# ------------------------------------------------------------------------------------------------ not shown


def every_kind() -> list[Credentials]:
    return [
        StaticToken(SECRET),
        APIKey(SECRET),
        Headers({"x-secret": SECRET}),
        Token(functools.partial(str, SECRET)),
        Token(lambda: SECRET),
        Combined(StaticToken(SECRET), APIKey(SECRET)),
        Signed(SECRET.encode()),
        Fetched(),
    ]


@pytest.mark.anyio
async def test_no_repr_shows_a_secret() -> None:
    """Before and after a token is there, reprs tell its state and nothing of it."""
    for credentials in every_kind():
        for _ in range(2):
            assert SECRET not in f"{credentials!r} {credentials}"
            assert type(credentials).__name__ in repr(credentials)
            await obtain(credentials)
    clock = Clock()
    token = Token(Issuer(3600), clock=clock)
    assert repr(token) == "<Token of Issuer: nothing valid>"
    await obtain(token)
    assert repr(token) == "<Token of Issuer: valid for 3595 s>"
    assert repr(StaticToken(SECRET)) == "<StaticToken authorization>"
    assert repr(Headers({"x-a": "1", "x-b": "2"})) == "<Headers x-a, x-b>"


def test_plaintext_is_refused_unless_allowed() -> None:
    """Every kind is refused without TLS, by an error that says what to do, unless it was told to be sent."""
    for credentials in every_kind():
        with pytest.raises(
            ValueError, match=r"in plain text.*tls=TLS\(...\).*allow_plaintext=True"
        ) as caught:
            check_plaintext(credentials, secure=False)
        assert SECRET not in str(caught.value)
        check_plaintext(credentials, secure=True)
    check_plaintext(None, secure=False)
    allowed: list[Credentials] = [
        StaticToken(SECRET, allow_plaintext=True),
        APIKey(SECRET, allow_plaintext=True),
        Headers({"x": SECRET}, allow_plaintext=True),
        Token(lambda: SECRET, allow_plaintext=True),
        Fetched(allow_plaintext=True),
        google_auth(Google(), request="r", allow_plaintext=True),
    ]
    for credentials in (*allowed, Combined(*allowed)):
        check_plaintext(credentials, secure=False)
    with pytest.raises(ValueError, match="Combined"):
        check_plaintext(Combined(*allowed, StaticToken(SECRET)), secure=False)


def test_wrong_arguments() -> None:
    """Settings are checked where they are given."""
    with pytest.raises(TypeError, match=r"got str; a fixed token is StaticToken\(token\)"):
        Token(SECRET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="early must be"):
        Token(lambda: SECRET, early=-1)
    with pytest.raises(ValueError, match="timeout must be"):
        Token(lambda: SECRET, timeout=math.nan)
    with pytest.raises(ValueError, match="names are lower-case"):
        Token(lambda: SECRET, header="Authorization")
    with pytest.raises(ValueError, match="names are lower-case"):
        APIKey(SECRET, "X-Key")


# ------------------------------------------------------------------------------------------------------- TLS

trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

AUTHORITY = trustme.CA()
OTHER_AUTHORITY = trustme.CA()
CA: bytes = AUTHORITY.cert_pem.bytes()


def issued(*names: str, by: Any = AUTHORITY, **options: Any) -> tuple[bytes, bytes]:
    """A key, and a certificate with its chain."""
    made = by.issue_cert(*names, **options)
    return made.private_key_pem.bytes(), b"".join(item.bytes() for item in made.cert_chain_pems)


SERVER = issued("models.example.org", "127.0.0.1", "localhost")
CLIENT = issued("client@example.org")


def put(folder: Path, name: str, content: bytes) -> Path:
    """A file that appears whole, and with another time than the one before."""
    partial = folder / f"{name}.partial"
    partial.write_bytes(content)
    os.replace(partial, folder / name)
    return folder / name


async def _echo(request: bytes, context: Any) -> bytes:
    return request


@contextlib.asynccontextmanager
async def served(
    key_and_certificate: tuple[bytes, bytes] | None = SERVER,
    client_ca: bytes | None = None,
    address: str = "127.0.0.1:0",
) -> Any:
    """The target of a server that says back what it is told."""
    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(_echo)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("S", handlers),))
    if key_and_certificate is None:
        port = server.add_insecure_port(address)
    else:
        credentials = grpc.ssl_server_credentials([key_and_certificate], client_ca, client_ca is not None)
        port = server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield address if address.startswith("unix:") else f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


async def outcome(target: str, tls: TLS | None) -> str:
    """``"ok"``, or our advice and gRPC's words about a failed connection."""
    options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        channel = grpc.aio.insecure_channel(target, options)
    else:
        credentials, more, _ = tls.current(target)
        channel = grpc.aio.secure_channel(target, credentials, [*options, *more])
    async with channel:
        stub: Any = channel.unary_unary("/S/Echo")
        try:
            assert await stub(b"x", timeout=10) == b"x"
        except grpc.aio.AioRpcError as error:
            details = error.details() or ""
            return f"{connection_advice(details, tls) or '(no advice)'} | {details}"
    return "ok"


@pytest.mark.anyio
async def test_tls_and_its_failures() -> None:
    """The authority's own are let in; each other case fails with advice that says what is wrong."""
    now = datetime.datetime.now(UTC)
    day = datetime.timedelta(days=1)
    expired = issued("127.0.0.1", not_before=now - 2 * day, not_after=now - day)
    early = issued("127.0.0.1", not_before=now + day, not_after=now + 2 * day)
    async with served() as target:
        assert await outcome(target, TLS(CA)) == "ok"
        assert await outcome(target, TLS(CA, server_name="models.example.org")) == "ok"
        wrong = await outcome(target, TLS(CA, server_name="elsewhere.org"))
        assert wrong.startswith("the server's certificate is not for the name in the target")
        for tls in (TLS(), TLS(OTHER_AUTHORITY.cert_pem.bytes())):
            strange = await outcome(target, tls)
            assert strange.startswith("the server's certificate is not from an authority that this client tr")
        assert "perhaps it speaks TLS only" in await outcome(target, None)
    async with served(expired) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server's certificate has expired")
    async with served(early) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server's certificate is not valid yet")
    async with served(None) as target:
        assert (await outcome(target, TLS(CA))).startswith("the server does not speak TLS on this port")


@pytest.mark.anyio
async def test_mutual_tls() -> None:
    """A client certificate of the right authority is let in; none, or another one, is not."""
    key, certificate = CLIENT
    async with served(client_ca=CA) as target:
        assert await outcome(target, TLS(CA, certificate, key)) == "ok"
        assert await outcome(target, TLS(CA, certificate + key)) == "ok"
        assert "perhaps it wants a client certificate" in await outcome(target, TLS(CA))
        key, certificate = issued("stranger@example.org", by=OTHER_AUTHORITY)
        refused = await outcome(target, TLS(CA, certificate, key))
        assert "does not accept the client's certificate" in refused


@pytest.mark.anyio
async def test_unix_sockets_are_localhost(tmp_path: Path) -> None:
    """A socket has no name, so the certificate is to be for localhost, or for the name that is given."""
    async with served(address=f"unix:{tmp_path}/s") as target:
        assert await outcome(target, TLS(CA)) == "ok"
        assert await outcome(target, TLS(CA, server_name="models.example.org")) == "ok"
        assert "not for the name" in await outcome(target, TLS(CA, server_name="elsewhere.org"))
    assert TLS(CA).current("127.0.0.1:80")[1] == []


@pytest.mark.anyio
async def test_the_systems_authorities_are_those_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a `ca`, what the system's list has is trusted, as other programs do."""
    monkeypatch.delenv("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(put(tmp_path, "ca.pem", CA)))
    async with served() as target:
        assert await outcome(target, TLS()) == "ok"


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"ca": "/nowhere/ca.pem"}, FileNotFoundError, "ca: No such file .*'/nowhere/ca.pem'"),
        ({"ca": b"junk"}, ValueError, "^ca: the PEM text given is not PEM"),
        ({"ca": SERVER[0]}, ValueError, "^ca: expected a certificate, found EC PRIVATE KEY"),
        ({"ca": 3}, TypeError, "^ca: expected PEM contents or a path, got int"),
        ({"key": CLIENT[0]}, ValueError, "^key: a private key needs the certificate"),
        ({"certificate": CLIENT[1]}, ValueError, "^certificate: it needs the private key.*give key="),
        (
            {"certificate": CLIENT[1], "key": CLIENT[1]},
            ValueError,
            "^key: expected a private key, found CERT",
        ),
        (
            {"certificate": CLIENT[1], "key": SERVER[0]},
            ValueError,
            "^certificate and key: the key does not belong",
        ),
        (
            {"certificate": CLIENT[1], "key": CLIENT[0].replace(b"EC PRIVATE", b"ENCRYPTED PRIVATE")},
            ValueError,
            "^key: the private key is encrypted",
        ),
        ({"reload": -1}, ValueError, "^reload must be a number of seconds"),
        ({"server_name": "https://x"}, ValueError, "^server_name is a host name without a port"),
        ({"server_name": "x:443"}, ValueError, "^server_name is a host name without a port"),
        ({"server_name": ""}, ValueError, "^server_name is a host name without a port"),
    ],
)
def test_wrong_tls_arguments(arguments: dict[str, Any], error: type[Exception], reason: str) -> None:
    """Whatever could only fail later is refused at once, by the argument's name."""
    with pytest.raises(error, match=reason):
        TLS(**arguments)


def test_current_is_cheap_and_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks no file is touched, and the credentials stay the same object."""
    clock = Clock()
    tls = TLS(put(tmp_path, "ca.pem", CA), reload=1.0, clock=clock)
    looks: list[Any] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda *a, **k: looks.append(a) or stat(*a, **k))  # type: ignore[func-returns-value]
    first = tls.current("x")
    for _ in range(100):
        clock.now += 0.009
        again = tls.current("x")
        assert again[0] is first[0]
        assert again[2] == tls.generation == 1
    assert looks == []
    clock.now += 0.2
    assert tls.generation == 1
    assert len(looks) == 1


@pytest.mark.anyio
async def test_changed_files_make_a_new_generation(tmp_path: Path) -> None:
    """A rotated certificate is used for new connections within `reload`; half a rotation changes nothing."""
    clock = Clock()
    key, certificate = CLIENT
    files: dict[str, Any] = {
        "ca": put(tmp_path, "ca.pem", CA),
        "certificate": put(tmp_path, "cert.pem", certificate),
        "key": put(tmp_path, "key.pem", key),
    }
    tls = TLS(**files, reload=1.0, clock=clock)
    new_key, new_certificate = issued("client2@example.org", by=OTHER_AUTHORITY)
    async with served(client_ca=OTHER_AUTHORITY.cert_pem.bytes()) as target:
        assert await outcome(target, tls) != "ok"
        old = tls.current()
        put(tmp_path, "cert.pem", new_certificate)
        clock.now += 2
        assert tls.current()[2] == 1  # the key does not belong to it
        assert tls.current()[0] is old[0]
        put(tmp_path, "key.pem", new_key)
        assert tls.current()[2] == 1  # nobody looked yet
        clock.now += 2
        assert tls.current()[2] == 2
        assert tls.current()[0] is not old[0]
        assert await outcome(target, tls) == "ok"
    assert repr(tls).endswith("generation 2>")


@pytest.mark.parametrize("trouble", ["gone", "junk"])
def test_files_in_trouble_change_nothing(
    tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that vanished or became garbage is told in the log, once, until it is good again."""
    clock = Clock()
    path = put(tmp_path, "ca.pem", CA)
    tls = TLS(path, reload=1.0, clock=clock)
    if trouble == "gone":
        path.unlink()
    else:
        put(tmp_path, "ca.pem", b"junk")
    with caplog.at_level(logging.INFO):
        for _ in range(5):
            clock.now += 2
            assert tls.generation == 1
        assert len(caplog.records) == 1
        assert "goes on with what it has: " in caplog.text
        put(tmp_path, "ca.pem", CA)
        clock.now += 2
        assert tls.generation == 1  # the same contents as before
        put(tmp_path, "ca.pem", CA + OTHER_AUTHORITY.cert_pem.bytes())
        clock.now += 2
        assert tls.generation == 2


def test_links_that_move_are_changes(tmp_path: Path) -> None:
    """Kubernetes rotates by moving a link to a folder; that is noticed."""
    clock = Clock()
    for name, content in (("1", CA), ("2", OTHER_AUTHORITY.cert_pem.bytes())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "ca.pem").write_bytes(content)
    (tmp_path / "data").symlink_to(tmp_path / "1")
    tls = TLS(tmp_path / "data" / "ca.pem", clock=clock)
    (tmp_path / "new").symlink_to(tmp_path / "2")
    os.replace(tmp_path / "new", tmp_path / "data")
    clock.now += 2
    assert tls.generation == 2


def test_without_reload_or_files_nothing_is_looked_at(tmp_path: Path) -> None:
    """Contents given as text, or reload=None, stay for ever."""
    clock = Clock()
    path = put(tmp_path, "ca.pem", CA)
    fixed = [TLS(path, reload=None, clock=clock), TLS(CA, clock=clock), TLS(clock=clock)]
    put(tmp_path, "ca.pem", OTHER_AUTHORITY.cert_pem.bytes())
    clock.now += 1e6
    assert [tls.generation for tls in fixed] == [1, 1, 1]


def test_tls_reprs_show_paths_and_no_contents(tmp_path: Path) -> None:
    """A repr says what is trusted and who one is, never a key."""
    key, certificate = CLIENT
    path = put(tmp_path, "ca.pem", CA)
    tls = TLS(path, certificate, key, server_name="x.org")
    assert repr(tls) == f"<TLS trusting {path}, certificate the PEM text given, for x.org, generation 1>"
    assert repr(TLS()) == "<TLS trusting the system's authorities, generation 1>"
    secret = key.decode().splitlines()[1]
    assert secret not in f"{tls!r} {tls._generation!r} {tls.current()!r}"


def test_advice_is_only_given_where_it_fits() -> None:
    """Failures that have nothing to do with TLS get none."""
    assert connection_advice("connect: Connection refused", TLS(CA)) == ""
    assert connection_advice("CERTIFICATE_VERIFY_FAILED", None) == ""


def test_the_way_of_every_call_is_short() -> None:
    """With a valid token, metadata costs a clock and a comparison: no more than a few times an empty call."""

    def empty() -> None:
        return None

    token = Token(lambda: SECRET)
    asyncio.run(token.refresh())
    for function in (token.metadata, empty):
        function()

    def best(function: Callable[[], Any]) -> float:
        times = []
        for _ in range(7):
            began = time.perf_counter()
            for _ in range(10_000):
                function()
            times.append(time.perf_counter() - began)
        return min(times)

    assert best(token.metadata) < 15 * best(empty)
