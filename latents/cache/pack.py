"""A pack: a snapshot's windows as one memory-mapped file, which needs no log to read.

Reading takes torch, numpy and safetensors alone. `latents.cache.pack_writer` writes packs, and
`latents.cache.pack_verify` compares all their bytes with their checksums.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from latents.cache.pack_format import METADATA_KEY, expected_tensors, tables_of
from latents.cache.pack_header import PackHeader
from latents.cache.pack_sums import clip_sums
from latents.cache.source_split import SPLITS, Split, split_of
from latents.cache.windows import WindowIndex, WindowShapes, gather
from latents.channel_sums import ClipChannelSums
from latents.durable import reason
from latents.errors import CacheError, DamagedError
from latents.fields import LEVELS, Level
from latents.recipe import Recipe, open_sealed_json

Tensors = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenPack:
    """A pack's header and tensors; the fields are mapped, not read."""

    path: Path
    header: PackHeader
    fields: Tensors
    """By name (window, ...), read-only."""
    tables: Tensors
    """By name; see `latents.cache.pack_format.tables_of`."""


class PackedWindows:
    """All windows of a pack, or of some of its clips, numbered clip after clip in order of key.

    A batch is one gather a field from the mapped file; what was read before is in the system's
    cache, and takes no memory of the process. The bytes are taken as they are:
    `latents.cache.pack_verify.verify_pack` compares them with their checksums. Pickled, it opens
    its file anew.

    Args:
        pack: Opened.
        clips: Numbers of its clips, in order.
    """

    def __init__(self, pack: OpenPack, clips: NDArray[np.int64]) -> None:
        self._pack, self._clips = pack, clips
        counts = pack.tables["clips.num_windows"].astype(np.int64)
        self.index = WindowIndex(_keys(pack.tables)[clips], counts[clips])
        firsts = np.cumsum(counts) - counts
        # From a window's number here to its number in the file.
        self._shifts = firsts[clips] - (np.cumsum(counts[clips]) - counts[clips])

    @property
    def path(self) -> Path:
        """The file."""
        return self._pack.path

    @property
    def header(self) -> PackHeader:
        """What the pack says of itself: ref, level, whitening of the training split, and more."""
        return self._pack.header

    @property
    def commit(self) -> int:
        """The snapshot's commit."""
        return self.header.commit

    @property
    def content_digest(self) -> str:
        """Of all clips of the pack; what `mmldm cache inspect` says of the level."""
        return self.header.content_digest

    @property
    def recipes(self) -> Mapping[str, Recipe]:
        """What made each field, with all it was made from."""
        return self.header.recipes

    @property
    def num_windows(self) -> int:
        """How many there are."""
        return self.index.num_windows

    @property
    def num_clips(self) -> int:
        """How many clips these windows are of."""
        return len(self._clips)

    @property
    def shapes(self) -> WindowShapes:
        """Of one window."""
        return {name: (all_.shape[1:], all_.dtype) for name, all_ in self._pack.fields.items()}

    def take(
        self, windows: NDArray[np.int64], *, out: Mapping[str, NDArray[Any]] | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Windows by number: a copy of the caller's own; see `latents.cache.windows.Windows`."""
        clips, _ = self.index.find(windows)
        return gather(self._pack.fields, windows + self._shifts[clips], out)

    def place(self, window: int) -> tuple[str, int]:
        """The clip's key of a window, and the window's number within it."""
        return self.index.place(window)

    def frames(self, window: int) -> range:
        """Frames that a window covers, counted on its source's grid."""
        clips, numbers = self.index.find(np.array([window], np.int64))
        first, start, stride, length = (
            int(self._of_clips(f"clips.{name}")[clips[0]])
            for name in ("window_first_frame", "start_frame", "window_stride", "window_frames")
        )
        first += start + int(numbers[0]) * stride
        return range(first, first + length)

    def clip_keys(self) -> list[str]:
        """Of each clip, in order."""
        return [key.decode() for key in _keys(self._pack.tables)[self._clips].tolist()]

    def sources(self) -> list[str]:
        """SHA-256 of each clip's source, in hex."""
        return [row.tobytes().hex() for row in self._of_clips("clips.source")]

    def annotated_splits(self) -> list[Split | None]:
        """What people say of each clip's source; None where they say nothing."""
        splits = (None, *SPLITS)
        return [splits[number] for number in self._of_clips("clips.split").tolist()]

    def of_split(self, split: Split, *, validation_share: float) -> PackedWindows:
        """The windows whose source belongs to a split.

        Args:
            split: Which.
            validation_share: See `latents.cache.source_split.split_of`.
        """
        annotated = zip(self.sources(), self.annotated_splits(), strict=True)
        found = (split_of(*one, validation_share=validation_share) for one in annotated)
        return self.where(np.array([one == split for one in found], bool))

    def audible(self, *, from_dbfs: float) -> PackedWindows:
        """The windows of those clips whose sound is not quieter, or of unknown loudness.

        Args:
            from_dbfs: Root mean square in dB of full scale; see `latents.cache.audible`.
        """
        return self.where(~(self._of_clips("clips.loudness_dbfs") < from_dbfs))

    def where(self, is_wanted: NDArray[np.bool_]) -> PackedWindows:
        """The windows of those clips for which this is true, in order."""
        return PackedWindows(self._pack, self._clips[is_wanted])

    def sums(self, field: str) -> list[ClipChannelSums]:
        """Of each clip, in order, what whitening needs of a field."""
        return list(clip_sums(self.clip_keys(), self._pack.tables, field, self._clips))

    def _of_clips(self, table: str) -> NDArray[Any]:
        rows: NDArray[Any] = self._pack.tables[table][self._clips]
        return rows

    def __reduce__(self) -> tuple[Callable[..., PackedWindows], tuple[Any, ...]]:
        return _open_some, (self.path, self.content_digest, self._clips)


def open_pack(path: str | Path) -> PackedWindows:
    """All windows of a pack that `mmldm cache export --to pack` wrote.

    The header, the recipes and all small tables are compared with their digests; the windows
    themselves are only mapped.

    Raises:
        CacheError: There is no such file, or it is no pack of this version.
        DamagedError: It is not whole, its header or a table is not as it was written, or its
            parts do not fit together.
    """
    pack = read_pack(Path(path))
    return PackedWindows(pack, np.arange(len(pack.tables["clips.key"])))


def read_pack(path: Path) -> OpenPack:
    """A pack's parts; raises as `open_pack`."""
    try:
        # As torch's tensors they are mapped; as numpy's they would be read.
        with safe_open(path, framework="pt") as file:
            header = _header(path, file.metadata() or {})
            names = (*LEVELS[header.level], *tables_of(header.level))
            tensors = {name: file.get_tensor(name).numpy() for name in names}
    except OSError as error:
        raise CacheError(f"{path} cannot be read ({reason(error)}); {_ADVICE}") from error
    except (SafetensorError, TypeError) as error:  # torch has types that numpy has not
        raise DamagedError(
            str(path), 0, f"it is no pack, or not a whole one (safetensors: {error}); {_ADVICE}"
        ) from error
    for tensor in tensors.values():
        tensor.flags.writeable = False
    fields = {name: tensors[name] for name in LEVELS[header.level]}
    tables = {name: tensors[name] for name in tables_of(header.level)}
    _require_tables(path, header, tables)
    _require_fit(path, header.level, tensors)
    return OpenPack(path=path, header=header, fields=fields, tables=tables)


_ADVICE = "wanted the whole file of `mmldm cache export --to pack`; copy or export it again"


def _open_some(path: Path, content_digest: str, clips: NDArray[np.int64]) -> PackedWindows:
    pack = read_pack(path)
    if pack.header.content_digest != content_digest:
        raise CacheError(f"{path} is another pack than it was; {_ADVICE}")
    return PackedWindows(pack, clips)


def _header(path: Path, metadata: Mapping[str, str]) -> PackHeader:
    if METADATA_KEY not in metadata:
        raise CacheError(f"{path} is a safetensors file but no pack; {_ADVICE}")
    try:
        record = open_sealed_json(metadata[METADATA_KEY].encode())
    except ValueError as error:
        raise DamagedError(
            str(path), 0, f"its header is not as it was written: {error}; {_ADVICE}"
        ) from error
    try:
        return PackHeader.from_record(record)
    except ValueError as error:
        raise CacheError(f"{path} is no pack that can be read: {error}; {_ADVICE}") from error


def _require_tables(path: Path, header: PackHeader, tables: Tensors) -> None:
    digest = hashlib.sha256()
    for table in tables.values():
        digest.update(table.tobytes())
    if digest.hexdigest() != header.tables_digest:
        raise DamagedError(str(path), 0, f"its tables are not as they were written; {_ADVICE}")


def _require_fit(path: Path, level: Level, tensors: Tensors) -> None:
    """Refuses tensors that are not of the same clips and windows."""
    num_clips = len(tensors["clips.num_windows"])
    num_windows = int(tensors["clips.num_windows"].sum(dtype=np.int64))
    wanted = expected_tensors(level, num_clips=num_clips, num_windows=num_windows)
    faults = [
        name
        for name, (dtype, shape) in wanted.items()
        if tensors[name].dtype != dtype or not _has_shape(tensors[name], shape)
    ]
    if not faults:
        faults += _out_of_range(tensors)
    if faults:
        raise DamagedError(
            str(path),
            0,
            f"{', '.join(faults)} cannot be of {num_clips} clips with {num_windows} windows; "
            f"{_ADVICE}",
        )


def _has_shape(tensor: NDArray[Any], wanted: tuple[int | None, ...]) -> bool:
    return tensor.ndim == len(wanted) and all(
        axis in (None, found) for axis, found in zip(wanted, tensor.shape, strict=True)
    )


def _out_of_range(tensors: Tensors) -> list[str]:
    keys = _keys(tensors)
    checks = {
        "clips.num_windows": (tensors["clips.num_windows"] > 0).all(),
        "clips.split": (tensors["clips.split"] <= len(SPLITS)).all(),
        "clips.key": (tensors["clips.key"] < 128).all() and (keys[1:] > keys[:-1]).all(),
    }
    return [name for name, holds in checks.items() if not holds]


def _keys(tables: Tensors) -> NDArray[np.bytes_]:
    keys = tables["clips.key"]
    return np.ascontiguousarray(keys).view(f"S{keys.shape[1]}")[:, 0]
