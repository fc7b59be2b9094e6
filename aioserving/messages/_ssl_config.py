"""What makes a server speak TLS: SSLConfig, the content of a ``--ssl_config_file``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from aioserving._proto.ssl_config import ssl_config_class
from aioserving.errors import DecodeError
from aioserving.messages._view import View, field

if TYPE_CHECKING:
    from os import PathLike

    from typing_extensions import Self

    from aioserving.messages._view import Scalar

__all__ = ["SSLConfig"]


class SSLConfig(View, message="tensorflow.serving.SSLConfig"):
    """How a server speaks TLS; the strings are PEM contents, not paths of files.

    Its reprs, and its errors about text, never show the key. `aioserving.ssl_config` writes and checks
    the files.
    """

    __slots__ = ()

    server_key: Scalar[str] = field("The server's private key, as PEM text.")
    server_cert: Scalar[str] = field("Its certificate, and those that lead to the authority's, as PEM text.")
    custom_ca: Scalar[str] = field("Certificates of the authorities that clients' are verified against.")
    client_verify: Scalar[bool] = field("Whether clients need a certificate.")

    @classmethod
    def _load(cls) -> Any:
        return ssl_config_class()

    @classmethod
    def from_text(cls, source: str | PathLike[str]) -> Self:
        """See `View.from_text`; what is wrong is told by its place, since the text holds a key."""
        try:
            return super().from_text(source)
        except DecodeError as error:
            where, _, reason = str(error).partition(": ")
            unknown = re.search(r'has no field named "\w+"', reason)
            advice = f"SSLConfig {unknown[0]}" if unknown else "not the text of an SSLConfig"
            raise DecodeError(
                f"{where}: {advice}; its fields are server_key, server_cert, custom_ca, client_verify, and "
                'PEM contents are quoted, with \\n for each line break ("-----BEGIN CERTIFICATE-----\\n...")'
            ) from None

    def _masked(self) -> SSLConfig:
        return self.copy(server_key=f"<{len(self.server_key)} characters>") if self.server_key else self

    def _shown(self, depth: int) -> Iterable[tuple[str, str]]:
        return View._shown(self._masked(), depth)

    def _repr_html_(self) -> str:
        return View._repr_html_(self._masked())
