"""Which network addresses are public, those that carry an IPv4 address inside included."""

from __future__ import annotations

import ipaddress
from ipaddress import IPv4Address, IPv6Address

# Prefixes whose last 32 bits are an IPv4 address that a gateway or the kernel leads to.
_LAST_32_BITS = tuple(
    map(ipaddress.IPv6Network, ("::/96", "::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
_ISATAP = (0x00005EFE, 0x02005EFE)
# Among them Teredo's, 2001::/32, which lead through any server to any client.
_NOT_PUBLIC = tuple(map(ipaddress.IPv6Network, ("64:ff9b:1::/48", "fec0::/10", "2001::/32", "100::/64", "5f00::/16")))
_RELAYS = ipaddress.IPv4Network("192.88.99.0/24")


def is_public(address: str) -> bool:
    """Whether an address may be connected to: not this machine, its networks, or a detour into them.

    Args:
        address: IPv4 or IPv6Address, with or without a zone.

    Raises:
        ValueError: it is no address.
    """
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, IPv4Address):
        return _is_plain_public(parsed) and parsed not in _RELAYS
    inner = _embedded(parsed)
    if inner and not all(map(is_public, map(str, inner))):
        return False
    if any(parsed in network for network in _LAST_32_BITS[:4]) and inner:
        return True  # where its IPv4 address is
    return _is_plain_public(parsed) and not any(parsed in network for network in _NOT_PUBLIC)


def _embedded(address: IPv6Address) -> list[IPv4Address]:
    """The IPv4 addresses inside, wherever they stand."""
    low = int(address) & 0xFFFFFFFF
    found = [IPv4Address(low)] if any(address in network for network in _LAST_32_BITS) else []
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(IPv4Address(low))
    return found


def _is_plain_public(address: IPv4Address | IPv6Address) -> bool:
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)
