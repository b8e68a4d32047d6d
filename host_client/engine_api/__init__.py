"""Client for the Engine API and its transports."""
