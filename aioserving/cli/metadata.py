"""`aioserving metadata`: what a model takes and gives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from aioserving.cli.common import (
    Command,
    Settings,
    connection_options,
    model_options,
    output_options,
    pass_settings,
)

if TYPE_CHECKING:
    from aioserving import Signature, TensorSpec

__all__ = ["command"]


@click.command(
    cls=Command,
    examples="""
        aioserving metadata digits -t 127.0.0.1:8500
        aioserving metadata digits --label stable -t 127.0.0.1:8500
        aioserving metadata -m digits -s serving_default -t 127.0.0.1:8500 --json
    """,
)
@click.argument("name", required=False, metavar="[MODEL]")
@click.option("--internal", is_flag=True, help="Show signatures that TensorFlow adds for itself, too.")
@model_options
@connection_options
@output_options
@pass_settings
def command(settings: Settings, name: str | None, internal: bool) -> None:
    """Show the signatures of a model: inputs and outputs, with dtypes and shapes.

    In a shape, -1 stands where any size goes; mostly that is the number of rows in a request.
    """
    with settings.client() as client:
        metadata = client.get_model_metadata(
            name or settings.model, version=settings.version, version_label=settings.label
        )
    signatures: Mapping[str, Signature] = metadata.signatures
    if settings.signature:
        signatures = {settings.signature: metadata.signature(settings.signature)}
    elif internal:
        signatures = {**signatures, **metadata.internal_signatures}
    if settings.output.as_json:
        settings.output.json(
            {
                "model": metadata.name,
                "version": metadata.version,
                "signatures": {key: _signature(signature) for key, signature in signatures.items()},
            }
        )
        return
    settings.output.table(
        ("signature", "kind", "name", "dtype", "shape", "default"),
        [row for signature in signatures.values() for row in _rows(signature)],
        title=f"{metadata.name} version {metadata.version}",
        styles={"input": "cyan", "output": "magenta"},
    )


def _rows(signature: Signature) -> Iterator[tuple[object, ...]]:
    for kind, specs in (("input", signature.inputs), ("output", signature.outputs)):
        for spec in specs.values():
            default = None if spec.default is None else spec.default.tolist()
            shape = "any" if spec.shape is None else spec.shape
            dtype = spec.type_name if spec.kind == "dense" else f"{spec.type_name} ({spec.kind})"
            yield signature.name, kind, spec.name, dtype, shape, default
    if not signature.inputs and not signature.outputs:
        yield signature.name, None, None, None, None, None


def _signature(signature: Signature) -> dict[str, Any]:
    return {
        "method_name": signature.method_name,
        "inputs": {name: _spec(spec) for name, spec in signature.inputs.items()},
        "outputs": {name: _spec(spec) for name, spec in signature.outputs.items()},
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {
        "dtype": spec.type_name,
        "shape": None if spec.shape is None else list(spec.shape),
        "tensor_name": spec.tensor_name,
        "kind": spec.kind,
        "default": spec.default,
    }
