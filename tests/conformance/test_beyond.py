"""What our engine does where dockerd cannot be compared: it needs files of its host, or does less."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import registry
from tests.support.engine import OurEngine
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.ours]


def test_load_an_oci_layout(own_engine: OurEngine, image: Callable[[str], Image], tmp_path: Path) -> None:
    layout = image("capabilities:latest").layout
    with tarfile.open(tmp_path / "layout.tar", "w") as tar:
        tar.add(layout, ".")
    assert own_engine.docker.ok("load", "-i", tmp_path / "layout.tar") == "Loaded image: capabilities:latest"


def test_sparse_files_stay_sparse(own_engine: OurEngine, image: Callable[[str], Image]) -> None:
    own_engine.docker.ok("load", "-q", "-i", image("oddities:latest").archive())
    size, blocks = own_engine.docker.ok(
        "run", "--rm", "oddities", "stat", "-c", "%s %b", "/odd/sparse"
    ).split()
    assert int(size) == 64 << 20
    assert int(blocks) < 1000


def test_certificate_authority(
    start_engine: Callable[..., OurEngine], tls_registry: registry.TlsRegistry, tmp_path: Path
) -> None:
    """A registry whose certificate nobody vouches for is refused; with its authority in certs.d it is trusted."""
    reference = f"{tls_registry.address}/busybox"
    engine = start_engine("--certs-dir", str(tmp_path))
    result = engine.docker("pull", reference)
    assert result.code == 1
    assert "certificate" in result.err
    assert engine.docker.ok("images", "-q") == ""
    directory = tmp_path / tls_registry.address
    directory.mkdir()
    (directory / "ca.crt").write_bytes(tls_registry.authority.path.read_bytes())
    engine.docker.ok("pull", "-q", reference)
    assert engine.docker.ok("run", "--rm", reference, "echo", "trusted") == "trusted"


def test_mirror(
    start_engine: Callable[..., OurEngine],
    mirror_registry: registry.Registry,
    plain_registry: registry.Registry,
) -> None:
    """A mirror is asked first, for any registry, and the image keeps the name it was asked for by."""
    name = f"{plain_registry.address}/busybox"
    engine = start_engine("--registry-mirror", f"{plain_registry.address}=http://{mirror_registry.address}")
    engine.docker.ok("pull", "-q", name)
    assert engine.docker.ok("images", "--format", "{{.Repository}}") == name
    assert any("GET /v2/busybox/manifests/latest" in line for line in mirror_registry.log)
