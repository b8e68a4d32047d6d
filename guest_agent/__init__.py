"""Wherry guest agent: the container engine. Linux only."""
