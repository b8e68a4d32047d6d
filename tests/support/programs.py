"""Tiny static programs for several processors, which a test compiles itself."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from tests.support.cli import cache_directory

_COMPILERS = {"amd64": "gcc", "arm64": "aarch64-linux-gnu-gcc"}
# Says on its standard output, and in /made, which processor it is for.
_SOURCE = r"""
#if defined(__aarch64__)
#define NAME "arm64\n"
enum { OPENAT = 56, WRITE = 64, EXIT = 93 };
static long call(long n, long a, long b, long c, long d) {
    register long x8 __asm__("x8") = n, x0 __asm__("x0") = a, x1 __asm__("x1") = b, x2 __asm__("x2") = c,
                  x3 __asm__("x3") = d;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}
#else
#define NAME "amd64\n"
enum { OPENAT = 257, WRITE = 1, EXIT = 60 };
static long call(long n, long a, long b, long c, long d) {
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "+a"(n) : "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return n;
}
#endif
void _start(void) {
    long file = call(OPENAT, -100, (long)"/made", 0101, 0644);
    call(WRITE, file, (long)NAME, sizeof NAME - 1, 0);
    call(WRITE, 1, (long)NAME, sizeof NAME - 1, 0);
    call(EXIT, 0, 0, 0, 0);
}
"""


@cache
def program(architecture: str) -> bytes:
    """The program for amd64 or arm64."""
    target = cache_directory() / f"program.{architecture}"
    if not target.exists():
        partial = target.with_suffix(f".{os.getpid()}")
        options = ("-x", "c", "-O1", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-")
        subprocess.run(
            [_COMPILERS[architecture], *options, "-o", str(partial)], input=_SOURCE.encode(), check=True
        )
        Path(partial).rename(target)
    return target.read_bytes()
