"""Which of this host's addresses a rank listens on: one, chosen here, and never all of them."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import struct
import sys
from collections.abc import Sequence

__all__ = ["LOOPBACK", "choose_address", "choose_addresses", "is_loopback"]

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915


def choose_address(wanted: str | None, head: str | None) -> str:
    """The numeric address to listen on, for a rank that other hosts must reach.

    wanted   an address or the name of a network interface, as the user gave it; it decides when it is given
             head     the job's first host as the launcher names it: the address from which this host would
             reach it. When that
             is a loopback address (this host is the head), or without a head: the first interface that is not
             loopback and has an IPv4 address, and 127.0.0.1 when there is none.

    Raises ValueError when `wanted` is neither, or means every address.
    """
    if wanted is not None:
        return _checked(wanted)
    towards = _source_address(head) if head else None
    if towards is not None and not is_loopback(towards):
        return towards
    for address in _interface_addresses().values():
        if not is_loopback(address):
            return address
    return LOOPBACK


def choose_addresses(wanted: str | Sequence[str] | None, head: str | None) -> tuple[str, ...]:
    """The numeric addresses to listen on: those wanted, separated by commas or in a sequence, or the one chosen.

    Raises ValueError as `choose_address` does, and when one is there twice.
    """
    if wanted is None:
        return (choose_address(None, head),)
    names = wanted.split(",") if isinstance(wanted, str) else wanted
    addresses = tuple(choose_address(name.strip(), head) for name in names)
    if not addresses or len({*addresses}) < len(addresses):
        raise ValueError(f"address={wanted!r} must name one or more addresses, each once: {', '.join(addresses)}")
    return addresses


def is_loopback(address: str) -> bool:
    """Whether only this host can reach that numeric address."""
    return ipaddress.ip_address(address).is_loopback


def _checked(wanted: str) -> str:
    interfaces = _interface_addresses()
    if wanted in interfaces:
        return interfaces[wanted]
    try:
        address = ipaddress.ip_address(wanted)
    except ValueError:
        known = ", ".join(f"{name} ({address})" for name, address in interfaces.items()) or "none with IPv4"
        raise ValueError(
            f"address {wanted!r} is neither a numeric address nor a network interface of this host: {known}"
        ) from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"address {wanted!r} does not name one interface; give the address that others can reach")
    return str(address)


def _source_address(host: str) -> str | None:
    # Connecting a datagram socket sends nothing; it asks the kernel for the route.
    with contextlib.suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as sock:
                sock.connect(address)
                return str(sock.getsockname()[0])
    return None


def _interface_addresses() -> dict[str, str]:
    """The IPv4 address of each network interface that has one, in the kernel's order."""
    if sys.platform != "linux":
        towards = _source_address("192.0.2.1")  # set aside for documentation: any address behind the default route
        return {"default": towards} if towards else {}
    import fcntl

    addresses: dict[str, str] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                addresses[name] = socket.inet_ntoa(answer[20:24])
    return addresses
