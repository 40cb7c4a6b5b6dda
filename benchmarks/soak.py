"""Clients that hang up in the middle: no answer may change or be lost, no memory be kept."""

from __future__ import annotations

import contextlib
import itertools
import math
import os.path
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from statistics import median
from typing import Any

import psutil
from streams import Answer, Call, Server, drive, read

QUESTIONS = 32
HANG_UPS = 0.4  # of all requests
MIB = 2**20
SHOWN = 20  # failures
ENOUGH = 200  # losses: the server is gone


def questions(shuffled: random.Random) -> list[str]:
    """Short and long ones, some with a beginning in common."""
    names = [f"{m.__name__}.{n}" for m in (math, os.path, itertools) for n in dir(m) if n[0] != "_"]
    shuffled.shuffle(names)
    asked = [f"What does {name} do?" for name in names[: QUESTIONS // 2]]
    listed = "These are the functions: " + ", ".join(names)
    for count in range(QUESTIONS - len(asked)):
        asked.append(f"{listed[: 40 + 60 * count]}. What does {names[-1 - count]} do?")
    return asked


def soak(
    server: Server,
    clients: int,
    seconds: float,
    new_tokens: int,
    shuffled: random.Random,
    pid: int | None,
    slack: int,
) -> dict[str, Any]:
    """Counts, memory in MiB, and `failures` in words, each with its count: none is right."""
    prompts = questions(shuffled)
    alone = {prompt: _alone(server, prompt, new_tokens) for prompt in prompts}
    lost = [answer.error for answer in alone.values() if answer.error]
    if lost:
        return {"failures": Counter(f"alone: {error}" for error in lost)}
    seconds_of = (answer.call.ended - answer.call.started for answer in alone.values())
    latencies = deque(seconds_of, maxlen=4 * clients)
    differing: list[str] = []
    counts: Counter[str] = Counter()
    end = time.perf_counter() + seconds

    def client() -> Iterator[Call]:
        while time.perf_counter() < end and len(lost) < ENOUGH:
            prompt = shuffled.choice(prompts)
            hang_up = None
            if shuffled.random() < HANG_UPS:
                hang_up = shuffled.uniform(0, 1.2 * median(latencies))
            call = server.call(prompt, new_tokens, hang_up_after=hang_up)
            yield call
            answer = read(call)
            if hang_up is not None and call.ended - call.started >= hang_up:
                counts["hung up"] += 1
                counts["hung up before the first token"] += not answer.times
            elif answer.error:
                lost.append(answer.error)
            else:
                latencies.append(call.ended - call.started)
                counts["answers"] += 1
                counts["tokens"] += answer.new_tokens
                if answer.said != alone[prompt].said:
                    differing.append(f"{prompt[-60:]!r}: {alone[prompt].said} {answer.said}")

    with _Memory(pid) as memory:
        drive([client() for _ in range(clients)])
    after = [_alone(server, prompt, new_tokens) for prompt in prompts]
    lost += [f"afterwards: {answer.error}" for answer in after if answer.error]
    failures = [f"lost: {error}" for error in lost] + [f"differs: {text}" for text in differing]
    failures += [
        f"differs afterwards: {prompt[-60:]!r}"
        for prompt, answer in zip(prompts, after, strict=True)
        if answer.said != alone[prompt].said
    ]
    if not counts["answers"] or not counts["hung up"]:
        failures.append("too short: no answer came, or nobody hung up")
    if memory.growth() > slack:
        failures.append(f"memory grew by {memory.growth():.0f} MiB")
    return {
        **counts,
        "differing": len(differing),
        "lost": len(lost),
        "memory, MiB": [round(value) for value in memory.samples[:: len(memory.samples) // 20 + 1]],
        "memory grew, MiB": round(memory.growth(), 1),
        "failures": dict(Counter(failures).most_common(SHOWN)),
    }


def _alone(server: Server, prompt: str, new_tokens: int) -> Answer:
    call = server.call(prompt, new_tokens)
    drive([iter([call])])
    return read(call)


class _Memory:
    """Resident memory of a process and its children, each second, in MiB."""

    def __init__(self, pid: int | None) -> None:
        self.samples: list[float] = []
        self._process = psutil.Process(pid) if pid else None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> _Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _follow(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):  # a server that died lost answers too
            while self._process and not self._over.wait(1):
                family = [self._process, *self._process.children(recursive=True)]
                self.samples.append(sum(process.memory_info().rss for process in family) / MIB)

    def growth(self) -> float:
        """From the first half to the second, once caches had a fifth of the time to fill."""
        settled = self.samples[len(self.samples) // 5 :]
        half = len(settled) // 2
        return median(settled[half:]) - median(settled[:half]) if half else 0.0
