"""`python -m guest_agent serve …`: the agent's command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the agent; returns the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["held"]:
        from guest_agent.held import main as held

        return held(int(arguments[1]), arguments[2])
    if arguments[:1] != ["serve"]:
        print("usage: python -m guest_agent serve [OPTION…]", file=sys.stderr)
        return 2
    from guest_agent.serve import main as serve

    return serve(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
