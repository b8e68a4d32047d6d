"""The commands, a module for those that belong together; `cli.table` says which is where."""
