"""Wherry guest agent: the container engine. Linux only."""

__version__ = "0.1.0"
