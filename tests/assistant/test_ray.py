"""Two replicas of a package on a Ray cluster of this machine."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from httpx import Client
from prometheus_client.parser import text_string_to_metric_families
from ray import serve
from ray.util import list_named_actors

from gptoss_onnx.assistant.ray_serve import application
from gptoss_onnx.assistant.usage_log import UsageLog
from tests.assistant import batch_lines
from tests.assistant.asking import CHAT, body, chunks
from tests.assistant.conftest import MODEL, Serve
from tests.assistant.running import until

pytestmark = pytest.mark.slow  # half a minute, and processes of its own

TEXTS = [f"{i}" * 300 for i in range(8)]


@dataclass
class Cluster:
    address: str
    package: Path
    client: Client
    data: Path

    def ask(self, *turns: str, **others: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        content = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 8}
        answer = self.client.post(CHAT, json={**content, **others})
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def answered(self) -> Counter[str]:
        """Replies by replica."""
        return self._figures("gptoss_requests_total", endpoint=CHAT)

    def replicas(self) -> set[str]:
        """Those that have the package loaded."""
        return {*self._figures("gptoss_model_loaded").elements()}

    def _figures(self, name: str, **labels: str) -> Counter[str]:
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(self.client.get("/metrics").text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    found[sample.labels["replica"]] += int(sample.value)
        return found


@pytest.fixture(scope="module")
def cluster(package_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    data = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_TOKEN", os.urandom(32).hex())
        patch.setenv("GPTOSS_DATA", str(data))
        ray.init(
            num_cpus=3,  # in Ray's books: two replicas, and a batch beside them
            include_dashboard=False,
            object_store_memory=80 << 20,
            log_to_driver=False,
        )
        try:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            args = {"package": str(package_folder), "replicas": "2", "threads": "1"}
            serve.run(application(args), name="gptoss")
            with Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
                address = ray.get_runtime_context().gcs_address
                yield Cluster(address, package_folder, client, data)
        finally:
            serve.shutdown()
            ray.shutdown()


def test_answers_are_the_plain_servers(cluster: Cluster, serve: Serve) -> None:
    plain = serve()
    for text in TEXTS:
        content = body(text, temperature=0, max_tokens=20, logprobs=True)
        alone = plain.post(CHAT, json=content).json()
        answer = cluster.client.post(CHAT, json=content).json()
        assert answer["choices"] == alone["choices"]
        told = chunks(cluster.client.post(CHAT, json={**content, "stream": True}).text)
        said = "".join(e["choices"][0]["delta"].get("content", "") for e in told)
        assert said == alone["choices"][0]["message"]["content"]
    models = cluster.client.get("/v1/models").json()["data"]
    assert [model["id"] for model in models] == [MODEL]
    assert models[0]["loaded"], "before the first request"


def test_a_conversation_stays_where_its_beginning_is_cached(cluster: Cluster) -> None:
    used = set()
    for text in TEXTS:
        before = cluster.answered()
        turns = [text]
        for turn in range(3):
            answer = cluster.ask(*turns)
            usage = answer["usage"]
            if turn:  # all that was said before, the last tokens aside
                assert usage["prompt_tokens_details"]["cached_tokens"] > 500
            turns += [answer["choices"][0]["message"]["content"] or "-", f"And {turn}?"]
        (replica,) = (cluster.answered() - before).items()
        assert replica[1] == 3
        used.add(replica[0])
    assert len(used) == 2, "both are asked"


def test_what_is_wrong_is_told_as_by_the_plain_server(cluster: Cluster) -> None:
    client = cluster.client
    assert client.post(CHAT, content=b"{").status_code == 400
    assert client.post(CHAT, json={**body(), "model": "gpt-9"}).status_code == 404
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/completions").status_code == 405
    for answer in (
        client.get("/v1/models", headers={"host": "attacker.example"}),
        client.post(CHAT, json=body(), headers={"origin": "http://attacker.example"}),
    ):
        assert answer.status_code in (421, 403)
        assert answer.json()["error"]["code"] in ("host_not_allowed", "origin_not_allowed")


def test_whoever_leaves_ends_the_reply(cluster: Cluster) -> None:
    content = body("Go on.", temperature=0, max_tokens=1500, stream=True)
    with cluster.client.stream("POST", CHAT, json=content) as answer:
        next(answer.iter_lines())
        request_id = answer.headers["x-request-id"].split(",")[0]

    def reason() -> str | None:
        with UsageLog(cluster.data) as log:
            found = [entry for entry in log.entries() if entry.request_id == request_id]
        return found[0].finish_reason if found else None

    until(lambda: reason() is not None)
    assert reason() == "cancelled"


def test_a_batch_runs_on_the_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """It is killed in the middle, and goes on without what is answered."""
    names = [f"r{i}" for i in range(120)]
    lines = [batch_lines.request(name, name, max_tokens=40) for name in names]
    source = batch_lines.write(tmp_path / "in", [*lines, "{nonsense"])
    out = tmp_path / "out"
    command = (cluster.package, source, out, "--rows", 4, "--threads", 1, "--ray", cluster.address)
    killed = batch_lines.started(*command)
    while not out.exists() or out.read_bytes().count(b"\n") < 5:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    before = out.read_bytes()
    assert 5 <= before.count(b"\n") < 120
    again = batch_lines.started(*command)
    said, told = again.communicate(timeout=120)
    assert again.returncode == 1, told
    assert "121 answers" in said
    assert "1 of 121 answers" in told
    assert out.read_bytes().startswith(before[: before.rindex(b"\n") + 1])
    found = batch_lines.by_id(out)
    assert found.keys() == {*names, None}
    for name in names[::30]:
        alone = cluster.ask(name, max_tokens=40)
        assert found[name]["response"]["body"]["choices"] == alone["choices"]


def test_a_replica_that_dies_is_replaced(cluster: Cluster) -> None:
    before = cluster.answered()
    cluster.ask(TEXTS[0])
    (name,) = cluster.answered() - before
    (actor,) = (a for a in list_named_actors(all_namespaces=True) if name in a["name"])
    ray.kill(ray.get_actor(actor["name"], namespace=actor["namespace"]), no_restart=True)
    content = body(TEXTS[0], temperature=0, max_tokens=8)
    answer = cluster.client.post(CHAT, json=content)
    assert answer.status_code in (200, 503), answer.text  # it may have been on its way
    until(lambda: cluster.client.post(CHAT, json=content).status_code == 200)
    until(lambda: len(cluster.replicas()) == 2 and name not in cluster.replicas())
