"""The test suites of Docker's clients, run against dockerd and against Wherry, compared test by test.

    ./run-tests --compat docker-py --source DIR [--only WORD] [--engine dockerd|wherry] [--results DIR]
    ./run-tests --compat compose --source DIR --program FILE [--compose FILE] …

Exits with 1 when a test passes on dockerd that does not on Wherry.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.compat import compose, docker_py, engines, images, results
from tests.support.cli import cache_directory, compose_binary

_VERSION = 3  # of what images.fill makes


def main() -> int:
    """Run a suite on one engine or both, keep what came out, and print how they compare."""
    parser = argparse.ArgumentParser(prog="run-tests --compat", description=__doc__.splitlines()[0])
    parser.add_argument("suite", choices=["docker-py", "compose"])
    parser.add_argument("--source", type=Path, required=True, help="the suite's source tree")
    parser.add_argument("--program", type=Path, help="pkg/e2e of Compose's source tree, by go test -c")
    parser.add_argument("--compose", type=Path, help="the docker-compose under test")
    parser.add_argument(
        "--only", default="", help="part of the file names, or for Compose a pattern of test names"
    )
    parser.add_argument("--engine", choices=["dockerd", "wherry"], help="leave out the other")
    parser.add_argument("--results", type=Path, help="directory to keep results and logs in")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the engines are ended, too
    if options.suite == "compose" and options.program is None:
        parser.error("compose needs --program")
    directory = options.results or Path(tempfile.mkdtemp(prefix="wherry-compat-results-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"outcomes and logs: {directory}", flush=True)
    outcomes: dict[str, results.Results] = {}
    for name, start in (("dockerd", engines.dockerd), ("wherry", engines.ours)):
        path = directory / f"{options.suite}-{name}.json"
        if options.engine in (None, name):
            with ExitStack() as stack:
                contender = start(stack, _images())
                if options.suite == "docker-py":
                    found = docker_py.run(contender, options.source.resolve(), options.only)
                else:
                    log = directory / f"{options.suite}-{name}"
                    log.mkdir(parents=True, exist_ok=True)
                    found = compose.run(
                        contender,
                        options.source.resolve(),
                        options.program.resolve(),
                        (options.compose or compose_binary(2)).resolve(),
                        options.only,
                        log,
                    )
                results.write(path, found)
        if path.exists():
            outcomes[name] = results.read(path)
            print(f"{options.suite} on {name}: {results.share(outcomes[name])}", flush=True)
    if len(outcomes) < 2:
        return 0
    lines = results.differences(outcomes["dockerd"], outcomes["wherry"])
    print("\n".join(lines))
    return int(any(line.startswith("only on dockerd") for line in lines))


def _images() -> Path:
    """The registry's files with all images, made once."""
    directory = cache_directory() / f"compat-registry-v{_VERSION}"
    if not directory.exists():
        partial = directory.with_suffix(".partial")
        partial.mkdir(exist_ok=True)
        images.fill(partial)
        partial.rename(directory)
    return directory


if __name__ == "__main__":
    sys.exit(main())
