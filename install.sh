#!/bin/sh
# Installs Wherry from this checkout: as root for everybody (/opt/wherry, /usr/local/bin), otherwise for one user
# (~/.local). Run it again to upgrade. WHERRY_PREFIX=DIR puts everything below DIR instead.
#
#   ./install.sh                install or upgrade
#   ./install.sh --uninstall    remove the program; images, containers and volumes stay
set -eu

source=$(cd "$(dirname "$0")" && pwd)
# shellcheck source=packaging/environment.sh
. "$source/packaging/environment.sh"

if [ -n "${WHERRY_PREFIX-}" ]; then
    home=$WHERRY_PREFIX/lib/wherry
    commands=$WHERRY_PREFIX/bin
elif is_root; then
    home=/opt/wherry
    commands=/usr/local/bin
else
    home=${XDG_DATA_HOME:-$HOME/.local/share}/wherry/program
    commands=$HOME/.local/bin
fi

uninstall() {
    if [ -x "$commands/wherry" ] && is_root; then
        # Containers would run on without their agent; whoever has some says so first.
        "$commands/wherry" engine stop >/dev/null 2>&1 || true
    fi
    rm -f "$commands/wherry"
    rm -rf "$home"
    printf 'Wherry is removed. Images, containers and volumes are still in its data root.\n'
}

install() {
    need_python
    make_environment "$home"
    # From a copy, so that no build directory is left in the checkout and none from before gets in.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    (cd "$source" && cp -R pyproject.toml README.md LICENSE guest_agent host_client vm_images "$copy")
    quietly "$home/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-input "$copy" ||
        fail "pip could not install Wherry" "Its own message is above; a package index must be reachable."
    # Docker Compose, for `wherry compose`. There may be none for this processor; all else works without.
    "$home/bin/python" -I -m pip install --quiet --disable-pip-version-check --no-input "${copy}[compose]" >/dev/null 2>&1 ||
        printf 'Docker Compose could not be installed: "wherry compose" needs one that is there already.\n' >&2
    mkdir -p "$commands"
    packages=$("$home/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    # The Python file itself, and not a link to the script in the environment: that would start a shell and more.
    rm -f "$commands/wherry"
    cat >"$commands/wherry" <<END
#!$home/bin/python3 -IS
import sys

sys.path.append("$packages")
from host_client.cli.main import run_and_quit

run_and_quit()
END
    chmod 755 "$commands/wherry"
    "$commands/wherry" version --client >/dev/null || fail "the installed command does not run"
    case :$PATH: in
    *:$commands:*) ;;
    *) printf 'Add %s to your PATH to use wherry by its name.\n' "$commands" >&2 ;;
    esac
}

case ${1-} in
--uninstall) uninstall ;;
'') install ;;
*) fail "unknown option $1" "Options: --uninstall" ;;
esac
