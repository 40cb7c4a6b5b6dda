"""A continuation on its way: tokens to text, in no format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptoss_onnx.assistant.choice import Finished, Piece, Reason, TurnUsage, usage_of
from gptoss_onnx.assistant.stop_texts import StopTexts
from gptoss_onnx.assistant.token_texts import TokenTexts
from gptoss_onnx.runtimes.content_filter import ContentFilter, EventGate
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.stream_parser import Event
from gptoss_onnx.runtimes.tokenizer import IncrementalDecoder

if TYPE_CHECKING:
    from gptoss_onnx.runtimes.request import Running, Token


class RawChoice:
    """As `choice.Choice`, of content alone. A filter reviews it as what it is: the prompt's end."""

    def __init__(
        self,
        place: int,
        running: Running,
        package: Package,
        stops: tuple[str, ...],
        shared: bool,
        content_filter: ContentFilter | None = None,
    ) -> None:
        self.running = running
        self.finished: Finished | None = None
        self.slow = content_filter is not None and content_filter.slow
        self._place = place
        self._shared = shared
        self._decoder = IncrementalDecoder(package.tokenizer)
        chosen = running.request.options.stop_ids
        self._stop_ids = package.stop_ids if chosen is None else chosen
        self._stops = StopTexts(stops)
        self._gate = EventGate(content_filter) if content_filter is not None else None
        self._prompt = ""  # which the filter has not been told
        if self._gate is not None:
            self._prompt = package.tokenizer.decode(running.request.prompt)
        self._unsaid = len(self._prompt)  # characters of it, which are no part of the answer
        self._begun = False
        self._taken = 0  # tokens
        self._since: list[Token] = []
        self._texts = TokenTexts()

    @property
    def usage(self) -> TurnUsage:
        return usage_of(self.running, self._taken, 0, shared=self._shared)

    def take(self) -> list[Piece | Finished]:
        if self.finished is not None:
            return []
        done = self.running.done
        pieces: list[Piece | Finished] = []
        for token in self.running.take():
            self._taken += 1
            if token.id in self._stop_ids:
                break
            self._since.append(token)
            pieces += self._say(self._stops.feed(self._read(self._decoder.feed(token.id))))
            if self._stops.hit or self._blocked is not None:
                self.cancel()
                done = True
                break
        return pieces + self._finish() if done else pieces

    def cancel(self) -> None:
        self.running.cancel()

    @property
    def _blocked(self) -> str | None:
        return self._gate.blocked if self._gate is not None else None

    def _read(self, text: str) -> str:
        if text:
            self._texts.add(text, self._since)
            self._since = []
        return text

    def _say(self, text: str, ended: bool = False) -> list[Piece]:
        text = self._reviewed(text, ended)
        if not text:
            return []
        begins, self._begun = not self._begun, True
        event, tokens = Event("final", text), self._texts.take(len(text))
        return [Piece(self._place, "content", text, event, begins, None, tokens)]

    def _reviewed(self, text: str, ended: bool) -> str:
        if self._gate is None:
            return text
        whole, self._prompt = self._prompt + text, ""
        events = [Event("final", whole)] if whole else []
        passed = "".join(event.text for event in self._gate.feed(events, ended))
        said = passed[self._unsaid :]
        self._unsaid -= len(passed) - len(said)
        return said

    def _finish(self) -> list[Piece | Finished]:
        text = ""
        if not self._stops.hit and self._blocked is None:
            text = self._stops.feed(self._read(self._decoder.finish())) + self._stops.finish()
        pieces: list[Piece | Finished] = [*self._say(text, ended=True)]
        reason: Reason = "stop" if self._stops.hit else self.running.finish_reason or "cancelled"
        verdicts: tuple[str, ...] = ()
        if self._blocked is not None:
            reason, verdicts = "content_filter", (f"answer: {self._blocked}",)
        error = self.running.error
        self.finished = Finished(self._place, reason, self.usage, (), error, verdicts)
        return [*pieces, self.finished]
