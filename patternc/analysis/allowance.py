"""How long and how large a numeric computation may become."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from patternc.relation import BudgetExceeded


class Unaffordable(BudgetExceeded):
    """A computation would take more time or memory than it is allowed."""


class Allowance:
    """A deadline, and the memory that is left.

    Args:
        seconds: from now on.
        memory: bytes of the arrays that are held at the same time.
    """

    def __init__(self, seconds: float, memory: int):
        self.seconds, self.memory = seconds, memory
        self._deadline = time.monotonic() + seconds
        self._held = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self._deadline - time.monotonic()

    @property
    def room(self) -> int:
        """Bytes that may still be held."""
        return self.memory - self._held

    @contextmanager
    def within(self, share: float) -> Iterator[None]:
        """Let what is enclosed take this share of the time that is left, and pass over its being unaffordable."""
        deadline = self._deadline
        self._deadline = min(deadline, time.monotonic() + share * self.left)
        try:
            yield
        except Unaffordable:
            pass
        finally:
            self._deadline = deadline

    def check(self) -> None:
        """Raises: Unaffordable: the time is over."""
        if self.left < 0:
            raise Unaffordable(f"it takes longer than {self.seconds:g} seconds")

    def fits(self, size: int) -> None:
        """Raises: Unaffordable: arrays of ``size`` bytes do not fit beside those that are held."""
        if size > self.room:
            raise Unaffordable(f"it needs more than {self.memory / (1 << 20):,.0f} MiB")

    def hold(self, size: int) -> None:
        """Count ``size`` bytes that stay until the end.

        Raises:
            Unaffordable: they do not fit, or the time is over.
        """
        self.check()
        self.fits(size)
        self._held += size
