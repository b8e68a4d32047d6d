#include "sys.h"

u64 length(const char *text) {
    u64 n = 0;
    while (text[n])
        n++;
    return n;
}

int equal(const char *a, const char *b) {
    while (*a && *a == *b)
        a++, b++;
    return *a == *b;
}

char *next_word(char **cursor) {
    char *at = *cursor;
    while (*at == ' ' || *at == '\n')
        at++;
    if (!*at)
        return NULL;
    char *start = at;
    while (*at && *at != ' ' && *at != '\n')
        at++;
    if (*at)
        *at++ = 0;
    *cursor = at;
    return start;
}

char *next_line(char **cursor) {
    char *start = *cursor, *at = start;
    if (!*at)
        return NULL;
    while (*at && *at != '\n')
        at++;
    if (*at)
        *at++ = 0;
    *cursor = at;
    return start;
}

s64 number(const char *text) {
    s64 value = 0;
    if (!text || !*text || length(text) > 18)
        return -1;
    for (; *text; text++) {
        if (*text < '0' || *text > '9')
            return -1;
        value = value * 10 + (*text - '0');
    }
    return value;
}

u64 join(char *out, u64 size, ...) {
    __builtin_va_list texts;
    __builtin_va_start(texts, size);
    u64 n = 0;
    for (const char *text; (text = __builtin_va_arg(texts, const char *));)
        while (*text && n + 1 < size)
            out[n++] = *text++;
    __builtin_va_end(texts);
    out[n] = 0;
    return n;
}

const char *decimal(s64 value) {
    static char buffers[5][24];
    static unsigned turn;
    char *at = buffers[turn++ % 5] + 23;
    u64 left = value < 0 ? -(u64)value : (u64)value;
    *at = 0;
    do
        *--at = '0' + left % 10;
    while (left /= 10);
    if (value < 0)
        *--at = '-';
    return at;
}

void *memcpy(void *to, const void *from, u64 size) {
    for (u64 i = 0; i < size; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memset(void *to, int value, u64 size) {
    for (u64 i = 0; i < size; i++)
        ((char *)to)[i] = (char)value;
    return to;
}

s64 read_file(const char *path, char *buffer, u64 size) {
    int fd = open_file(path, O_RDONLY);
    if (fd < 0)
        return fd;
    u64 n = 0;
    s64 got;
    while ((got = sys(read, fd, buffer + n, size - n)) > 0)
        n += got;
    sys(close, fd);
    if (got < 0)
        return got;
    if (n == size)
        return -EINVAL;
    buffer[n] = 0;
    return n;
}

void write_file(const char *path, const char *text) {
    int fd = open_file(path, O_WRONLY);
    s64 result = fd < 0 ? fd : sys(write, fd, text, length(text));
    if (result < 0)
        log_line("cannot write ", path, decimal(result));
    if (fd >= 0)
        sys(close, fd);
}

void log_line(const char *a, const char *b, const char *c) {
    char line[512];
    u64 n = join(line, sizeof line, "init: ", a, b, *c ? " " : "", c, "\n", NULL);
    sys(write, 2, line, n);
}
