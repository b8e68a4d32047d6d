"""Layers on their way into the store: downloaded, unpacked and committed, each once whoever wants it.

A layer is a job with a thread of its own, which unpacks behind the download and then waits for the layer
below it. Jobs are shared between pulls; a job that no pull waits for any longer is cancelled.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

from guest_agent.errors import EngineError, InternalError, Unavailable
from guest_agent.images.config import RegistryConfig
from guest_agent.images.decompress import Read
from guest_agent.images.download import Download
from guest_agent.images.manifest import Descriptor
from guest_agent.images.registry import Cancelled
from guest_agent.images.repository import Repository
from guest_agent.images.store import ImageStore, LayerRow
from guest_agent.images.unpack import SMALL, StagedLayer, reading

_IN_FLIGHT = 8  # jobs, so that an image of 127 layers does not make as many threads at once


class LayerJob:
    """One layer's way into the store."""

    def __init__(
        self,
        chains: Sequence[str],
        diff: str,
        blob: Descriptor,
        below: LayerJob | None,
        download: Download | None,
    ) -> None:
        self.chains = chains  # this layer's chain id last, those below it before
        self.diff = diff
        self.blob = blob
        self.below = below  # the job of the layer below, None when that is here already
        self.download = download  # None: the blob is here already
        self.watchers = 0
        self.unpacked = 0  # bytes of the blob that the unpacker has read
        self.cancelled = False
        self.error: EngineError | None = None
        self.finished = threading.Event()
        self.wakes: list[threading.Event] = []  # set when it has finished

    @property
    def chain(self) -> str:
        """The chain id of the layer."""
        return self.chains[-1]


class Transfers:
    """All jobs of one engine. Thread-safe."""

    def __init__(self, store: ImageStore, config: RegistryConfig) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._jobs: dict[str, LayerJob] = {}
        self._downloads: dict[str, tuple[Download, set[LayerJob]]] = {}
        self._in_flight = threading.Semaphore(_IN_FLIGHT)
        self._download_slots = threading.Semaphore(max(1, config.concurrent_downloads))
        self._unpack_slots = threading.Semaphore(max(2, os.cpu_count() or 1))

    def watch(
        self,
        chains: Sequence[str],
        diff: str,
        blob: Descriptor,
        below: LayerJob | None,
        sources: Sequence[Repository],
        wake: threading.Event,
    ) -> LayerJob | None:
        """The job that brings in a layer, started now if there is none; `unwatch` ends the interest.

        None while many jobs are under way: try again soon. The caller leases the blob and the chain. `wake`
        is set when the job has finished.
        """
        with self._lock:
            job = self._jobs.get(chains[-1])
            if job is not None:
                job.watchers += 1
            elif self._in_flight.acquire(blocking=False):
                job = self._start(chains, diff, blob, below, sources)
            else:
                return None
            job.wakes.append(wake)
            return job

    def _start(
        self,
        chains: Sequence[str],
        diff: str,
        blob: Descriptor,
        below: LayerJob | None,
        sources: Sequence[Repository],
    ) -> LayerJob:
        download: Download | None = None
        if not self._store.content.has(blob.digest):
            known = self._downloads.get(blob.digest)
            download = known[0] if known else Download(self._store.content, blob, sources)
        job = LayerJob(chains, diff, blob, below, download)
        job.watchers = 1
        self._jobs[job.chain] = job
        if download is not None:
            download.open_reader()
            if blob.digest in self._downloads:
                self._downloads[blob.digest][1].add(job)
            else:
                self._downloads[blob.digest] = (download, {job})
                threading.Thread(
                    target=self._download, args=(download,), name="pull-download", daemon=True
                ).start()
        threading.Thread(target=self._run, args=(job,), name="pull-layer", daemon=True).start()
        return job

    def unwatch(self, job: LayerJob) -> None:
        """Ends the interest in a job. The last one to lose it cancels the job."""
        with self._lock:
            job.watchers -= 1
            if job.watchers or job.finished.is_set():
                return
            job.cancelled = True
            if self._jobs.get(job.chain) is job:
                del self._jobs[job.chain]  # who wants the layer now starts afresh
            self._let_go(job)

    def _let_go(self, job: LayerJob) -> None:
        """Takes a job off its download, which is cancelled when it was the last."""
        known = self._downloads.get(job.blob.digest)
        if known is None or known[0] is not job.download:
            return
        known[1].discard(job)
        if not known[1]:
            del self._downloads[job.blob.digest]
            if not known[0].finished:
                known[0].cancel()

    def _download(self, download: Download) -> None:
        with self._download_slots:
            download.run()

    def _run(self, job: LayerJob) -> None:
        try:
            self._bring_in(job)
        except EngineError as e:
            job.error = e
        except OSError as e:
            job.error = Unavailable(
                f"failed to register layer: {(e.strerror or str(e)).lower()}: {e.filename or ''}"
            )
        except BaseException as e:
            job.error = InternalError(f"failed to register layer: {type(e).__name__}: {e}")
            raise
        finally:
            with self._lock:
                job.finished.set()
                if self._jobs.get(job.chain) is job:
                    del self._jobs[job.chain]
                self._let_go(job)
                wakes = list(job.wakes)
            for wake in wakes:
                wake.set()
            if job.download is not None:
                job.download.close_reader()
            self._in_flight.release()

    def _bring_in(self, job: LayerJob) -> None:
        if self._store.layer(job.chain) is not None:
            return  # another pull has just brought it in
        with StagedLayer(self._store.snapshots, base=len(job.chains) == 1) as staged:
            with self._unpack_slots:
                small = job.blob.size <= SMALL
                if job.download is not None:
                    staged.unpack(self._following(job, job.download), job.diff, small)
                else:
                    fd = self._store.content.open(job.blob.digest)
                    try:
                        staged.unpack(reading(fd), job.diff, small)
                    finally:
                        os.close(fd)
            below = job.below
            if below is not None:
                below.finished.wait()
                if below.error is not None:
                    raise below.error
            if job.cancelled:
                raise Cancelled("cancelled")
            staged.commit(job.chain, self._store.snapshots.lower(job.chains[:-1]))
            parent = job.chains[-2] if len(job.chains) > 1 else ""
            self._store.add_layer(
                LayerRow(job.chain, parent, job.diff, staged.size, job.blob.digest, job.blob.media_type)
            )

    @staticmethod
    def _following(job: LayerJob, download: Download) -> Read:
        def read(size: int) -> bytes:
            if job.cancelled:
                raise Cancelled("cancelled")
            data = download.read_at(job.unpacked, size)
            job.unpacked += len(data)
            return data

        return read
