"""Every command: where it is and what it is for. Nothing is imported before a command is chosen."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from host_client.cli.flags import Command

# Global options, before the command.
GLOBAL_FLAGS = (
    ("config", "", "string", "Directory of the client's configuration (default ~/.docker)"),
    ("context", "c", "string", "Name of the docker context whose engine to talk to; also DOCKER_CONTEXT"),
    ("debug", "D", "bool", "Show where an error came from"),
    (
        "host",
        "H",
        "list",
        "Engine to talk to (unix:///path, tcp://host:port, ssh://user@host); default DOCKER_HOST, or ours",
    ),
    ("log-level", "l", "string", "Logging level", "info"),
    (
        "mode",
        "",
        "string",
        "Where containers run when no engine is named: native (Linux) or vm; also WHERRY_MODE",
    ),
    ("tls", "", "bool", "Use TLS"),
    ("tlscacert", "", "string", "Trust only certificates that this CA signed"),
    ("tlscert", "", "string", "TLS certificate file"),
    ("tlskey", "", "string", "TLS key file"),
    ("tlsverify", "", "bool", "Use TLS and verify the engine"),
    ("version", "v", "bool", "Print the version and quit"),
)

# group -> (summary, {verb: (module, name in it, summary)})
GROUPS: dict[str, tuple[str, dict[str, tuple[str, str, str]]]] = {
    "container": (
        "Manage containers",
        {
            "attach": ("attach", "ATTACH", "Attach to a running container"),
            "commit": ("images", "COMMIT", "Create an image from a container's changes"),
            "cp": ("copy", "COPY", "Copy files between a container and this machine"),
            "create": ("run", "CREATE", "Create a container without starting it"),
            "diff": ("containers", "DIFF", "Show what a container changed in its file system"),
            "exec": ("exec", "EXEC", "Run a command in a running container"),
            "export": ("archives", "EXPORT", "Write a container's file system as a tar archive"),
            "inspect": ("inspect", "CONTAINER", "Show all details of containers"),
            "kill": ("lifecycle", "KILL", "Kill running containers"),
            "logs": ("logs", "LOGS", "Show what a container has written"),
            "ls": ("ps", "PS", "List containers"),
            "pause": ("lifecycle", "PAUSE", "Pause all processes of containers"),
            "port": ("containers", "PORT", "List the published ports of a container"),
            "prune": ("prune", "CONTAINERS", "Remove all stopped containers"),
            "rename": ("lifecycle", "RENAME", "Rename a container"),
            "restart": ("lifecycle", "RESTART", "Restart containers"),
            "rm": ("lifecycle", "REMOVE", "Remove containers"),
            "run": ("run", "RUN", "Create and run a container from an image"),
            "start": ("attach", "START", "Start stopped containers"),
            "stats": ("stats", "STATS", "Show what containers use, live"),
            "stop": ("lifecycle", "STOP", "Stop running containers"),
            "top": ("containers", "TOP", "Show the processes of a container"),
            "unpause": ("lifecycle", "UNPAUSE", "Let paused containers go on"),
            "update": ("containers", "UPDATE", "Change the limits of containers"),
            "wait": ("lifecycle", "WAIT", "Wait for containers to end and print their exit statuses"),
        },
    ),
    "builder": (
        "Manage builds",
        {
            "build": ("build", "BUILD", "Build an image from a Dockerfile"),
            "prune": ("build", "PRUNE", "Remove what is kept of builds"),
        },
    ),
    "image": (
        "Manage images",
        {
            "build": ("build", "BUILD", "Build an image from a Dockerfile"),
            "history": ("images", "HISTORY", "Show the history of an image"),
            "import": ("archives", "IMPORT", "Make an image from a tar archive of a file system"),
            "inspect": ("inspect", "IMAGE", "Show all details of images"),
            "load": ("archives", "LOAD", "Load images from a tar archive"),
            "ls": ("images", "IMAGES", "List images"),
            "prune": ("prune", "IMAGES", "Remove unused images"),
            "pull": ("pull", "PULL", "Download an image from a registry"),
            "push": ("push", "PUSH", "Upload an image to a registry"),
            "rm": ("images", "REMOVE", "Remove images"),
            "save": ("archives", "SAVE", "Write images to a tar archive"),
            "tag": ("images", "TAG", "Give an image a further name"),
        },
    ),
    "manifest": (
        "Manage images for several platforms under one name",
        {
            "annotate": ("manifest", "ANNOTATE", "Say which platform an image in a list is for"),
            "create": ("manifest", "CREATE", "Create a list of images, to be pushed to a registry"),
            "inspect": ("manifest", "INSPECT", "Show the manifest of an image, or a list"),
            "push": ("manifest", "PUSH", "Push a list to its registry"),
            "rm": ("manifest", "REMOVE", "Remove lists from this machine"),
        },
    ),
    "network": (
        "Manage networks",
        {
            "connect": ("networks", "CONNECT", "Connect a container to a network"),
            "create": ("networks", "CREATE", "Create a network"),
            "disconnect": ("networks", "DISCONNECT", "Disconnect a container from a network"),
            "inspect": ("inspect", "NETWORK", "Show all details of networks"),
            "ls": ("networks", "LIST", "List networks"),
            "prune": ("prune", "NETWORKS", "Remove all unused networks"),
            "rm": ("networks", "REMOVE", "Remove networks"),
        },
    ),
    "volume": (
        "Manage volumes",
        {
            "clone": ("volume_content", "CLONE", "Create a volume with the content of another one"),
            "create": ("volumes", "CREATE", "Create a volume"),
            "export": ("volume_content", "EXPORT", "Write a volume's content as a tar archive"),
            "import": ("volume_content", "IMPORT", "Create a volume from a tar archive"),
            "inspect": ("inspect", "VOLUME", "Show all details of volumes"),
            "ls": ("volumes", "LIST", "List volumes"),
            "prune": ("prune", "VOLUMES", "Remove unused volumes"),
            "rename": ("volume_content", "RENAME", "Rename a volume"),
            "restore": ("volume_content", "RESTORE", "Make a volume's content what it was at a snapshot"),
            "rm": ("volumes", "REMOVE", "Remove volumes"),
            "snapshot": (
                "volume_content",
                "SNAPSHOT",
                "Keep a volume's content as it is now, or delete such a copy",
            ),
            "snapshots": ("volume_content", "SNAPSHOTS", "List the snapshots of a volume"),
        },
    ),
    "system": (
        "Manage the engine",
        {
            "df": ("disk", "DF", "Show how much disk space is used"),
            "dial-stdio": (
                "dial_stdio",
                "DIAL",
                "Join standard input and output to the engine",
            ),
            "events": ("events", "EVENTS", "Show what happens in the engine, live"),
            "info": ("info", "INFO", "Show details of the engine and its machine"),
            "prune": ("prune", "SYSTEM", "Remove unused data"),
        },
    ),
    "machine": (
        "Manage virtual machines that run engines",
        {
            "doctor": ("machine", "DOCTOR", "Check what machines need, and say what is wrong"),
            "export": ("machine_files", "EXPORT", "Write a stopped machine with its data to a file"),
            "import": ("machine_files", "IMPORT", "Make a machine from an exported file"),
            "init": ("machine", "INIT", "Make a machine"),
            "inspect": ("machine", "INSPECT", "Show all details of machines"),
            "list": ("machine", "LIST", "List machines"),
            "logs": ("machine", "LOGS", "Show the console of a machine, or its supervisor's log"),
            "reset": ("machine", "RESET", "Give a stopped machine an empty data disk"),
            "resize": ("machine", "RESIZE", "Make the data disk of a stopped machine larger"),
            "restart": ("machine", "RESTART", "Restart a machine"),
            "rm": ("machine", "REMOVE", "Remove machines with all their data"),
            "set": ("machine", "SET", "Change the CPUs, memory, disk or shared folders of a stopped machine"),
            "ssh": ("machine_ssh", "SSH", "Run a shell or a command in a machine"),
            "start": ("machine", "START", "Boot a machine"),
            "status": ("machine", "STATUS", "Tell whether a machine runs, and how"),
            "stop": ("machine", "STOP", "Stop a machine"),
        },
    ),
    "engine": (
        "Run Wherry's own engine",
        {
            "install-service": ("service", "INSTALL", "Have systemd start the engine when it is needed"),
            "logs": ("engine", "LOGS", "Show the engine's log"),
            "serve": ("engine", "SERVE", "Run an engine in the foreground"),
            "status": ("engine", "STATUS", "Tell whether the engine runs, and where"),
            "stop": ("engine", "STOP", "Stop the engine and what runs in it"),
            "uninstall-service": ("service", "UNINSTALL", "Have systemd start the engine no more"),
        },
    ),
}

# Commands without a group of their own.
SINGLE: dict[str, tuple[str, str, str]] = {
    "compose": ("compose", "COMPOSE", "Run Docker Compose with this engine"),
    "completion": ("completion", "COMPLETION", "Print the completion script for a shell"),
    "doctor": (
        "doctor",
        "DOCTOR",
        "Check what Wherry needs of this computer, and repair what is safe to",
    ),
    "inspect": ("inspect", "ANY", "Show all details of containers, images, volumes and networks"),
    "login": ("login", "LOGIN", "Log in to a registry"),
    "logout": ("login", "LOGOUT", "Log out from a registry"),
    "search": ("search", "SEARCH", "Search Docker Hub for images"),
    "version": ("version", "VERSION", "Show the versions of client and engine"),
}

# The short forms: the command at the top and the verb it stands for.
SHORT: dict[str, tuple[str, str]] = {
    **{
        verb: ("container", verb) for verb in GROUPS["container"][1] if verb not in ("inspect", "ls", "prune")
    },
    "ps": ("container", "ls"),
    **{
        verb: ("image", verb)
        for verb in ("build", "history", "import", "load", "pull", "push", "save", "tag")
    },
    "images": ("image", "ls"),
    "rmi": ("image", "rm"),
    "events": ("system", "events"),
    "info": ("system", "info"),
}

# Other spellings inside the groups.
OTHER_SPELLINGS = {
    ("container", "list"): "ls",
    ("container", "ps"): "ls",
    ("container", "remove"): "rm",
    ("image", "list"): "ls",
    ("image", "remove"): "rm",
    ("machine", "ls"): "list",
    ("machine", "remove"): "rm",
    ("network", "list"): "ls",
    ("network", "remove"): "rm",
    ("volume", "list"): "ls",
    ("volume", "remove"): "rm",
}

# Commands of docker's that are not here, for an answer that says more than that a word is unknown.
DOCKERS_OWN = frozenset((
    "buildx", "checkpoint", "config", "context", "node", "plugin",
    "secret", "service", "stack", "swarm", "trust",
))  # fmt: skip

COMMON = (
    "run", "exec", "ps", "build", "pull", "push", "images", "logs", "stop", "rm", "login", "logout", "search",
    "version", "info",
)  # fmt: skip


def entry(name: str, verb: str = "") -> tuple[str, str, str] | None:
    """Module, attribute and summary of a command; None when there is none of that name."""
    if verb:
        verbs = GROUPS[name][1]
        return verbs.get(OTHER_SPELLINGS.get((name, verb), verb))
    if name in SHORT:
        group, verb = SHORT[name]
        return GROUPS[group][1][verb]
    return SINGLE.get(name)


def load(found: tuple[str, str, str]) -> Command:
    """Import a command."""
    module = __import__(f"host_client.cli.commands.{found[0]}", fromlist=[found[1]])
    command: Command = getattr(module, found[1])
    return command


def names() -> list[str]:
    """Everything that can stand after `wherry`."""
    return [*SHORT, *SINGLE, *GROUPS]
