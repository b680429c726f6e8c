"""Ends the process when the server that started it is gone, with the weights in its memory.

The stub looks for that too, but hangs if one of our threads waits for the server just then. Writing
a metric even keeps Python's lock while it waits (server 2.51), so `check` comes before that, too.
"""

import os
import threading

_EVERY_S = 0.5


class ParentWatch:
    """Watches the parent process from a thread of its own."""

    def __init__(self) -> None:
        """Start the thread."""
        self._parent_id = os.getppid()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kimivl-parent", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """End the process at once if its parent is gone; exit handlers would wait for it."""
        if os.getppid() != self._parent_id:
            os._exit(1)

    def close(self) -> None:
        """End the thread."""
        self._closed.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._closed.wait(_EVERY_S):
            self.check()
