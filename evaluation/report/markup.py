"""Pieces of HTML that every section is laid out with, and numbers as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import PurePath


def panel(title: str, content: str) -> str:
    """A card with a heading."""
    return f'<section class="card"><h3>{escape(title)}</h3>{content}</section>'


def group(name: str, parts: Iterable[str]) -> str:
    """Parts side by side, as the style sheet lays out groups of this name."""
    return f'<div class="{name}">{"".join(parts)}</div>'


def tiles(figures: Iterable[tuple[str, str]]) -> str:
    """Large figures, each over what it is."""
    return group(
        "tiles", (f'<div class="card tile"><b>{v}</b><span>{s}</span></div>' for v, s in figures)
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int]) -> str:
    """A table of cells that are HTML; ``numbers`` are the columns aligned to the right."""

    def cells(tag: str, row: Sequence[str]) -> str:
        classes = (' class="number"' if column in numbers else "" for column in range(len(row)))
        return "".join(
            f"<{tag}{css}>{cell}</{tag}>" for css, cell in zip(classes, row, strict=True)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{cells("th", head)}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def short_digest(digest: str) -> str:
    """The first of a digest's hex digits, with all of them where one points at it."""
    return f'<code title="{digest}">{digest[:12]}</code>'


def file_name(source: str) -> str:
    """What a source is called: the name of a file, or the URI of a scene."""
    return source if source.startswith("scenes:") else PurePath(source).name


def duration(seconds: float) -> str:
    """For example 41.3 s, 5.0 min or 2.4 h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def byte_count(count: int) -> str:
    """For example 512 B, 4.1 kB or 120 MB."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
