"""`python -m host_client`: the `wherry` command line."""

from __future__ import annotations

from host_client.cli.main import run_and_quit

if __name__ == "__main__":
    run_and_quit()
