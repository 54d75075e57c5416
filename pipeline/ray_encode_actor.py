"""The Ray actor that encodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from latents.errors import ClipError
from pipeline.job import ClipTensors, EncodeJob
from pipeline.ray_node import naming_node, node_id
from pipeline.ray_weights import SentWeights, job_with_weights

if TYPE_CHECKING:
    from pipeline.encode_stage import EncodeClip
    from pipeline.encoded import EncodedClip


class EncodeActor:
    """Encodes clips.

    Args:
        job: What is to be made.
        weights: Models that travel; those that do not are found under the names in the settings.
    """

    def __init__(self, job: EncodeJob, weights: tuple[SentWeights, ...]) -> None:
        self._job, self._weights = job, weights
        self._encode: EncodeClip | None = None

    def ready(self) -> str:
        """Loads the models and returns the id of the node; raises `JobError`, with its name."""
        with naming_node():
            # Here, so that a package that this node lacks is reported as such.
            from pipeline.load_stage import load_stage

            self._encode = load_stage(job_with_weights(self._job, self._weights))
        return node_id()

    def encode(self, clip: ClipTensors) -> EncodedClip | ClipError:
        """The encoded clip, or why it cannot be encoded; a `JobError` is raised."""
        assert self._encode is not None
        try:
            return self._encode(clip)
        except ClipError as error:
            return error
