"""A pack is a snapshot's windows in one file, bit by bit, that needs no log to read."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from latents.cache import pack_header, pack_writer
from latents.cache.audible import audible_clips
from latents.cache.batches import GlobalBatches
from latents.cache.inspect import summarise_level
from latents.cache.log import CommitLog
from latents.cache.order import TrainingOrder
from latents.cache.pack import PackedWindows, open_pack, read_pack
from latents.cache.pack_format import PackedTensor, head_of, lay_out
from latents.cache.pack_verify import verify_pack
from latents.cache.pack_writer import VALIDATION_SHARE, write_pack
from latents.cache.reader import CachedLevel, ClipRows, open_cache
from latents.cache.refs import Ref, read_recipe, require_ref, write_ref
from latents.cache.resident import ResidentWindows
from latents.cache.rows import AnnotationRow, rows_to_table
from latents.cache.source_split import SPLITS
from latents.cache.splits import clips_of_split
from latents.errors import CacheError, ConfigError, DamagedError
from latents.recipe import sha256_hex
from latents.store.kinds import StoreName
from latents.testing import make_cache, perceptual_clips, perceptual_recipes
from latents.whitening import whitening_of

VIDEO, AUDIO = "perceptual.video", "perceptual.audio"
NUM_CLIPS, NUM_WINDOWS = 9, 45
ROOT = Path(__file__).parents[2]


def annotated_level(root: Path, *, store: StoreName = "tar", seed: int = 0) -> CachedLevel:
    """Nine clips of five windows, each clip a source; people named a split for three of them."""
    # 96 bytes of picture and 24 of sound a window, so that fields end at odd places.
    clips = perceptual_clips(NUM_CLIPS, seed=seed, video=(3, 4, 2), audio=(3, 2, 1))
    layout = make_cache(root, clips=clips, recipes=perceptual_recipes(), store=store)
    rows = [
        AnnotationRow(source=clip.key.source_digest, label=None, caption=None, split=split)
        for clip, split in zip(clips, SPLITS, strict=False)
    ]
    CommitLog(layout).append({"annotations": rows_to_table("annotations", rows)}, {})
    write_ref(layout, "current", Ref(commit=5, recipes=require_ref(layout, "current").recipes))
    return open_cache(root, level="perceptual")


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> CachedLevel:
    return annotated_level(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def path(level: CachedLevel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pack") / "p.safetensors"
    write_pack(level, path, ref="current")
    return path


@pytest.fixture(scope="module")
def pack(path: Path) -> PackedWindows:
    return open_pack(path)


def copy_of(path: Path, tmp_path: Path, content: bytes | None = None) -> Path:
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(path.read_bytes() if content is None else content)
    return copy


def offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Of each tensor, the first byte in the file and the one after its last."""
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:begin])
    del header["__metadata__"]
    return {name: tuple(begin + at for at in one["data_offsets"]) for name, one in header.items()}


def flipped(path: Path, tmp_path: Path, byte: int) -> Path:
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    return copy_of(path, tmp_path, bytes(content))


def test_windows_are_the_caches_own(level: CachedLevel, pack: PackedWindows) -> None:
    resident = ResidentWindows(level, level.clips)
    chosen = np.random.default_rng(0).integers(NUM_WINDOWS, size=100)

    taken, wanted = pack.take(chosen), resident.take(chosen)

    assert (pack.num_windows, pack.num_clips) == (NUM_WINDOWS, NUM_CLIPS)
    assert pack.shapes == resident.shapes
    assert list(taken) == [VIDEO, AUDIO]
    for field in taken:
        np.testing.assert_array_equal(taken[field], wanted[field], strict=True)


def test_a_window_has_a_place_and_covers_frames(level: CachedLevel, pack: PackedWindows) -> None:
    resident = ResidentWindows(level, level.clips)
    windows = range(NUM_WINDOWS)
    assert [pack.place(one) for one in windows] == [resident.place(one) for one in windows]
    assert [pack.frames(window) for window in (0, 1, 4, 5)] == [
        range(0, 4),
        range(1, 5),
        range(4, 8),
        range(0, 4),
    ]


def test_what_was_taken_is_the_callers_own(pack: PackedWindows) -> None:
    pack.take(np.array([3]))[VIDEO][:] = 0
    assert pack.take(np.array([3]))[VIDEO].any()


def test_given_arrays_are_filled(pack: PackedWindows) -> None:
    chosen = np.array([44, 0, 44])
    wanted = pack.take(chosen)
    out = {name: np.zeros_like(array) for name, array in wanted.items()}

    taken = pack.take(chosen, out=out)

    for field in (VIDEO, AUDIO):
        assert taken[field] is out[field]
        np.testing.assert_array_equal(out[field], wanted[field])
    with pytest.raises(ValueError, match=r"out\['perceptual.video'\] is float16 \(3, .*wanted"):
        pack.take(np.array([0]), out=out)


@pytest.mark.parametrize("window", [-1, NUM_WINDOWS])
def test_a_window_that_is_not_there_is_an_error(window: int, pack: PackedWindows) -> None:
    with pytest.raises(IndexError, match="there are 45 windows"):
        pack.take(np.array([0, window]))


def test_a_pack_knows_what_it_holds(level: CachedLevel, pack: PackedWindows) -> None:
    assert (pack.commit, pack.header.ref, pack.header.level) == (5, "current", "perceptual")
    assert pack.content_digest == summarise_level(level).content_digest
    assert pack.recipes == {
        field: read_recipe(level.layout, digest) for field, digest in level.recipes.items()
    }
    assert pack.clip_keys() == level.clips.clip_keys()
    assert pack.sources() == level.clips.sources().to_pylist()


@pytest.mark.parametrize("field", [VIDEO, AUDIO])
def test_whitening_is_that_of_the_caches_rows(
    field: str, level: CachedLevel, pack: PackedWindows
) -> None:
    is_wanted = np.array([True, False, True] * 3)
    rows = [clip.rows[field] for clip, wanted in zip(level, is_wanted, strict=True) if wanted]

    assert whitening_of(pack.where(is_wanted).sums(field)) == whitening_of(rows)

    trained_on = clips_of_split(level, "train", validation_share=VALIDATION_SHARE)
    of_train = whitening_of(clip.rows[field] for clip in trained_on)
    assert pack.header.whitening[field] == of_train


@pytest.mark.parametrize("split", SPLITS)
def test_splits_are_those_of_the_cache(split: str, level: CachedLevel, pack: PackedWindows) -> None:
    wanted = clips_of_split(level, split, validation_share=0.4)
    resident = ResidentWindows(level, wanted)

    found = pack.of_split(split, validation_share=0.4)

    assert found.clip_keys() == wanted.clip_keys()
    assert 0 < found.num_windows == resident.num_windows < NUM_WINDOWS
    windows = np.arange(found.num_windows)[::-1]
    np.testing.assert_array_equal(found.take(windows)[AUDIO], resident.take(windows)[AUDIO])


def with_loudness(level: CachedLevel, loudness: Sequence[float | None]) -> CachedLevel:
    """The same clips, as loud as this."""
    rows = {field: level.clips.rows_of(field) for field in level.recipes}
    said = pa.array(loudness, pa.float64())
    column = rows[AUDIO].schema.get_field_index("loudness_dbfs")
    rows[AUDIO] = rows[AUDIO].set_column(column, "loudness_dbfs", said)
    level.clips = ClipRows(rows)
    return level


def test_audible_clips_are_those_of_the_cache(tmp_path: Path) -> None:
    loudness = [-20.0, -120.0, None, -80.0, -80.0000001, -60.0, -90.0, None, -79.9]
    level = with_loudness(annotated_level(tmp_path / "cache"), loudness)
    path = write_pack(level, tmp_path / "p.safetensors", ref="current").path
    wanted = audible_clips(level.clips, level="perceptual", from_dbfs=-80.0)
    resident = ResidentWindows(level, wanted)

    found = open_pack(path).audible(from_dbfs=-80.0)

    assert found.clip_keys() == wanted.clip_keys()
    assert (found.num_clips, found.num_windows) == (6, resident.num_windows)
    windows = np.arange(found.num_windows)
    np.testing.assert_array_equal(found.take(windows)[AUDIO], resident.take(windows)[AUDIO])
    assert whitening_of(found.sums(AUDIO)) == whitening_of(one.rows[AUDIO] for one in wanted)


def test_all_clips_of_a_pack_are_kept_from_minus_infinity_on(pack: PackedWindows) -> None:
    assert pack.audible(from_dbfs=-math.inf).clip_keys() == pack.clip_keys()
    assert pack.audible(from_dbfs=-19.9).num_windows == 0


def test_audible_clips_of_a_split_are_the_split_of_audible_clips(tmp_path: Path) -> None:
    level = with_loudness(annotated_level(tmp_path / "cache"), [-120.0, -20.0, -20.0] * 3)
    pack = open_pack(write_pack(level, tmp_path / "p.safetensors", ref="current").path)
    ways = (
        pack.audible(from_dbfs=-80.0).of_split("train", validation_share=0.4),
        pack.of_split("train", validation_share=0.4).audible(from_dbfs=-80.0),
    )
    assert ways[0].clip_keys() == ways[1].clip_keys()
    assert 0 < ways[0].num_clips < pack.of_split("train", validation_share=0.4).num_clips


def test_equal_snapshots_give_equal_bytes(path: Path, tmp_path: Path) -> None:
    other_store = annotated_level(tmp_path / "cache", store="zarr")
    other = annotated_level(tmp_path / "other", seed=1)
    for name, level in (("same", other_store), ("other", other)):
        write_pack(level, tmp_path / f"{name}.safetensors", ref="current")

    assert (tmp_path / "same.safetensors").read_bytes() == path.read_bytes()
    assert (tmp_path / "other.safetensors").read_bytes() != path.read_bytes()


def test_stock_safetensors_reads_all_of_it(path: Path, pack: PackedWindows) -> None:
    with safe_open(path, framework="np") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    np.testing.assert_array_equal(stored[VIDEO], pack.take(np.arange(NUM_WINDOWS))[VIDEO])
    assert stored["clips.num_windows"].tolist() == [5] * NUM_CLIPS
    keys = [row.tobytes().decode() for row in stored["clips.key"]]
    assert keys == pack.clip_keys()


def test_fields_and_tables_are_aligned(path: Path) -> None:
    begins = {name: first for name, (first, _) in offsets(path).items()}
    assert [begins[name] % 64 for name in (VIDEO, AUDIO, "clips.loudness_dbfs")] == [0, 0, 0]
    with safe_open(path, framework="np") as file:
        items = {name: file.get_tensor(name).itemsize for name in begins}
    assert [name for name, first in begins.items() if first % items[name]] == []


def test_tensors_of_any_length_leave_no_gap() -> None:
    laid = lay_out({VIDEO: ("float16", (5, 7)), AUDIO: ("float16", (32,)), "t": ("uint8", (1,))})
    assert laid == [
        PackedTensor(name=VIDEO, dtype="float16", shape=(5, 7), offset=0),
        PackedTensor(name="padding.1", dtype="uint8", shape=(58,), offset=70),
        PackedTensor(name=AUDIO, dtype="float16", shape=(32,), offset=128),
        PackedTensor(name="t", dtype="uint8", shape=(1,), offset=192),
    ]


def test_reading_needs_torch_numpy_and_safetensors_alone(path: Path, pack: PackedWindows) -> None:
    blocked = (
        "pyarrow google_crc32c obstore webdataset zarr av decord ray rich einops PIL pipeline "
        "evaluation training latents.cache.reader latents.store latents.models"
    )
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked.split()!r}))
import numpy as np
from latents.cache.pack import open_pack
pack = open_pack({str(path)!r}).of_split("train", validation_share=0.4)
taken = pack.take(np.arange(pack.num_windows))
print({{name: (one.shape, int(one.view(np.uint16).sum())) for name, one in taken.items()}})
print(pack.place(7), len(pack.recipes), len(pack.sums({VIDEO!r})))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )

    train = pack.of_split("train", validation_share=0.4)
    taken = train.take(np.arange(train.num_windows))
    sums = {name: (one.shape, int(one.view(np.uint16).sum())) for name, one in taken.items()}
    assert done.stdout == f"{sums}\n{train.place(7)} 2 {train.num_clips}\n", done.stderr


def test_another_process_opens_the_file_anew(path: Path, tmp_path: Path) -> None:
    train = open_pack(copy_of(path, tmp_path)).of_split("train", validation_share=0.4)
    pickled = pickle.dumps(train)
    assert len(pickled) < 1000
    windows = np.arange(train.num_windows)
    np.testing.assert_array_equal(
        pickle.loads(pickled).take(windows)[VIDEO], train.take(windows)[VIDEO]
    )
    write_pack(
        annotated_level(tmp_path / "other", seed=1), tmp_path / "o.safetensors", ref="current"
    )
    (tmp_path / "o.safetensors").replace(train.path)
    with pytest.raises(CacheError, match="is another pack than it was"):
        pickle.loads(pickled)


def test_batches_of_a_pack_are_those_of_the_cache(level: CachedLevel, pack: PackedWindows) -> None:
    order = TrainingOrder(num_windows=pack.num_windows, seed=3)
    _, windows = GlobalBatches(order=order, batch_size=16).at(4)
    resident = ResidentWindows(level, level.clips)
    np.testing.assert_array_equal(pack.take(windows)[VIDEO], resident.take(windows)[VIDEO])


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("nothing", "is no pack, or not a whole one"),
        ("half of the header", "is no pack, or not a whole one"),
        ("half", "is no pack, or not a whole one"),
        ("all but a byte", "is no pack, or not a whole one"),
        ("all and a byte", "is no pack, or not a whole one"),
    ],
)
def test_a_part_of_a_pack_is_refused(part: str, told: str, path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    parts = {
        "nothing": b"",
        "half of the header": whole[:100],
        "half": whole[: len(whole) // 2],
        "all but a byte": whole[:-1],
        "all and a byte": whole + b"\0",
    }
    with pytest.raises(CacheError, match=f"{told}.*export it again"):
        open_pack(copy_of(path, tmp_path, parts[part]))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"gone.safetensors cannot be read"):
        open_pack(tmp_path / "gone.safetensors")
    save_file({"weight": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(CacheError, match=r"model.safetensors is a safetensors file but no pack"):
        open_pack(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (b'\\"version\\":2', b'\\"version\\":3', "does not match its seal"),
        (b'\\"commit\\":5', b'\\"commit\\":4', "does not match its seal"),
        (b'"mmldm":', b'"mmldn":', "is a safetensors file but no pack"),
        (b'"clips.fps"', b'"clips.fpz"', "is no pack, or not a whole one"),
    ],
)
def test_a_header_that_was_changed_is_refused(
    before: bytes, after: bytes, told: str, path: Path, tmp_path: Path
) -> None:
    content = path.read_bytes()
    assert content.count(before) == 1
    with pytest.raises(CacheError, match=told):
        open_pack(copy_of(path, tmp_path, content.replace(before, after)))


@pytest.mark.parametrize(
    "table", ["clips.key", "clips.split", f"{VIDEO}.mean_sum", f"{AUDIO}.crc32c"]
)
def test_a_table_that_was_changed_is_refused(table: str, path: Path, tmp_path: Path) -> None:
    damaged = flipped(path, tmp_path, offsets(path)[table][0])
    with pytest.raises(DamagedError, match="its tables are not as they were written"):
        open_pack(damaged)


def test_a_pack_as_it_was_written_is_intact(path: Path) -> None:
    assert verify_pack(path) == []


def test_a_damaged_window_is_named(path: Path, tmp_path: Path, pack: PackedWindows) -> None:
    window = 24 * 2 * 2  # bytes of one picture's moments
    begin = offsets(path)[VIDEO][0] + 7 * window
    (damage,) = verify_pack(flipped(path, tmp_path, begin + 5))

    clip, number = pack.place(7)
    assert (damage.clip, damage.field, damage.offset) == (clip, VIDEO, begin)
    assert damage.problem == f"{VIDEO} of clip {clip}, slice {number}, fails its CRC-32C"


def test_padding_that_is_not_zero_is_named(path: Path, tmp_path: Path) -> None:
    begins = {name: first for name, (first, _) in offsets(path).items()}
    padding = next(name for name in begins if name.startswith("padding."))
    (damage,) = verify_pack(flipped(path, tmp_path, begins[padding] + 1))
    assert (damage.offset, damage.problem) == (begins[padding], f"{padding} is not all zeros")


def test_a_name_that_no_reader_asks_for_counts_too(path: Path, tmp_path: Path) -> None:
    named = path.read_bytes().index(b"padding.")
    (damage,) = verify_pack(flipped(path, tmp_path, named))
    assert (damage.offset, damage.problem) == (0, "its header is not as it was written")


def is_told(path: Path) -> bool:
    """Whether verification tells of damage, in whichever way."""
    try:
        return bool(verify_pack(path))
    except CacheError:
        return True


def test_no_byte_of_a_pack_goes_unverified(path: Path, tmp_path: Path) -> None:
    bytes_ = np.random.default_rng(0).choice(path.stat().st_size, size=500, replace=False)
    assert [byte for byte in bytes_.tolist() if not is_told(flipped(path, tmp_path, byte))] == []


def test_what_reads_back_differently_gets_no_name(
    level: CachedLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_writer, "content_digest", lambda rows: "0" * 64)
    with pytest.raises(CacheError, match="its windows do not hash to its content digest"):
        write_pack(level, tmp_path / "p.safetensors", ref="current")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_leaves_nothing(level: CachedLevel, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pack(level, tmp_path / "p.safetensors", ref="current", on_clip=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_told_by_clip(level: CachedLevel, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    written = write_pack(
        level,
        tmp_path / "new" / "p.safetensors",
        ref="current",
        on_clip=lambda done, total: told.append((done, total)),
    )
    assert told == [(done, NUM_CLIPS) for done in range(1, NUM_CLIPS + 1)]
    assert written.num_bytes == written.path.stat().st_size


def test_a_file_that_is_there_stays(level: CachedLevel, tmp_path: Path) -> None:
    (tmp_path / "p.safetensors").write_text("mine")
    with pytest.raises(ConfigError, match=r"p.safetensors is there already"):
        write_pack(level, tmp_path / "p.safetensors", ref="current")
    assert (tmp_path / "p.safetensors").read_text() == "mine"


@pytest.mark.parametrize("out", ["p.pack", "folder", "s3://bucket/p.safetensors"])
def test_a_pack_is_a_file_of_that_suffix(out: str, level: CachedLevel) -> None:
    with pytest.raises(ConfigError, match="is no name for a pack"):
        write_pack(level, out, ref="current")


def test_a_level_without_rows_for_windows_is_refused(tmp_path: Path) -> None:
    kl = open_cache(make_cache(tmp_path / "cache").url, level="kl")
    with pytest.raises(ConfigError, match=r"kl\.video has no row for each window"):
        write_pack(kl, tmp_path / "p.safetensors", ref="current")


def test_a_level_without_clips_is_refused(tmp_path: Path) -> None:
    layout = make_cache(tmp_path / "cache", clips=[], recipes=perceptual_recipes())
    recipes = {field: recipe.digest for field, recipe in perceptual_recipes().items()}
    write_ref(layout, "current", Ref(commit=-1, recipes=recipes))
    with pytest.raises(CacheError, match="there is nothing to pack"):
        write_pack(
            open_cache(layout.url, level="perceptual"), tmp_path / "p.safetensors", ref="current"
        )


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    level = annotated_level(tmp_path / "cache")
    row = level.clips[0].rows[VIDEO]
    shard = tmp_path / "cache" / "shards" / row.shard
    content = bytearray(shard.read_bytes())
    content[row.offset + 3] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(content)

    with pytest.raises(DamagedError, match=row.shard):
        write_pack(level, tmp_path / "p.safetensors", ref="current")
    assert not (tmp_path / "p.safetensors").exists()


def forged(path: Path, out: Path, table: str, values: NDArray[Any]) -> Path:
    """The same pack with another table, and digests that fit it."""
    pack = read_pack(path)
    tables = {**pack.tables, table: values}
    digest = sha256_hex(b"".join(one.tobytes() for one in tables.values()))
    tensors = {**pack.fields, **tables}
    laid = lay_out({name: (str(one.dtype), one.shape) for name, one in tensors.items()})
    content = head_of(laid, replace(pack.header, tables_digest=digest).to_json())
    padding = {one.name: bytes(one.num_bytes) for one in laid}
    stored = {name: one.tobytes() for name, one in tensors.items()}
    out.write_bytes(content + b"".join((padding | stored)[one.name] for one in laid))
    return out


def test_tensors_that_do_not_fit_each_other_are_refused(path: Path, tmp_path: Path) -> None:
    pack = read_pack(path)
    counts, keys = pack.tables["clips.num_windows"], pack.tables["clips.key"]
    out = tmp_path / "p.safetensors"
    assert (
        forged(path, out, "clips.fps", pack.tables["clips.fps"]).read_bytes() == path.read_bytes()
    )
    for table, values in (
        ("clips.num_windows", np.array([10, 0, *counts[2:]], np.int32)),
        ("clips.key", keys[::-1]),
        ("clips.key", keys[:, 0]),
        ("clips.source", pack.tables["clips.source"][:, :31]),
        ("clips.split", pack.tables["clips.split"] + 3),
        ("clips.fps", pack.tables["clips.fps"].astype(np.int64)),
        (f"{VIDEO}.crc32c", pack.tables[f"{VIDEO}.crc32c"][:-1]),
    ):
        with pytest.raises(DamagedError, match=f"{table}.* cannot be of 9 clips"):
            open_pack(forged(path, out, table, np.ascontiguousarray(values)))
    with pytest.raises(DamagedError, match=f"{VIDEO}, {AUDIO}, .* of 9 clips with 54 windows"):
        open_pack(forged(path, out, "clips.num_windows", counts + 1))


def test_packs_of_another_version_are_refused(
    level: CachedLevel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_header, "FORMAT_VERSION", 1)
    write_pack(level, tmp_path / "p.safetensors", ref="current")
    monkeypatch.undo()
    with pytest.raises(CacheError, match="version 1; this version reads 'mmldm-pack', version 2"):
        open_pack(tmp_path / "p.safetensors")
