"""`info`."""

from __future__ import annotations

from host_client import VERSION
from host_client.cli import output, units
from host_client.cli.commands.version import client_part
from host_client.cli.flags import Command
from host_client.engine_api import API_VERSION
from host_client.engine_api.errors import EngineApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session


def info(session: Session, parsed: Parsed) -> int:
    """`wherry info`."""
    layout = parsed["format"]
    if layout:
        return _formatted(session, layout)
    problem = None
    found: dict[str, Any] | None = None
    try:
        found = session.client.get("/info")
    except EngineApiError as error:
        problem = error
    debug = str(session.settings["debug"]).lower()
    output.out(
        f"Client: Wherry\n Version:    {VERSION}\n Context:    default\n Debug Mode: {debug}\n\nServer:\n"
    )
    if found is not None:
        output.out(server_text(found, session.settings["debug"]) + "\n")
        for warning in found.get("Warnings") or ():
            output.err(f"{warning}\n")
    if problem is not None:
        raise problem
    return 0


def _formatted(session: Session, layout: str) -> int:
    from host_client.cli import formats
    from host_client.engine_api.wire import dumps

    found = session.client.get("/info")
    found["ClientInfo"] = {
        **client_part(API_VERSION),
        "Debug": session.settings["debug"],
        "Plugins": [],
        "Warnings": None,
    }
    if layout == "json":
        output.line(dumps(found))
        return 0
    output.line(formats.filled(formats.template(layout), found))
    return 0


def server_text(found: dict[str, Any], debug: bool) -> str:
    """The engine's part, in docker's order; fields that are not there are left out."""
    lines: list[str] = []

    def add(label: str, key: str, required: bool = False) -> None:
        value = found.get(key)
        if required or value not in (None, ""):
            lines.append(f" {label}: {_text(value)}")

    add("Containers", "Containers", True)
    for label in ("Running", "Paused", "Stopped"):
        lines.append(f"  {label}: {found.get(f'Containers{label}', 0)}")
    add("Images", "Images", True)
    add("Server Version", "ServerVersion")
    add("Storage Driver", "Driver")
    lines += [f"  {name}: {value}" for name, value in found.get("DriverStatus") or ()]
    lines += [f" {name}: {value}" for name, value in found.get("SystemStatus") or ()]
    add("Logging Driver", "LoggingDriver")
    add("Cgroup Driver", "CgroupDriver")
    add("Cgroup Version", "CgroupVersion")
    lines += _plugins(found.get("Plugins") or {})
    for title, key in ((" CDI spec directories:", "CDISpecDirs"),):
        if found.get(key):
            lines += [title, *(f"  {item}" for item in found[key])]
    if found.get("DiscoveredDevices"):
        lines.append(" Discovered Devices:")
        lines += [f"  {device['Source']}: {device['ID']}" for device in found["DiscoveredDevices"]]
    lines.append(f" Swarm: {(found.get('Swarm') or {}).get('LocalNodeState') or 'inactive'}")
    if found.get("Runtimes"):
        lines.append(f" Runtimes: {' '.join(found['Runtimes'])}")
        add("Default Runtime", "DefaultRuntime", True)
    if found.get("OSType") == "linux":
        lines += _linux(found)
    for label, key in (
        ("Kernel Version", "KernelVersion"),
        ("Operating System", "OperatingSystem"),
        ("OSType", "OSType"),
        ("Architecture", "Architecture"),
    ):
        add(label, key)
    add("CPUs", "NCPU", True)
    lines.append(f" Total Memory: {units.binary_size(found.get('MemTotal', 0))}")
    add("Name", "Name")
    add("ID", "ID")
    add("Docker Root Dir", "DockerRootDir", True)
    add("Debug Mode", "Debug", True)
    if found.get("Debug") or debug:
        for label, key in (
            ("File Descriptors", "NFd"),
            ("Goroutines", "NGoroutines"),
            ("System Time", "SystemTime"),
            ("EventsListeners", "NEventsListener"),
        ):
            lines.append(f"  {label}: {_text(found.get(key, ''))}")
    add("HTTP Proxy", "HttpProxy")
    add("HTTPS Proxy", "HttpsProxy")
    add("No Proxy", "NoProxy")
    if found.get("Labels"):
        lines += [" Labels:", *(f"  {label}" for label in found["Labels"])]
    add("Experimental", "ExperimentalBuild", True)
    lines += _registries(found.get("RegistryConfig") or {})
    add("Live Restore Enabled", "LiveRestoreEnabled", True)
    add("Product License", "ProductLicense")
    if found.get("DefaultAddressPools"):
        lines.append(" Default Address Pools:")
        lines += [f"   Base: {pool['Base']}, Size: {pool['Size']}" for pool in found["DefaultAddressPools"]]
    backend = found.get("FirewallBackend")
    if backend:
        lines.append(f" Firewall Backend: {backend['Driver']}")
        lines += [f"  {name}: {value}" for name, value in backend.get("Info") or ()]
    return "\n".join(lines) + "\n"


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _plugins(plugins: dict[str, Any]) -> list[str]:
    lines = [" Plugins:"]
    for kind in ("Volume", "Network", "Authorization", "Log"):
        names = plugins.get(kind) or []
        if names or kind != "Authorization":
            lines.append(f"  {kind}: {' '.join(names)}")
    return lines


def _linux(found: dict[str, Any]) -> list[str]:
    lines = [f" Init Binary: {found.get('InitBinary', '')}"]
    for label, key in (("containerd", "ContainerdCommit"), ("runc", "RuncCommit"), ("init", "InitCommit")):
        lines.append(f" {label} version: {(found.get(key) or {}).get('ID', '')}")
    options = found.get("SecurityOptions") or []
    if options:
        lines.append(" Security Options:")
    for option in options:
        values = [part.partition("=")[::2] for part in option.split(",")]
        lines += [f"  {value}" for key, value in values if key == "name"] or [f"  {option}"]
        lines += [f"   Profile: {value}" for key, value in values if key == "profile"]
    return lines


def _registries(config: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    indexes = config.get("IndexConfigs") or {}
    networks = config.get("InsecureRegistryCIDRs") or []
    if networks or indexes:
        lines.append(" Insecure Registries:")
        lines += [f"  {index['Name']}" for index in indexes.values() if not index.get("Secure")]
        lines += [f"  {network}" for network in networks]
    if config.get("Mirrors"):
        lines += [" Registry Mirrors:", *(f"  {mirror}" for mirror in config["Mirrors"])]
    return lines


INFO = Command(
    "[OPTIONS]",
    info,
    flags=(("format", "f", "string", "How to print: json, or a Go TEMPLATE ({{.ServerVersion}})"),),
    examples=(("wherry info -f '{{.Driver}}'", "one field"),),
)
