"""Which network an IP address belongs to, so that no redirect leads from a public host into a private network."""

from __future__ import annotations

import ipaddress
from typing import Union

# A redirect may lead to the same scope as its source's, or to a wider one, which has a smaller number.
PUBLIC, PRIVATE, LINK_LOCAL, LOOPBACK = range(4)
SCOPE_NAMES = ("a public address", "a private address", "a link-local address", "an address of this machine")

# Listed, because ``is_private`` depends on the version of Python. 198.18.0.0/15 is not among them: some local proxies
# answer every name with an address from there.
_PRIVATE = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7", "fec0::/10")
)
_THIS_HOST = ipaddress.ip_network("0.0.0.0/8")


def scope_of(address: str) -> int:
    """Return the scope of a numeric IP address, of either version; raises ValueError if it is not one."""
    ip: Union[ipaddress.IPv4Address, ipaddress.IPv6Address] = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        ip = ip.ipv4_mapped or ip.sixtofour or ip
    if ip.is_loopback or ip.is_unspecified or ip in _THIS_HOST:
        return LOOPBACK
    if ip.is_link_local:
        return LINK_LOCAL
    return PRIVATE if any(ip in network for network in _PRIVATE) else PUBLIC
