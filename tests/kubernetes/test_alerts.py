"""The chart's alerts in Prometheus's own hands: each fires when it should, and not when all is well."""

from __future__ import annotations

import functools
import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.tools import kubernetes, kubernetes_checks
from tests.kubernetes.rendering import EVERYTHING, rendered, the

OF = 'namespace="ns",service="queue-peers"'
PODS = tuple(f"queue-{number}" for number in range(5))
# For so long each is looked at; a day is what certificates are counted in.
MINUTES = 45
STEPS = f"x{MINUTES * 4}"
DAY_S = 86_400

# For each alert: figures on which it fires, and those on which it does not. A figure is `name` or `name{labels}`; on "each" pod, or on the
# first. Values are promtool's: `a+bxN` goes up by b, N times.
Figures = dict[str, str]
EACH: dict[str, dict[str, Any]] = {
    "QuorumqNoLeader": {"fires": {"quorumq_leader": "0" + STEPS}, "quiet": {"quorumq_leader one": "1" + STEPS}},
    "QuorumqNodeNotReady": {
        "fires": {"quorumq_ready one": "0" + STEPS},
        # Ready again before two minutes are over.
        "quiet": {"quorumq_ready one": "1x20 0x6 1x200"},
        "of": "pod",
    },
    "QuorumqNodeMissing": {"fires": {"quorumq_ready one": "1" + STEPS}, "quiet": {"quorumq_ready": "1" + STEPS}},
    "QuorumqStateDiffers": {
        "fires": {"quorumq_members_differing one": "1" + STEPS},
        "quiet": {"quorumq_members_differing": "0" + STEPS, "quorumq_apart": "0" + STEPS},
        "of": "pod",
    },
    "QuorumqApplyErrors": {
        "fires": {"quorumq_apply_errors_total one": "0+1" + STEPS},
        "quiet": {"quorumq_apply_errors_total one": "7" + STEPS},
        "of": "pod",
    },
    "QuorumqNotWhole": {
        "fires": {"quorumq_whole one": "0" + STEPS},
        "quiet": {"quorumq_whole one": "0x20 1x160"},
        "of": "pod",
    },
    "QuorumqDiskFull": {
        "fires": {"quorumq_disk_full one": "1" + STEPS},
        "quiet": {"quorumq_disk_full one": "0" + STEPS},
        "of": "pod",
    },
    "QuorumqDiskFilling": {
        "fires": {
            "quorumq_disk_free_bytes one": "199" + STEPS,
            "quorumq_log_bytes one": "60" + STEPS,
            "quorumq_snapshot_bytes one": "40" + STEPS,
        },
        "quiet": {
            "quorumq_disk_free_bytes one": "201" + STEPS,
            "quorumq_log_bytes one": "60" + STEPS,
            "quorumq_snapshot_bytes one": "40" + STEPS,
        },
        "of": "pod",
    },
    "QuorumqDiskHangs": {
        "fires": {"quorumq_disk_waiting_seconds one": "2" + STEPS},
        "quiet": {"quorumq_disk_waiting_seconds one": "0.1" + STEPS, "quorumq_disk_hangs_total one": "3" + STEPS},
        "of": "pod",
    },
    "QuorumqSnapshotsFail": {
        "fires": {"quorumq_snapshot_failures_total one": "0+1" + STEPS},
        "quiet": {"quorumq_snapshot_failures_total one": "2" + STEPS},
        "of": "pod",
    },
    "QuorumqFollowerBehind": {
        "fires": {'quorumq_replication_lag_entries{peer="queue-1"} one': "20000" + STEPS},
        "quiet": {'quorumq_replication_lag_entries{peer="queue-1"} one': "20000x10 5x170"},
        "labels": {"namespace": "ns", "pod": "queue-0", "peer": "queue-1"},
    },
    "QuorumqLeadershipUnsteady": {
        "fires": {"quorumq_leader_changes_total one": "0+1" + STEPS},
        # A rolling restart of five nodes, some elections among it.
        "quiet": {"quorumq_leader_changes_total one": "0x100 1x5 2x5 3x5 4x5 5x60"},
    },
    "QuorumqClockOff": {
        "fires": {"quorumq_clock_offset_seconds one": "-2.5" + STEPS},
        "quiet": {"quorumq_clock_offset_seconds one": "1.5" + STEPS},
        "labels": {"namespace": "ns", "service": "queue-peers", "pod": "queue-0"},
    },
    "QuorumqLinkCut": {
        "fires": {"quorumq_peers_by_relay one": "1" + STEPS},
        # Whole again before five minutes are over.
        "quiet": {"quorumq_peers_by_relay one": "0x20 2x16 0x140"},
        "of": "pod",
    },
    "QuorumqIdempotencyLost": {
        "fires": {"quorumq_idempotency_lost_total one": "0+1" + STEPS},
        "quiet": {"quorumq_idempotency_lost_total one": "3" + STEPS},
    },
    "QuorumqLoopStalls": {
        "fires": {"quorumq_loop_stalls_total one": "0+1" + STEPS},
        "quiet": {"quorumq_loop_stalls_total one": "0x100 9x80"},
        "of": "pod",
    },
    "QuorumqConnectionsTurnedAway": {
        "fires": {'quorumq_http_turned_away_total{why="all"} one': "0+1" + STEPS},
        "quiet": {'quorumq_http_turned_away_total{why="all"} one': "4" + STEPS},
        "labels": {"namespace": "ns", "service": "queue-peers", "pod": "queue-0", "why": "all"},
    },
    "QuorumqCertificateEnds": {
        # The test's time begins at 0.
        "fires": {"quorumq_tls_certificate_end_seconds one": f"{6 * DAY_S}{STEPS}"},
        "quiet": {"quorumq_tls_certificate_end_seconds one": f"{8 * DAY_S}{STEPS}"},
        "of": "pod",
    },
    "QuorumqCertificateNotRenewed": {
        "fires": {"quorumq_tls_files_ok one": "0" + STEPS},
        # Half of a renewal.
        "quiet": {"quorumq_tls_files_ok one": "1x20 0x10 1x150"},
        "of": "pod",
    },
    "QuorumqJobsWait": {
        "fires": {'quorumq_queue_oldest_claimable_age_seconds{queue="mail"}': "901" + STEPS},
        "quiet": {'quorumq_queue_oldest_claimable_age_seconds{queue="mail"}': "899" + STEPS},
        "labels": {"namespace": "ns", "queue": "mail"},
    },
    "QuorumqDeadLetters": {
        "fires": {"bunqueue_jobs_failed_total": "0+1" + STEPS, "bunqueue_jobs_dlq": "5" + STEPS},
        "quiet": {"bunqueue_jobs_failed_total": "5" + STEPS, "bunqueue_jobs_dlq": "5" + STEPS},
    },
}


@functools.cache
def promtool() -> str | kubernetes.Unavailable:
    try:
        return str(kubernetes_checks.promtool())
    except kubernetes.Unavailable as error:
        return error


def run(*arguments: str) -> str:
    found = promtool()
    if isinstance(found, kubernetes.Unavailable):
        pytest.skip(str(found))
    done = subprocess.run([found, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> dict[str, Any]:
    found = the("PrometheusRule", rendered(values=EVERYTHING))["spec"]
    assert isinstance(found, dict)
    return found


def series(figures: Figures) -> list[dict[str, str]]:
    """What Prometheus would have scraped: of every pod, or of the first."""
    made = []
    for figure, values in figures.items():
        name, _, which = figure.partition(" ")
        bare, _, labels = name.partition("{")
        own = "," + labels.rstrip("}") if labels else ""
        pods = PODS[:1] if which == "one" else PODS
        made += [{"series": f'{bare}{{{OF},pod="{pod}"{own}}}', "values": values} for pod in pods]
    return made


def expected(rule: dict[str, Any], case: dict[str, Any]) -> dict[str, Any]:
    """What promtool has to find: labels, and the summary with them in it."""
    labels: dict[str, str] = dict(case.get("labels", {}))
    if case.get("of") == "pod":
        labels = {"namespace": "ns", "service": "queue-peers", "pod": "queue-0"}
    summary = re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda found: labels[found[1]], rule["annotations"]["summary"])
    return {"exp_labels": {**labels, **rule["labels"]}, "exp_annotations": {"summary": summary}}


def of(alert: str, figures: Figures, found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "interval": "15s",
        "input_series": series(figures),
        "alert_rule_test": [{"eval_time": f"{MINUTES - 5}m", "alertname": alert, "exp_alerts": found}],
    }


def test_the_rules_are_what_prometheus_takes(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(rules()), "utf-8")
    said = run("check", "rules", str(file))
    assert f"{len(EACH) + 1} rules found" in said


def test_every_alert_has_a_case() -> None:
    assert set(EACH) == {one["alert"] for group in rules()["groups"] for one in group["rules"]} - {"Mine"}


@pytest.mark.parametrize("alert", EACH)
def test_an_alert_fires_when_it_should_and_not_when_all_is_well(alert: str, tmp_path: Path) -> None:
    case = EACH[alert]
    (rule,) = [one for group in rules()["groups"] for one in group["rules"] if one["alert"] == alert]
    (tmp_path / "rules.json").write_text(json.dumps(rules()), "utf-8")
    tests = [of(alert, case["fires"], [expected(rule, case)]), of(alert, case["quiet"], [])]
    if alert not in ("QuorumqNoLeader", "QuorumqNodeMissing"):
        # Figures of another release are another release's; that none are there is what those two are for.
        others = [{**one, "series": one["series"].replace("queue-peers", "other")} for one in series(case["fires"])]
        tests.append({**of(alert, {}, []), "input_series": others})
    file = tmp_path / "tests.json"
    document = {"rule_files": ["rules.json"], "evaluation_interval": "15s", "tests": tests}
    file.write_text(json.dumps(document), "utf-8")
    run("test", "rules", str(file))


def test_nothing_scraped_is_no_leader_and_no_node(tmp_path: Path) -> None:
    (tmp_path / "rules.json").write_text(json.dumps(rules()), "utf-8")
    tests = []
    for alert in ("QuorumqNoLeader", "QuorumqNodeMissing"):
        (rule,) = [one for group in rules()["groups"] for one in group["rules"] if one["alert"] == alert]
        tests.append(of(alert, {"up": "1" + STEPS}, [expected(rule, EACH[alert])]))
    file = tmp_path / "tests.json"
    file.write_text(json.dumps({"rule_files": ["rules.json"], "evaluation_interval": "15s", "tests": tests}), "utf-8")
    run("test", "rules", str(file))
