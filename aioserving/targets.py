"""What a user may give as targets, and what becomes of it: a `Target` for each endpoint.

    "10.0.0.7:8500"                       one endpoint
    "a.example:8500,b.example:8500"       two; so is ["a.example:8500", "b.example:8500"]
    {"a.example:8500": 1, "b.example:8500": 3}   two, of which one gets three of four calls
    "dns:///models.example:8500"          as many as the name has addresses, kept up to date
    "unix:///run/serving.sock"            a Unix socket
    "ipv4:10.0.0.7:8500,10.0.0.8:8500"    two

``"name:port"`` and ``"dns:///name:port"`` are not the same. The first is one endpoint: gRPC looks the name
up when it connects, and takes the first address that accepts a connection. That suits a single server
whose name has several addresses of which some refuse (``localhost`` is ``::1`` and ``127.0.0.1``, and servers
often listen on one of them), and names behind which a load balancer stands. The second says that the
name stands for a fleet: this library looks it up, again and again, and every address becomes an endpoint
of its own (`aioserving.resolver`), which is what a headless service of Kubernetes needs.

Everything here is a function of its arguments: nothing is looked up and nothing is connected to.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final, NoReturn, TypeAlias

__all__ = ["Target", "Targets", "join_host_port", "parse_targets", "proxy_note"]

_SCHEMES: Final = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")
_SCHEME: Final = re.compile(rf"({'|'.join(_SCHEMES)}):", re.IGNORECASE)
_FOREIGN: Final = frozenset({"http", "https", "http2", "h2", "grpc", "grpcs", "tcp", "tls", "ssl"})
_BRACKETS: Final = re.compile(r"\[[^]]*\]")
_HOST: Final = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")

#: In the order in which gRPC looks at them; one that is set to nothing means no proxy.
_PROXY_VARIABLES: Final = ("grpc_proxy", "https_proxy", "http_proxy")
_NO_PROXY_VARIABLES: Final = ("no_grpc_proxy", "no_proxy")


@dataclass(frozen=True, slots=True)
class Target:
    """One endpoint, or one name that stands for several.

    Raises:
        ValueError: the address, the weight or the name is malformed; the text says what would be right.
    """

    #: Where it is, as gRPC writes it: ``"host:port"``, ``"unix:///path"``, ``"dns:///name:port"``.
    address: str
    #: How many calls it gets in proportion to others; of a name, that of each of its addresses.
    weight: float = 1.0
    #: The name to look for in its certificate and to call it by in the authority of every call, where it is
    #: not the host in `address`. Endpoints that a name was resolved to have that name here.
    server_name: str | None = None

    def __post_init__(self) -> None:
        _parts(self.address)
        weight = self.weight
        if not isinstance(weight, (int, float)) or isinstance(weight, bool) or not 0 < weight < math.inf:
            raise ValueError(f"weight of target {self.address!r} must be a number above 0, got {weight!r}")
        name = self.server_name
        if name is not None and not (isinstance(name, str) and (_HOST.fullmatch(name) or _ip(name))):
            raise ValueError(
                f"server_name of target {self.address!r} must be a host name without a port, got {name!r}"
            )

    def __str__(self) -> str:
        name = f" as {self.server_name}" if self.server_name is not None else ""
        weight = f" with weight {self.weight:g}" if self.weight != 1 else ""
        return f"{self.address}{name}{weight}"

    @property
    def scheme(self) -> str:
        """``"dns"``, ``"ipv4"``, ``"ipv6"``, ``"unix"``, …; an empty string for ``"host:port"``."""
        return _parts(self.address).scheme

    @property
    def host(self) -> str:
        """The host name or address, without the brackets of IPv6; an empty string if it has none."""
        return _parts(self.address).host

    @property
    def port(self) -> int | None:
        """The port, from 1 to 65535; None if it has none."""
        return _parts(self.address).port

    @property
    def to_resolve(self) -> bool:
        """Whether it is a name that this library resolves, each address of which becomes an endpoint."""
        parts = _parts(self.address)
        return parts.scheme == "dns" and _ip(parts.host) is None

    @property
    def key(self) -> str:
        """The same text for all ways to write the same address: what tells endpoints apart."""
        parts = _parts(self.address)
        if parts.port is None:
            return f"{parts.scheme}:{parts.path}"
        ip = _ip(parts.host)
        if ip is not None:
            return join_host_port(str(ip), parts.port)
        return f"{'dns:' if parts.scheme else ''}{join_host_port(parts.host.lower(), parts.port)}"

    @property
    def authority(self) -> str | None:
        """What calls should say they are addressed to; None leaves it to gRPC, which takes the address."""
        if self.server_name is None:
            return None
        port = _parts(self.address).port
        return self.server_name if port is None else join_host_port(self.server_name, port)

    def at(self, ip: str) -> Target:
        """The endpoint for one address of this name.

        Args:
            ip: the address, IPv4 or IPv6, without brackets and port.

        Raises:
            ValueError: `ip` is no IP address, or this target is no name to resolve.
        """
        parts = _parts(self.address)
        if parts.port is None or not self.to_resolve:
            raise ValueError(f"target {self.address!r} is no name to resolve")
        address = _ip(ip)
        if address is None:
            raise ValueError(f"{ip!r} is no IP address")
        name = self.server_name or parts.host.rstrip(".")
        return replace(self, address=join_host_port(str(address), parts.port), server_name=name)

    def channel_options(self, environ: Mapping[str, str]) -> tuple[tuple[str, str | int], ...]:
        """The gRPC channel arguments that its connections need.

        They are the authority (in which TLS finds the name to look for), and that there is no proxy where
        the environment exempts `server_name` (gRPC itself would only compare the address) and for
        abstract Unix sockets (which gRPC would ask the proxy for).

        Args:
            environ: the environment's variables, such as `os.environ`.
        """
        options: list[tuple[str, str | int]] = []
        authority = self.authority
        if authority is not None:
            options.append(("grpc.default_authority", authority))
        if self.scheme == "unix-abstract" or (self.server_name and _exempt(self.server_name, environ)):
            options.append(("grpc.enable_http_proxy", 0))
        return tuple(options)


#: What a user gives as targets: one or several, as strings or objects, or weights by target.
Targets: TypeAlias = "str | Target | Iterable[str | Target] | Mapping[str, float]"


def parse_targets(targets: Targets) -> tuple[Target, ...]:
    """Read what a user gave as targets.

    Args:
        targets: a string, which may name several separated by commas; a `Target`; several of them; or
            a mapping of strings to weights.

    Returns:
        The targets in the order given, at least one. Those whose `Target.to_resolve` is true are names
        that stand for several endpoints.

    Raises:
        ValueError: one is malformed or named twice, or there is none.
    """
    parsed: list[Target] = []
    if isinstance(targets, (str, bytes, Target)) or not isinstance(targets, Iterable):
        parsed.extend(_parse_one(targets))
    elif isinstance(targets, Mapping):
        for given, weight in targets.items():
            parsed.extend(replace(target, weight=weight) for target in _parse_one(given))
    else:
        for given in targets:
            parsed.extend(_parse_one(given))
    if not parsed:
        raise ValueError("at least one target is needed, such as '127.0.0.1:8500'")
    seen: dict[str, Target] = {}
    for target in parsed:
        other = seen.setdefault(target.key, target)
        if other is not target:
            also = "" if other.address == target.address else f", first as {other.address!r}"
            raise ValueError(f"target {target.address!r} is named twice{also}")
    return tuple(parsed)


def _parse_one(given: object) -> Iterable[Target]:
    if isinstance(given, Target):
        yield given
        return
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"a target is a string such as '127.0.0.1:8500', got {given!r}")
    prefix = ""  # of a list of addresses
    for part in map(str.strip, given.split(",")):
        if not part:
            raise ValueError(f"there is nothing between two commas, or beside one, in {given!r}")
        scheme = _SCHEME.match(part)
        if scheme is None:
            part = prefix + part  # noqa: PLW2901 - the part with what the list's beginning said
        else:
            prefix = scheme.group() if scheme.group(1).lower() in ("ipv4", "ipv6") else ""
        yield Target(part)


def join_host_port(host: str, port: int) -> str:
    """``"host:port"``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an address is made of."""

    scheme: str
    host: str = ""
    port: int | None = None
    path: str = ""


def _parts(address: object) -> _Parts:
    """Take an address apart; the ValueError tells what is wrong with it."""
    if not isinstance(address, str) or not address.strip():
        raise ValueError(f"a target is a string such as '127.0.0.1:8500', got {address!r}")
    before, separator, after = address.partition("://")
    if separator and before.lower() in _FOREIGN:
        raise ValueError(
            f"a gRPC target has no {before!r} scheme: write {after.rstrip('/')!r}, not {address!r}"
        )
    found = _SCHEME.match(address)
    if found is None:
        if separator:
            raise ValueError(
                f"target {address!r} has an unknown scheme, {before!r}; known are {', '.join(_SCHEMES)}"
            )
        return _host_and_port(address, address, "")
    scheme, rest = found.group(1).lower(), address[found.end() :]
    if scheme == "dns":
        if rest.startswith("///"):
            rest = rest[3:]
        elif rest.startswith("//"):
            server, slash, name = rest[2:].partition("/")
            if not slash or not name:
                raise ValueError(f"target {address!r} lacks a slash: write {'dns:///' + server!r}")
            raise ValueError(
                f"target {address!r} names a DNS server, but names are looked up as the system does it: "
                f"write {'dns:///' + name!r}"
            )
        return _host_and_port(address, rest, scheme)
    if scheme in ("ipv4", "ipv6"):
        if "," in rest:
            raise ValueError(f"target {address!r} has several addresses, where one is needed")
        parts = _host_and_port(address, rest, scheme)
        ip = _ip(parts.host)
        if ip is None or ip.version != int(scheme[-1]):
            raise ValueError(f"target {address!r} has no IPv{scheme[-1]} address: {parts.host!r} is none")
        return parts
    if scheme == "unix" and rest.startswith("//"):
        if not rest.startswith("///"):
            raise ValueError(
                f"target {address!r} lacks a slash: write {'unix:///' + rest[2:]!r}, or "
                f"{'unix:' + rest[2:]!r} for a path that begins in the working directory"
            )
        rest = rest[2:]
    if "," in rest and scheme.startswith("unix"):
        raise ValueError(f"target {address!r} has a comma, at which gRPC would cut it in two")
    if not rest.strip("/"):
        what = {"unix": "path", "unix-abstract": "name"}.get(scheme, "address")
        raise ValueError(f"target {address!r} has no {what}")
    return _Parts(scheme, path=rest)


def _host_and_port(address: str, text: str, scheme: str) -> _Parts:
    host, _, digits = text.rpartition(":")
    if not host or not digits.isascii() or not digits.isdecimal() or not 0 < int(digits) < 65536:
        _no_port(address, text)
    port = int(digits)
    bare = host
    if host.startswith("[") and host.endswith("]"):
        bare = host[1:-1]
        ip = _ip(bare)
        if ip is None or ip.version != 6:
            raise ValueError(f"target {address!r} has no IPv6 address in its brackets")
    elif ":" in host:
        if _ip(host) is not None:  # else the port may be a part of the address
            before = address[: len(address) - len(text)]
            raise ValueError(
                f"target {address!r} lacks the brackets around an IPv6 address: "
                f"write '{before}[{host}]:{port}'"
            )
        if _ip(text) is not None:
            _no_port(address, text)
        raise ValueError(f"target {address!r} has no host name: {host!r} is none")
    elif _HOST.fullmatch(host) is None:
        raise ValueError(f"target {address!r} has no host name: {host!r} is none")
    return _Parts(scheme, bare, port)


def _no_port(address: str, text: str) -> NoReturn:
    # What stands for the port may be none, out of range, or followed by a path.
    brackets = _BRACKETS.match(text)
    if brackets is not None:
        host = brackets.group()
    elif _ip(text) is not None:
        host = f"[{text}]" if ":" in text else text
    else:
        host = re.split("[:/]", text, maxsplit=1)[0]
    if not host:
        raise ValueError(f"target {address!r} has no host, or no port: write for example '127.0.0.1:8500'")
    better = f"{address[: len(address) - len(text)]}{host}:8500"
    raise ValueError(
        f"target {address!r} has no port: TensorFlow Serving's gRPC port is usually 8500, so perhaps "
        f"{better!r}"
    )


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def proxy_note(target: Target, environ: Mapping[str, str]) -> str | None:
    """What to add to the error of a failed connection where the environment puts a proxy in between.

    gRPC obeys ``grpc_proxy``, ``https_proxy`` and ``http_proxy`` (in lower case) whatever the target,
    ``localhost`` included, and however the connection is encrypted; ``no_grpc_proxy`` and ``no_proxy`` exempt
    names by their end and addresses by network.

    Args:
        target: what was to be connected to.
        environ: the environment's variables, such as `os.environ`.

    Returns:
        The note, without the proxy's password; None if no proxy is in between.
    """
    variable = next((name for name in _PROXY_VARIABLES if name in environ), None)
    if variable is None or target.scheme in ("unix", "unix-abstract", "vsock"):
        return None
    from urllib.parse import urlsplit

    try:
        proxy = urlsplit(environ[variable])
        place = proxy.netloc.rpartition("@")[2]
    except ValueError:
        return None  # gRPC cannot read it either, and goes without
    if proxy.scheme != "http" or not place:
        return None
    host = target.host
    if any(_exempt(name, environ) for name in (host, target.server_name) if name):
        return None
    exempt = target.server_name or host
    advice = f"add {exempt!r} to no_proxy" if exempt else f"unset {variable}"
    return (
        f"the environment's {variable} puts the proxy {place} in between; if it should not, {advice} or give "
        "the channel option ('grpc.enable_http_proxy', 0)"
    )


def _exempt(host: str, environ: Mapping[str, str]) -> bool:
    """Whether the environment exempts a host from proxies, by the rules of gRPC's core."""
    variable = next((name for name in _NO_PROXY_VARIABLES if name in environ), None)
    if variable is None:
        return False
    ip = _ip(host)
    whole = "." + host.lower()
    for entry in map(str.strip, environ[variable].split(",")):
        domain = entry.lower().removeprefix(".")  # older gRPC also took the end of a label
        if domain and whole.endswith("." + domain):
            return True
        if ip is not None and "/" in entry:
            try:
                network = ipaddress.ip_network(entry, strict=False)
            except ValueError:
                continue
            if ip in network:
                return True
    return False
