"""The file of ``--ssl_config_file``, by which TensorFlow Serving speaks TLS: written, read and checked.

    write_ssl_config("ssl.config", key="server.key", certificate="server.pem", ca="clients-ca.pem",
                     client_verify=True)
    for finding in check_ssl_config("ssl.config", host="models.example.org"):
        print(finding)

The file is the text of an `SSLConfig` message with the *contents* of PEM files inside. The server reads
it once, when it starts, and says little about what is wrong with it; clients see failed connections.
So writing refuses what cannot work, and checking, which needs the extra ``tls`` (the `cryptography`
package), also finds what works badly or not for long. What a client needs is in `security`.
"""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import itertools
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aioserving import pem
from aioserving.messages import SSLConfig

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from aioserving.pem import PEM

__all__ = ["Finding", "check_ssl_config", "make_ssl_config", "read_ssl_config", "write_ssl_config"]

#: Days before a certificate expires from which `check_ssl_config` warns.
_SOON: Final = 30

_PATH: Final = re.compile(r"^(\.{0,2}/|~|[A-Za-z]:\\)|\.(pem|key|crt|cer|cert|der|p12|pfx)$")


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a configuration, or soon will be."""

    #: The field of `SSLConfig` that has to change.
    field: str
    #: ``"error"``: connections fail, now or for somebody; ``"warning"``: not what it seems, or not for long.
    severity: str
    #: What is wrong, and what to do; nothing of a key.
    text: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.field}: {self.text}"


def make_ssl_config(
    *, key: PEM, certificate: PEM, ca: PEM | None = None, client_verify: bool = False
) -> SSLConfig:
    """The configuration of a server, made of PEM contents or of the files they are in.

    Args:
        key: the server's private key, not encrypted. PEM text, bytes or a path, as all that follow.
        certificate: its certificate, followed by those that lead to the authority's.
        ca: certificates of the authorities whose clients are let in; only used with `client_verify`.
        client_verify: whether clients need a certificate (mutual TLS).

    Raises:
        OSError: a file cannot be read.
        ValueError: something is not the PEM it should be, the key is not the certificate's, or clients
            are to be verified without an authority.
    """
    key_block = pem.private_key(pem.read(key, "key"), "key")
    chain = pem.certificates(pem.read(certificate, "certificate"), "certificate")
    pem.check_pair(chain, key_block, "key and certificate")
    authorities = [] if ca is None else pem.certificates(pem.read(ca, "ca"), "ca")
    if client_verify and not authorities:
        raise ValueError(
            "client_verify needs a ca: the server would ask every client for a certificate and could "
            "verify none"
        )
    # Nothing but the blocks: a file with both does not put a second copy of the key among certificates.
    return SSLConfig(
        server_key=key_block.text,
        server_cert="".join(block.text for block in chain),
        custom_ca="".join(block.text for block in authorities),
        client_verify=client_verify,
    )


def write_ssl_config(
    path: str | os.PathLike[str],
    *,
    key: PEM,
    certificate: PEM,
    ca: PEM | None = None,
    client_verify: bool = False,
) -> SSLConfig:
    """Write the file for ``--ssl_config_file``, readable by its owner alone: a private key is in it.

    It appears at once and whole, replacing what was there; a server that runs has to be restarted to
    read it. The arguments and errors are those of `make_ssl_config`.

    Returns:
        What was written.
    """
    config = make_ssl_config(key=key, certificate=certificate, ca=ca, client_verify=client_verify)
    path = os.path.abspath(path)
    descriptor, partial = tempfile.mkstemp(  # mode 0600
        prefix=f".{os.path.basename(path)}.", dir=os.path.dirname(path)
    )
    try:
        with open(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(config.to_text())
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(partial)
        raise
    return config


def read_ssl_config(path: str | os.PathLike[str]) -> SSLConfig:
    """What the server would read from the file at `path`, unchecked.

    Raises:
        DecodeError: not the text of an SSLConfig; says the line and column, and shows nothing of a key.
        OSError: the file cannot be read.
    """
    return SSLConfig.from_text(os.path.abspath(path) if isinstance(path, str) else path)


def check_ssl_config(
    config: SSLConfig | str | os.PathLike[str],
    *,
    host: str | None = None,
    now: datetime.datetime | None = None,
) -> tuple[Finding, ...]:
    """Everything that is wrong with a configuration, errors first; empty if it is sound.

    Found are: a path where contents belong, damaged or encrypted contents, a key that is not the
    certificate's, certificates that are expired, not yet valid or about to expire, a chain out of order,
    a certificate that is not for servers or not for `host`, client verification without an authority, an
    authority without client verification, and (of a file) a mode that lets others read the key.

    Args:
        config: the configuration, or the path of its file.
        host: the name or IP address by which clients call the server.
        now: the time to check at, with a time zone; None for the present.

    Raises:
        DecodeError: the file is not the text of an SSLConfig.
        ImportError: the extra ``tls`` is not installed.
        OSError: the file cannot be read.
        ValueError: `now` has no time zone.
    """
    _cryptography()  # before anything is found that is not all there is
    if now is None:
        now = datetime.datetime.now(datetime.timezone.utc)
    elif now.tzinfo is None:
        raise ValueError("now needs a time zone: datetime.now(timezone.utc)")
    findings: list[Finding] = []
    if not isinstance(config, SSLConfig):
        if os.name == "posix" and os.stat(config).st_mode & 0o077:
            findings.append(
                Finding("server_key", "warning", "others than the owner may use the file; chmod 600 it")
            )
        config = read_ssl_config(config)
    key = _checked(findings, "server_key", config.server_key, pem.private_key)
    chain = _checked(findings, "server_cert", config.server_cert, pem.certificates)
    authorities: list[pem.Block] | None = None
    if config.custom_ca:
        authorities = _checked(findings, "custom_ca", config.custom_ca, pem.certificates)
    if chain is not None:
        if key is not None:
            try:
                pem.check_pair(chain, key, "server_key")
            except ValueError as error:
                findings.append(Finding("server_key", "error", _without_label(error)))
        findings += _about_certificates("server_cert", chain, now)
        findings += _about_server(chain, host)
    if authorities is not None:
        findings += _about_certificates("custom_ca", authorities, now)
        for number, certificate in enumerate(_loaded(authorities), start=1):
            if not _is_authority(certificate):
                findings.append(
                    Finding("custom_ca", "error", f"certificate {number} is not an authority's (CA: false)")
                )
    if config.client_verify and not config.custom_ca:
        findings.append(
            Finding(
                "client_verify",
                "error",
                "the server would ask every client for a certificate and could verify none; set custom_ca",
            )
        )
    elif config.custom_ca and not config.client_verify:
        findings.append(
            Finding(
                "custom_ca",
                "warning",
                "it has no effect: without client_verify, clients are not asked for a certificate",
            )
        )
    return tuple(sorted(findings, key=lambda finding: finding.severity))  # "error" < "warning"; stable


def _cryptography() -> Any:
    try:
        from cryptography import x509
    except ImportError as error:
        raise ImportError(
            "checking certificates needs the cryptography package: pip install 'aioserving[tls]'"
        ) from error
    return x509


def _checked(findings: list[Finding], field: str, value: str, read: Any) -> Any:
    """What `read` finds in the contents of a field; None, and a finding, if it does not."""
    text = value.strip()
    if not text:
        findings.append(Finding(field, "error", "it is not set"))
    elif "-----BEGIN" not in text and _PATH.search(text) and len(text) < 1024 and "\n" not in text:
        findings.append(
            Finding(
                field,
                "error",
                f"it is a path ({text}), and the server expects the contents of that file; write_ssl_config "
                "puts them in",
            )
        )
    elif "-----BEGIN" not in text:
        findings.append(Finding(field, "error", "it is not PEM (no line says -----BEGIN ...-----)"))
    else:
        try:
            return read(value, field)
        except ValueError as error:
            findings.append(Finding(field, "error", _without_label(error)))
    return None


def _without_label(error: ValueError) -> str:
    return str(error).partition(": ")[2]


def _loaded(blocks: Sequence[pem.Block]) -> list[Certificate]:
    x509 = _cryptography()
    return [x509.load_der_x509_certificate(block.der) for block in blocks]


def _about_certificates(field: str, blocks: Sequence[pem.Block], now: datetime.datetime) -> list[Finding]:
    """When they are valid."""
    findings = []
    for number, certificate in enumerate(_loaded(blocks), start=1):
        name = f"certificate {number} ({certificate.subject.rfc4514_string() or 'no subject'})"
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > end:
            findings.append(Finding(field, "error", f"{name} expired on {end:%Y-%m-%d %H:%M} UTC"))
        elif now < begin:
            findings.append(Finding(field, "error", f"{name} is not valid before {begin:%Y-%m-%d %H:%M} UTC"))
        elif (end - now).days < _SOON:
            findings.append(
                Finding(field, "warning", f"{name} expires on {end:%Y-%m-%d %H:%M} UTC, within {_SOON} days")
            )
    return findings


def _about_server(blocks: Sequence[pem.Block], host: str | None) -> list[Finding]:
    """The order of the chain, and whom its first certificate is for."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.x509.oid import ExtendedKeyUsageOID

    x509 = _cryptography()
    chain = _loaded(blocks)
    findings = []
    for number, (issued, issuer) in enumerate(itertools.pairwise(chain), start=1):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, TypeError, InvalidSignature):
            findings.append(
                Finding(
                    "server_cert",
                    "error",
                    f"certificate {number} was not issued by the one that follows it; the server's own comes "
                    "first, then its issuer, then that one's",
                )
            )
    leaf = chain[0]
    usage = _extension(leaf, x509.ExtendedKeyUsage)
    any_usage = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    if usage is not None and not any_usage & set(usage):
        findings.append(
            Finding(
                "server_cert", "error", "certificate 1 is not for servers (its key usage lacks serverAuth)"
            )
        )
    names = _extension(leaf, x509.SubjectAlternativeName)
    if names is None:
        findings.append(
            Finding("server_cert", "error", "certificate 1 names no host (it has no subjectAltName)")
        )
    elif host is not None:
        dns = names.get_values_for_type(x509.DNSName)
        addresses = names.get_values_for_type(x509.IPAddress)
        if not _covers(dns, addresses, host):
            listed = ", ".join(map(str, (*dns, *addresses))) or "neither names nor addresses"
            findings.append(
                Finding("server_cert", "error", f"certificate 1 is not for {host}; it is for {listed}")
            )
    return findings


def _extension(certificate: Certificate, kind: Any) -> Any:
    """The value of an extension, or None."""
    x509 = _cryptography()
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _is_authority(certificate: Certificate) -> bool:
    constraints = _extension(certificate, _cryptography().BasicConstraints)
    return constraints is None or bool(constraints.ca)  # certificates of old have none


def _covers(dns: Sequence[str], addresses: Sequence[Any], host: str) -> bool:
    """Whether a certificate for these names and addresses is good for `host`, as gRPC decides it."""
    try:
        return ipaddress.ip_address(host.strip("[]")) in addresses
    except ValueError:
        pass
    name = host.rstrip(".").lower()
    for pattern in (item.rstrip(".").lower() for item in dns):
        if pattern == name:
            return True
        # A wildcard is the whole first label, and stands for exactly one.
        if pattern.startswith("*.") and name.partition(".")[2] == pattern[2:] and name.partition(".")[0]:
            return True
    return False
