"""Where a container is in its life, and how dockerd says it.

    created ──start──▶ running ◀──▶ paused
       │                 │  ▲
       │               exit │ back-off of the restart policy
       │                 ▼  │
       └──▶ removing ◀─ exited / restarting

Times are nanoseconds since the epoch; 0 is "never", which Docker writes as year 1.
"""

from __future__ import annotations

import time

from msgspec import Struct, field

NEVER = "0001-01-01T00:00:00Z"
HEALTH_LOG_ENTRIES = 5


def rfc3339(ns: int) -> str:
    """Nanoseconds since the epoch as Go's RFC3339Nano in UTC: trailing zeros of the fraction are dropped."""
    if not ns:
        return NEVER
    seconds, fraction = divmod(ns, 1_000_000_000)
    year, month, day, hour, minute, second, *_ = time.gmtime(seconds)
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    if fraction:
        text += f".{fraction:09}".rstrip("0")
    return text + "Z"


class HealthResult(Struct):
    """One run of a health check. `exit_code` -1: it could not be run, or took too long."""

    start: int
    end: int
    exit_code: int
    output: str


class Health(Struct):
    """Outcome of the health checks since the container's start."""

    status: str = "starting"  # starting, healthy, unhealthy
    failing_streak: int = 0
    log: list[HealthResult] = field(default_factory=list)

    def describe(self) -> str:
        """The word in `docker ps`'s status column."""
        return "health: starting" if self.status == "starting" else self.status


class State(Struct, omit_defaults=True):
    """The persisted part of a container's state. A restarting container counts as running, as in dockerd."""

    running: bool = False
    paused: bool = False
    restarting: bool = False
    oom_killed: bool = False
    dead: bool = False
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    started_at: int = 0
    finished_at: int = 0
    health: Health | None = None

    @property
    def status(self) -> str:
        """created, running, paused, restarting, exited or dead."""
        if self.running:
            return "paused" if self.paused else "restarting" if self.restarting else "running"
        if self.dead:
            return "dead"
        return "exited" if self.started_at else "created"

    def set_running(self, pid: int, started_at: int) -> None:
        """The first process runs."""
        self.running, self.paused, self.restarting, self.oom_killed = True, False, False, False
        self.pid, self.started_at = pid, started_at
        self.exit_code, self.error = 0, ""

    def set_stopped(self, exit_code: int, finished_at: int, restarting: bool = False) -> None:
        """The first process has ended; with `restarting` it is about to be started again."""
        self.running = self.restarting = restarting
        self.paused = False
        self.pid = 0
        self.exit_code, self.finished_at = exit_code, finished_at

    def describe(self, now: int, removing: bool = False) -> str:
        """The sentence in `docker ps`: "Up 3 minutes (healthy)", "Exited (1) 2 hours ago"."""
        if self.running:
            if self.restarting and not self.paused:
                return f"Restarting ({self.exit_code}) {human_duration(now - self.finished_at)} ago"
            up = "Up " + human_duration(now - self.started_at)
            if self.paused:
                return up + " (Paused)"
            return f"{up} ({self.health.describe()})" if self.health else up
        if removing:
            return "Removal In Progress"
        if self.dead:
            return "Dead"
        if not self.started_at:
            return "Created"
        return (
            f"Exited ({self.exit_code}) {human_duration(now - self.finished_at)} ago"
            if self.finished_at
            else ""
        )


def human_duration(ns: int) -> str:
    """A duration in Docker's words (go-units HumanDuration): "5 seconds", "About an hour", "3 weeks"."""
    seconds = ns // 1_000_000_000
    if seconds < 1:
        return "Less than a second"
    if seconds == 1:
        return "1 second"
    if seconds < 60:
        return f"{seconds} seconds"
    minutes = seconds // 60
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{int(seconds / 3600) // 24 // 365} years"
