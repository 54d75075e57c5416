"""Measure how fast and how truly libraries decode: frames a second of one core, and right frames.

Each is asked for the pictures of a video that are to be seen every tenth of a second, as RGB of
their own size, by times and not by numbers of frames. Frames a second are all frames of the file
over the seconds of processor time, so other work on the machine matters little. A picture is right
when it shows the number of the frame that is to be seen at that time. torchcodec is measured where
it is installed, the ffmpeg command where there is one.

    python benchmarks/decode.py --json
"""

from __future__ import annotations

import argparse
import importlib.util
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
from numbered_videos import NumberedVideo, number_of, write_numbered
from numpy.typing import NDArray
from record import write_result

LIBRARIES = ("av", "decord", "numpy")
STEP_SECONDS = 0.1
REPEATS = 3

Pictures = Iterator[NDArray[np.uint8]]
"""(height, width, 3), one for each time asked for, while there are such."""

VIDEOS = (
    *(
        NumberedVideo(codec="libx264", suffix="mp4", size=size, num_frames=num_frames)
        for size, num_frames in (
            ((256, 256), 300),
            ((360, 640), 300),
            ((720, 1280), 150),
            ((1080, 1920), 90),
        )
    ),
    NumberedVideo(codec="libx264", suffix="ts", size=(360, 640), num_frames=300),
    NumberedVideo(codec="libx264", suffix="mkv", size=(360, 640), num_frames=300, is_uneven=True),
    NumberedVideo(codec="libx265", suffix="mp4", size=(360, 640), num_frames=300),
    NumberedVideo(codec="libvpx-vp9", suffix="webm", size=(360, 640), num_frames=150),
    NumberedVideo(codec="libsvtav1", suffix="mp4", size=(360, 640), num_frames=150),
    NumberedVideo(codec="mpeg4", suffix="avi", size=(360, 640), num_frames=300),
    NumberedVideo(codec="mpeg2video", suffix="mpg", size=(360, 640), num_frames=300),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """What a library made of a video."""

    frames_per_core_second: float
    num_right: int
    num_wanted: int


def decord_pictures(path: Path, times: list[float]) -> Pictures:
    """decord, with the timestamps that it gives for each frame."""
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    starts = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    for index in np.searchsorted(starts, np.array(times) + 1e-4, side="right") - 1:
        yield reader[max(0, int(index))].asnumpy()


def pyav_pictures(path: Path, times: list[float]) -> Pictures:
    """PyAV, in one pass."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        wanted = iter(times)
        time = next(wanted, None)
        shown: av.VideoFrame | None = None
        first: float | None = None
        for frame in container.decode(stream):
            first = frame.time if first is None else first
            while time is not None and shown is not None and frame.time - first > time + 1e-4:
                yield shown.to_ndarray(format="rgb24")
                time = next(wanted, None)
            shown = frame
        while time is not None and shown is not None:
            yield shown.to_ndarray(format="rgb24")
            time = next(wanted, None)


def torchcodec_pictures(path: Path, times: list[float]) -> Pictures:
    """torchcodec, asked for the frames that are shown at the times."""
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, dimension_order="NHWC")
    begin, end = decoder.metadata.begin_stream_seconds, decoder.metadata.end_stream_seconds
    inside = [begin + time + 1e-4 for time in times if begin + time + 1e-4 < end]
    yield from decoder.get_frames_played_at(inside).data.numpy()


def ffmpeg_pictures(path: Path, times: list[float]) -> Pictures:
    """The ffmpeg command, with its fps filter, through a pipe."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        shape = (context.height, context.width, 3)
    # The filter gives the frame that is nearest to the middle of a step, unless told otherwise.
    command = f"ffmpeg -v error -threads 1 -i {path} -filter_threads 1 -vf fps={1 / STEP_SECONDS:g}"
    command += ":round=up -f rawvideo -pix_fmt rgb24 -threads 1 -"
    with subprocess.Popen(command.split(), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        while len(content := process.stdout.read(int(np.prod(shape)))) == np.prod(shape):
            yield np.frombuffer(content, np.uint8).reshape(shape)


Decoder = Callable[[Path, list[float]], Pictures]


def decoders() -> dict[str, Decoder]:
    """Those that are there."""
    found: dict[str, Decoder] = {"decord": decord_pictures, "pyav": pyav_pictures}
    if importlib.util.find_spec("torchcodec"):
        found["torchcodec"] = torchcodec_pictures
    if shutil.which("ffmpeg"):
        found["ffmpeg"] = ffmpeg_pictures
    return found


def main() -> None:
    """Measure, and write benchmarks/results/decode.json."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one line on standard output")
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="mmldm-decode-"))
    try:
        table: dict[str, Any] = {}
        for number, video in enumerate(VIDEOS):
            path = work / f"{number}.{video.suffix}"
            write_numbered(video, path)
            table[video.name] = {
                name: asdict(measure(decoder, path, video)) for name, decoder in decoders().items()
            }
        write_result("decode", {"videos": table}, libraries=LIBRARIES, as_line=arguments.json)
    finally:
        shutil.rmtree(work)


def measure(decode: Decoder, path: Path, video: NumberedVideo) -> Decoded:
    """The best of a few times, and how many pictures were right."""
    steps = int(video.seconds / STEP_SECONDS)
    times = [step * STEP_SECONDS for step in range(steps)]
    wanted = [video.number_at(time) for time in times]
    rates = []
    for _ in range(REPEATS):
        before = processor_seconds()
        numbers = [number_of(pixels) for pixels in decode(path, times)]
        rates.append(video.num_frames / (processor_seconds() - before))
    num_right = sum(found == number for found, number in zip(numbers, wanted, strict=False))
    return Decoded(frames_per_core_second=max(rates), num_right=num_right, num_wanted=len(wanted))


def processor_seconds() -> float:
    """Of this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


if __name__ == "__main__":
    main()
