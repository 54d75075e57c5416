"""Decoding in a child process, with limits: native decoders crash, hang and run away on some files.

A source is charged with what it does to its decoder, and no other one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from latents.clip import ClipSpec, WindowSpec
from latents.errors import (
    ClipError,
    DecoderCrashedError,
    DecoderFaultError,
    DecoderMemoryError,
    DecoderStartError,
    DecodeTimeoutError,
    WorkerDiedError,
)
from pipeline.decode import Backend, DecodeEvent, SoundPolicy, SourceDecoded, SourceTask
from pipeline.decode_messages import DecodingFailed
from pipeline.decode_process import DecodeProcess, start_process
from pipeline.memory_watch import MemoryExceededError
from pipeline.source_attempts import SourceAttempts

_MAX_LINE = 300
"""Characters of an error that decoding raised."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeLimits:
    """What a decoder may take before it is killed, and how often a source is tried."""

    time_seconds: float = 120.0
    """Longest silence: it speaks when a source is open, and for each clip's length of it."""
    memory_bytes: int = 2 * 2**30
    """Physical memory that its process may hold; 0 for no limit."""
    attempts: int = 2
    """Deaths at the same segment of a source that end it."""


class IsolatedDecoder:
    """Decodes sources in a child process, which is started anew after it was lost.

    One for each thread that decodes.

    Args:
        limits: What a child may take.
        should_stop: Asked every tenth of a second while a child is waited for. Once true, the
            child is killed and the events end without `SourceDecoded`.
        decode_function: ``module:function`` that the child calls, with the signature of
            `pipeline.decode.decode_source`.
    """

    def __init__(
        self,
        *,
        limits: DecodeLimits | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        decode_function: str = "pipeline.decode:decode_source",
    ) -> None:
        self._limits = limits or DecodeLimits()
        self._should_stop = should_stop
        self._decode_function = decode_function
        self._idle: DecodeProcess | None = None
        self._busy: set[DecodeProcess] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child process. The decoder may be used again; it then starts another."""
        for child in self._busy:
            child.end()
        self._busy.clear()
        if self._idle is not None:
            self._idle.end()
            self._idle = None

    def decode(
        self,
        task: SourceTask,
        *,
        clip_spec: ClipSpec,
        window_spec: WindowSpec,
        sound: SoundPolicy,
        backend: Backend = "decord",
    ) -> Iterator[DecodeEvent]:
        """Events of a source as `pipeline.decode.decode_source` yields them.

        When the child dies, hangs, runs away or fails, the source is given to another, less the
        segments that have come out; `SourceAttempts` says how often, and what is charged then.

        The child waits while the events are not taken. An iterator that is closed early costs its
        child; the next source gets a new one.

        Raises:
            DecoderStartError: No child can decode here.
        """
        attempts = SourceAttempts(task, backend=backend, max_attempts=self._limits.attempts)
        options = {"clip_spec": clip_spec, "window_spec": window_spec, "sound": sound}
        while True:
            try:
                for event in self._events(attempts.rest, options | {"backend": attempts.backend}):
                    if attempts.is_new(event):
                        yield event
                return
            except _StopAskedError:
                return
            except ClipError as error:
                last = error
            if not attempts.may_go_on(last):
                yield from attempts.give_up(last)
                return

    def _events(self, task: SourceTask, options: dict[str, object]) -> Iterator[DecodeEvent]:
        """One attempt; raises what ended it as an error of the source."""
        child = self._take_child()
        is_done = False
        try:
            for event in self._answers(child, task, options):
                # Before the last event is given: who takes it need not ask for more.
                if isinstance(event, SourceDecoded):
                    is_done = self._put_back(child)
                yield event
        finally:
            if not is_done:
                self._busy.discard(child)
                child.end()

    def _take_child(self) -> DecodeProcess:
        child, self._idle = self._idle, None
        if child is None or not child.is_alive():
            if child is not None:
                child.end()
            child = start_process(
                self._decode_function,
                memory_bytes=self._limits.memory_bytes,
                look=self._require_going_on,
            )
        self._busy.add(child)
        return child

    def _put_back(self, child: DecodeProcess) -> bool:
        """Keeps a child for the next source, unless it is dead or one is waiting already."""
        if self._idle is not None or not child.is_alive():
            return False
        self._busy.discard(child)
        self._idle = child
        return True

    def _require_going_on(self) -> None:
        if self._should_stop():
            raise _StopAskedError

    def _answers(
        self, child: DecodeProcess, task: SourceTask, options: dict[str, object]
    ) -> Iterator[DecodeEvent]:
        limits = self._limits
        try:
            child.request(task, options)
            while True:
                message = child.receive(limits.time_seconds)
                if isinstance(message, DecodingFailed):
                    raise _failure(task, message)
                if message is not None:
                    yield message
                if isinstance(message, SourceDecoded):
                    return
        except TimeoutError:
            reason = f"the decoder gave nothing for {limits.time_seconds:g} s and was killed"
            raise DecodeTimeoutError(task.uri, reason) from None
        except MemoryExceededError as error:
            raise DecoderMemoryError(task.uri, _too_much_memory(error)) from None
        except (EOFError, OSError):
            death = child.death()
            kind = WorkerDiedError if death.is_from_outside else DecoderCrashedError
            raise kind(task.uri, f"the decoder's process {death}") from None
        except ValueError as error:
            reason = f"the decoder's process gave what is no answer: {error}"
            raise DecoderCrashedError(task.uri, reason) from None


class _StopAskedError(Exception):
    """Decoding was asked to stop while a child was waited for."""


def _failure(task: SourceTask, message: DecodingFailed) -> ClipError | DecoderStartError:
    if message.is_import:
        return DecoderStartError(
            f"the decoding process lacks a module, so nothing can be decoded ({task.uri} was the "
            f"first). Mend the installation and run the same command again:\n{message.traceback}"
        )
    return DecoderFaultError(task.uri, f"the decoder failed: {message.last_line[:_MAX_LINE]}")


def _too_much_memory(error: MemoryExceededError) -> str:
    found, limit = (number // 2**20 for number in (error.found_bytes, error.limit_bytes))
    return (
        f"the decoder held {found} MiB of memory, over the {limit} MiB of run.memory_limit_bytes, "
        "and was killed"
    )
