/* hello-world as Wherry ships it, for machines that cannot reach Docker Hub: says what just happened. */
#include "sys.h"

struct utsname {
    char sysname[65], nodename[65], release[65], version[65], machine[65], domainname[65];
};

static void __attribute__((noreturn, used)) start(void) {
    struct utsname host;
    print(1, "\nHello from Wherry!\n"
             "Your installation works. What just happened:\n\n"
             " 1. The wherry command asked the engine for the image \"hello-world\".\n"
             " 2. Docker Hub could not be reached, so the engine took the copy that comes with Wherry\n"
             "    and stored it in its image cache.\n"
             " 3. The engine made a container from that image: a snapshot of its file system and a\n"
             "    command, run behind Linux namespaces and control groups.\n"
             " 4. This program ran in it");
    if (sys(NR_uname, (s64)&host, 0, 0, 0, 0) == 0) {
        print(1, ", as process ");
        char digits[21], *p = digits + 20;
        s64 pid = sys(NR_getpid, 0, 0, 0, 0, 0);
        *p = 0;
        do
            *--p = '0' + pid % 10;
        while (pid /= 10);
        print(1, p);
        print(1, " of host \"");
        print(1, host.nodename);
        print(1, "\",\n    on Linux ");
        print(1, host.release);
        print(1, " (");
        print(1, host.machine);
        print(1, ")");
    }
    print(1, ".\n\nTo try something more, once you are online:\n"
             "  wherry run -it alpine sh\n\n");
    leave(0);
}
