"""One file for a whole repository service: store, disk, servers, models and who may call it.

    store: {url: "s3://models/production"}
    disk: {path: /var/lib/models, quota: 50GB}
    servers:
      a: 127.0.0.1:8500
      b: {target: "models-b.internal:8500", tls: {ca: ca.pem}, token: {env: MODELS_TOKEN}}
    models:
      digits: {versions: latest 2, labels: [stable]}
    service:
      listen: 0.0.0.0:8510
      tls: {certificate: service.pem, key: service.key}
      callers:
        ci: {role: operate, token: {file: secrets/ci}}
        dashboard: {role: read, token: {env: DASHBOARD_TOKEN}}

YAML, or TOML with the same keys. `load_setup` checks everything that can be known from the file alone, and
tells all that is wrong with it at once, each problem with the keys that lead to it and, in YAML, its line. A
secret is never written in the file, but taken from an environment variable or from a file. Relative paths
start at the file's folder. Opening stores and connections is left to `service`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from aioserving.repository import _checked
from aioserving.repository._checked import Entry, Secret, SetupProblem, Unfit
from aioserving.repository.errors import InvalidNameError, RepositoryError
from aioserving.repository.names import check_model_name

if TYPE_CHECKING:
    import grpc

    from aioserving.repository.policy import Policy
    from aioserving.security import TLS, Credentials

__all__ = [
    "CallerSetup",
    "DiskSetup",
    "Role",
    "Secret",
    "ServerSetup",
    "ServiceSetup",
    "Setup",
    "SetupError",
    "SetupProblem",
    "StoreSetup",
    "TLSSetup",
    "load_setup",
    "read_policy",
    "read_setup",
]

logger = logging.getLogger("aioserving.repository")

#: What a caller may do: ``read`` looks, ``operate`` changes.
Role = Literal["read", "operate"]

#: Where the service listens if the file does not say.
DEFAULT_LISTEN: Final = "127.0.0.1:8510"

_SECRET_OPTION: Final = re.compile(
    r"(?i)secret|password|passwd|token|account_key|connection_string|credential"
)


class SetupError(RepositoryError, ValueError):
    """A set-up file is not what it should be.

    Attributes:
        problems: all that is wrong, a `SetupProblem` each.
        source: the file, or None.
    """

    def __init__(self, problems: Iterable[SetupProblem], source: str | None = None) -> None:
        self.problems = tuple(problems)
        self.source = source
        head = f"{source}: " if source else ""
        super().__init__("\n".join(f"{head}{problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.problems, self.source)


@dataclass(frozen=True)
class StoreSetup:
    """Where versions come from."""

    #: URL of the folder that holds a folder a model; what fsspec knows, or an absolute local path.
    url: str
    #: What fsspec is given beside it; secrets among them are `Secret`.
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def storage_options(self) -> dict[str, Any]:
        """The options as fsspec takes them, with the secrets themselves, as their files have them now."""
        return {key: _revealed(value) for key, value in self.options.items()}


@dataclass(frozen=True)
class DiskSetup:
    """Where versions are kept for the model servers to load."""

    #: The folder, which the model servers see, too.
    path: Path
    #: Bytes that versions may take in all; None: as many as there are.
    quota: int | None = None
    #: The path under which the model servers see `path`, where it is another one (in containers); else None.
    seen_as: str | None = None


@dataclass(frozen=True)
class TLSSetup:
    """TLS of a connection to a server, or of the service's own port; all are paths."""

    #: Certificates of the authorities to trust. For the service: those that callers' certificates are from.
    ca: Path | None = None
    #: The own certificate, followed by those that lead to its authority.
    certificate: Path | None = None
    #: Its private key.
    key: Path | None = None
    #: The name to look for in a server's certificate, where it is not the one in the target.
    server_name: str | None = None

    def client(self) -> TLS:
        """TLS for a client.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file does not hold what it should.
        """
        from aioserving.security import TLS

        return TLS(self.ca, self.certificate, self.key, server_name=self.server_name)


@dataclass(frozen=True)
class ServerSetup:
    """One model server."""

    #: How events and tables call it.
    name: str
    #: Where it listens: ``host:port`` or ``unix:/path``.
    target: str
    #: None: plaintext.
    tls: TLSSetup | None = None
    #: What calls carry as a bearer token, or None.
    token: Secret | None = None
    #: Whether the token may be sent without TLS.
    allow_plaintext: bool = False
    #: Seconds that one call may take.
    timeout: float = 10.0

    def credentials(self) -> Credentials | None:
        """What calls carry, or None; a token in a file is read again each minute, and when it is refused."""
        if self.token is None:
            return None
        from aioserving.security import StaticToken, Token

        if self.token.path is not None:
            return Token(self.token.read, lifetime=60.0, allow_plaintext=self.allow_plaintext)
        return StaticToken(self.token.value, allow_plaintext=self.allow_plaintext)


@dataclass(frozen=True)
class CallerSetup:
    """Somebody who may call the service."""

    #: Whom log lines name.
    name: str
    role: Role
    #: The bearer token that proves it, or None.
    token: Secret | None = None
    #: The name in the client certificate that proves it, or None.
    certificate: str | None = None


@dataclass(frozen=True)
class ServiceSetup:
    """How the service is reached, and by whom."""

    #: Addresses: ``host:port`` or ``unix:/path``.
    listen: tuple[str, ...] = (DEFAULT_LISTEN,)
    #: None: plaintext.
    tls: TLSSetup | None = None
    #: Who may call; None: whoever reaches it may do everything.
    callers: tuple[CallerSetup, ...] | None = None
    #: Seconds that calls under way have to end when the service does.
    grace: float = 10.0

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """TLS for the service's port; None: plaintext. See `service.server_credentials`.

        Raises:
            OSError: a file cannot be read.
            ValueError: a file does not hold what it should.
        """
        if self.tls is None:
            return None
        from aioserving.repository.service import server_credentials

        assert self.tls.certificate is not None
        assert self.tls.key is not None
        return server_credentials(self.tls.certificate, self.tls.key, client_ca=self.tls.ca)


@dataclass(frozen=True)
class Setup:
    """All of a set-up file, checked."""

    store: StoreSetup
    disk: DiskSetup
    #: At least one, by name.
    servers: Mapping[str, ServerSetup]
    #: The policies that the file states, by model; others can be set while the service runs.
    models: Mapping[str, Policy] = field(default_factory=dict)
    service: ServiceSetup = field(default_factory=ServiceSetup)
    #: Seconds between two looks at store, disk and servers.
    poll: float = 10.0
    #: Versions that may be loading on all servers together; None: no limit.
    max_concurrent_loads: int | None = None
    #: Seconds for which rollouts wait for a server that does not answer.
    server_grace: float = 30.0
    #: A ``model_config_file`` with the models that servers have beside those of the repository, or None.
    other_models: Path | None = None
    #: The file, or None.
    source: Path | None = None

    def __repr__(self) -> str:
        return (
            f"<Setup {self.source or ''}: {len(self.models)} models from {_without_login(self.store.url)} in "
            f"{self.disk.path} for {', '.join(self.servers)}>"
        )


def load_setup(path: str | os.PathLike[str], *, environment: Mapping[str, str] | None = None) -> Setup:
    """Read and check a set-up file; ``.toml`` is TOML, anything else YAML.

    Args:
        path: the file.
        environment: the variables that secrets may come from; the process's own if None.

    Raises:
        SetupError: it is not what it should be; lists everything that is wrong.
        OSError: it cannot be read.
        ImportError: PyYAML, or tomli on Python 3.10, is not installed.
    """
    path = Path(path).absolute()
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SetupError([SetupProblem("", "the file is not UTF-8 text")], str(path)) from None
    syntax: Literal["toml", "yaml"] = "toml" if path.suffix.lower() == ".toml" else "yaml"
    return read_setup(content, syntax, source=path, environment=environment)


def read_setup(
    content: str,
    syntax: Literal["yaml", "toml"] = "yaml",
    *,
    source: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> Setup:
    """Check a set-up file that is there as text.

    Args:
        content: the text.
        syntax: what it is written in.
        source: the file it came from, whose folder relative paths start at; None: the current folder's.
        environment: the variables that secrets may come from; the process's own if None.

    Raises:
        SetupError: it is not what it should be; lists everything that is wrong.
        ImportError: PyYAML, or tomli on Python 3.10, is not installed.
    """
    root = _checked.read(
        content,
        syntax,
        folder=Path.cwd() if source is None else source.parent,
        environment=os.environ if environment is None else environment,
    )
    if not root.problems:
        setup = _setup(root, source)
        if not root.problems:
            return setup
    problems = sorted(root.problems, key=lambda problem: (problem.line or 0, problem.column or 0))
    raise SetupError(problems, None if source is None else str(source))


def read_policy(content: str, source: Path | None = None) -> Policy:
    """Read one policy that is there as text: what stands below a model's name in a set-up file.

    Args:
        content: the text; YAML (and so JSON), or TOML if `source` is named ``.toml``.
        source: the file it came from, whose folder relative paths start at; None: the current folder's.

    Raises:
        SetupError: it is not what it should be; lists everything that is wrong.
        ImportError: PyYAML, or tomli on Python 3.10, is not installed.
    """
    syntax: Literal["toml", "yaml"] = "yaml"
    if source is not None and source.suffix.lower() == ".toml":
        syntax = "toml"
    folder = Path.cwd() if source is None else source.absolute().parent
    root = _checked.read(content, syntax, folder=folder, environment=os.environ)
    policy = None if root.problems else _policy(root)
    if policy is None:
        raise SetupError(root.problems, None if source is None else str(source))
    return policy


# ----------------------------------------------------------------------------------------------- the sections


def _setup(root: Entry, source: Path | None) -> Setup:
    root.section(
        {
            "store",
            "disk",
            "servers",
            "models",
            "service",
            "poll",
            "max_concurrent_loads",
            "server_grace",
            "other_models",
        }
    )
    nowhere = DiskSetup(Path())
    setup = Setup(
        store=root.need("store", _store, StoreSetup("")),
        disk=root.need("disk", _disk, nowhere),
        servers=root.need("servers", _servers, {}),
        models=root.take("models", _models, {}),
        service=root.take("service", _service, ServiceSetup()),
        poll=root.take("poll", _positive_seconds, 10.0),
        max_concurrent_loads=root.take("max_concurrent_loads", _checked.count, None),
        server_grace=root.take("server_grace", _seconds, 30.0),
        other_models=root.take("other_models", _other_models, None),
        source=source,
    )
    if "servers" in root and not setup.servers and not root.problems:
        root.report("name at least one server, such as a: 127.0.0.1:8500", "servers")
    return setup


def _other_models(entry: Entry) -> Path:
    from aioserving.configuration import read_config
    from aioserving.errors import InvalidConfigError

    path = _file(entry)
    try:
        read_config(path)
    except (OSError, InvalidConfigError) as error:
        raise Unfit(f"{path}: {error}") from None
    return path


def _store(entry: Entry) -> StoreSetup:
    if isinstance(entry.value, str):
        return StoreSetup(_store_url(entry))
    entry.section({"url", "options"})
    return StoreSetup(entry.need("url", _store_url, ""), entry.take("options", _store_options, {}))


def _store_url(entry: Entry) -> str:
    url = _checked.text(entry)
    scheme, separator, _ = url.partition("://")
    if separator or "::" in url:
        if not re.fullmatch(r"[a-z0-9+.:-]+", scheme):
            raise Unfit(f"{scheme!r} is no scheme of a URL; expected such as s3://bucket/models")
        if _without_login(url) != url:
            raise Unfit("a password does not belong in the URL; give it under store.options, as a secret")
        return url
    return str(entry.folder / os.path.expanduser(url))


def _store_options(entry: Entry) -> dict[str, Any]:
    return {item.name: _store_option(item) for item in entry.items()}


def _store_option(entry: Entry) -> Any:
    value = entry.value
    if isinstance(value, dict):
        if value and value.keys() <= {"env", "file"}:
            return entry.convert(_checked.secret, None)
        return {item.name: _store_option(item) for item in entry.items()}
    if isinstance(value, str) and _SECRET_OPTION.search(entry.name):
        entry.report("a secret is not written here; say where it is: {env: NAME} or {file: PATH}")
    return value


def _disk(entry: Entry) -> DiskSetup:
    if isinstance(entry.value, str):
        return DiskSetup(_path(entry))
    entry.section({"path", "quota", "seen_as"})
    return DiskSetup(
        entry.need("path", _path, Path()),
        entry.take("quota", _checked.size, None),
        entry.take("seen_as", _seen_as, None),
    )


def _seen_as(entry: Entry) -> str:
    path = _checked.text(entry)
    if not path.startswith("/"):
        raise Unfit(f"expected an absolute path, as the model servers see it; got {path!r}")
    return path.rstrip("/") or "/"


def _servers(entry: Entry) -> dict[str, ServerSetup]:
    servers = _checked.mapping_of(_server)(entry)
    by_target: dict[str, str] = {}
    for name, server in servers.items():
        if server.target and by_target.setdefault(server.target, name) != name:
            entry.report(f"the same server as {by_target[server.target]!r}: {server.target}", name)
    return servers


def _server(entry: Entry) -> ServerSetup:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,62}", entry.name):
        entry.report("a server's name is letters, digits and _.-, at most 63 of them")
    if isinstance(entry.value, str):
        return ServerSetup(entry.name, _target(entry))
    entry.section({"target", "tls", "token", "allow_plaintext", "timeout"})
    server = ServerSetup(
        entry.name,
        entry.need("target", _target, ""),
        entry.take("tls", _client_tls, None),
        entry.take("token", _token, None),
        entry.take("allow_plaintext", _checked.boolean, False),
        entry.take("timeout", _positive_seconds, 10.0),
    )
    if server.token is not None and "tls" not in entry and not server.allow_plaintext:
        entry.report(
            "it would be sent in plain text, which everybody on the way can read: give tls, or, if the "
            "network is to be trusted, allow_plaintext: true",
            "token",
        )
    return server


def _target(entry: Entry) -> str:
    from aioserving.targets import parse_targets

    target = _checked.text(entry)
    try:
        [parsed] = parse_targets(target)
    except ValueError as error:
        raise Unfit(str(error)) from None
    if parsed.to_resolve:
        raise Unfit("a name of many servers; name each of them, since each is told what to serve")
    return target


def _client_tls(entry: Entry) -> TLSSetup | None:
    if entry.value is False:
        return None
    if entry.value is True:
        return TLSSetup()
    entry.section({"ca", "certificate", "key", "server_name"})
    tls = TLSSetup(
        entry.take("ca", _file, None),
        entry.take("certificate", _file, None),
        entry.take("key", _file, None),
        entry.take("server_name", _checked.text, None),
    )
    _check_tls(entry, tls.client)
    return tls


def _service(entry: Entry) -> ServiceSetup:
    entry.section({"listen", "tls", "callers", "grace"})
    tls = entry.take("tls", _service_tls, None)
    open_to_all = entry.below("callers").value == "anybody"
    callers = None if open_to_all else entry.take("callers", _callers, None)
    service = ServiceSetup(
        entry.take("listen", _listen, (DEFAULT_LISTEN,)), tls, callers, entry.take("grace", _seconds, 10.0)
    )
    if not entry.problems:
        _check_callers(entry, service, open_to_all=open_to_all)
        _check_tls(entry.below("tls"), service.server_credentials)
    return service


def _service_tls(entry: Entry) -> TLSSetup:
    entry.section({"certificate", "key", "client_ca"})
    return TLSSetup(
        entry.take("client_ca", _file, None),
        entry.need("certificate", _file, None),
        entry.need("key", _file, None),
    )


def _check_callers(entry: Entry, service: ServiceSetup, *, open_to_all: bool) -> None:
    """Refuse what lets in more callers than is meant, or tells the world their tokens."""
    if service.callers is None:
        reachable = [address for address in service.listen if not _is_local(address)]
        if reachable and not open_to_all:
            entry.report(
                f"whoever reaches {reachable[0]} could do everything: name the callers, or say "
                "callers: anybody"
            )
        return
    certificates = service.tls is not None and service.tls.ca is not None
    for caller in service.callers:
        if caller.certificate is not None and not certificates:
            entry.report(
                "client certificates are asked for with service.tls.client_ca", "callers", caller.name
            )
        if caller.token is not None and service.tls is None and not all(map(_is_local, service.listen)):
            entry.report(
                "the token would be sent in plain text, which everybody on the way can read: give tls",
                "callers",
                caller.name,
            )


def _callers(entry: Entry) -> tuple[CallerSetup, ...]:
    callers = _checked.mapping_of(_caller)(entry)
    if not callers and not entry.problems:
        raise Unfit("nobody could call; name callers, or say callers: anybody")
    for kind in ("token", "certificate"):
        seen: dict[object, str] = {}
        for name, caller in callers.items():
            proof = getattr(caller, kind)
            proof = proof.value if isinstance(proof, Secret) else proof
            if proof is not None and seen.setdefault(proof, name) != name:
                entry.report(f"its {kind} is {seen[proof]!r}'s, too", name)
    return tuple(callers.values())


def _caller(entry: Entry) -> CallerSetup:
    entry.section({"role", "token", "certificate"})
    role: Any = entry.need("role", _checked.choice("read", "operate"), "read")
    caller = CallerSetup(
        entry.name, role, entry.take("token", _token, None), entry.take("certificate", _checked.text, None)
    )
    if "token" not in entry and "certificate" not in entry:
        entry.report("how does it prove who it is? give a token or the name in its certificate")
    return caller


def _listen(entry: Entry) -> tuple[str, ...]:
    if isinstance(entry.value, list):
        if not entry.value:
            raise Unfit("name an address, such as 127.0.0.1:8510")
        return tuple(item.convert(_address, DEFAULT_LISTEN) for item in entry.items())
    return (_address(entry),)


def _address(entry: Entry) -> str:
    address = _checked.text(entry)
    if address.startswith("unix:"):
        path = address.removeprefix("unix:").removeprefix("//")
        if not path:
            raise Unfit("expected unix: and the path of a socket")
        return f"unix:{entry.folder / path}"
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise Unfit(f"expected HOST:PORT or unix:PATH, got {address!r}")
    return address


def _is_local(address: str) -> bool:
    """Whether only this machine reaches an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _models(entry: Entry) -> dict[str, Policy]:
    found = {}
    for item in entry.items():
        try:
            check_model_name(item.name)
        except InvalidNameError as error:
            item.report(str(error))
        policy = _policy(item)
        if policy is not None:
            found[item.name] = policy
    return found


def _policy(entry: Entry) -> Policy | None:
    """The policy; None, and everything that is wrong with it reported, if it is none."""
    from aioserving.repository.policy import Policy, PolicyError

    try:
        return Policy.from_dict({} if entry.value is None else entry.value, folder=entry.folder)
    except PolicyError as error:
        for problem in error.problems:
            entry.report(problem.text, *problem.path)
    return None


# ----------------------------------------------------------------------------------------------- small things


def _positive_seconds(entry: Entry) -> float:
    value = _checked.seconds(entry)
    if not value:
        raise Unfit("expected a duration of more than 0 seconds")
    return value


def _seconds(entry: Entry) -> float:
    return _checked.seconds(entry)


def _token(entry: Entry) -> Secret:
    from aioserving.security import StaticToken

    found = _checked.secret(entry)
    try:
        StaticToken(found.value)
    except ValueError as error:
        raise Unfit(f"{found.source}: {str(error).replace('header ', '')}") from None
    return found


def _path(entry: Entry) -> Path:
    return entry.folder / os.path.expanduser(_checked.text(entry))


def _file(entry: Entry) -> Path:
    path = _path(entry)
    if not path.is_file():
        raise Unfit(f"there is no file {path}")
    return path


def _check_tls(entry: Entry, make: Any) -> None:
    """Tell what is wrong with the files' contents, if nothing else is."""
    if entry.problems:
        return
    try:
        make()
    except (OSError, ValueError) as error:
        entry.report(str(error))


def _revealed(value: Any) -> Any:
    if isinstance(value, Secret):
        try:
            return value.read()
        except ValueError as error:
            logger.warning("%s; its last contents are used", error)
            return value.value
    if isinstance(value, Mapping):
        return {key: _revealed(item) for key, item in value.items()}
    return value


def _without_login(url: str) -> str:
    """`url` without ``user:password@``, for reprs."""
    return re.sub(r"(://)[^/@:]*:[^/@]*@", r"\1", url)
