"""From the text of a Dockerfile to its instructions as text: directives, comments, continuations,
heredocs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from guest_agent.build.dockerfile import shell, words
from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.types import InlineFile, Lines, Warning

MAX_LINE = 65535  # bytes, BuildKit's
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*", re.ASCII)
_DIRECTIVES = ("syntax", "escape", "check")
_HEREDOC = re.compile(r"(\d*)<<(-?)\s*([^<]*)", re.ASCII)
_LEADING_TABS = re.compile(r"^\t+", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Statement:
    """One instruction as text: continuations joined, heredocs apart."""

    text: str
    lines: Lines
    heredocs: tuple[InlineFile, ...] = ()


@dataclass(frozen=True, slots=True)
class Source:
    statements: tuple[Statement, ...]
    directives: dict[str, str]
    escape: str
    warnings: tuple[Warning, ...]


def split(source: bytes | str, escape: str = "\\") -> Source:
    """The statements of a Dockerfile. DockerfileError: a directive twice, an unterminated heredoc, no
    instruction."""
    return _Splitter(source, escape).split()


def heredoc(word: str) -> InlineFile | None:
    """What `<<NAME` in a word announces, without its content."""
    match = _HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    plain = shell.heredoc_words(match[3], raw_quotes=False)
    if len(plain) != 1:
        return None
    raw = shell.heredoc_words(match[3], raw_quotes=True)
    quoted = len(raw) != 1 or _quotes(raw[0]) != _quotes(plain[0])
    return InlineFile(
        name=plain[0],
        content="",
        expand=not quoted,
        strip_tabs=match[2] == "-",
        descriptor=int(match[1][:9] or "0"),
    )


def without_tabs(content: str) -> str:
    """The content of a `<<-` heredoc without the tabs its lines begin with."""
    return _LEADING_TABS.sub("", content)


def _quotes(word: str) -> int:
    return word.count("'") + word.count('"')


class _Splitter:
    def __init__(self, source: bytes | str, escape: str) -> None:
        text = source.decode("utf-8", "replace") if isinstance(source, bytes) else source
        self._lines = text.removeprefix("\ufeff").split("\n")
        if self._lines[-1] == "":
            self._lines.pop()
        self._next = 0
        self._directives: dict[str, str] = {}
        self._in_directives = True
        self._warnings: list[Warning] = []
        self._set_escape(escape)

    def split(self) -> Source:
        statements = []
        while self._next < len(self._lines):
            line = self._take().lstrip()
            self._directive(line)
            if line.startswith("#"):
                continue
            start = self._next
            line, ended = self._without_continuation(line)
            if ended and not line:
                continue
            text = line if ended else line + self._continued()
            heredocs = self._heredocs(text, start)
            statements.append(Statement(text, Lines(start, self._next), heredocs))
        if not statements:
            raise DockerfileError("file with no instructions", Lines(self._next, self._next))
        return Source(tuple(statements), self._directives, self._escape, tuple(self._warnings))

    def _take(self) -> str:
        line = self._take_raw()
        return line.rstrip("\r\n")

    def _take_raw(self) -> str:
        line = self._lines[self._next]
        self._next += 1
        if len(line) > MAX_LINE // 4 and len(line.encode()) > MAX_LINE:
            raise DockerfileError(
                f"dockerfile line greater than max allowed size of {MAX_LINE}", Lines(self._next, self._next)
            )
        return line

    def _set_escape(self, escape: str) -> None:
        self._escape = escape
        token = re.escape(escape)
        self._continuation = re.compile(rf"(^|[^{token}]){token}[ \t]*\Z")

    def _directive(self, line: str) -> None:
        """Directives stand before everything else, comments included."""
        if not self._in_directives:
            return
        match = _DIRECTIVE.fullmatch(line)
        name = match[1].lower() if match else ""
        if match is None or name not in _DIRECTIVES:
            self._in_directives = False
            return
        lines = Lines(self._next, self._next)
        if name in self._directives:
            raise DockerfileError(f"only one {name} parser directive can be used", lines)
        self._directives[name] = match[2]
        if name == "escape":
            if match[2] not in ("\\", "`"):
                raise DockerfileError(f"invalid escape token '{match[2]}' does not match ` or \\", lines)
            self._set_escape(match[2])

    def _without_continuation(self, line: str) -> tuple[str, bool]:
        match = self._continuation.search(line)
        if match is None:
            return line, True
        return line[: match.start()] + match[1], False

    def _continued(self) -> str:
        """The lines that follow one with a continuation; comments and empty lines between them are left
        out."""
        parts = []
        empty = False
        ended = False
        while not ended and self._next < len(self._lines):
            line = self._take()
            if line.lstrip().startswith("#"):
                continue
            if not line.strip():
                empty = True
                continue
            line, ended = self._without_continuation(line)
            parts.append(line)
        if empty:
            self._warnings.append(
                Warning("Empty continuation line found", Lines(self._next, self._next)),
            )
        return "".join(parts)

    def _heredocs(self, text: str, start: int) -> tuple[InlineFile, ...]:
        if "<<" not in text or not words.may_have_heredocs(text, self._escape):
            return ()
        files = []
        for word in shell.raw_words(text):
            announced = heredoc(word)
            if announced is not None:
                files.append(self._content(announced, start))
        return tuple(files)

    def _content(self, file: InlineFile, start: int) -> InlineFile:
        content: list[str] = []
        while self._next < len(self._lines):
            line = self._take_raw()
            shown = line.rstrip("\r\n")
            if (shown.lstrip("\t") if file.strip_tabs else shown) == file.name:
                return InlineFile(file.name, "".join(content), file.expand, file.strip_tabs, file.descriptor)
            content.append(line + "\n")
        raise DockerfileError("unterminated heredoc", Lines(start, self._next))
