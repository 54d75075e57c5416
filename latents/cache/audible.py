"""Which clips can be heard, by what the log's rows say of their loudness."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from latents.cache.reader import ClipRows
from latents.fields import Level


def loudness_of(clips: ClipRows, *, level: Level) -> pa.ChunkedArray:
    """Root mean square of each clip's sound in dB of full scale, null where it is not known.

    Digital silence, which also stands for a missing stream, has -120 and nothing has less. It is
    read of the sound's rows: pictures may be older than today's way to place sound.

    Args:
        clips: In order.
        level: Theirs.
    """
    return clips.rows_of(f"{level}.audio")["loudness_dbfs"]


def audible_clips(clips: ClipRows, *, level: Level, from_dbfs: float) -> ClipRows:
    """The clips whose sound is not quieter, or of unknown loudness, in order.

    A clip is heard or not as a whole: silent windows of a clip that is audible stay.

    Args:
        clips: Of one level.
        level: Theirs.
        from_dbfs: Root mean square in dB of full scale; minus infinity keeps all.
    """
    is_quieter = pc.less(loudness_of(clips, level=level), from_dbfs)
    is_silent = pc.fill_null(is_quieter, False)
    # All columns of the others would be copied, even where there are no others.
    return clips.where(pc.invert(is_silent)) if pc.any(is_silent).as_py() else clips
