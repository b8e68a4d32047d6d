#include "init.h"

enum { IN_CREATE = 0x100 };

/* The kernel makes the device when the host has named the port. */
int open_port(const char *path) {
    static char events[4096];
    int watch = (int)sys(inotify_init1, O_CLOEXEC), port;
    sys(inotify_add_watch, watch, "/dev", IN_CREATE);
    while ((port = open_file(path, O_RDWR)) < 0)
        sys(read, watch, events, sizeof events);
    sys(close, watch);
    return port;
}
