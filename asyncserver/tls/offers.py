"""Which of several certificates a client gets: by the name it asks for and the keys it takes.

A context holds one certificate for each kind of key (RSA, ECDSA); OpenSSL sends one that the client
understands. So certificates for one name with keys of several kinds are offered by one context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .certificate import Certificate

#: Numbers of certificates, no two with keys of one kind: what one context offers.
Offer = tuple[int, ...]


def offers(given: Sequence[tuple[str, Certificate | None]]) -> tuple[Offer, dict[str, Offer]]:
    """Decide what to offer: to clients that ask for no name, or an unknown one; and for each name.

    Args:
        given: certificates with their files, the default first; None for one that no client can
            have by default, and that so is for no name.

    Raises:
        ValueError: one of them would never be sent.
    """
    certificates = [one for _, one in given]
    by_name: dict[str, Offer] = {}
    default: Offer = (0,)
    for number, one in enumerate(certificates):
        useful = number == 0
        for name in () if one is None else one.names:
            offer = by_name.get(name, ())
            if _adds(certificates, offer, number):
                by_name[name] = (*offer, number)
                useful = True
        if number and _covers(one, certificates[0]) and _adds(certificates, default, number):
            default = (*default, number)
            useful = True
        if not useful:
            raise ValueError(_useless(given, number, by_name))
    return default, by_name


def _adds(certificates: Sequence[Certificate | None], offer: Offer, number: int) -> bool:
    """Whether a certificate has a key of a kind that is not yet in the offer."""
    one, others = certificates[number], [certificates[other] for other in offer]
    return one is not None and all(other is not None and other.key != one.key for other in others)


def _covers(one: Certificate | None, first: Certificate | None) -> bool:
    """Whether a certificate is for all names and addresses of the first."""
    if one is None or first is None:
        return False
    wanted = {*first.names, *first.addresses}
    return bool(wanted) and wanted <= {*one.names, *one.addresses}


def _useless(given: Sequence[tuple[str, Certificate | None]], number: int, by_name: dict[str, Offer]) -> str:
    file, one = given[number]
    if one is None:
        return f"no client can have the certificate in {file}: OpenSSL's defaults rule out its key or curve"
    if not one.names:
        return f"no client can ask for the certificate in {file}: it is for no DNS name; give it first"
    kinds = {other.key: where for where, other in (given[earlier] for earlier in by_name[one.names[0]]) if other}
    return (
        f"no client would get the certificate in {file}: for {', '.join(one.names)} that in {kinds[one.key]} comes "
        "before it, with a key of the same kind (two for one name are of use with different kinds, RSA and ECDSA); "
        "leave one out"
    )
