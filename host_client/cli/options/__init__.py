"""Options of `run` and `create`, from the command line to the Engine API's container configuration."""
