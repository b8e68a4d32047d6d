"""Words and variables as a shell has them: quotes, escapes, `$name`, `${name:-word}` and the rest of POSIX
2.6.2.

The forms and error texts are those of BuildKit's Dockerfile frontend, which the reference lists under
"Environment replacement".
"""

from __future__ import annotations

from collections.abc import Mapping

from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.glob import Pattern
from guest_agent.build.dockerfile.text import quote

# No value may grow beyond this: `ENV a=$a$a`, a few dozen times, would else eat all memory. execve takes
# 128 KiB.
MAX_EXPANSION = 1 << 20
_MAX_DEPTH = 100  # of ${a:-${b:-…}}: recursion in here
_SPECIAL_PARAMETERS = "@*#?-$!"
_UNTERMINATED = "syntax error: missing '}'"


def expand_word(
    word: str, variables: Mapping[str, str], escape: str = "\\", *, keep_quotes: bool = False
) -> str:
    """The word with its variables replaced; quotes and escapes are gone, except with `keep_quotes`, for the
    content of a heredoc, where quotes have no meaning. DockerfileError (without lines) as BuildKit has it."""
    if not any(special in word for special in ("$", "'", '"', escape)):
        return word
    return _Expansion(word, variables, escape, quotes=not keep_quotes).word()


def expand_words(word: str, variables: Mapping[str, str], escape: str = "\\") -> list[str]:
    """As `expand_word`, split at the spaces that are not quoted, those of the variables' values included."""
    return _Expansion(word, variables, escape).words()


def raw_words(line: str) -> list[str]:
    """The line's words with all quotes, escapes and variables as written; an unclosed quote ends the list.
    A blank between `<<` and a heredoc's name does not split."""
    return _Expansion(line, {}, raw_quotes=True, raw_escapes=True, keep_unset=True).words(lenient=True)


def heredoc_words(text: str, *, raw_quotes: bool) -> list[str]:
    """The words of a heredoc's delimiter, with and without its quotes."""
    return _Expansion(text, {}, raw_quotes=raw_quotes, keep_unset=True).words()


class _Expansion:
    def __init__(
        self,
        source: str,
        variables: Mapping[str, str],
        escape: str = "\\",
        *,
        quotes: bool = True,
        raw_quotes: bool = False,
        raw_escapes: bool = False,
        keep_unset: bool = False,
    ) -> None:
        self._source = source
        self._position = 0
        self._variables = variables
        self._escape = escape
        self._quotes = quotes
        self._raw_quotes = raw_quotes
        self._raw_escapes = raw_escapes
        self._keep_unset = keep_unset
        self._depth = 0

    def word(self) -> str:
        return self._whole(_Words())[0]

    def words(self, *, lenient: bool = False) -> list[str]:
        words = _Words()
        try:
            self._whole(words)
        except DockerfileError:
            if not lenient:
                raise
            return []
        return words.finished()

    def _whole(self, words: _Words) -> tuple[str, _Words]:
        try:
            return self._until("", words), words
        except _Bad as error:
            raise DockerfileError(f"failed to process {quote(self._source)}: {error}") from None

    def _peek(self) -> str:
        return self._source[self._position : self._position + 1]

    def _next(self) -> str:
        character = self._peek()
        self._position += len(character)
        return character

    def _until(self, stop: str, words: _Words) -> str:
        """Up to the stop character, which is consumed, or to the end when there is none."""
        result: list[str] = []
        length = 0
        while character := self._peek():
            if character == stop:
                self._next()
                return "".join(result)
            if character == "$":
                text = self._dollar()
                words.add_text(text)
            elif character == "<":
                text = self._angle()
                words.add_raw(text)
            elif self._quotes and character == "'":
                text = self._single_quoted()
                words.add_raw(text)
            elif self._quotes and character == '"':
                text = self._double_quoted()
                words.add_raw(text)
            elif character == self._escape:
                self._next()
                text = self._next()
                if self._raw_escapes:
                    text = character + text
                words.add_raw(text)
            else:
                text = self._next()
                words.add_text(text)
            result.append(text)
            length += len(text)
            if length > MAX_EXPANSION:
                raise _Bad(f"the result is longer than {MAX_EXPANSION} characters")
        if stop:
            raise _Bad(f"unexpected end of statement while looking for matching {stop}")
        return "".join(result)

    def _single_quoted(self) -> str:
        end = self._source.find("'", self._position + 1)
        if end < 0:
            self._position = len(self._source)
            raise _Bad("unexpected end of statement while looking for matching single-quote")
        text = self._source[self._position + 1 : end]
        self._position = end + 1
        return f"'{text}'" if self._raw_quotes else text

    def _double_quoted(self) -> str:
        self._next()
        result = ['"'] if self._raw_quotes else []
        length = 0
        while character := self._peek():
            if character == '"':
                self._next()
                return "".join(result) + ('"' if self._raw_quotes else "")
            if character == "$":
                result.append(self._dollar())
                length += len(result[-1])
                if length > MAX_EXPANSION:
                    raise _Bad(f"the result is longer than {MAX_EXPANSION} characters")
                continue
            self._next()
            if character == self._escape:
                if self._raw_escapes:
                    result.append(character)
                following = self._peek()
                if not following:
                    continue  # an escape at the very end is dropped
                if following in ('"', "$", self._escape):
                    character = self._next()
            result.append(character)
        raise _Bad("unexpected end of statement while looking for matching double-quote")

    def _angle(self) -> str:
        self._next()
        if self._peek() != "<":
            return "<"
        start = self._position - 1
        self._next()
        while self._peek() and self._peek() in "\t\r ":
            self._next()
        return self._source[start : self._position]

    def _name(self) -> str:
        start = self._position
        character = self._peek()
        if character.isdecimal():
            while self._peek().isdecimal():
                self._next()
        elif character and character in _SPECIAL_PARAMETERS:
            self._next()
        else:
            while (character := self._peek()) and (
                character.isalpha() or character.isdecimal() or character == "_"
            ):
                self._next()
        return self._source[start : self._position]

    def _dollar(self) -> str:
        self._next()
        if self._peek() != "{":
            name = self._name()
            if not name:
                return "$"
            return self._variables.get(name, f"${name}" if self._keep_unset else "")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Bad(f"substitutions are nested deeper than {_MAX_DEPTH}")
        try:
            return self._braces()
        finally:
            self._depth -= 1

    def _braces(self) -> str:
        self._next()
        first = self._peek()
        if not first:
            raise _Bad(_UNTERMINATED)
        if first in "{}:":
            raise _Bad("syntax error: bad substitution")
        name = self._name()
        value = self._variables.get(name)
        operator = self._next()
        if operator == "}":
            if value is None:
                return f"${{{name}}}" if self._keep_unset else ""
            return value
        if operator == "/":
            return self._replacement(name, value)
        colon = operator == ":"
        if colon:
            operator = self._next()
        shown = (":" if colon else "") + (operator or "\ufffd")
        if operator in ("#", "%"):
            if colon:
                raise _Bad(f"unsupported modifier ({shown}) in substitution")
            word = self._operand("}", raw_escapes=True)
        elif colon or operator in ("+", "-", "?"):
            word = self._operand("}")
        else:
            raise _Bad(f"unsupported modifier ({shown}) in substitution")
        if value is None and self._keep_unset:
            return f"${{{name}{shown}{word}}}"
        present = value is not None and not (colon and value == "")
        if operator == "-":
            return value if present and value is not None else word
        if operator == "+":
            return word if present else ""
        if operator == "?":
            if value is None:
                raise _Bad(f"{name}: {word or 'is not allowed to be unset'}")
            if not present:
                raise _Bad(f"{name}: {word or 'is not allowed to be empty'}")
            return value
        if operator not in ("#", "%"):
            raise _Bad(f"unsupported modifier ({shown}) in substitution")
        return _trimmed(operator, word, value or "")

    def _operand(self, stop: str, *, raw_escapes: bool = False, missing: str = _UNTERMINATED) -> str:
        before, self._raw_escapes = self._raw_escapes, raw_escapes
        try:
            return self._until(stop, _Words())
        except _Bad:
            if not self._peek():
                raise _Bad(missing) from None
            raise
        finally:
            self._raw_escapes = before

    def _replacement(self, name: str, value: str | None) -> str:
        everywhere = self._peek() == "/"
        if everywhere:
            self._next()
        pattern = self._operand("/", raw_escapes=True, missing="syntax error: missing '/' in ${}")
        replacement = self._operand("}", raw_escapes=True)
        if value is None and self._keep_unset:
            return f"${{{name}/{pattern}/{replacement}}}"
        return _pattern(pattern).replace(value or "", replacement, everywhere=everywhere)


class _Words:
    """Words under construction: quoted and escaped text never splits."""

    def __init__(self) -> None:
        self._words: list[str] = []
        self._current: list[str] = []

    def add_raw(self, text: str) -> None:
        if text:
            self._current.append(text)

    def add_text(self, text: str) -> None:
        for character in text:
            if not character.isspace():
                self._current.append(character)
            elif self._current:
                self._words.append("".join(self._current))
                self._current.clear()

    def finished(self) -> list[str]:
        return [*self._words, "".join(self._current)] if self._current else self._words


class _Bad(Exception):
    """A mistake in the word; becomes a DockerfileError that shows the whole of it."""


def _trimmed(operator: str, word: str, value: str) -> str:
    greedy = word.startswith(operator)
    pattern = _pattern(word[1:] if greedy else word)
    if operator == "%":
        return pattern.trim_suffix(value, greedy=greedy)
    return pattern.trim_prefix(value, greedy=greedy)


def _pattern(text: str) -> Pattern:
    try:
        return Pattern(text)
    except ValueError as error:
        raise _Bad(f"invalid pattern ({text}) in substitution: {error}") from None
