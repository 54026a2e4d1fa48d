"""The report as one HTML file: no script, nothing from elsewhere, light and dark as the reader's system has it, readable on a phone."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from scripts.tools.chaos import faults, model
from scripts.tools.chaos.drawing import Axis, Bar, bands, buckets, clock, columns, lines, quantile
from scripts.tools.chaos.history import DONE, FAILED, REFUSED, UNKNOWN, WRITES, History, Request
from scripts.tools.chaos.judge import Violation
from scripts.tools.chaos.model import Op

if TYPE_CHECKING:
    from scripts.tools.chaos.episode import Result, Sample

BUCKETS = 240
VIOLATIONS_SHOWN = 20
OPS_SHOWN = 80

STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1d2430;--soft:#5b6675;--line:#dfe4ea;--card:#f5f7f9;--good:#11734b;--bad:#b3261e;
--a:#1f6fd1;--b:#b8560b;--n1:#1f6fd1;--n2:#b8560b;--n3:#2a8a57;--n4:#8a4fbe;--none:#b3261e;--fault:#7a8696;--warn:#d99a00}
@media(prefers-color-scheme:dark){:root{--bg:#12161c;--fg:#e4e8ee;--soft:#98a3b3;--line:#2a323d;--card:#1a2029;--good:#4cc38a;
--bad:#ff7b72;--a:#62a8ff;--b:#ffa657;--n1:#62a8ff;--n2:#ffa657;--n3:#56d391;--n4:#c89bff;--none:#ff7b72;--fault:#8793a5;--warn:#e8b84a}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:16px}h1{font-size:1.5rem;margin:.3em 0}h2{font-size:1.15rem;margin:1.6em 0 .2em}
p{margin:.3em 0}.soft{color:var(--soft)}.verdict{border-left:6px solid var(--good);background:var(--card);padding:12px 16px;margin:12px 0}
.verdict.bad{border-color:var(--bad)}.verdict b{font-size:1.2rem}.tiles{display:grid;gap:10px;margin:12px 0;
grid-template-columns:repeat(auto-fit,minmax(140px,1fr))}.tiles div{background:var(--card);padding:8px 12px;border-radius:6px}
.tiles b{display:block;font-size:1.25rem}.tiles span{color:var(--soft);font-size:.85rem}.scroll{overflow-x:auto}
svg{display:block;width:100%;min-width:700px;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
.grid{stroke:var(--line)}.line{fill:none;stroke-width:1.6}.s0{stroke:var(--a)}.s1{stroke:var(--b)}.mark{stroke-dasharray:3 3}
.check{stroke:var(--good)}.differs{stroke:var(--bad)}.epoch{stroke:var(--fg);stroke-dasharray:none}.e0{fill:var(--warn)}.e1{fill:var(--bad)}
.fault{fill:var(--fault)}.none{fill:var(--none)}.n1{fill:var(--n1)}.n2{fill:var(--n2)}.n3{fill:var(--n3)}.n4{fill:var(--n4)}
.op{fill:var(--a)}.unknown{fill:var(--warn)}.refused{fill:var(--soft)}.culprit{fill:var(--bad)}
.key{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:.85rem;color:var(--soft)}.key i{display:inline-block;width:12px;height:12px;
border-radius:2px;margin-right:5px;vertical-align:-1px}table{border-collapse:collapse;width:100%;font-size:.88rem}
th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--line);vertical-align:top}td.num,th.num{text-align:right}
tr.culprit td{color:var(--bad);font-weight:600}pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--card);padding:10px;
font-size:.8rem}summary{cursor:pointer;margin:.6em 0}section{margin-bottom:8px}code{overflow-wrap:anywhere}
"""

HELP = """
<p>All charts share one axis: minutes and seconds since the run began. A green dashed line is a checkpoint at which all nodes held the
same, a red one a checkpoint at which they did not; a solid one is where another cluster begins. Each bar says
what it is when you rest on it.</p>
<p><b>Throughput</b> falls while there is no leader, and recovers; what it must not do is stay down in a calm. <b>Latency</b> is that of
requests that were answered, repeats included. <b>Leader</b> is who says so in the highest term that anybody knows. <b>Errors</b>: <i>not
done</i> was certainly not done; <i>unknown</i> may have been. Both are right while a fault lasts. What is never right is under
<b>Verdict</b>: a job's requests that cannot have happened one after the other, in any order that agrees with when they began and ended.
Its drawing has a bar for each request; red ones are those without which the rest could be explained.</p>
"""


def render(result: Result, history: History, seed: int) -> str:
    """The page of a run."""
    requests = [each for each in history.requests if each.op not in ("epoch", "leave", "list", "cron")]
    seconds = max(history.now(), 1.0)
    marks = [
        (each.at, "check" if each.equal else "differs", f"checkpoint at {clock(each.at)}: {each.text}")
        for each in result.checkpoints
    ]
    marks += [
        (each.start, "epoch", f"cluster {int(each.key) + 1} begins") for each in history.requests if each.op == "epoch"
    ]
    axis = Axis(seconds, marks)
    body = [
        f"<h1>Chaos, seed {seed}</h1>",
        verdict_box(result),
        tiles(result, requests, seconds),
        *charts(axis, result, requests),
        faults_table(result),
        verdict(result),
        f"<h2>How to read this page</h2>{HELP}",
        "<h2>In figures</h2>",
        "".join(f"<p>{escape(line)}</p>" for line in result.lines),
        checkpoints_table(result),
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Chaos, seed {seed}</title><style>{STYLE}</style></head>"
    )
    return f"{head}<body><main>{''.join(body)}</main></body></html>\n"


def verdict_box(result: Result) -> str:
    found = result.verdict
    wrong = len(found.violations) + len(result.troubles)
    if result.passed:
        text = f"<b>Passed.</b> {found.jobs:,} jobs, each explained by an order of its {found.ops:,} operations in all."
    else:
        text = f"<b>{wrong} violations</b>, {len(found.undecided)} jobs undecided, of {found.jobs:,} jobs."
    return f'<div class="verdict{"" if result.passed else " bad"}" role="status">{text}</div>'


def tiles(result: Result, requests: Sequence[Request], seconds: float) -> str:
    done = sum(each.op in WRITES and each.outcome == DONE for each in requests)
    unknown = sum(each.outcome == UNKNOWN for each in requests)
    equal = sum(each.equal for each in result.checkpoints)
    leaders = [each.leader for each in result.samples if each.leader]
    changes = sum(one != other for one, other in itertools.pairwise(leaders))
    figures = {
        "minutes": clock(seconds),
        "requests": f"{len(requests):,}",
        "acknowledged writes": f"{done:,}",
        "unknown outcomes": f"{unknown:,}",
        "faults": f"{result.faults.total():,}",
        "changes of leader seen": f"{changes:,}",
        "checkpoints equal": f"{equal} of {len(result.checkpoints)}",
        "undecided": f"{len(result.verdict.undecided):,}",
    }
    return f'<div class="tiles">{"".join(f"<div><b>{value}</b><span>{name}</span></div>" for name, value in figures.items())}</div>'


def chart(title: str, drawing: str, legend: Iterable[tuple[str, str]] = ()) -> str:
    keys = "".join(f'<span><i style="background:var(--{colour})"></i>{escape(name)}</span>' for name, colour in legend)
    return (
        f'<section><h2>{escape(title)}</h2><div class="key">{keys}</div>'
        f'<div class="scroll" tabindex="0">{drawing}</div></section>'
    )


def charts(axis: Axis, result: Result, requests: Sequence[Request]) -> list[str]:
    width_s = max(1.0, axis.seconds / BUCKETS)
    count = max(math.ceil(axis.seconds / width_s), 1)
    answered = [each for each in requests if each.outcome in (DONE, REFUSED)]
    writes = [each for each in answered if each.op in WRITES]

    def rate(of: Iterable[Request]) -> list[float | None]:
        return buckets(count, width_s, ((each.end, 1.0) for each in of), lambda values: len(values) / width_s)

    throughput = {"writes": rate(writes), "reads": rate(each for each in answered if each.op == "read")}
    took = [(each.end, 1000 * (each.end - each.start)) for each in writes]
    latency = {
        "half of them": buckets(count, width_s, took, quantile(0.5)),
        "99 of 100": buckets(count, width_s, took, quantile(0.99)),
    }
    errors = {
        name: [int(value or 0) for value in buckets(count, width_s, of, len)]
        for name, of in (
            ("not done", [(each.end, 1.0) for each in requests if each.outcome == FAILED]),
            ("unknown", [(each.end, 1.0) for each in requests if each.outcome == UNKNOWN]),
        )
    }
    rows: dict[str, list[Bar]] = defaultdict(list)
    for span in sorted(result.spans, key=lambda each: each.name):
        title = f"{clock(span.start)} to {clock(span.end)}: {span.text}"
        rows[short(span.name)].append(Bar(span.start, span.end, "fault", title))
    nodes = sorted({name for each in result.samples for name in each.ready})
    return [
        chart(
            "Throughput, requests a second",
            lines(axis, width_s, throughput, "throughput"),
            [("writes answered", "a"), ("reads answered", "b")],
        ),
        chart(
            "Latency of writes, milliseconds",
            lines(axis, width_s, latency, "latency", log=True),
            [("half of them took less", "a"), ("99 of 100 took less", "b")],
        ),
        chart(
            "Leader, and who was ready",
            bands(
                axis, {"leader": led(result.samples), **{name: ready(result.samples, name) for name in nodes}}, "leader"
            ),
            [*((name, name) for name in nodes), ("nobody leads", "none")],
        ),
        chart("Faults", bands(axis, rows, "faults", row_px=17)),
        chart(
            "Errors, requests",
            columns(axis, width_s, errors, "errors"),
            [("not done", "warn"), ("outcome unknown", "bad")],
        ),
    ]


def short(name: str) -> str:
    """A fault's name, fit for the margin."""
    return {faults.KILL_ALL: "kill all", faults.MEMBERS: "members", faults.ROLL: "roll"}.get(name, name)


def runs(samples: Sequence[Sample], of: Iterable[str | None]) -> list[tuple[float, float, str | None]]:
    """Put equal neighbours together."""
    found: list[tuple[float, float, str | None]] = []
    for each, value in zip(samples, of, strict=True):
        if found and found[-1][2] == value:
            found[-1] = found[-1][0], each.at, value
        else:
            if found:
                found[-1] = found[-1][0], each.at, found[-1][2]
            found.append((each.at, each.at, value))
    return found


def led(samples: Sequence[Sample]) -> list[Bar]:
    return [
        Bar(start, end, leader or "none", f"{clock(start)} to {clock(end)}: {leader or 'nobody'} leads")
        for start, end, leader in runs(samples, (each.leader for each in samples))
    ]


def ready(samples: Sequence[Sample], node: str) -> list[Bar]:
    return [
        Bar(start, end, node, f"{clock(start)} to {clock(end)}: {node} is ready")
        for start, end, is_ready in runs(samples, (node if node in each.ready else None for each in samples))
        if is_ready
    ]


def faults_table(result: Result) -> str:
    seconds: Counter[str] = Counter()
    for span in result.spans:
        seconds[span.name] += round(span.end - span.start)
    rows = "".join(
        f'<tr><td>{escape(name)}</td><td class="num">{result.faults[name]}</td><td class="num">{seconds[name]:,}</td>'
        f"<td>{escape(about)}</td></tr>"
        for name, about in faults.ABOUT.items()
        if result.faults[name]
    )
    left_out = [name for name in faults.ABOUT if not result.faults[name]]
    note = f'<p class="soft">Not inflicted: {escape(", ".join(left_out))}.</p>' if left_out else ""
    return (
        '<h2>What was done</h2><div class="scroll"><table><tr><th>fault</th><th class="num">times</th>'
        f'<th class="num">seconds</th><th>what it does</th></tr>{rows}</table></div>{note}'
    )


def verdict(result: Result) -> str:
    found = result.verdict
    parts = [
        "<h2>Verdict</h2>",
        f"<p>{found.jobs:,} jobs with {found.ops:,} operations were examined, {found.unknown:,} of them of unknown outcome; the "
        f"search looked at {found.steps:,} states and gave up with {len(found.undecided)} jobs. {found.events_compared:,} events "
        f"were compared between readers, {found.events_expected:,} were known from requests and looked for.</p>",
    ]
    kinds = Counter(each.kind for each in found.violations)
    if kinds:
        parts.append(
            "<ul>" + "".join(f"<li>{count} times {escape(kind)}</li>" for kind, count in kinds.items()) + "</ul>"
        )
    parts += [offending(each) for each in found.violations[:VIOLATIONS_SHOWN]]
    if len(found.violations) > VIOLATIONS_SHOWN:
        parts.append(f"<p>… and {len(found.violations) - VIOLATIONS_SHOWN} more.</p>")
    if found.undecided:
        parts.append(f"<p>Undecided: {escape(', '.join(found.undecided[:50]))}</p>")
    parts += [f"<pre>{escape(text)}</pre>" for text in result.troubles[:VIOLATIONS_SHOWN]]
    return "".join(parts)


def offending(violation: Violation) -> str:
    """A violation with its history: drawn, and as a table."""
    ops = violation.ops[:OPS_SHOWN]
    head = f"<h3>{escape(violation.text)}</h3>"
    if not ops:
        return head
    begin = min(op.start for op in ops)
    known = [op.end for op in ops if op.end < math.inf]
    length = max([*known, *(op.start for op in ops)]) - begin + 0.05
    rows = {
        f"#{op.request}" if op.request >= 0 else f"leave {number}": [
            Bar(op.start - begin, min(op.end - begin, length), style_of(op, violation), sentence(op))
        ]
        for number, op in enumerate(ops)
    }
    table = "".join(
        f"<tr{' class=culprit' if op.request in violation.culprits else ''}><td>{f'#{op.request}' if op.request >= 0 else ''}</td>"
        f'<td class="num">{op.start:.3f}</td><td class="num">{f"{op.end:.3f}" if op.end < math.inf else "?"}</td>'
        f"<td>{escape(sentence(op))}</td></tr>"
        for op in ops
    )
    return (
        f'{head}<div class="scroll" tabindex="0">{bands(Axis(length), rows, violation.text)}</div>'
        '<div class="scroll"><table><tr><th>request</th><th class="num">start, s</th><th class="num">end, s</th>'
        f"<th>what</th></tr>{table}</table></div>"
    )


def style_of(op: Op, violation: Violation) -> str:
    if op.request in violation.culprits and op.request >= 0:
        return "culprit"
    return {model.UNKNOWN: "unknown", model.REFUSED: "refused"}.get(op.outcome, "op")


def sentence(op: Op) -> str:
    """What a request was and came to, in words."""
    text = {
        model.PUSH: f"pushed as {op.job_id}{f', for {op.delay_s:g} s later' if op.delay_s else ''}",
        model.TAKE: f"taken as {op.job_id} with {op.token[:12]}… for {op.lock_s:g} s",
        model.LEAVE: f"given back with {op.token[:12]}…, its connection ended",
        model.ACK: f"acknowledged with {op.token[:12]}…, result {op.result}",
        model.FAIL: f"failed{' for good' if op.final else ''} with {op.token[:12]}…",
        model.EXTEND: f"extended with {op.token[:12]}… for {op.lock_s:g} s",
        model.READ: f"read: {op.seen}{f', result {op.result}' if op.result else ''}",
    }[op.kind]
    return text + {model.REFUSED: ": refused", model.UNKNOWN: ": unknown", model.DONE: ""}[op.outcome]


def checkpoints_table(result: Result) -> str:
    rows = "".join(
        f"<tr><td>{clock(each.at)}</td><td>{'equal' if each.equal else 'different'}</td><td><code>{escape(each.text)}</code></td></tr>"
        for each in result.checkpoints
    )
    return f"<details><summary>{len(result.checkpoints)} checkpoints</summary><div class=scroll><table>{rows}</table></div></details>"
