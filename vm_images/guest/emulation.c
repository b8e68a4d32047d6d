/* Programs of the other architecture. The kernel gives them to the emulator the image has, by a rule of the image's
 * (kernel documentation, admin-guide/binfmt-misc) that keeps it open: containers need no file of it. */
#include "init.h"
#include <linux/mount.h>

#define BINFMT "/proc/sys/fs/binfmt_misc"

void register_emulator(void) {
    char rule[1024]; /* the kernel takes no more than 1920 bytes */
    s64 result = read_file("/usr/lib/binfmt.d/emulator.conf", rule, sizeof rule);
    if (result >= 0) /* the kernel asks for the module if it is not there yet */
        result = sys(mount, "binfmt_misc", BINFMT, "binfmt_misc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
    if (result < 0)
        log_line("cannot register the emulator: ", decimal(result), "");
    else
        write_file(BINFMT "/register", rule);
}
