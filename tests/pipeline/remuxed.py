"""Copies of a video's packets into another file: damaged, left out, moved in time, or shortened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

Change = Callable[[int, bytes], bytes | None]
"""Number of a picture's packet and its bytes to its new bytes; None leaves it out."""


def remux(
    path: Path,
    target: Path,
    *,
    change: Change = lambda _, content: content,
    from_seconds: float = -60,
) -> Path:
    """Writes the packets that are to be shown at `from_seconds` and later, with changed pictures.

    Sound may begin a little before zero.
    """
    with av.open(str(path)) as read, av.open(str(target), "w") as written:
        streams = {
            stream.index: written.add_stream_from_template(stream)
            for stream in [*read.streams.video, *read.streams.audio]
        }
        num_pictures = 0
        for packet in read.demux(*streams):
            if packet.size == 0 or packet.pts * packet.time_base < from_seconds:
                continue
            source = packet.stream
            if source.type == "video":
                content = change(num_pictures, bytes(packet))
                num_pictures += 1
                if content is None:
                    continue
                packet = with_content(packet, content)
            packet.stream = streams[source.index]
            written.mux(packet)
    return target


def with_content(packet: av.Packet, content: bytes) -> av.Packet:
    """The same packet with other bytes."""
    other = av.Packet(content)
    other.pts, other.dts, other.time_base = packet.pts, packet.dts, packet.time_base
    other.duration, other.is_keyframe = packet.duration, packet.is_keyframe
    return other


def zeroed(*numbers: int) -> Change:
    """Leaves of some packets their first two bytes: no decoder makes a picture of the rest."""

    def change(number: int, content: bytes) -> bytes:
        return content[:2] + bytes(len(content) - 2) if number in numbers else content

    return change


def noisy(*numbers: int) -> Change:
    """Overwrites the latter half of some packets with noise."""

    def change(number: int, content: bytes) -> bytes:
        if number not in numbers:
            return content
        half = len(content) // 2
        noise = np.random.default_rng(number).integers(0, 256, len(content) - half, np.uint8)
        return content[:half] + noise.tobytes()

    return change
