"""What is encoded again, and what is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from latents.cache.rows import (
    LatentRow,
    QuarantineRow,
    SourceRow,
    rows_to_table,
)
from latents.cache.snapshot import Snapshot
from pipeline.plan import Wanted, plan_ingest
from pipeline.sources import HashedSource, Source, UnreadableSource

WANTED = Wanted(
    recipes=frozenset({"V", "A"}),
    segmentation="S",
    admission="D",
    decode_versions="av 1",
    encode_versions="torch 1",
)


def hashed(name: str, digest: str) -> HashedSource:
    source = Source(uri=f"/videos/{name}", path=Path(f"/videos/{name}"), scene=None)
    return HashedSource(source=source, size=10, mtime_ns=1, digest=digest)


def latent(digest: str, segment: int, recipe: str) -> LatentRow:
    blank: dict[str, Any] = dict.fromkeys(LatentRow.__dataclass_fields__)
    return LatentRow(
        **blank
        | {
            "clip": f"{digest}-{segment}",
            "field": "f",
            "recipe": recipe,
            "source": digest,
            "segment": segment,
            "start_frame": 0,
            "fps": 10,
            "shard": "s",
            "offset": 0,
            "dtype": "float16",
            "shape": [1],
            "digest": "d",
            "crc32c": [0],
            "device": "cpu",
            "versions": "",
            "encode_seconds": 0.0,
        }
    )


def source(name: str, digest: str, num_segments: int, segmentation: str = "S") -> SourceRow:
    return SourceRow(
        uri=f"/videos/{name}",
        size=10,
        mtime_ns=1,
        digest=digest,
        segmentation=segmentation,
        num_segments=num_segments,
    )


def given_up(digest: str, segment: int | None, recipe: str, versions: str) -> QuarantineRow:
    return QuarantineRow(
        source=f"/videos/{digest}",
        source_digest=digest,
        segment=segment,
        stage="decode",
        recipe=recipe,
        error_class="DecodeError",
        message="broken",
        versions=versions,
    )


def snapshot(
    latents: list[LatentRow] | None = None,
    sources: list[SourceRow] | None = None,
    quarantine: list[QuarantineRow] | None = None,
) -> Snapshot:
    return Snapshot(
        commit=0,
        latents=rows_to_table("latents", latents or []),
        sources=rows_to_table("sources", sources or []),
        quarantine=rows_to_table("quarantine", quarantine or []),
    )


def both(digest: str, segment: int) -> list[LatentRow]:
    return [latent(digest, segment, "V"), latent(digest, segment, "A")]


def test_a_new_source_is_decoded_whole() -> None:
    plan = plan_ingest([hashed("a", "aa")], snapshot(), WANTED)
    assert [(task.uri, task.digest, task.skip_segments) for task in plan.tasks] == [
        ("/videos/a", "aa", frozenset())
    ]


def test_a_source_with_all_its_segments_is_left_alone() -> None:
    held = snapshot(both("aa", 0) + both("aa", 1), [source("a", "aa", 2)])
    plan = plan_ingest([hashed("a", "aa")], held, WANTED)
    assert (plan.tasks, plan.num_present) == ((), 1)


def test_only_missing_segments_are_made() -> None:
    held = snapshot([*both("aa", 0), latent("aa", 1, "V")], [source("a", "aa", 2)])
    plan = plan_ingest([hashed("a", "aa")], held, WANTED)
    assert [task.skip_segments for task in plan.tasks] == [frozenset({0})]


def test_segments_without_a_known_end_are_not_taken_for_the_whole_source() -> None:
    # The run was killed after the first commit of a long video.
    plan = plan_ingest([hashed("a", "aa")], snapshot(both("aa", 0)), WANTED)
    assert [task.skip_segments for task in plan.tasks] == [frozenset({0})]


def test_another_recipe_of_the_same_clip_does_not_count() -> None:
    held = snapshot([latent("aa", 0, "V"), latent("aa", 0, "OLD")], [source("a", "aa", 1)])
    assert len(plan_ingest([hashed("a", "aa")], held, WANTED).tasks) == 1


def test_a_length_under_another_segmentation_does_not_count() -> None:
    held = snapshot(both("aa", 0), [source("a", "aa", 1, segmentation="OTHER")])
    assert len(plan_ingest([hashed("a", "aa")], held, WANTED).tasks) == 1


def test_changed_bytes_are_a_new_source() -> None:
    held = snapshot(both("aa", 0), [source("a", "aa", 1)])
    plan = plan_ingest([hashed("a", "bb")], held, WANTED)
    assert [task.digest for task in plan.tasks] == ["bb"]


def test_a_renamed_file_is_noted_and_not_encoded_again() -> None:
    held = snapshot(both("aa", 0), [source("a", "aa", 1)])
    plan = plan_ingest([hashed("renamed", "aa")], held, WANTED)
    assert plan.tasks == ()
    assert [(row.uri, row.digest) for row in plan.source_rows] == [("/videos/renamed", "aa")]


def test_equal_files_are_decoded_once() -> None:
    plan = plan_ingest([hashed("a", "aa"), hashed("copy", "aa")], snapshot(), WANTED)
    assert [task.uri for task in plan.tasks] == ["/videos/a"]


def test_what_was_given_up_stays_given_up() -> None:
    held = snapshot(quarantine=[given_up("aa", None, "D", "av 1")])
    plan = plan_ingest([hashed("a", "aa")], held, WANTED)
    assert (plan.tasks, plan.num_quarantined) == ((), 1)


def test_new_decoder_versions_or_settings_try_again() -> None:
    held = snapshot(quarantine=[given_up("aa", None, "D", "av 1")])
    newer = replace(WANTED, decode_versions="av 2")
    other = replace(WANTED, admission="E")
    assert len(plan_ingest([hashed("a", "aa")], held, newer).tasks) == 1
    assert len(plan_ingest([hashed("a", "aa")], held, other).tasks) == 1


def test_a_segment_given_up_is_skipped_and_its_neighbours_are_made() -> None:
    held = snapshot(both("aa", 0), quarantine=[given_up("aa", 1, "D", "av 1")])
    plan = plan_ingest([hashed("a", "aa")], held, WANTED)
    assert [task.skip_segments for task in plan.tasks] == [frozenset({0, 1})]


def test_an_unreadable_file_is_quarantined_and_the_rest_goes_on() -> None:
    lost = UnreadableSource(
        source=Source(uri="/videos/x", path=Path("/videos/x"), scene=None), reason="gone"
    )
    plan = plan_ingest([lost, hashed("a", "aa")], snapshot(), WANTED)
    assert len(plan.tasks) == 1
    assert [(row.source, row.error_class) for row in plan.quarantine_rows] == [
        ("/videos/x", "DecodeError")
    ]


def test_a_source_given_up_before_it_was_cut_is_tried_again_under_other_settings() -> None:
    held = snapshot(sources=[source("a", "aa", 0)], quarantine=[given_up("aa", None, "D", "av 1")])
    assert plan_ingest([hashed("a", "aa")], held, WANTED).tasks == ()
    other = replace(WANTED, admission="E")
    assert len(plan_ingest([hashed("a", "aa")], held, other).tasks) == 1


def test_what_an_encoder_refused_is_tried_again_with_its_new_versions() -> None:
    event = replace(given_up("aa", 0, "A+V", "torch 1"), stage="encode")
    held = snapshot(sources=[source("a", "aa", 1)], quarantine=[event])
    assert plan_ingest([hashed("a", "aa")], held, WANTED).tasks == ()
    newer = replace(WANTED, encode_versions="torch 2")
    assert len(plan_ingest([hashed("a", "aa")], held, newer).tasks) == 1


def test_a_worker_that_died_is_not_held_against_the_clip() -> None:
    event = replace(given_up("aa", None, "D", "av 1"), error_class="WorkerDiedError")
    assert len(plan_ingest([hashed("a", "aa")], snapshot(quarantine=[event]), WANTED).tasks) == 1


def test_segments_given_up_count_as_quarantined_in_every_run() -> None:
    held = snapshot(both("aa", 0), [source("a", "aa", 2)], [given_up("aa", 1, "D", "av 1")])
    plan = plan_ingest([hashed("a", "aa")], held, WANTED)
    assert (plan.num_present, plan.num_quarantined) == (1, 1)


def test_a_touched_file_is_noted_so_that_it_is_hashed_once() -> None:
    held = snapshot(both("aa", 0), [source("a", "aa", 1)])
    touched = replace(hashed("a", "aa"), mtime_ns=2)
    plan = plan_ingest([touched], held, WANTED)
    assert [(row.uri, row.mtime_ns) for row in plan.source_rows] == [("/videos/a", 2)]
