"""Showing and noting the figures of a run while it goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from latents.errors import InterruptedJobError
from pipeline.figures import Figures
from pipeline.live_view import RunView, open_view
from pipeline.run_folder import RunFolder, State

NOTE_SECONDS = 5.0
"""Time between two lines in the run's folder."""
SHOW_SECONDS = 0.5


@contextmanager
def watching(
    look: Callable[[], Figures],
    *,
    verb: str,
    unit: str,
    folder: RunFolder,
    publish: Callable[[Figures], None] | None = None,
) -> Iterator[None]:
    """Shows a run on standard error and notes it in its folder, until this is left.

    Args:
        look: The figures now; called from another thread, and once more at the end.
        verb: What is done to a unit, in the past tense.
        unit: What is worked on.
        folder: Of the run; its last line says how the run ended.
        publish: Who else gets the figures, every few seconds and at the end.
    """

    def tell(figures: Figures, state: State = "running", error: str = "") -> None:
        folder.note(figures, state=state, error=error)
        if publish is not None:
            publish(figures)

    state: State = "ended"
    message = ""
    stopped = threading.Event()
    with open_view(verb=verb, unit=unit) as view:
        thread = threading.Thread(
            target=_watch, args=(look, view, tell, stopped), name="run watch", daemon=True
        )
        thread.start()
        try:
            yield
        except (InterruptedJobError, KeyboardInterrupt) as error:
            state, message = "interrupted", str(error)
            raise
        except BaseException as error:
            state, message = "failed", str(error) or type(error).__name__
            raise
        finally:
            stopped.set()
            thread.join()
            figures = look()
            tell(figures, state, message)
            view.end(figures)


def _watch(
    look: Callable[[], Figures],
    view: RunView,
    tell: Callable[[Figures], None],
    stopped: threading.Event,
) -> None:
    last = time.monotonic()
    while not stopped.wait(SHOW_SECONDS):
        figures = look()
        view.show(figures)
        if time.monotonic() - last >= NOTE_SECONDS:
            last = time.monotonic()
            tell(figures)
