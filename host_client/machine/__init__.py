"""The Linux virtual machine that runs the engine where the host is not Linux.

A supervisor process owns QEMU; everything else talks to the supervisor. Nothing here imports a POSIX-only
module when it is imported: what differs between systems is in `system` alone.
"""
