"""aioserving.ssl_config: the file by which a server speaks TLS, and our client against a server with it."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from aioserving import AsyncClient, DecodeError, UnavailableError
from aioserving.messages import SSLConfig
from aioserving.ssl_config import (
    Finding,
    check_ssl_config,
    make_ssl_config,
    read_ssl_config,
    write_ssl_config,
)
from aioserving.testing import ServerProcess

trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

ROOT = Path(__file__).parents[1]
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.timezone.utc)
DAY = datetime.timedelta(days=1)

AUTHORITY = trustme.CA()
CA: bytes = AUTHORITY.cert_pem.bytes()


def issued(*names: str, by: Any = AUTHORITY, **options: Any) -> dict[str, Any]:
    """A key and a certificate, as keyword arguments."""
    made = by.issue_cert(*names, **options)
    chain = b"".join(item.bytes() for item in made.cert_chain_pems)
    return {"key": made.private_key_pem.bytes(), "certificate": chain}


SERVER = issued("localhost", "127.0.0.1", "*.example.org")
CLIENT = issued("client@example.org")


def findings(config: Any, **options: Any) -> list[str]:
    options.setdefault("now", NOW)
    return [str(finding) for finding in check_ssl_config(config, **options)]


# ------------------------------------------------------------------------------------------------ writing


def test_the_file_holds_contents_and_reads_back(tmp_path: Path) -> None:
    """Paths, text and bytes give the same file: PEM contents in the text format, as the server reads it."""
    for name, content in (("key", SERVER["key"]), ("cert", SERVER["certificate"]), ("ca", CA)):
        (tmp_path / name).write_bytes(content.replace(b"\n", b"\r\n"))
    written = write_ssl_config(
        tmp_path / "a",
        key=tmp_path / "key",
        certificate=str(tmp_path / "cert"),
        ca=tmp_path / "ca",
        client_verify=True,
    )
    write_ssl_config(
        tmp_path / "b",
        key=SERVER["key"].decode(),
        certificate=SERVER["certificate"],
        ca=CA,
        client_verify=True,
    )
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text()
    read = read_ssl_config(tmp_path / "a")
    assert read == written == read_ssl_config(str(tmp_path / "a"))
    assert (read.server_key.encode(), read.server_cert.encode()) == (SERVER["key"], SERVER["certificate"])
    assert (read.custom_ca.encode(), read.client_verify) == (CA, True)
    assert "\\r" not in (tmp_path / "a").read_text()


def test_only_the_owner_may_read_the_file_and_it_appears_whole(tmp_path: Path) -> None:
    """The mode is 0600 whatever was there before; what cannot be written leaves the old file alone."""
    path = tmp_path / "ssl.config"
    path.write_text("old")
    path.chmod(0o644)
    with pytest.raises(ValueError, match="client_verify needs a ca"):
        write_ssl_config(path, **SERVER, client_verify=True)
    assert path.read_text() == "old"
    write_ssl_config(path, **SERVER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["ssl.config"]
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError):
        write_ssl_config(tmp_path / "folder", **SERVER)
    assert sorted(os.listdir(tmp_path)) == ["folder", "ssl.config"]


def test_a_combined_file_serves_as_both() -> None:
    """Key and certificates are taken out of one text; the key does not end up among the certificates."""
    both = SERVER["key"] + SERVER["certificate"]
    config = make_ssl_config(key=both, certificate=both)
    assert config == make_ssl_config(**SERVER)
    assert "KEY" not in config.server_cert


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"key": SERVER["certificate"]}, ValueError, "^key: expected a private key, found CERTIFICATE"),
        (
            {"certificate": SERVER["key"]},
            ValueError,
            "^certificate: expected a certificate, found EC PRIVATE",
        ),
        ({"key": CLIENT["key"]}, ValueError, "^key and certificate: the key does not belong"),
        ({"key": "/nowhere/key.pem"}, FileNotFoundError, "key: No such file .*'/nowhere/key.pem'"),
        ({"ca": "/nowhere/ca.pem"}, FileNotFoundError, "ca: No such file .*'/nowhere/ca.pem'"),
        ({"ca": CA[:100]}, ValueError, "^ca: the CERTIFICATE in it has no end"),
        ({"client_verify": True}, ValueError, "client_verify needs a ca"),
        (
            {"key": SERVER["key"].replace(b"EC PRIVATE", b"ENCRYPTED PRIVATE")},
            ValueError,
            "^key: the private key is encrypted",
        ),
    ],
)
def test_what_cannot_work_is_not_written(
    tmp_path: Path, arguments: dict[str, Any], error: type[Exception], reason: str
) -> None:
    """Every wrong argument is named with the reason, and no file appears."""
    with pytest.raises(error, match=reason):
        write_ssl_config(tmp_path / "f", **{**SERVER, **arguments})
    assert os.listdir(tmp_path) == []


def test_nothing_shows_the_key() -> None:
    """Reprs, HTML and errors about the text leave the key out."""
    secret = SERVER["key"].decode().splitlines()[1]
    config = make_ssl_config(**SERVER)
    assert secret in config.to_text()
    for shown in (repr(config), str(config), config._repr_html_(), repr([config]), f"{config}"):
        assert secret[:12] not in shown
        assert "server_key" in shown
    short = SSLConfig(server_key="s3cret")
    assert repr(short) == "SSLConfig(server_key='<6 characters>')"
    assert "s3cret" not in f"{short} {short._repr_html_()}"
    broken = config.to_text().replace("server_key: ", "server_key ")
    unquoted = config.to_text().replace('"', "")
    unended = config.to_text().replace('"', "", 1)
    for text in (broken, unquoted, unended):
        with pytest.raises(
            DecodeError, match=r"text, line 1, column \d+: not the text of an SSLConfig"
        ) as caught:
            SSLConfig.from_text(text)
        assert secret[:12] not in "".join(map(str, (caught.value, caught.value.__cause__)))
    with pytest.raises(
        DecodeError, match=r'text, line 1, column 1: SSLConfig has no field named "server_kee"'
    ):
        SSLConfig.from_text('server_kee: "x"')


# ----------------------------------------------------------------------------------------------- checking


def test_a_sound_configuration_has_no_findings(tmp_path: Path) -> None:
    """With and without client verification, as an object and as a file, for every name it covers."""
    mutual: dict[str, Any] = {"ca": CA, "client_verify": True}
    for options in ({}, mutual):
        config = write_ssl_config(tmp_path / "f", **SERVER, **options)
        for host in (None, "localhost", "127.0.0.1", "a.example.org", "LOCALHOST."):
            assert findings(config, host=host) == []
            assert findings(tmp_path / "f", host=host) == []


def test_a_path_in_place_of_contents_is_told() -> None:
    """The commonest mistake gets its own words."""
    config = SSLConfig(server_key="/etc/tls/server.key", server_cert="server.pem", custom_ca="~/ca.crt")
    assert findings(config) == [
        f"error: {field}: it is a path ({path}), and the server expects the contents of that file; "
        "write_ssl_config puts them in"
        for field, path in (
            ("server_key", "/etc/tls/server.key"),
            ("server_cert", "server.pem"),
            ("custom_ca", "~/ca.crt"),
        )
    ] + [
        "warning: custom_ca: it has no effect: without client_verify, clients are not asked for a certificate"
    ]


def test_a_key_without_its_lines_is_not_taken_for_a_path() -> None:
    """Bare base64 may look like anything; it is not repeated in the finding."""
    body = "".join(SERVER["key"].decode().splitlines()[1:-1])
    config = make_ssl_config(**SERVER).copy(server_key=body)
    assert findings(config) == ["error: server_key: it is not PEM (no line says -----BEGIN ...-----)"]


def test_empty_and_damaged_fields_are_told() -> None:
    """Each field is checked for itself."""
    config = make_ssl_config(**SERVER)
    assert findings(SSLConfig()) == [
        "error: server_key: it is not set",
        "error: server_cert: it is not set",
    ]
    assert findings(config.copy(server_cert=config.server_cert[:300])) == [
        "error: server_cert: the CERTIFICATE in it has no end; the text was cut short"
    ]
    assert findings(config.copy(server_key=CLIENT["key"].decode())) == [
        "error: server_key: the key does not belong to the certificate"
    ]
    (encrypted,) = findings(config.copy(server_key=config.server_key.replace("EC PRIV", "ENCRYPTED PRIV")))
    assert "server_key: the private key is encrypted" in encrypted


def test_client_verification_and_its_authority_belong_together() -> None:
    """One without the other is an error that shuts everybody out, or a warning: nobody is shut out."""
    config = make_ssl_config(**SERVER)
    assert findings(config.copy(client_verify=True)) == [
        "error: client_verify: the server would ask every client for a certificate and could verify none; "
        "set custom_ca"
    ]
    assert findings(config.copy(custom_ca=CA.decode())) == [
        "warning: custom_ca: it has no effect: without client_verify, clients are not asked for a certificate"
    ]
    own = config.copy(custom_ca=config.server_cert, client_verify=True)
    assert findings(own) == ["error: custom_ca: certificate 1 is not an authority's (CA: false)"]


@pytest.mark.parametrize(
    ("begin", "end", "expected"),
    [
        (-2, -1, r"error: server_cert: certificate 1 \(.*\) expired on 2029-12-31 00:00 UTC"),
        (1, 2, r"error: server_cert: certificate 1 \(.*\) is not valid before 2030-01-02 00:00 UTC"),
        (
            -1,
            29,
            r"warning: server_cert: certificate 1 \(.*\) expires on 2030-01-30 00:00 UTC, within 30 days",
        ),
        (-1, 31, None),
    ],
)
def test_validity(begin: int, end: int, expected: str | None) -> None:
    """Expired and not yet valid are errors, soon to expire is a warning, told by the time given."""
    made = issued("localhost", not_before=NOW + begin * DAY, not_after=NOW + end * DAY)
    found = findings(make_ssl_config(**made))
    if expected is None:
        assert found == []
    else:
        (text,) = found
        assert re.fullmatch(expected, text)


def test_times_need_a_zone() -> None:
    """A time without a zone would be checked against another clock; by default it is now."""
    config = make_ssl_config(
        **issued("localhost", not_after=datetime.datetime.now(datetime.timezone.utc) - DAY)
    )
    with pytest.raises(ValueError, match="now needs a time zone"):
        check_ssl_config(config, now=datetime.datetime(2030, 1, 1))
    (found,) = check_ssl_config(config)
    assert "expired on" in found.text
    assert found == Finding("server_cert", "error", found.text)


def test_the_order_of_the_chain() -> None:
    """Each certificate is followed by its issuer's; a stranger or the reverse order is an error."""
    between = AUTHORITY.create_child_ca()
    leaf = between.issue_cert("localhost")
    chain = [item.bytes() for item in leaf.cert_chain_pems]
    assert len(chain) == 2
    key = leaf.private_key_pem.bytes().decode()
    good = SSLConfig(server_key=key, server_cert=b"".join([*chain, CA]).decode())
    assert findings(good) == []
    wrong = findings(good.copy(server_cert=b"".join([chain[0], CA, chain[1]]).decode()))
    assert wrong == [
        f"error: server_cert: certificate {number} was not issued by the one that follows it; the server's "
        "own comes first, then its issuer, then that one's"
        for number in (1, 2)
    ]
    reverse = findings(good.copy(server_cert=b"".join(chain[::-1]).decode()))
    assert reverse[0].startswith(
        "error: server_key: the key does not belong to the certificate (the server's"
    )


@pytest.mark.parametrize(
    ("host", "covered"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("[::1]", True),
        ("::1", True),
        ("::2", False),
        ("example.org", False),
        ("a.example.org", True),
        ("A.Example.ORG", True),
        ("a.b.example.org", False),
        (".example.org", False),
        ("127.0.0.2", False),
        ("localhost.org", False),
        ("x.calhost", False),
    ],
)
def test_hosts(host: str, covered: bool) -> None:
    """A host is covered by its own name or address, or by a wildcard for its first label."""
    config = make_ssl_config(**issued("localhost", "127.0.0.1", "::1", "*.example.org"))
    expected = [
        f"error: server_cert: certificate 1 is not for {host}; it is for localhost, *.example.org, "
        f"127.0.0.1, {ipaddress.ip_address('::1')}"
    ]
    assert findings(config, host=host) == ([] if covered else expected)


def cryptography_certificate(*extensions: Any) -> SSLConfig:
    """A self-signed configuration with these extensions alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, NOW - DAY, NOW + 365 * DAY)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return SSLConfig(
        server_key=key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
        server_cert=certificate.public_bytes(serialization.Encoding.PEM).decode(),
    )


def test_what_a_certificate_is_for() -> None:
    """Without a name in subjectAltName, or with a key usage for clients alone, clients refuse it."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    clients = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    servers = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert findings(cryptography_certificate(names, servers), host="localhost") == []
    assert findings(cryptography_certificate(names)) == []
    assert findings(cryptography_certificate()) == [
        "error: server_cert: certificate 1 names no host (it has no subjectAltName)"
    ]
    assert findings(cryptography_certificate(names, clients)) == [
        "error: server_cert: certificate 1 is not for servers (its key usage lacks serverAuth)"
    ]


@pytest.mark.skipif(os.name != "posix", reason="modes of files are a matter of Unix")
def test_a_file_that_others_may_read_is_told(tmp_path: Path) -> None:
    """A private key that the group or the world can read is a warning."""
    write_ssl_config(tmp_path / "f", **SERVER)
    (tmp_path / "f").chmod(0o640)
    assert findings(tmp_path / "f") == [
        "warning: server_key: others than the owner may use the file; chmod 600 it"
    ]


def test_errors_come_first() -> None:
    """Who reads one finding reads an error."""
    made = issued("localhost", not_before=NOW - DAY, not_after=NOW + DAY)
    found = findings(make_ssl_config(**made).copy(custom_ca=CA.decode()), host="elsewhere")
    assert [text.partition(":")[0] for text in found] == ["error", "warning", "warning"]


def test_without_the_extra_it_is_named() -> None:
    """Checking says what to install where cryptography is missing; writing needs nothing."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from aioserving.ssl_config import *\n"
        "config = make_ssl_config(key=sys.argv[1], certificate=sys.argv[2])\n"
        "try: check_ssl_config(config)\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, SERVER["key"].decode(), SERVER["certificate"].decode()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert out.stdout.strip() == (
        "checking certificates needs the cryptography package: pip install 'aioserving[tls]'"
    )


# ------------------------------------------------------------------ our client against a server with the file


def serving(path: Path, **flags: Any) -> ServerProcess:
    """A server process with the file at `path`."""
    return ServerProcess(
        callables={"m": "tests.testing.servables:twice"},
        env={"PYTHONPATH": str(ROOT)},
        ssl_config_file=str(path),
        **flags,
    )


def credentials(ca: bytes = CA, key: bytes | None = None, certificate: bytes | None = None) -> Any:
    return grpc.ssl_channel_credentials(ca, key, certificate)


async def outcome(target: str, given: Any, **options: Any) -> Any:
    """What a predict call gives: the numbers, or the error."""
    async with AsyncClient(
        target, credentials=given, timeout=10, channel_options=list(options.items())
    ) as client:
        try:
            return (await client.predict("m", {"x": np.array([1, 2], np.float32)}))["y"].tolist()
        except UnavailableError as error:
            return str(error)


@pytest.mark.anyio
async def test_tls_with_a_server_process(tmp_path: Path) -> None:
    """A server with the written file serves whoever trusts its authority, over TLS and by its name only."""
    write_ssl_config(tmp_path / "f", **SERVER)
    async with serving(tmp_path / "f") as process:
        assert await outcome(process.target, credentials()) == [2.0, 4.0]
        wrong = await outcome(process.target, credentials(trustme.CA().cert_pem.bytes()))
        assert "CERTIFICATE_VERIFY_FAILED" in wrong
        name = {"grpc.ssl_target_name_override": "other.org"}
        assert "Hostname Verification Check failed" in await outcome(process.target, credentials(), **name)
        assert "at 127.0.0.1" in await outcome(process.target, None)


@pytest.mark.anyio
async def test_mutual_tls_with_a_server_process(tmp_path: Path) -> None:
    """With client_verify, only clients with a certificate of the authority get in."""
    write_ssl_config(tmp_path / "f", **SERVER, ca=CA, client_verify=True)
    stranger = issued("stranger@example.org", by=trustme.CA())
    async with serving(tmp_path / "f") as process:
        assert await outcome(process.target, credentials(**CLIENT)) == [2.0, 4.0]
        assert "at 127.0.0.1" in await outcome(process.target, credentials())
        assert "at 127.0.0.1" in await outcome(process.target, credentials(**stranger))


@pytest.mark.anyio
async def test_an_expired_certificate_is_refused_by_the_client(tmp_path: Path) -> None:
    """The server starts with it, as the real one does; every client refuses it and says why."""
    now = datetime.datetime.now(datetime.timezone.utc)
    write_ssl_config(tmp_path / "f", **issued("127.0.0.1", not_before=now - 2 * DAY, not_after=now - DAY))
    async with serving(tmp_path / "f") as process:
        assert "certificate has expired" in await outcome(process.target, credentials())


@pytest.mark.anyio
@pytest.mark.parametrize("client_verify", [False, True])
async def test_a_unix_socket_has_the_same_tls(tmp_path: Path, client_verify: bool) -> None:
    """The socket speaks TLS too, with client verification where TCP has it."""
    path = tmp_path / "socket"
    write_ssl_config(tmp_path / "f", **SERVER, ca=CA, client_verify=client_verify)
    async with serving(tmp_path / "f", grpc_socket_path=str(path)) as process:
        assert process.port
        target, name = f"unix:{path}", {"grpc.ssl_target_name_override": "localhost"}
        assert await outcome(target, credentials(**CLIENT), **name) == [2.0, 4.0]
        without = await outcome(target, credentials(), **name)
        assert without == [2.0, 4.0] if not client_verify else "at unix:" in without
        assert "at unix:" in await outcome(target, None)
