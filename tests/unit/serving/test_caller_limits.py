"""The limits of a caller, and which caller a request counts for."""

from __future__ import annotations

import ipaddress

import pytest

from goatherd.serving.caller_limits import Rate, TokenBuckets, find_caller, parse_network


def test_a_bucket_fills_up_again_and_never_beyond_its_size() -> None:
    buckets = TokenBuckets(Rate(per_second=2, burst=3))
    assert [buckets.take("a", 100.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("b", 100.0) == 0
    assert buckets.take("a", 100.5) == 0
    assert [buckets.take("a", 10_000.0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert buckets.take("c", 1.0, 50) == 0, "more than the burst is the burst"
    assert buckets.take("c", 1.0, 50) == 1.5


def test_the_table_of_buckets_does_not_grow_without_end() -> None:
    buckets = TokenBuckets(Rate(per_second=1, burst=1), capacity=10)
    for number in range(1000):
        buckets.take(str(number), 1.0)
    assert len(buckets) == 10


TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("::1/128"))


@pytest.mark.parametrize(
    ("address", "forwarded", "expected"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.1", "192.0.2.1"),
        ("10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", "198.51.100.1, 10.2.2.2", "198.51.100.1"),
        ("10.1.1.1", "198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("10.1.1.1", "203.0.113.9, nonsense", "10.1.1.1"),
        ("10.1.1.1", "", "10.1.1.1"),
        ("::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8::1", "", "2001:db8::/64"),
        ("::ffff:192.0.2.7", "", "192.0.2.7"),
        ("::ffff:10.1.1.1", "198.51.100.1", "198.51.100.1"),
        ("10.1.1.1", "198.51.100.1, ::ffff:10.2.2.2", "198.51.100.1"),
        ("10.1.1.1", "203.0.113.9:49152", "203.0.113.9"),
        ("10.1.1.1", "203.0.113.9:49152, 10.2.2.2:50000", "203.0.113.9"),
        ("10.1.1.1", "203.000.113.009:49152, 010.002.002.000", "203.0.113.9"),
        ("10.1.1.1", "[2001:db8:1:2::3]:49152", "2001:db8:1:2::/64"),
        ("10.1.1.1", "[2001:db8:1:2::3]", "2001:db8:1:2::/64"),
        ("10.1.1.1", "[::ffff:203.0.113.9]:49152", "203.0.113.9"),
        ("10.1.1.1", "203.0.113.9:nonsense", "10.1.1.1"),
        ("fe80::1%eth0", "", "fe80::/64"),
        ("", "", ""),
    ],
)
def test_the_caller_is_who_the_nearest_trusted_proxy_says(address: str, forwarded: str, expected: str) -> None:
    assert find_caller(address, forwarded, TRUSTED) == expected


@pytest.mark.parametrize("address", ["10.1.1.1", "::ffff:10.1.1.1"])
def test_a_network_of_all_ipv6_addresses_has_the_ipv4_callers_of_a_listener_on_all_addresses(address: str) -> None:
    assert find_caller(address, "198.51.100.1, 2001:db8::1", (parse_network("::/0"),)) == "198.51.100.1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.0/8", "10.0.0.0/8"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("::ffff:10.0.0.1", "10.0.0.1/32"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("::/0", "::/0"),
    ],
)
def test_a_network_of_ipv4_addresses_can_be_written_as_ipv6(text: str, expected: str) -> None:
    assert str(parse_network(text)) == expected
