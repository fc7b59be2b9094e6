"""Which model is meant: ModelSpec."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aioserving.messages._view import View, field

if TYPE_CHECKING:
    from aioserving.messages._view import Maybe, Scalar, Wrapped

__all__ = ["ModelSpec"]


class ModelSpec(View, message="tensorflow.serving.ModelSpec"):
    """A model, one version of it, and one signature.

    `version` and `version_label` exclude each other; with neither the server takes its highest
    available version.
    """

    __slots__ = ()

    name: Scalar[str] = field("Name of the model.")
    version: Wrapped[int] = field("Number of the version, or None. Zero is version 0, not the latest one.")
    version_label: Maybe[str] = field("Label of the version, or None.")
    signature_name: Scalar[str] = field("The signature; empty for ``serving_default``.")
