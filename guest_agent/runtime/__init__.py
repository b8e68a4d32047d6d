"""OCI configuration to process: monitor, launcher, mounts, cgroups, seccomp, console.

What the monitor imports does without `typing` at run time, which costs 4 ms and a megabyte: hence the
modules that set TYPE_CHECKING themselves.
"""
