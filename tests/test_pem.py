"""aioserving.pem: PEM texts are read from wherever they are, and what is wrong with them is told."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aioserving import pem

trustme = pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

AUTHORITY = trustme.CA()
LEAF = AUTHORITY.issue_cert("localhost", "127.0.0.1")
OTHER = AUTHORITY.issue_cert("localhost")
KEY: str = LEAF.private_key_pem.bytes().decode()
CERTIFICATE = b"".join(item.bytes() for item in LEAF.cert_chain_pems).decode()
ROOT = AUTHORITY.cert_pem.bytes().decode()


def test_contents_and_paths_are_told_apart(tmp_path: Path) -> None:
    """Text and bytes with a PEM block are contents; a Path and any other one-line string name a file."""
    path = tmp_path / "key.pem"
    path.write_text(KEY)
    for item in (KEY, KEY.encode(), path, str(path)):
        assert pem.read(item, "key") == KEY
    assert [pem.is_path(item) for item in (KEY, KEY.encode(), path, str(path))] == [
        False,
        False,
        True,
        True,
    ]
    assert pem.source(KEY) == "the PEM text given"
    assert pem.source(path) == str(path)


def test_windows_line_endings_and_byte_order_marks_are_taken(tmp_path: Path) -> None:
    """A file saved on Windows holds the same blocks."""
    path = tmp_path / "cert.pem"
    path.write_bytes(b"\xef\xbb\xbf" + CERTIFICATE.replace("\n", "\r\n").encode())
    assert pem.read(path, "certificate") == CERTIFICATE
    assert pem.blocks(CERTIFICATE.replace("\n", "\r\n"), "x") == pem.blocks(CERTIFICATE, "x")


def test_a_missing_file_says_what_it_was_for(tmp_path: Path) -> None:
    """The error is that of `open`, with the option and the path."""
    with pytest.raises(FileNotFoundError, match=r"ca: No such file or directory: '.*nowhere\.pem'"):
        pem.read(tmp_path / "nowhere.pem", "ca")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "but empty"),
        (b"\x30\x82\x01\x00\xff", "looks like DER or PKCS #12"),
        (b"hello", r"no line says -----BEGIN"),
        (b"\xff\xfe", r"no line says -----BEGIN"),
    ],
)
def test_what_is_no_pem_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    """A file of another kind is named, with what it seems to be."""
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^key: .*file is not PEM.*{reason}"):
        pem.read(path, "key")


def test_what_is_no_source_is_refused() -> None:
    """Neither an empty string nor another type is taken for a path, and bytes never are."""
    with pytest.raises(ValueError, match="key: neither PEM contents nor a path, but an empty string"):
        pem.read("", "key")
    with pytest.raises(TypeError, match="key: expected PEM contents or a path, got int"):
        pem.read(3, "key")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="key: the PEM text given is not PEM"):
        pem.read(b"/etc/key.pem", "key")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[:200], "the CERTIFICATE in it has no end; the text was cut short"),
        (
            lambda text: text.replace("END CERT", "END KERT"),
            "ends KERTIFICATE, but what has begun is CERTIFI",
        ),
        (lambda text: text.partition("\n")[2], "ends CERTIFICATE, but no block has begun"),
        (
            lambda text: text.partition("-----END")[0] + text,
            "begins a block, and the CERTIFICATE before has no end",
        ),
        (lambda text: text.replace("\n", "\\n"), "line breaks of the block are missing"),
        (lambda text: text[:60] + "*" + text[61:], "is damaged: not base64"),
        (lambda text: "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", "is damaged: not base64"),
        (lambda text: text.replace("MII", "AII", 1), "the certificate is damaged"),
        (lambda text: text + text.replace("MII", "AII", 1), "certificate 2 of 2 is damaged"),
        (lambda text: KEY, "expected a certificate, found EC PRIVATE KEY"),
        (lambda text: "nothing", "expected a certificate, found nothing"),
    ],
)
def test_damaged_certificates_are_told(damage: Any, reason: str) -> None:
    """Whatever is wrong with a certificate's text, the error says what and where."""
    with pytest.raises(ValueError, match=f"^server_cert: .*{reason}"):
        pem.certificates(damage(CERTIFICATE), "server_cert")


def relabelled(label: str) -> str:
    return KEY.replace("EC PRIVATE KEY", label)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (CERTIFICATE, "expected a private key, found CERTIFICATE"),
        (relabelled("PUBLIC KEY"), "expected a private key, found PUBLIC KEY"),
        (relabelled("OPENSSH PRIVATE KEY"), "found OPENSSH PRIVATE KEY; convert a copy .*ssh-keygen"),
        (relabelled("ENCRYPTED PRIVATE KEY"), r"is encrypted.*openssl pkey -in KEY"),
        (
            KEY.replace("KEY-----\n", "KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n", 1),
            r"is encrypted.*openssl pkey -in KEY",
        ),
        (KEY + KEY, "expected one private key, found 2"),
    ],
)
def test_what_is_no_usable_key_is_refused(text: str, reason: str) -> None:
    """Another block, an encrypted key or several keys: said, with what to do."""
    with pytest.raises(ValueError, match=f"^key: .*{reason}"):
        pem.private_key(text, "key")


def test_keys_and_certificates_are_found_in_one_file() -> None:
    """A combined file gives its key and, in their order, its certificates; comments do not matter."""
    text = f"# mine\nsubject=CN = me\n{KEY}{CERTIFICATE}{ROOT}"
    assert pem.private_key(text, "x").text == KEY
    assert [block.text for block in pem.certificates(text, "x")] == [CERTIFICATE, ROOT]


def test_a_key_has_to_belong_to_the_first_certificate() -> None:
    """The right key passes; another one, or the right one behind its issuer, is refused with the reason."""
    key, chain = pem.private_key(KEY, "x"), pem.certificates(CERTIFICATE + ROOT, "x")
    pem.check_pair(chain, key, "tls")
    with pytest.raises(ValueError, match="^tls: the key does not belong to the certificate$"):
        pem.check_pair(chain[:1], pem.private_key(OTHER.private_key_pem.bytes().decode(), "x"), "tls")
    with pytest.raises(ValueError, match="own certificate comes first"):
        pem.check_pair(chain[::-1], key, "tls")
    broken = pem.Block(key.label, b"", key.text.replace("MH", "AH", 1))
    with pytest.raises(ValueError, match="the private key is damaged"):
        pem.check_pair(chain, broken, "tls")


@pytest.mark.parametrize("form", ["PKCS8", "TraditionalOpenSSL"])
@pytest.mark.parametrize("kind", ["RSA", "ECDSA"])
def test_keys_of_every_kind_and_form(kind: str, form: str) -> None:
    """RSA and elliptic curves, in the forms that openssl and certificate authorities write."""
    from cryptography.hazmat.primitives import serialization

    made = AUTHORITY.issue_cert("localhost", key_type=trustme.KeyType[kind])
    key = serialization.load_pem_private_key(made.private_key_pem.bytes(), None)
    text = key.private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, form), serialization.NoEncryption()
    ).decode()
    block = pem.private_key(text, "x")
    assert block.text == text
    pem.check_pair(pem.certificates(made.cert_chain_pems[0].bytes().decode(), "x"), block, "x")
    encrypted = key.private_bytes(
        serialization.Encoding.PEM,
        getattr(serialization.PrivateFormat, form),
        serialization.BestAvailableEncryption(b"passphrase"),
    ).decode()
    with pytest.raises(ValueError, match="x: the private key is encrypted"):
        pem.private_key(encrypted, "x")


def test_pairs_are_checked_where_there_is_no_file_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """On other systems the check leaves no file behind, and finds the same."""
    written: list[str] = []
    make = tempfile.mkstemp

    def mkstemp(**names: Any) -> tuple[int, str]:
        descriptor, path = make(**names)
        assert os.stat(path).st_mode & 0o077 == 0
        written.append(path)
        return descriptor, path

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    pem.check_pair(pem.certificates(CERTIFICATE, "x"), pem.private_key(KEY, "x"), "tls")
    assert len(written) == 1
    assert not os.path.exists(written[0])


def test_nothing_of_a_key_is_shown() -> None:
    """Neither the repr of a block nor an error about a damaged key has any of its contents."""
    key = pem.private_key(KEY, "x")
    body = KEY.splitlines()[1]
    assert repr(key) == "Block(label='EC PRIVATE KEY', encrypted=False)"
    for damaged in (KEY[:150], KEY.replace(body, body + "*"), KEY.replace("\n", "\\n")):
        with pytest.raises(ValueError, match="^key: ") as caught:
            pem.private_key(damaged, "key")
        assert body[:8] not in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from(["CERTIFICATE", "X Y2"]), st.binary(min_size=1)), max_size=4))
def test_blocks_come_back_as_they_were_written(items: list[tuple[str, bytes]]) -> None:
    """Labels, contents and order survive, whatever the contents."""
    text = "".join(
        f"-----BEGIN {label}-----\n{base64.encodebytes(data).decode()}-----END {label}-----\n"
        for label, data in items
    )
    found = pem.blocks(text, "x")
    assert [(block.label, block.der) for block in found] == items
    assert "".join(block.text for block in found) == text


@given(st.text(st.sampled_from("-BEGIND CRT\n:Aa=*"), max_size=60))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Garbage is a ValueError that begins with the option, or no block."""
    try:
        found = pem.blocks("-----BEGIN CERTIFICATE-----\n" + text, "option")
    except ValueError as error:
        assert str(error).startswith("option: ")  # noqa: PT017 - both outcomes are right
    else:
        assert found
