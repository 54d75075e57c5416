"""Windows read from shards are those in memory, and every fault is named."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from latents.cache import streaming
from latents.cache.layout import CacheLayout
from latents.cache.object_storage import open_object_storage
from latents.cache.reader import CachedLevel, open_cache
from latents.cache.resident import ResidentWindows
from latents.cache.streaming import StreamingWindows
from latents.errors import CacheError, DamagedError
from latents.testing import make_cache, perceptual_clips, perceptual_recipes
from tests.latents.s3_server import S3Server
from tests.latents.window_caches import AUDIO, VIDEO, digest_of, perceptual_level

NUM_WINDOWS = 40
SLICE_BYTES = {VIDEO: 4 * 4 * 4 * 2, AUDIO: 4 * 2 * 2 * 2}


@pytest.fixture(scope="module")
def level(tmp_path_factory: pytest.TempPathFactory) -> CachedLevel:
    """8 clips of 5 windows in 4 shards, which no test changes."""
    return perceptual_level(tmp_path_factory.mktemp("level") / "cache")


@pytest.fixture(scope="module")
def resident(level: CachedLevel) -> ResidentWindows:
    return ResidentWindows(level, level.clips)


@pytest.fixture(scope="module")
def windows(level: CachedLevel) -> Iterator[StreamingWindows]:
    with StreamingWindows(level, level.clips) as windows:
        yield windows


@pytest.fixture
def own_level(tmp_path: Path) -> CachedLevel:
    """One that a test may damage."""
    return perceptual_level(tmp_path / "cache", num_clips=4)


def assert_equal(found: Any, wanted: Any) -> None:
    assert found.keys() == wanted.keys()
    for field, array in wanted.items():
        assert found[field].dtype == array.dtype
        np.testing.assert_array_equal(found[field], array)


def random_windows(seed: int, size: int = 64) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, NUM_WINDOWS, size)


def shard_of(level: CachedLevel, clip: int, field: str) -> tuple[Path, int]:
    """The file that a clip's field lies in, and the offset there."""
    row = level.clips[clip].rows[field]
    return Path(level.layout.url, level.layout.shard(row.shard)), row.offset


def write(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


@given(st.lists(st.integers(0, NUM_WINDOWS - 1), max_size=50))
def test_any_windows_are_those_in_memory(
    windows: StreamingWindows, resident: ResidentWindows, numbers: list[int]
) -> None:
    chosen = np.array(numbers, np.int64)
    assert_equal(windows.take(chosen), resident.take(chosen))


def test_they_are_the_stored_ones(windows: StreamingWindows) -> None:
    clips = sorted(perceptual_clips(8), key=lambda clip: str(clip.key))
    taken = windows.take(np.arange(NUM_WINDOWS))
    for field in (VIDEO, AUDIO):
        stored = np.concatenate([clip.tensors[field] for clip in clips])
        np.testing.assert_array_equal(taken[field], stored)
    assert windows.place(7) == (str(clips[1].key), 2)


def test_what_is_not_in_memory_is_waited_for(
    level: CachedLevel, resident: ResidentWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv, in_threads = os.preadv, set()

    def no_page_is_in_memory(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError
        in_threads.add(threading.current_thread().name.rpartition("_")[0])
        return preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", no_page_is_in_memory)
    with StreamingWindows(level, level.clips) as windows:
        for seed in range(3):
            chosen = random_windows(seed)
            assert_equal(windows.take(chosen), resident.take(chosen))
    assert in_threads == {"shard-reads"}


def test_a_read_that_gives_less_than_asked_goes_on(
    level: CachedLevel, resident: ResidentWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv

    def a_few_bytes(descriptor: int, buffers: Any, offset: int, flags: int = 0) -> int:
        return preadv(descriptor, [memoryview(buffers[0]).cast("B")[:100]], offset)

    monkeypatch.setattr(os, "preadv", a_few_bytes)
    with StreamingWindows(level, level.clips) as windows:
        for seed in range(2):
            chosen = random_windows(seed)
            assert_equal(windows.take(chosen), resident.take(chosen))


def test_some_of_the_clips_can_be_taken(level: CachedLevel, resident: ResidentWindows) -> None:
    with StreamingWindows(level, [level.clips[5], level.clips[0]]) as windows:
        chosen = np.array([0, 4, 5, 9])
        assert_equal(windows.take(chosen), resident.take(np.array([25, 29, 0, 4])))
        assert windows.place(5) == (level.clips[0].clip, 0)


def test_given_arrays_are_filled(windows: StreamingWindows, resident: ResidentWindows) -> None:
    chosen = random_windows(0)
    out = {name: np.zeros_like(array) for name, array in resident.take(chosen).items()}

    taken = windows.take(chosen, out=out)

    assert all(taken[name] is out[name] for name in out)
    assert_equal(out, resident.take(chosen))


@pytest.mark.parametrize("window", [-1, NUM_WINDOWS])
def test_a_window_that_is_not_there_is_an_error(windows: StreamingWindows, window: int) -> None:
    with pytest.raises(IndexError, match=f"there are {NUM_WINDOWS} windows"):
        windows.take(np.array([0, window]))


def test_threads_may_take_at_once(level: CachedLevel, resident: ResidentWindows) -> None:
    with StreamingWindows(level, level.clips) as windows, ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda seed: windows.take(random_windows(seed)), range(40)))
    for seed, found in enumerate(taken):
        assert_equal(found, resident.take(random_windows(seed)))


def test_shards_are_kept_open_so_many_at_most(
    level: CachedLevel, resident: ResidentWindows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "_MAX_OPEN", 2)
    before = len(os.listdir("/proc/self/fd"))
    with StreamingWindows(level, level.clips) as windows:
        for seed in range(20):
            chosen = random_windows(seed)
            assert_equal(windows.take(chosen), resident.take(chosen))
            assert len(os.listdir("/proc/self/fd")) - before == 2
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_ends_the_threads_and_taking_opens_again(
    level: CachedLevel, resident: ResidentWindows
) -> None:
    before = threading.active_count()
    windows = StreamingWindows(level, level.clips)
    windows.take(random_windows(0))
    windows.close()
    assert threading.active_count() == before

    assert_equal(windows.take(random_windows(1)), resident.take(random_windows(1)))
    windows.close()


@pytest.mark.parametrize("field", [VIDEO, AUDIO])
@pytest.mark.parametrize("index", [0, 3, 4])
def test_a_damaged_byte_is_named(own_level: CachedLevel, field: str, index: int) -> None:
    path, offset = shard_of(own_level, 2, field)
    content = bytearray(path.read_bytes())
    begin = offset + index * SLICE_BYTES[field]
    content[begin + 5] ^= 0x10
    write(path, bytes(content))

    with StreamingWindows(own_level, own_level.clips) as windows:
        others = np.delete(np.arange(20), 10 + index)
        windows.take(others)
        with pytest.raises(DamagedError) as caught:
            windows.take(np.arange(20)[::-1])
    error = caught.value
    assert (error.path, error.offset) == (f"shards/{path.name}", begin)
    clip = own_level.clips[2].clip
    assert error.problem == f"{field} of clip {clip}, slice {index}, fails its CRC-32C"


def test_a_missing_shard_is_named(own_level: CachedLevel) -> None:
    path, _ = shard_of(own_level, 0, VIDEO)
    path.unlink()

    with (
        StreamingWindows(own_level, own_level.clips) as windows,
        pytest.raises(DamagedError, match="the shard is missing") as caught,
    ):
        windows.take(np.array([19, 0]))
    assert caught.value.path == f"shards/{path.name}"


def test_a_shard_that_is_cut_while_it_is_open_is_named(own_level: CachedLevel) -> None:
    path, offset = shard_of(own_level, 0, VIDEO)
    end = offset + 2 * SLICE_BYTES[VIDEO] + 7
    with StreamingWindows(own_level, own_level.clips) as windows:
        windows.take(np.arange(20))
        path.chmod(0o644)
        os.truncate(path, end)

        with pytest.raises(DamagedError, match="bytes too early") as caught:
            windows.take(np.array([4]))
    assert (caught.value.path, caught.value.offset) == (f"shards/{path.name}", end)


def test_clips_of_other_shapes_are_refused(tmp_path: Path) -> None:
    clips = [*perceptual_clips(2), *perceptual_clips(1, seed=1, video=(2, 8, 8))]
    layout = make_cache(tmp_path, clips=clips, recipes=perceptual_recipes())
    level = open_cache(layout.url, level="perceptual")
    with pytest.raises(CacheError, match=r"perceptual.video of clip .* is float16 \[4, "):
        StreamingWindows(level, level.clips)


def test_a_level_without_rows_for_windows_is_refused(tmp_path: Path) -> None:
    level = open_cache(make_cache(tmp_path).url, level="kl")
    with pytest.raises(ValueError, match=r"kl\.video has no row for each window"):
        StreamingWindows(level, level.clips)


def test_no_clips_and_no_threads_are_refused(level: CachedLevel) -> None:
    with pytest.raises(ValueError, match="there are no clips"):
        StreamingWindows(level, [])
    with pytest.raises(ValueError, match="num_threads is 0"):
        StreamingWindows(level, level.clips, num_threads=0)


def test_hundreds_of_clips_in_an_order_that_goes_everywhere(tmp_path: Path) -> None:
    level = perceptual_level(tmp_path, num_clips=500, clips_per_shard=250)
    resident = ResidentWindows(level, level.clips)
    with StreamingWindows(level, level.clips) as windows:
        chosen = np.random.default_rng(0).permutation(2500)
        assert_equal(windows.take(chosen), resident.take(chosen))


def send_digest(windows: StreamingWindows, seed: int, sent: Any) -> None:
    """What another process does with windows."""
    chosen = random_windows(seed)
    sent.send(digest_of(seed, chosen, windows.take(chosen)))


def digest_elsewhere(windows: StreamingWindows, start_method: str) -> str:
    context: Any = multiprocessing.get_context(start_method)
    received, sent = context.Pipe(duplex=False)
    process = context.Process(target=send_digest, args=(windows, 0, sent))
    process.start()
    sent.close()
    digest: str = received.recv() if received.poll(30) else "nothing within 30 seconds"
    process.kill()
    process.join()
    received.close()
    return digest


def test_a_forked_process_opens_its_own_files_and_waits_for_no_lock(
    level: CachedLevel, resident: ResidentWindows
) -> None:
    wanted = digest_of(0, random_windows(0), resident.take(random_windows(0)))
    with StreamingWindows(level, level.clips) as windows:
        windows.take(np.array([0]))
        # As if another thread were just opening a shard: a forked process has no such thread.
        with windows._reads()._shards._lock:
            assert digest_elsewhere(windows, "fork") == wanted


def test_pickled_windows_bring_no_files_along(
    windows: StreamingWindows, resident: ResidentWindows
) -> None:
    windows.take(random_windows(0))
    before = len(os.listdir("/proc/self/fd"))

    with pickle.loads(pickle.dumps(windows)) as copy:
        assert len(os.listdir("/proc/self/fd")) == before
        assert_equal(copy.take(random_windows(0)), resident.take(random_windows(0)))


def copied_to(s3_url: str, layout: CacheLayout, local: Path) -> None:
    """Puts all files of a cache into a bucket."""
    bucket = open_object_storage(s3_url, local=local)
    for file in layout.storage.list(""):
        bucket.replace(file.name, layout.storage.read(file.name))


def test_of_a_bucket_each_shard_is_fetched_once(
    level: CachedLevel, resident: ResidentWindows, s3: S3Server, s3_url: str, tmp_path: Path
) -> None:
    copied_to(s3_url, level.layout, tmp_path / "local")
    remote = open_cache(s3_url, level="perceptual")
    s3.requests.clear()

    with StreamingWindows(remote, remote.clips) as windows:
        for seed in range(5):
            chosen = random_windows(seed)
            assert_equal(windows.take(chosen), resident.take(chosen))
    with StreamingWindows(remote, remote.clips) as windows:
        windows.take(np.arange(NUM_WINDOWS))

    fetched = [request.split("/")[-1] for request in s3.requests if request.startswith("GET")]
    shards = {row.shard for clip in remote.clips for row in clip.rows.values()}
    assert len(shards) == 4
    assert sorted(fetched) == sorted(shards)


def test_a_damaged_object_is_named(
    own_level: CachedLevel, s3: S3Server, s3_url: str, tmp_path: Path
) -> None:
    path, offset = shard_of(own_level, 0, VIDEO)
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    write(path, bytes(content))
    copied_to(s3_url, own_level.layout, tmp_path / "local")
    remote = open_cache(s3_url, level="perceptual")

    with (
        StreamingWindows(remote, remote.clips) as windows,
        pytest.raises(DamagedError, match=f"{path.name} at byte 0: .* not to its name"),
    ):
        windows.take(np.array([0]))
