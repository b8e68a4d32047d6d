"""Filling in a template."""

from __future__ import annotations

from host_client.cli.templates.functions import FUNCTIONS, UNCHANGED_IN_HEADER, FunctionError
from host_client.cli.templates.parser import Node, TemplateError
from host_client.cli.templates.values import Row, printed, truth, type_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NOTHING = object()  # no value was piped in


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class Execution:
    """One run over a template."""

    def __init__(self, source: str, header: bool, defaults: Mapping[str, object]) -> None:
        self._source = source
        self._header = header
        self._defaults = defaults
        self._variables: list[tuple[str, Any]] = []
        self._out: list[str] = []

    def run(self, nodes: list[Node], data: Any) -> str:
        """The text."""
        self._variables.append(("$", data))
        self._walk(nodes, data)
        return "".join(self._out)

    def _walk(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            if node.kind == "text":
                self._out.append(node.text)
            elif node.kind == "pipeline":
                value = self._pipeline(node, dot)
                if node.value is None:
                    self._out.append(printed(value))
            elif node.kind == "break":
                raise _Break
            elif node.kind == "continue":
                raise _Continue
            else:
                mark = len(self._variables)
                self._control(node, dot)
                del self._variables[mark:]

    def _control(self, node: Node, dot: Any) -> None:
        value = self._pipeline(node.parts[0], dot, node.kind == "range")
        if node.kind == "range":
            self._range(node, value, dot)
        elif truth(value):
            self._walk(node.body, value if node.kind == "with" else dot)
        else:
            self._walk(node.other, dot)

    def _range(self, node: Node, value: Any, dot: Any) -> None:
        if isinstance(value, dict):
            pairs: list[tuple[Any, Any]] = [(key, value[key]) for key in sorted(value)]
        elif isinstance(value, list | tuple):
            pairs = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(index, index) for index in range(value)]
        elif value is None:
            pairs = []
        else:
            raise self._error(node.parts[0], f"range can't iterate over {printed(value)}")
        if not pairs:
            self._walk(node.other, dot)
            return
        names = node.parts[0].value[1] if node.parts[0].value else []
        for key, item in pairs:
            mark = len(self._variables)
            if len(names) == 1:
                self._variables.append((names[0], item))
            elif names:
                self._variables += [(names[0], key), (names[1], item)]
            try:
                self._walk(node.body, item)
            except _Continue:
                continue
            except _Break:
                break
            finally:
                del self._variables[mark:]

    def _pipeline(self, node: Node, dot: Any, ranged: bool = False) -> Any:
        value: Any = NOTHING
        for command in node.parts:
            value = self._command(command, dot, value)
        if node.value is not None and not ranged:
            assign, names = node.value
            if assign == ":=":
                self._variables.append((names[0], value))
            else:
                for index in range(len(self._variables) - 1, -1, -1):
                    if self._variables[index][0] == names[0]:
                        self._variables[index] = (names[0], value)
                        break
                else:
                    raise self._error(node, f"undefined variable {names[0]!r}")
        return value

    def _command(self, command: Node, dot: Any, piped: Any) -> Any:
        first = command.parts[0]
        arguments = command.parts[1:]
        if first.kind == "function":
            return self._call(command, first, arguments, dot, piped)
        given = [self._operand(part, dot) for part in arguments] + ([] if piped is NOTHING else [piped])
        if given:
            if first.kind in ("field", "variable", "chain"):
                return self._method(first, dot, given)
            raise self._error(first, f"can't give argument to non-function {first.text}")
        return self._operand(first, dot)

    def _call(self, command: Node, first: Node, arguments: list[Node], dot: Any, piped: Any) -> Any:
        name = first.text
        if name in ("and", "or"):
            value: Any = NOTHING
            for part in arguments:
                value = self._operand(part, dot)
                if truth(value) == (name == "or"):
                    return value
            return piped if piped is not NOTHING else value
        function = FUNCTIONS.get(name)
        if function is None:
            line = self._source.count("\n", 0, first.position) + 1
            raise TemplateError(f'template: :{line}: function "{name}" not defined')
        values = [self._operand(part, dot) for part in arguments] + ([] if piped is NOTHING else [piped])
        if self._header and name in UNCHANGED_IN_HEADER:
            return values[0] if values else ""
        try:
            return function(*values)
        except FunctionError as error:
            raise self._error(command, str(error))
        except TypeError:
            raise self._error(command, f"wrong number of args for {name}: got {len(values)}")

    def _operand(self, node: Node, dot: Any) -> Any:
        kind = node.kind
        if kind == "dot":
            return dot
        if kind in ("string", "number", "bool"):
            return node.value
        if kind == "nil":
            return None
        if kind == "field":
            return self._fields(node, dot, node.value)
        if kind == "variable":
            return self._fields(node, self._variable(node), node.value[1:])
        if kind == "chain":
            return self._fields(node, self._operand(node.parts[0], dot), node.value)
        if kind == "pipeline":
            return self._pipeline(node, dot)
        return self._call(node, node, [], dot, NOTHING)

    def _variable(self, node: Node) -> Any:
        wanted = node.value[0]
        for name, value in reversed(self._variables):
            if name == wanted:
                return value
        line = self._source.count("\n", 0, node.position) + 1
        raise TemplateError(f'template: :{line}: undefined variable "{wanted}"')

    def _fields(self, node: Node, value: Any, names: list[str]) -> Any:
        for name in names:
            value = self._field(node, value, name)
        return value

    def _field(self, node: Node, value: Any, name: str) -> Any:
        if isinstance(value, Row):
            try:
                return value.get(name)
            except KeyError:
                raise self._error(node, f"can't evaluate field {name} in type {value.type_name}")
        if isinstance(value, dict):
            return self._key(node, value, name)
        if value is None:
            raise self._error(node, f"nil data; no entry for key {name!r}".replace("'", '"'))
        raise self._error(node, f"can't evaluate field {name} in type {type_name(value)}")

    def _key(self, node: Node, value: dict[str, Any], name: str) -> Any:
        """A key as it is; else Go's spelling of the field (`ID` for `Id`); else what the API leaves out when
        empty.
        """
        found = value.get(name, NOTHING)
        if found is NOTHING:
            lower = name.lower()
            found = next((item for key, item in value.items() if key.lower() == lower), NOTHING)
        if found is not NOTHING and found is not None:
            return found
        if name in self._defaults:
            return self._defaults[name]
        if found is None:
            return None
        raise self._error(node, f'map has no entry for key "{name}"')

    def _method(self, node: Node, dot: Any, given: list[Any]) -> Any:
        names: list[str] = node.value
        if node.kind == "field":
            owner = self._fields(node, dot, names[:-1])
        elif node.kind == "variable":
            owner = self._fields(node, self._variable(node), names[1:-1])
        else:
            owner = self._fields(node, self._operand(node.parts[0], dot), names[:-1])
        if isinstance(owner, Row):
            method = owner.methods.get(names[-1])
            if method is not None:
                return method(owner.item, *given)
            if names[-1] not in owner.fields:
                raise self._error(node, f"can't evaluate field {names[-1]} in type {owner.type_name}")
        raise self._error(node, f"{names[-1]} is not a method but has arguments")

    def _error(self, node: Node, message: str) -> TemplateError:
        before = self._source[: node.position]
        line = before.count("\n") + 1
        column = len(before) - (before.rfind("\n") + 1)
        return TemplateError(f'template: :{line}:{column}: executing "" at <{node.text}>: {message}')
