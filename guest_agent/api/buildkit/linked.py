"""Results of a build that another one begins with: bake's `target:` contexts, Compose's `service:` ones.

BuildKit's clients carry them as LLB definitions, which they take apart and put together again but do not
look into. Ours has one operation, a source that names the result; it holds while the build it is from is
there.
"""

from __future__ import annotations

import hashlib
from typing import Any

from google.protobuf.message import DecodeError

from guest_agent.api.buildkit import messages
from guest_agent.errors import NotSupported

_SCHEME = "wherry-result://"


def definition(name: str) -> Any:
    """A definition that stands for the result of that name."""
    source = messages.Op(source=messages.SourceOp(identifier=_SCHEME + name)).SerializeToString()
    digest = f"sha256:{hashlib.sha256(source).hexdigest()}"
    end = messages.Op(inputs=[messages.Input(digest=digest)]).SerializeToString()
    # One without metadata is none to a client.
    return messages.Definition(metadata={digest: messages.Empty()}, **{"def": [source, end]})


def name_of(definition: Any) -> str:
    """The result a definition stands for. NotSupported for any other definition."""
    try:
        operations = [messages.Op.FromString(data) for data in getattr(definition, "def")]
    except DecodeError:
        operations = []
    for operation in operations:
        identifier: str = operation.source.identifier
        if len(operations) == 2 and identifier.startswith(_SCHEME):
            return identifier.removeprefix(_SCHEME)
    raise NotSupported("a context that is an LLB definition is not supported", "Build from a Dockerfile.")
