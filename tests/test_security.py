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
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aioserving import UnauthenticatedError
from aioserving.security import (
    APIKey,
    CachedCredentials,
    Combined,
    Credentials,
    Headers,
    StaticToken,
    Token,
    check_metadata,
    check_plaintext,
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


@pytest.mark.anyio
async def test_a_forked_process_does_not_wait_for_its_parents_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that was under way when the process was forked ends in the parent alone."""
    issuer = Issuer(3600)
    issuer.gate.clear()
    token = Token(issuer)
    parents = asyncio.create_task(obtain(token))
    await settle()
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    childs = asyncio.create_task(obtain(token))
    await settle()
    assert issuer.asked == 2
    issuer.gate.set()
    assert await childs in (bearer(1), bearer(2))
    await parents


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


@settings(deadline=None)
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
                assert not ends or list(ends.values())[-1] - 5 <= clock.now  # the newest is what counts
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
