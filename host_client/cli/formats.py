"""`--format` with a Go template for one value, with docker's errors and exit statuses."""

from __future__ import annotations

from host_client.cli.errors import CliError
from host_client.cli.templates import Template, TemplateError, parse


def template(layout: str) -> Template:
    """The template that a layout is.

    Raises:
        CliError: it is none.
    """
    try:
        return parse(layout)
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}", status=64)


def filled(layout: Template, data: object, defaults: dict[str, object] | None = None) -> str:
    """The text for one value; `defaults` as `Template.render` has them.

    Raises:
        CliError: a field does not exist, or a function cannot take what it is given.
    """
    try:
        return layout.render(data, defaults=defaults)
    except TemplateError as error:
        raise CliError(f"template parsing error: {error}", "'{{json .}}' shows all fields")
