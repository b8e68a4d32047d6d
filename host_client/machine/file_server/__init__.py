"""The host's folders in the machine: a file server that speaks the kernel's FUSE protocol over a byte stream.

The guest's kernel asks, its init carries requests and replies between `/dev/fuse` and a virtio-serial port
(`vm_images/guest/shares.c`), and this process answers with the rights of the user who started it. What
others change on this host is replayed in the guest (`changes`), where it makes the events of inotify(7) that
it would have made there.
"""
