"""Listen addresses on the command line: any text is one or a usage error, and what is written is what is meant."""

from __future__ import annotations

import argparse
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncserver.cli.values import address

_SHAPED = st.from_regex(r"(\[?[a-z0-9:.%]{0,12}\]?|fd|systemd)(:[0-9a]{0,7})?", fullmatch=True)


@given(st.text(max_size=40) | _SHAPED)
def test_any_text_is_an_address_or_a_usage_error(text: str) -> None:
    """Nothing else is raised, and what is returned can be given to serve()."""
    try:
        found = address(text)
    except argparse.ArgumentTypeError as exc:
        assert repr(text) in str(exc)
        return
    assert set(found) in ({"host", "port"}, {"fd"}, {"systemd"})
    assert 0 <= found.get("port", 0) <= 65535
    assert found.get("fd", 0) >= 0


@given(st.ip_addresses(), st.integers(0, 65535))
def test_address_is_read_as_it_was_written(host: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> None:
    """IPv4 as it is, IPv6 in brackets; without brackets it is refused, since its last group could be the port."""
    shown = f"[{host}]" if host.version == 6 else str(host)
    assert address(f"{shown}:{port}") == {"host": str(host), "port": port}
    if host.version == 6:
        with pytest.raises(argparse.ArgumentTypeError, match="brackets"):
            address(f"{host}:{port}")


@given(st.integers(65536, 10**12))
def test_port_out_of_range_is_refused(port: int) -> None:
    """Before the system is asked."""
    with pytest.raises(argparse.ArgumentTypeError, match="65535"):
        address(f"127.0.0.1:{port}")
