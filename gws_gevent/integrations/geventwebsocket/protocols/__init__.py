"""Protocols on top of a WebSocketApplication."""
