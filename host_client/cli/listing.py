"""Listings: what `--format` makes of them: a table, JSON lines, a Go template, a table by template, or a rich
table.
"""

from __future__ import annotations

from host_client.cli import output
from host_client.cli.errors import CliError
from host_client.cli.tabwriter import align

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    Column = tuple[str, Callable[[Any], Any]]

FORMAT_FLAG = (
    "format", "", "string", "How to print: table, 'table TEMPLATE', json, pretty, or a Go TEMPLATE",
)  # fmt: skip
TEMPLATE_HINT = (
    "Go templates: {{.Name}}, {{json .}}, 'table {{.ID}}\\t{{.Name}}'; '{{json .}}' shows the fields"
)


class Listing:
    """A kind of listing.

    Args:
        type_name: docker's Go type, for error messages.
        columns: heading and value by field name.
        default: the fields of the plain table.
        methods: fields that take an argument, such as `.Label "key"`.
        raw: the template of `--format raw`, "" when docker has none.
    """

    def __init__(
        self,
        type_name: str,
        columns: Mapping[str, Column],
        default: Sequence[str],
        methods: Mapping[str, Callable[..., Any]] | None = None,
        raw: str = "",
    ) -> None:
        self.type_name = type_name
        self.columns = columns
        self.default = default
        self.methods = methods or {}
        self.raw = raw

    def table(self, items: Iterable[Any]) -> str:
        """The plain table, without any template; on a terminal with a bold heading and coloured states."""
        columns = self.columns
        rows = ["\t".join(columns[name][0] for name in self.default)]
        rows += ["\t".join([str(columns[name][1](item)) for name in self.default]) for item in items]
        text = align("\n".join(rows) + "\n")
        return _in_colour(text) if output.coloured(output.OUT) else text

    def show(self, items: Sequence[Any], layout: str, hidden: Sequence[str] = ()) -> None:
        """Print a listing.

        Args:
            layout: the value of `--format`, "" for the default.
            hidden: fields that JSON leaves out.
        """
        output.out(self.render(items, layout, hidden))

    def render(self, items: Sequence[Any], layout: str, hidden: Sequence[str] = ()) -> str:
        """The text that `show` prints."""
        if layout in ("", "table"):
            return self.table(items)
        if layout == "pretty":
            return self._pretty(items)
        if layout == "raw" and self.raw:
            layout = self.raw
        if layout == "json":
            from host_client.engine_api.wire import dumps, html_safe

            names = sorted(name for name in self.columns if name not in hidden)
            rows = [{name: self.columns[name][1](item) for name in names} for item in items]
            return "".join(html_safe(dumps(row)) + "\n" for row in rows)
        is_table = layout.startswith("table")
        template = compile_layout(layout.removeprefix("table") if is_table else layout)
        from host_client.cli.templates import Row, TemplateError

        fields = {name: column[1] for name, column in self.columns.items() if name not in hidden}
        try:
            body = "".join(
                template.render(Row(f"*{self.type_name}", fields, item, self.methods)) + "\n"
                for item in items
            )
            if not is_table:
                return body
            headings = {name: _constant(column[0]) for name, column in self.columns.items()}
            header = template.render(
                Row(f"*{self.type_name}", headings, None, {"Label": _label_heading}), header=True
            )
        except TemplateError as error:
            raise CliError(f"failed to execute template: {error}", TEMPLATE_HINT)
        return align(header + "\n" + body)

    def _pretty(self, items: Sequence[Any]) -> str:
        from host_client.cli.pretty import table

        headings = [self.columns[name][0] for name in self.default]
        return table(
            headings, [[str(self.columns[name][1](item)) for name in self.default] for item in items]
        )


STATES = {
    "Up": output.GREEN, "Exited": output.GREY, "Created": output.YELLOW, "Restarting": output.YELLOW,
    "Dead": output.RED,
}  # fmt: skip


def _in_colour(text: str) -> str:
    heading, *rows = text.split("\n")
    column = heading.find("STATUS")
    shown = [f"{output.BOLD}{heading}{output.PLAIN}"]
    for row in rows:
        end = row.find("  ", column)
        status = row[column : end if end > 0 else len(row)] if column >= 0 else ""
        colour = STATES.get(status.partition(" ")[0], "")
        if colour:
            row = f"{row[:column]}{colour}{status}{output.PLAIN}{row[column + len(status) :]}"
        shown.append(row)
    return "\n".join(shown)


def compile_layout(layout: str) -> Any:
    r"""The template of a `--format`, with `\t` and `\n` as docker takes them.

    Raises:
        CliError: it cannot be read.
    """
    from host_client.cli.templates import TemplateError, parse

    try:
        return parse(layout.strip(" ").replace("\\t", "\t").replace("\\n", "\n"))
    except TemplateError as error:
        raise CliError(f"failed to parse template: {error}", TEMPLATE_HINT)


def _constant(value: str) -> Callable[[Any], str]:
    return lambda _item: value


def _label_heading(_item: Any, name: str) -> str:
    return name.rpartition(".")[2].replace("-", " ").replace("_", " ")


def labels_text(labels: Mapping[str, str] | None) -> str:
    """Labels as one text, sorted."""
    return ",".join(sorted(f"{key}={value}" for key, value in (labels or {}).items()))


def label_method(item: Any, name: str) -> str:
    """`.Label "name"`."""
    return str((item.get("Labels") or {}).get(name, ""))
