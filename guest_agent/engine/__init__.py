"""State machines and persistence: containers, images, networks, volumes, events. No HTTP, no system calls."""
