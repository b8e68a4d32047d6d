"""Fields that the API leaves out, or sends as null, when they are empty, with what a template sees instead.

Docker's CLI has Go structures with these fields (github.com/docker/docker/api/types); a template may ask for
them whether they were sent or not: `{{if .State.Health}}…`.
"""

from __future__ import annotations

from host_client.cli.templates.values import NullList, NullMap

_NOTHING = (
    "BindOptions ClusterVolume ConfigFrom CreatedAt Descriptor GraphDriver Health Healthcheck IPAMConfig "
    "Identity ImageManifestDescriptor ImageOptions Init MemorySwappiness OomKillDisable PidsLimit "
    "SizeRootFs SizeRw StopTimeout Storage TmpfsOptions UsageData VolumeOptions"
)
_TEXT = (
    "Author CgroupnsMode Comment Consistency Container DockerVersion Isolation MacAddress NetworkID "
    "OsVersion Parent Platform Runtime StopSignal Subpath Variant"
)
_LISTS = (
    "Aliases Args Binds BlkioDeviceReadBps BlkioDeviceReadIOps BlkioDeviceWriteBps BlkioDeviceWriteIOps "
    "BlkioWeightDevice CapAdd CapDrop Cmd ConsoleSize DNSNames DeviceCgroupRules DeviceRequests Devices "
    "Dns DnsOptions DnsSearch Entrypoint Env ExecIDs ExtraHosts GroupAdd Layers Links Log Manifests "
    "MaskedPaths Mounts OnBuild Peers ReadonlyPaths RepoDigests RepoTags SecondaryIPAddresses "
    "SecondaryIPv6Addresses SecurityOpt Shell Ulimits VolumesFrom"
)
_MAPS = (
    "Annotations Containers DriverOpts ExposedPorts Labels Networks Options PortBindings Ports Services "
    "Status StorageOpt Sysctls Tmpfs Volumes"
)

DEFAULTS: dict[str, object] = {
    **dict.fromkeys(_NOTHING.split()),
    **dict.fromkeys(_TEXT.split(), ""),
    **{name: NullList() for name in _LISTS.split()},
    **{name: NullMap() for name in _MAPS.split()},
}
