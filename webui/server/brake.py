"""How fast passwords may be guessed: a few at once, then ever more slowly, by the address that guesses. No gradio."""

import ipaddress
import math
from collections.abc import Callable

FREE_GUESSES = 5  # of one address, before it has to wait
FREE_GUESSES_BEHIND_PROXY = 50  # of all addresses that one proxy tells of: it may tell of any
FIRST_WAIT_SECONDS = 2.0
LONGEST_WAIT_SECONDS = 900.0
SECONDS_UNTIL_FORGOTTEN = 3600.0
MOST_ADDRESSES = 10_000


class Brake:
    """A right password between wrong ones changes nothing: behind a proxy both may come from one address.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]):
        self.clock = clock
        self._wrong: dict[str, tuple[int, float]] = {}  # by address: how many in a row, when the last was

    def wait_seconds(self, address: str, free: int = FREE_GUESSES) -> int:
        """Return how long it has to wait before it may guess again; 0 where it may."""
        count, last = self._wrong.get(address, (0, 0.0))
        if count < free:
            return 0
        wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2.0 ** min(count - free, 30))
        return max(0, math.ceil(last + wait - self.clock()))

    def wrong(self, address: str) -> int:
        """Counts a wrong password; returns how many there were in a row."""
        now = self.clock()
        count, last = self._wrong.pop(address, (0, now))
        count = 1 if now - last > SECONDS_UNTIL_FORGOTTEN else count + 1
        self._wrong[address] = (count, now)
        if len(self._wrong) > MOST_ADDRESSES:
            del self._wrong[next(iter(self._wrong))]  # who has not guessed for the longest time
        return count


def network_of(address: str) -> str:
    """The address as the brake counts it: of IPv6 the network of 64 bits, whose every address one machine may take."""
    try:
        ip = ipaddress.ip_address(address.strip("[]").partition("%")[0])
    except ValueError:
        return "unknown"
    if ip.version == 6 and ip.ipv4_mapped is None:
        return str(ipaddress.ip_network(f"{ip}/64", strict=False))
    return str(getattr(ip, "ipv4_mapped", None) or ip)
