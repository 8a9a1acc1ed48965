"""The time that a provider takes for an answer (`ServiceTime`)."""

from __future__ import annotations

from time import monotonic


class ServiceTime:
    """Seconds that a provider took for an answer, however late or slowly it was read here.

    From the request's last write to the latest bytes of the answer, without the time for which
    its socket was not read.
    """

    __slots__ = ("_paused_s", "_sent_s", "_unread_s", "heard_s")

    def __init__(self) -> None:
        self._sent_s = self.heard_s = monotonic()
        self._unread_s = 0.0

    @property
    def seconds(self) -> float:
        """The time so far."""
        return self.heard_s - self._sent_s - self._unread_s

    def paused(self) -> None:
        """Note that the socket is not read from now on; what it was sent came at `heard_s`."""
        self._paused_s = self.heard_s

    def resumed(self) -> None:
        """Note that it is read again."""
        self._unread_s += monotonic() - self._paused_s
