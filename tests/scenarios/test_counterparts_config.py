"""Counterparts of the real server's own tests of configurations: our client, the server's process.

`tests/README.md` has the table of which of their tests is which of ours. Configuration files and their
polling, channel arguments, reloads, labels, policies and states do not depend on what a model computes:
the models here are callables, so that these tests run without TensorFlow too.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest

from aioserving import (
    Client,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    ModelNotFoundError,
    State,
    UnknownError,
    VersionNotFoundError,
)
from aioserving.messages import ModelConfig, ModelServerConfig, ModelType
from aioserving.testing.process import ServerProcess
from tests.scenarios.polling import eventually, rewrite

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lets the process find the models of these tests, whatever folder pytest was started in.
ENV = {"PYTHONPATH": str(Path(__file__).parents[2])}
CALLABLES = {
    name: f"tests.scenarios.callables:{name}"
    for name in ("half_plus_two", "half_plus_three", "two_versions", "many_versions", "flawed")
}
#: Background work at a pace for tests; the real server's, a second and 100 ms, can in part be set.
PACE: dict[str, Any] = {"file_system_poll_wait_seconds": 0.05, "testing_manage_state_interval_ms": 5}


def config(name: str, model: str, **fields: Any) -> ModelConfig:
    """`model` under a `name` that no other test uses, so that tests share a server and no states."""
    fields = {"base_path": f"/callable/{model}", "model_platform": "tensorflow", **fields}
    return ModelConfig(name=name, **fields)


def text(*configs: ModelConfig) -> str:
    return ModelServerConfig(model_config_list=list(configs)).to_text()


ALL: dict[str, Any] = {"model_version_policy": {"all": {}}}


@pytest.fixture(scope="module")
def process() -> Iterator[ServerProcess]:
    with ServerProcess(callables=CALLABLES, env=ENV, **PACE) as running:
        yield running


@pytest.fixture(scope="module")
def client(process: ServerProcess) -> Iterator[Client]:
    with Client(process.target) as connected:
        yield connected


def reload(client: Client, configs: list[ModelConfig] | ModelServerConfig, **arguments: Any) -> None:
    """Reload without the client's own checks: what these tests ask is what the server says."""
    client.reload_config(configs, check=False, **arguments)


def predict(client: Client, model: str, **which: Any) -> float:
    """What a model makes of 2, asked without the client's own checks."""
    (value,) = client.predict(model, {"x": np.array([2.0], np.float32)}, validate=False, **which)["y"]
    return float(value)


def states(client: Client, model: str) -> dict[int, str]:
    return {item.version: item.state.name for item in client.get_model_status(model)}


def available(client: Client, model: str) -> list[int]:
    return [item.version for item in client.get_model_status(model).available]


# tensorflow_model_server_test.py


def serving(path: Path, *, poll: float) -> ServerProcess:
    return ServerProcess(
        callables=CALLABLES,
        env=ENV,
        model_config_file=str(path),
        model_config_file_poll_wait_seconds=poll,
        **PACE,
    )


def test_model_config_reload(tmp_path: Path) -> None:
    """A server that polls its config file swaps models within 10 s; one with period 0 never looks again."""
    path = tmp_path / "models.config"
    rewrite(path, text(config("first", "half_plus_two")))
    with (
        serving(path, poll=1) as polling,
        serving(path, poll=0) as still,
        Client(polling.target) as client,
        Client(still.target) as still_client,
    ):
        assert predict(client, "first") == predict(still_client, "first") == 3.0
        for name, model, expected in (
            ("second", "half_plus_three", 4.0),
            ("third", "two_versions", 12.0),
        ):
            rewrite(path, text(config(name, model)))
            client.wait_until_available(name, timeout=10)
            assert predict(client, name) == expected
        eventually(lambda: set(states(client, "first").values()) == {"END"})
        with pytest.raises(ModelNotFoundError):
            predict(client, "first")
        # The file was rewritten twice and found twice: whole periods have passed for the other one, too.
        assert predict(still_client, "first") == 3.0
        for name in ("second", "third"):
            with pytest.raises(ModelNotFoundError):
                still_client.get_model_status(name)


def test_bad_config_file_while_polling(tmp_path: Path) -> None:
    """A file that has become malformed is logged and changes nothing; the next good one is applied."""
    path = tmp_path / "models.config"
    rewrite(path, text(config("first", "half_plus_two")))
    with serving(path, poll=0.1) as polling, Client(polling.target) as client:
        rewrite(path, "improper model config file")
        eventually(lambda: "Error parsing text-format tensorflow.serving.ModelServerConfig" in polling.stderr)
        assert predict(client, "first") == 3.0
        rewrite(path, text(config("first", "half_plus_two"), config("second", "half_plus_three")))
        client.wait_until_available("second", timeout=10)


def test_a_reload_is_undone_at_the_next_poll(tmp_path: Path) -> None:
    """The config file is applied every period, changed or not: what a call added goes again."""
    path = tmp_path / "models.config"
    rewrite(path, text(config("first", "half_plus_two")))
    with serving(path, poll=0.2) as polling, Client(polling.target) as client:
        reload(client, [config("first", "half_plus_two"), config("added", "half_plus_three")])
        eventually(lambda: states(client, "added") == {123: "END"})
        assert predict(client, "first") == 3.0


def test_good_grpc_channel_args() -> None:
    """The arguments reach gRPC: a connection ends at its maximum age, and calls go on over a new one."""
    arguments = "grpc.max_connection_age_ms=2000,grpc.lb_policy_name=grpclb"
    with (
        ServerProcess(callables=CALLABLES, env=ENV, grpc_channel_arguments=arguments) as process,
        Client(process.target) as client,
    ):
        server = psutil.Process(process.pid)

        def call() -> set[int]:
            """Predict, and tell the ports that the server's open connections come from."""
            assert predict(client, "half_plus_two") == 3.0
            connections = server.net_connections("tcp")
            return {item.raddr.port for item in connections if item.status == psutil.CONN_ESTABLISHED}

        first = call()
        assert len(first) == 1
        eventually(lambda: first.isdisjoint(call()), within=20)
        assert predict(client, "half_plus_two") == 3.0


# get_model_status_impl_test.cc


def test_status(client: Client) -> None:
    """All versions, the highest first; or the one that is asked for; or NOT_FOUND."""
    reload(client, [config("status", "two_versions", **ALL)])
    eventually(lambda: available(client, "status") == [124, 123])
    assert [item.error for item in client.get_model_status("status")] == [None, None]
    (status,) = client.get_model_status("status", version=123)
    assert (status.version, status.state, status.error) == (123, State.AVAILABLE, None)
    with pytest.raises(VersionNotFoundError, match="Could not find version 125 of model status"):
        client.get_model_status("status", version=125)
    with pytest.raises(ModelNotFoundError, match="Could not find any versions of model nonexistent_model"):
        client.get_model_status("nonexistent_model")


# server_core_test.cc


def test_reload_waits_for_new_models(client: Client) -> None:
    """When a reload returns, the models that it added can be called."""
    for round_ in range(5):
        reload(client, [config(f"new {round_}", "half_plus_two")])
        assert predict(client, f"new {round_}") == 3.0
        assert states(client, f"new {round_}") == {123: "AVAILABLE"}


def test_reload_waits_as_long_as_it_takes(client: Client, tmp_path: Path) -> None:
    """Until the base path of a new model exists, a reload waits, though its caller may not."""
    process_config = [config("waits", "half_plus_two", base_path=str(tmp_path / "missing"))]
    with ServerProcess(callables=CALLABLES, env=ENV, **PACE) as process, Client(process.target) as own:
        with pytest.raises(DeadlineExceededError):
            reload(own, process_config, timeout=0.3)
        # The lock of the configuration is still held: a reload that could be done at once waits, too.
        with pytest.raises(DeadlineExceededError):
            reload(own, [], timeout=0.3)
        with pytest.raises(ModelNotFoundError):
            own.get_model_status("waits")
    assert client.get_model_status("half_plus_two")


def test_reload_unloads_and_loads_again(client: Client) -> None:
    """A model that is left out ends, without the reload waiting for it; named again, it is served again."""
    reload(client, [config("again", "half_plus_two")])
    reload(client, [])
    eventually(lambda: states(client, "again") == {123: "END"})
    with pytest.raises(ModelNotFoundError, match=r"Latest\(again\)"):
        predict(client, "again")
    assert client.get_model_status("again")[0].error is None
    reload(client, [config("again", "half_plus_two")])
    assert predict(client, "again") == 3.0


def test_reload_changes_the_base_path(client: Client) -> None:
    """Another base path brings its versions; one that both paths have stays loaded from the old one."""
    reload(client, [config("moves", "half_plus_two")])
    reload(client, [config("moves", "two_versions")])
    eventually(lambda: states(client, "moves") == {124: "AVAILABLE", 123: "END"})
    assert predict(client, "moves") == 12.0
    reload(client, [config("moves", "half_plus_two")])
    eventually(lambda: states(client, "moves") == {124: "END", 123: "AVAILABLE"})
    assert predict(client, "moves") == 3.0
    reload(client, [config("moves", "two_versions", **ALL)])
    eventually(lambda: available(client, "moves") == [124, 123])
    assert predict(client, "moves", version=123) == 3.0  # not two_versions' own 11
    assert predict(client, "moves", version=124) == 12.0


def test_models_are_changed_together(client: Client) -> None:
    """A reload adds, keeps and removes; a model that is kept is not unloaded in between."""
    reload(client, [config("goes", "half_plus_two"), config("stays", "half_plus_three")])
    failures: list[Exception] = []
    stop = threading.Event()

    def keep_calling() -> None:
        while not stop.is_set():
            try:
                assert predict(client, "stays") == 4.0
            except Exception as error:
                failures.append(error)

    caller = threading.Thread(target=keep_calling)
    caller.start()
    try:
        reload(client, [config("stays", "half_plus_three"), config("comes", "two_versions")])
        assert predict(client, "comes") == 12.0
        eventually(lambda: states(client, "goes") == {123: "END"})
    finally:
        stop.set()
        caller.join()
    assert failures == []


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            [config("kept", "half_plus_two"), config("kept", "half_plus_two")],
            "Illegal to list model kept multiple times in config list",
        ),
        (
            [config("relative", "", base_path="half_plus_two")],
            "Expected model relative to have an absolute path or URI; got base_path()=half_plus_two",
        ),
        (
            [config("kept", "half_plus_two"), config("mixed", "", base_path="half_plus_two")],
            "Expected model mixed to have an absolute path or URI; got base_path()=half_plus_two",
        ),
        (
            [config("pathless", "", base_path="")],
            "Expected model pathless to have an absolute path or URI; got base_path()=",
        ),
        (
            [config("kept", "half_plus_two", model_platform="other")],
            "Illegal to change a model's platform. For model kept platform was tensorflow and new platform "
            "requested is other",
        ),
        (
            [config("kept", "half_plus_two"), config("odd", "half_plus_two", model_platform="not_known")],
            "Model odd requests unsupported platform not_known",
        ),
    ],
    ids=["duplicate", "relative", "mixed", "empty path", "platform changed", "platform unknown"],
)
def test_illegal_configurations(client: Client, bad: list[ModelConfig], message: str) -> None:
    """An illegal list is refused, the models before it go on serving, and a legal list is accepted again."""
    good = [config("kept", "half_plus_two")]
    reload(client, good)
    with pytest.raises(InvalidArgumentError) as caught:
        reload(client, bad)
    assert message in str(caught.value)
    assert predict(client, "kept") == 3.0
    reload(client, good)
    assert predict(client, "kept") == 3.0


def test_illegal_for_good() -> None:
    """After a new model with platform and deprecated type, every reload fails; what is loaded serves on."""
    both = config("both", "half_plus_two", model_type=ModelType.TENSORFLOW)
    with ServerProcess(callables=CALLABLES, env=ENV, **PACE) as process, Client(process.target) as client:
        for bad in ([both], [], [config("good", "half_plus_two")]):
            with pytest.raises(InvalidArgumentError, match=r"Illegal setting both .* model name is both"):
                reload(client, bad)
        assert predict(client, "half_plus_two") == 3.0


def test_deprecated_model_type(client: Client) -> None:
    """The deprecated type TENSORFLOW stands for the platform."""
    deprecated = config("typed", "half_plus_two", model_platform="", model_type=ModelType.TENSORFLOW)
    reload(client, [deprecated])
    assert predict(client, "typed") == 3.0


def test_custom_configuration(client: Client) -> None:
    """A reload takes nothing but a list of models."""
    custom = ModelServerConfig()
    custom.pb.custom_model_config.SetInParent()
    for bad in (custom, ModelServerConfig()):
        with pytest.raises(InvalidArgumentError, match="Only ModelConfigList is currently supported"):
            reload(client, bad)


def test_erroring_model(client: Client) -> None:
    """A model that cannot be loaded fails the reload with its error; the others of it are served."""
    only_bad = {"model_version_policy": {"specific": {"versions": [1]}}}
    configs = [config("bad", "flawed", **only_bad), config("good beside bad", "half_plus_two")]
    with pytest.raises(UnknownError) as caught:
        reload(client, configs)
    assert (
        "1 model(s) did not become available: {{{name: bad version: 1} due to error: DATA_LOSS: broken on "
        "purpose}, }" in str(caught.value)
    )
    assert predict(client, "good beside bad") == 3.0
    (status,) = client.get_model_status("bad")
    assert (status.state, status.error) == (State.END, "DATA_LOSS: broken on purpose")
    # The model is not new any more: the same again is accepted, and nothing has become better.
    reload(client, configs)
    assert states(client, "bad") == {1: "END"}


def labelled(name: str, **labels: int) -> list[ModelConfig]:
    return [config(name, "two_versions", **ALL, version_labels=labels)]


def loaded_in_two_versions(client: Client, name: str) -> None:
    reload(client, labelled(name))
    eventually(lambda: available(client, name) == [124, 123])


def test_versions_and_labels(client: Client) -> None:
    """Without a version the highest is meant; a version or a label means that one; labels can be moved."""
    loaded_in_two_versions(client, "labels")
    assert predict(client, "labels") == 12.0
    assert predict(client, "labels", version=123) == 11.0
    reload(client, labelled("labels", A=123, B=124))
    assert predict(client, "labels", version_label="A") == 11.0
    assert predict(client, "labels", version_label="B") == 12.0
    with pytest.raises(InvalidArgumentError, match="Unrecognized servable version label: nonexistent label"):
        predict(client, "labels", version_label="nonexistent label")
    reload(client, labelled("labels", A=124))
    assert predict(client, "labels", version_label="A") == 12.0
    with pytest.raises(InvalidArgumentError, match="Unrecognized servable version label: B"):
        predict(client, "labels", version_label="B")


def test_label_of_an_unavailable_version(client: Client) -> None:
    """A label on a version that is not available is refused, with everything else of its reload."""
    loaded_in_two_versions(client, "strict")
    reload(client, labelled("strict", A=123))
    with pytest.raises(FailedPreconditionError) as caught:
        reload(client, [*labelled("strict", A=124, nice_try=777), config("extra", "half_plus_two")])
    assert (
        "Request to assign label to version 777 of model strict, which is not currently available for "
        "inference" in str(caught.value)
    )
    assert predict(client, "strict", version_label="A") == 11.0
    with pytest.raises(ModelNotFoundError):
        client.get_model_status("extra")


def test_labels_of_unavailable_versions_allowed() -> None:
    """With the flag, a new label points anywhere, one in use moves to available versions only."""
    with (
        ServerProcess(
            callables=CALLABLES, env=ENV, allow_version_labels_for_unavailable_models=True, **PACE
        ) as process,
        Client(process.target) as client,
    ):
        loaded_in_two_versions(client, "lenient")
        reload(client, labelled("lenient", A=123, B=124, nice_try=777))
        with pytest.raises(VersionNotFoundError, match=r"Specific\(lenient, 777\)"):
            predict(client, "lenient", version_label="nice_try")
        with pytest.raises(FailedPreconditionError, match="not currently available for inference"):
            reload(client, labelled("lenient", A=777))
        assert predict(client, "lenient", version_label="A") == 11.0
        reload(client, labelled("lenient", A=124, nice_try=123))
        assert predict(client, "lenient", version_label="A") == 12.0
        assert predict(client, "lenient", version_label="nice_try") == 11.0


# file_system_storage_path_source_test.cc


@pytest.mark.parametrize(
    ("name", "policy", "expected"),
    [
        ("default", {}, [42]),
        ("latest", {"latest": {}}, [42]),
        ("latest 3", {"latest": {"num_versions": 3}}, [42, 33, 30]),
        ("all", {"all": {}}, [42, 33, 30, 21, 17, 1]),
        ("specific", {"specific": {"versions": [17, 30, 777]}}, [30, 17]),
    ],
)
def test_version_policies(client: Client, name: str, policy: Any, expected: list[int]) -> None:
    """A policy chooses the versions that are served, by number."""
    reload(client, [config(f"policy {name}", "many_versions", model_version_policy=policy)])
    eventually(lambda: available(client, f"policy {name}") == expected)
    assert set(states(client, f"policy {name}")) == set(expected)
    assert predict(client, f"policy {name}") == 1.0 + max(expected)


def test_version_policy_can_be_changed(client: Client) -> None:
    """A new policy loads what it wants and unloads the rest; one that wants nothing leaves nothing."""

    def change(**policy: Any) -> None:
        reload(client, [config("policy changed", "many_versions", model_version_policy=policy)])

    change(latest={"num_versions": 2})
    eventually(lambda: available(client, "policy changed") == [42, 33])
    change(specific={"versions": [17, 33]})
    eventually(lambda: states(client, "policy changed") == {42: "END", 33: "AVAILABLE", 17: "AVAILABLE"})
    assert predict(client, "policy changed") == 34.0
    change(specific={})
    eventually(lambda: set(states(client, "policy changed").values()) == {"END"})
    with pytest.raises(ModelNotFoundError):
        predict(client, "policy changed")
