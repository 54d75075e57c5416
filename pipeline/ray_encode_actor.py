"""The Ray actor that encodes."""

from __future__ import annotations

from latents.errors import ClipError
from pipeline.job import ClipTensors, EncodeJob
from pipeline.stages import EncodeClip, EncodedClip, load_stage


class EncodeActor:
    """Encodes clips; loads the model with the first one, so that its errors reach the driver."""

    def __init__(self, job: EncodeJob) -> None:
        self._job = job
        self._encode: EncodeClip | None = None

    def encode(self, clip: ClipTensors) -> EncodedClip | ClipError:
        """The encoded clip, or why it cannot be encoded; a `JobError` is raised."""
        if self._encode is None:
            self._encode = load_stage(self._job)
        try:
            return self._encode(clip)
        except ClipError as error:
            return error
