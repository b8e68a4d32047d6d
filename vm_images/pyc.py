"""Python code compiled for the guest's Python, which need not be the one that builds.

This file is also the program that the guest's Python runs (for its own architecture's sake the builder takes
the same version for the building machine), so it imports only the standard library.
"""

from __future__ import annotations

import importlib._bootstrap_external as bootstrap
import marshal
import os
import sys


def compile_tree(folder: str, installed_as: str, optimize: int) -> None:
    """Replaces every .py below `folder` by a .pyc at its place, which Python imports without a source.

    The path inside a .pyc is where the file will be in the guest; nothing depends on times, so the result is
    reproducible. Docstrings go with optimize 2.
    """
    for base, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            if name.endswith(".py"):
                path = os.path.join(base, name)
                shown = os.path.join(installed_as, os.path.relpath(path, folder))
                with open(path, "rb") as file:
                    code = compile(file.read(), shown, "exec", dont_inherit=True, optimize=optimize)
                # PEP 552: flags 1 is "hash-based, not checked"; the hash itself is then never looked at.
                data = bootstrap.MAGIC_NUMBER + b"\1\0\0\0" + bytes(8) + marshal.dumps(code)
                with open(path + "c", "wb") as file:
                    file.write(data)
                os.unlink(path)


if __name__ == "__main__":
    compile_tree(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(int.from_bytes(bootstrap.MAGIC_NUMBER[:2], "little"))
