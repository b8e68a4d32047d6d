"""Go templates, as far as `--format` is used: `parse` reads one, `Template.render` fills it in.

Everything docker's users write is there: fields and chains, pipelines, variables, if/else, range, with, break
and continue, parentheses, whitespace trimming, Go's built-in functions and docker's own. Named templates are
not (`define`, `template`, `block`): nothing in docker's documentation uses them.
Source: the documentation of Go's text/template and docker's "Format command and log output".
"""

from __future__ import annotations

from host_client.cli.templates.parser import TemplateError, parse_nodes
from host_client.cli.templates.values import Row

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Row", "Template", "TemplateError", "parse"]


class Template:
    """A template that has been read."""

    def __init__(self, source: str) -> None:
        self._nodes = parse_nodes(source)
        self._source = source

    def render(self, data: object, header: bool = False, defaults: Mapping[str, object] | None = None) -> str:
        """The text for one value.

        Args:
            data: what `.` is.
            header: functions leave their argument as it is, as for the heading of a table.
            defaults: values of fields that the API leaves out when they are empty.

        Raises:
            TemplateError: a field or function does not exist, or cannot take the value it is given.
        """
        from host_client.cli.templates.execute import Execution

        return Execution(self._source, header, defaults or {}).run(self._nodes, data)


def parse(source: str) -> Template:
    r"""Read a template; `\t` and `\n` outside of actions have been replaced by the caller already.

    Raises:
        TemplateError: Go's words.
    """
    return Template(source)
