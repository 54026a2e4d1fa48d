"""The report is one file that needs nothing from elsewhere, says what it has to say, and shows text of others as text."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from scripts.tools.chaos import page
from scripts.tools.chaos.episode import Checkpoint, Result, Sample
from scripts.tools.chaos.faults import KILL, Span
from scripts.tools.chaos.history import History
from scripts.tools.chaos.judge import judge
from tests.chaos.test_judge import story

VOID = {"meta", "br", "line", "rect", "path"}


class Balanced(HTMLParser):
    """Every element that begins ends, in its turn."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def rendered(*, broken: bool) -> str:
    told = story()
    if broken:
        told.pull("<b>", at=20)
    history = History()
    for request in told.requests:
        history.add(request)
    result = Result(
        verdict=judge(told.requests),
        spans=[Span(KILL, "kill -9 of n1", 2, 4, ["n1"])],
        samples=[Sample(0, "n1", 1, ["n1", "n2"]), Sample(2, None, 1, ["n2"]), Sample(4, "n2", 2, ["n2"])],
        checkpoints=[Checkpoint(3, True, "all hold abc"), Checkpoint(5, not broken, "differ")],
        troubles=["n1 ended <script>alert(1)</script>"] if broken else [],
    )
    result.faults[KILL] += 1
    return page.render(result, history, 7)


def parsed(text: str) -> str:
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return " ".join(parser.text)


def test_it_is_whole_and_needs_nothing_from_elsewhere() -> None:
    for broken in (False, True):
        text = rendered(broken=broken)
        parsed(text)
        assert not re.findall(r"""(?:src|href)=|url\(|@import|https?://""", text)
        assert "<script" not in text
        assert "prefers-color-scheme:dark" in text and "width=device-width" in text


def test_a_run_that_passed_says_so() -> None:
    text = parsed(rendered(broken=False))
    assert "Passed." in text and "violations" not in text
    for title in ("Throughput", "Latency", "Leader", "Faults", "Errors", "Verdict"):
        assert title in text


def test_a_violation_is_shown_with_its_history() -> None:
    html = rendered(broken=True)
    text = parsed(html)
    assert "2 violations" in text and "what ended for good did not stay so" in text
    assert "taken as j with <b>" in text and "acknowledged with a" in text
    assert 'class="culprit"' in html or "class=culprit" in html
    assert "n1 ended <script>" in text


def test_a_run_of_nothing_can_be_drawn() -> None:
    parsed(page.render(Result(), History(), 0))
