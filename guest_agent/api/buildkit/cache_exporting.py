"""`--cache-to` of a BuildKit client: a cache into a registry, or into a folder of the client's."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence

from guest_agent.api.buildkit import content
from guest_agent.api.buildkit.exporting import Work
from guest_agent.api.buildkit.progress import Vertex
from guest_agent.build.cache_export import CacheTo, document_of, push
from guest_agent.build.request import BuildResult
from guest_agent.errors import EngineError
from guest_agent.images.cache_manifest import CacheDocument
from guest_agent.images.manifest import Descriptor

_WHERE = {"registry": "registry", "local": "client directory"}


async def export_cache(wanted: CacheTo, results: Sequence[BuildResult], work: Work) -> dict[str, str]:
    """Carries one out; what the client is to know of it. EngineError, unless errors are to be ignored."""
    if wanted.kind == "inline":
        return {}  # an image's history says all that there is to know of its layers
    try:
        with work.progress.vertex(f"exporting cache to {_WHERE[wanted.kind]}") as vertex:
            vertex.status("preparing build cache for export")
            store = work.engine.images
            document = await asyncio.to_thread(document_of, store, results, wanted.whole)
            vertex.status("preparing build cache for export", done=True)
            if wanted.kind == "registry":
                await _to_registry(wanted, document, work, vertex)
                return {}
            return await _to_folder(wanted, document, work, vertex)
    except EngineError:
        if wanted.ignore_error:
            return {}
        raise


async def _to_registry(wanted: CacheTo, document: CacheDocument, work: Work, vertex: Vertex) -> None:
    assert wanted.ref is not None
    loop = asyncio.get_running_loop()

    def told(blob: Descriptor) -> None:
        loop.call_soon_threadsafe(lambda: vertex.status(f"writing layer {blob.digest}", done=True))

    credentials = await work.credentials(wanted.ref.domain)
    await push(work.engine.images, wanted.ref, document, credentials, told)
    vertex.status(f"writing cache image manifest {document.descriptor.digest}", done=True)


async def _to_folder(wanted: CacheTo, document: CacheDocument, work: Work, vertex: Vertex) -> dict[str, str]:
    store = f"local:{wanted.dest}"
    for blob in document.blobs:
        fd = work.engine.images.content.open(blob.digest)
        try:
            await content.write(work.session, store, blob, fd)
        finally:
            os.close(fd)
        vertex.status(f"writing layer {blob.digest}", done=True)
    await content.write(work.session, store, document.config_descriptor, document.config)
    await content.write(work.session, store, document.descriptor, document.manifest)
    vertex.status(f"writing cache image manifest {document.descriptor.digest}", done=True)
    return {"cache.manifest": json.dumps(document.descriptor.json())}
