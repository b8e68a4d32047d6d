"""The Linux system that runs the engine on macOS and Windows: recipe, builder and the guest's own init.

Runs on a Debian-like machine with mmdebstrap, erofs-utils, pip, and gcc for the wanted architecture. Nothing
of the image is ever executed while it is built, so either architecture builds on either.
"""
