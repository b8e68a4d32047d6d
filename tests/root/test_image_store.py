"""The image store on a real file system, as root: layers, containers, collection, recovery."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest_agent.errors import Conflict, NotFound, NotSupported, Unavailable
from guest_agent.images import Image, ImageStore, reference
from guest_agent.images.assemble import add_image, extract_layers, store_stream
from guest_agent.images.load import import_tar
from guest_agent.images.manifest import encode
from guest_agent.roots import Roots

pytestmark = pytest.mark.root


@pytest.fixture
def roots(tmp_path: Path) -> Roots:
    return Roots(str(tmp_path / "data"), str(tmp_path / "run"))


@pytest.fixture
def store(roots: Roots) -> Iterator[ImageStore]:
    store = ImageStore(roots)
    yield store
    store.close()


def layer(*members: tuple[str, bytes | None], **fields: Any) -> bytes:
    """A plain tar of files (or, without content, directories)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o755
            for key, value in fields.items():
                setattr(info, key, value)
            if content is None:
                info.type = tarfile.DIRTYPE
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def image_of(store: ImageStore, name: str, *layers: bytes, **config: Any) -> Image:
    """An image made of these layer tars."""
    import hashlib

    with store.lease() as lease:
        blobs = [store_stream(store, lease, io.BytesIO(data).read) for data in layers]
        diffs = [f"sha256:{hashlib.sha256(data).hexdigest()}" for data in layers]
        extract_layers(store, lease, blobs, diffs)
        document = {"os": "linux", "rootfs": {"type": "layers", "diff_ids": diffs}, "config": config}
        names = [reference.parse(name).with_default_tag()] if name else []
        return add_image(store, lease, encode(document), blobs, names)[0]


def blobs(store: ImageStore) -> set[str]:
    return set(store.content.digests())


def test_names_ids_and_their_beginnings_lead_to_the_image(store: ImageStore) -> None:
    image = image_of(store, "thing:1", layer(("a", b"a")))
    for name in (
        "thing:1",
        "docker.io/library/thing:1",
        image.id,
        image.id[7:],
        image.id[7:19],
        image.id[:12],
    ):
        assert store.get(name).id == image.id
    with pytest.raises(NotFound, match=r"^No such image: thing:latest$"):
        store.get("thing")
    with pytest.raises(NotFound, match=r"^No such image: sha256:(00){32}$"):
        store.get("00" * 32)


def test_images_share_layers_and_the_last_one_takes_them_along(store: ImageStore) -> None:
    base, one, two = layer(("base", b"b")), layer(("one", b"1")), layer(("two", b"22"))
    first = image_of(store, "first", base, one)
    second = image_of(store, "second", base, two)
    assert first.chains[0] == second.chains[0]
    assert (first.size, second.size) == (2, 3)
    assert store.delete(first.id) == [first.chains[1]]
    assert set(store.snapshots.chains()) == set(second.chains)
    assert store.delete(second.id) == [second.chains[1], second.chains[0]]
    assert list(store.snapshots.chains()) == []
    assert blobs(store) == set()


def test_a_container_gets_its_own_writable_directory_and_keeps_the_layers(store: ImageStore) -> None:
    image = image_of(store, "base", layer(("", None), ("file", b"x"), mode=0o711, uid=7, gid=8))
    overlay = asyncio.run(store.prepare("c1", image))
    assert overlay == store.overlay("c1")
    assert overlay.lower == (store.snapshots.path(image.chains[0]),)
    st = os.stat(overlay.upper)
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o711, 7, 8)
    with pytest.raises(Conflict):
        asyncio.run(store.prepare("c1", image))
    assert store.delete(image.id) == []
    assert os.path.exists(os.path.join(store.overlay("c1").lower[0], "file"))
    asyncio.run(store.remove("c1"))
    assert list(store.snapshots.chains()) == []
    with pytest.raises(NotFound):
        store.overlay("c1")


def test_a_size_needs_project_quotas_and_says_what_they_need(store: ImageStore, roots: Roots) -> None:
    """As far as any kernel has them: where they are in force is in tests/vm."""
    image = image_of(store, "base", layer(("file", b"x")))
    with pytest.raises(NotSupported, match="supported only for overlay over xfs with 'pquota'") as caught:
        asyncio.run(store.prepare("c1", image, 1 << 30))
    assert store.snapshots._containers in caught.value.hint
    assert list(store.snapshots.containers()) == []
    with pytest.raises(NotFound):
        store.root_of("c1")
    asyncio.run(store.prepare("c1", image, 0))
    others = Roots(roots.data_path("other"), roots.run)
    with pytest.raises(NotSupported):
        ImageStore(others, default_size=1 << 30)
    ImageStore(others).close()  # the failed one let go of it


def test_an_image_without_layers_has_an_empty_root(store: ImageStore) -> None:
    image = image_of(store, "empty")
    overlay = asyncio.run(store.prepare("c", image))
    assert os.listdir(overlay.lower[0]) == []


def test_one_process_at_a_time(store: ImageStore, roots: Roots) -> None:
    with pytest.raises(Unavailable, match="in use by another engine"):
        ImageStore(roots)


def test_leftovers_are_collected_when_the_store_opens(roots: Roots) -> None:
    store = ImageStore(roots)
    kept = image_of(store, "kept", layer(("a", b"a")))
    asyncio.run(store.prepare("kept", kept))
    with store.lease() as lease:  # a pull that is killed here: blobs and a layer, no image
        blob = store_stream(store, lease, io.BytesIO(layer(("b", b"b"))).read)
        half = store.content.writer()
        half.write(b"half")
        staged = store.snapshots.stage()
        os.mkdir(store.snapshots.path("sha256:" + "0" * 64))
        os.mkdir(os.path.join(store.root, "containers", "unknown"))
        before = blobs(store) - {blob.digest}
        store.close()
        store = ImageStore(roots)
    try:
        assert blobs(store) == before
        assert list(store.snapshots.chains()) == list(kept.chains)
        assert list(store.snapshots.containers()) == ["kept"]
        assert os.listdir(store.content.ingest) == []
        for _ in range(100):
            if not os.path.exists(staged):
                break
            os.sched_yield()
        assert store.get("kept").id == kept.id
    finally:
        half.close()
        store.close()


def test_a_lease_keeps_what_a_pull_in_flight_has_stored(store: ImageStore) -> None:
    with store.lease() as lease:
        blob = store_stream(store, lease, io.BytesIO(layer(("a", b"a"))).read)
        store.collect()
        assert store.content.has(blob.digest)
    store.collect()
    assert not store.content.has(blob.digest)


def test_import_makes_an_image_of_one_layer(store: ImageStore) -> None:
    data = layer(("etc", None), ("etc/hostname", b"box"))
    loaded = import_tar(
        store, io.BytesIO(gzip.compress(data)).read, reference.parse("imported"), {"Cmd": ["sh"]}, "by hand"
    )
    image = store.get("imported")
    assert image.id == loaded.image.id
    assert image.config["config"] == {"Cmd": ["sh"]}
    assert image.config["history"][0]["comment"] == "by hand"
    assert Path(store.image_overlay(image).lower[0], "etc/hostname").read_bytes() == b"box"
