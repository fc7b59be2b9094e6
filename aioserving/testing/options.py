"""What a testing server can be told: the flags of `tensorflow_model_server`, as a dataclass and as text.

`ServerOptions` has one field per flag that means something here, under the flag's own name and with
its default, and the server's own additions under names that start with ``testing_``. `parse` reads a
command line as the real binary's users write it. A real flag that this server has no use for is
accepted with a warning, so that a command line made for the real one works; a flag that neither knows
is an error naming the nearest one.

Reading the files that flags name is here too (`read_text_proto`); what the values *do* is up to
`manager`, `server` and the servables.
"""

from __future__ import annotations

import dataclasses
import difflib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from aioserving.testing.status import StatusCode, StatusError

if TYPE_CHECKING:
    from google.protobuf.message import Message

__all__ = [
    "IGNORED_FLAGS",
    "FlagError",
    "ServerOptions",
    "parse",
    "parse_text_proto",
    "read_text_proto",
    "to_flags",
    "usage",
    "with_flags",
]

_T = TypeVar("_T")
_MessageT = TypeVar("_MessageT", bound="Message")

logger = logging.getLogger("aioserving.testing")


class FlagError(ValueError):
    """A command line cannot be read: an unknown flag, a value of the wrong kind, a stray argument."""


def _flag(default: _T, text: str) -> _T:
    value: _T = dataclasses.field(default=default, metadata={"help": text})
    return value


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Settings of one server; names, meanings and defaults are those of the real binary's flags.

    Numbers of seconds may be fractions here, which the real flags do not allow.
    """

    # where it listens
    port: int = _flag(8500, "TCP port for gRPC; 0: none")
    grpc_socket_path: str = _flag("", "path of a Unix socket to listen on as well")
    ssl_config_file: str = _flag("", "text SSLConfig with PEM *contents*; makes both listeners TLS")
    rest_api_port: int = _flag(0, "TCP port for REST (needs aiohttp); 0: none")
    rest_api_num_threads: int = _flag(0, "threads that answer REST requests; 0: 4 per CPU")
    rest_api_timeout_in_ms: int = _flag(
        30000, "milliseconds that a REST request may run a model; 0 or less: no limit"
    )
    monitoring_config_file: str = _flag(
        "", "text MonitoringConfig: whether and where REST has a page for Prometheus"
    )
    grpc_channel_arguments: str = _flag("", "comma-separated key=value arguments of the gRPC server")
    grpc_max_threads: int = _flag(
        0,
        "calls in progress at once, beyond which calls are refused as RESOURCE_EXHAUSTED; "
        "0 (default): 4 threads per CPU run models, and further calls wait for one instead",
    )
    enable_grpc_healthcheck_service: bool = _flag(False, "answer grpc.health.v1.Health")
    # what it serves
    model_name: str = _flag("default", "name of the one model (ignored with --model_config_file)")
    model_base_path: str = _flag("", "its folder of version folders (ignored with --model_config_file)")
    model_config_file: str = _flag("", "text ModelServerConfig: the models to serve")
    model_config_file_poll_wait_seconds: float = _flag(
        0.0, "read and apply the config file again this often; 0: never again"
    )
    file_system_poll_wait_seconds: float = _flag(
        1.0, "look for new versions this often; 0: only once, at start; negative: never"
    )
    allow_version_labels_for_unavailable_models: bool = _flag(
        False, "let labels that are not in use point at versions that are not available yet"
    )
    # how versions are loaded
    max_num_load_retries: int = _flag(5, "further attempts after a failed load")
    load_retry_interval_micros: int = _flag(60_000_000, "microseconds between two of them")
    num_load_threads: int = _flag(0, "versions to load at once; 0: one after the other")
    num_unload_threads: int = _flag(0, "versions to unload at once; 0: one after the other")
    # how models run
    saved_model_tags: str = _flag("serve", "comma-separated tags of the meta graph to load")
    enable_model_warmup: bool = _flag(True, "replay a model's recorded requests before it is available")
    num_request_iterations_for_warmup: int = _flag(0, "times each of them is replayed, if positive")
    enable_signature_method_name_check: bool = _flag(False, "insist on a signature's method_name")
    enable_serialization_as_tensor_content: bool = _flag(
        False, "answer Predict with tensor_content instead of typed fields"
    )
    enable_batching: bool = _flag(False, "merge concurrent requests into batches")
    batching_parameters_file: str = _flag("", "text BatchingParameters")
    enable_per_model_batching_parameters: bool = _flag(
        False, "read batching_params.pbtxt of each version folder"
    )
    tensorflow_session_parallelism: int = _flag(0, "TensorFlow threads of either kind; 0: TensorFlow decides")
    tensorflow_intra_op_parallelism: int = _flag(0, "TensorFlow threads within an operation")
    tensorflow_inter_op_parallelism: int = _flag(0, "TensorFlow threads across operations")
    # additions of the testing server
    testing_host: str = _flag("0.0.0.0", "address to listen on")  # noqa: S104 - as the real server does
    testing_pick_port: bool = _flag(False, "listen on any free TCP port, whatever --port says")
    testing_pick_rest_port: bool = _flag(
        False, "answer REST on any free TCP port, whatever --rest_api_port says"
    )
    testing_port_file: str = _flag("", "file to write the port to, once the server is ready")
    testing_announce: bool = _flag(
        False, "print `rest URL` (if there is REST) and `ready HOST:PORT` on standard output, once ready"
    )
    testing_token_file: str = _flag(
        "",
        "file of tokens, one of which gRPC calls need as `authorization: Bearer TOKEN`; read again when it "
        "changes (aioserving.testing.security.write_tokens makes it)",
    )
    testing_api_key_file: str = _flag("", "the same for keys, as `x-api-key: KEY`; with both, either will do")
    testing_client_names: str = _flag(
        "", "comma-separated names of clients; gRPC calls need the certificate of one, or a token or key"
    )
    testing_drain_seconds: float = _flag(30.0, "time that calls in progress have to end after SIGTERM")
    testing_exit_with_parent: bool = _flag(False, "end when standard input is closed")
    testing_manage_state_interval_ms: float = _flag(
        100.0, "milliseconds between two loads or unloads; the real server's 100 cannot be changed"
    )
    testing_callable: tuple[str, ...] = _flag(
        (),
        "may be repeated: MODEL=PACKAGE.MODULE:ATTRIBUTE, where the attribute is a servable, a mapping of "
        "versions to servables, or a function that returns either",
    )


#: Flags of the real binary without a meaning here: name -> the type of its value.
IGNORED_FLAGS: Mapping[str, type] = {
    "rest_api_enable_cors_support": bool,
    "flush_filesystem_caches": bool,
    "tensorflow_session_config_file": str,
    "use_alts_credentials": bool,
    "platform_config_file": str,
    "per_process_gpu_memory_fraction": float,
    "remove_unused_fields_from_bundle_metagraph": bool,
    "prefer_tflite_model": bool,
    "num_tflite_pools": int,
    "num_tflite_interpreters_per_pool": int,
    "xla_cpu_compilation_enabled": bool,
    "xla_gpu_compilation_enabled": bool,
    "enable_profiler": bool,
    "thread_pool_factory_config_file": str,
    "mixed_precision": str,
    "skip_initialize_tpu": bool,
    "enforce_session_run_timeout": bool,
}

_TYPES: Mapping[str, type] = {"int": int, "float": float, "bool": bool, "str": str, "tuple[str, ...]": tuple}
_FIELDS: Mapping[str, type] = {
    field.name: _TYPES[str(field.type)] for field in dataclasses.fields(ServerOptions)
}
_BOOLEANS = {
    **dict.fromkeys(("true", "t", "yes", "y", "1"), True),
    **dict.fromkeys(("false", "f", "no", "n", "0"), False),
}


def parse(arguments: Sequence[str]) -> tuple[ServerOptions, list[str]]:
    """Read a command line (without the program's name).

    ``--flag=value`` and ``--flag value`` are the same; a boolean is also ``--flag`` and ``--noflag``.

    Returns:
        The options, and one sentence for each real flag that has no effect here.

    Raises:
        FlagError: an unknown flag, a wrong or missing value, or an argument that is not a flag.
    """
    values: dict[str, Any] = {}
    warnings: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if not argument.startswith("--") or argument == "--":
            raise FlagError(f"{argument!r} is not a flag; every argument is --flag=value")
        name, equals, text = argument[2:].partition("=")
        name = name.replace("-", "_")
        kind = _kind(name)
        if kind is None and name.startswith("no") and not equals and _kind(name[2:]) is bool:
            name, kind, equals, text = name[2:], bool, "=", "false"
        if kind is None:
            raise FlagError(_unknown(name))
        if not equals:
            if kind is bool:
                # Only a word that can be nothing else is taken for the value of a bare boolean.
                text = pending.pop(0) if pending and pending[0].lower() in _BOOLEANS else "true"
            elif pending:
                text = pending.pop(0)
            else:
                raise FlagError(f"--{name} needs a value")
        if kind is tuple:
            values[name] = (*values.get(name, ()), text)
        elif name in _FIELDS:
            values[name] = _convert(name, kind, text)
        else:
            _convert(name, kind, text)
            warnings.append(f"--{name} has no effect on the testing server")
    return ServerOptions(**values), warnings


def with_flags(options: ServerOptions, flags: Mapping[str, Any], taker: str) -> ServerOptions:
    """`options` with some fields changed, given as further keyword arguments of a class `taker`.

    Raises:
        TypeError: there is no such field; the message names the nearest one.
    """
    for name in flags:
        if name not in _FIELDS:
            near = difflib.get_close_matches(name, _FIELDS, n=1, cutoff=0.0)[0]
            raise TypeError(f"{taker} has no argument {name!r}, and no flag is called so; near it: {near!r}")
    return dataclasses.replace(options, **flags)


def to_flags(options: ServerOptions) -> list[str]:
    """The command line that `parse` reads as `options`; values at their default are left out."""
    flags: list[str] = []
    for field in dataclasses.fields(ServerOptions):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        if isinstance(value, tuple):
            flags += [f"--{field.name}={item}" for item in value]
        else:
            flags.append(f"--{field.name}={str(value).lower() if isinstance(value, bool) else value}")
    return flags


def usage() -> str:
    """All flags with their defaults, as text for a terminal."""
    lines = [
        "usage: python -m aioserving.testing --model_name=NAME --model_base_path=FOLDER [--flag=value ...]"
    ]
    for field in dataclasses.fields(ServerOptions):
        default = "" if field.default == () else str(field.default)
        lines += [f"  --{field.name}={default}", f"      {field.metadata['help']}"]
    lines += ["accepted without effect:", "  " + " ".join(f"--{name}" for name in IGNORED_FLAGS)]
    return "\n".join(lines)


def _kind(name: str) -> type | None:
    """The type of the value of flag `name`, or None for a flag that nobody knows."""
    return _FIELDS.get(name) or IGNORED_FLAGS.get(name)


def _unknown(name: str) -> str:
    known = [*_FIELDS, *IGNORED_FLAGS]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"unknown flag --{name}; the nearest is --{near[0]}"


def _convert(name: str, kind: type, text: str) -> Any:
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise FlagError(f"--{name} is true or false, got {text!r}")
        return _BOOLEANS[text.lower()]
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise FlagError(f"--{name} is {what}, got {text!r}") from None


def parse_text_proto(text: str, message: _MessageT, *, source: str) -> _MessageT:
    """Fill `message` from protobuf text format, as strictly as the real server reads its files.

    What is wrong, with line and column, goes to the log, as it does there.

    Raises:
        StatusError: INVALID_ARGUMENT ``Invalid protobuf file: 'SOURCE'``.
    """
    from google.protobuf import text_format

    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        logger.error("Error parsing text-format %s: %s", message.DESCRIPTOR.full_name, error)
        raise StatusError(StatusCode.INVALID_ARGUMENT, f"Invalid protobuf file: '{source}'") from error
    return message


def read_text_proto(path: str, message: _MessageT) -> _MessageT:
    """Fill `message` from the text file at `path`; an empty file is an empty message.

    Raises:
        StatusError: NOT_FOUND and the like for a file that cannot be read, else as `parse_text_proto`.
    """
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError as error:
        raise StatusError(StatusCode.NOT_FOUND, f"{path}; {os.strerror(error.errno or 2)}") from error
    except PermissionError as error:
        raise StatusError(StatusCode.PERMISSION_DENIED, f"{path}; {error.strerror}") from error
    except IsADirectoryError as error:
        raise StatusError(StatusCode.FAILED_PRECONDITION, f"{path}; {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StatusError(StatusCode.INVALID_ARGUMENT, f"Invalid protobuf file: '{path}'") from error
    return parse_text_proto(text, message, source=path)
