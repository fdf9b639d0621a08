"""Speed and memory of gws_gevent beside other WebSocket servers: `make bench`, described in docs/performance.md."""
