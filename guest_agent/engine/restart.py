"""Restart policies: whether a container that ended is started again, and after how long.

Docker's rules: no; always; unless-stopped (not after `stop` or `kill`); on-failure (non-zero exit, at most
MaximumRetryCount times when that is not 0). The wait is 100 ms, doubled with each restart up to one minute,
and starts over after a run of 10 s.
"""

from __future__ import annotations

from .container_config import RestartPolicy

FIRST_WAIT = 0.1  # seconds
LONGEST_WAIT = 60.0
LONG_RUN = 10.0  # a run that long was no crash loop


class Backoff:
    """The growing wait between restarts, and how often the container has been restarted.

    `cancelled`: a user has sent a signal that is to end the container, so no policy restarts it.
    """

    def __init__(self) -> None:
        self.wait = 0.0
        self.count = 0
        self.cancelled = False

    def reset(self) -> None:
        """A user started the container: everything starts over."""
        self.wait, self.count, self.cancelled = 0.0, 0, False

    def after(
        self, policy: RestartPolicy, exit_code: int, manually_stopped: bool, ran: float
    ) -> float | None:
        """Seconds to wait before the next start, or None when the container stays down.

        `ran` is in seconds.
        """
        if ran >= LONG_RUN:
            self.wait = 0.0
        self.wait = min(self.wait * 2 or FIRST_WAIT, LONGEST_WAIT)
        if self.cancelled or not self._wanted(policy, exit_code, manually_stopped):
            return None
        self.count += 1
        return self.wait

    def _wanted(self, policy: RestartPolicy, exit_code: int, manually_stopped: bool) -> bool:
        match policy.name:
            case "always":
                return True
            case "unless-stopped":
                return not manually_stopped
            case "on-failure":
                limit = policy.maximum_retry_count
                return exit_code != 0 and (limit == 0 or self.count < limit)
        return False


def starts_with_agent(policy: RestartPolicy, manually_stopped: bool) -> bool:
    """Whether a stopped container that ran before is started when the agent starts."""
    return policy.name == "always" or (policy.name == "unless-stopped" and not manually_stopped)
