"""`Client`: every method of `AsyncClient` without asyncio, from threads, notebooks and scripts."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import inspect
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from aioserving import (
    AsyncClient,
    BlockingModel,
    Client,
    ClientClosedError,
    DeadlineExceededError,
    ForkError,
    Model,
    ModelConfig,
    ModelNotFoundError,
    UnavailableError,
    shared_loop,
)
from aioserving.testing import CallableServable, ModelServer

from .models import digits, graded, many_signatures
from .test_transport import free_port

IMAGES = np.ones((3, 784), np.float32)


def sleepy() -> CallableServable:
    def run(seconds: Any) -> Any:
        time.sleep(float(seconds))
        return seconds

    return CallableServable(run, inputs={"seconds": ("float32", ())}, outputs={"slept": ("float32", ())})


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    models = {"digits": {1: digits(1), 2: digits(2)}, "many": many_signatures(), "sleepy": sleepy()}
    models["graded"] = graded()
    with ModelServer(models) as running:
        yield running


@pytest.fixture
def client(server: Any) -> Iterator[Client]:
    with Client(server.target) as open_client:
        yield open_client


def public_methods(kind: type) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("_") and (callable(value) or isinstance(value, property))
    }


@pytest.mark.parametrize(("blocking_kind", "async_kind"), [(Client, AsyncClient), (BlockingModel, Model)])
def test_parity(blocking_kind: type, async_kind: type) -> None:
    """Same methods, same arguments and defaults, same results, same docstrings."""
    ours, theirs = public_methods(blocking_kind), public_methods(async_kind)
    renamed = {"aclose": "close"}
    assert {renamed.get(name, name) for name in theirs} == set(ours)
    for name, function in theirs.items():
        counterpart = ours[renamed.get(name, name)]
        if isinstance(function, property):
            assert inspect.getdoc(counterpart) == inspect.getdoc(function)
            continue
        expected, actual = inspect.signature(function), inspect.signature(counterpart)
        assert list(actual.parameters.values()) == list(expected.parameters.values()), name
        result = str(expected.return_annotation)
        blocking = {
            "Model": "BlockingModel",
            "BatchedModel": "BlockingBatchedModel",
            "Scoring": "BlockingScoring",
        }
        assert str(actual.return_annotation) == blocking.get(result, result), name
        if name != "aclose":
            assert inspect.getdoc(counterpart) == inspect.getdoc(function), name
            assert inspect.getdoc(function)


def test_the_constructors_are_the_same() -> None:
    """What configures one client configures the other."""
    assert inspect.signature(Client) == inspect.signature(AsyncClient)


def test_every_method(client: Client, server: Any) -> None:
    """Predict, metadata, status, waiting, reload and handles work as on the asynchronous client."""
    result = client.predict("digits", {"images": IMAGES})
    assert result["scores"].tolist() == [784.0] * 3
    assert result.model_spec.version == 2
    assert client.predict("digits", IMAGES, version=1)["version"] == 1
    assert client.get_model_metadata("digits").signatures["serving_default"].inputs["images"].shape == (
        -1,
        784,
    )
    assert [status.version for status in client.get_model_status("digits")] == [2, 1]
    assert client.wait_until_available("digits", version=1, timeout=5).version == 1
    model = client.model("digits", version=1)
    assert model.name == "digits"
    assert model.predict(IMAGES)["version"] == 1
    assert model.get_model_metadata().version == 1
    assert model.get_model_status().available
    assert model.wait_until_available(timeout=5).version == 1
    assert repr(model).startswith("<BlockingModel over <Model 'digits', version=1")
    with pytest.raises(ModelNotFoundError):
        client.predict("nobody", IMAGES)
    names = ("digits", "many", "sleepy", "graded")
    client.reload_config(
        [
            ModelConfig(name=name, base_path=f"/callable/{name}", model_version_policy={"all": True})
            for name in names
        ]
    )
    assert client.stats().in_flight == 0
    assert repr(client).startswith("<Client over <AsyncClient of 127.0.0.1")


def test_classify_regress_and_multi_inference(client: Client) -> None:
    """The calls that take examples do what the asyncio client's do, for the client and for a handle."""
    examples = [{"x": 2.0}]
    tasks = [("regress", "regress"), ("classify", "classify")]
    assert client.classify("graded", examples, signature_name="classify")[0].label == "high"
    assert client.regress("graded", examples, signature_name="regress").values.tolist() == [3.0]
    assert client.multi_inference("graded", tasks, examples)[0][0] == 3.0
    assert client.model("graded", signature_name="classify").classify(examples)[0].score == 2.0
    model = client.model("graded", signature_name="regress")
    assert model.regress(examples)[0] == 3.0
    assert len(model.multi_inference(tasks, examples)) == 2


def test_many_threads_share_a_client(client: Client) -> None:
    """Calls from 16 threads at once all get their own answers."""

    def work(number: int) -> None:
        for step in range(20):
            value = float(number * 100 + step)
            result = client.predict("many", {"a": [value], "b": [1.0]})
            assert result["sum"].tolist() == [value + 1]

    with concurrent.futures.ThreadPoolExecutor(16) as threads:
        list(threads.map(work, range(16)))
    assert client.stats().in_flight == 0


def test_it_works_where_a_loop_is_running(client: Client) -> None:
    """As in a notebook: the caller's own loop is not touched."""

    async def cell() -> float:
        return float(client.predict("digits", IMAGES)["scores"][0])

    assert asyncio.run(cell()) == 784.0


def test_all_clients_share_one_loop(server: Any) -> None:
    """Any number of clients need one thread, which ends with the last of them."""
    before = threading.active_count()
    clients = [Client(server.target) for _ in range(5)]
    for client in clients:
        client.predict("digits", IMAGES)
    assert len({client._loop_thread for client in clients}) == 1
    assert threading.active_count() <= before + 2
    for client in clients:
        client.close()
    assert threading.active_count() <= before


def test_deadlines(client: Client) -> None:
    """A call ends with its timeout and leaves the client usable."""
    client.predict("sleepy", 0.0)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.predict("sleepy", 3.0, timeout=0.1)
    assert time.monotonic() - begun < 2
    assert client.predict("digits", IMAGES)["version"] == 2


def test_a_client_made_at_import_and_never_entered(server: Any) -> None:
    """`with` is not needed; the first call connects."""
    client = Client(server.target)
    assert "not connected" in repr(client)
    assert client.predict("digits", IMAGES)["version"] == 2
    client.close()
    client.close()
    with pytest.raises(ClientClosedError):
        client.predict("digits", IMAGES)
    with pytest.raises(ClientClosedError), client:
        pass


def test_closing_under_a_running_call(server: Any) -> None:
    """With a grace of nothing, the waiting thread gets ClientClosedError."""
    client = Client(server.target)
    client.predict("sleepy", 0.0)
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            client.predict("sleepy", 2.0)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not client.stats().in_flight:
        time.sleep(0.001)
    client.close(grace=0.01)
    thread.join(10)
    assert [type(failure) for failure in failures] == [ClientClosedError]


def test_an_unclosed_client_warns(server: Any) -> None:
    """One ResourceWarning, which names the client."""
    client = Client(server.target)
    client.predict("digits", IMAGES)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del client
        gc.collect()
        # The loop's thread lets go of the channels; a call of another client comes after that.
        with Client(server.target) as other:
            other.predict("digits", IMAGES)
        assert repr(shared_loop._shared_loop) == "<_SharedLoop with 0 users, stopped>"
    assert [str(item.message)[:24] for item in caught if item.category is ResourceWarning] == [
        "unclosed <Client over <A"
    ]


def run_script(
    code: str, *arguments: str, interrupt_at: str | None = None
) -> subprocess.CompletedProcess[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    head = ""
    if interrupt_at is not None:
        for line in process.stdout:
            head += line
            if interrupt_at in line:
                break
        process.send_signal(signal.SIGINT)
    try:
        out, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the script hung: {head + out}\n{err}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, head + out, err)


def test_ctrl_c_stops_the_call(server: Any) -> None:
    """The call is cancelled, not left running, and the client goes on."""
    done = run_script(
        """
        import sys, threading, time
        from aioserving import Client
        with Client(sys.argv[1]) as client:
            client.predict("sleepy", 0.0)
            def announce():
                while not client.stats().in_flight:
                    time.sleep(0.001)
                print("waiting")
            threading.Thread(target=announce).start()
            begun = time.monotonic()
            try:
                client.predict("sleepy", 20.0)
            except KeyboardInterrupt:
                assert time.monotonic() - begun < 10
                client.predict("sleepy", 0.0)
                for _ in range(1000):
                    if not client.stats().in_flight:
                        break
                    time.sleep(0.01)
                print("in flight:", client.stats().in_flight)
        """,
        server.target,
        interrupt_at="waiting",
    )
    assert done.returncode == 0, done.stderr
    assert "in flight: 0" in done.stdout


def test_a_script_that_never_closes_ends(server: Any) -> None:
    """The interpreter exits promptly, with an open client and a call done, with a warning at most."""
    done = run_script(
        """
        import sys
        from aioserving import Client
        client = Client(sys.argv[1])
        print(client.predict("digits", [[1.0] * 784])["scores"].tolist())
        """,
        server.target,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[784.0]"
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_is_refused(server: Any) -> None:
    """A client that was connected before the fork, and a new one, give ForkError instead of a hang."""
    done = run_script(
        """
        import os, sys, warnings
        warnings.simplefilter("ignore")
        from aioserving import Client, ForkError
        images = [[1.0] * 784]
        client = Client(sys.argv[1])
        client.predict("digits", images)
        child = os.fork()
        if child == 0:
            for each in (client, Client(sys.argv[1])):
                try:
                    each.predict("digits", images)
                except ForkError:
                    continue
                os._exit(1)
            client.close()
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        print(client.predict("digits", images)["scores"].tolist())
        client.close()
        """,
        server.target,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[784.0]"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_fork_before_connecting_is_fine(server: Any) -> None:
    """Made before, closed before, or connected in the children only: multiprocessing's fork works."""
    done = run_script(
        """
        import multiprocessing, sys, warnings
        warnings.simplefilter("ignore")
        from aioserving import Client
        early = Client(sys.argv[1])
        with Client(sys.argv[1]) as closed_again:
            closed_again.predict("digits", [[1.0] * 784])
        def work(number):
            with Client(sys.argv[1]) as client:
                client.predict("digits", [[1.0] * 784])
            return early.predict("digits", [[float(number)] * 784])["scores"].item()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(pool.map(work, range(4)))
        """,
        server.target,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.0, 784.0, 1568.0, 2352.0]"


def test_an_unreachable_host() -> None:
    """Errors come through as they are, with the traceback of the calling thread."""
    with Client(f"127.0.0.1:{free_port()}") as client, pytest.raises(UnavailableError):
        client.predict("digits", IMAGES)


def test_fork_error_is_exported() -> None:
    """What a forked child gets can be caught by name."""
    assert issubclass(ForkError, RuntimeError)
