"""Files that lie elsewhere: copied for decoding, compared, and removed again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from latents.errors import DecodeError, FetchError, SourceError
from latents.recipe import sha256_hex
from pipeline import fetched_files, source_urls
from pipeline.decode import SourceTask
from pipeline.fetched_files import FetchedFiles
from pipeline.spans import Span

SPAN = Span(start_seconds=Decimal(1), stop_seconds=Decimal(2))


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    files = MemoryFileSystem()
    files.store.clear()
    files.pipe({"/a.mp4": b"one", "/b.webm": b"two"})
    yield files
    files.store.clear()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(source_urls, "PAUSES_SECONDS", (0.0, 0.0))
    return folder


@pytest.fixture
def files(temporary: Path) -> Iterator[FetchedFiles]:
    found = FetchedFiles()
    yield found
    found.close()


def task(place: str, content: bytes, span: Span | None = None) -> SourceTask:
    digest = sha256_hex(content)
    return SourceTask(
        uri="uri",
        path=place,
        scene=None,
        digest=span.digest(digest) if span else digest,
        span=span,
    )


def local_path(files: FetchedFiles, wanted: SourceTask) -> Path:
    found = files.localise(wanted)
    assert found is not None
    assert found.path is not None
    assert replace(found, path=wanted.path) == wanted
    return Path(found.path)


def test_a_file_elsewhere_is_copied_with_its_suffix(
    memory: MemoryFileSystem, files: FetchedFiles, temporary: Path
) -> None:
    path = local_path(files, task("memory://b.webm", b"two"))
    assert path.read_bytes() == b"two"
    assert path.suffix == ".webm"
    assert path.is_relative_to(temporary)


def test_stretches_of_one_file_share_a_copy(memory: MemoryFileSystem, files: FetchedFiles) -> None:
    first = local_path(files, task("memory://a.mp4", b"one"))
    memory.store.clear()
    assert local_path(files, task("memory://a.mp4", b"one", SPAN)) == first
    assert first.read_bytes() == b"one"


def test_one_copy_is_kept_and_none_after_closing(
    memory: MemoryFileSystem, files: FetchedFiles, temporary: Path
) -> None:
    first = local_path(files, task("memory://a.mp4", b"one"))
    second = local_path(files, task("memory://b.webm", b"two"))
    assert not first.exists()
    assert second.exists()
    files.close()
    assert list(temporary.iterdir()) == []


def test_other_bytes_than_were_hashed_are_refused(
    memory: MemoryFileSystem, files: FetchedFiles
) -> None:
    with pytest.raises(FetchError, match="changed since it was hashed"):
        files.localise(task("memory://a.mp4", b"others"))
    with pytest.raises(FetchError, match="is not there"):
        files.localise(task("memory://gone.mp4", b"one"))


def test_a_local_file_is_used_where_it_lies(files: FetchedFiles, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    assert local_path(files, task(str(path), b"one", SPAN)) == path
    with pytest.raises(DecodeError, match="changed since it was hashed"):
        files.localise(task(str(path), b"others"))
    path.unlink()
    with pytest.raises(DecodeError, match="cannot be read"):
        files.localise(task(str(path), b"one"))


def test_a_full_disk_stops_the_job(memory: MemoryFileSystem, files: FetchedFiles) -> None:
    folder = local_path(files, task("memory://b.webm", b"two")).parent
    (folder / "source.mp4").symlink_to("/dev/full")
    with pytest.raises(SourceError, match=r"No space left on device.*another folder in TMPDIR"):
        files.localise(task("memory://a.mp4", b"one"))


def test_fetching_is_left_when_the_job_is_to_stop(
    memory: MemoryFileSystem, temporary: Path
) -> None:
    files = FetchedFiles(should_stop=lambda: True)
    assert files.localise(task("memory://a.mp4", b"one")) is None
    files.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(
    memory: MemoryFileSystem, files: FetchedFiles, temporary: Path
) -> None:
    left = temporary / f"{fetched_files._PREFIX}left"
    left.mkdir()
    for name in ("in-use", "source.mp4"):
        (left / name).write_bytes(b"x")
    in_use = local_path(files, task("memory://a.mp4", b"one"))
    assert not left.exists()
    others = FetchedFiles()
    local_path(others, task("memory://b.webm", b"two"))
    assert in_use.exists()
    others.close()
