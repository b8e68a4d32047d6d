"""From the text of a template to its nodes."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SPACE = " \t\r\n"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
DIGITS = "0123456789"
ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "\\": "\\",
    '"': '"',
    "'": "'",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
}
BLOCKS = ("if", "range", "with")


class TemplateError(Exception):
    """The template is wrong; the message is Go's."""


class Node:
    """A part of a template. `kind` says which fields have a meaning; `text` is its source, `position` its
    offset.
    """

    __slots__ = ("body", "kind", "other", "parts", "position", "text", "value")

    def __init__(self, kind: str, position: int, text: str = "", value: Any = None) -> None:
        self.kind = kind
        self.position = position
        self.text = text
        self.value = value
        self.parts: list[Node] = []
        self.body: list[Node] = []
        self.other: list[Node] = []


class Token:
    """A word of an action."""

    __slots__ = ("end", "kind", "position", "spaced", "text", "value")

    def __init__(self, kind: str, text: str, position: int, spaced: bool, value: Any = None) -> None:
        self.kind = kind
        self.text = text
        self.position = position
        self.end = position + len(text)
        self.spaced = spaced  # white space stands before it
        self.value = value


def parse_nodes(source: str) -> list[Node]:
    """The nodes of a template.

    Raises:
        TemplateError: it cannot be read.
    """
    pieces = _pieces(source)
    nodes, ending = _block(source, pieces, 0, "")
    if ending != len(pieces):
        raise _error(source, pieces[ending][2], f"unexpected {{{{{pieces[ending][1].strip()}}}}}")
    return nodes


def _error(source: str, position: int, message: str) -> TemplateError:
    return TemplateError(f"template: :{source.count(chr(10), 0, position) + 1}: {message}")


def _pieces(source: str) -> list[tuple[str, str, int]]:
    """Alternating text and actions, trimmed at `{{-` and `-}}`, comments left out."""
    pieces: list[tuple[str, str, int]] = []
    position, trim = 0, False
    while True:
        start = source.find("{{", position)
        text = source[position:] if start < 0 else source[position:start]
        if trim:
            text = text.lstrip(SPACE)
        if start < 0:
            if text:
                pieces.append(("text", text, position))
            return pieces
        inner = start + 2
        if source[inner : inner + 1] == "-" and source[inner + 1 : inner + 2] in tuple(SPACE):
            text = text.rstrip(SPACE)
            inner += 1
        if text:
            pieces.append(("text", text, position))
        end = _action_end(source, inner)
        content = source[inner:end]
        trim = content.endswith("-") and content[-2:-1] in tuple(SPACE)
        if trim:
            content = content[:-1]
        if content.strip().startswith("/*"):
            if not content.strip().endswith("*/"):
                raise _error(source, start, "unclosed comment")
        else:
            pieces.append(("action", content, inner))
        position = end + 2


def _action_end(source: str, position: int) -> int:
    quote = ""
    comment = source[position:].lstrip(SPACE).startswith("/*")
    start = position
    while position < len(source):
        character = source[position]
        if comment:
            if source.startswith("*/", position):
                comment = False
                position += 1
        elif quote:
            if character == "\\" and quote != "`":
                position += 1
            elif character == quote:
                quote = ""
            elif character == "\n" and quote != "`":
                raise _error(source, position, "unterminated quoted string")
        elif character in "\"'`":
            quote = character
        elif source.startswith("}}", position):
            return position
        position += 1
    if quote:
        raise _error(
            source, start, "unterminated quoted string" if quote != "`" else "unterminated raw quoted string"
        )
    raise _error(source, start, "unclosed comment" if comment else "unclosed action")


def _block(
    source: str, pieces: list[tuple[str, str, int]], index: int, inside: str
) -> tuple[list[Node], int]:
    """Nodes up to the `end` or `else` that closes the block `inside` (not consumed)."""
    nodes: list[Node] = []
    while index < len(pieces):
        kind, text, position = pieces[index]
        if kind == "text":
            nodes.append(Node("text", position, text))
            index += 1
            continue
        word = text.split(None, 1)[0] if text.strip() else ""
        if word in ("end", "else"):
            return nodes, index
        if word in BLOCKS:
            node, index = _control(source, pieces, index, word, position + text.index(word) + len(word))
            nodes.append(node)
            continue
        if word in ("break", "continue") and text.strip() == word:
            nodes.append(Node(word, position))
            index += 1
            continue
        if word in ("define", "template", "block"):
            raise _error(source, position, f"{{{{{word}}}}} is not supported in --format")
        nodes.append(_Pipeline(source, position, text).read())
        index += 1
    if inside:
        raise _error(source, len(source), "unexpected EOF")
    return nodes, index


def _control(
    source: str, pieces: list[tuple[str, str, int]], index: int, word: str, start: int
) -> tuple[Node, int]:
    _, text, position = pieces[index]
    node = Node(word, position)
    rest = text[start - position :]
    if not rest.strip():
        raise _error(source, position, f"missing value for {word}")
    node.parts = [_Pipeline(source, start, rest).read()]
    node.body, index = _block(source, pieces, index + 1, word)
    _, text, position = pieces[index]
    words = text.split(None, 2)
    if words[0] == "else":
        if len(words) > 1:  # else if, else with: a block of its own that shares our end
            if words[1] not in ("if", "with"):
                raise _error(source, position, f"unexpected <{words[1]}> in {{{{else}}}}")
            inner, index = _control(
                source, pieces, index, words[1], position + text.index(words[1], 4) + len(words[1])
            )
            node.other = [inner]
            return node, index
        node.other, index = _block(source, pieces, index + 1, word)
        if pieces[index][1].split()[0] == "else":
            raise _error(source, pieces[index][2], "expected end; found {{else}}")
    return node, index + 1


class _Pipeline:
    """Reads one action: `[$x := ] command { | command }`."""

    def __init__(self, source: str, position: int, text: str) -> None:
        self._source = source
        self._tokens = _tokens(source, position, text)
        self._index = 0
        self._start = position
        self._end = position + len(text)

    def read(self) -> Node:
        """The whole action as a pipeline node; `value` holds the variables it sets."""
        node = self._pipeline("")
        if self._index != len(self._tokens):
            raise _error(
                self._source, self._start, f"unexpected {self._tokens[self._index].text!r} in command"
            )
        return node

    def _peek(self, ahead: int = 0) -> str:
        at = self._index + ahead
        return self._tokens[at].kind if at < len(self._tokens) else ""

    def _pipeline(self, closing: str) -> Node:
        node = Node("pipeline", self._start)
        names: list[str] = []
        if self._peek() == "variable" and self._peek(1) in (":=", "=", ","):
            names.append(self._tokens[self._index].text)
            self._index += 1
            if self._peek() == "," and self._peek(1) == "variable":
                names.append(self._tokens[self._index + 1].text)
                self._index += 2
            assign = self._peek()
            if assign not in (":=", "="):
                raise _error(self._source, self._start, "expected := in range")
            self._index += 1
            node.value = (assign, names)
        while True:
            node.parts.append(self._command(closing))
            if self._peek() != "|":
                break
            self._index += 1
        return node

    def _command(self, closing: str) -> Node:
        command = Node("command", self._start)
        while self._peek() not in ("", "|", closing or None):
            command.parts.append(self._operand())
        if not command.parts:
            raise _error(self._source, self._start, "missing value for command")
        command.position = command.parts[0].position
        command.text = " ".join(part.text for part in command.parts)
        return command

    def _operand(self) -> Node:
        token = self._tokens[self._index]
        self._index += 1
        if token.kind == "(":
            inner = self._pipeline(")")
            if self._peek() != ")":
                raise _error(self._source, token.position, "unclosed left paren")
            closing = self._tokens[self._index]
            self._index += 1
            inner.text = self._source[token.position : closing.end]
            inner.position = token.position
            return self._chain(inner)
        node = Node(token.kind, token.position, token.text, token.value)
        if token.kind == "field":
            node.value = [token.text[1:]]
            return self._chain(node)
        if token.kind == "variable":
            node.value = [token.text]
            return self._chain(node)
        if token.kind in ("dot", "string", "number", "bool", "nil", "function"):
            return self._chain(node) if token.kind == "dot" else node
        raise _error(self._source, token.position, f"unexpected {token.text!r} in operand")

    def _chain(self, node: Node) -> Node:
        names: list[str] = []
        position = -1
        while self._peek() == "field" and not self._tokens[self._index].spaced:
            token = self._tokens[self._index]
            names.append(token.text[1:])
            if position < 0:
                position = token.position
            node.text += token.text
            self._index += 1
        if not names:
            return node
        if node.kind in ("field", "variable"):
            node.value = [*node.value, *names]
            node.position = position
            return node
        chain = Node("chain", position, node.text, names)
        chain.parts = [node]
        return chain


def _tokens(source: str, position: int, text: str) -> list[Token]:
    tokens: list[Token] = []
    index, spaced = 0, True
    while index < len(text):
        character = text[index]
        start = position + index
        if character in SPACE:
            spaced = True
            index += 1
            continue
        kind, length, value = _token(source, text, index, start)
        tokens.append(Token(kind, text[index : index + length], start, spaced, value))
        index += length
        spaced = False
    return tokens


def _token(source: str, text: str, index: int, start: int) -> tuple[str, int, Any]:
    character = text[index]
    rest = text[index + 1 : index + 2]
    if character == ".":
        if rest and rest in LETTERS:
            return "field", 1 + _word_length(text, index + 1), None
        if not rest or rest not in DIGITS:
            return "dot", 1, None
    if character == "$":
        return "variable", 1 + _word_length(text, index + 1), None
    if character in "\"`'":
        return _quoted(source, text, index, start)
    if character in LETTERS:
        length = _word_length(text, index)
        word = text[index : index + length]
        if word in ("true", "false"):
            return "bool", length, word == "true"
        return ("nil" if word == "nil" else "function"), length, None
    if text.startswith(":=", index):
        return ":=", 2, None
    if character in "=|(),":
        return character, 1, None
    if character in DIGITS or (character in "+-." and rest and rest in DIGITS + "."):
        length = 1
        while index + length < len(text) and text[index + length] in DIGITS + LETTERS + ".":
            length += 1
        word = text[index : index + length]
        try:
            return (
                "number",
                length,
                int(word, 0) if word.lstrip("+-").isdigit() or "x" in word else float(word),
            )
        except ValueError:
            raise _error(source, start, f"bad number syntax: {word!r}")
    raise _error(source, start, f"unexpected {character!r} in operand")


def _word_length(text: str, index: int) -> int:
    length = 0
    while index + length < len(text) and (
        text[index + length] in LETTERS + DIGITS or text[index + length] > "\x7f"
    ):
        length += 1
    return length


def _quoted(source: str, text: str, index: int, start: int) -> tuple[str, int, Any]:
    quote = text[index]
    end = index + 1
    value = ""
    while text[end] != quote:
        if text[end] == "\\" and quote != "`":
            escape = text[end + 1]
            if escape in ("x", "u"):
                digits = 2 if escape == "x" else 4
                value += chr(int(text[end + 2 : end + 2 + digits], 16))
                end += digits
            elif escape in ESCAPES:
                value += ESCAPES[escape]
            else:
                raise _error(source, start, "invalid syntax")
            end += 2
            continue
        value += text[end]
        end += 1
    if quote == "'":
        return "number", end + 1 - index, ord(value)
    return "string", end + 1 - index, value
