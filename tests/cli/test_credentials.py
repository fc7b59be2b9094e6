"""TLS, tokens and keys from the command line, against servers that insist on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click", reason="needs the extra `cli`")
pytest.importorskip("trustme", reason="makes the certificates (extra dev)")

import trustme

from aioserving.ssl_config import write_ssl_config
from aioserving.testing import ServerProcess
from aioserving.testing.security import write_tokens

from .conftest import ROOT, Run

SECRET = "s3cret-token"


def served(**flags: Any) -> ServerProcess:
    return ServerProcess(
        callables={"digits": "tests.models:versions"}, env={"PYTHONPATH": str(ROOT)}, **flags
    )


def test_certificates(run: Run) -> None:
    """Trusted by --ca, named by --server-name, known by --cert; what fails is told in terms of options."""
    authority, other = trustme.CA(), trustme.CA()
    mine = authority.issue_cert("127.0.0.1")
    client = authority.issue_cert("client@example.org")
    authority.cert_pem.write_to_path("ca.pem")
    other.cert_pem.write_to_path("other.pem")
    client.cert_chain_pems[0].write_to_path("client.pem")
    client.private_key_pem.write_to_path("client.key")
    write_ssl_config(
        "ssl.config",
        key=mine.private_key_pem.bytes(),
        certificate=mine.cert_chain_pems[0].bytes(),
        ca=authority.cert_pem.bytes(),
        client_verify=True,
    )
    mutual = ("--ca", "ca.pem", "--cert", "client.pem", "--key", "client.key")
    with served(ssl_config_file=str(Path("ssl.config").resolve())) as server:
        status = ("status", "digits", "-t", server.target, "--timeout", "20")
        assert run(*status, *mutual).code == 0
        Path("aioserving.toml").write_text('ca = "ca.pem"\ncert = "client.pem"\nkey = "client.key"\n')
        assert run(*status).code == 0
        Path("aioserving.toml").unlink()
        for options, advice in (
            ((), "perhaps it speaks TLS only; see --tls"),
            (("--ca", "other.pem", *mutual[2:]), "give that authority's certificate as --ca"),
            ((*mutual, "--server-name", "other.example.org"), "is not for the name"),
            (("--ca", "ca.pem"), "--cert and --key"),
        ):
            found = run(*status, *options)
            assert found.code == 3, found
            assert advice in found.err
            assert "TLS(" not in found.err


def test_tokens(run: Run) -> None:
    """Missing and wrong ones are exit code 7; those of a file, a variable or an option are taken."""
    write_tokens("tokens.json", [SECRET])
    Path("token").write_text(f"{SECRET}\n")
    with served(testing_token_file=str(Path("tokens.json").resolve())) as server:
        status = ("status", "digits", "-t", server.target)
        found = run(*status)
        assert found.code == 7
        assert "AIOSERVING_TOKEN" in found.err
        assert run(*status, "--token", "wrong", "--insecure-token").code == 7
        plain = {"AIOSERVING_INSECURE_TOKEN": "1"}
        assert run(*status, "--token-file", "token", env=plain).code == 0
        assert run(*status, env={**plain, "AIOSERVING_TOKEN": SECRET}).code == 0
        assert run(*status, "--token", SECRET, env=plain).code == 0
        assert run(*status, "--metadata", f"authorization=Bearer {SECRET}").code == 0
        found = run(*status, "--token", SECRET)
        assert found.code == 2
        assert "--insecure-token" in found.err
        assert SECRET not in found.err + found.out
