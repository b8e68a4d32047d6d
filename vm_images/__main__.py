"""Command line of the image builder: python -m vm_images build --arch amd64 --out DIR."""

from __future__ import annotations

import argparse
import os
import sys

from host_client import VERSION
from vm_images import pack, wheel
from vm_images.build import build
from vm_images.packages import BuildError
from vm_images.recipe import ARCHES


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m vm_images", description="Builds the VM image.")
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("build", help="build kernel, initrd and root file system with a manifest")
    make.add_argument("--arch", choices=sorted(ARCHES), required=True)
    make.add_argument("--out", required=True, help="folder for the files; made when missing")
    make.add_argument(
        "--mirror", help="Debian archive to use for all suites (a snapshot, for an exact rebuild)"
    )
    make.add_argument("--compression", help="of the root file system, as for mkfs.erofs -z (default: none)")
    package = commands.add_parser("wheel", help="make a Python wheel of a built image")
    package.add_argument("--image", required=True, help="folder of the image")
    package.add_argument("--out", required=True, help="folder for the wheel; made when missing")
    web = commands.add_parser("pack", help="compress a built image for a web server")
    web.add_argument("--image", required=True, help="folder of the image")
    web.add_argument("--out", required=True, help="folder for the files; made when missing")
    arguments = parser.parse_args()
    try:
        if arguments.command == "wheel":
            path = wheel.make(arguments.image, arguments.out, VERSION)
            print(f"{path}: {os.path.getsize(path) / 1e6:.1f} MB")
            return 0
        if arguments.command == "pack":
            size, digest = pack.make(arguments.image, arguments.out)
            print(f"{arguments.out}: {size / 1e6:.1f} MB to download")
            print(f"wherry machine init --image https://PLACE#sha256={digest}")
            return 0
        manifest = build(arguments.arch, arguments.out, arguments.mirror, arguments.compression)
    except BuildError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, about in manifest["files"].items():
        print(f"{name:12} {about['size'] / 1e6:7.2f} MB  sha256 {about['sha256']}")
    place = os.path.abspath(arguments.out)
    print(f"{len(manifest['packages'])} packages, kernel {manifest['kernel']}, in {place}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
