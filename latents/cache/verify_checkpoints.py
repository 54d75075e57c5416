"""Verification of checkpoints: each must hold what its commits hold."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pyarrow as pa

from latents.cache.checkpoint import (
    COMMITS_PER_CHECKPOINT,
    INDEX,
    Checkpoint,
    index_of,
    make_checkpoint,
    read_checkpoint,
    schema_of,
)
from latents.cache.commit import read_derived_rows
from latents.cache.damage import Damage, damage_of
from latents.cache.layout import CacheLayout
from latents.cache.rows import ROW_KINDS
from latents.cache.verify_log import CommitBlock
from latents.durable import reading_from
from latents.errors import DamagedError

_CHECKPOINT_FILE = re.compile(r"checkpoints/([0-9]{12})\.json")


class CheckpointVerification:
    """Compares checkpoints with their commits, and makes those again that it is told to.

    Args:
        layout: The cache.
        rebuild: Whether missing and damaged ones are made again, where their commits are whole.
        on_note: Takes what was made again, and what is missing without being damage.
    """

    def __init__(
        self, layout: CacheLayout, *, rebuild: bool, on_note: Callable[[str], None]
    ) -> None:
        self._layout = layout
        self._rebuild = rebuild
        self._on_note = on_note
        self._stored = _stored_checkpoints(layout)
        self._verified: set[int] = set()
        self.damaged: list[Damage] = []

    def verify(self, block: CommitBlock) -> None:
        """Verifies the checkpoint that stands for these commits."""
        number = block.checkpoint
        if number not in self._stored:
            if block.is_whole:
                self._tell_missing(number)
            return
        self._verified.add(number)
        damaged = list(_verify_checkpoint(self._layout, block))
        if damaged and block.is_whole and self._rebuild:
            self._make_again(number, "was damaged")
        else:
            self.damaged.extend(damaged)

    def verify_others(self, end: int) -> None:
        """Verifies the checkpoints that no commits are there for.

        Args:
            end: Number of the log's last commit.
        """
        for number in sorted(self._stored - self._verified):
            self.verify(CommitBlock(checkpoint=number, commits=(), is_whole=False))
        damaged = {one.path for one in self.damaged}
        for number in sorted(self._stored):
            path = self._layout.checkpoint(number)
            if number > end and path not in damaged:
                problem = f"stands for commits up to {number}; the log ends at {end}"
                self.damaged.append(Damage(path=path, problem=problem))

    def _tell_missing(self, number: int) -> None:
        if self._rebuild:
            self._make_again(number, "was missing")
        else:
            self._on_note(
                f"{self._layout.checkpoint(number)} is missing; its commits are read instead, "
                "which is slower"
            )

    def _make_again(self, number: int, fault: str) -> None:
        make_checkpoint(self._layout, number)
        self._on_note(f"{self._layout.checkpoint(number)} {fault}; it was made again")


def _stored_checkpoints(layout: CacheLayout) -> set[int]:
    with reading_from(layout.url):
        names = [file.name for file in layout.storage.list("checkpoints")]
    return {int(found[1]) for found in map(_CHECKPOINT_FILE.fullmatch, names) if found}


def _verify_checkpoint(layout: CacheLayout, block: CommitBlock) -> Iterator[Damage]:
    name = layout.checkpoint(block.checkpoint)
    try:
        checkpoint = read_checkpoint(layout, block.checkpoint)
    except DamagedError as error:
        yield damage_of(error)
        return
    if (block.checkpoint + 1) % COMMITS_PER_CHECKPOINT:
        yield Damage(path=name, problem=f"no checkpoint ends at commit {block.checkpoint}")
    elif block.is_whole and not _is_linked(checkpoint, block):
        yield Damage(path=name, problem="the commits it names are not those that are there")
    for kind in (INDEX, *ROW_KINDS):
        try:
            rows = _read(layout, checkpoint, kind)
        except DamagedError as error:
            yield damage_of(error)
            continue
        if block.is_whole and not _are_equal(rows, _derived(block, kind)):
            yield Damage(path=name, problem=f"its {kind} rows are not those of its commits")


def _is_linked(checkpoint: Checkpoint, block: CommitBlock) -> bool:
    first, last = block.commits[0].commit, block.commits[-1].commit
    return (
        first is not None
        and last is not None
        and (checkpoint.previous, checkpoint.commit) == (first.previous, last.digest)
    )


def _read(layout: CacheLayout, checkpoint: Checkpoint, kind: str) -> pa.Table:
    if kind not in checkpoint.files:
        return schema_of(kind).empty_table()
    return read_derived_rows(layout, kind, checkpoint.files[kind], schema_of(kind))


def _derived(block: CommitBlock, kind: str) -> pa.Table:
    if kind == INDEX:
        return index_of(block.rows("latents"))
    return block.rows(next(row_kind for row_kind in ROW_KINDS if row_kind == kind))


def _are_equal(rows: pa.Table, others: pa.Table) -> bool:
    """Whether tables hold the same values, whatever the codes of their dictionaries."""
    plain = pa.schema([_without_codes(field) for field in rows.schema])
    return bool(rows.cast(plain).equals(others.cast(plain)))


def _without_codes(field: pa.Field) -> pa.Field:
    is_coded = pa.types.is_dictionary(field.type)
    return field.with_type(field.type.value_type) if is_coded else field
