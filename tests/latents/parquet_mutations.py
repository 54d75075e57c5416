"""Trials of files of rows: whatever they hold, they are rows or refused."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from random import Random
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa

from latents.cache.checkpoint import INDEX, index_of, schema_of
from latents.cache.commit import RowFile, read_derived_rows, read_rows
from latents.cache.layout import CacheLayout
from latents.cache.local_storage import LocalStorage
from latents.cache.reader import read_tensor
from latents.cache.rows import (
    ROW_KINDS,
    AnnotationRow,
    LatentRow,
    RowKind,
    TombstoneRow,
    check_rows,
    latent_row,
    read_parquet,
    rows_to_table,
    table_from_bytes,
    table_to_bytes,
    with_commit,
)
from latents.errors import DamagedError
from latents.recipe import sha256_hex
from latents.store.protocol import StoredTensor
from latents.testing import (
    fake_clips,
    fake_latent_row,
    fake_recipes,
    fake_source_row,
    quarantine_table,
)
from tests.latents.parquet_footer import (
    Field,
    Items,
    find,
    join,
    places,
    read_struct,
    split,
    write_struct,
)
from tests.mutations import damaged

SHARD = "0" * 64 + ".tar"
_INTEGERS = (0, 1, 2, -1, 100, 2**20, 2**27, 2**31 - 1, 2**31, -(2**31), 2**40, 2**62, 2**63 - 1)
_TEXTS = (b"", b"\0", b"\xff\xfe", b"a" * 100_000, b"clip")


def read_hostile_rows(seed: int) -> str:
    """Reads a hostile file of rows by the parser alone, and by the log under its own name."""
    random = Random(seed)
    kind = random.choice((*ROW_KINDS, INDEX))
    content = random.choice(tables()[kind])
    mutate = random.choice((_in_its_bytes, _in_its_footer, _in_a_page))
    changed = mutate(content, random)
    try:
        table = parse(kind, changed)
    except ValueError:
        table = None
    layout = cache_with(sha256_hex(changed), changed)
    file = RowFile(sha256=sha256_hex(changed), num_rows=1 if table is None else table.num_rows)
    try:
        stored = read(layout, kind, file)
    except DamagedError:
        stored = None
    assert _values(stored) == _values(table)
    if table is None:
        return "refused"
    use(layout, kind, table)
    return "same" if _values(table) == _original(kind, content) else "other"


def read_rows_under_another_name(seed: int) -> str:
    """Reads damaged rows in the place of others, as a disk or a copying tool may give them."""
    random = Random(seed)
    kind = random.choice((*ROW_KINDS, INDEX))
    content = random.choice(tables()[kind])
    changed = _in_its_bytes(content, random)
    layout = cache_with(sha256_hex(content), changed)
    file = RowFile(sha256=sha256_hex(content), num_rows=_num_rows(content))
    try:
        stored = read(layout, kind, file)
    except DamagedError:
        return "refused"
    assert changed == content
    assert _values(stored) == _original(kind, content)
    return "same"


def _num_rows(content: bytes) -> int:
    _, footer = split(content)
    num_rows: int = find(footer, 3)
    return num_rows


@cache
def _original(kind: str, content: bytes) -> str:
    return _values(parse(kind, content))


def _values(table: pa.Table | None) -> str:
    """What can be compared where there are NaNs."""
    return repr(None if table is None else table.to_pylist())


def parse(kind: str, content: bytes) -> pa.Table:
    """The rows of a file that nothing is known of."""
    if kind == INDEX:
        table = read_parquet(content, schema_of(INDEX))
        check_rows(kind, table)
        return table
    return table_from_bytes(_row_kind(kind), content)


def read(layout: CacheLayout, kind: str, file: RowFile) -> pa.Table:
    """The rows of a file that the log names."""
    if kind == INDEX:
        return read_derived_rows(layout, kind, file, schema_of(INDEX))
    return read_rows(layout, _row_kind(kind), file)


def use(layout: CacheLayout, kind: str, table: pa.Table) -> None:
    """Reads the tensors that rows point at, as far as they can be."""
    records = table.to_pylist()
    if kind != "latents":
        return
    for record in records[:20]:
        try:
            read_tensor(layout, latent_row(record))
        except DamagedError:
            continue


@cache
def tables() -> dict[str, list[bytes]]:
    """Files of few and of many rows, by kind."""
    latents = [_latents(1), _latents(30)]
    clips = fake_clips(30)
    given = {
        "latents": latents,
        INDEX: [index_of(with_commit(one, 7)) for one in latents],
        "sources": [rows_to_table("sources", map(fake_source_row, some)) for some in _some(clips)],
        "quarantine": [quarantine_table("a" * 64), pa.concat_tables([quarantine_table("")] * 30)],
        "annotations": [
            rows_to_table("annotations", rows)
            for rows in _some([_annotation(number) for number in range(30)])
        ],
        "tombstones": [
            rows_to_table("tombstones", rows)
            for rows in _some([_tombstone(number) for number in range(30)])
        ],
    }
    return {kind: [table_to_bytes(table) for table in some] for kind, some in given.items()}


def cache_with(name: str, rows: bytes) -> CacheLayout:
    """A cache with one file of rows and one shard, in a folder that is used again and again."""
    for before in (_folder() / "rows").iterdir():
        before.unlink()
    layout = CacheLayout(LocalStorage(_folder()))
    (_folder() / layout.rows(name)).write_bytes(rows)  # the storage would wait for the disk
    return layout


@cache
def _folder() -> Path:
    folder = Path(mkdtemp())
    for name in ("rows", "shards"):
        (folder / name).mkdir()
    (folder / "shards" / SHARD).write_bytes(bytes(4096))
    return folder


def _row_kind(kind: str) -> RowKind:
    (found,) = (one for one in ROW_KINDS if one == kind)
    return found


def _some(rows: list[Any]) -> list[list[Any]]:
    return [rows[:1], rows]


def _latents(num_rows: int) -> pa.Table:
    stored = StoredTensor(
        shard=SHARD,
        offset=512,
        dtype="float16",
        shape=(5, 4, 2, 2),
        digest="0" * 64,
        crc32c=(0,) * 5,
    )
    rows: list[LatentRow] = [
        fake_latent_row(clip, "kl.audio", fake_recipes()["kl.audio"], stored)
        for clip in fake_clips(num_rows)
    ]
    return rows_to_table("latents", rows)


def _annotation(number: int) -> AnnotationRow:
    source = sha256_hex(str(number).encode())
    return AnnotationRow(source=source, label="dog", caption=f"A dog. {number}", split="train")


def _tombstone(number: int) -> TombstoneRow:
    source = sha256_hex(str(number).encode())
    return TombstoneRow(reason="dropped", uri=f"/{number}.mp4", source=source, clip=None)


def _in_its_bytes(content: bytes, random: Random) -> bytes:
    return damaged(content, random, [random.choice(some) for some in tables().values()])


def _in_its_footer(content: bytes, random: Random) -> bytes:
    """Says another thing of its pages: how many, how large, of which type and where."""
    pages, footer = split(content)
    for _ in range(random.randint(1, 3)):
        poke(footer, random)
    return join(pages, footer)


def _in_a_page(content: bytes, random: Random) -> bytes:
    """Has a column whose pages are not what they say, told of truly by the footer."""
    pages, footer = split(content)
    chunks = [
        find(column, 3) for group in find(footer, 4).values for column in find(group, 1).values
    ]
    chunk = random.choice(chunks)
    first = find(chunk, 11) or find(chunk, 9)
    parts = _pages_of(pages[first : first + find(chunk, 7)])
    header, body = parts.pop(index := random.randrange(len(parts)))
    if random.random() < 0.7:
        poke(header, random)
    else:
        body = damaged(body or b"\0", random, [content])
    parts[index:index] = [(header, body)] * random.choice((1, 1, 1, 2, 50))
    starts = []
    for head, part in parts:
        starts.append(len(pages))
        pages += write_struct(head) + part
    moved = {9: starts[-1], 11: starts[0], 7: len(pages) - starts[0]}
    for field in chunk:
        field.value = moved.get(field.number, field.value)
    return join(pages, footer)


def _pages_of(column: bytes) -> list[tuple[list[Field], bytes]]:
    pages = []
    end = 0
    while end < len(column):
        header, start = read_struct(column, end)
        end = start + find(header, 3)
        pages.append((header, column[start:end]))
    return pages


def poke(structure: list[Field], random: Random) -> None:
    """Changes one thing in a structure."""
    holder, key, _ = random.choice(list(places(structure)))
    held = getattr(holder, key) if isinstance(key, str) else holder[key]
    match held:
        case int():
            changed: Any = random.choice((*_INTEGERS, held + 1, held - 1, held * 1000))
        case bytes():
            changed = random.choice((*_TEXTS, held[:-1], held + b"x", random.randbytes(4)))
        case Items():
            changed = Items(held.kind, random.choice((0, 2, 50)) * held.values)
            random.shuffle(changed.values)
        case list():
            changed = [copy.deepcopy(field) for field in held if random.random() < 0.9]
            if changed and random.random() < 0.5:
                random.choice(changed).number += random.choice((1, 100))
        case None:
            changed = None
            if isinstance(holder, Field):
                holder.kind = 3 - holder.kind
    if isinstance(key, str):
        setattr(holder, key, changed)
    else:
        holder[key] = changed
