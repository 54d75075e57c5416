"""What people say to the quarantine, and what it says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latents.cache.layout import CacheLayout, create_cache
from latents.cache.log import CommitLog
from latents.cache.quarantine import drop, retry, show
from latents.cache.rows import QuarantineRow, rows_to_table
from latents.cache.snapshot import load_snapshot
from latents.errors import CacheError
from latents.testing import commit_clips, fake_clips, fake_recipes, fake_source_row

RUN = {"command": "test"}
A, B = "a" * 64, "b" * 64


def reject(layout: CacheLayout, source: str, digest: str, **changes: Any) -> None:
    row = QuarantineRow(
        **{
            "event": "rejected",
            "source": source,
            "source_digest": digest,
            "segment": None,
            "stage": "decode",
            "recipe": "0" * 64,
            "error_class": "DecodeError",
            "message": "no video stream",
            "attempts": 1,
            "versions": "decoder 1",
        }
        | changes
    )
    log = CommitLog(layout, seen=CommitLog(layout).head())
    log.append({"quarantine": rows_to_table("quarantine", [row])}, RUN)


@pytest.fixture
def layout(tmp_path: Path) -> CacheLayout:
    """Two segments of one source, another source, and one that could not be read."""
    layout = create_cache(tmp_path / "cache")
    reject(layout, "/videos/a.mp4", A, segment=0)
    reject(layout, "/videos/a.mp4", A, segment=3, error_class="DecodeTimeoutError")
    reject(layout, "/videos/b.mp4", B)
    reject(layout, "/videos/unreadable.mp4", "", stage="read")
    return layout


def state(layout: CacheLayout) -> dict[tuple[str, int | None], str]:
    """Latest event of what is open, by source and segment."""
    events = load_snapshot(layout).open_quarantine()
    return {(Path(event["source"]).name, event["segment"]): event["event"] for event in events}


@pytest.mark.parametrize("name", ["/videos/a.mp4", A, A[:8]])
def test_all_of_a_source_is_retried_by_any_of_its_names(layout: CacheLayout, name: str) -> None:
    events = retry(layout, [name], run=RUN)

    assert [event["segment"] for event in events] == [0, 3]
    assert state(layout) == {
        ("a.mp4", 0): "retried",
        ("a.mp4", 3): "retried",
        ("b.mp4", None): "rejected",
        ("unreadable.mp4", None): "rejected",
    }


def test_a_source_that_could_not_be_read_is_retried_by_its_uri_alone(layout: CacheLayout) -> None:
    retry(layout, ["/videos/unreadable.mp4"], run=RUN)

    assert state(layout)["unreadable.mp4", None] == "retried"
    assert list(state(layout).values()).count("retried") == 1


def test_a_source_is_named_by_its_path(
    layout: CacheLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reject(layout, str(tmp_path / "c.mp4"), "c" * 64)

    assert len(retry(layout, ["./c.mp4"], run=RUN)) == 1


def test_all_that_is_open_is_retried_once(layout: CacheLayout) -> None:
    assert len(retry(layout, None, run=RUN)) == 4
    head = CommitLog(layout).head()

    assert retry(layout, None, run=RUN) == []
    assert CommitLog(layout).head() == head
    assert set(state(layout).values()) == {"retried"}


def test_what_failed_again_is_open_again(layout: CacheLayout) -> None:
    retry(layout, [B], run=RUN)
    reject(layout, "/videos/b.mp4", B, attempts=2)

    assert state(layout)["b.mp4", None] == "rejected"
    assert [event["attempts"] for event in retry(layout, [B], run=RUN)] == [2]


def test_only_what_was_given_up_for_some_reasons_is_retried(layout: CacheLayout) -> None:
    retry(layout, None, reasons=["DecodeTimeoutError"], run=RUN)

    assert [place for place, event in state(layout).items() if event == "retried"] == [("a.mp4", 3)]


def test_an_unknown_reason_is_told_with_those_there_are(layout: CacheLayout) -> None:
    with pytest.raises(CacheError, match="the reasons are DecodeError, DecodeTimeoutError"):
        retry(layout, None, reasons=["DecodeTimeout"], run=RUN)


def test_the_event_keeps_what_is_known_of_the_failure(layout: CacheLayout) -> None:
    before = show(layout, B)[0]
    retry(layout, [B], run=RUN)

    after = show(layout, B)[1]
    assert after == before | {"event": "retried", "commit": CommitLog(layout).head()}


def test_what_is_dropped_is_listed_no_more_and_comes_back_by_its_name(layout: CacheLayout) -> None:
    events = drop(layout, ["/videos/a.mp4"], run=RUN)

    assert [event["segment"] for event in events] == [0, 3]
    assert {name for name, _ in state(layout)} == {"b.mp4", "unreadable.mp4"}
    assert len(retry(layout, None, run=RUN)) == 2
    assert len(retry(layout, ["/videos/a.mp4"], run=RUN)) == 2
    assert state(layout)["a.mp4", 0] == "retried"


def test_show_gives_all_events_of_a_source_in_order(layout: CacheLayout) -> None:
    retry(layout, [B], run=RUN)
    reject(layout, "/videos/b.mp4", B, attempts=2, message="cut off")
    drop(layout, [B], run=RUN)

    events = show(layout, "/videos/b.mp4")

    assert [(e["event"], e["attempts"], e["message"]) for e in events] == [
        ("rejected", 1, "no video stream"),
        ("retried", 1, "no video stream"),
        ("rejected", 2, "cut off"),
        ("dropped", 2, "cut off"),
    ]
    assert [event["commit"] for event in events] == [2, 4, 5, 6]


def test_an_unknown_name_is_told_with_the_nearest_there_is(layout: CacheLayout) -> None:
    for act in (retry, drop):
        with pytest.raises(CacheError, match=r"nothing is called .*Near it: /videos/a.mp4"):
            act(layout, ["/videos/a.mov"], run=RUN)
    with pytest.raises(CacheError, match="nothing is called"):
        show(layout, "c" * 64)
    assert CommitLog(layout).head() == 3


def test_what_has_latents_by_now_is_in_quarantine_no_more(layout: CacheLayout) -> None:
    (clip,) = fake_clips(1)
    uri = fake_source_row(clip).uri
    reject(layout, uri, clip.key.source_digest, segment=0)
    commit_clips(layout, [clip], fake_recipes())

    with pytest.raises(CacheError, match="is in quarantine no more"):
        retry(layout, [uri], run=RUN)
    assert len(show(layout, uri)) == 1
