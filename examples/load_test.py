"""A load test with Locust: users that ask an echo server, one connection each.

    python examples/load_test.py --host ws://127.0.0.1:3001 --users 50 --seconds 30

runs Locust without its web page and prints its statistics. `locust -f examples/load_test.py` opens the page. It needs Locust:
pip install 'gws_gevent[locust]'
"""

import argparse
import subprocess
import sys

from locust import between, task

from gws_gevent.integrations.locust import WebSocketUser


class Talker(WebSocketUser):
    host = "ws://127.0.0.1:3001"
    wait_time = between(0.05, 0.2)

    def on_start(self) -> None:
        self.ws = self.connect("/echo")

    @task(3)
    def ask(self) -> None:
        self.ws.call("hello", name="hello")

    @task
    def come_again(self) -> None:
        self.ws.close()
        self.ws = self.connect("/echo")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", default=Talker.host)
    parser.add_argument("--users", default="50")
    parser.add_argument("--seconds", default="30")
    args = parser.parse_args()
    locust = [sys.executable, "-m", "locust", "-f", __file__, "--headless", "--only-summary", "--host", args.host]
    return subprocess.call([*locust, "--users", args.users, "--spawn-rate", args.users, "--run-time", args.seconds])


if __name__ == "__main__":
    sys.exit(main())
