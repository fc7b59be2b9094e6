"""`aioserving classify`: classes of examples."""

from __future__ import annotations

from aioserving.cli.common import Settings, pass_settings
from aioserving.cli.rows import example_command, parse_kinds, read_context, read_rows

__all__ = ["command"]

import click


@example_command(
    "classify",
    """
    aioserving classify -m iris x=1.5 -t 127.0.0.1:8500
    aioserving classify -m iris @flowers.csv --as petals=float --top 3 -t 127.0.0.1:8500
    aioserving classify -m iris '[{"x": 1.5}, {"x": 2.5}]' --json -t 127.0.0.1:8500
    cat flowers.jsonl | aioserving classify -m iris - -t 127.0.0.1:8500
    """,
)
@click.option("--top", type=click.IntRange(min=1), default=1, metavar="NUMBER", help="Classes to show.  [1]")
@pass_settings
def command(
    settings: Settings,
    examples: tuple[str, ...],
    kinds: tuple[str, ...],
    columns: tuple[str, ...],
    context: str | None,
    no_check: bool,
    top: int,
) -> None:
    """Classify examples.

    An EXAMPLE is JSON, @FILE.json, @FILE.jsonl or @FILE.csv, or - for standard input; NAME=VALUE arguments
    are the features of one. 1 is an int and 1.0 a float, and models insist on the one that they parse: --as
    makes a feature what it should be. An empty cell, or null, is a feature that the example does not have.

    With --json, all classes of every example, in the model's order.
    """
    rows = read_rows(examples, parse_kinds(kinds), columns)
    shared = read_context(context)
    name = settings.model
    with settings.client() as client:
        model = client.model(
            name, version=settings.version, version_label=settings.label, signature_name=settings.signature
        )
        result = model.classify(rows, context=shared, validate=not no_check)
    spec = result.model_spec
    if settings.output.as_json:
        settings.output.json(
            {
                "model": spec.name,
                "version": spec.version,
                "signature": spec.signature_name,
                "results": [
                    [{"label": label, "score": score} for label, score in zip(labels, scores, strict=True)]
                    for labels, scores in zip(result.labels.tolist(), _scores(result.scores), strict=True)
                ],
            }
        )
        return
    settings.output.table(
        ("row", "label", "score"),
        [
            (number, found.label or found.position, f"{found.score:.6g}")
            for number, example in enumerate(result)
            for found in example.top(top)
        ],
        title=f"{spec.name} version {spec.version}, {spec.signature_name}",
        right=("row", "score"),
    )


def _scores(scores: object) -> list[list[float]]:
    from aioserving.cli.output import jsonable

    found: list[list[float]] = jsonable(scores)
    return found
