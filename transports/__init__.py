"""Transports: reliable byte streams that carry WebSocket connections. Installs as ``gws_gevent.transports``."""

if __name__ == "transports":
    # In a checkout this folder can be imported under its own name, which would make a second copy of every class in it.
    raise ImportError("import gws_gevent.transports, not transports")
