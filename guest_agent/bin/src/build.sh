#!/bin/sh
# Builds the static programs Wherry ships, for both architectures, into the folder above.
# Needs gcc for amd64 and aarch64 (Debian: gcc and gcc-aarch64-linux-gnu on amd64). OUT=DIR builds elsewhere.
set -eu
cd "$(dirname "$0")"
out=${OUT:-..}
for arch in ${ARCHES:-amd64 arm64}; do
    case $arch in
    amd64) cc=x86_64-linux-gnu-gcc strip=x86_64-linux-gnu-strip extra=-mno-red-zone ;;
    arm64) cc=aarch64-linux-gnu-gcc strip=aarch64-linux-gnu-strip extra= ;;
    esac
    for program in hello init; do
        $cc -Os -std=gnu11 -Wall -Wextra -Werror -ffreestanding -fno-builtin -fno-stack-protector -fno-pic -no-pie \
            -fno-asynchronous-unwind-tables -fno-tree-loop-distribute-patterns $extra \
            -static -nostdlib -Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,noseparate-code \
            -o "$out/$program-$arch" $program.c
        $strip -s -R .comment "$out/$program-$arch"
    done
done
