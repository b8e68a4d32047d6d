/* Kernel modules. The image's builder resolved names, aliases and dependencies into one text file: each line is a name
 * or alias and the files to load for it, in order. The kernel's own requests (a file system, a netfilter expression, a
 * kind of link) come back to this program under the name modprobe. */
#include "init.h"

enum { TABLE_SIZE = 512 * 1024, LIST_SIZE = 4096 };
static char table[TABLE_SIZE];

static void load_file(const char *folder, const char *name) {
    char path[256];
    join(path, sizeof path, folder, "/", name, ".ko", NULL);
    int fd = open_file(path, O_RDONLY);
    s64 result = fd < 0 ? fd : sys(finit_module, fd, "", 0);
    if (fd >= 0)
        sys(close, fd);
    if (result < 0 && result != -EEXIST)
        log_line("cannot load module ", name, decimal(result));
}

/* Names with "-" and "_" are the same to the kernel. */
static int same_name(const char *line, const char *name) {
    for (; *name; line++, name++)
        if ((*line == '-' ? '_' : *line) != (*name == '-' ? '_' : *name))
            return 0;
    return *line == ' ';
}

static int load(const char *folder, const char *name) {
    for (char *line = table; *line;) {
        if (same_name(line, name)) {
            char files[1024];
            u64 n = 0;
            while (*line && *line != '\n' && n + 1 < sizeof files)
                files[n++] = *line++;
            files[n] = 0;
            char *cursor = files;
            next_word(&cursor);
            for (char *file; (file = next_word(&cursor));)
                load_file(folder, file);
            return 0;
        }
        while (*line && *line++ != '\n')
            ;
    }
    return 1;
}

static int read_table(const char *folder) {
    char path[256];
    join(path, sizeof path, folder, "/table", NULL);
    s64 result = read_file(path, table, sizeof table);
    if (result < 0)
        log_line("cannot read the module table ", path, decimal(result));
    return result < 0;
}

void load_modules(const char *folder, const char *list) {
    char names[LIST_SIZE], path[256];
    join(path, sizeof path, folder, "/", list, NULL);
    s64 result = read_file(path, names, sizeof names);
    if (result < 0 || read_table(folder))
        fail("cannot read the list of kernel modules", path, result);
    char *cursor = names;
    for (char *name; (name = next_word(&cursor));)
        if (load(folder, name))
            log_line("the image has no kernel module ", name, "");
}

int modprobe_main(int count, char **arguments) {
    const char *name = NULL;
    for (int i = 1; i < count; i++)
        if (arguments[i][0] != '-')
            name = arguments[i];
    if (!name || read_table("/usr/lib/modules"))
        return 1;
    return load("/usr/lib/modules", name);
}
