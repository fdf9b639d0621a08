"""Plugs into other people's servers and frameworks, one module each. Import the one you need."""
