"""gptoss users: who may use a server, and what they used."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from gptoss_onnx.runtimes.console import FOLDER, json_option, show, table

_DAY = 86400.0


def _data_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--data", type=FOLDER, help="The server's data folder. Default: GPTOSS_DATA or the user's."
    )(command)


@click.group()
def users() -> None:
    """Users of `gptoss serve`, each with an API key.

    \b
    gptoss users add anna
    """


@users.command()
@click.argument("name")
@_data_option
@json_option
def add(name: str, data: Path | None, as_json: bool) -> None:
    """A new user's key on stdout, the one time it is shown.

    A name that was revoked gets a new key.
    """
    from gptoss_onnx.assistant.users import Users

    with Users(data) as known:
        key = known.add(name)
    if as_json:
        show({"name": name, "key": key}, as_json)
        return
    click.echo(key)
    click.echo("Keep it: only its hash is stored, and nothing can show it again.", err=True)


@users.command("list")
@_data_option
@json_option
def list_command(data: Path | None, as_json: bool) -> None:
    """All users, and the first characters of their keys."""
    from gptoss_onnx.assistant.users import Users

    with Users(data, create=False) as known:
        rows = [asdict(user) for user in known.all()]
    if as_json:
        show({"users": rows}, as_json)
    elif rows:
        table([{**row, **_dates(row, "created", "last_used", "revoked")} for row in rows])


@users.command()
@click.argument("name")
@_data_option
@json_option
def revoke(name: str, data: Path | None, as_json: bool) -> None:
    """Refuse NAME's key from now on; running servers do so at once."""
    from gptoss_onnx.assistant.users import Users

    with Users(data, create=False) as known:
        user = known.revoke(name)
    show(asdict(user) if as_json else {"revoked": user.name}, as_json)


@users.command()
@click.option("--days", type=click.FloatRange(min=0), help="Only the last ones. Default: all.")
@_data_option
@json_option
def usage(days: float | None, data: Path | None, as_json: bool) -> None:
    """What each user used, by the server's log."""
    from gptoss_onnx.assistant.usage_log import UsageLog

    since = None if days is None else time.time() - days * _DAY
    with UsageLog(data, create=False) as log:
        rows = [asdict(summary) for summary in log.summary(since)]
    if as_json:
        show({"usage": rows}, as_json)
    elif rows:
        table([{**row, "user": row["user"] or "", **_dates(row, "last_at")} for row in rows])


def _dates(row: dict[str, Any], *names: str) -> dict[str, str]:
    """Times as this machine's clock shows them."""
    return {
        name: ""
        if row[name] is None
        else time.strftime("%Y-%m-%d %H:%M", time.localtime(row[name]))
        for name in names
    }
