"""What an OpenAI-compatible server does for many clients at once, alone or beside another.

\b
    python benchmarks/server.py http://127.0.0.1:8000 --model demo
    ... --against http://127.0.0.1:8080 --against-model demo-q4     the two in turns, and ratios
    ... --follow-up --api chat --prompt-tokens 2000    the second turn's first token
    ... --arrival --clients 4 --new-tokens 400         what a prompt of 4,000 tokens does to others
    ... --soak 300 --clients 16 --api chat --pid PID   random hang-ups; answers are as when alone

Each request is new to the server (`--seed` repeats a run). Raw completions ask every server for
equally many tokens, where it knows `ignore_eos`; chats end when the model says so. llama-server
builds from the source distribution of llama-cpp-python (vendor/llama.cpp; `to_gguf.py` beside this
file makes its models) and runs with `--parallel 16 -c 73728 -t 2`.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import mean, median, quantiles

import click
from soak import soak
from streams import Answer, Call, Server, drive, read

# Each is one token in the demo's vocabulary and in o200k.
WORDS = """the a of to and in is for with that this object return value function name string list
file class type number data method module default path code read write set get time new first same
call error result key index size test process line text option argument message buffer user host
address server client thread event signal stream""".split()  # noqa: SIM905
Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    clients: int
    requests: int  # of each client, one after the other
    prompt_tokens: int
    new_tokens: int
    arrival_tokens: int
    chunk: int
    random: random.Random

    def words(self, count: int) -> str:
        return " ".join(self.random.choices(WORDS, k=count))


def throughput(server: Server, load: Load) -> Figures:
    """Clients that ask at once and again as soon as they are answered. Times in ms."""
    calls = [
        [server.call(load.words(load.prompt_tokens), load.new_tokens) for _ in range(load.requests)]
        for _ in range(load.clients)
    ]
    cpu, start = time.process_time(), time.perf_counter()
    drive([iter(of_client) for of_client in calls])
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    answers = [checked(call) for of_client in calls for call in of_client]
    gaps = [gap for answer in answers for gap in answer.gaps]
    new = sum(answer.new_tokens for answer in answers)
    a_piece = new / sum(len(answer.times) for answer in answers)
    return {
        "tokens/s": new / seconds,
        "decoding": load.clients * a_piece / median(gaps),  # tokens/s while no prompt comes
        **spread("first token", [answer.first_token for answer in answers]),
        **spread("gap", gaps),
        **spread("latency", [answer.call.ended - answer.call.started for answer in answers]),
        "prompt": mean(answer.prompt_tokens for answer in answers),
        "new": new / len(answers),
        "tokens a piece": a_piece,
        "client CPU, %": 100 * cpu / seconds,
    }


def follow_up(server: Server, load: Load) -> Figures:
    """A conversation of two turns: the second begins with all of the first."""
    question = load.words(load.prompt_tokens)
    first = alone(server.call(question, load.new_tokens))
    said, more = "".join(first.texts.values()), load.words(20)
    if server.api == "chat":
        turns = [("user", question), ("assistant", first.texts.get("content", "")), ("user", more)]
        chat = [{"role": role, "content": text} for role, text in turns]
        second = alone(server.call(chat, load.new_tokens))
    else:
        second = alone(server.call(f"{question}{said} {more}", load.new_tokens))
    return {
        "turn 1, ms": 1e3 * first.first_token,
        "turn 2, ms": 1e3 * second.first_token,
        "turn 2, % of turn 1": 100 * second.first_token / first.first_token,
        "prompt 1": first.prompt_tokens,
        "prompt 2": second.prompt_tokens,
        "of it reused": second.cached_tokens,
    }


def arrival(server: Server, load: Load) -> Figures:
    """A long prompt comes while `clients` streams run: what the others wait for their next token.

    One chunk's time is that of the prompt's last, the dearest: alone, with and without it.
    """
    prompts = (load.words(load.arrival_tokens - cut) for cut in (0, load.chunk))
    whole, shorter = (alone(server.call(prompt, 1)).first_token for prompt in prompts)
    calls = [
        server.call(load.words(load.prompt_tokens), load.new_tokens) for _ in range(load.clients)
    ]
    late = server.call(load.words(load.arrival_tokens), 1, waits_for=calls)
    drive([iter([call]) for call in (*calls, late)])
    came = late.started + checked(late).first_token
    streams = [checked(call) for call in calls]
    if any(call.ended < came for call in calls):
        raise click.ClickException("a stream ended before the arrival's first token: --new-tokens")
    steps = [pair for answer in streams for pair in zip(answer.times, answer.gaps, strict=False)]
    usual = [gap for at, gap in steps if at + gap < late.started]
    during = [gap for at, gap in steps if at + gap >= late.started and at <= came]
    chunk = whole - shorter
    return {
        "usual gap, ms": 1e3 * median(usual),
        "longest before, ms": 1e3 * max(usual),
        "longest during, ms": 1e3 * max(during),
        "median during, ms": 1e3 * median(during),
        "last chunk alone, ms": 1e3 * chunk,
        "delay, chunks": (max(during) - median(usual)) / chunk,
        "first token alone, ms": 1e3 * whole,
        "first token beside, ms": 1e3 * (came - late.started),
    }


def alone(call: Call) -> Answer:
    drive([iter([call])])
    return checked(call)


def checked(call: Call) -> Answer:
    answer = read(call)
    if answer.error or not answer.times or not answer.new_tokens:
        raise click.ClickException(f"no measurement: {answer.error or 'an empty answer'}")
    return answer


def spread(name: str, seconds: list[float]) -> Figures:
    if len(seconds) < 2:
        seconds = (seconds or [float("nan")]) * 2
    high = quantiles(seconds, n=20, method="inclusive")[-1]
    return {f"{name}, ms": 1e3 * median(seconds), f"{name} p95": 1e3 * high}


def in_turns(
    servers: list[Server], experiment: Callable[[Server, Load], Figures], load: Load, runs: int
) -> list[list[Figures]]:
    """[servers][runs]; who comes first changes with each run."""
    figures: list[list[Figures]] = [[] for _ in servers]
    for run in range(runs):
        order = list(enumerate(servers))
        for i, server in reversed(order) if run % 2 else order:
            figures[i].append(experiment(server, load))
    return figures


def table(title: str, servers: list[Server], figures: list[list[Figures]]) -> Iterator[str]:
    names = list(figures[0][0])
    medians = [{name: median(run[name] for run in runs) for name in names} for runs in figures]
    rows = {server.label: middle for server, middle in zip(servers, medians, strict=True)}
    if len(servers) == 2:
        ours, theirs = medians
        rows["ratio"] = {n: ours[n] / theirs[n] if theirs[n] else float("nan") for n in names}
    yield f"| {title} | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for row, values in rows.items():
        yield f"| {row} | " + " | ".join(f"{values[name]:.4g}" for name in names) + " |"
    yield ""


def gain(servers: list[Server], loads: dict[int, list[list[Figures]]]) -> Iterator[str]:
    fewest, *others = loads
    for i, server in enumerate(servers):
        for clients in others:
            times = [
                median(run[name] for run in loads[clients][i])
                / median(run[name] for run in loads[fewest][i])
                for name in ("tokens/s", "decoding")
            ]
            speed = f"{times[0]:.2f}x the tokens/s of {fewest}, decoding {times[1]:.2f}x"
            yield f"{server.label}: {clients} clients have {speed}"


@click.command(help=__doc__)
@click.argument("url")
@click.option("--model", required=True)
@click.option("--api", type=click.Choice(["completions", "chat"]), default="completions")
@click.option("--key", help="API key of both servers.")
@click.option("--against", metavar="URL", help="A second server, measured in turns.")
@click.option("--against-model")
@click.option("--clients", default="1,4,16", show_default=True)
@click.option("--requests", default=2, show_default=True, help="Of each client.")
@click.option("--prompt-tokens", default=100, show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--runs", default=3, show_default=True, help="Medians are of these.")
@click.option("--follow-up", "mode", flag_value="follow-up")
@click.option("--arrival", "mode", flag_value="arrival")
@click.option("--arrival-tokens", default=4000, show_default=True)
@click.option("--chunk", default=512, show_default=True, help="Prompt tokens of one prefill run.")
@click.option("--soak", "soak_seconds", type=float, help="Seconds.")
@click.option("--pid", type=int, help="The server's process, whose memory is followed.")
@click.option("--memory-slack", default=32, show_default=True, help="MiB it may grow in the soak.")
@click.option("--seed", default=lambda: random.randrange(10**6), type=int)
@click.option("--json", "as_json", is_flag=True)
def main(
    url: str,
    model: str,
    api: str,
    key: str | None,
    against: str | None,
    against_model: str | None,
    clients: str,
    requests: int,
    prompt_tokens: int,
    new_tokens: int,
    runs: int,
    mode: str | None,
    arrival_tokens: int,
    chunk: int,
    soak_seconds: float | None,
    pid: int | None,
    memory_slack: int,
    seed: int,
    as_json: bool,
) -> None:
    servers = [Server(url, model, api, key)]
    if against:
        servers.append(Server(against, against_model or model, api, key))
    counts = [int(count) for count in clients.split(",")]
    shuffled = random.Random(seed)
    load = Load(counts[0], requests, prompt_tokens, new_tokens, arrival_tokens, chunk, shuffled)
    print(f"seed {seed}", file=sys.stderr)
    if soak_seconds:
        report = soak(
            servers[0], max(counts), soak_seconds, new_tokens, shuffled, pid, memory_slack
        )
        print(json.dumps(report, indent=2, ensure_ascii=False))
        sys.exit(1 if report["failures"] else 0)
    for server in servers:
        alone(server.call(load.words(8), 8))  # whatever a first request costs, once
    done: dict[str, list[list[Figures]]] = {}
    if mode == "follow-up":
        done["follow-up"] = in_turns(servers, follow_up, load, runs)
    elif mode == "arrival":
        for count in counts:
            title = f"arrival beside {count}"
            done[title] = in_turns(servers, arrival, replace(load, clients=count), runs)
    else:
        loads = {
            count: in_turns(servers, throughput, replace(load, clients=count), runs)
            for count in counts
        }
        done = {f"{count} clients": figures for count, figures in loads.items()}
    if as_json:
        print(json.dumps({"seed": seed, "servers": [s.url for s in servers], "figures": done}))
        return
    for title, figures in done.items():
        print(*table(title, servers, figures), sep="\n")
    if mode is None:
        print(*gain(servers, loads), sep="\n")


if __name__ == "__main__":
    main()
