"""Echo throughput and memory of gws_gevent beside other WebSocket servers: `make bench`, described in docs/benchmarks.md."""
