"""The child process that decodes, as its parent holds it: pipes, limits, and how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

from latents.errors import DecoderStartError
from pipeline.decode import SourceTask
from pipeline.decode_messages import Message, Request, receive_message
from pipeline.memory_watch import MemoryWatch

START_LIMIT_SECONDS = 60.0
"""For a child to start; it takes a fraction of a second on an idle machine."""

START_ATTEMPTS = 3
"""Children that may be killed from outside, one after the other, while they start."""

EXIT_LIMIT_SECONDS = 5.0
"""For a child whose pipe has closed to be gone by itself."""

_LAST_WORDS_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Death:
    """How a child ended by itself, or by someone else's hand."""

    status: int | None
    """Exit status, or a signal's number below zero; None where it closed its pipe and lived on."""
    last_words: str
    """The last line that it wrote to its standard error."""

    @property
    def is_from_outside(self) -> bool:
        """Whether it was killed in a way that no decoder dies by its own fault."""
        return self.status == -signal.SIGKILL

    def __str__(self) -> str:
        how = _how(self.status)
        return f"{how}; it last said: {self.last_words}" if self.last_words else how


class KilledAtStartError(DecoderStartError):
    """A child was killed from outside before it was ready, which says nothing of the next."""


def start_process(
    decode_function: str, *, memory_bytes: int, look: Callable[[], None]
) -> DecodeProcess:
    """A child that is ready; one that is killed from outside while it starts is started again.

    Args:
        decode_function: As of `DecodeProcess`, like the others.
        memory_bytes: What it may hold.
        look: Called while it is waited for.

    Raises:
        DecoderStartError: None starts.
    """
    for _ in range(START_ATTEMPTS - 1):
        with contextlib.suppress(KilledAtStartError):
            return DecodeProcess(decode_function, memory_bytes=memory_bytes, look=look)
    return DecodeProcess(decode_function, memory_bytes=memory_bytes, look=look)


class DecodeProcess:
    """One child process and the pipes to it.

    Args:
        decode_function: ``module:function`` that it calls.
        memory_bytes: What it may hold; 0 for no limit.
        look: Called every tenth of a second while the child is waited for; may raise.

    Raises:
        DecoderStartError: It does not start.
    """

    def __init__(
        self, decode_function: str, *, memory_bytes: int, look: Callable[[], None]
    ) -> None:
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
        self._look = look
        self._memory = MemoryWatch(self.process_id, limit_bytes=memory_bytes)
        self._await_start()

    @property
    def process_id(self) -> int:
        """Of the child."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        return self._process.poll() is None

    def request(self, task: SourceTask, options: dict[str, object]) -> None:
        """Asks for a source; the answers to what was asked before must have been received."""
        # The child shares the offset and is not writing now.
        self._stderr.seek(0)
        self._stderr.truncate()
        self._request = task, options
        self._requests.send(self._request)

    def receive(self, limit_seconds: float) -> Message:
        """The next message.

        Raises:
            EOFError: The child is gone.
            TimeoutError: It says nothing for so long.
            MemoryExceededError: It holds more than it may.
            ValueError: What it says cannot be an answer.
        """

        def look() -> None:
            self._look()
            self._memory.look()

        return receive_message(self._events, self._request, limit_seconds=limit_seconds, look=look)

    def end(self) -> None:
        """Kills the child, whatever it does, and closes the pipes; may be called again."""
        self._process.kill()
        self._process.wait()
        self._requests.close()
        self._events.close()
        self._stderr.close()

    def death(self) -> Death:
        """How the child ended, after its pipe has closed; one that lives on is killed."""
        status: int | None
        try:
            status = self._process.wait(EXIT_LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            status = None
        return Death(status=status, last_words=self._last_words())

    def _await_start(self) -> None:
        try:
            receive_message(self._events, None, limit_seconds=START_LIMIT_SECONDS, look=self._look)
        except (EOFError, OSError, ValueError) as error:
            death = self.death()
            self.end()
            kind = KilledAtStartError if death.is_from_outside else DecoderStartError
            raise kind(
                f"a decoding process did not start: it {death}. Mend the installation and run the "
                "same command again"
            ) from error
        except BaseException:
            self.end()
            raise

    def _last_words(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _LAST_WORDS_BYTES))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")


def _how(status: int | None) -> str:
    if status is None:
        return "closed its pipe and did not end"
    if status >= 0:
        return f"exited with status {status}"
    number = -status
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    hint = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _environment() -> dict[str, str]:
    """This process's, with the folder that holds these packages on the import path."""
    root = str(Path(__file__).resolve().parents[1])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
