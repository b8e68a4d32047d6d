"""HTTP server for the Docker Engine API."""
