"""A file of two hours is cut into clips by a process that stays small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

av = pytest.importorskip("av")

from tests.pipeline.numbered_clips import RATE, ramp, write_video  # noqa: E402 - it needs av

REPEATS = 721
"""Of ten seconds."""
MAX_BYTES = 1_000_000_000

DECODE = """
import json, resource, sys
from latents.clip import Clip, ClipSpec, WindowSpec
from pipeline.decode import SoundPolicy, SourceDecoded, SourceTask, decode_source

path = sys.argv[1]
task = SourceTask(uri=path, path=path, scene=None, digest="0" * 64)
frames, samples, last = 0, 0, None
for event in decode_source(
    task, clip_spec=ClipSpec(), window_spec=WindowSpec(), sound=SoundPolicy()
):
    if isinstance(event, Clip):
        frames, samples = frames + len(event.frames), samples + event.waveform.shape[1]
    last = event
assert isinstance(last, SourceDecoded)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
json.dump({"frames": frames, "samples": samples, "segments": last.num_segments, "peak": peak},
          sys.stdout)
"""


def write_repeated(path: Path, part: Path) -> Path:
    """The packets of ten seconds again and again, each time ten seconds later."""
    with av.open(str(part)) as read:
        packets = [packet for packet in read.demux() if packet.size]
        with av.open(str(path), "w") as written:
            streams = {s.index: written.add_stream_from_template(s) for s in read.streams}
            for repeat in range(REPEATS):
                for packet in packets:
                    copy = av.Packet(bytes(packet))
                    copy.time_base, copy.duration = packet.time_base, packet.duration
                    shift = repeat * int(10 / packet.time_base)
                    copy.pts, copy.dts = packet.pts + shift, packet.dts + shift
                    copy.is_keyframe = packet.is_keyframe
                    copy.stream = streams[packet.stream.index]
                    written.mux(copy)
    return path


@pytest.fixture(scope="module")
def two_hours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    part = write_video(
        folder / "part.mkv",
        [i / 2 for i in range(20)],
        sound=ramp(10),
        shape=(96, 128),
        options={"g": "20", "bf": "0"},
    )
    return write_repeated(folder / "long.mkv", part)


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_two_hours_are_decoded_in_less_than_a_gigabyte(two_hours: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DECODE, str(two_hours)],
        capture_output=True,
        check=True,
        text=True,
    )

    found = json.loads(done.stdout)
    assert found["segments"] == REPEATS
    # The last picture, at 9.5 s, is shown for a thirtieth of a second.
    assert found["frames"] == 100 * REPEATS - 4
    assert found["samples"] == found["frames"] * RATE // 10
    assert found["peak"] < MAX_BYTES
