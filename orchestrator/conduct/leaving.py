"""The end on the spot, which a second signal asks for: nothing is waited for any longer."""

import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import NoReturn

from orchestrator.storage.process import kill_descendants

LEAVE_SECONDS = 5.0


def leave(last_words: Iterable[Callable[[], object]], exit_code: int) -> NoReturn:
    """End this process and all that it has started, among it a Ray that is this study's own.

    `last_words` are called before, one after another, whatever becomes of the one before; they
    have `LEAVE_SECONDS` in all. They run in a thread of their own, because the main thread, in a
    signal's handler, may hold a lock that they wait for.
    """

    def speak() -> None:
        for word in last_words:
            with suppress(Exception):  # whatever it is, the others should have their turn
                word()

    speaker = threading.Thread(target=speak, name="last-words", daemon=True)
    speaker.start()
    speaker.join(LEAVE_SECONDS)
    kill_descendants()
    os._exit(exit_code)  # an orderly end would wait for epochs, threads and Ray
