"""OCI configuration to process: monitor, launcher, mounts, cgroups, seccomp, console."""
