"""References as distribution/reference has them; what a real dockerd answered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent.errors import InvalidParameter
from guest_agent.images import reference
from guest_agent.images.reference import parse

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "name", "tag", "digest", "familiar"),
    [
        ("alpine", "docker.io/library/alpine", "", "", "alpine"),
        ("alpine:3.20", "docker.io/library/alpine", "3.20", "", "alpine:3.20"),
        ("library/alpine", "docker.io/library/alpine", "", "", "alpine"),
        ("docker.io/alpine", "docker.io/library/alpine", "", "", "alpine"),
        ("index.docker.io/alpine", "docker.io/library/alpine", "", "", "alpine"),
        ("index.docker.io/a/b", "docker.io/a/b", "", "", "a/b"),
        ("docker.io/library/foo/bar", "docker.io/library/foo/bar", "", "", "library/foo/bar"),
        ("ghcr.io/a/b:c@" + DIGEST, "ghcr.io/a/b", "c", DIGEST, "ghcr.io/a/b:c@" + DIGEST),
        ("localhost:5000/x", "localhost:5000/x", "", "", "localhost:5000/x"),
        ("localhost/x", "localhost/x", "", "", "localhost/x"),
        ("LOCALHOST/x", "LOCALHOST/x", "", "", "LOCALHOST/x"),
        ("foo_bar/x", "docker.io/foo_bar/x", "", "", "foo_bar/x"),
        ("[2001:db8::1]:5000/repo", "[2001:db8::1]:5000/repo", "", "", "[2001:db8::1]:5000/repo"),
        ("a/b/c/d@" + DIGEST, "docker.io/a/b/c/d", "", DIGEST, "a/b/c/d@" + DIGEST),
        ("xn--7o8h.com/myimage:xn", "xn--7o8h.com/myimage", "xn", "", "xn--7o8h.com/myimage:xn"),
        ("foo/foo_bar.com:8080", "docker.io/foo/foo_bar.com", "8080", "", "foo/foo_bar.com:8080"),
    ],
)
def test_is_read_as_docker_reads_it(text: str, name: str, tag: str, digest: str, familiar: str) -> None:
    ref = parse(text)
    assert (ref.name, ref.tag, ref.digest, ref.familiar) == (name, tag, digest, familiar)
    assert parse(str(ref)) == ref
    assert parse(ref.familiar) == ref


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid reference format"),
        ("foo:", "invalid reference format"),
        (":tag", "invalid reference format"),
        ("foo:bar:baz", "invalid reference format"),
        ("../x", "invalid reference format"),
        ("a//b", "invalid reference format"),
        ("-a/b", "invalid reference format"),
        ("a.b_c/x", "invalid reference format"),
        ("foo\n", "invalid reference format"),
        ("foo@sha256:abc", "invalid reference format"),
        ("foo@sha256:" + "AB" * 32, "invalid checksum digest format"),
        ("foo@md5:" + "ab" * 16, "unsupported digest algorithm"),
        ("foo@sha256:" + "ab" * 31, "invalid checksum digest length"),
        ("foo:" + "t" * 129, "invalid reference format"),
        ("Foo", "invalid reference format: repository name (library/Foo) must be lowercase"),
        ("a/B", "invalid reference format: repository name (a/B) must be lowercase"),
        ("a" * 300, "repository name must not be more than 255 characters"),
        (
            "ab" * 32,
            f"invalid repository name ({'ab' * 32}), cannot specify 64-byte hexadecimal strings",
        ),
    ],
)
def test_says_what_is_wrong_in_dockers_words(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(text)
    assert caught.value.message == message


@given(st.text(alphabet="aAbz09._-:/@[]", max_size=40))
def test_what_is_accepted_survives_a_round_trip(text: str) -> None:
    try:
        ref = parse(text)
    except InvalidParameter:
        return
    assert parse(str(ref)) == ref
    assert parse(ref.familiar) == ref
    assert "//" not in str(ref)
    assert ".." not in ref.path


def test_a_digest_in_place_of_a_name_is_an_image_id() -> None:
    assert reference.image_id("ab" * 32) == DIGEST
    assert reference.image_id(DIGEST) == DIGEST
    assert reference.image_id("abab") == ""
