"""The `wherry` command line."""
