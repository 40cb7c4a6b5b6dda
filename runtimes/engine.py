"""A package that answers many at once: a scheduler on a thread of its own."""

from __future__ import annotations

import logging
import threading

from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.prefix_cache import PrefixCache
from gptoss_onnx.runtimes.request import Listener, Request, Running
from gptoss_onnx.runtimes.scheduler import Scheduler

CACHE_BYTES = 1 << 30
_log = logging.getLogger("gptoss")


class Engine:
    """`submit` requests from any thread; `close` it in the end.

    `rows` replies are written at once, `queue` requests may wait. `cache_bytes` is the most that
    prompts' common beginnings may take, 1 GiB where None; `cache` shares another engine's.
    `max_length`: tokens of the longest conversation.
    """

    def __init__(
        self,
        package: Package,
        *,
        rows: int = 16,
        queue: int | None = 256,
        max_length: int | None = None,
        cache_bytes: int | None = None,
        cache: PrefixCache | None = None,
    ) -> None:
        if cache is None:
            cache = PrefixCache(CACHE_BYTES if cache_bytes is None else cache_bytes)
        self.package = package
        self.cache = cache
        self._scheduler = Scheduler(
            package, rows=rows, queue=queue, max_length=max_length, cache=cache
        )
        self._news = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and its reply together."""
        return self._scheduler.max_length

    @property
    def active(self) -> int:
        """Requests that have a row."""
        return self._scheduler.active

    @property
    def waiting(self) -> int:
        """Requests that wait for a row."""
        return self._scheduler.waiting

    @property
    def one_at_a_time(self) -> str | None:
        """Why requests run one after the other; None where they run at once."""
        return self._scheduler.one_at_a_time

    def submit(self, request: Request, listener: Listener | None = None) -> Running:
        """Queue a request; `listener` is called on the engine's thread whenever it has news.

        UserError for a prompt or options that cannot be, QueueFull where too many wait,
        RuntimeError once the engine is closed.
        """
        if self._closed:
            raise RuntimeError("this engine is closed")
        running = self._scheduler.submit(request, listener)
        self._news.set()
        return running

    def close(self) -> None:
        """Cancel whatever is asked for; returns when nothing runs any more."""
        self._closed = True
        self._scheduler.cancel_all()
        self._news.set()
        self._thread.join()
        self._scheduler.end_all()  # what came in between

    def _work(self) -> None:
        while not self._closed:
            self._news.clear()
            try:
                while self._scheduler.step():
                    if self._closed:
                        break
                else:
                    self._scheduler.rest()
            except Exception as error:
                _log.exception("the engine's requests are ended")
                self._scheduler.end_all(error)
            self._news.wait()
