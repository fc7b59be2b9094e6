"""aioserving.repository.setup_file: what a set-up file may hold, and how what is wrong with it is told."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("yaml", reason="needs the extra `repository`")

from aioserving.repository.policy import All, Label, Latest, Policy, Probe
from aioserving.repository.setup_file import (
    CallerSetup,
    Secret,
    ServerSetup,
    SetupError,
    load_setup,
    read_policy,
    read_setup,
)
from aioserving.security import obtain

MINIMAL = """\
store: s3://models/production
disk: disk
servers:
  a: 127.0.0.1:8500
"""

ENVIRONMENT = {"CI": "t0p-s3cret", "KEY": "blob-k3y"}


def problems(content: str, syntax: Any = "yaml", **options: Any) -> list[str]:
    """What is wrong with a file, as it is told."""
    with pytest.raises(SetupError) as caught:
        read_setup(content, syntax, environment=ENVIRONMENT, **options)
    for secret in ENVIRONMENT.values():
        assert secret not in str(caught.value)
    return list(map(str, caught.value.problems))


def test_the_least(tmp_path: Path) -> None:
    """Three things have to be said; relative paths start at the file, and the rest is as documented."""
    file = tmp_path / "set-up.yaml"
    file.write_text(MINIMAL)
    setup = load_setup(file)
    assert setup.store.url == "s3://models/production"
    assert setup.disk.path == tmp_path / "disk"
    assert setup.servers == {"a": ServerSetup("a", "127.0.0.1:8500")}
    assert (setup.poll, setup.models, setup.source) == (10.0, {}, file)
    assert (setup.service.listen, setup.service.callers) == (("127.0.0.1:8510",), None)
    assert repr(setup) == f"<Setup {file}: 0 models from s3://models/production in {tmp_path}/disk for a>"


FULL_YAML = """\
store:
  url: models
  options:
    key: {env: KEY}
    client_kwargs: {endpoint_url: "http://127.0.0.1:9000", retries: 3}
disk: {path: /var/models, quota: 50GB, seen_as: /models/}
poll: 1m30s
max_concurrent_loads: 2
server_grace: 1m
servers:
  a: {target: "unix:/run/a", token: {file: secrets/a}, allow_plaintext: true, timeout: 250ms}
models:
  digits: {versions: latest 2, labels: [stable]}
  faces:
    versions: all
    probe: {inputs: {x: [1, 2]}}
  nothing-special:
service:
  listen: [127.0.0.1:0, "unix:socket"]
  grace: 0
  callers:
    ci: {role: operate, token: {env: CI}}
"""

FULL_TOML = """\
poll = "1m30s"
max_concurrent_loads = 2
server_grace = "1m"
[store]
url = "models"
options.key.env = "KEY"
options.client_kwargs = {endpoint_url = "http://127.0.0.1:9000", retries = 3}
[disk]
path = "/var/models"
quota = 50_000_000_000
seen_as = "/models/"
[servers.a]
target = "unix:/run/a"
token.file = "secrets/a"
allow_plaintext = true
timeout = 0.25
[models.digits]
versions = "latest 2"
labels = ["stable"]
[models.faces]
versions = "all"
probe.inputs.x = [1, 2]
[models.nothing-special]
[service]
listen = ["127.0.0.1:0", "unix:socket"]
grace = 0
callers.ci = {role = "operate", token = {env = "CI"}}
"""


@pytest.mark.parametrize(("content", "syntax"), [(FULL_YAML, "yaml"), (FULL_TOML, "toml")])
def test_everything_in_both_syntaxes(content: str, syntax: str, tmp_path: Path) -> None:
    """YAML and TOML say the same, secrets come from where they are kept, and show nowhere."""
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "a").write_text("hush\n")
    file = tmp_path / f"set-up.{syntax}"
    file.write_text(content)
    setup = load_setup(file, environment=ENVIRONMENT)
    assert setup.store.url == str(tmp_path / "models")
    assert setup.store.storage_options() == {
        "key": "blob-k3y",
        "client_kwargs": {"endpoint_url": "http://127.0.0.1:9000", "retries": 3},
    }
    assert (setup.disk.path, setup.disk.quota, setup.disk.seen_as) == (
        Path("/var/models"),
        50_000_000_000,
        "/models",
    )
    assert (setup.poll, setup.max_concurrent_loads, setup.server_grace) == (90.0, 2, 60.0)
    server = setup.servers["a"]
    assert (server.target, server.timeout) == ("unix:/run/a", 0.25)
    assert server.token == Secret("hush", f"file {tmp_path / 'secrets' / 'a'}")
    credentials = server.credentials()
    assert credentials is not None
    assert asyncio.run(obtain(credentials)) == (("authorization", "Bearer hush"),)
    assert setup.models == {
        "digits": Policy(versions=Latest(2), labels={"stable": Label()}),
        "faces": Policy(versions=All(), probe=Probe(inputs={"x": [1, 2]})),
        "nothing-special": Policy(),
    }
    assert setup.service.listen == ("127.0.0.1:0", f"unix:{tmp_path}/socket")
    assert setup.service.grace == 0
    assert setup.service.callers == (
        CallerSetup("ci", "operate", Secret("t0p-s3cret", "environment variable CI")),
    )
    for shown in (repr(setup), repr(setup.store), repr(setup.service), repr(server), str(server.token)):
        for secret in ("hush", "t0p-s3cret", "blob-k3y"):
            assert secret not in shown


def test_all_that_is_wrong_is_told_at_once_with_its_line() -> None:
    """One look at the file is enough to mend it: each problem has its place, its keys, and what was meant."""
    content = """\
stores: x
disk: {path: disk, quota: 50XB}
servers:
  a: 127.0.0.1
  b: {target: "127.0.0.1:1", timeot: 5}
models:
  digits:
    versions: newest
    labels: {canary: {seconds: -1}}
  "../etc": {}
poll: soon
"""
    found = problems(content)
    assert [line.split(": ")[:2] for line in found] == [
        ["line 1, column 1", "stores"],
        ["line 1, column 1", "'store' is missing"],
        ["line 2, column 20", "disk.quota"],
        ["line 4, column 3", "servers.a"],
        ["line 5, column 30", "servers.b.timeot"],
        ["line 8, column 5", "models.digits.versions"],
        ["line 9, column 23", "models.digits.labels.canary.seconds"],
        ["line 10, column 3", 'models."../etc"'],
        ["line 11, column 1", "poll"],
    ]
    assert "did you mean 'store'?" in found[0]
    assert "did you mean 'timeout'?" in found[4]
    assert "500ms, 10s, 5m or 1h30m, got 'soon'" in found[-1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "'store' is missing"),
        ("[1, 2]", "expected a mapping with disk, max_concurrent_loads, models, other_models, poll, server"),
        ("store: [", "not YAML: "),
        (MINIMAL + "poll: 5\npoll: 6", "line 6, column 1: poll: the key is there twice"),
        (MINIMAL + "1: x", "the key 1 is a whole number; put it in quotes"),
        (MINIMAL + "poll: 0", "poll: expected a duration of more than 0 seconds"),
        (MINIMAL + "poll: .inf", "poll: expected a duration of at least 0 seconds, got inf"),
        (MINIMAL + "poll: true", "poll: expected a duration"),
        (MINIMAL + "max_concurrent_loads: 0", "max_concurrent_loads: expected a whole number, at least 1"),
        (MINIMAL + "other_models: nowhere.config", "other_models: there is no file"),
        (MINIMAL.replace("127.0.0.1:8500", "dns:///models:8500"), "a name of many servers"),
        (MINIMAL + "  b: 127.0.0.1:8500", "servers.b: the same server as 'a'"),
        (MINIMAL + "  b c: 127.0.0.1:8501", "a server's name is letters"),
        (MINIMAL.replace("\n  a: 127.0.0.1:8500", " {}"), "name at least one server"),
        (MINIMAL + "  b: {target: 'x:1', token: abc}", "a secret is not written here"),
        (MINIMAL + "  b: {target: 'x:1', token: {env: NOPE}}", "environment variable NOPE is not set"),
        (MINIMAL + "  b: {target: 'x:1', token: {file: nope}}", "nope cannot be read: No such file"),
        (MINIMAL + "  b: {target: 'x:1', token: {env: CI, file: x}}", "a secret comes from one place"),
        (
            MINIMAL + "  b: {target: 'x:1', token: {env: CI}}",
            "servers.b.token: it would be sent in plain text",
        ),
        (MINIMAL + "  b: {target: 'x:1', tls: {ca: nope.pem}}", "servers.b.tls.ca: there is no file"),
        (MINIMAL.replace("s3://models/production", "S 3://x"), "is no scheme of a URL"),
        (MINIMAL.replace("s3://models", "ftp://joe:pass@host"), "a password does not belong in the URL"),
        (MINIMAL + "service: {listen: 8510}", "service.listen: expected text, got a whole number"),
        (MINIMAL + "service: {listen: '127.0.0.1'}", "expected HOST:PORT or unix:PATH"),
        (MINIMAL + "service: {listen: '0.0.0.0:1'}", "whoever reaches 0.0.0.0:1 could do everything"),
        (MINIMAL + "service: {callers: {}}", "nobody could call"),
        (
            MINIMAL + "service: {callers: {ci: {role: admin, token: {env: CI}}}}",
            "expected read or operate, got",
        ),
        (MINIMAL + "service: {callers: {ci: {role: operate}}}", "how does it prove who it is?"),
        (
            MINIMAL + "service: {listen: 'host:1', callers: {ci: {role: read, token: {env: CI}}}}",
            "service.callers.ci: the token would be sent in plain text",
        ),
        (
            MINIMAL + "service: {callers: {ci: {role: read, certificate: joe}}}",
            "client certificates are asked for with service.tls.client_ca",
        ),
        (
            MINIMAL
            + "service: {callers: {a: {role: read, token: {env: CI}}, b: {role: operate, token: {env: CI}}}}",
            "service.callers.b: its token is 'a''s, too",
        ),
    ],
)
def test_what_is_refused(content: str, expected: str) -> None:
    """Each mistake has a text that says what would be right, and shows no secret."""
    assert any(expected in line for line in problems(content)), problems(content)


def test_secrets_in_files_are_read_again(tmp_path: Path) -> None:
    """What a server or the store has refused is replaced by what the file has now, if it has anything."""
    token, key = tmp_path / "token", tmp_path / "key"
    token.write_text("old\n")
    key.write_text("k1\n")
    setup = read_setup(
        "store: {url: 's3://models', options: {key: {file: key}, secret: {env: KEY}}}\ndisk: disk\n"
        "servers: {a: {target: '127.0.0.1:1', token: {file: token}, allow_plaintext: true}}\n",
        "yaml",
        source=tmp_path / "set-up.yaml",
        environment=ENVIRONMENT,
    )
    assert setup.store.storage_options() == {"key": "k1", "secret": "blob-k3y"}
    credentials = setup.servers["a"].credentials()
    assert credentials is not None

    async def sent() -> list[str]:
        found = []
        for content in ("old", "new"):
            token.write_text(f"{content}\n")
            pairs = await obtain(credentials)
            found.append(str(pairs[0][1]))
            credentials.invalidate(pairs)
        return found

    assert asyncio.run(sent()) == ["Bearer old", "Bearer new"]
    key.write_text("k2\n")
    assert setup.store.storage_options()["key"] == "k2"
    key.unlink()
    assert setup.store.storage_options()["key"] == "k1"


def test_options_of_the_store_that_look_like_secrets() -> None:
    """A password that stands in the file itself is refused, however deep."""
    content = MINIMAL.replace(
        "store: s3://models/production",
        "store: {url: 's3://b', options: {key: AKIA, client_kwargs: {aws_secret_access_key: oops}}}",
    )
    [problem] = problems(content)
    assert problem.startswith(
        "line 1, column 61: store.options.client_kwargs.aws_secret_access_key: a secret is not written here"
    )
    assert "oops" not in problem


def test_toml_that_is_none() -> None:
    """A mistake in the syntax is told with its line, too."""
    assert problems("poll = 5\nstore = x\n", "toml") == ["line 2, column 9: not TOML: Invalid value"]


def test_a_bomb_of_aliases_is_refused() -> None:
    """A few lines of YAML cannot take all memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert any("far more than any set-up" in line for line in problems("\n".join(lines)))


def test_anchors_and_merging() -> None:
    """What several servers have in common can be said once."""
    content = MINIMAL.replace(
        "  a: 127.0.0.1:8500",
        "  a: &common {target: '127.0.0.1:8500', timeout: 3}\n  b: {<<: *common, target: '127.0.0.1:8501'}",
    )
    setup = read_setup(content)
    assert {server.target: server.timeout for server in setup.servers.values()} == {
        "127.0.0.1:8500": 3.0,
        "127.0.0.1:8501": 3.0,
    }


def test_anybody_may_be_let_in_by_saying_so() -> None:
    """A service that everybody can operate is possible, and nobody's accident."""
    setup = read_setup(MINIMAL + "service: {listen: '0.0.0.0:1', callers: anybody}")
    assert setup.service.callers is None


def test_one_policy() -> None:
    """A policy in a file of its own is read as below a model's name, and refused with its place."""
    assert read_policy("versions: all\nkeep: 3") == Policy(versions=All(), keep=3)
    assert read_policy('{"versions": [1, 2]}').versions.select([1, 2, 3]) == {1, 2}
    assert read_policy("keep = 3", Path("policy.toml")) == Policy(keep=3)
    with pytest.raises(SetupError, match="line 2, column 1: kep: there is no such key; did you mean 'keep'"):
        read_policy("versions: all\nkep: 3")


def test_errors_travel() -> None:
    """The error can be sent between processes, with its problems."""
    with pytest.raises(SetupError) as caught:
        read_setup("poll: soon")
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.problems, str(again)) == (caught.value.problems, str(caught.value))
    assert "not UTF-8" in str(_broken())


def _broken() -> SetupError:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".yaml") as file, pytest.raises(SetupError) as caught:
        Path(file.name).write_bytes(b"\xff\xfe\x00")
        load_setup(file.name)
    return caught.value


def test_what_is_shown_before_a_start_has_the_policies_of_the_file(tmp_path: Path) -> None:
    """Plan and status are what a start of this file would begin with; showing them writes nothing."""
    from aioserving.repository.service import open_controller
    from tests.repository.stores import version_files, write_version

    for version in (1, 2):
        write_version(tmp_path / "store" / "double" / str(version), version_files(version))

    def setup(versions: str) -> Any:
        return read_setup(
            f"store: {tmp_path}/store\ndisk: {{path: {tmp_path}/disk}}\nservers: {{a: '127.0.0.1:1'}}\n"
            f"models: {{double: {{versions: {versions}}}}}\nserver_grace: 0\n"
        )

    async def shown(versions: str) -> tuple[Policy | None, list[int], str]:
        async with open_controller(setup(versions), start=False) as controller:
            report = await controller.status("double")
            assert report.policy == controller.get_policy("double")
            wanted = [item.version for item in report.versions if item.wanted]
            return report.policy, wanted, str(await controller.plan())

    async def story() -> None:
        policy, wanted, plan = await shown("latest")
        assert (policy, wanted) == (Policy(), [2])
        assert "fetch double 2" in plan
        assert not any(path.is_file() for path in (tmp_path / "disk").rglob("*")), "nothing was written"
        async with open_controller(setup("latest")) as controller:
            await controller.set_policy("double", Policy(pinned=1))
            with pytest.raises(RuntimeError, match="at work"):
                await controller.preview({})
        state = (tmp_path / "disk" / ".aioserving" / "state.json").read_bytes()
        # What was decided meanwhile stays, until the file says something else.
        assert (await shown("latest"))[:2] == (Policy(pinned=1), [1])
        assert (await shown("latest 2"))[:2] == (Policy(versions=Latest(2)), [2, 1])
        assert (tmp_path / "disk" / ".aioserving" / "state.json").read_bytes() == state

    asyncio.run(story())


def test_servers_keep_the_models_that_are_none_of_the_repositorys(tmp_path: Path) -> None:
    """What the file's settings are for reaches the controller: reloads name the other models, too."""
    from aioserving import AsyncClient
    from aioserving.repository.service import open_controller
    from tests.repository.model_servers import LightServer
    from tests.repository.stores import saved_model

    def add(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(saved_model(variables=False, note="2"))

    add(tmp_path / "store" / "double" / "1")
    add(tmp_path / "elsewhere" / "other" / "1")
    (tmp_path / "other.config").write_text(
        f'model_config_list {{ config {{ name: "other" base_path: "{tmp_path}/elsewhere/other" '
        'model_platform: "tensorflow" } }'
    )

    async def story(target: str) -> None:
        setup = read_setup(
            f"store: {tmp_path}/store\ndisk: {{path: {tmp_path}/disk}}\nservers: {{a: '{target}'}}\n"
            f"models: {{double: {{versions: latest}}}}\npoll: 500ms\nother_models: {tmp_path}/other.config\n"
            "max_concurrent_loads: 1\nserver_grace: 5\n"
        )
        async with open_controller(setup) as controller, AsyncClient(target) as client:
            assert (controller.settings.max_concurrent_loads, controller.settings.server_grace) == (1, 5.0)
            await controller.wait_converged(timeout=30.0)
            for model in ("double", "other"):
                await client.wait_until_available(model, version=1, timeout=20.0)
                assert (await client.predict(model, {"x": [3.0]}))["y"].tolist() == [6.0]

    with LightServer() as server:
        asyncio.run(story(server.target))
