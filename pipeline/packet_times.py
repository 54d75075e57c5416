"""When the packets of a video stream are to be shown, without decoding them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.pyav_video import decode_errors, no_call, open_file, read_packets, video_stream

_VP8_SHOW_FRAME = 0x10


@dataclass(frozen=True, kw_only=True, slots=True)
class PacketTimes:
    """When the packets of a video stream are to be shown, in order of time."""

    ticks: NDArray[np.int64]
    """Presentation times, ascending."""
    durations: NDArray[np.int64]
    """In ticks; zero where not stated."""
    time_base: Fraction
    """Seconds of a tick."""


def packet_times(
    path: str, *, source: str, on_progress: Callable[[], None] = no_call
) -> PacketTimes | None:
    """Times of a video stream's packets.

    None where packets and pictures need not match one to one: a packet has no timestamp, the same
    as another's, or is marked as not to be shown; or there is none.

    Raises:
        DecodeError: The file cannot be read to its end.
    """
    ticks: dict[int, int] = {}
    with (
        open_file(path, source=source) as container,
        decode_errors(source, "its packets cannot be listed"),
    ):
        stream = video_stream(container, source=source, on_progress=on_progress)
        hides_frames = stream.codec_context.name == "vp8"
        for packet in read_packets(container, stream, on_progress):
            if packet.size == 0:
                continue
            hidden = hides_frames and not bytes(packet)[0] & _VP8_SHOW_FRAME
            if packet.pts is None or packet.pts in ticks or packet.is_discard or hidden:
                return None
            ticks[packet.pts] = packet.duration or 0
        time_base = Fraction(stream.time_base or 1)
    if not ticks:
        return None
    ordered = sorted(ticks)
    return PacketTimes(
        ticks=np.array(ordered, np.int64),
        durations=np.array([ticks[tick] for tick in ordered], np.int64),
        time_base=time_base,
    )
