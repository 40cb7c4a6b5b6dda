"""gptoss serve; what it uses is imported when it runs."""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

import click

from gptoss_onnx.runtimes.console import FOLDER, threads_option
from gptoss_onnx.runtimes.errors import UserError

_SWITCH = 0.0005  # seconds a Python thread keeps others waiting, where 5 ms are five tokens


@click.command()
@click.argument("package", type=FOLDER)
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True)
@click.option("--rows", type=click.IntRange(1), default=16, show_default=True,
              help="Replies that are written at once.")  # fmt: skip
@click.option("--context", type=click.IntRange(2), metavar="TOKENS",
              help="The longest conversation. Default: the package's.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=256, show_default=True,
              help="Requests that may wait.")  # fmt: skip
@click.option("--cache", type=click.IntRange(0), metavar="BYTES",
              help="Memory for what prompts have in common.")  # fmt: skip
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
              help="When a reply is cut. Default: never.")  # fmt: skip
@click.option("--max-loaded", type=click.IntRange(1), default=1, show_default=True,
              help="Packages of a folder that are loaded at once.")  # fmt: skip
@click.option("--api-keys", is_flag=True, help="Only for users of `gptoss users add`.")
@click.option("--allow-host", multiple=True, metavar="NAME",
              help="A Host to answer to, beside this machine's; * for any.")  # fmt: skip
@click.option("--cors-origin", multiple=True, metavar="ORIGIN",
              help="Pages that may ask, as https://example.org; * for any.")  # fmt: skip
@click.option("--log-text", is_flag=True, help="Keep prompts and answers in the usage log.")
@click.option("--data", type=FOLDER, help="Where users, log and responses are kept.")
@click.option("--terms", type=FOLDER, help="Terms and patterns to refuse, a file.")
@click.option("--policy", type=FOLDER, help="What to refuse, in words, a file.")
@click.option("--policy-package", type=FOLDER, help="The package that judges by --policy.")
@threads_option
def serve(**options: Any) -> None:
    """Serve PACKAGE, or a folder of packages, to OpenAI clients.

    \b
    gptoss serve build/demo-cpu-int4
    """
    from gptoss_onnx.assistant.serving import run

    _log_to_stderr()
    sys.setswitchinterval(_SWITCH)
    listening = _listen(options["host"], options["port"])
    with listening:
        run(listening, echo=click.echo, **options)


def _listen(host: str, port: int) -> socket.socket:
    """UserError where the address is taken, or none of this machine's."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(1024)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        why = error.strerror or str(error)
        raise UserError(f"cannot listen on {host}:{port}: {why}; take another --port") from error
    listening.setblocking(False)
    return listening


def _log_to_stderr() -> None:
    log = logging.getLogger("gptoss")
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
