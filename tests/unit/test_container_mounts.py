"""`--volume`, `--mount` and `--volumes-from` as dockerd reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.engine.container_config import (
    BindOptions,
    ImageOptions,
    Mount,
    TmpfsOptions,
    VolumeOptions,
)
from guest_agent.engine.mounts import (
    check_mount,
    clean_path,
    merge_tmpfs_options,
    mount_point,
    parse_volume,
    parse_volumes_from,
    tmpfs_options,
)
from guest_agent.errors import EngineError, InvalidParameter


@pytest.mark.parametrize(
    ("text", "kind", "source", "name", "destination", "writable", "propagation"),
    [
        ("/x", "volume", "", "", "/x", True, ""),
        ("/a:/x", "bind", "/a", "", "/x", True, "rprivate"),
        ("/a:/x:ro", "bind", "/a", "", "/x", False, "rprivate"),
        ("/a/../b:/x//y/", "bind", "/b", "", "/x/y", True, "rprivate"),
        ("/a:/x:ro,z,rslave", "bind", "/a", "", "/x", False, "rslave"),
        ("name:/x:nocopy", "volume", "", "name", "/x", True, ""),
        ("name:/x:ro", "volume", "", "name", "/x", False, ""),
    ],
)
def test_volume_arguments(
    text: str, kind: str, source: str, name: str, destination: str, writable: bool, propagation: str
) -> None:
    point = parse_volume(text)
    assert (point.type, point.source, point.name, point.destination) == (kind, source, name, destination)
    assert (point.rw, point.propagation) == (writable, propagation)
    assert point.copy_data is (kind == "volume" and "nocopy" not in text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid volume specification: ''"),
        (":/x", "invalid volume specification: ':/x'"),
        ("/x:ro", "invalid volume specification: '/x:ro'"),
        ("/a:/b:/c:/d", "invalid volume specification: '/a:/b:/c:/d'"),
        ("/a:/b:nonsense", "invalid mode: nonsense"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:/b:rslave,rshared", "invalid mode: rslave,rshared"),
        (
            "/a:b",
            "invalid volume specification: '/a:b': invalid mount config for type \"bind\": "
            "invalid mount path: 'b' mount path must be absolute",
        ),
        (
            "/a:/",
            "invalid volume specification: '/a:/': invalid mount config for type \"bind\": "
            "invalid specification: destination can't be '/'",
        ),
    ],
)
def test_volume_arguments_that_are_wrong(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_volume(text)
    assert caught.value.message == message


@given(st.text(alphabet="/:.abro,z", max_size=24))
def test_any_volume_argument_is_read_or_refused(text: str) -> None:
    try:
        point = parse_volume(text)
    except InvalidParameter:
        return
    assert point.destination.startswith("/")
    assert point.destination != "/"
    assert ".." not in point.destination.split("/")
    assert point.type != "bind" or point.source.startswith("/")


@given(st.text(alphabet="/.ab", max_size=16).map(lambda text: "/" + text))
def test_cleaned_paths_have_no_dots_and_stay_absolute(path: str) -> None:
    cleaned = clean_path(path)
    assert cleaned.startswith("/")
    assert not cleaned.startswith("//")
    assert not {".", ".."}.intersection(cleaned.split("/"))
    assert clean_path(cleaned) == cleaned


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        (Mount("bind", "/nonesuch", "/x"), "bind source path does not exist: /nonesuch"),
        (Mount("bind", "", "/x"), "field Source must not be empty"),
        (Mount("bind", "a", "/x"), "invalid mount path: 'a' mount path must be absolute"),
        (Mount("bind", "/", ""), "field Target must not be empty"),
        (Mount("bind", "/", "x"), "invalid mount path: 'x' mount path must be absolute"),
        (Mount("bind", "/", "/a/.."), "invalid specification: destination can't be '/'"),
        (
            Mount("bind", "/", "/x", bind_options=BindOptions(propagation="odd")),
            "invalid propagation mode: odd",
        ),
        (
            Mount("bind", "/", "/x", volume_options=VolumeOptions()),
            "field VolumeOptions must not be specified",
        ),
        (
            Mount("bind", "/", "/x", bind_options=BindOptions(read_only_force_recursive=True)),
            "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive",
        ),
        (Mount("volume", "v", "/x", bind_options=BindOptions()), "field BindOptions must not be specified"),
        (
            Mount("volume", "", "/x", volume_options=VolumeOptions(subpath="a")),
            "must not set Subpath when using anonymous volumes",
        ),
        (
            Mount("volume", "", "/x", read_only=True),
            "must not set ReadOnly mode when using anonymous volumes",
        ),
        (
            Mount("volume", "v", "/x", volume_options=VolumeOptions(subpath="../a")),
            "subpath must be a relative path within the volume",
        ),
        (
            Mount("image", "i", "/x", image_options=ImageOptions(subpath="/a")),
            "subpath must be a relative path within the volume",
        ),
        (Mount("tmpfs", "s", "/x"), "field Source must not be specified"),
        (
            Mount("tmpfs", "", "/x", tmpfs_options=TmpfsOptions(options=[["suid"]])),
            "invalid option: suid",
        ),
        (Mount("npipe", "s", "/x"), "mount type unknown"),
    ],
)
def test_mounts_that_are_wrong(mount: Mount, message: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_mount(mount)
    assert caught.value.message == f'invalid mount config for type "{mount.type}": {message}'


def test_mounts(tmp_path: Path) -> None:
    point = mount_point(Mount("bind", f"{tmp_path}/", "/x/", read_only=True))
    assert (point.source, point.destination, point.rw) == (os.fspath(tmp_path), "/x", False)
    volume = mount_point(Mount("volume", "v", "/x", volume_options=VolumeOptions(no_copy=True)))
    assert (volume.name, volume.copy_data) == ("v", False)
    image = mount_point(Mount("image", "busybox", "/x"))
    assert not image.rw


def test_volumes_from() -> None:
    assert parse_volumes_from("one") == ("one", True)
    assert parse_volumes_from("one:ro") == ("one", False)
    for text in ("", "one:nonsense", "one:rslave", "one:nocopy"):
        with pytest.raises(InvalidParameter):
            parse_volumes_from(text)


def test_tmpfs_options() -> None:
    options = TmpfsOptions(size_bytes=1 << 20, mode=0o1770, options=[["exec"]])
    assert tmpfs_options(options, read_only=True) == "ro,mode=1770,size=1048576,exec"
    assert tmpfs_options(None, read_only=False) == ""


def test_the_last_of_tmpfs_options_that_exclude_each_other_wins() -> None:
    given = ["noexec", "nosuid", "nodev", "rprivate", "exec", "size=1m", "size=2m", "rslave", "defaults"]
    assert merge_tmpfs_options(given) == ["nosuid", "nodev", "exec", "size=2m", "rslave"]
