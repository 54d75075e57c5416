"""Errors of the outside world, each named for the fact it states.

::

    LatentError
    ├── ClipError                 a bad clip: becomes a quarantine event, the rest goes on
    │   ├── FetchError            a file elsewhere cannot be fetched, or changed meanwhile
    │   ├── DecodeError           the bytes cannot be decoded
    │   ├── DecoderCrashedError   the native decoder took its process down
    │   ├── DecodeTimeoutError    the decoder ran over its time limit
    │   ├── DecoderMemoryError    the decoder ran over its memory limit
    │   ├── DecoderFaultError     decoding failed in a way that it has no words for
    │   ├── TooShortError         less than one window of picture and sound
    │   ├── MissingSoundError     no audio stream, or none that overlaps the picture
    │   ├── SilentSoundError      an audio stream without sound, where policy skips it
    │   ├── NonFiniteLatentError  an encoder gave a value that float16 cannot hold
    │   └── WorkerDiedError       the process working on it died, again and again
    └── JobError                  a bad model, config, cache or disk: stops the job
        ├── SourceError           a source that does not exist or holds no video
        ├── DecoderStartError     no decoding process can be started, or a module of it is missing
        ├── ConfigError           an unknown preset or key, or a value out of range
        ├── ModelError            weights or config that cannot be loaded
        ├── OutOfMemoryError      a GPU's memory does not hold what is encoded at a time
        ├── CacheError            a cache that is missing, unwritable or of another format
        │   ├── StaleFieldError   a field made by another recipe than the one asked for
        │   └── DamagedError      bytes that are not what the log says
        ├── FailureBudgetError    so many bad sources that the fault is likely ours
        └── InterruptedJobError   stopped by Ctrl-C or SIGTERM; what was committed stays

The facts go to ``Exception.__init__`` and the message is made in ``__str__``, so that
every error survives pickling, and with it Ray.
"""

from __future__ import annotations


class LatentError(Exception):
    """Anything that can go wrong in the world around the code."""


class ClipError(LatentError):
    """A clip or source that cannot be used; the job goes on without it.

    Args:
        source: URI of the source.
        reason: What was found, in one sentence without the source's name.
    """

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(source, reason)
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class FetchError(ClipError):
    """The file lies elsewhere and cannot be fetched, or changed since it was hashed."""


class DecodeError(ClipError):
    """The bytes cannot be decoded."""


class DecoderCrashedError(ClipError):
    """The native decoder took its process down."""


class DecodeTimeoutError(ClipError):
    """The decoder ran over its time limit and was killed."""


class DecoderMemoryError(ClipError):
    """The decoder ran over its memory limit and was killed."""


class DecoderFaultError(ClipError):
    """Decoding raised what is no `ClipError`: a fault of ours, or of a library."""


class TooShortError(ClipError):
    """Picture and sound overlap for less than one window."""


class MissingSoundError(ClipError):
    """There is no audio stream, or none that can be read."""


class SilentSoundError(ClipError):
    """The audio stream holds no sound, and the policy is to skip such clips."""


class NonFiniteLatentError(ClipError):
    """An encoder gave NaN, infinity, or a value beyond float16."""


class WorkerDiedError(ClipError):
    """The process that worked on it died each time it was tried."""


class JobError(LatentError):
    """A fault that makes every clip fail; the job stops with this message."""

    exit_code = 1
    """Exit status of the command: 1 failed, 2 wrong use."""


class SourceError(JobError):
    """A source that does not exist, cannot be read, or holds no video."""

    exit_code = 2


class DecoderStartError(JobError):
    """No decoding process can be started here, or a module is missing in it."""


class ConfigError(JobError):
    """An unknown preset, an unknown key, or a value out of its range."""

    exit_code = 2


class ModelError(JobError):
    """Weights or a model config that cannot be loaded, with where and why."""


class OutOfMemoryError(JobError):
    """A GPU's memory does not hold what is encoded at a time; the message names the setting."""


class CacheError(JobError):
    """A cache that is missing, unwritable, or of another format."""


class StaleFieldError(CacheError):
    """A cached field was made by another recipe than the one asked for.

    Args:
        cache: The cache's root.
        field: For example ``kl.video``.
        found: Digest of the recipe in the cache.
        wanted: Digest of the recipe asked for.
        differences: The parts that differ, one line each.
        remedy: What to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        cache: str,
        field: str,
        found: str,
        wanted: str,
        differences: tuple[str, ...],
        remedy: str,
    ) -> None:
        super().__init__(cache, field, found, wanted, differences, remedy)
        self.cache, self.field, self.found, self.wanted = cache, field, found, wanted
        self.differences, self.remedy = differences, remedy

    def __str__(self) -> str:
        return (
            f"{self.cache}: {self.field} was made by recipe {self.found[:12]}, but "
            f"{self.wanted[:12]} is wanted. They differ in: {'; '.join(self.differences)}. "
            f"{self.remedy}"
        )


class DamagedError(CacheError):
    """Bytes on disk are not what the log says they are.

    Args:
        path: The damaged file, relative to the cache.
        offset: Byte offset of the damage within the file.
        problem: What was found and what was wanted.
    """

    def __init__(self, path: str, offset: int, problem: str) -> None:
        super().__init__(path, offset, problem)
        self.path, self.offset, self.problem = path, offset, problem

    def __str__(self) -> str:
        return f"{self.path} at byte {self.offset}: {self.problem}"


class FailureBudgetError(JobError):
    """More sources failed than can be the sources' fault."""


class InterruptedJobError(JobError):
    """The job was asked to stop; everything committed so far stays.

    Args:
        signal_number: The signal received (2 for Ctrl-C, 15 for SIGTERM).
        summary: What was done, and how to go on.
    """

    def __init__(self, signal_number: int, summary: str) -> None:
        super().__init__(signal_number, summary)
        self.signal_number, self.summary = signal_number, summary

    def __str__(self) -> str:
        return self.summary
