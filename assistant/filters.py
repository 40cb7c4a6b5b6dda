"""The content filters of a server: a list of terms, a policy, or both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gptoss_onnx.assistant.policy_filter import PolicyFilter as PolicyFilter
from gptoss_onnx.assistant.term_filter import TermFilter as TermFilter
from gptoss_onnx.runtimes.content_filter import ContentFilter, Kind, Review, Reviewer
from gptoss_onnx.runtimes.errors import UserError
from gptoss_onnx.runtimes.package import Package


class Filters:
    """Several as one: what each of them clears, until the first of them blocks."""

    def __init__(self, filters: Sequence[ContentFilter]) -> None:
        self._filters = tuple(filters)

    @property
    def slow(self) -> bool:
        return any(each.slow for each in self._filters)

    def begin(self, kind: Kind) -> Reviewer:
        return _Reviewers([each.begin(kind) for each in self._filters])


class _Reviewers:
    def __init__(self, reviewers: Sequence[Reviewer]) -> None:
        self._reviewers = reviewers
        self._size = 0

    def feed(self, text: str) -> Review:
        self._size += len(text)
        cleared = self._size
        for reviewer in self._reviewers:
            review = reviewer.feed(text)
            if review.blocked is not None:
                return review
            cleared = min(cleared, review.cleared)
        return Review(cleared)

    def finish(self) -> Review:
        cleared = self._size
        for reviewer in self._reviewers:
            review = reviewer.finish()
            if review.blocked is not None:  # a policy need not judge what a list forbids
                return review
            cleared = min(cleared, review.cleared)
        return Review(cleared)


def load_filter(
    terms_file: Path | str | None = None,
    policy_package: Path | str | Package | None = None,
    policy_file: Path | str | None = None,
) -> ContentFilter | None:
    """What the files ask for, None where there is none; UserError for one that cannot be used."""
    if (policy_package is None) != (policy_file is None):
        raise UserError("a policy filter needs both: --policy FILE and --policy-package PACKAGE")
    filters: list[ContentFilter] = []
    if terms_file is not None:
        filters.append(TermFilter.read(terms_file))
    if policy_package is not None and policy_file is not None:
        if not isinstance(policy_package, Package):
            policy_package = Package.open(policy_package)
        filters.append(PolicyFilter(policy_package, _policy(Path(policy_file))))
    return Filters(filters) if len(filters) > 1 else next(iter(filters), None)


def _policy(path: Path) -> str:
    try:
        policy = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from error
    if not policy.strip():
        raise UserError(f"{path}: the policy is empty: write what is allowed and what is not")
    return policy
