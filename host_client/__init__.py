"""Wherry host client: the command line and everything that runs on the user's own OS."""
