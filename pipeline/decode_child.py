"""The process that decodes for `pipeline.isolation`, so that a native decoder may crash or hang.

Run as ``python -m pipeline.decode_child REQUESTS EVENTS MODULE:FUNCTION``: two inherited pipe
descriptors and the function to call. It ends with its parent, whose end of the request pipe closes.
It trusts its parent; the parent does not trust it (see `pipeline.decode_messages`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from multiprocessing.connection import Connection
from queue import SimpleQueue

from pipeline.decode import DecodeEvent
from pipeline.decode_messages import DecodingFailed, Request, send_message

DecodeFunction = Callable[..., Iterator[DecodeEvent]]


def serve(requests: Connection, events: Connection, decode: DecodeFunction) -> None:
    """Answers requests one after another, until the parent is gone."""
    waiting: SimpleQueue[Request] = SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    send_message(events, None)
    while True:
        task, options = waiting.get()
        try:
            for event in decode(task, on_progress=lambda: send_message(events, None), **options):
                send_message(events, event)
        except BrokenPipeError:
            return
        except Exception as error:
            # Carried to the parent, which decides what becomes of the source.
            is_import = isinstance(error, ImportError)
            send_message(
                events, DecodingFailed(traceback=traceback.format_exc(), is_import=is_import)
            )


def _listen(requests: Connection, waiting: SimpleQueue[Request]) -> None:
    """Takes requests even while decoding, and so sees at once when the parent is gone."""
    while True:
        try:
            waiting.put(requests.recv())
        except (EOFError, OSError):
            os._exit(0)


def main(arguments: list[str]) -> None:
    """Serves over the pipes named by the arguments."""
    # Sent to a whole job, these are for the parent, which decides what becomes of work in hand.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    requests, events, target = arguments
    module, function = target.split(":")
    decode: DecodeFunction = getattr(import_module(module), function)
    serve(
        Connection(int(requests), writable=False), Connection(int(events), readable=False), decode
    )


if __name__ == "__main__":
    main(sys.argv[1:])
