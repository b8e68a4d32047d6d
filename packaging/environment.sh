# shellcheck shell=sh
# Shell functions that install.sh and run-tests share: finding a Python, making a virtual environment of it, apt.
# POSIX sh, no output unless something fails.

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$1" >&2
    [ $# -lt 2 ] || printf '  %s\n' "$2" >&2
    exit 1
}

# Run a command silently; show what it said only when it fails.
quietly() {
    quiet_log=$(mktemp)
    if "$@" >"$quiet_log" 2>&1; then
        rm -f "$quiet_log"
    else
        quiet_code=$?
        cat "$quiet_log" >&2
        rm -f "$quiet_log"
        return "$quiet_code"
    fi
}

is_root() {
    [ "$(id -u)" -eq 0 ]
}

has_apt() {
    command -v apt-get >/dev/null 2>&1
}

# Install Debian or Ubuntu packages that are missing. Touches nothing when all are there.
apt_install() {
    missing=
    for package in "$@"; do
        dpkg-query --show --showformat='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    is_root || fail "these packages are missing:$missing" "Install them: sudo apt-get install$missing"
    export DEBIAN_FRONTEND=noninteractive
    # shellcheck disable=SC2086  # a list of words
    quietly apt-get install --yes --quiet --no-install-recommends $missing 2>/dev/null || {
        quietly apt-get update --quiet
        quietly apt-get install --yes --quiet --no-install-recommends $missing
    } || fail "apt could not install:$missing" "Its own message is above; mend that and run this again."
}

# Print the path of a Python that is new enough and whole: Debian's python3-minimal lacks half the standard library.
find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        candidate=$(command -v "$name") || continue
        if "$candidate" -I -c '
import sys
if sys.version_info < (3, 11): sys.exit(1)
import asyncio, ctypes, sqlite3, ssl, venv' 2>/dev/null; then
            # The interpreter itself, not a version manager'"'"'s shim.
            "$candidate" -I -c 'import sys; print(sys.executable)'
            return 0
        fi
    done
    return 1
}

# need_python: set $python, installing Debian's python3 where that helps.
need_python() {
    if python=$(find_python); then return 0; fi
    if has_apt && is_root; then
        apt_install python3
        if python=$(find_python); then return 0; fi
    fi
    fail "Python 3.11 or newer is needed, with its whole standard library" \
        "Debian 12 and Ubuntu 24.04 and newer have it: sudo apt-get install python3"
}

# make_environment DIRECTORY: a virtual environment with pip in it, made of $python.
make_environment() {
    if [ -x "$1/bin/python" ] && "$1/bin/python" -I -m pip --version >/dev/null 2>&1; then return 0; fi
    rm -rf "$1"
    # Debian and Ubuntu keep ensurepip in a package of its own, and their Python refuses `pip install` outside a
    # virtual environment (PEP 668). A pip that is there can fill an environment that has none.
    if "$python" -I -c 'import ensurepip' 2>/dev/null; then
        quietly "$python" -I -m venv "$1"
    elif "$python" -I -m pip --version >/dev/null 2>&1; then
        quietly "$python" -I -m venv --without-pip "$1" &&
            quietly "$python" -I -m pip --python "$1/bin/python" install --quiet pip
    elif has_apt; then
        apt_install "python$("$python" -I -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
        quietly "$python" -I -m venv "$1"
    else
        fail "$python has neither ensurepip nor pip" "Install your distribution's package for Python's venv module."
    fi || fail "could not make a virtual environment in $1" "The reason is above."
}
