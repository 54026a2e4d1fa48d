"""The request limit of each client: the sliding window on its own, who a client is, and both over HTTP."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from quorumq.api import limits
from quorumq.api.limits import STEPS, Proxies, RequestLimit
from quorumq.api.settings.loading import load
from quorumq.api.settings.table import SettingError
from tests.api.conftest import Serve


class TestWindow:
    def test_so_many_and_no_more(self) -> None:
        limit = RequestLimit(3, 1000, 60_000)
        assert [limit.admit("a", 10.0) for _ in range(3)] == [0, 0, 0]
        assert limit.admit("a", 10.0) > 0
        assert limit.admit("b", 10.0) == 0

    def test_the_wait_it_names_is_enough(self) -> None:
        limit = RequestLimit(1, 1000, 60_000)
        assert limit.admit("a", 10.0) == 0
        wait = limit.admit("a", 10.3)
        assert 0.7 <= wait <= 0.7 + 2 / STEPS
        assert limit.admit("a", 10.3 + wait + 1e-9) == 0

    @given(st.integers(1, 8), st.lists(st.floats(0, 0.4), min_size=1, max_size=200))
    def test_no_window_ever_holds_more_than_the_limit(self, most: int, gaps: list[float]) -> None:
        limit = RequestLimit(most, 1000, 60_000)
        now, let_through = 100.0, []
        for gap in gaps:
            now += gap
            refused = limit.admit("a", now)
            inside = [at for at in let_through if at > now - 1.0]
            assert len(inside) < most or refused
            # And one that is refused is refused for a reason: a step more than the window is full.
            assert not refused or len([at for at in let_through if at > now - 1.0 - 2 / STEPS]) >= most
            if not refused:
                let_through.append(now)

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(limits, "CLIENTS_MAX", 10)
        limit = RequestLimit(1000, 1000, 60_000)
        for n in range(500):
            limit.admit("steady", 10 + n / 100)
            limit.admit(f"client-{n}", 10 + n / 100)
        assert len(limit.clients) == 10
        assert "steady" in limit.clients
        assert len(limit.clients["steady"].steps) <= STEPS + 1

    def test_silent_clients_are_forgotten(self) -> None:
        limit = RequestLimit(5, 1000, 2_000)
        limit.admit("a", 10.0)
        limit.admit("b", 13.0)
        assert list(limit.clients) == ["b"]


class Request:
    """As much of a request as says who sent it."""

    def __init__(self, remote: str | None, **headers: str) -> None:
        self.remote = remote
        self.headers = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})


@pytest.mark.parametrize(
    ("trusted", "remote", "headers", "client"),
    [
        # As documented: whatever the headers say, the first of them.
        (("*",), "10.0.0.9", {"X_Forwarded_For": "1.2.3.4, 5.6.7.8"}, "1.2.3.4"),
        (("*",), "10.0.0.9", {"X_Real_IP": "9.9.9.9"}, "9.9.9.9"),
        (("*",), "10.0.0.9", {"X_Real_IP": "9.9.9.9", "X_Forwarded_For": "1.2.3.4"}, "1.2.3.4"),
        (("*",), "10.0.0.9", {}, "10.0.0.9"),
        (("*",), None, {}, "unknown"),
        (("*",), "10.0.0.9", {"X_Forwarded_For": ","}, "10.0.0.9"),
        # With proxies named: only what they say, and of that the last address that is none of theirs.
        (("10.0.0.0/8",), "10.0.0.9", {"X_Forwarded_For": "6.6.6.6, 1.2.3.4, 10.1.1.1"}, "1.2.3.4"),
        (("10.0.0.0/8",), "8.8.8.8", {"X_Forwarded_For": "1.2.3.4"}, "8.8.8.8"),
        (("10.0.0.9", "::1"), "::1", {"X_Forwarded_For": "1.2.3.4"}, "1.2.3.4"),
        (("10.0.0.9",), "::ffff:10.0.0.9", {"X_Real_IP": "1.2.3.4"}, "1.2.3.4"),
        (("10.0.0.0/8",), "10.0.0.9", {"X_Forwarded_For": "10.2.2.2, 10.1.1.1"}, "10.2.2.2"),
        (("10.0.0.0/8",), "10.0.0.9", {"X_Forwarded_For": "rubbish"}, "rubbish"),
        (("none",), "10.0.0.9", {"X_Forwarded_For": "1.2.3.4"}, "10.0.0.9"),
    ],
)
def test_who_the_client_is(trusted: Any, remote: str | None, headers: dict[str, str], client: str) -> None:
    request: Any = Request(remote, **headers)
    assert Proxies(trusted).client_of(request) == client


def test_a_client_is_a_short_text() -> None:
    request: Any = Request("1.1.1.1", X_Forwarded_For="x" * 10_000)
    assert len(Proxies(["*"]).client_of(request)) == limits.CLIENT_CHARS_MAX


class TestSettings:
    @pytest.mark.parametrize(
        ("text", "value"), [("Infinity", None), ("infinity", None), ("0", 0), ("5", 5), ("", None)]
    )
    def test_the_documented_words(self, text: str, value: int | None) -> None:
        assert load({}, {"RATE_LIMIT_MAX_REQUESTS": text}).rate_limit_max_requests == value

    @pytest.mark.parametrize("text", ["-1", "many", "1.5"])
    def test_other_words(self, text: str) -> None:
        with pytest.raises(SettingError):
            load({}, {"RATE_LIMIT_MAX_REQUESTS": text})

    def test_infinity_is_for_what_has_no_bound(self) -> None:
        with pytest.raises(SettingError):
            load({}, {"HTTP_PORT": "Infinity"})

    def test_proxies_must_be_addresses(self) -> None:
        assert load({}, {"TRUSTED_PROXIES": "10.0.0.0/8, ::1"}).trusted_proxies == ("10.0.0.0/8", "::1")
        with pytest.raises(SettingError, match="TRUSTED_PROXIES"):
            load({}, {"TRUSTED_PROXIES": "example.com"})


class TestOverHttp:
    async def test_the_window_is_the_clients_own(self, serve: Serve) -> None:
        client = await serve(rate_limit_max_requests=3, rate_limit_window_ms=60_000)
        assert [(await client.get("/ping")).status for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = await client.get("/queues")
        assert refused.error == "Rate limit exceeded"
        assert 1 <= int(refused.headers["Retry-After"]) <= 61
        other = await client.get("/ping", headers={"X-Forwarded-For": "1.2.3.4, 5.6.7.8"})
        assert other.status == 200
        assert (await client.get("/ping", headers={"X-Real-IP": "9.9.9.9"})).status == 200

    async def test_it_ends(self, serve: Serve) -> None:
        client = await serve(rate_limit_max_requests=1, rate_limit_window_ms=60_000)
        assert (await client.get("/ping")).status == 200
        assert (await client.get("/ping")).status == 429
        limit = client.server.request_limit
        assert limit is not None
        # As if the window had passed.
        limit.clients.clear()
        assert (await client.get("/ping")).status == 200

    async def test_what_is_not_limited(self, serve: Serve) -> None:
        client = await serve(rate_limit_max_requests=1, rate_limit_window_ms=60_000, auth_tokens=("secret",))
        assert (await client.get("/nope")).status == 401
        # Decided before the token is looked at, and for paths that do not exist too.
        assert (await client.get("/ping")).status == 429
        assert (await client.get("/nope")).status == 429
        assert (await client.get("/queues/%zz/counts")).status == 429
        for path in ("/health", "/healthz", "/live", "/ready", "/livez", "/readyz", "/startupz"):
            assert (await client.get(path)).status == 200
        token = {"Authorization": "Bearer secret"}
        assert (await client.get("/heapstats", headers=token)).status == 200
        assert (await client.post("/gc", headers=token)).status == 200
        assert (await client.send("OPTIONS", "/ping")).status == 204

    @pytest.mark.parametrize("most", [0, None])
    async def test_none(self, serve: Serve, most: int | None) -> None:
        client = await serve(rate_limit_max_requests=most, rate_limit_window_ms=60_000)
        assert client.server.request_limit is None
        assert (await client.get("/ping")).status == 200
