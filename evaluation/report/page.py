"""The page: contents in, one self-contained HTML document out. Everything shown is escaped."""

from __future__ import annotations

from datetime import datetime
from html import escape
from pathlib import Path
from string import Template

from evaluation.report.contents import Contents
from evaluation.report.page_cache import cache_tiles, fields_section, quarantine_section
from evaluation.report.page_clips import clips_section
from evaluation.report.page_dit import dit_section
from evaluation.report.page_samples import samples_section
from evaluation.report.page_windows import windows_section
from evaluation.report.trained import TrainedContents

_HERE = Path(__file__).parent


def render_page(
    contents: Contents, *, fingerprint: str, trained: TrainedContents | None = None
) -> str:
    """The document.

    Args:
        contents: What it shows of the cache.
        fingerprint: Kept in its head, to tell later whether it is of this cache's content.
        trained: What it shows of models.
    """
    sections = [cache_tiles(contents), clips_section(contents.clips)]
    styles = ["style.css"]
    if trained is not None:
        styles.append("style_trained.css")
        sections += _trained(trained)
    sections += [fields_section(contents), quarantine_section(contents.causes)]
    return Template(_asset("page.html")).substitute(
        fingerprint=escape(fingerprint),
        title=f"{escape(contents.name)} · mmldm cache report",
        style="\n".join(_asset(name).strip() for name in styles),
        heading=escape(contents.name),
        subtitle=_subtitle(contents),
        body="\n".join(sections),
        script=_asset("script.js").strip(),
    )


def _trained(trained: TrainedContents) -> list[str]:
    sections = [windows_section(trained.windows)]
    if trained.dit is not None:
        sections.append(dit_section(trained.dit))
    if trained.samples is not None:
        sections.append(samples_section(trained.samples))
    return sections


def _asset(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _subtitle(contents: Contents) -> str:
    level = contents.summary.levels["kl"]
    return (
        f"Commit {contents.summary.commit} of {_date(contents.date)} · content "
        f"<code>{level.content_digest[:16]}</code> · KL-VAE encoder "
        f"<code>{contents.kl_vae[:12]}</code>"
    )


def _date(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso):%-d %B %Y, %H:%M} UTC"
    except ValueError:
        return escape(iso)
