"""The engine without root: namespaces of an ordinary user in which the same engine runs as their root.

serve (a user's process)
  ├─ forks the keeper, which stays outside with the user's own rights
  ├─ enters a user namespace, whose ids the keeper maps, and a mount namespace
  ├─ begins the monitor there, which so is in the host's network namespace (--network host)
  └─ enters a network namespace, to which the keeper gives a way out, and becomes the agent
"""
