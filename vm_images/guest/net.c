/* The network QEMU's user mode gives every guest: a fixed address, so nothing has to be asked for. */
#include "init.h"
#include <linux/if.h>
#include <linux/in.h>
#include <linux/route.h>
#include <linux/sockios.h>

#define ADDRESS(a, b, c, d) __builtin_bswap32((a) << 24 | (b) << 16 | (c) << 8 | (d))

static void set(struct sockaddr *where, unsigned address) {
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    memcpy(where, &in, sizeof in);
}

static void call(int fd, unsigned command, struct ifreq *request, const char *what) {
    s64 result = sys(ioctl, fd, command, request);
    if (result < 0)
        fail("cannot set up the network interface", what, result);
}

static void up(int fd, const char *name, unsigned address, unsigned mask) {
    struct ifreq request;
    memset(&request, 0, sizeof request);
    memcpy(request.ifr_name, name, length(name));
    if (address) {
        set(&request.ifr_addr, address);
        call(fd, SIOCSIFADDR, &request, name);
        set(&request.ifr_netmask, mask);
        call(fd, SIOCSIFNETMASK, &request, name);
    }
    memset(&request.ifr_ifru, 0, sizeof request.ifr_ifru);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    call(fd, SIOCSIFFLAGS, &request, name);
}

void set_up_network(void) {
    int fd = (int)sys(socket, AF_INET, 2 /* SOCK_DGRAM */, 0);
    if (fd < 0)
        fail("cannot set up the network", "socket", fd);
    up(fd, "lo", 0, 0);
    up(fd, "eth0", ADDRESS(10, 0, 2, 15), ADDRESS(255, 255, 255, 0));
    struct rtentry route;
    memset(&route, 0, sizeof route);
    set(&route.rt_dst, 0);
    set(&route.rt_genmask, 0);
    set(&route.rt_gateway, ADDRESS(10, 0, 2, 2));
    route.rt_flags = RTF_UP | RTF_GATEWAY;
    s64 result = sys(ioctl, fd, SIOCADDRT, &route);
    if (result < 0)
        fail("cannot set the default route", "10.0.2.2", result);
    sys(close, fd);
}
