"""What the suites pull, on a registry of our own: there may be no way to Docker Hub, and both engines get the same.

Names are Docker Hub's; content is the test suite's Alpine, Debian and busybox, and small stand-ins for the rest.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.images import Content, Image, Layer, image, skopeo, tar_of, write_layout
from tests.support.registry import plain

_WORDS = '{"word":"tables","ready":true}'
_HTTPD = "/usr/local/bin/busybox httpd -f -h /usr/share/nginx/html -p"
_NGINX = f"""#!/bin/sh
case $1 in
-g | '') exec {_HTTPD} 80 ;;
-t) echo 'nginx: configuration file /etc/nginx/nginx.conf test is successful' >&2 ;;
*) exec "$@" ;;
esac
"""
_JAVA = f"#!/bin/sh\n{_HTTPD} 8080\n"
_BASH = '#!/bin/sh\nexec sh "$@"\n'
_CURL = """#!/bin/sh
for url; do :; done
exec /usr/local/bin/busybox wget -q -O - "$url"
"""
_REGISTRY = (
    "version: 0.1\nlog: {level: error}\nhttp: {addr: ':5000'}\n"
    "storage: {filesystem: {rootdirectory: /var/lib/registry}, delete: {enabled: true}}\n"
)
_ALPINE = ("latest", "3", "3.10", "3.12", "3.13", "3.13.12", "3.14", "3.15")
_WEB = ["nginx", "-g", "daemon off;"]
_WORDS_SERVER = ["java", "-Xmx8m", "-Xms8m", "-jar", "/app/words.jar"]
# The names that each image is given.
NAMES = {
    "busybox": ("busybox:latest", "busybox:1.35.0"),
    "alpine": tuple(f"alpine:{tag}" for tag in _ALPINE),
    "debian": ("debian:latest", "bash:latest", "ubuntu:latest", "hello-world:latest"),
    "nginx": ("nginx:latest", "nginx:alpine", "mariadb:latest", "alpine/curl:latest"),
    "web": ("gtardif/sentences-web:latest",),
    "api": ("gtardif/sentences-api:latest",),
    "db": ("gtardif/sentences-db:latest",),
    "registry": ("registry:3", "registry:2"),
}


def fill(directory: Path) -> None:
    """Put all images on a registry whose files are below `directory`."""
    registry = plain(directory)
    try:
        with _sources() as sources:
            for kind, names in NAMES.items():
                source = sources[kind]
                for name in names:
                    hub = name if "/" in name else f"library/{name}"
                    skopeo(
                        *("copy", "--all", "--dest-tls-verify=false", f"oci:{source.layout}:{source.name}"),
                        f"docker://{registry.address}/{hub}",
                    )
    finally:
        registry.close()


@contextmanager
def _sources() -> Iterator[dict[str, Image]]:
    with tempfile.TemporaryDirectory(prefix="wherry-compat-") as scratch:
        yield {
            "busybox": image("busybox:latest"),
            "alpine": image("alpine:3"),
            "debian": image("debian:stable"),
            "nginx": _on_alpine(Path(scratch, "nginx"), _server(_WEB, 80)),
            "web": _on_alpine(Path(scratch, "web"), _server(["/dispatcher"], 80)),
            "api": _on_alpine(Path(scratch, "api"), _server(_WORDS_SERVER, 8080)),
            "db": _on_alpine(Path(scratch, "db"), (Layer(), {"Cmd": ["sleep", "infinity"]})),
            "registry": _registry(Path(scratch, "registry")),
        }


def _server(command: list[str], port: int) -> tuple[Layer, dict[str, Any]]:
    """A web server under nginx's name and that of a demo's, path of documents and way to be called."""
    layer = Layer()
    busybox = shutil.which("busybox")
    if busybox is None:
        raise RuntimeError("no busybox: ./run-tests --setup-only installs it")
    layer.directory("usr/local/bin").directory("usr/share/nginx").directory("usr/share/nginx/html")
    layer.directory("usr/share/nginx/html/words")
    layer.file("usr/local/bin/busybox", Path(busybox).read_bytes(), 0o755)
    for name, script in (("nginx", _NGINX), ("java", _JAVA), ("curl", _CURL), ("bash", _BASH)):
        layer.file(f"usr/local/bin/{name}", script, 0o755)
    layer.file("dispatcher", f"#!/bin/sh\n{_HTTPD} 80\n", 0o755)
    layer.file("usr/share/nginx/html/index.html", "<title>Docker Compose demo</title>Welcome to nginx!")
    layer.file("usr/share/nginx/html/words/noun", _WORDS)
    return layer, {"Cmd": command, "ExposedPorts": {f"{port}/tcp": {}}, "StopSignal": "SIGKILL"}


def _on_alpine(directory: Path, content: tuple[Layer, dict[str, Any]]) -> Image:
    layer, config = content
    tree = directory / "tree"
    tree.mkdir(parents=True)
    image("alpine:3").unpack(tree)
    base = tar_of(tree, directory / "layer.tar")
    name = f"{directory.name}:latest"
    write_layout(directory / "layout", name, [Content([base, layer.bytes()], config)])
    return Image(name, directory / "layout")


def _registry(directory: Path) -> Image:
    """Debian's docker-registry in the place of Docker's own image of it."""
    program = shutil.which("docker-registry")
    if program is None:
        raise RuntimeError("no docker-registry: ./run-tests --setup-only installs it")
    tree = directory / "tree"
    tree.mkdir(parents=True)
    image("debian:stable").unpack(tree)
    base = tar_of(tree, directory / "layer.tar")
    layer = Layer().directory("etc/distribution")
    layer.file("usr/bin/registry", Path(program).read_bytes(), 0o755)
    layer.file("etc/distribution/config.yml", _REGISTRY)
    config = {
        "Cmd": ["registry", "serve", "/etc/distribution/config.yml"],
        "ExposedPorts": {"5000/tcp": {}},
        "Volumes": {"/var/lib/registry": {}},
    }
    write_layout(directory / "layout", "registry:3", [Content([base, layer.bytes()], config)])
    return Image("registry:3", directory / "layout")
