"""A continuation on its way: tokens to text, in no format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_onnx.assistant.choice import Finished, Piece, usage_of
from gptoss_onnx.assistant.stop_texts import StopTexts
from gptoss_onnx.runtimes.harmony import Message
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.stream_parser import Event
from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.request import Running, Token


class RawChoice:
    """As `choice.Choice`, of content alone."""

    def __init__(
        self,
        place: int,
        running: Running,
        package: Package,
        stops: tuple[str, ...],
        shared: bool,
    ) -> None:
        self.running = running
        self.finished: Finished | None = None
        self.slow = False
        self._place = place
        self._shared = shared
        self._decoder = IncrementalDecoder(package.tokenizer)
        self._stop_ids = package.stop_ids
        self._stops = StopTexts(stops)
        self._begun = False
        self._since: list[Token] = []

    def take(self) -> list[Piece | Finished]:
        if self.finished is not None:
            return []
        done = self.running.done
        pieces: list[Piece | Finished] = []
        for token in self.running.take():
            if token.id in self._stop_ids:
                break
            self._since.append(token)
            pieces += self._say(self._stops.feed(self._decoder.feed(token.id)))
            if self._stops.hit:
                self.running.cancel()
                done = True
                break
        return pieces + self._finish() if done else pieces

    def _say(self, text: str) -> list[Piece]:
        if not text:
            return []
        tokens, self._since = self._since, []
        begins, self._begun = not self._begun, True
        event = Event("final", text)
        return [Piece(self._place, "content", text, event, begins, None, tokens)]

    def _finish(self) -> list[Piece | Finished]:
        pieces: list[Piece | Finished] = []
        if not self._stops.hit:
            text = self._stops.feed(self._decoder.finish())
            pieces += self._say(text + self._stops.finish())
        reason = "stop" if self._stops.hit else self.running.finish_reason or "cancelled"
        messages: list[Message] = []
        usage = usage_of(self.running, 0, shared=self._shared)
        self.finished = Finished(self._place, reason, usage, messages, self.running.error)
        return [*pieces, self.finished]
