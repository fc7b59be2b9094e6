"""Messages as HTML tables, for notebooks."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aioserving.messages._view import View

__all__ = ["to_html"]

#: Rows of a list or map that are shown.
ROWS = 20


def to_html(view: View, depth: int) -> str:
    """The fields that are set as a table, messages inside as tables inside."""
    fields = type(view)._fields
    rows = [
        (descriptor.name, _cell(fields[descriptor.name], view.pb, depth - 1))
        for descriptor, _ in view.pb.ListFields()
        if descriptor.name in fields
    ]
    return _table(type(view).__qualname__, rows)


def _table(caption: str, rows: list[tuple[str, str]]) -> str:
    head = f'<caption style="text-align: left"><b>{escape(caption)}</b></caption>' if caption else ""
    body = "".join(
        f'<tr><th style="text-align: left; vertical-align: top">{escape(name)}</th>'
        f'<td style="text-align: left">{cell}</td></tr>'
        for name, cell in rows
    )
    return f"<table>{head}{body or '<tr><td><i>nothing set</i></td></tr>'}</table>"


def _cell(field: Any, pb: Any, depth: int) -> str:
    from aioserving.messages._values import ViewElement

    element = field.element
    if depth <= 0 or not isinstance(element, ViewElement):
        return escape(field.show(pb, depth))
    of = element.view_class._of
    inner = getattr(pb, field.name)
    if hasattr(inner, "DESCRIPTOR"):
        return to_html(of(inner, True), depth)
    # A list or a map: one row per item.
    keys = sorted(inner) if hasattr(field, "key_type") else range(len(inner))
    rows = [(str(key), to_html(of(inner[key], True), depth)) for key in keys[:ROWS]]
    if len(inner) > ROWS:
        rows.append(("...", f"{len(inner) - ROWS} more"))
    return _table("", rows)
