"""Whatever happened before: a plan that is carried out leaves nothing to do, and plans are pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hypothesis import given
from hypothesis import strategies as st

from latents.cache.rows import LatentRow, Row, TombstoneRow
from latents.fields import LEVELS, Level
from pipeline.job_plan import JobPlan, Wanted
from pipeline.sources import HashedSource, UnreadableSource
from tests.pipeline.made_up_log import (
    MadeUpLog,
    clip_key,
    digest_of,
    given_up,
    hashed,
    latent,
    on_record,
    plan,
    unreadable,
    wanted,
)

NAMES, CONTENTS = "abcd", "ABCDE"
CONTENT_OF = {digest_of(content): content for content in CONTENTS}
HOPELESS = "D"
"""No segment of this content can be decoded."""
LEVEL_SETS: tuple[tuple[Level, ...], ...] = (
    ("kl",),
    ("perceptual",),
    ("kl", "perceptual"),
    ("clip", "kl"),
    ("clip", "kl", "perceptual"),
)


def num_segments(content: str, asked: Wanted) -> int:
    return 1 + (CONTENTS.index(content) + asked.clip.fps) % 3


def is_undecodable(content: str, segment: int) -> bool:
    return content == HOPELESS or (content, segment) == ("B", 1)


def is_refused(content: str, segment: int, fields: Sequence[str]) -> bool:
    """The encoders cannot do one clip."""
    return (content, segment) == ("C", 0) and not set(fields) <= set(LEVELS["clip"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One ingest or refresh."""

    files: dict[str, str | None]
    """Content of each name; None where it cannot be read."""
    asked: Wanted
    prune: bool
    num_clips: int | None
    """Clips that it gets done before it is killed; None for all."""
    dropped: str | None
    """A content that is taken down after it."""

    @property
    def sources(self) -> list[HashedSource | UnreadableSource]:
        return [
            unreadable(name) if content is None else hashed(name, content)
            for name, content in self.files.items()
        ]


def wants() -> st.SearchStrategy[Wanted]:
    overrides = st.sampled_from(
        [(), ("clip.fps=5",), ("window.stride=1",), ("mel.name=audioldm16k",), ("clip.size=128",)]
    )
    return st.builds(
        lambda overrides, levels, kl_vae, video: wanted(
            *overrides, levels=levels, kl_vae=kl_vae, video=video
        ),
        overrides,
        st.sampled_from(LEVEL_SETS),
        st.sampled_from("kl"),
        st.sampled_from("vw"),
    )


@st.composite
def jobs(draw: st.DrawFn, *, max_runs: int = 5) -> list[Run]:
    """Runs on one cache, so alike that one often goes on where another was killed."""
    contents = st.sampled_from([None, *CONTENTS])
    files = st.lists(contents, min_size=2, max_size=len(NAMES))
    named = files.map(lambda found: dict(zip(NAMES, found, strict=False)))
    run = st.builds(
        Run,
        files=st.sampled_from(draw(st.lists(named, min_size=1, max_size=2))),
        asked=st.sampled_from(draw(st.lists(wants(), min_size=1, max_size=3))),
        prune=st.booleans(),
        num_clips=st.sampled_from([None, None, None, 0, 1, 2, 3, 5]),
        dropped=st.sampled_from([None] * 10 + [*CONTENTS]),
    )
    return draw(st.lists(run, min_size=2, max_size=max_runs))


class Worker:
    """Does what a plan says on a log, as engine and committer do."""

    def __init__(self, log: MadeUpLog, asked: Wanted) -> None:
        self._log, self._asked = log, asked
        index = log.snapshot().index
        pairs = zip(index["recipe"].to_pylist(), index["clip"].to_pylist(), strict=True)
        self._present = set(pairs)
        self.made: Counter[str] = Counter()

    def carry_out(self, run: Run, todo: JobPlan) -> None:
        self._log.commit(*todo.source_rows, *todo.annotation_rows, *todo.quarantine_rows)
        for number, rows in enumerate(self._work(run, todo)):
            if number == run.num_clips:
                return
            self._log.commit(*rows)
            self.made.update(row.field for row in rows if isinstance(row, LatentRow))
        self._log.commit(*todo.tombstones)

    def _work(self, run: Run, todo: JobPlan) -> Iterator[list[Row]]:
        """What is committed together: a clip, or the end of a source."""
        for task in todo.to_decode:
            yield from self._decode(run, CONTENT_OF[task.digest], task.skip_segments, task.fields)
        for work in todo.cached:
            for content, segment in map(self._place, work.clips):
                yield self._encode(content, segment, work.make, read=work.read)

    def _decode(
        self, run: Run, content: str, skipped: frozenset[int], fields: tuple[str, ...]
    ) -> Iterator[list[Row]]:
        length = 0 if content == HOPELESS else num_segments(content, self._asked)
        if not length:
            yield [given_up(content, None, self._asked)]
        for segment in range(length):
            if segment in skipped:
                continue
            if is_undecodable(content, segment):
                yield [given_up(content, segment, self._asked)]
            else:
                yield self._encode(content, segment, fields, read=())
        names = [name for name, found in run.files.items() if found == content]
        yield [on_record(name, content, length, self._asked) for name in names]

    def _encode(
        self, content: str, segment: int, fields: tuple[str, ...], *, read: tuple[str, ...]
    ) -> list[Row]:
        clip = clip_key(content, segment, self._asked)
        for field in read:
            assert (self._asked.usable[field], clip) in self._present
        if is_refused(content, segment, fields):
            return [given_up(content, segment, self._asked, stage="encode")]
        new = [f for f in fields if (self._asked.digests[f], clip) not in self._present]
        return [latent(content, segment, self._asked, field) for field in new]

    def _place(self, clip: str) -> tuple[str, int]:
        prefix, start, _ = clip.split("-")
        (content,) = (one for digest, one in CONTENT_OF.items() if digest.startswith(prefix))
        return content, int(start) // self._asked.clip.segment_frames


def do(log: MadeUpLog, run: Run) -> JobPlan:
    todo = plan(run.sources, log, run.asked, prune=run.prune)
    worker = Worker(log, run.asked)
    worker.carry_out(run, todo)
    if run.dropped:
        log.commit(
            TombstoneRow(reason="dropped", uri=None, source=digest_of(run.dropped), clip=None)
        )
    return todo


def history(earlier: Sequence[Run]) -> MadeUpLog:
    log = MadeUpLog()
    for run in earlier:
        do(log, run)
    return log


@given(jobs())
def test_after_a_plan_is_carried_out_nothing_is_left_to_do(runs: list[Run]) -> None:
    *earlier, last = runs
    log = history(earlier)
    last = replace(last, num_clips=None, dropped=None)

    do(log, last)

    again = plan(last.sources, log, last.asked, prune=last.prune)
    assert (again.to_decode, again.cached, again.tombstones) == ((), (), ())
    assert (again.source_rows, again.annotation_rows, again.quarantine_rows) == ((), (), ())
    assert not any(one.to_encode or one.num_uncut for one in again.fields.values())


@given(jobs())
def test_every_field_of_every_clip_is_there_then_and_nothing_that_should_not_be(
    runs: list[Run],
) -> None:
    *earlier, last = runs
    log = history(earlier)
    last = replace(last, num_clips=None, dropped=None)
    down = {run.dropped for run in earlier}

    do(log, last)

    held = Counter(rows(log))
    assert set(held.values()) <= {1}
    for content in set(last.files.values()) - {None}:
        for segment in range(num_segments(content, last.asked)):
            clip = clip_key(content, segment, last.asked)
            lacks = [f for f, digest in last.asked.digests.items() if (digest, clip) not in held]
            if content in down:
                assert lacks == list(last.asked.digests)
            elif not is_undecodable(content, segment) and not is_refused(content, segment, lacks):
                assert lacks == []


@given(jobs(), st.integers(0, 5))
def test_killed_after_any_clip_and_run_again_it_ends_as_if_it_had_not_been(
    runs: list[Run], num_clips: int
) -> None:
    *earlier, last = runs
    last = replace(last, num_clips=None, dropped=None)
    whole, killed = history(earlier), history(earlier)
    do(whole, last)

    do(killed, replace(last, num_clips=num_clips))
    do(killed, last)

    assert rows(killed) == rows(whole)


def rows(log: MadeUpLog) -> list[tuple[str, str]]:
    index = log.snapshot().index
    return sorted(zip(index["recipe"].to_pylist(), index["clip"].to_pylist(), strict=True))


@given(jobs())
def test_a_clip_leaves_when_no_name_has_its_bytes_any_more_and_not_before(runs: list[Run]) -> None:
    *earlier, last = runs
    log = history(earlier)
    before = log.snapshot()
    last = replace(last, num_clips=None, dropped=None)

    do(log, last)

    after = log.snapshot()
    named = set(after.sources["digest"].to_pylist())
    ever_named = set(after.source_history["digest"].to_pylist())
    kept = set(after.index["source"].to_pylist())
    assert kept & ever_named <= named
    assert set(before.index["source"].to_pylist()) & named <= kept
    asked = {f"/videos/{name}" for name in last.files}
    others = set(before.sources["uri"].to_pylist()) - asked
    assert (
        others.isdisjoint(after.sources["uri"].to_pylist())
        if last.prune
        else (others <= set(after.sources["uri"].to_pylist()))
    )


@given(jobs())
def test_a_plan_foretells_how_many_rows_are_made_of_sources_that_were_cut(runs: list[Run]) -> None:
    *earlier, last = runs
    log = history(earlier)
    # The other contents have clips that fail.
    files = {name: found for name, found in last.files.items() if found in ("A", "E", None)}
    last = replace(last, files=files, num_clips=None, dropped=None)
    todo = plan(last.sources, log, last.asked, prune=last.prune)
    worker = Worker(log, last.asked)

    worker.carry_out(last, todo)

    if not any(one.num_uncut for one in todo.fields.values()):
        told = {field: sum(one.to_encode.values()) for field, one in todo.fields.items()}
        assert {field: count for field, count in told.items() if count} == dict(worker.made)


@given(jobs(max_runs=3))
def test_a_plan_is_a_function_of_what_it_is_given_and_changes_nothing(runs: list[Run]) -> None:
    *earlier, last = runs
    log = history(earlier)
    before = log.snapshot()

    first, second = (plan(last.sources, log, last.asked, prune=last.prune) for _ in range(2))

    assert first == second
    after = log.snapshot()
    for table in ("index", "sources", "source_history", "quarantine", "annotations", "tombstones"):
        assert getattr(before, table).equals(getattr(after, table))
