"""What is made of which source, from what and why, what leaves, and what is passed over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latents.cache.rows import AnnotationRow, QuarantineRow, TombstoneRow
from pipeline.given_up import attempts_so_far
from pipeline.job_plan import CachedWork, Wanted
from pipeline.sources import Annotation
from tests.pipeline.made_up_log import (
    MadeUpLog,
    clip_key,
    digest_of,
    given_up,
    hashed,
    latents,
    on_record,
    plan,
    unreadable,
    wanted,
)

WANTED = wanted()
OTHER_KL_VAE = wanted(kl_vae="l")
ALL = wanted(levels=("clip", "kl", "perceptual"))
KL, PERCEPTUAL = ("kl.video", "kl.audio"), ("perceptual.video", "perceptual.audio")
ONE_CLIP = [*latents("A", [0], WANTED), on_record("a", "A", 1, WANTED)]
TWO_CLIPS = [*latents("A", [0, 1], WANTED), on_record("a", "A", 2, WANTED)]


# What is made, and from what.


def test_a_new_source_is_decoded_whole() -> None:
    found = plan([hashed("a", "A")], MadeUpLog(), WANTED)
    (task,) = found.to_decode
    assert (task.uri, task.digest) == ("/videos/a", digest_of("A"))
    assert (task.skip_segments, task.fields) == (frozenset(), KL)


def test_a_source_with_all_its_segments_is_left_alone() -> None:
    found = plan([hashed("a", "A")], MadeUpLog(TWO_CLIPS), WANTED)
    assert (found.to_decode, found.cached, found.num_present) == ((), (), 1)
    assert [one.num_present for one in found.fields.values()] == [2, 2]


def test_only_missing_segments_and_fields_are_made() -> None:
    rows = [*latents("A", [0], WANTED), *latents("A", [1], WANTED, "kl.video")]
    log = MadeUpLog([*rows, on_record("a", "A", 3, WANTED)])
    found = plan([hashed("a", "A")], log, WANTED)
    assert [task.skip_segments for task in found.to_decode] == [frozenset({0})]
    fields = found.fields
    assert (fields["kl.video"].num_present, fields["kl.audio"].num_present) == (2, 1)
    assert fields["kl.video"].to_encode == {"unfinished": 1}
    assert fields["kl.audio"].to_encode == {"unfinished": 2}


def test_segments_without_a_known_end_are_not_taken_for_the_whole_source() -> None:
    # The run was killed after the first commit of a long video.
    found = plan([hashed("a", "A")], MadeUpLog(latents("A", [0], WANTED)), WANTED)
    assert [task.skip_segments for task in found.to_decode] == [frozenset({0})]
    assert found.fields["kl.video"].num_uncut == {"unfinished": 1}


def test_a_length_under_another_segmentation_does_not_count() -> None:
    cut_otherwise = on_record("a", "A", 1, wanted("clip.fps=5"))
    found = plan([hashed("a", "A")], MadeUpLog(latents("A", [0], WANTED), [cut_otherwise]), WANTED)
    assert len(found.to_decode) == 1


def test_a_length_is_known_again_when_settings_come_back() -> None:
    slower = wanted("clip.fps=5")
    since = [*latents("A", [0], slower), on_record("a", "A", 1, slower)]
    found = plan([hashed("a", "A")], MadeUpLog(TWO_CLIPS, since), WANTED)
    assert (found.to_decode, found.num_present) == ((), 1)


def test_a_length_is_not_forgotten_when_decoding_fails_later() -> None:
    since = [given_up("A", None, WANTED), on_record("a", "A", 0, WANTED)]
    found = plan([hashed("a", "A")], MadeUpLog(TWO_CLIPS, since), WANTED)
    assert (found.to_decode, found.num_present) == ((), 1)


def test_equal_files_are_decoded_once() -> None:
    found = plan([hashed("a", "A"), hashed("copy", "A")], MadeUpLog(), WANTED)
    assert [task.uri for task in found.to_decode] == ["/videos/a"]
    assert found.fields["kl.video"].num_uncut == {"new source": 1}


def test_what_is_kept_is_read_instead_of_decoding() -> None:
    kept = [*latents("A", [0, 1], ALL), on_record("a", "A", 2, ALL)]
    asked = wanted(levels=("clip", "kl", "perceptual"), kl_vae="l")
    found = plan([hashed("a", "A")], MadeUpLog(kept), asked)
    clips = tuple(clip_key("A", segment, asked) for segment in (0, 1))
    read = ("clip.video", "clip.audio")
    assert found.to_decode == ()
    assert found.cached == (CachedWork(read=read, make=(*KL, *PERCEPTUAL), clips=clips),)
    assert found.num_cached_clips == 2


def test_the_nearest_level_that_is_kept_is_read() -> None:
    kept = [*latents("A", [0], ALL), on_record("a", "A", 1, ALL)]
    asked = wanted(levels=("perceptual",), video="w")
    found = plan([hashed("a", "A")], MadeUpLog(kept), asked)
    clips = (clip_key("A", 0, asked),)
    assert found.cached == (
        CachedWork(read=("kl.video",), make=("perceptual.video",), clips=clips),
    )


def test_of_a_source_that_is_decoded_nothing_is_made_that_the_cache_can_give() -> None:
    asked = wanted(levels=("kl", "perceptual"))
    finer = wanted("window.stride=1", levels=("kl", "perceptual"))
    kept = [*latents("A", [0], asked), on_record("a", "A", 1, asked)]
    found = plan([hashed("a", "A")], MadeUpLog(kept), finer)
    assert [task.fields for task in found.to_decode] == [("kl.audio", "perceptual.audio")]
    (work,) = found.cached
    assert (work.read, work.make) == (("kl.video",), ("perceptual.video",))
    assert found.in_two_parts == {clip_key("A", 0, finer)}
    assert [dict(one.to_encode) for one in found.fields.values()] == [
        {},
        {"new settings": 1},
        {"new settings": 1},
        {"new settings": 1},
    ]


def test_segments_that_the_cache_can_give_are_not_decoded_beside_those_that_it_cannot() -> None:
    asked = wanted(levels=("kl", "perceptual"))
    rows = [*latents("A", [0], asked, "kl.video"), *latents("A", [1], asked, *KL)]
    log = MadeUpLog([*rows, on_record("a", "A", 2, asked)])
    found = plan([hashed("a", "A")], log, asked)
    (task,) = found.to_decode
    assert (task.skip_segments, task.fields) == ({1}, ("kl.audio", "perceptual.audio"))
    assert {work.make: work.clips for work in found.cached} == {
        ("perceptual.video",): (clip_key("A", 0, asked),),
        PERCEPTUAL: (clip_key("A", 1, asked),),
    }


# Why.


def test_changed_bytes_are_a_reason() -> None:
    found = plan([hashed("a", "B")], MadeUpLog(ONE_CLIP), WANTED)
    assert [task.digest for task in found.to_decode] == [digest_of("B")]
    assert found.fields["kl.video"].num_uncut == {"changed bytes": 1}


@pytest.mark.parametrize("reason", ["new encoder", "new settings"])
def test_another_recipe_is_a_reason_by_its_difference(reason: str) -> None:
    found = plan(
        [hashed("a", "A")],
        MadeUpLog(ONE_CLIP),
        OTHER_KL_VAE,
        reasons=dict.fromkeys(WANTED.digests.values(), reason),
    )
    assert [one.to_encode for one in found.fields.values()] == [{reason: 1}] * 2


def test_it_is_the_latest_recipe_that_is_compared() -> None:
    first, second = wanted(kl_vae="1"), wanted(kl_vae="2")
    log = MadeUpLog([on_record("a", "A", 1, WANTED)])
    for asked in (second, first):
        log.commit(*latents("A", [0], asked))
    found = plan(
        [hashed("a", "A")],
        log,
        WANTED,
        reasons=dict.fromkeys(first.digests.values(), "new encoder"),
    )
    assert found.fields["kl.video"].to_encode == {"new encoder": 1}


def test_a_level_that_was_not_made_before_is_a_reason() -> None:
    both = wanted(levels=("kl", "perceptual"))
    found = plan([hashed("a", "A")], MadeUpLog(ONE_CLIP), both)
    assert found.fields["kl.video"].to_encode == {}
    assert found.fields["perceptual.video"].to_encode == {"new level": 1}


def retried(event: QuarantineRow) -> QuarantineRow:
    return replace(event, event="retried")


def test_what_someone_asked_for_again_is_made_for_that_reason() -> None:
    event = given_up("A", None, WANTED)
    found = plan([hashed("a", "A")], MadeUpLog([event], [retried(event)]), WANTED)
    assert found.fields["kl.video"].num_uncut == {"retried": 1}
    assert found.num_quarantined == 0


def test_once_made_it_is_no_retry_any_more() -> None:
    event = given_up("A", None, WANTED)
    log = MadeUpLog([event], [retried(event)], ONE_CLIP)
    found = plan([hashed("a", "A")], log, OTHER_KL_VAE)
    assert found.fields["kl.video"].to_encode == {"new settings": 1}


def test_what_failed_again_since_is_given_up_again() -> None:
    event = given_up("A", None, WANTED)
    found = plan([hashed("a", "A")], MadeUpLog([event], [retried(event)], [event]), WANTED)
    assert (found.to_decode, found.num_quarantined) == ((), 1)


# What is only noted.


def test_a_renamed_file_is_noted_and_not_encoded_again() -> None:
    found = plan([hashed("renamed", "A")], MadeUpLog(ONE_CLIP), WANTED)
    assert found.to_decode == ()
    assert [(row.uri, row.num_segments) for row in found.source_rows] == [("/videos/renamed", 1)]


def test_a_touched_file_is_noted_so_that_it_is_hashed_once() -> None:
    touched = replace(hashed("a", "A"), mtime_ns=2)
    found = plan([touched], MadeUpLog(ONE_CLIP), WANTED)
    assert [(row.uri, row.mtime_ns) for row in found.source_rows] == [("/videos/a", 2)]


def test_every_name_of_a_content_that_was_given_up_is_noted() -> None:
    log = MadeUpLog([given_up("A", None, WANTED)])
    found = plan([hashed("a", "A"), hashed("copy", "A")], log, WANTED)
    assert [row.uri for row in found.source_rows] == ["/videos/a", "/videos/copy"]


def test_what_is_said_of_a_source_is_noted_when_it_is_new() -> None:
    said = AnnotationRow(source=digest_of("A"), label="rain", caption=None, split="test")
    log = MadeUpLog([*ONE_CLIP, said])
    same, other = (
        plan([hashed("a", "A", Annotation(label=label, split="test"))], log, WANTED)
        for label in ("rain", "surf")
    )
    assert (same.annotation_rows, other.to_decode) == ((), ())
    assert other.annotation_rows == (replace(said, label="surf"),)


def test_what_is_said_no_more_stays_said() -> None:
    said = AnnotationRow(source=digest_of("A"), label="rain", caption=None, split=None)
    found = plan([hashed("a", "A")], MadeUpLog([*ONE_CLIP, said]), WANTED)
    assert found.annotation_rows == ()


# What leaves.


def ends(content: str, reason: str = "changed") -> TombstoneRow:
    return TombstoneRow(reason=reason, uri=None, source=digest_of(content), clip=None)


def test_a_content_that_no_name_has_any_more_leaves_at_every_level() -> None:
    rows = [*latents("A", [0, 1], ALL), on_record("a", "A", 2, ALL)]
    found = plan([hashed("a", "B")], MadeUpLog(rows), ALL)
    assert found.tombstones == (ends("A"),)
    assert [one.num_leaving for one in found.fields.values()] == [2] * 6


def test_a_content_that_another_name_has_stays() -> None:
    log = MadeUpLog([*ONE_CLIP, on_record("copy", "A", 1, WANTED)])
    assert plan([hashed("a", "B")], log, WANTED).tombstones == ()


def test_a_content_that_moves_to_another_name_stays() -> None:
    log = MadeUpLog([*ONE_CLIP, *latents("B", [0], WANTED), on_record("b", "B", 1, WANTED)])
    found = plan([hashed("a", "B"), hashed("b", "A")], log, WANTED)
    assert (found.tombstones, found.to_decode) == ((), ())


def test_a_source_that_was_not_asked_for_leaves_only_when_pruning() -> None:
    log = MadeUpLog([*ONE_CLIP, *latents("B", [0], WANTED), on_record("b", "B", 1, WANTED)])
    assert plan([hashed("b", "B")], log, WANTED).tombstones == ()
    found = plan([hashed("b", "B")], log, WANTED, prune=True)
    name = TombstoneRow(reason="pruned", uri="/videos/a", source=None, clip=None)
    assert found.tombstones == (name, ends("A", "pruned"))
    assert found.fields["kl.video"].num_leaving == 1


def test_a_source_that_cannot_be_read_neither_leaves_nor_is_pruned() -> None:
    found = plan([unreadable("a")], MadeUpLog(ONE_CLIP), WANTED, prune=True)
    assert found.tombstones == ()


def test_what_an_unfinished_run_made_of_a_content_leaves_once_its_name_has_another() -> None:
    # The name got its new content on record, but the run ended before the old clips left.
    log = MadeUpLog(ONE_CLIP, [*latents("B", [0], WANTED), on_record("a", "B", 1, WANTED)])
    found = plan([hashed("a", "B")], log, WANTED)
    assert (found.to_decode, found.tombstones) == ((), (ends("A"),))


def test_what_a_run_that_goes_on_elsewhere_has_made_so_far_stays() -> None:
    log = MadeUpLog([*ONE_CLIP, *latents("B", [0], WANTED)])
    assert plan([hashed("a", "A")], log, WANTED, prune=True).tombstones == ()


def test_a_content_that_left_is_made_anew_when_it_is_back() -> None:
    log = MadeUpLog(ONE_CLIP, [ends("A")])
    found = plan([hashed("a", "A")], log, WANTED)
    assert len(found.to_decode) == 1
    assert found.fields["kl.video"].to_encode == {"new source": 1}


# What was taken down.


def dropped(
    content: str, clip: str | None = None, reason: str = "dropped", stop_frame: int | None = None
) -> TombstoneRow:
    source = digest_of(content)
    return TombstoneRow(reason=reason, uri=None, source=source, clip=clip, stop_frame=stop_frame)


def test_a_content_that_was_taken_down_is_passed_over_under_any_name() -> None:
    log = MadeUpLog(ONE_CLIP, [dropped("A")])
    found = plan([hashed("a", "A"), hashed("copy", "A")], log, WANTED)
    assert (found.to_decode, found.source_rows, found.num_dropped) == ((), (), 2)
    readmitted = MadeUpLog(ONE_CLIP, [dropped("A")], [dropped("A", reason="readmitted")])
    assert len(plan([hashed("a", "A")], readmitted, WANTED).to_decode) == 1


def test_a_clip_that_was_taken_down_is_not_made_again() -> None:
    kept = [*latents("A", [0, 1], ALL), on_record("a", "A", 2, ALL)]
    log = MadeUpLog(kept, [dropped("A", clip_key("A", 1, WANTED), stop_frame=200)])
    same, other = (
        plan([hashed("a", "A")], log, wanted(levels=("clip", "kl"), kl_vae=kl_vae))
        for kl_vae in ("k", "l")
    )
    assert (same.to_decode, same.cached, same.num_present) == ((), (), 1)
    assert other.to_decode == ()
    assert [work.clips for work in other.cached] == [(clip_key("A", 0, WANTED),)]


def test_a_clip_that_was_taken_down_stays_down_at_another_frame_rate() -> None:
    log = MadeUpLog(TWO_CLIPS, [dropped("A", clip_key("A", 1, WANTED), stop_frame=200)])
    found = plan([hashed("a", "A")], log, wanted("clip.fps=5"))
    assert [task.skip_segments for task in found.to_decode] == [frozenset({1})]
    assert (found.num_dropped, found.num_dropped_clips) == (0, 1)


@pytest.mark.parametrize(
    ("segment", "stop_frame", "override", "skipped"),
    [
        # Seconds 0 to 12, of a clip with its tail, lie in segments of 5 s now, or of 20 s.
        (0, 120, "clip.segment_seconds=5", {0, 1, 2}),
        (0, 120, "clip.segment_seconds=20", {0}),
        (1, 200, "clip.segment_seconds=5", {2, 3}),
        (1, 200, "clip.segment_seconds=20", {0}),
        # With its tail, the clip reaches into a segment that there was not.
        (0, 120, "clip.tail_frames=0", {0, 1}),
        # What ends within 31 frames may be the tail of the segment before.
        (1, 130, "clip.segment_seconds=5", {1, 2}),
        (1, 132, "clip.segment_seconds=5", {2}),
    ],
)
def test_no_clip_that_overlaps_one_that_was_taken_down_is_made(
    segment: int, stop_frame: int, override: str, skipped: set[int]
) -> None:
    drop = dropped("A", clip_key("A", segment, WANTED), stop_frame=stop_frame)
    found = plan([hashed("a", "A")], MadeUpLog(TWO_CLIPS, [drop]), wanted(override))
    assert [task.skip_segments for task in found.to_decode] == [frozenset(skipped)]


def test_what_was_readmitted_is_made_for_that_reason() -> None:
    key = clip_key("A", 1, WANTED)
    log = MadeUpLog(TWO_CLIPS, [dropped("A", key)], [dropped("A", key, reason="readmitted")])
    found = plan([hashed("a", "A")], log, WANTED)
    assert found.fields["kl.video"].to_encode == {"readmitted": 1}


# What was given up.


def test_what_was_given_up_stays_given_up() -> None:
    log = MadeUpLog([given_up("A", None, WANTED)])
    found = plan([hashed("a", "A")], log, WANTED)
    assert (found.to_decode, found.num_quarantined, found.num_present) == ((), 1, 0)


@pytest.mark.parametrize(
    "asked",
    [
        replace(WANTED, decode_versions="av 2"),
        wanted("window.frames=8"),
        wanted("sound.missing=silence"),
    ],
    ids=["versions", "windows", "sound"],
)
def test_other_versions_or_settings_of_decoding_try_again(asked: Wanted) -> None:
    log = MadeUpLog([given_up("A", None, WANTED), on_record("a", "A", 0, WANTED)])
    assert len(plan([hashed("a", "A")], log, asked).to_decode) == 1


def test_verdicts_of_another_sound_policy_stand_where_they_are_kept() -> None:
    log = MadeUpLog([given_up("A", None, WANTED)])
    sound, cut = (
        plan([hashed("a", "A")], log, replace(wanted(override), keeps_verdicts=True))
        for override in ("sound.missing=silence", "window.frames=8")
    )
    assert (sound.to_decode, sound.num_quarantined) == ((), 1)
    assert len(cut.to_decode) == 1


def test_a_segment_given_up_is_skipped_and_its_neighbours_are_made() -> None:
    log = MadeUpLog([*latents("A", [0], WANTED), given_up("A", 1, WANTED)])
    found = plan([hashed("a", "A")], log, WANTED)
    assert [task.skip_segments for task in found.to_decode] == [frozenset({0, 1})]


def test_segments_given_up_count_as_quarantined_in_every_run() -> None:
    rows = [*latents("A", [0], WANTED), on_record("a", "A", 2, WANTED), given_up("A", 1, WANTED)]
    found = plan([hashed("a", "A")], MadeUpLog(rows), WANTED)
    assert (found.num_present, found.num_quarantined) == (1, 1)
    assert found.fields["kl.video"].num_present == 1
    assert {field: one.num_quarantined for field, one in found.fields.items()} == dict.fromkeys(
        KL, 1
    )


def test_a_field_that_a_clip_has_is_not_quarantined_with_its_others() -> None:
    rows = [*latents("A", [0], WANTED, "kl.video"), on_record("a", "A", 1, WANTED)]
    found = plan([hashed("a", "A")], MadeUpLog([*rows, given_up("A", 0, WANTED)]), WANTED)
    assert [one.num_quarantined for one in found.fields.values()] == [0, 1]


def test_a_source_given_up_lacks_every_field() -> None:
    found = plan([hashed("a", "A")], MadeUpLog([given_up("A", None, WANTED)]), WANTED)
    assert [one.num_quarantined for one in found.fields.values()] == [1, 1]


def test_what_cannot_be_decoded_is_still_made_from_the_cache() -> None:
    # A refresh with other frames failed; the latents of before are still good for others.
    log = MadeUpLog(ONE_CLIP, [given_up("A", None, WANTED)])
    asked = wanted(levels=("kl", "perceptual"))
    found = plan([hashed("a", "A")], log, asked)
    assert [work.make for work in found.cached] == [PERCEPTUAL]
    assert found.to_decode == ()


def test_what_an_encoder_refused_is_tried_again_with_its_new_versions_or_by_another() -> None:
    log = MadeUpLog([on_record("a", "A", 1, WANTED), given_up("A", 0, WANTED, stage="encode")])
    assert plan([hashed("a", "A")], log, WANTED).to_decode == ()
    for asked in (replace(WANTED, encode_versions="torch 2"), OTHER_KL_VAE):
        assert len(plan([hashed("a", "A")], log, asked).to_decode) == 1


@pytest.mark.parametrize(
    "event",
    [
        replace(given_up("A", None, WANTED), error_class="WorkerDiedError"),
        replace(given_up("A", 0, WANTED, stage="encode"), error_class="WorkerDiedError"),
        given_up("A", None, WANTED, stage="read"),
    ],
    ids=["decoding worker", "encoding worker", "file"],
)
def test_a_worker_that_died_or_a_file_that_was_gone_is_not_held_against_the_clip(
    event: QuarantineRow,
) -> None:
    found = plan([hashed("a", "A")], MadeUpLog([event]), WANTED)
    assert (len(found.to_decode), found.num_quarantined) == (1, 0)


@pytest.mark.parametrize("asked", [WANTED, replace(WANTED, decode_versions="av 2")])
def test_what_someone_forgot_is_neither_tried_nor_counted_whatever_the_versions(
    asked: Wanted,
) -> None:
    event = given_up("A", None, WANTED)
    log = MadeUpLog([event], [replace(event, event="dropped")])
    found = plan([hashed("a", "A")], log, asked)
    assert (found.to_decode, found.num_quarantined) == ((), 0)


def test_attempts_are_counted_over_all_versions_by_content_and_segment() -> None:
    first, again = (given_up("A", None, replace(WANTED, decode_versions=v)) for v in ("1", "2"))
    gone = [replace(given_up(uri, None, WANTED), source_digest="") for uri in "xyx"]
    log = MadeUpLog([first, given_up("A", 1, WANTED), *gone], [retried(first)], [again])
    assert attempts_so_far(log.snapshot()) == {
        (digest_of("A"), None): 2,
        (digest_of("A"), 1): 1,
        ("/videos/x", None): 2,
        ("/videos/y", None): 1,
    }


def test_an_unreadable_file_is_quarantined_and_the_rest_goes_on() -> None:
    found = plan([unreadable("x"), hashed("a", "A")], MadeUpLog(), WANTED)
    assert len(found.to_decode) == 1
    assert [(row.source, row.stage, row.attempts) for row in found.quarantine_rows] == [
        ("/videos/x", "read", 1)
    ]


def test_an_unreadable_file_that_is_known_as_such_is_counted_and_not_noted_again() -> None:
    first = plan([unreadable("x")], MadeUpLog(), WANTED)
    log = MadeUpLog(first.quarantine_rows)
    known, otherwise = (plan([unreadable("x", why)], log, WANTED) for why in ("it is gone", "no"))
    assert (known.quarantine_rows, known.num_quarantined) == ((), 1)
    assert [row.attempts for row in otherwise.quarantine_rows] == [2]


def test_a_file_that_was_read_since_is_noted_when_it_is_unreadable_again() -> None:
    first = plan([unreadable("a")], MadeUpLog(), WANTED)
    found = plan([unreadable("a")], MadeUpLog(first.quarantine_rows, ONE_CLIP), WANTED)
    assert [row.attempts for row in found.quarantine_rows] == [2]
