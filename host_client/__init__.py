"""Wherry host client: the command line and everything that runs on the user's own OS."""

VERSION = "0.1.0"  # the distribution's; a test holds it against pyproject.toml
