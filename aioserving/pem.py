"""PEM texts: certificates and private keys as files and strings hold them, read and checked.

What `ssl_config` and `security` have in common: taking PEM contents or a path, telling what is wrong with
them before gRPC sees them (it says "Invalid private key." in its own log and fails every call), and
whether a key belongs to a certificate. The standard library does the cryptography; no error and no repr
here shows anything of a key. When certificates expire, and whom they name, is left to `ssl_config`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

__all__ = ["PEM", "Block", "blocks", "certificates", "check_pair", "is_path", "private_key", "read", "source"]

#: PEM contents as text or bytes, or the path of a file with them.
PEM: TypeAlias = "str | bytes | os.PathLike[str]"

_BEGIN: Final = "-----BEGIN "
_BOUNDARY: Final = re.compile(r"^-----(BEGIN|END) ([A-Z0-9 ]+)-----$")
_CERTIFICATES: Final = frozenset({"CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"})
_KEYS: Final = frozenset({"PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", "DSA PRIVATE KEY"})
_ENCRYPTED: Final = (
    "is encrypted, and a server or client that starts by itself has nobody to ask for the passphrase; "
    "decrypt it (openssl pkey -in KEY -out NEW_KEY) and protect the file with its mode"
)


@dataclass(frozen=True)
class Block:
    """One PEM block: what it says it is, and its contents, which the repr does not show."""

    #: What stands between ``-----BEGIN`` and the dashes: ``"CERTIFICATE"``, ``"PRIVATE KEY"``, ...
    label: str
    #: The contents, decoded from base64.
    der: bytes = field(repr=False)
    #: The block as text, with the line endings of Unix.
    text: str = field(repr=False)
    #: Whether the headers of the block say that it is encrypted.
    encrypted: bool = False


def is_path(given: PEM) -> bool:
    """Whether `given` names a file: a `pathlib.Path`, or a string or bytes without a PEM block in it."""
    if isinstance(given, str):
        return _BEGIN not in given and "\n" not in given.strip()
    return isinstance(given, os.PathLike)


def source(given: PEM) -> str:
    """How errors call what was given: the path, never the contents."""
    return str(given) if is_path(given) else "the PEM text given"


def read(given: PEM, what: str) -> str:
    """The PEM text that `given` is, or that is in the file it names, with the line endings of Unix.

    Args:
        given: contents or path.
        what: the option it was given for, to begin errors with.

    Raises:
        OSError: the file cannot be read; a `FileNotFoundError` and the like, saying what it was for.
        TypeError: neither text, bytes nor a path.
        ValueError: there is no PEM block in it.
    """
    if not isinstance(given, str | bytes | os.PathLike):
        raise TypeError(f"{what}: expected PEM contents or a path, got {type(given).__name__}")
    if is_path(given):
        if not os.fspath(given):
            raise ValueError(f"{what}: neither PEM contents nor a path, but an empty string")
        try:
            with open(given, "rb") as file:
                data = file.read()
        except OSError as error:
            raise type(error)(error.errno, f"{what}: {error.strerror}", os.fspath(given)) from error
    else:
        data = given if isinstance(given, bytes) else given.encode()  # type: ignore[union-attr]
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = ""
    if _BEGIN not in text:
        raise ValueError(f"{what}: {source(given)} is not PEM{_what_else(data)}")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _what_else(data: bytes) -> str:
    """What a file without PEM blocks may be."""
    if not data.strip():
        return ", but empty"
    if data[:1] == b"\x30":
        return (
            ": it looks like DER or PKCS #12; convert it with openssl x509, openssl pkey or openssl pkcs12, "
            "which write PEM"
        )
    return " (no line says -----BEGIN ...-----)"


def blocks(text: str, what: str) -> list[Block]:
    """The PEM blocks in `text`; what stands around them is a comment.

    Raises:
        ValueError: a block does not end, ends as another one, or its contents are no base64.
    """
    found: list[Block] = []
    label: str | None = None
    lines: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        boundary = _BOUNDARY.match(line.strip())
        if boundary is None:
            if label is not None:
                lines.append(line.strip())
            elif line.lstrip().startswith(_BEGIN):
                raise ValueError(
                    f"{what}: line {number} begins a PEM block and goes on behind it; the line breaks of the "
                    "block are missing, or were written as the two characters \\n"
                )
        elif boundary[1] == "BEGIN":
            if label is not None:
                raise ValueError(f"{what}: line {number} begins a block, and the {label} before has no end")
            label, lines = boundary[2], []
        elif label is None or boundary[2] != label:
            began = "no block has begun" if label is None else f"what has begun is {label}"
            raise ValueError(f"{what}: line {number} ends {boundary[2]}, but {began}")
        else:
            found.append(_block(label, lines, what, number))
            label = None
    if label is not None:
        raise ValueError(f"{what}: the {label} in it has no end; the text was cut short")
    return found


def _block(label: str, lines: list[str], what: str, number: int) -> Block:
    headers = 0
    if lines and ":" in lines[0]:  # RFC 1421: headers until an empty line, as in encrypted keys of old
        headers = lines.index("") + 1 if "" in lines else len(lines)
    try:
        der = base64.b64decode("".join(lines[headers:]), validate=True)
    except binascii.Error:
        der = b""
    if not der:
        raise ValueError(f"{what}: the {label} that ends at line {number} is damaged: not base64") from None
    text = "\n".join((f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""))
    return Block(label, der, text, "ENCRYPTED" in " ".join(lines[:headers]))


def certificates(text: str, what: str) -> list[Block]:
    """The certificates in `text`, in their order; other blocks, such as a key, are passed over.

    Raises:
        ValueError: there is none (says what is there instead), or one that cannot be read.
    """
    every = blocks(text, what)
    found = [block for block in every if block.label in _CERTIFICATES]
    if not found:
        raise ValueError(f"{what}: expected a certificate, found {_listed(every)}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for number, block in enumerate(found, start=1):
        try:
            context.load_verify_locations(cadata=block.der)
        except ssl.SSLError as error:
            which = f"certificate {number} of {len(found)}" if len(found) > 1 else "the certificate"
            raise ValueError(f"{what}: {which} is damaged: not a certificate's contents") from error
    return found


def private_key(text: str, what: str) -> Block:
    """The private key in `text`; other blocks, such as certificates, are passed over.

    Raises:
        ValueError: there is none (says what is there instead), several, or one that is encrypted.
    """
    every = blocks(text, what)
    if any(block.label == "ENCRYPTED PRIVATE KEY" or block.encrypted for block in every):
        raise ValueError(f"{what}: the private key {_ENCRYPTED}")
    found = [block for block in every if block.label in _KEYS]
    if not found:
        advice = ""
        if any(block.label == "OPENSSH PRIVATE KEY" for block in every):
            advice = "; convert a copy of it with ssh-keygen -p -m PEM -f KEY"
        raise ValueError(f"{what}: expected a private key, found {_listed(every)}{advice}")
    if len(found) > 1:
        raise ValueError(f"{what}: expected one private key, found {len(found)}")
    return found[0]


def _listed(every: list[Block]) -> str:
    return ", ".join(dict.fromkeys(block.label for block in every)) or "nothing"


def check_pair(certificate: list[Block], key: Block, what: str) -> None:
    """Make sure that `key` is that of the first of the certificates.

    Raises:
        ValueError: it is another one's, or cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    text = "".join(block.text for block in (*certificate, key))
    try:
        with _as_file(text.encode()) as path:
            context.load_cert_chain(path, password=_nobody)
    except ssl.SSLError as error:
        if "MISMATCH" in (error.reason or ""):
            reason = "the key does not belong to the certificate"
            if len(certificate) > 1:
                reason += " (the server's or client's own certificate comes first, its issuers follow)"
        elif error.reason in {"EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"}:
            reason = f"the certificate is too weak to be accepted ({error.reason})"
        else:
            reason = "the private key is damaged: not a key's contents"
        raise ValueError(f"{what}: {reason}") from error


def _nobody() -> str:
    """The passphrase of an encrypted key; without a callback OpenSSL would ask at the terminal."""
    return ""


@contextlib.contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """A path under which OpenSSL finds `data`: in memory where the system can, so that no key is written."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        descriptor = os.memfd_create("aioserving-pem", os.MFD_CLOEXEC)
        try:
            os.write(descriptor, data)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    import tempfile  # brings a good deal along, and only clients with a key need it

    descriptor, path = tempfile.mkstemp(prefix="aioserving-", suffix=".pem")  # mode 0600
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        yield path
    finally:
        os.unlink(path)
