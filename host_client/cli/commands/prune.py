"""`prune` of containers, images, networks, volumes, and of everything."""

from __future__ import annotations

from host_client.cli import output, units
from host_client.cli.errors import CliError
from host_client.cli.flags import Command
from host_client.engine_api.client import filters

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from host_client.cli.flags import Parsed
    from host_client.cli.session import Session

    Filters = dict[str, list[str]]

DANGLING = "all dangling images"
UNUSED_IMAGES = "all images without at least one container associated to them"


def confirm(question: str, force: bool) -> bool:
    """Ask, unless `force`; anything but yes is no."""
    if force:
        return True
    output.out(f"{question} [y/N] ")
    import sys

    return sys.stdin.readline().strip().lower() in ("y", "yes")


def prune_filters(session: Session, given: Filters) -> Filters:
    """The filters of the command line, with those of the configuration file that they do not contradict."""
    made = {name: list(values) for name, values in given.items()}
    for text in session.config.values.get("pruneFilters") or ():
        name, equals, value = str(text).partition("=")
        other = {"label": "label!", "label!": "label"}.get(name, "")
        if not equals or value in made.get(other, ()):
            continue
        if name in ("label", "label!") or name not in made:
            made.setdefault(name, []).append(value)
    return made


def _report(title: str, names: list[str]) -> str:
    return f"{title}\n" + "".join(f"{name}\n" for name in names) if names else ""


def containers(session: Session, wanted: Filters) -> tuple[int, str]:
    """Remove stopped containers; bytes freed and what to print."""
    answer = session.client.post("/containers/prune", {"filters": filters(wanted)})
    names = answer.get("ContainersDeleted") or []
    return answer.get("SpaceReclaimed", 0) if names else 0, _report("Deleted Containers:", names)


def networks(session: Session, wanted: Filters) -> tuple[int, str]:
    """Remove unused networks."""
    answer = session.client.post("/networks/prune", {"filters": filters(wanted)})
    return 0, _report("Deleted Networks:", answer.get("NetworksDeleted") or [])


def volumes(session: Session, wanted: Filters) -> tuple[int, str]:
    """Remove unused volumes."""
    answer = session.client.post("/volumes/prune", {"filters": filters(wanted)})
    names = answer.get("VolumesDeleted") or []
    return answer.get("SpaceReclaimed", 0) if names else 0, _report("Deleted Volumes:", names)


def images(session: Session, wanted: Filters, everything: bool) -> tuple[int, str]:
    """Remove images without a name, or all that no container uses."""
    wanted = {**wanted, "dangling": ["false" if everything else "true"]}
    answer = session.client.post("/images/prune", {"filters": filters(wanted)})
    done = answer.get("ImagesDeleted") or []
    lines = [
        f"untagged: {item['Untagged']}" if item.get("Untagged") else f"deleted: {item['Deleted']}"
        for item in done
    ]
    return answer.get("SpaceReclaimed", 0) if lines else 0, _report("Deleted Images:", lines)


def build_cache(session: Session, wanted: Filters, everything: bool, keep: int = 0) -> tuple[int, str]:
    """Remove what is kept of builds; labels mean nothing to it."""
    chosen = {name: values for name, values in wanted.items() if name not in ("label", "label!")}
    query = {"all": everything, "keep-storage": keep or None, "filters": filters(chosen)}
    answer = session.client.post("/build/prune", query)
    removed = answer.get("CachesDeleted") or []
    return answer.get("SpaceReclaimed", 0), _report("Deleted build cache objects:", removed)


def _finish(freed: int, text: str, total: bool = True) -> int:
    if text:
        output.line(text)
    if total:
        output.line(f"Total reclaimed space: {units.human_size(freed)}")
    return 0


def _question(what: str) -> str:
    return f"WARNING! This will remove {what}.\nAre you sure you want to continue?"


def prune_containers(session: Session, parsed: Parsed) -> int:
    """`wherry container prune`."""
    if not confirm(_question("all stopped containers"), parsed["force"]):
        return 0
    return _finish(*containers(session, prune_filters(session, parsed["filter"])))


def prune_images(session: Session, parsed: Parsed) -> int:
    """`wherry image prune`."""
    if not confirm(_question(UNUSED_IMAGES if parsed["all"] else DANGLING), parsed["force"]):
        return 0
    return _finish(*images(session, prune_filters(session, parsed["filter"]), parsed["all"]))


def prune_networks(session: Session, parsed: Parsed) -> int:
    """`wherry network prune`."""
    if not confirm(_question("all custom networks not used by at least one container"), parsed["force"]):
        return 0
    return _finish(*networks(session, prune_filters(session, parsed["filter"])), total=False)


def prune_volumes(session: Session, parsed: Parsed) -> int:
    """`wherry volume prune`."""
    wanted = prune_filters(session, parsed["filter"])
    if parsed["all"]:
        if "all" in wanted:
            raise CliError("conflicting options: cannot specify both --all and --filter all=1")
        wanted["all"] = ["true"]
    what = "all local volumes" if wanted.get("all") else "anonymous local volumes"
    if not confirm(_question(f"{what} not used by at least one container"), parsed["force"]):
        return 0
    return _finish(*volumes(session, wanted))


def prune_system(session: Session, parsed: Parsed) -> int:
    """`wherry system prune`."""
    wanted = prune_filters(session, parsed["filter"])
    if parsed["volumes"] and "until" in wanted:
        raise CliError('the "until" filter is not supported with "--volumes"', "prune volumes by themselves")
    steps: list[tuple[str, Callable[[], tuple[int, str]]]] = [
        ("all stopped containers", lambda: containers(session, wanted)),
        ("all networks not used by at least one container", lambda: networks(session, wanted)),
    ]
    if parsed["volumes"]:
        steps.append(
            ("all anonymous volumes not used by at least one container", lambda: volumes(session, wanted))
        )
    steps.append(
        (UNUSED_IMAGES if parsed["all"] else DANGLING, lambda: images(session, wanted, parsed["all"]))
    )
    steps.append(("unused build cache", lambda: build_cache(session, wanted, parsed["all"])))
    question = "WARNING! This will remove:\n" + "".join(f"  - {what}\n" for what, _ in steps)
    shown = [
        f"  - {name}={value}\n" for name in ("label", "label!", "until") for value in wanted.get(name, ())
    ]
    if shown:
        question += "\n  Items to be pruned will be filtered with:\n" + "".join(sorted(shown))
    if not confirm(f"{question}\nAre you sure you want to continue?", parsed["force"]):
        return 0
    freed = 0
    for _, step in steps:
        amount, text = step()
        freed += amount
        if text:
            output.line(text)
    return _finish(freed, "")


_FILTER = ("filter", "", "filter", "Only those that fit (until=24h, label=key=value, label!=key)")
_FORCE = ("force", "f", "bool", "Do not ask")

CONTAINERS = Command(
    "[OPTIONS]",
    prune_containers,
    flags=(_FILTER, _FORCE),
    examples=(("wherry container prune --filter until=24h", "those that were made a day ago or earlier"),),
)
IMAGES = Command(
    "[OPTIONS]",
    prune_images,
    flags=(
        ("all", "a", "bool", "All that no container uses, not only those without a name"),
        _FILTER,
        _FORCE,
    ),
    examples=(("wherry image prune -a", "all that no container uses"),),
)
NETWORKS = Command(
    "[OPTIONS]",
    prune_networks,
    flags=(_FILTER, _FORCE),
    examples=(("wherry network prune -f", "without asking"),),
)
VOLUMES = Command(
    "[OPTIONS]",
    prune_volumes,
    flags=(("all", "a", "bool", "Named volumes, too, not only anonymous ones"), _FILTER, _FORCE),
    examples=(("wherry volume prune -a --filter label!=keep", "named ones, too, but none with this label"),),
)
SYSTEM = Command(
    "[OPTIONS]",
    prune_system,
    flags=(
        ("all", "a", "bool", "All images that no container uses, not only those without a name"),
        _FILTER,
        _FORCE,
        ("volumes", "", "bool", "Anonymous volumes, too"),
    ),
    examples=(("wherry system prune -af --volumes", "all that is not in use, without asking"),),
)
