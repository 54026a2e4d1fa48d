"""The parts of the edge on their own: ids, the router, bounds as text, half surrogate pairs, the job object."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorumq.api import surrogates
from quorumq.api.dialects.bunqueue import job_object as render
from quorumq.api.dialects.bunqueue.dialect import Bunqueue
from quorumq.api.dialects.bunqueue.job_object import JobShown
from quorumq.api.errors import Invalid
from quorumq.api.ids import new_id, new_ids, new_token_seed
from quorumq.api.limits import describe
from quorumq.api.router import Router
from quorumq.node.machine.state import DEFAULT, Backoff, Job, Options, Repeat


class TestIds:
    def test_they_are_uuids_of_version_7_of_now(self) -> None:
        before = time.time_ns() // 1_000_000
        made = [uuid.UUID(text) for text in [new_id(), *new_ids(1), *new_ids(50)]]
        after = time.time_ns() // 1_000_000
        for one in made:
            assert (one.version, one.variant) == (7, uuid.RFC_4122)
            assert before <= one.int >> 80 <= after

    def test_those_of_a_bulk_rise(self) -> None:
        made = new_ids(1000)
        assert made == sorted(set(made))

    def test_they_differ(self) -> None:
        assert len({new_id() for _ in range(10_000)}) == 10_000
        assert new_token_seed() != new_token_seed()


class TestRouter:
    @pytest.mark.parametrize(
        ("method", "path", "route", "names"),
        [
            ("POST", "/queues/q/jobs/bulk", "/queues/{queue}/jobs/bulk", {"queue": "q"}),
            ("GET", "/jobs/custom/x", "/jobs/custom/{custom_id}", {"custom_id": "x"}),
            ("GET", "/jobs/custom/state", "/jobs/custom/{custom_id}", {"custom_id": "state"}),
            ("GET", "/jobs/custom", "/jobs/{id}", {"id": "custom"}),
            ("POST", "/jobs/custom/ack", "/jobs/{id}/ack", {"id": "custom"}),
            ("POST", "/jobs/ack-batch", "/jobs/ack-batch", {}),
            ("DELETE", "/jobs/ack-batch", "/jobs/{id}", {"id": "ack-batch"}),
            ("GET", "/queues/a%2fb/counts", "/queues/{queue}/counts", {"queue": "a/b"}),
            ("GET", "/jobs/a%2fb", "/jobs/{id}", {"id": "a%2fb"}),
        ],
    )
    def test_found(self, method: str, path: str, route: str, names: dict[str, str]) -> None:
        router = Router()
        router.mount(Bunqueue())
        found = router.find(method, path)
        assert found is not None
        assert (found[0].route.path, found[1]) == (route, names)

    def test_under_a_prefix(self) -> None:
        router = Router()
        router.mount(Bunqueue(), "/b")
        assert router.find("GET", "/b/queues") is not None
        assert router.find("GET", "/queues") is None

    def test_twice_is_a_mistake(self) -> None:
        router = Router()
        router.mount(Bunqueue())
        with pytest.raises(AssertionError, match="is there twice"):
            router.mount(Bunqueue())

    @pytest.mark.parametrize("name", ["%", "%1", "%zz", "%ff", "%c3%28"])
    def test_what_cannot_be_decoded(self, name: str) -> None:
        router = Router()
        router.mount(Bunqueue())
        with pytest.raises(Invalid):
            router.find("GET", f"/queues/{name}/counts")


@pytest.mark.parametrize(
    ("count", "text"), [(16 << 20, "16MB"), (1 << 10, "1KB"), (1500, "1500 bytes"), (0, "0 bytes")]
)
def test_bounds_as_people_write_them(count: int, text: str) -> None:
    assert describe(count) == text


class Opaque(msgspec.Struct):
    data: msgspec.Raw
    others: list[msgspec.Raw] = []


@given(
    st.text(alphabet=st.characters(categories=["Cs", "Ll", "So"]) | st.sampled_from('\\"/\n\ud83d\ude00'), max_size=20)
)
def test_half_pairs_survive_in_opaque_values(text: str) -> None:
    value = json.dumps(text).encode()
    body = b'{"data":%b,"others":[1,%b]}' % (value, value)
    covered = surrogates.cover(body)
    if covered is None:
        # Nothing to cover, so the decoder must take it as it is, unless it holds what the cover is made of.
        assert msgspec.json.decode(body, type=Opaque).data == msgspec.Raw(value)
        return
    found = msgspec.json.decode(covered[0], type=Opaque)
    assert surrogates.uncover(found) == covered[1]
    assert [bytes(raw) for raw in (found.data, found.others[1])] == [value, value]


def a_job(**fields: Any) -> Job:
    basics = {
        "id": new_id(),
        "queue": "q",
        "data": b'{"n":1}',
        "opts": DEFAULT,
        "state": "waiting",
        "seq": 1,
    }
    return Job(**{**basics, "order": 1, "created_at": 1_000, "run_at": 1_000, **fields})


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({}, {"backoff": 1000, "backoffConfig": None, "startedAt": None}),
        (
            {"opts": Options(backoff=Backoff("fixed", 2.5), ttl_ms=10.0, timeout_ms=1.5, tags=("a", 'q"'))},
            {"backoff": 2.5, "backoffConfig": {"type": "fixed", "delay": 2.5}, "ttl": 10, "timeout": 1.5, "tags": ["a", 'q"']},
        ),
        (
            {"opts": Options(repeat=Repeat(every_ms=200, limit=2, count=1))},
            {"repeat": {"every": 200, "limit": 2, "count": 1}},
        ),
        ({"opts": Options(repeat=Repeat(pattern="* * * * *", tz="UTC"))}, {"repeat": {"pattern": "* * * * *", "tz": "UTC", "count": 0}}),
        ({"id": 'a "b" ü\n', "custom": True}, {"id": 'a "b" ü\n', "customId": 'a "b" ü\n'}),
        ({"unique_key": "k", "group_id": "g"}, {"uniqueKey": "k", "groupId": "g", "customId": None}),
        ({"state": "active", "started_at": 1_500, "fence": 7}, {"fencingToken": 7, "startedAt": 1_500}),
        (
            {"state": "completed", "started_at": 1_500, "finished_at": 1_900, "result": b'{"r": 1.50}'},
            {"completedAt": 1_900, "progress": 100, "returnvalue": {"r": 1.5}},
        ),
        (
            {"state": "failed", "finished_at": 1_900, "error": 'bad "x"', "attempts": 3},
            {"completedAt": None, "failedReason": 'bad "x"', "attempts": 3},
        ),
        ({"progress": 12.5, "progress_message": "m"}, {"progress": 12.5, "progressMessage": "m"}),
    ],
)  # fmt: skip
def test_job_object(fields: dict[str, Any], shown: dict[str, Any]) -> None:
    text = render.full_text(a_job(**fields))
    msgspec.json.decode(text, type=JobShown, strict=True)
    job = json.loads(text)
    assert {name: job[name] for name in shown} == shown
    assert job["state"] == fields.get("state", "waiting")


def test_options_are_rendered_once_for_all_jobs_that_share_them() -> None:
    opts = Options(priority=3)
    assert render.options_text(opts) is render.options_text(opts)
    for priority in range(5000):
        render.options_text(Options(priority=priority))
    assert b'"priority":3,' in render.options_text(opts)
