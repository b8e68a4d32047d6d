"""Routes of the Engine API, one module a resource."""
