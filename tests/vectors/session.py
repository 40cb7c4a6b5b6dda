"""Cases of session.json: what is done to a session, and what must be left of it after each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from typing import Any

from gptoss_onnx.runtimes.batch import Batch
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.session import Session

Json = dict[str, Any]
Piece = list[int]  # [text, from, to]: tokens of one of the texts


def token(text: int, place: int) -> int:
    """Texts without end that differ at every place, of ids that are not special."""
    return (7919 * place + 104729 * text + 13) % 4000


def tokens(pieces: Iterable[Piece]) -> list[int]:
    return [token(text, place) for text, start, end in pieces for place in range(start, end)]


def pieces(ids: Sequence[int], texts: int = 4) -> list[Piece]:
    """The same the other way round: what is left of a session, in few numbers."""
    found: list[Piece] = []
    for place, one in enumerate(ids):
        text = next((t for t in range(texts) if token(t, place) == one), None)
        assert text is not None, f"the case feeds the token of another place at {place}"
        if found and found[-1][0] == text:
            found[-1][2] = place + 1
        else:
            found.append([text, place, place + 1])
    return found


def feed(*given: Piece) -> Json:
    return {"do": "feed", "tokens": list(given)}


def fail(*given: Piece) -> Json:
    return {"do": "fail", "tokens": list(given)}


def reuse(*given: Piece) -> Json:
    return {"do": "reuse", "tokens": list(given)}


def rewind(length: int) -> Json:
    return {"do": "rewind", "length": length}


def refuse(*ids: int) -> Json:
    return {"do": "refuse", "ids": list(ids)}


SNAPSHOT: Json = {"do": "snapshot"}
RESET: Json = {"do": "reset"}

# Windowed buffers of 160 rows for a window of 128: 33 rows leave at a time.
SESSIONS: list[tuple[str, int | None, list[Json]]] = [
    ("chunks of every size", 800, [
        feed([0, 0, 1]), feed([0, 1, 2]), feed([0, 2, 66]), feed([0, 66, 160]),
        feed([0, 160, 161]),
        feed([0, 161, 193]), feed([0, 193, 194]), feed([0, 194, 600]), feed([0, 600, 601]),
    ]),
    ("a chunk longer than a windowed buffer", 800, [feed([0, 0, 500]), feed([0, 500, 501])]),
    ("a cache that grows", None, [
        feed([0, 0, 200]), feed([0, 200, 300]), SNAPSHOT, fail([0, 300, 900]), feed([0, 300, 301]),
        feed([0, 301, 700]), rewind(310), feed([1, 300, 320]),
    ]),
    ("rewinding where nothing was evicted", 800, [
        feed([0, 0, 160]), rewind(100), feed([1, 100, 110]), rewind(110), rewind(1),
        feed([2, 1, 3]),
        rewind(0), feed([3, 0, 2]),
    ]),
    ("rewinding within an eviction", 800, [
        feed([0, 0, 190]), rewind(161), feed([1, 161, 200]), rewind(160), feed([2, 0, 5]),
    ]),
    ("rewinding beyond an eviction, with nothing to restore", 800, [
        feed([0, 0, 300]), rewind(200), feed([1, 0, 40]), feed([1, 40, 41]),
    ]),
    ("rewinding to a snapshot, or below it where nothing was evicted", 800, [
        feed([0, 0, 200]), SNAPSHOT, feed([0, 200, 400]), rewind(300), feed([1, 200, 210]),
        feed([1, 210, 400]), rewind(195), feed([2, 195, 250]),
    ]),
    ("rewinding to the best of several snapshots", 800, [
        feed([0, 0, 60]), SNAPSHOT, feed([0, 60, 200]), SNAPSHOT, feed([0, 200, 350]), SNAPSHOT,
        feed([0, 350, 500]), rewind(340), feed([1, 340, 345]), rewind(199), rewind(190),
        feed([1, 60, 70]), rewind(30), feed([2, 30, 31]),
    ]),
    ("few snapshots are kept: the newest, and those that spare most", 800, [
        feed([0, 0, 100]), SNAPSHOT, feed([0, 100, 110]), SNAPSHOT, feed([0, 110, 300]), SNAPSHOT,
        feed([0, 300, 400]), SNAPSHOT, feed([0, 400, 405]), SNAPSHOT, feed([0, 405, 410]), SNAPSHOT,
        feed([0, 410, 415]), SNAPSHOT, feed([0, 415, 700]), rewind(600), feed([0, 415, 700]),
        rewind(414), feed([0, 414, 700]), rewind(405), feed([0, 400, 700]), rewind(399),
        feed([0, 399, 700]), rewind(350), feed([0, 300, 700]), rewind(299), feed([1, 299, 600]),
        rewind(280), feed([0, 100, 101]),
    ]),
    ("snapshots of a past that was left are dropped", 800, [
        feed([0, 0, 100]), SNAPSHOT, feed([0, 100, 300]), SNAPSHOT, rewind(100),
        feed([1, 100, 400]), rewind(300), feed([1, 100, 101]),
    ]),
    ("a snapshot of nothing, and two of one length", 800, [
        SNAPSHOT, feed([0, 0, 200]), SNAPSHOT, SNAPSHOT, feed([0, 200, 300]), rewind(250),
        rewind(0),
        feed([1, 0, 1]),
    ]),
    ("reuse of what a prompt has in common", 800, [
        reuse([0, 0, 100]), feed([0, 0, 100]), reuse([0, 0, 100]), feed([0, 99, 100]), SNAPSHOT,
        feed([0, 100, 150]), reuse([0, 0, 150], [1, 150, 160]), feed([1, 150, 300]),
        reuse([0, 0, 120], [2, 120, 140]), feed([2, 100, 101]), reuse([3, 0, 1]), feed([3, 0, 1]),
        reuse([3, 0, 1]),
    ]),
    ("turns whose reasoning is dropped from the next prompt", 800, [
        reuse([0, 0, 70]), feed([0, 0, 64]), feed([0, 64, 70]), SNAPSHOT,
        feed([1, 70, 71]), feed([1, 71, 72]), feed([1, 72, 240]),
        reuse([0, 0, 70], [2, 70, 300]), feed([2, 70, 134]), feed([2, 134, 300]), SNAPSHOT,
        feed([3, 300, 460]), reuse([0, 0, 70], [2, 70, 300], [1, 300, 310]), feed([1, 300, 310]),
    ]),
    ("a failure that can have moved nothing loses nothing", 800, [
        feed([0, 0, 100]), fail([0, 100, 160]), feed([1, 100, 110]), fail([2, 110, 111]),
        feed([1, 110, 170]), fail([2, 170, 193]), feed([2, 170, 171]),
    ]),
    ("a failure that may have moved a window goes back to a snapshot", 800, [
        feed([0, 0, 170]), SNAPSHOT, feed([0, 170, 190]), fail([0, 190, 300]), feed([1, 170, 180]),
        feed([1, 180, 220]), feed([1, 220, 226]), fail([1, 226, 227]), feed([1, 170, 171]),
    ]),
    ("a failure without a snapshot leaves nothing", 800, [
        feed([0, 0, 160]), fail([0, 160, 161]), feed([1, 0, 70]), fail([1, 70, 400]),
        feed([2, 0, 3]),
    ]),
    ("a failure of the first run", 800, [
        fail([0, 0, 400]), feed([1, 0, 400]), feed([1, 400, 401]),
    ]),
    ("failures in a row", 800, [
        feed([0, 0, 300]), SNAPSHOT, fail([0, 300, 500]), fail([0, 300, 500]), fail([1, 300, 301]),
        feed([2, 300, 301]),
    ]),
    ("a prefill that is cancelled, and the prompt again", 800, [
        reuse([0, 0, 400]), feed([0, 0, 64]), feed([0, 64, 128]), fail([0, 128, 192]),
        reuse([0, 0, 400]), feed([0, 0, 400]), SNAPSHOT, feed([1, 400, 401]),
        reuse([0, 0, 400], [2, 400, 500]), fail([2, 400, 464]), reuse([0, 0, 400], [2, 400, 500]),
        feed([2, 400, 500]),
    ]),
    ("reset", 800, [
        feed([0, 0, 200]), SNAPSHOT, RESET, fail([0, 0, 200]), feed([1, 0, 200]), rewind(200),
        feed([1, 200, 202]),
    ]),
    ("what is refused changes nothing", 200, [
        refuse(), feed([0, 0, 150]), refuse(-3), refuse(4096), refuse(1, 10**9), refuse(),
        refuse(*tokens([[0, 150, 201]])), feed([0, 150, 200]), refuse(1), rewind(195),
        feed([1, 195, 200]),
    ]),
]  # fmt: skip

# Rows of a batch are fed together, right padded: what is done is done to every row.
BATCHES: list[tuple[str, list[Json]]] = [
    ("rows of different lengths", [
        {"do": "feed", "rows": [[[0, 0, 170]], [[1, 0, 20]], [[2, 0, 160]]]},
        {"do": "feed", "rows": [[[0, 170, 171]], [[1, 20, 21]], []]},
        {"do": "feed", "rows": [[], [[1, 21, 200]], [[2, 160, 162]]]},
    ]),
    ("a failure that can have moved no row loses nothing", [
        {"do": "feed", "rows": [[[0, 0, 100]], [[1, 0, 20]]]},
        {"do": "fail", "rows": [[[0, 100, 160]], [[1, 20, 30]]]},
        {"do": "feed", "rows": [[[2, 100, 101]], [[2, 20, 22]]]},
    ]),
    ("a failure that may have moved any row leaves nothing", [
        {"do": "feed", "rows": [[[0, 0, 170]], [[1, 0, 20]]]},
        {"do": "fail", "rows": [[[0, 170, 200]], [[1, 20, 21]]]},
        {"do": "feed", "rows": [[[2, 0, 3]], [[3, 0, 2]]]},
    ]),
    ("also one that is behind the others", [
        {"do": "feed", "rows": [[[0, 0, 170]], [[1, 0, 160]]]},
        {"do": "fail", "rows": [[[0, 170, 171]], [[1, 160, 161]]]},
        {"do": "feed", "rows": [[[2, 0, 3]], [[3, 0, 2]]]},
        {"do": "refuse", "rows": [[1], [4096]]},
        {"do": "refuse", "rows": [[], []]},
        {"do": "reset"},
        {"do": "feed", "rows": [[[0, 0, 2]], [[1, 0, 300]]]},
    ]),
]  # fmt: skip


class _Failing:
    """A graph that computes all it is asked, in place, and then fails: the worst of failures."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph
        self.io_binding = graph.io_binding

    def run_with_iobinding(self, *given: Any) -> None:
        self._graph.run_with_iobinding(*given)
        raise RuntimeError("this run fails")


@contextmanager
def failing(batch: Batch) -> Any:
    graph, batch._graph = batch._graph, _Failing(batch._graph)  # type: ignore[assignment]
    try:
        yield
    finally:
        batch._graph = graph


def perform(session: Session, step: Json) -> Any:
    """Do a step of one sequence; what it returns, logits [V] for a feed."""
    match step["do"]:
        case "feed":
            return session.feed(tokens(step["tokens"])).copy()
        case "fail":
            try:
                with failing(session.batch):
                    session.feed(tokens(step["tokens"]))
            except RuntimeError:
                return None
            raise AssertionError("the run did not fail")
        case "refuse":
            try:
                session.feed(step["ids"])
            except UserError:
                return None
            raise AssertionError(f"{step['ids']} were taken")
        case "reuse":
            return session.reuse(tokens(step["tokens"]))
        case "rewind":
            return session.rewind(step["length"])
        case "snapshot":
            return session.snapshot()
        case "reset":
            return session.reset()
    raise AssertionError(step)


def perform_batch(batch: Batch, step: Json) -> Any:
    """Do a step of a batch; logits [B, V] for a feed."""
    if step["do"] == "reset":
        for row in batch.rows:
            row.clear()
        return None
    if step["do"] == "refuse":
        try:
            batch.feed(step["rows"])
        except UserError:
            return None
        raise AssertionError(f"{step['rows']} were taken")
    rows = [tokens(row) for row in step["rows"]]
    if step["do"] == "feed":
        return batch.feed(rows).copy()
    try:
        with failing(batch):
            batch.feed(rows)
    except RuntimeError:
        return None
    raise AssertionError("the run did not fail")


def session_vectors(package: Package) -> Json:
    """What is left after each step of every case."""
    sessions = []
    for name, room, steps in SESSIONS:
        session, done = Session(package, max_length=room), []
        for step in steps:
            returned = perform(session, step)
            if step["do"] in ("reuse", "rewind"):
                assert returned == session.length
            left = {"kept": pieces(session.tokens), "evicted": session.evicted}
            done.append({**step, "left": left})
        sessions.append({"name": name, "max_length": room, "steps": done})
    batches = []
    for name, steps in BATCHES:
        rows = max(len(step.get("rows", [])) for step in steps)
        batch, done = Batch(package, rows), []
        for step in steps:
            perform_batch(batch, step)
            done.append({**step, "left": [row.length for row in batch.rows]})
        batches.append({"name": name, "steps": done})
    window = next(layer.window for layer in package.manifest.kv.layers if layer.windowed)
    return {"checkpoint": "demo", "window": window, "sessions": sessions, "batches": batches}
