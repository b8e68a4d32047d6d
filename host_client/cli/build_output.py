"""`wherry build --output`: what the engine sends behind a build's messages goes to a folder or a file."""

from __future__ import annotations

import os

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.engine_api.wire import scan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from host_client.engine_api.http import Response

_KINDS = {"local": "tar", "tar": "tar", "oci": "oci", "docker": "oci"}


class Output:
    """One `--output`: a folder, or TYPE and FILE."""

    def __init__(self, text: str) -> None:
        fields = dict(part.partition("=")[::2] for part in text.split(","))
        if "=" not in text:
            fields = {"type": "tar" if text == "-" else "local", "dest": text}
        self.type = fields.pop("type", "")
        self.path = fields.pop("dest", "")
        if self.type not in _KINDS or fields:
            raise CliError(
                f"invalid output: {text}", "write it as FOLDER, or type=local|tar|oci|docker,dest=PATH"
            )
        if not self.path and self.type == "local":
            raise CliError("dest is required for local output", "write it as type=local,dest=FOLDER")
        if self.path == "-":
            self.path = ""
        if not self.path and output.is_terminal(output.OUT):
            raise CliError("dest file is required, or standard output that is no terminal")

    @property
    def kind(self) -> str:
        """What the engine is to send."""
        return _KINDS[self.type]

    @property
    def to_standard_output(self) -> bool:
        """Whether there is no room for messages there."""
        return not self.path

    def messages(self, response: Response) -> Iterator[Any]:
        """The messages of a build, and at their end what comes behind them is put in its place.

        Raises:
            CliError: it cannot be written.
        """
        chunks = response.chunks()
        rest = b""
        for chunk in chunks:
            rest += chunk
            while b"\n" in rest:
                line, _, rest = rest.partition(b"\n")
                for message in scan(line.decode("utf-8", "replace")):
                    if "output" in message:
                        self._put(rest, chunks)
                        return
                    yield message

    def _put(self, first: bytes, chunks: Iterator[bytes]) -> None:
        def pieces() -> Iterator[bytes]:
            if first:
                yield first
            yield from chunks

        if self.type == "local":
            from host_client.cli.unpack import extract

            try:
                os.makedirs(self.path, exist_ok=True)
            except OSError as error:
                raise CliError(f"cannot write {self.path}: {error.strerror or error}")
            extract(pieces(), self.path, "")
            return
        if not self.path:
            for piece in pieces():
                output.write_bytes(output.OUT, piece)
            return
        temporary = f"{self.path}.{os.getpid()}.part"
        try:
            try:
                with open(temporary, "wb") as file:
                    for piece in pieces():
                        file.write(piece)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, self.path)
            except BaseException:
                if os.path.exists(temporary):
                    os.unlink(temporary)
                raise
        except OSError as error:
            raise CliError(f"cannot write {self.path}: {error.strerror or error}")
