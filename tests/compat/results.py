"""What a suite said of each of its tests, and how two engines compare in that."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """`outcome` is "passed", "failed" or "skipped"; `message` says why where it did not pass."""

    outcome: str
    message: str = ""


Results = Mapping[str, Result]


def write(path: Path, results: Results) -> None:
    """Keep the results of one run, for a later comparison."""
    content = {test: [result.outcome, result.message] for test, result in sorted(results.items())}
    path.write_text(json.dumps(content, indent=1) + "\n")


def read(path: Path) -> Results:
    """Results that `write` kept."""
    return {test: Result(*parts) for test, parts in json.loads(path.read_text()).items()}


def share(results: Results) -> str:
    """`N of M passed`, and what became of the rest."""
    count = Counter(result.outcome for result in results.values())
    rest = ", ".join(f"{count[outcome]} {outcome}" for outcome in ("failed", "skipped") if count[outcome])
    return f"{count['passed']} of {len(results)} passed" + (f" ({rest})" if rest else "")


def differences(theirs: Results, ours: Results) -> list[str]:
    """One line for each test that passes on one of the engines only; theirs first."""
    lines = []
    for passes, fails, name in ((theirs, ours, "dockerd"), (ours, theirs, "wherry")):
        for test, result in passes.items():
            other = fails.get(test, Result("not run"))
            if result.outcome == "passed" and other.outcome != "passed":
                lines.append(f"only on {name}: {test}: {other.outcome}: {other.message}")
    return lines
