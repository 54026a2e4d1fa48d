"""Which addresses webhooks may call."""

from __future__ import annotations

import ipaddress

import pytest

from quorumq.api.outgoing.egress import CallPolicy, check_url, literal, refused_address


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("", "Webhook URL is required"),
        ("notaurl", "Invalid URL format"),
        ("http://", "Invalid URL format"),
        ("http:///path", "Invalid URL format"),
        ("http://h:99999/", "Invalid URL format"),
        ("http://[::1", "Invalid URL format"),
        ("http://exa mple.com/", "Invalid URL format"),
        ("http://example.com\\@127.0.0.1/", "Invalid URL format"),
        ("http://example.com/\r\nX: y", "Invalid URL format"),
        ("http://" + "h" * 3000, "Invalid URL format"),
        ("ftp://x.com/", "Webhook URL must use http or https protocol"),
        ("file://host/etc/passwd", "Webhook URL must use http or https protocol"),
        ("http://localhost/x", "Webhook URL cannot point to localhost"),
        ("http://LOCALHOST./x", "Webhook URL cannot point to localhost"),
        ("http://a.localhost/x", "Webhook URL cannot point to localhost"),
        ("http://127.0.0.1/x", "Webhook URL cannot point to localhost"),
        ("http://user:pw@127.0.0.1/x", "Webhook URL cannot point to localhost"),
        ("http://2130706433/", "Webhook URL cannot point to localhost"),
        ("http://0x7f.1/", "Webhook URL cannot point to localhost"),
        ("http://[::1]/", "Webhook URL cannot point to localhost"),
        ("http://127.0.0.2/", "Webhook URL cannot point to loopback IP"),
        ("http://[::ffff:127.0.0.1]/", "Webhook URL cannot point to loopback IP"),
        ("http://10.0.0.1/", "Webhook URL cannot point to private IP"),
        ("http://192.168.1.1/", "Webhook URL cannot point to private IP"),
        ("http://172.16.0.1", "Webhook URL cannot point to private IP"),
        ("http://[fd00::1]/", "Webhook URL cannot point to private IP"),
        ("http://169.254.169.254/", "Webhook URL cannot point to link-local IP"),
        ("http://[fe80::1]/", "Webhook URL cannot point to link-local IP"),
        ("http://0.0.0.0/", "Webhook URL cannot point to unspecified IP"),
        ("http://0.1.2.3/", "Webhook URL cannot point to unspecified IP"),
        ("http://[::]/", "Webhook URL cannot point to unspecified IP"),
        ("http://224.0.0.1/", "Webhook URL cannot point to multicast IP"),
        ("http://100.64.0.1/", "Webhook URL cannot point to reserved IP"),
        ("http://metadata.google.internal/", "Webhook URL cannot point to cloud metadata endpoints"),
        ("http://metadata.goog/", "Webhook URL cannot point to cloud metadata endpoints"),
        ("http://instance-data/", "Webhook URL cannot point to cloud metadata endpoints"),
        ("http://168.63.129.16/", "Webhook URL cannot point to cloud metadata IP"),
        ("http://192.0.0.192/", "Webhook URL cannot point to cloud metadata IP"),
        ("http://ip6-localhost/", "Webhook URL cannot point to localhost"),
        ("http://localhost.localdomain/", "Webhook URL cannot point to localhost"),
        ("http://%6c%6f%63alhost/", "Webhook URL cannot point to localhost"),
        ("http://%31%32%37.0.0.1/", "Webhook URL cannot point to localhost"),
        # Digits in circles, dots of another script.
        ("http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/", "Webhook URL cannot point to localhost"),
        ("http://127\u30020\u30020\u30021/", "Webhook URL cannot point to localhost"),
        ("http://loc\u00adalhost/", "Invalid URL format"),
        ("file:///etc/passwd", "Webhook URL must use http or https protocol"),
        ("javascript:alert(1)", "Webhook URL must use http or https protocol"),
        ("//example.com/x", "Invalid URL format"),
        ("http://example.com:8080/a?b=c#d", "Webhook URL must use https protocol"),
        ("HTTP://8.8.8.8/", "Webhook URL must use https protocol"),
        ("http://[2606:4700::1111]/", "Webhook URL must use https protocol"),
    ],
)
def test_what_is_refused(url: str, text: str) -> None:
    assert check_url(url) == text


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/",
        "https://example.com:8080/a?b=c#d",
        "https://8.8.8.8/",
        "https://[2606:4700::1111]/",
        "HTTPS://EXAMPLE.COM./x",
        "https://b\u00fccher.example/",
        "https://under_score.example/",
    ],
)
def test_what_is_taken(url: str) -> None:
    assert check_url(url) is None


def test_private_addresses_can_be_allowed_but_not_other_protocols() -> None:
    assert check_url("http://127.0.0.1:1/", allow_private=True) is None
    assert check_url("http://example.com/", allow_private=True) is None
    assert check_url("ftp://127.0.0.1/", allow_private=True) is not None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("64:ff9b::a00:1", "private"),
        ("2002:7f00:1::", "loopback"),
        ("::7f00:1", "loopback"),
        ("fe80::1%eth0", "link-local"),
        ("240.0.0.1", "private"),
        ("nonsense", "unknown"),
        ("8.8.8.8", None),
        ("64:ff9b::808:808", None),
        ("::ffff:0:127.0.0.1", "loopback"),
        ("64:ff9b:1::7f00:1", "reserved"),
        ("5f00::1", "reserved"),
        ("2606:4700:4700::1111", None),
        ("192.0.0.9", "reserved"),
        ("192.0.0.192", "cloud metadata"),
        ("168.63.129.16", "cloud metadata"),
        ("::ffff:168.63.129.16", "cloud metadata"),
    ],
)
def test_addresses_behind_addresses(address: str, kind: str | None) -> None:
    assert refused_address(address) == kind


def test_names_are_no_addresses() -> None:
    assert literal("example.com") is None
    assert literal("1.example") is None


# -- Push workers

METADATA = ("169.254.169.254", "169.254.0.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "192.0.0.192")


@pytest.mark.parametrize("address", [*METADATA, "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::"])
@pytest.mark.parametrize("words", [("any",), ("public",), ("0.0.0.0/0", "::/0"), ("metadata.test",)])
def test_push_workers_never_call_cloud_metadata(words: tuple[str, ...], address: str) -> None:
    policy = CallPolicy(words)
    assert policy.refused("metadata.test", ipaddress.ip_address(address)) == "cloud metadata"
    host = f"{address}" if "." in address and ":" not in address else address
    assert policy.refused_host(host) == "cloud metadata"
    for name in ("metadata", "METADATA.google.internal.", "instance-data"):
        assert policy.refused_host(name) == "cloud metadata"


@pytest.mark.parametrize(
    ("words", "host", "address", "reason"),
    [
        (("any",), "h", "10.0.0.1", None),
        (("any",), "h", "127.0.0.1", None),
        (("public",), "h", "93.184.216.34", None),
        (("public",), "h", "2606:2800:220:1::1", None),
        (("public",), "h", "10.0.0.1", "private"),
        (("public",), "h", "::1", "loopback"),
        (("public",), "h", "::ffff:10.0.0.1", "private"),
        (("public", "10.1.0.0/16"), "h", "10.1.2.3", None),
        (("public", "10.1.0.0/16"), "h", "::ffff:10.1.2.3", None),
        (("public", "10.1.0.0/16"), "h", "10.2.0.1", "private"),
        (("10.1.2.3",), "h", "10.1.2.3", None),
        (("10.1.2.3",), "h", "93.184.216.34", "not allowed"),
        (("fd12::/16",), "h", "fd12::5", None),
        (("Workers.test.",), "workers.TEST", "10.0.0.1", None),
        (("workers.test",), "a.workers.test", "10.0.0.1", "private"),
        ((".workers.test",), "a.b.workers.test", "10.0.0.1", None),
        ((".workers.test",), "workers.test", "10.0.0.1", "private"),
        ((".workers.test",), "evilworkers.test", "10.0.0.1", "private"),
        ((), "h", "93.184.216.34", "not allowed"),
    ],
)
def test_the_setting_says_what_push_workers_may_call(
    words: tuple[str, ...], host: str, address: str, reason: str | None
) -> None:
    assert CallPolicy(words).refused(host, ipaddress.ip_address(address)) == reason


def test_hosts_are_refused_early_where_that_can_be_told() -> None:
    assert CallPolicy(["public"]).refused_host("127.1") == "loopback"
    assert CallPolicy(["public"]).refused_host("some.name") is None
    assert CallPolicy(["some.name"]).refused_host("other.name") == "not allowed"
    # A name may lead into a network that is allowed: that shows when it is looked up.
    assert CallPolicy(["10.0.0.0/8"]).refused_host("other.name") is None


@pytest.mark.parametrize("word", ["", "10.0.0.0/40", "http://h/", "a b", "-x", "*", "h:80"])
def test_words_that_mean_nothing_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is none of any, public"):
        CallPolicy([word])
