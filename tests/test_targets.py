"""Targets: every form that is taken, every mistake that is refused with advice, and what proxies do."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import math
import pickle
from typing import Any

import grpc
import pytest
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st

from aioserving.targets import Target, join_host_port, parse_targets, proxy_note

NOTHING: dict[str, str] = {}


# -- forms ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "addresses"),
    [
        ("localhost:8500", ["localhost:8500"]),
        (" localhost:8500 ", ["localhost:8500"]),
        ("a_b-c.example.:1", ["a_b-c.example.:1"]),
        ("10.0.0.1:65535", ["10.0.0.1:65535"]),
        ("[::1]:8500", ["[::1]:8500"]),
        ("[fe80::1%eth0]:8500", ["[fe80::1%eth0]:8500"]),
        ("unix:///run/s.sock", ["unix:///run/s.sock"]),
        ("unix:s.sock", ["unix:s.sock"]),
        ("unix:/run/a:b", ["unix:/run/a:b"]),
        ("unix-abstract:serving", ["unix-abstract:serving"]),
        ("dns:///name:8500", ["dns:///name:8500"]),
        ("dns:name:8500", ["dns:name:8500"]),
        ("xds:///service", ["xds:///service"]),
        ("vsock:3:8500", ["vsock:3:8500"]),
        ("ipv4:1.2.3.4:8500,5.6.7.8:8501", ["ipv4:1.2.3.4:8500", "ipv4:5.6.7.8:8501"]),
        ("ipv6:[::1]:1,[::2]:2", ["ipv6:[::1]:1", "ipv6:[::2]:2"]),
        ("a:1, b:2,dns:///c:3", ["a:1", "b:2", "dns:///c:3"]),
        ("ipv4:1.2.3.4:1,dns:///c:3,d:4", ["ipv4:1.2.3.4:1", "dns:///c:3", "d:4"]),
        (["a:1", "b:2,c:3", Target("d:4")], ["a:1", "b:2", "c:3", "d:4"]),
        (("a:1",), ["a:1"]),
        (iter(["a:1"]), ["a:1"]),
        (Target("a:1"), ["a:1"]),
    ],
)
def test_forms(given: Any, addresses: list[str]) -> None:
    """Strings, lists in strings, sequences and objects give endpoints in order, addresses as written."""
    parsed = parse_targets(given)
    assert [target.address for target in parsed] == addresses
    assert all(target.weight == 1 and target.server_name is None for target in parsed)


def test_weights() -> None:
    """A mapping's weight is that of every target in its key; an object brings its own."""
    parsed = parse_targets({"a:1": 2, "b:1,dns:///c:1": 0.5})
    assert [(target.address, target.weight) for target in parsed] == [
        ("a:1", 2),
        ("b:1", 0.5),
        ("dns:///c:1", 0.5),
    ]
    assert parse_targets([Target("a:1", 3), "b:1"]) == (Target("a:1", 3), Target("b:1", 1))


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan, True, "2", None])
def test_weights_are_checked(weight: Any) -> None:
    """A weight is a number above 0, in a mapping and in an object."""
    with pytest.raises(ValueError, match="weight of target 'a:1' must be a number above 0"):
        parse_targets({"a:1": weight})
    with pytest.raises(ValueError, match="weight of target 'a:1'"):
        Target("a:1", weight)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "a target is a string such as '127.0.0.1:8500', got ''"),
        ("  ", "such as"),
        ([], "at least one target is needed"),
        ({}, "at least one"),
        ([None], "string such as .* got None"),
        (None, "got None"),
        (8500, "got 8500"),
        (b"a:1", "got b'a:1'"),
        ([b"a:1"], "got b'a:1'"),
        ("localhost", "has no port: .* usually 8500, so perhaps 'localhost:8500'"),
        ("localhost:", "perhaps 'localhost:8500'"),
        (":8500", "no port"),
        ("localhost:0", "no port"),
        ("localhost:99999", "no port"),
        ("localhost:٨٥٠٠", "no port"),
        ("localhost:8500/v1", "perhaps 'localhost:8500'"),
        ("dns:///name", "perhaps 'dns:///name:8500'"),
        ("10.0.0.1", "perhaps '10.0.0.1:8500'"),
        ("::1", r"perhaps '\[::1\]:8500'"),
        ("[::1]", r"perhaps '\[::1\]:8500'"),
        ("ipv6:::1", r"perhaps 'ipv6:\[::1\]:8500'"),
        ("fe80::1:2:3:99999", r"no port.*perhaps '\[fe80::1:2:3:99999\]:8500'|has no"),
        ("::1:8500", r"lacks the brackets .* write '\[::1\]:8500'"),
        ("[name]:1", "no IPv6 address in its brackets"),
        ("[1.2.3.4]:1", "no IPv6 address in its brackets"),
        ("a:b:1", "no host name: 'a:b' is none"),
        ("a b:1", "no host name: 'a b' is none"),
        ("user@a:1", "no host name"),
        ("-a:1", "no host name"),
        ("http://localhost:8500", "has no 'http' scheme: write 'localhost:8500'"),
        ("https://localhost:8500/", "write 'localhost:8500', not 'https"),
        ("grpc://localhost:8500", "write 'localhost:8500'"),
        ("HTTP://localhost:8500", "has no 'HTTP' scheme"),
        ("zookeeper://a:1", "unknown scheme, 'zookeeper'; known are dns, ipv4"),
        ("dns://8.8.8.8/name:1", "names a DNS server, .*write 'dns:///name:1'"),
        ("dns://name:1", "lacks a slash: write 'dns:///name:1'"),
        ("ipv4:name:1", "no IPv4 address: 'name' is none"),
        ("ipv4:[::1]:1", "no IPv4 address"),
        ("ipv6:1.2.3.4:1", "no IPv6 address"),
        ("ipv4:1.2.3.4:1,name:2", "no IPv4 address: 'name' is none"),
        ("unix:", "has no path"),
        ("unix:///", "has no path"),
        ("unix://tmp/s", "lacks a slash: write 'unix:///tmp/s', or 'unix:tmp/s'"),
        ("unix-abstract:", "has no name"),
        ("a:1,", "nothing between two commas, or beside one, in 'a:1,'"),
        ("a:1,,b:1", "nothing between two commas"),
        (["a:1", "a:1"], "target 'a:1' is named twice"),
        ("a:1,A:1", "target 'A:1' is named twice, first as 'a:1'"),
        (["127.0.0.1:1", "ipv4:127.0.0.1:1"], "twice, first as '127.0.0.1:1'"),
        (["[::1]:1", "[0:0::1]:1"], "twice"),
        (["unix:/s", "unix:///s"], "twice"),
        (["dns:a:1", "dns:///a:1"], "twice"),
        ({"a:1": 1, "b:1,a:1": 2}, "twice"),
    ],
)
def test_mistakes(given: Any, message: str) -> None:
    """What is malformed is refused, and the text says what would be right."""
    with pytest.raises(ValueError, match=message):
        parse_targets(given)


def test_an_object_is_one_endpoint() -> None:
    """Lists in an object are refused, and commas in a socket's path, which gRPC would take for a list."""
    with pytest.raises(ValueError, match="no host name"):
        Target("a:1,b:1")
    with pytest.raises(ValueError, match="several addresses, where one is needed"):
        Target("ipv4:1.2.3.4:1,5.6.7.8:1")
    with pytest.raises(ValueError, match="comma, at which gRPC would cut it in two"):
        Target("unix:/a,b")


@pytest.mark.parametrize("name", ["", "a:1", "a b", "http://a", 1, "[::1]"])
def test_server_names_are_checked(name: Any) -> None:
    """A server name is a host name or an address, without a port."""
    with pytest.raises(ValueError, match="server_name of target '10.0.0.1:1' must be a host name"):
        Target("10.0.0.1:1", server_name=name)


labels = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
# Something that no part of an IPv4 address can be, so that it is a name for certain.
names = st.lists(labels, min_size=0, max_size=3).map(lambda parts: ".".join(["n", *parts]))
ports = st.integers(1, 65535)
ips = st.ip_addresses().map(str)


@given(st.lists(st.tuples(st.one_of(names, ips), ports), min_size=1, max_size=8, unique=True))
def test_host_and_port_come_back(pairs: list[tuple[str, int]]) -> None:
    """Hosts and ports of every kind are read as they were written, one by one and as a list in a string."""
    written = [join_host_port(host, port) for host, port in pairs]
    for parsed in (parse_targets(written), parse_targets(",".join(written))):
        assert [(target.host, target.port) for target in parsed] == pairs
        assert [target.address for target in parsed] == written
        assert parse_targets(parsed) == parsed
        assert not any(target.to_resolve for target in parsed)


@given(names, ports, st.lists(ips, unique=True), st.floats(0.1, 100))
def test_a_name_becomes_its_addresses(name: str, port: int, found: list[str], weight: float) -> None:
    """Every address of a name is an endpoint with the name's port and weight, called by the name."""
    (target,) = parse_targets({f"dns:///{name}:{port}": weight})
    assert target.to_resolve
    for ip in found:
        endpoint = target.at(ip)
        assert endpoint == Target(join_host_port(ip, port), weight, name)
        assert not endpoint.to_resolve
        assert endpoint.key == Target(join_host_port(ip, port)).key
        assert endpoint.authority == f"{name}:{port}"


@given(ips, ports)
def test_keys_tell_endpoints_apart_and_nothing_else(ip: str, port: int) -> None:
    """All ways to write an address have one key; names to resolve and to connect to have different ones."""
    address = ipaddress.ip_address(ip)
    ways = {join_host_port(ip, port), f"dns:///{join_host_port(ip, port)}"}
    ways.add(f"ipv{address.version}:{join_host_port(ip, port)}")
    if address.version == 6:
        ways.add(join_host_port(address.exploded.upper(), port))
    assert len({Target(way).key for way in ways}) == 1
    assert Target("name:1").key != Target("dns:///name:1").key
    assert Target("name:1").key != Target("name:2").key
    assert Target("unix:/a").key != Target("unix-abstract:/a").key


@given(st.text(max_size=30) | st.from_regex(r"(dns|unix|ipv[46]|xds|[a-z]*)(:|://|:///)[\[\]:.,/0-9a-f%]*"))
def test_any_text_is_taken_or_refused(text: str) -> None:
    """Whatever is written gives targets that can be written again, or a ValueError."""
    with contextlib.suppress(ValueError):
        for target in parse_targets(text):
            assert parse_targets(target.address) == (target,)
            assert target.key
            assert (target.port is None) == (target.host == "")


def test_an_address_is_nothing_to_resolve() -> None:
    """What gRPC need not look up, this library need not either; only names with dns: stand for fleets."""
    assert Target("dns:///name:1").to_resolve
    assert not Target("name:1").to_resolve
    assert not Target("dns:///10.0.0.1:1").to_resolve
    assert not Target("dns:///[::1]:1").to_resolve
    with pytest.raises(ValueError, match="no name to resolve"):
        Target("name:1").at("10.0.0.1")
    with pytest.raises(ValueError, match="'nonsense' is no IP address"):
        Target("dns:///name:1").at("nonsense")


def test_names_of_certificates() -> None:
    """The dot that ends a full name is for the lookup only; a name given is kept; sockets have no port."""
    assert Target("dns:///name.example.:1").at("10.0.0.1").server_name == "name.example"
    assert Target("dns:///name:1", server_name="other").at("10.0.0.1").authority == "other:1"
    assert Target("unix:/s", server_name="other").authority == "other"
    assert Target("10.0.0.1:1", server_name="::1").authority == "[::1]:1"
    assert Target("name:1").authority is None


def test_targets_are_values() -> None:
    """They cannot change, compare by what they say, tell it, and survive pickling."""
    target = Target("10.0.0.1:8500", 2.5, "name")
    assert str(target) == "10.0.0.1:8500 as name with weight 2.5"
    assert str(Target("a:1")) == "a:1"
    assert len({target, Target("10.0.0.1:8500", 2.5, "name")}) == 1
    assert pickle.loads(pickle.dumps(target)) == target
    with pytest.raises(dataclasses.FrozenInstanceError):
        target.weight = 1  # type: ignore[misc]


# -- proxies --------------------------------------------------------------------------------------


PROXY = "http://user:secret@proxy.example:3128"


@pytest.mark.parametrize(
    ("environ", "target", "proxy"),
    [
        ({}, "a.example:1", None),
        ({"http_proxy": PROXY}, "a.example:1", "http_proxy puts the proxy proxy.example:3128"),
        ({"http_proxy": PROXY}, "localhost:1", "http_proxy"),
        ({"http_proxy": PROXY}, "dns:///a.example:1", "http_proxy"),
        ({"HTTP_PROXY": PROXY}, "a.example:1", None),
        (
            {"http_proxy": PROXY, "https_proxy": "http://other:1"},
            "a.example:1",
            "https_proxy puts the proxy other:1 ",
        ),
        ({"http_proxy": PROXY, "grpc_proxy": ""}, "a.example:1", None),
        ({"http_proxy": "socks5://proxy:1"}, "a.example:1", None),
        ({"http_proxy": "proxy:1"}, "a.example:1", None),
        ({"http_proxy": "http://[:1"}, "a.example:1", None),
        ({"http_proxy": PROXY}, "unix:/s", None),
        ({"http_proxy": PROXY}, "unix-abstract:s", None),
        ({"http_proxy": PROXY, "no_proxy": "b.example, .Example"}, "a.example:1", None),
        ({"http_proxy": PROXY, "no_proxy": "b.example,"}, "a.example:1", "add 'a.example' to no_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "*"}, "a.example:1", "http_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "xample"}, "a.example:1", "http_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "."}, "a.example:1", "http_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "10.1.2.3:1", None),
        ({"http_proxy": PROXY, "no_proxy": "10.0.0.0/8"}, "11.1.2.3:1", "add '11.1.2.3' to no_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "10.0.0.0/nonsense"}, "10.1.2.3:1", "http_proxy"),
        ({"http_proxy": PROXY, "no_proxy": "fd00::/8"}, "[fd00::1]:1", None),
        ({"http_proxy": PROXY, "no_proxy": "a.example", "no_grpc_proxy": ""}, "a.example:1", "http_proxy"),
    ],
)
def test_proxy_notes(environ: dict[str, str], target: str, proxy: str | None) -> None:
    """The note names the variable and the proxy, never its password, where gRPC would use the proxy."""
    note = proxy_note(Target(target), environ)
    if proxy is None:
        assert note is None
    else:
        assert note is not None
        assert proxy in note
        assert "secret" not in note


def test_proxies_and_resolved_names() -> None:
    """An endpoint is exempt by the name that it was found by, which gRPC alone could not know any more."""
    environ = {"http_proxy": PROXY, "no_proxy": ".svc.local"}
    endpoint = Target("dns:///a.svc.local:1").at("10.0.0.1")
    assert proxy_note(endpoint, environ) is None
    assert ("grpc.enable_http_proxy", 0) in endpoint.channel_options(environ)
    other = Target("dns:///a.example:1").at("10.0.0.1")
    assert "add 'a.example' to no_proxy" in (proxy_note(other, environ) or "")
    assert other.channel_options(environ) == (("grpc.default_authority", "a.example:1"),)
    assert Target("10.0.0.1:1").channel_options(environ) == ()


@pytest.mark.parametrize(
    ("target", "no_proxy"),
    [
        ("127.0.0.1:9", ""),
        ("ipv4:127.0.0.1:9", ""),
        ("localhost:9", "example"),
        ("localhost:9", ".LocalHost"),
        ("127.0.0.1:9", "127.0.0.1"),
        ("127.0.0.1:9", "127.3.4.5/8"),
        ("127.0.0.1:9", "10.0.0.0/8, example"),
        ("127.0.0.1:9", "0.1"),
        ("[::1]:9", "::1"),
        ("[::1]:9", "[::1]"),
        ("[::1]:9", "::/0"),
        ("localhost:9", "*"),
        ("localhost:9", "."),
        ("localhost:9", "localhost:9"),
        ("unix:/nowhere", ""),
        ("unix-abstract:nowhere", ""),
    ],
)
def test_grpc_agrees_about_proxies(target: str, no_proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC itself asks the proxy exactly where the note says so."""

    async def story(environ: dict[str, str]) -> bytes:
        seen = b""

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            seen = await reader.readuntil(b"\r\n")
            writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        async with server:
            environ["http_proxy"] = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for name, value in environ.items():
                monkeypatch.setenv(name, value)
            options = list(Target(target).channel_options(environ))
            channel: Any
            async with aio.insecure_channel(target, options=options) as channel:
                with pytest.raises(aio.AioRpcError) as caught:
                    await channel.unary_unary("/service/method")(b"", timeout=10)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        return seen

    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    environ = {"no_proxy": no_proxy}
    seen = asyncio.run(story(environ))
    assert (seen != b"") == (proxy_note(Target(target), environ) is not None)


def test_tls_goes_by_the_name() -> None:
    """A connection to a resolved address looks for the name in the certificate, not for the address."""
    trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")
    authority = trustme.CA()
    certificate = authority.issue_cert("models.example")

    async def answer(request: bytes, context: aio.ServicerContext[Any, Any]) -> bytes:
        return b"answer"

    class Handler(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    async def call(target: Target, trusted: grpc.ChannelCredentials) -> object:
        options = list(target.channel_options(NOTHING))
        channel: Any
        async with aio.secure_channel(target.address, trusted, options=options) as channel:
            return await channel.unary_unary("/service/method")(b"", timeout=10)

    async def story() -> None:
        server = aio.server(handlers=[Handler()])
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        credentials = grpc.ssl_server_credentials([(certificate.private_key_pem.bytes(), chain)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
            name = Target(f"dns:///models.example:{port}")
            assert await call(name.at("127.0.0.1"), trusted) == b"answer"
            for wrong in (
                Target(f"dns:///other.example:{port}").at("127.0.0.1"),
                Target(f"127.0.0.1:{port}"),
            ):
                with pytest.raises(aio.AioRpcError, match="(?i)hostname verification"):
                    await call(wrong, trusted)
        finally:
            await server.stop(None)

    asyncio.run(story())
