"""The report: one HTML file without anything outside it, right about what is in it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from gptoss_onnx.cli import main
from gptoss_onnx.evaluation.compare import bits_per_weight, read, rows
from gptoss_onnx.evaluation.reference import Reference
from gptoss_onnx.evaluation.report import labelled, render, verdict
from gptoss_onnx.evaluation.results import record
from gptoss_onnx.export.model_card import measured
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.manifest import Manifest
from gptoss_onnx.runtimes.package import Package
from gptoss_onnx.runtimes.package_files import check_files
from gptoss_onnx.runtimes.package_update import update_files
from tests.conftest import DemoPackage

pytestmark = pytest.mark.usefixtures("keep_sigterm")
HOSTILE = '<script>alert("x")</script>&amp;\n'
VOID = {"meta", "br", "link", "img", "input", "hr"}


def figures(kld: float = 0.04, **changes: Any) -> dict[str, Any]:
    """An evaluation as report.json keeps it."""
    spread = [kld * 0.9, kld * 1.1]
    tail = {"median": kld / 9, "p90": 3 * kld, "p99": 9 * kld, "p99.9": 30 * kld, "max": 99 * kld}
    total = {
        "tokens": 16714,
        "kld": {"mean": kld, "ci": spread, **tail},
        "perplexity": {"package": 3.3, "reference": 3.2, "ratio": 1.0312, "ci": [1.02, 1.04]},
        "top1": {"mean": 0.9255, "ci": [0.9183, 0.9334]},
        "delta_p": {"rms": 0.025, "ci": [0.022, 0.029]},
    }
    choices = [[HOSTILE, 0.5], [" 的", 0.3], ["\n", 0.1]]
    token = {"kld": 5.5, "before": "a < b", "token": HOSTILE, "after": "</pre><b>"}
    token |= {"language": "zh", "channel": "final", "reference": choices, "package": choices}
    return {
        "source": {"name": "demo", "revision": None},
        "text": {"name": "held_out.jsonl", "sha256": "ab" * 32, "passages": 240, "tokens": 16714},
        "quant": "int4",
        "recipe": {"experts": "int4:32"},
        "method": "search",
        "size_bytes": 10_797_568,
        "all": total,
        "by_language": {"zh": total},
        "by_channel": {"final": total},
        "kld_histogram": {"edges": [-9, -6, -3, 0], "counts": [10, 20, 5]},
        "router_agreement": [
            {"layer": layer, "mean": 0.99 - layer / 100, "ci": [0.95, 0.999]} for layer in range(3)
        ],
        "worst_tokens": [token] * 10,
        **changes,
    }


GENERATION = {
    "questions": 100,
    "exact": {"package": 0.99, "reference": 1.0, "ci": [0.97, 1.0]},
    "parsed": {"package": 1.0, "reference": 1.0},
    "flips": {"mean": 0.01, "ci": [0.0, 0.03]},
}
SPEED = {
    "prefill_tokens_per_second": 3610.6,
    "decode_tokens_per_second": 1810.8,
    "load_seconds": 0.03,
    "machine": "<b>AMD</b>",
    "onnxruntime": "1.32.0",
}
SENSITIVITY = [
    {"what": what, "name": name, "kld": 0.01, "ci": [0.009, 0.011], "format": "int4:32"}
    for what, name in (("group", "experts"), ("group", "qkv"), ("layer", "layers.0"))
]
EVERYTHING = {"generation": GENERATION, "speed": SPEED, "sensitivity": SENSITIVITY}


class Page(HTMLParser):
    """What a browser would see: tags that are open and closed in order, ids, links and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []
        assert len(self.ids) == len(set(self.ids))
        # A namespace is a name, not an address.
        self.outside = re.findall(r"(?<!xmlns=\")(?<!xmlns:xlink=\")https?://[^\"\s]*", html)
        self.outside += [link for link in self.links if not link.startswith("#")]
        self.outside += re.findall(r"url\((?!#)[^)]*\)|@import", html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(("more", "drawn", "missing"), [(EVERYTHING, 4, 0), ({}, 3, 7)])
def test_one_file_holds_all_of_it(more: dict[str, Any], drawn: int, missing: int) -> None:
    others = [figures(0.001, package="better", quant="int8", **EVERYTHING)]
    page = Page(render("<i>mine</i>", figures(**more), others))
    assert page.tags.count("svg") == drawn
    assert page.outside == []
    assert not {"script", "link", "img", "iframe", "b>", "i"} & set(page.tags)
    assert page.text.lower().count("not measured") == missing
    assert page.text.count('alert("x")') == 10 * 3
    for said in ("0.036 – 0.044", "91.83% – 93.34%", "1.0312", "a < b", "␣的", "int8"):
        assert said in page.text


def test_the_page_is_seen_to_need_something_outside() -> None:
    outside = '<img src="a.png"><p style="background:url(b.png)">http://c.d</p>'
    assert len(Page(outside).outside) == 3


def test_the_verdict_does_not_round_up_to_all() -> None:
    total = figures()["all"]
    total["top1"]["mean"], total["perplexity"]["ratio"] = 0.99996, 0.95
    total["perplexity"]["ci"] = [0.94, 0.96]
    first = verdict(figures(all=total))[0]
    assert "99.996% of the source's first choices" in first
    assert "0.950 times as surprising" in first
    assert "not a gain" in first
    total["perplexity"] |= {"ratio": 1.001, "ci": [0.99, 1.01]}
    assert "may be chance" in verdict(figures(all=total))[0]


def test_packages_of_one_preset_have_their_own_names() -> None:
    names = ["a", "b", "c", "c"]
    methods = ["search", "search", "gptq", "rtn"]
    shown = labelled(
        [figures(package=n, method=m) for n, m in zip(names, methods, strict=True)]
        + [figures(package="d", quant="int8")]
    )
    assert [one["label"] for one in shown] == ["a", "b", "c (gptq)", "c (rtn)", "int8"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not on PATH")
def test_a_browser_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(render("mine", figures(**EVERYTHING), []), encoding="utf-8")
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    assert dom.count("<svg") == 4
    assert "<script" not in dom
    assert dom.count('class="token"') == 10


@pytest.fixture
def package(demo_package: DemoPackage, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_package("int4"), tmp_path / "int4"))


def evaluated(folder: Path, **changes: Any) -> Path:
    update_files(folder, {"report.json": json.dumps({"evaluation": figures(**changes)})})
    return folder


def test_a_new_package_says_that_nothing_was_measured(package: Path) -> None:
    page = Page((package / "report.html").read_text(encoding="utf-8"))
    assert page.outside == []
    assert "Nothing has been measured yet" in page.text
    assert "gptoss eval <this folder> --against" in page.text
    assert "report.html" in Manifest.load(package).files


def unmeasured(card: str) -> int:
    """Figures that nobody measured; the line on how the target was checked is none."""
    return sum(line.startswith("|") and "not measured" in line for line in card.splitlines())


def test_the_card_has_each_figure_once(package: Path) -> None:
    card = (package / "README.md").read_text(encoding="utf-8")
    first = measured(card, figures(0.5, **EVERYTHING))
    again = measured(first, figures(**EVERYTHING))
    assert again == measured(card, figures(**EVERYTHING))
    assert len(again.splitlines()) == len(card.splitlines())
    assert unmeasured(again) == 0
    assert unmeasured(measured(card, figures())) == 2
    assert "0.04 nats (0.036 to 0.044) over 16,714 tokens of held_out.jsonl" in again
    update_files(package, {"README.md": again})
    assert check_files(package) == []


def test_compare(package: Path, demo_package: DemoPackage, tmp_path: Path) -> None:
    evaluated(package, **EVERYTHING)
    other = evaluated(Path(shutil.copytree(package, tmp_path / "other")), kld=0.01)
    new, page = demo_package("int8"), tmp_path / "out" / "page.html"
    arguments = [str(package), str(other), str(new)]
    result = CliRunner().invoke(main, ["compare", *arguments, "--report", str(page)])
    assert result.exit_code == 0, result.output
    for said in ("92.55%", "0.036–0.044", "99.0%", "1,811", "not measured"):
        assert said in result.stdout
    (warning,) = result.stderr.splitlines()
    assert warning.startswith("Warning: int8: not measured; gptoss eval ")
    seen = Page(page.read_text(encoding="utf-8"))
    assert (seen.tags.count("svg"), seen.outside) == (1, [])
    answer = CliRunner().invoke(main, ["compare", *arguments, "--json"])
    kld = [
        one.get("all", {}).get("kld", {}).get("mean")
        for one in json.loads(answer.stdout)["packages"]
    ]
    assert kld == [0.04, 0.01, None]


def test_what_was_measured_otherwise_is_not_comparable(package: Path, tmp_path: Path) -> None:
    evaluated(package)
    text = {**figures()["text"], "sha256": "00"}
    for name, changes in (("text", {"text": text}), ("source", {"source": {"name": "x"}})):
        other = evaluated(Path(shutil.copytree(package, tmp_path / name)), **changes)
        assert read([package, other])[1] == [
            f"{name}: another {name} than int4's; their figures are not comparable"
        ]
    with pytest.raises(UserError, match="at least two"):
        read([package])


@pytest.mark.parametrize(
    "evaluation",
    [
        {"all": 1},
        {"all": {"kld": {"mean": 0.1, "ci": [0]}}},
        {"text": "held_out.jsonl"},
        {"source": None},
        {"size_bytes": "12"},
        {"speed": {"decode_tokens_per_second": 3}},
        {"router_agreement": []},
        {"generation": {"exact": {}}},
    ],
    ids=lambda evaluation: next(iter(evaluation)),
)
def test_a_report_of_another_shape_is_named(
    package: Path, tmp_path: Path, evaluation: dict[str, Any]
) -> None:
    """A package's report may be anyone's, or of another version."""
    evaluated(package)
    other = evaluated(Path(shutil.copytree(package, tmp_path / "other")), **evaluation)
    result = CliRunner().invoke(main, ["compare", str(package), str(other)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    (line,) = result.stderr.splitlines()
    assert "other/report.json: evaluation is not as this version writes it" in line


def test_bits_per_weight(demo_package: DemoPackage) -> None:
    found = {}
    for preset in ("fp32", "int8", "int4"):
        opened = Package.open(demo_package(preset))
        found[preset] = bits_per_weight(opened.manifest, opened.config)
    assert 32 <= found["fp32"] < 33  # the tables of the rotary embedding are no parameters
    assert 4.5 < found["int4"] < found["int8"] < 12
    assert (
        rows(read([demo_package("int4"), demo_package("int8")])[0])[0]["bits"]
        == f"{found['int4']:.2f}"
    )


def test_figures_killed_while_they_are_kept_leave_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next evaluation reads every file of figures beside its reference."""
    expected = cast(Reference, SimpleNamespace(results=tmp_path / "results"))
    write = Path.write_text

    def killed(path: Path, text: str, **options: Any) -> int:
        write(path, text[: len(text) // 2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        record(tmp_path / "demo-int4", figures(kv="float"), expected, None)
    assert list(expected.results.iterdir())
    assert not list(expected.results.glob("*.json"))
