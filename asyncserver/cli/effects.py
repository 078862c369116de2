"""What options need besides to have an effect: without that they are most likely a mistake."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_STREAMS, _DATAGRAMS = ("tcp", "unix"), ("udp", "unix_datagram")
_PORTS, _FILES = ("tcp", "udp"), ("unix", "unix_datagram")

_OF_PROXIES = ("trusted_proxies", "proxy_timeout")
_OF_CERTIFICATES = ("keyfile", "client_ca", "client_cert", "tls_min", "tls_groups", "ssl_handshake_timeout",
                    "keyfile_password_file", "alpn", "ciphers")  # fmt: skip

# Places, one of which is needed.
_PLACES: dict[str, Sequence[str]] = {
    **dict.fromkeys(["proxy_timeout", "certfile", *_OF_CERTIFICATES, "log_connections"], _STREAMS),
    **dict.fromkeys(["backlog", "max_connections", "max_connections_per_host", "idle_timeout", "max_unsent"], _STREAMS),
    **dict.fromkeys(["max_pending", "max_datagram_size"], _DATAGRAMS),
    "group": ("udp",),
    "keepalive": ("tcp",),
    "reuse_port": _PORTS,
    "unix_mode": _FILES,
}
# The form that one of them must have: an adopted socket has its options already.
_FORMS = {"reuse_port": ("host", "HOST:PORT"), "unix_mode": ("path", "a path")}
# What only the supervisor of workers does.
_OF_SUPERVISORS = ("stuck_timeout", "max_requests", "max_age")
# Other options.
_OTHERS = {
    **dict.fromkeys(_OF_CERTIFICATES, "certfile"),
    "client_cert": "client_ca",
    **dict.fromkeys(_OF_PROXIES, "proxy_protocol"),
}


def lacking(name: str, values: Mapping[str, Any]) -> str:
    """Say what else the option of this name needs to have an effect; "" if there is all."""
    wanted = _PLACES.get(name, _STREAMS + _DATAGRAMS)
    # Without any place it is the default address.
    served = {one for one in _STREAMS + _DATAGRAMS if values[one]} or {*_PORTS}
    flags = " or ".join(_flag(one) for one in wanted)
    if not {*wanted} & served:
        return flags
    form, shown = _FORMS.get(name, ("", ""))
    places = [place for one in wanted for place in values[one]]
    if name == "keepalive" and places and all("vsock" in place for place in places):
        return f"{flags} HOST:PORT"
    if form and places and not any(form in place for place in places):
        return f"{flags} {shown}"
    if name in _OF_SUPERVISORS and values["workers"] == 1 and values[name]:
        return "--workers 2 or more, or auto"
    other = _OTHERS.get(name)
    return _flag(other) if other is not None and not values[other] else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
