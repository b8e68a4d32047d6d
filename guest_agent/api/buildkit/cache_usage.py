"""The build cache as BuildKit's clients see it: `buildx du` and `buildx prune`."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from guest_agent.api.buildkit import messages
from guest_agent.engine import build_cache
from guest_agent.engine.engine import Engine
from guest_agent.errors import InvalidParameter

_CONDITION = re.compile(r'([a-z]+)(?:(==|!=|~=)("(?:[^"\\]|\\.)*"|[^,]*))?(?:,|$)')
_FIELDS = {"id": "ID", "type": "Type", "description": "Description"}
_FLAGS: dict[str, Callable[[Mapping[str, Any]], bool]] = {
    "inuse": lambda record: bool(record["InUse"]),
    "shared": lambda record: bool(record["Shared"]),
    "private": lambda record: not record["Shared"],
    "mutable": build_cache.is_mutable,
    "immutable": lambda record: not build_cache.is_mutable(record),
}

Admits = Callable[[Mapping[str, Any]], bool]


def filter_of(texts: Sequence[str]) -> Admits:
    """Which records fit one of these filters, as containerd writes them: conditions with commas between.

    `field==value`, `!=`, `~=` (a regular expression), or the field alone. Raises InvalidParameter.
    """
    alternatives = [_conjunction(text) for text in texts if text]
    if not alternatives:
        return lambda record: True
    return lambda record: any(
        all(condition(record) for condition in conditions) for conditions in alternatives
    )


def _conjunction(text: str) -> list[Admits]:
    conditions: list[Admits] = []
    at = 0
    while at < len(text):
        found = _CONDITION.match(text, at)
        if found is None:
            raise InvalidParameter(f"failed to parse filter {text!r}", "Write it as FIELD=VALUE.")
        conditions.append(_condition(*found.groups()))
        at = found.end()
    return conditions


def _condition(field: str, operator: str | None, value: str | None) -> Admits:
    flag, name = _FLAGS.get(field), _FIELDS.get(field, "")
    if flag is None and not name:
        known = ", ".join((*_FIELDS, *_FLAGS))
        raise InvalidParameter(f"invalid filter {field!r}", f"It can be {known}, until.")
    value = re.sub(r"\\(.)", r"\1", value[1:-1]) if value and value.startswith('"') else value or ""
    if operator is None:
        return flag or (lambda record: bool(record[name]))
    if not name:  # as BuildKit has it: what there is of them has no value
        return lambda record: False
    if operator == "~=":
        try:
            pattern = re.compile(value)
        except re.error as error:
            raise InvalidParameter(f"invalid filter {field}~={value}: {error}")
        return lambda record: pattern.search(record[name]) is not None
    return lambda record: (record[name] == value) == (operator == "==")


def usage(engine: Engine, texts: Sequence[str], in_use: Collection[str]) -> list[Any]:
    """UsageRecords. Blocks. Raises InvalidParameter."""
    admits = filter_of(texts)
    return [_message(record) for record in build_cache.records(engine, in_use) if admits(record)]


def prune(engine: Engine, request: Any, in_use: Collection[str]) -> tuple[list[Any], int]:
    """Carries a PruneRequest out: what was removed, and how many bytes that gave back. Blocks.

    Raises InvalidParameter.
    """
    limit = time.time() - request.keepDuration / 1e9 if request.keepDuration else None
    removed = build_cache.remove(
        engine,
        filter_of(request.filter),
        limit=limit,
        everything=request.all,
        keep=_kept(engine, request, in_use),
        in_use=in_use,
    )
    return [_message(record) for record in removed], build_cache.reclaimed(removed)


def _kept(engine: Engine, request: Any, in_use: Collection[str]) -> int:
    """How many bytes may stay, 0 for no such limit: at most `maxUsedSpace`, so few that `minFreeSpace` is
    free, but `reservedSpace` in any case."""
    if not (request.maxUsedSpace or request.reservedSpace or request.minFreeSpace):
        return 0
    kept = int(request.maxUsedSpace)
    if request.minFreeSpace:
        total = sum(record["Size"] for record in build_cache.records(engine, in_use))
        disk = os.statvfs(engine.roots.data)
        missing = request.minFreeSpace - disk.f_bavail * disk.f_frsize
        if missing > 0:
            kept = min(kept or total, max(total - missing, 1))
        else:
            kept = kept or total
    return max(kept, int(request.reservedSpace))


def _message(record: Mapping[str, Any]) -> Any:
    message = messages.UsageRecord(
        ID=record["ID"],
        Mutable=build_cache.is_mutable(record),
        InUse=record["InUse"],
        Size=record["Size"],
        UsageCount=record["UsageCount"],
        Description=record["Description"],
        RecordType=record["Type"],
        Shared=record["Shared"],
    )
    message.CreatedAt.FromJsonString(record["CreatedAt"])
    message.LastUsedAt.FromJsonString(record["LastUsedAt"])
    return message
