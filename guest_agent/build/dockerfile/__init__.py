"""The Dockerfile language: text to typed instructions, and the expansion of variables in them. Pure, no I/O.

    parse(source) -> Dockerfile                        # DockerfileError has the lines
    parse_instruction(text, escape, lines) -> Instruction       # an ONBUILD trigger, `commit --change`
    expand(instruction, variables, escape) -> the same instruction without variables
    expand_word(word, variables, escape) -> str
    ignore.Patterns(...).ignores(path) -> bool         # .dockerignore

Sources: BuildKit's Dockerfile reference (docs.docker.com/reference/dockerfile) and its behaviour; where the
classic builder differs, BuildKit wins.
"""

from guest_agent.build.dockerfile.errors import DockerfileError
from guest_agent.build.dockerfile.expansion import expand
from guest_agent.build.dockerfile.parser import parse, parse_instruction
from guest_agent.build.dockerfile.shell import expand_word

__all__ = ["DockerfileError", "expand", "expand_word", "parse", "parse_instruction"]
