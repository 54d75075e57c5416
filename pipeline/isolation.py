"""Decoding in a child process, with a time limit: native decoders crash and hang on some files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from latents.clip import Clip, ClipSpec, WindowSpec
from latents.errors import ClipError, DecoderCrashedError, DecodeTimeoutError
from pipeline.decode import (
    Backend,
    DecodeEvent,
    SegmentRejected,
    SoundPolicy,
    SourceDecoded,
    SourceTask,
)
from pipeline.decode_messages import Message, Request, receive_message

START_LIMIT_SECONDS = 60.0
"""For a child to start; it takes a fraction of a second on an idle machine."""

EXIT_LIMIT_SECONDS = 5.0
"""For a child whose pipe has closed to be gone by itself."""

_LAST_WORDS_BYTES = 4096


class IsolatedDecoder:
    """Decodes sources in a child process, which is started anew after it was lost.

    One for each thread that decodes. A source that crashes or hangs the decoder is charged with
    it, and no other one.

    Args:
        time_limit_seconds: A child that has not decoded one clip's length of the source for so
            long is killed.
        decode_function: ``module:function`` that the child calls, with the signature of
            `pipeline.decode.decode_source`.
    """

    def __init__(
        self,
        *,
        time_limit_seconds: float = 120.0,
        decode_function: str = "pipeline.decode:decode_source",
    ) -> None:
        self._time_limit_seconds = time_limit_seconds
        self._decode_function = decode_function
        self._idle: _Child | None = None
        self._busy: set[_Child] = set()

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

        The child waits while the events are not taken. An iterator that is closed early costs its
        child; the next source gets a new one.

        Raises:
            RuntimeError: Decoding failed for a reason that is not the source's.
        """
        options = {
            "clip_spec": clip_spec,
            "window_spec": window_spec,
            "sound": sound,
            "backend": backend,
        }
        child = self._take_child()
        is_done = False
        try:
            for event in self._events(child, task, options):
                # Before the last event is given: who takes it need not ask for more.
                if isinstance(event, SourceDecoded):
                    is_done = self._put_back(child)
                yield event
        finally:
            if not is_done:
                self._busy.discard(child)
                child.end()

    def _take_child(self) -> _Child:
        child, self._idle = self._idle, None
        if child is None or not child.is_alive():
            if child is not None:
                child.end()
            child = _Child(self._decode_function)
        self._busy.add(child)
        return child

    def _put_back(self, child: _Child) -> bool:
        """Keeps a child for the next source, unless it is dead or one is waiting already."""
        if self._idle is not None or not child.is_alive():
            return False
        self._busy.discard(child)
        self._idle = child
        return True

    def _events(
        self, child: _Child, task: SourceTask, options: dict[str, object]
    ) -> Iterator[DecodeEvent]:
        running = _RunningSegment(task)
        try:
            child.request(task, options)
            while True:
                message = child.receive(self._time_limit_seconds)
                if isinstance(message, str):
                    raise RuntimeError(
                        f"decoding {task.uri} failed, and not by its own fault:\n{message}"
                    )
                if message is None:
                    continue
                running.see(message)
                yield message
                if isinstance(message, SourceDecoded):
                    return
        except TimeoutError:
            child.end()
            reason = f"the decoder gave nothing for {self._time_limit_seconds:g} s and was killed"
            yield from running.give_up(DecodeTimeoutError(task.uri, reason))
        except (EOFError, OSError):
            reason = f"the decoder's process {child.describe_death()}"
            yield from running.give_up(DecoderCrashedError(task.uri, reason))
        except ValueError as error:
            child.end()
            reason = f"the decoder's process gave what is no answer: {error}"
            yield from running.give_up(DecoderCrashedError(task.uri, reason))


class _RunningSegment:
    """Which segment of a source the child is at, as far as its events tell."""

    def __init__(self, task: SourceTask) -> None:
        self._skipped = task.skip_segments
        self._next = 0

    def see(self, event: DecodeEvent) -> None:
        if isinstance(event, Clip | SegmentRejected) and event.segment is not None:
            self._next = event.segment + 1

    def give_up(self, error: ClipError) -> Iterator[DecodeEvent]:
        """Rejects the segment, or the source if nothing of it was decoded, and ends."""
        while self._next in self._skipped:
            self._next += 1
        segment = self._next or None
        yield SegmentRejected(segment=segment, error=error)
        yield SourceDecoded(num_segments=0 if segment is None else segment + 1)


class _Child:
    """One child process and the pipes to it.

    Raises:
        RuntimeError: It does not start.
    """

    def __init__(self, decode_function: str) -> None:
        request_reader, request_writer = os.pipe()
        event_reader, event_writer = os.pipe()
        self._requests = Connection(request_writer, readable=False)
        self._events = Connection(event_reader, writable=False)
        self._request: Request | None = None
        # FFmpeg's chatter; a file, because a pipe that nobody reads would block the child. `end`
        # closes it.
        self._stderr: IO[bytes] = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
        arguments = [str(request_reader), str(event_writer), decode_function]
        try:
            self._process = subprocess.Popen(
                # -P: no module in the working folder may shadow ours.
                [sys.executable, "-P", "-m", "pipeline.decode_child", *arguments],
                pass_fds=(request_reader, event_writer),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=_environment(),
                # Out of reach of a terminal's Ctrl-C, from the first moment.
                process_group=0,
            )
        finally:
            os.close(request_reader)
            os.close(event_writer)
        self._await_start()

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def request(self, task: SourceTask, options: dict[str, object]) -> None:
        # The child shares the offset and is not writing now.
        self._stderr.seek(0)
        self._stderr.truncate()
        self._request = task, options
        self._requests.send(self._request)

    def receive(self, limit_seconds: float) -> Message:
        """The next message; raises as `receive_message`."""
        return receive_message(self._events, self._request, limit_seconds=limit_seconds)

    def end(self) -> None:
        """Kills the child, whatever it does, and closes the pipes; may be called again."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._events.close()
        self._stderr.close()

    def describe_death(self) -> str:
        """How the child ended, and the last that it said."""
        try:
            status = self._process.wait(EXIT_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        if status >= 0:
            how = f"exited with status {status}"
        else:
            how = f"was killed by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                how += ", as the system does when memory runs out"
        words = self._last_words()
        return f"{how}; it last said: {words}" if words else how

    def _await_start(self) -> None:
        try:
            self.receive(START_LIMIT_SECONDS)
        except (EOFError, OSError, ValueError) as error:
            death = self.describe_death()
            self.end()
            raise RuntimeError(f"a decoder process did not start: it {death}") from error

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS_BYTES))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _environment() -> dict[str, str]:
    """This process's, with the folder that holds these packages on the import path."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
