"""The signature policy of this host, as machines are given it: keys in place of the paths of their files."""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

import platformdirs

from host_client.machine.errors import MachineError

FILE = "policy.json"
PATHS = {"keyPath": "keyData", "keyPaths": "keyDatas"}  # as containers-policy.json(5) has them


def policy_file() -> str | None:
    """The user's own policy, else the one of all users of this host; None when there is neither."""
    system = os.environ.get("PROGRAMDATA", r"C:\ProgramData") if sys.platform == "win32" else "/etc"
    for folder in (
        platformdirs.user_config_dir("wherry", appauthor=False),
        os.path.join(system, "wherry"),
    ):
        path = os.path.join(folder, FILE)
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            pass  # it may be there, so it counts: reading it says what is wrong
        return path
    return None


def policy(path: str) -> bytes:
    """The policy in a file, with the content of the keys it names.

    The agent judges it, as it does natively. Raises MachineError when it, or a key, cannot be read.
    """
    try:
        with open(path, "rb") as file:
            document = json.load(file, object_pairs_hook=_unique)
        _with_keys(document)
    except OSError as error:
        name = error.filename or path
        raise MachineError(
            f"cannot read {name} for the signature policy {path}: {error.strerror}",
            "A machine does not start without the policy, which says what it may pull.",
        )
    except (ValueError, RecursionError) as error:
        raise MachineError(
            f"invalid signature policy {path}: {error}", "Its format is containers-policy.json(5)."
        )
    return json.dumps(document).encode()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _with_keys(value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _with_keys(each)
    elif isinstance(value, dict):
        if value.get("type") == "sigstoreSigned":
            for name, data in PATHS.items():
                if name in value:
                    if data in value:
                        raise ValueError(f"both {name} and {data} are given")
                    value[data] = _read(value.pop(name))
        for each in value.values():
            _with_keys(each)


def _read(paths: Any) -> Any:
    """Base64 of a file, or of each in a list."""
    if isinstance(paths, list):
        return [_read(path) for path in paths]
    if not isinstance(paths, str):
        raise ValueError("a key's path is no text")
    with open(paths, "rb") as file:
        return base64.b64encode(file.read()).decode()
