"""Addresses: read, format_address and grouped."""

from __future__ import annotations

from typing import Any

import pytest

from asyncserver.net.addresses import distinct_labels, format_address, host_group, parse_address, task_name


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9100", ("127.0.0.1", 9100)),
        ("[::1]:9100", ("::1", 9100)),
        (":9100", (None, 9100)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_place_is_host_and_port(text: str, place: tuple[str | None, int]) -> None:
    """IPv6 in brackets, and none for every interface."""
    assert parse_address(text) == place


@pytest.mark.parametrize("text", ["9100", "localhost", "localhost:http", "localhost:\u0661", "[::1]", ""])
def test_what_has_no_port_is_none(text: str) -> None:
    """And says what would be one."""
    with pytest.raises(ValueError, match="expected HOST:PORT"):
        parse_address(text)


def test_ipv6_without_brackets_says_what_to_write() -> None:
    """Its last group could be the port."""
    with pytest.raises(ValueError, match=r"in brackets, \[::1\]:9100; got '::1:9100'"):
        parse_address("::1:9100")


def test_addresses_are_written_as_people_do() -> None:
    """IPv4, IPv6, Unix sockets with and without a name."""
    assert format_address(("127.0.0.1", 80)) == "127.0.0.1:80"
    assert format_address(("::1", 80, 0, 0)) == "[::1]:80"
    assert format_address("/run/client.sock") == "/run/client.sock"
    assert format_address("") == format_address(None) == "unix"
    assert format_address(b"\0abstract") == "@abstract"
    assert format_address("forged\nline") == "'forged\\nline'"


def test_tasks_are_named_after_their_peers() -> None:
    """With what they are reached by."""
    assert task_name(("127.0.0.1", 80)) == "tcp 127.0.0.1:80"
    assert task_name(("::1", 80, 0, 0)) == "tcp [::1]:80"
    assert task_name(b"\0abstract") == "unix @abstract"
    assert task_name("") == "unix"


def test_servers_at_one_place_are_told_apart() -> None:
    """By their number among all."""
    assert distinct_labels(["tcp://a:1", "udp://a:1", "tcp://a:1"]) == ["tcp://a:1", "udp://a:1", "tcp://a:1#3"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        (("2001:db8:0:1::1", 1, 0, 0), ("2001:db8:0:1:ffff::2", 1, 0, 0), True),
        (("2001:db8:0:1::1", 1, 0, 0), ("2001:db8:0:2::1", 1, 0, 0), False),
        (("::ffff:192.0.2.1", 1, 0, 0), ("192.0.2.1", 1), True),
        (("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 1, 0, 0), False),
        (("fe80::1%eth0", 1, 0, 2), ("fe80::2%eth0", 1, 0, 2), False),
        (("::1", 1, 0, 0), ("::1", 2, 0, 0), True),
        ("", "/run/peer.sock", True),
        (b"\0name", "", True),
    ],
)
def test_whom_the_limit_per_host_takes_for_one(one: Any, other: Any, same: bool) -> None:
    """An IPv6 site has 2**64 addresses to come from, and is one; neighbours on a link are not."""
    assert (host_group(one) == host_group(other)) is same
