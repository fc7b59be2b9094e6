"""aioserving.testing.options: the real binary's command line, and text files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from aioserving._proto import message_class
from aioserving.testing import options as options_module
from aioserving.testing.options import (
    IGNORED_FLAGS,
    FlagError,
    ServerOptions,
    parse,
    read_text_proto,
    to_flags,
    usage,
    with_flags,
)
from aioserving.testing.status import StatusCode, StatusError


def test_defaults_are_the_real_servers() -> None:
    """Without flags, the settings that clients notice are those of the real binary."""
    options, warnings = parse([])
    assert warnings == []
    assert options == ServerOptions()
    assert (options.port, options.model_name, options.saved_model_tags) == (8500, "default", "serve")
    assert (options.max_num_load_retries, options.load_retry_interval_micros) == (5, 60_000_000)
    assert (options.file_system_poll_wait_seconds, options.model_config_file_poll_wait_seconds) == (1, 0)
    assert options.enable_model_warmup
    assert not options.enable_grpc_healthcheck_service
    assert options.testing_manage_state_interval_ms == 100
    assert (options.rest_api_port, options.rest_api_num_threads, options.rest_api_timeout_in_ms) == (
        0,
        0,
        30000,
    )
    assert options.monitoring_config_file == ""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--port=8501"], {"port": 8501}),
        (["--port", "8501"], {"port": 8501}),
        (["--model-name=x"], {"model_name": "x"}),
        (["--model_base_path=/a=b"], {"model_base_path": "/a=b"}),
        (["--model_base_path="], {"model_base_path": ""}),
        (["--load_retry_interval_micros=-1"], {"load_retry_interval_micros": -1}),
        (["--file_system_poll_wait_seconds", "-1"], {"file_system_poll_wait_seconds": -1}),
        (["--port=1", "--port=2"], {"port": 2}),
        (["--enable_model_warmup=false"], {"enable_model_warmup": False}),
        (["--enable_model_warmup=0"], {"enable_model_warmup": False}),
        (["--enable_model_warmup", "False"], {"enable_model_warmup": False}),
        (["--noenable_model_warmup"], {"enable_model_warmup": False}),
        (["--enable_grpc_healthcheck_service"], {"enable_grpc_healthcheck_service": True}),
        (["--enable_grpc_healthcheck_service=1"], {"enable_grpc_healthcheck_service": True}),
        (
            ["--enable_grpc_healthcheck_service", "--port=1"],
            {"enable_grpc_healthcheck_service": True, "port": 1},
        ),
        (
            ["--testing_callable=a=m:x", "--testing_callable", "b=m:y"],
            {"testing_callable": ("a=m:x", "b=m:y")},
        ),
    ],
)
def test_spellings(arguments: list[str], expected: dict[str, Any]) -> None:
    """Flags are read as --flag=value and --flag value, booleans also bare and with "no"."""
    options, warnings = parse(arguments)
    assert options == dataclasses.replace(ServerOptions(), **expected)
    assert warnings == []


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--prot=1", "unknown flag --prot; the nearest is --port"),
        ("--model_base_pth=x", "unknown flag --model_base_pth; the nearest is --model_base_path"),
        ("--noport", "unknown flag --noport; the nearest is --port"),
        ("--rest_api_prot=1", "unknown flag --rest_api_prot; the nearest is --rest_api_port"),
        ("-port=1", "'-port=1' is not a flag; every argument is --flag=value"),
        ("port", "'port' is not a flag; every argument is --flag=value"),
        ("--", "'--' is not a flag; every argument is --flag=value"),
        ("--port", "--port needs a value"),
        ("--port=x", "--port is a whole number, got 'x'"),
        ("--file_system_poll_wait_seconds=x", "--file_system_poll_wait_seconds is a number, got 'x'"),
        ("--enable_model_warmup=x", "--enable_model_warmup is true or false, got 'x'"),
        ("--rest_api_port=x", "--rest_api_port is a whole number, got 'x'"),
    ],
)
def test_refusals(argument: str, message: str) -> None:
    """What cannot be read is refused with the flag's name, an unknown flag with the nearest one's."""
    with pytest.raises(FlagError) as caught:
        parse([argument])
    assert str(caught.value) == message


def test_real_flags_without_effect_warn() -> None:
    """A real flag that means nothing here is accepted, with a warning naming it."""
    options, warnings = parse(["--enable_profiler=false", "--port=1", "--xla_cpu_compilation_enabled"])
    assert options == ServerOptions(port=1)
    assert warnings == [
        f"--{name} has no effect on the testing server"
        for name in ("enable_profiler", "xla_cpu_compilation_enabled")
    ]


def test_flags_round_trip() -> None:
    """`to_flags` writes what `parse` reads back, and nothing for defaults."""
    assert to_flags(ServerOptions()) == []
    changed = ServerOptions(
        port=0,
        model_name="a b",
        enable_model_warmup=False,
        file_system_poll_wait_seconds=0.25,
        testing_callable=("a=m:x", "b=m:y"),
    )
    assert parse(to_flags(changed)) == (changed, [])


def test_every_flag_is_documented() -> None:
    """`usage` names every flag, ours and the ignored ones, and every field says what it does."""
    text = usage()
    for field in dataclasses.fields(ServerOptions):
        assert f"--{field.name}=" in text
        assert field.metadata["help"] in text
    for name in IGNORED_FLAGS:
        assert f"--{name}" in text
        assert not hasattr(ServerOptions(), name)
    assert not [field.name for field in dataclasses.fields(ServerOptions) if field.name in IGNORED_FLAGS]


def test_with_flags() -> None:
    """Keyword arguments change single settings; a misspelt one names the nearest."""
    assert with_flags(ServerOptions(), {"port": 1}, "X") == ServerOptions(port=1)
    with pytest.raises(
        TypeError, match="X has no argument 'prot', and no flag is called so; near it: 'port'"
    ):
        with_flags(ServerOptions(), {"prot": 1}, "X")


def config() -> Any:
    return message_class("tensorflow.serving.ModelServerConfig")()


def test_read_text_proto(tmp_path: Path) -> None:
    """A configuration file is protobuf text, with or without colons before messages; empty is fine."""
    path = tmp_path / "models.config"
    path.write_text('model_config_list: { config { name: "a", base_path: "/a" }, }  # comment\n')
    assert read_text_proto(str(path), config()).model_config_list.config[0].name == "a"
    path.write_text("")
    assert read_text_proto(str(path), config()) == config()


@pytest.mark.parametrize("text", ["models {}", "model_config_list { config { name: 1 } }", "{", "\x00"])
def test_read_text_proto_refuses(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A wrong file is refused in the real server's words; line and column go to the log."""
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(StatusError) as caught:
        read_text_proto(str(path), config())
    assert (caught.value.code, caught.value.message) == (
        StatusCode.INVALID_ARGUMENT,
        f"Invalid protobuf file: '{path}'",
    )
    assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:" in caplog.text


def test_read_text_proto_without_file(tmp_path: Path) -> None:
    """A file that cannot be read ends with the code of the reason, and names the file."""
    for path, code in [(tmp_path / "gone", StatusCode.NOT_FOUND), (tmp_path, StatusCode.FAILED_PRECONDITION)]:
        with pytest.raises(StatusError) as caught:
            read_text_proto(str(path), config())
        assert caught.value.code is code
        assert str(path) in caught.value.message


def test_not_utf8(tmp_path: Path) -> None:
    """A binary file is no configuration."""
    path = tmp_path / "models.config"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(StatusError, match="Invalid protobuf file"):
        read_text_proto(str(path), config())


def test_exports() -> None:
    """`__all__` names what is there."""
    assert [name for name in options_module.__all__ if not hasattr(options_module, name)] == []
