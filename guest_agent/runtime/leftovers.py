"""What a killed monitor leaves behind, and how it is cleared: processes, control groups, state."""

from __future__ import annotations

import json
import os
import shutil
import time

from . import cgroups

_SECONDS = 10.0


def clean_up(run: str) -> None:
    """Kills every process in the control groups of the containers noted under `run`, and removes the groups.

    A container whose end nobody has written down is given an exit file with 137: it was killed, just now
    or with its monitor. Blocks until all is gone, ten seconds at most for each. For when no monitor runs.
    """
    top = os.path.join(run, "containers")
    try:
        names = os.listdir(top)
    except FileNotFoundError:
        return
    for name in names:
        directory = os.path.join(top, name)
        try:
            with open(os.path.join(directory, "state.json"), encoding="utf-8") as file:
                state = json.load(file)
        except (OSError, ValueError):
            state = None  # killed while it was written, before there was a group
        if state:
            _end(state["cgroup"])
            _write_exit(state["id"], state["exit_path"])
        shutil.rmtree(directory, ignore_errors=True)


def _end(path: str) -> None:
    group = cgroups.at(path)
    deadline = time.monotonic() + _SECONDS
    pause = 0.001
    while group.kill() or not group.delete():
        if time.monotonic() > deadline:
            return
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def _write_exit(container_id: str, path: str) -> None:
    if os.path.exists(path):
        return
    end = {"id": container_id, "exec_id": None, "code": 137, "oom_killed": False, "finished_at": time.time()}
    try:
        with open(f"{path}.tmp", "w", encoding="utf-8") as file:
            json.dump(end, file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(f"{path}.tmp", path)
    except OSError:
        pass  # the container's directory is gone
