"""Rate limit for guessing passwords: a few at once, then ever more slowly, by address. No gradio."""

import ipaddress
import math
from collections.abc import Callable

FREE_GUESSES = 5  # by one address, before it has to wait
FREE_GUESSES_BEHIND_PROXY = 50  # by all addresses that one proxy reports: it may report any
FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 900.0
SECONDS_UNTIL_FORGOTTEN = 3600.0
MOST_ADDRESSES = 10_000


class Brake:
    """Counts wrong passwords by address. A right one resets nothing: behind a proxy, others may share its address.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self._wrong: dict[str, tuple[int, float]] = {}  # by address: number in a row, time of the last

    def wait_seconds(self, address: str, free: int = FREE_GUESSES) -> int:
        """Return the seconds until an address may guess again; 0 if it may now."""
        count, last = self._wrong.get(address, (0, 0.0))
        if count < free:
            return 0
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(count - free, 30))
        return max(0, math.ceil(last + wait - self.clock()))

    def wrong(self, address: str) -> int:
        """Count a wrong password; return the number in a row."""
        now = self.clock()
        count, last = self._wrong.pop(address, (0, now))
        count = 1 if now - last > SECONDS_UNTIL_FORGOTTEN else count + 1
        self._wrong[address] = (count, now)
        if len(self._wrong) > MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]  # the address that last guessed longest ago
        return count


def network_of(address: str) -> str:
    """Return the address as the brake counts it: IPv6 by its /64 network, all of which one machine may use."""
    try:
        ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return "unknown"
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return str(getattr(ip, "ipv4_mapped", None) or ip)
