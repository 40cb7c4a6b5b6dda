"""What the command line shows: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from gptoss_onnx.runtimes.chat import Chat

_ERRORS = Console(stderr=True, highlight=False)

FOLDER = click.Path(path_type=Path)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
threads_option = click.option("--threads", type=click.IntRange(1), help="Default: one a core.")


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 1."""
    click.echo(f"Error: {message}", err=True)
    sys.exit(1)


def show(content: Mapping[str, Any], as_json: bool) -> None:
    """A flat report: JSON, or a line a field."""
    if as_json:
        click.echo(json.dumps(content, ensure_ascii=False, indent=2))
        return
    width = max(map(len, content))
    for name, value in content.items():
        click.echo(f"{name.replace('_', ' '):<{width}}  {_readable(name, value)}")


def _readable(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_readable(str(key), item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    if isinstance(value, int) and "bytes" in name:
        return f"{value / 1e6:,.1f} MB"
    if name == "memory_bandwidth":
        return f"{value / 1e9:.1f} GB/s"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same fields as a table on stdout."""
    shown = Table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:
        shown.add_row(*(_cell(value) for value in row.values()))
    # A pipe has no width: cells are not wrapped for it.
    console = Console()
    Console(width=None if console.is_terminal else 200).print(shown)


def _cell(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


@contextmanager
def stage_progress(unit: str = "bytes") -> Iterator[Callable[[str, int, int], None]]:
    """A bar for each stage in turn, told (stage, units done, units in all)."""
    with _bars(unit) as bars:
        tasks: dict[str, Any] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield progress


@contextmanager
def byte_progress(stage: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar told the bytes since the last call."""
    with _bars() as bars:
        task = bars.add_task(stage, total=total)
        yield lambda count: bars.advance(task, count)


class _Rate(ProgressColumn):
    """Units a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f}/s" if task.speed else "?/s")


def _bars(unit: str = "bytes") -> Progress:
    counted = (
        (DownloadColumn(), TransferSpeedColumn())
        if unit == "bytes"
        else (TextColumn("{task.completed:,.0f}/{task.total:,.0f}"), _Rate())
    )
    return Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        *counted,
        TimeRemainingColumn(),
        console=_ERRORS,
        transient=True,
        disable=not _ERRORS.is_terminal,  # a log is no place for a bar, nor for its empty line
    )


def chat_loop(chat: Chat, show_analysis: bool) -> None:
    """Read lines and stream answers until an empty line or the end of input."""
    interactive = sys.stdin.isatty()
    if interactive:
        click.echo("An empty line or Ctrl-D ends the chat, Ctrl-C an answer.", err=True)
    while text := _next_line(interactive):
        try:
            _stream(chat, text, show_analysis)
        except KeyboardInterrupt:
            click.echo(" [stopped]", err=True)


def _next_line(interactive: bool) -> str:
    try:
        return input("> " if interactive else "").strip()
    except (EOFError, KeyboardInterrupt):
        click.echo()
        return ""


def _stream(chat: Chat, text: str, show_analysis: bool) -> None:
    message = None
    for event in chat.send(text):
        if event.kind == "analysis" and not show_analysis:
            continue
        if event.message != message:
            label = f"[{event.kind}] " if show_analysis else ""
            label = f"[call of {event.recipient}] " if event.kind == "call" else label
            click.echo(f"{'' if message is None else chr(10)}{label}", nl=False)
            message = event.message
        click.echo(event.text, nl=False)
    click.echo()
    limited = chat.usage.new_tokens == chat.options.max_new_tokens
    less = " or think less with --reasoning low" if limited else ""
    note = what_is_missing(
        chat.reply.text, chat.reply.cut_in, [call.name for call in chat.tool_calls], limited=limited
    )
    if note:
        click.echo(f"[{note}{less if chat.reply.cut_in == 'analysis' else ''}]", err=True)


def what_is_missing(
    answer: str, cut_in: str | None, called: Sequence[str], *, limited: bool
) -> str | None:
    """Why a reply is no whole answer, and how to go on; None when it is one.

    `cut_in` is the kind of message it was cut in, `limited` whether by --max-new-tokens.
    """
    on = "raise --max-new-tokens" if limited else "the context is full, so ask anew"
    if cut_in == "analysis":
        return f"cut while the model was still thinking: {on}"
    if cut_in is not None:
        return f"cut in the middle of a call: {on}" if cut_in == "call" else f"cut short: {on}"
    if called:
        return f"the model called {', '.join(called)}, and nothing here runs tools"
    return None if answer else "the model ended without an answer: ask again, or in other words"
