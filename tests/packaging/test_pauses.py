"""What scripts/failover makes of the logs: where a pause went, and why."""

from __future__ import annotations

from pathlib import Path

from scripts.tools.pauses import Machine, Pause, parts_of, said, table
from tests.support.local_cluster import LocalNode

LINES = [
    "+14 n2 INFO: lost the connection to n1",
    "+61 n2 INFO: asks who would vote for it in term 3: its leader n1 cut the connection or stepped down",
    "+361 n2 INFO: stands in term 3, 300 ms and 2 tries after it asked first",
    "+371 n2 INFO: leads in term 3",
    "+993 n2 WARNING: a write of the log took 619 ms",
    "+1001 n2 INFO: the first entry of term 3 is committed, 630 ms after its election",
]


def a_pause(ms: float, lines: list[str], **machine: float) -> Pause:
    counted = Machine({"n2": machine.pop("waited", 0.0), "n3": 0.0}, 0.0, **{"late_ms": 0.0, **machine})
    return Pause(7, ms, 80.0, parts_of(lines, ms), counted, [], lines)


def test_a_pause_is_cut_where_the_logs_say() -> None:
    pause = a_pause(1010, LINES)
    assert pause.parts == {"noticed": 14, "stood": 347, "led": 10, "committed": 630, "answered": 9}
    assert pause.why == "the disk stood still: 630 ms; n2: a write of the log took 619 ms"


def test_a_pause_without_an_election_says_so() -> None:
    pause = a_pause(700, LINES[4:5], sync_ms=650.0, waited=200.0)
    assert pause.why == (
        "the disk stood still: 700 ms; n2 waited 200 ms for a processor; "
        "another process's sync on the same disk took 650 ms; n2: a write of the log took 619 ms"
    )


def test_a_pause_of_nothing_but_a_write_says_so() -> None:
    assert a_pause(700, [], late_ms=650.0).why == (
        "no election, a later write took long: 700 ms; the client itself was 650 ms late"
    )


def test_the_table_tells_of_the_long_ones_only() -> None:
    text = table([a_pause(1010, LINES), *(a_pause(100, []) for _ in range(99))], 500)
    first, longest = text.splitlines()[1:3]
    assert first.split()[-5:] == ["80", "80", "80", "80", "0"]
    assert longest.split()[-5:] == ["100", "100", "1010", "1010", "1"]
    assert text.count("round 7: ") == 1 and LINES[3] in text


def test_lines_are_those_of_the_time_and_in_its_order(tmp_path: Path) -> None:
    nodes = [LocalNode(name, 1, 2, 3, tmp_path) for name in ("n1", "n2")]
    nodes[0].log.write_text(
        "2026-11-28T03:04:07.129Z INFO n1 quorumq.cluster: leads in term 1\n"
        "2026-11-28T03:04:07.213Z INFO n1 quorumq.audit: administered token=-\n"
        "2026-11-28T03:05:00.000Z INFO n1 quorumq.cluster: leads in term 2\nno line\n"
    )
    nodes[1].log.write_text("2026-11-28T03:04:07.100Z INFO n2 quorumq.peers: lost the connection to n3\n")
    began = 1795835047.0
    assert said(nodes, began, began + 1) == [
        "+100 n2 INFO: lost the connection to n3",
        "+129 n1 INFO: leads in term 1",
    ]
