"""The HTTP parser against h11: what it accepts, h11 reads the same; what h11 makes, it reads."""

from __future__ import annotations

import string

import h11
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from guest_agent.api import wire

TOKEN = st.text(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~", min_size=1, max_size=12)
TARGET = st.text(string.ascii_letters + string.digits + "/?%=&:-._~", max_size=30).map(
    lambda text: "/" + text
)
VALUE = st.text([chr(code) for code in range(0x21, 0x7F)], max_size=20)


def h11_reads(data: bytes) -> tuple[h11.Request, bytes, bytes] | None:
    """The request, its body and what follows as h11 reads it; None when it refuses or wants more."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    try:
        request = server.next_event()
        if not isinstance(request, h11.Request):
            return None
        body = b""
        while True:
            event = server.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.EndOfMessage):
                return request, body, server.trailing_data[0]
            if isinstance(event, h11.Data):
                body += event.data
    except h11.RemoteProtocolError:
        return None


def ours_reads(data: bytes) -> tuple[wire.Head, bytes, bytes] | None:
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    buffer = bytearray(data[end + 4 :])
    try:
        head = wire.parse_head(data[:end])
        length = head.body_length()
        if length != wire.CHUNKED:
            return (head, bytes(buffer[:length]), bytes(buffer[length:])) if len(buffer) >= length else None
        decoder, body = wire.ChunkedDecoder(), b""
        while not decoder.done:
            piece = decoder.take(buffer)
            if not piece and not decoder.done:
                return None
            body += piece
        return head, body, bytes(buffer)
    except wire.ProtocolError:
        return None


@settings(deadline=None)
@given(
    method=TOKEN,
    target=TARGET,
    headers=st.dictionaries(TOKEN.map(str.lower), VALUE, max_size=5),
    body=st.binary(max_size=100),
    chunked=st.booleans(),
    pieces=st.integers(1, 5),
)
def test_what_h11_writes_is_read(
    method: str, target: str, headers: dict[str, str], body: bytes, chunked: bool, pieces: int
) -> None:
    for name in ("content-length", "transfer-encoding", "host", "connection", "expect"):
        headers.pop(name, None)
    client = h11.Connection(h11.CLIENT)
    framing = {"transfer-encoding": "chunked"} if chunked else {"content-length": str(len(body))}
    sent = client.send(
        h11.Request(method=method, target=target, headers=list(({"host": "x"} | headers | framing).items()))
    )
    step = max(len(body) // pieces, 1)
    for start in range(0, len(body), step):
        sent += client.send(h11.Data(data=body[start : start + step]))
    sent += client.send(h11.EndOfMessage())
    read = ours_reads(sent + b"NEXT")
    assert read is not None
    head, got, rest = read
    assert (head.method, head.target, got, rest) == (method, target, body, b"NEXT")
    assert all(head.headers[name] == value for name, value in headers.items())


# What heads are made of, good and bad.
PARTS = """GET / HTTP/1.1|POST /a?b HTTP/1.0|Host: a|Host:a|Content-Length: 3|Content-Length: 03
Content-Length: -3|Content-Length: 3, 3|Transfer-Encoding: chunked|Transfer-Encoding: Chunked
Transfer-Encoding: x|Connection: close|Connection: keep-alive|Expect: 100-continue| folded|x : y
x:\ty ||3|3;a=b|abc|0|FFFFFFFFFFFFFFFFF|x: a\x00b|x: \x7f|é: b""".replace("\n", "|").split("|")
LINES = st.lists(st.one_of(st.sampled_from(PARTS), st.text(max_size=8)), max_size=9)


@settings(deadline=None)
@given(lines=LINES, ending=st.sampled_from(["\r\n", "\r\n", "\r\n", "\n", "\r"]))
@example(["GET / HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "3", "abc", "0", ""], "\r\n")
def test_what_is_accepted_h11_reads_the_same(lines: list[str], ending: str) -> None:
    data = (ending.join(lines) + ending + "\r\n").encode()
    ours = ours_reads(data)
    if ours is None:
        return
    theirs = h11_reads(data)
    assert theirs is not None
    request, body, rest = theirs
    assert ours[0].method.encode() == request.method
    assert ours[0].target.encode() == request.target
    assert ours[1:] == (body, rest)


@settings(deadline=None)
@given(st.binary(max_size=200), st.lists(st.integers(1, 50), max_size=20))
def test_chunked_decoding_does_not_depend_on_how_the_bytes_arrive(data: bytes, cuts: list[int]) -> None:
    encoded = (
        b"".join(wire.chunk(data[start : start + 7]) for start in range(0, len(data), 7)) + wire.LAST_CHUNK
    )
    decoder, buffer, decoded, position = wire.ChunkedDecoder(), bytearray(), b"", 0
    for size in [*cuts, len(encoded)]:
        buffer += encoded[position : position + size]
        position += size
        while piece := decoder.take(buffer):
            decoded += piece
    assert decoder.done
    assert decoded == data


@settings(deadline=None)
@given(st.binary(max_size=64))
def test_any_bytes_are_a_head_or_a_protocol_error(data: bytes) -> None:
    try:
        wire.parse_head(data).body_length()
        status = 200
    except wire.ProtocolError as error:
        status = error.status
    assert status in wire.REASONS


def test_a_response_header_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="Location"):
        wire.response_head(200, {"Location": "x\r\nSet-Cookie: y"})
