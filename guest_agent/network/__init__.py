"""Bridges, addresses, published ports, name files."""
