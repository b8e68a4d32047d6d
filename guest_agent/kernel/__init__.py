"""The only home of ctypes: system calls, paths inside a rootfs, procfs, netlink, nftables, bpf."""
