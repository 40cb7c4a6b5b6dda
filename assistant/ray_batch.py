"""gptoss batch on a Ray cluster: Ray Data's pool of processes, each with a package of its own."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported home

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError

from gptoss_onnx.assistant.batch_answers import Write, answer, at_once, batch_app
from gptoss_onnx.assistant.batch_file import Line, read_lines_at
from gptoss_onnx.assistant.models import Models
from gptoss_onnx.assistant.ray_cluster import threads_each
from gptoss_onnx.runtimes.errors import UserError

_CALLS = 4  # of one process at once, so that rows are not idle while the last of a call ends
_PATHS = ("package", "data", "terms", "policy", "policy_package")


def answer_on_ray(
    requests: Path,
    lines: Iterable[Line],
    write: Write,
    options: dict[str, Any],
    address: str | None,
    replicas: int,
) -> None:
    """`write` the answers to `lines` of the file `requests`, as they come.

    Every machine must see that file, the package and what else `options` name, by the same paths.
    """
    places = [{"number": line.number, "start": line.start} for line in lines]
    if not places:
        return
    Models(options["package"])  # what is wrong with it, before processes start
    options = options | {n: options[n].absolute() for n in _PATHS if options.get(n)}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        context = DataContext.get_current()
        context.enable_progress_bars = False
        threads = options["threads"] or threads_each(replicas)
        size = max(1, at_once(options["rows"]) // _CALLS)
        asked = ray.data.from_items(places, override_num_blocks=-(-len(places) // size))
        found = asked.map_batches(
            Answering,
            fn_constructor_args=(requests.absolute(), options | {"threads": threads}),
            batch_size=None,
            num_cpus=threads,
            compute=ActorPoolStrategy(
                size=replicas,
                max_tasks_in_flight_per_actor=2 * _CALLS,
                max_concurrent_calls_per_actor=_CALLS,
                enable_true_multi_threading=True,
            ),
        )
        for batch in found.iter_batches(batch_size=None, prefetch_batches=0):
            write([bytes(each) for each in batch["answer"]])
    except (RayError, ConnectionError) as error:
        words = str(getattr(error, "cause", None) or error).strip().splitlines()
        raise UserError(f"Ray ended the batch: {words[-1]}; start again to go on") from error
    finally:
        ray.shutdown()


class Answering:
    """One process of the pool. Its application has an event loop that all calls share."""

    def __init__(self, requests: Path, options: dict[str, Any]) -> None:
        self._requests = requests
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._open = batch_app(**options)  # it is closed once nothing holds it
        self._app = self._run(self._open.__aenter__())

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The answer to each line of the batch's numbers and places."""
        places = zip(batch["number"].tolist(), batch["start"].tolist(), strict=True)
        answers = self._run(self._answers(list(read_lines_at(self._requests, places))))
        return {"answer": np.array(answers, dtype=object)}

    async def _answers(self, lines: Sequence[Line]) -> list[bytes]:
        return await asyncio.gather(*(answer(self._app, line) for line in lines))

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
