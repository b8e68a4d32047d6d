"""What becomes of a build's result: an image of the engine's, files for the client."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guest_agent.api.buildkit.progress import Progress
from guest_agent.api.buildkit.session import Session
from guest_agent.build.request import BuildResult
from guest_agent.errors import NotSupported
from guest_agent.images import reference
from guest_agent.images.reference import Reference

if TYPE_CHECKING:
    from guest_agent.build.builder import Builder

_IMAGE_TYPES = ("moby", "image", "docker")


@dataclass(frozen=True, slots=True)
class Export:
    """An image that stays here, under its names; `docker build -t`, `--load`."""

    tags: Sequence[Reference]

    async def run(
        self, number: int, result: BuildResult, builder: Builder, session: Session, progress: Progress
    ) -> dict[str, str]:
        """Tells of the image that is there; what a client's `--iidfile` and `--metadata-file` hold."""
        with progress.vertex("exporting to image") as vertex:
            vertex.status("exporting layers", done=True)
            vertex.status(f"writing image {result.image_id}", done=True)
            for tag in self.tags:
                vertex.status(f"naming to {tag}", done=True)
        answer = {
            "containerimage.config.digest": result.image_id,
            "containerimage.digest": result.image_id,
        }
        if self.tags:
            answer["image.name"] = ",".join(str(tag) for tag in self.tags)
        return answer


def exports_of(request: Any) -> list[Export]:
    """What a SolveRequest wants. NotSupported by the exporter's name, InvalidParameter for a bad tag."""
    wanted = [(each.Type, dict(each.Attrs)) for each in request.Exporters]
    if not wanted and request.ExporterDeprecated:
        wanted = [(request.ExporterDeprecated, dict(request.ExporterAttrsDeprecated))]
    exports = []
    for kind, attributes in wanted:
        if kind not in _IMAGE_TYPES:
            raise NotSupported(
                f"--output type={kind} is not supported", "Build an image, and copy or save what is in it."
            )
        names = [name for name in attributes.get("name", "").split(",") if name]
        exports.append(Export([reference.parse(name).with_default_tag() for name in names]))
    return exports
