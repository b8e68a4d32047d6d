"""Client for the Engine API and its transports."""

from __future__ import annotations

API_VERSION = "1.51"  # the newest version of the Engine API that the client speaks
