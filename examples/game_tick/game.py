"""A game that ticks 60 times a second, over KCP and over TCP, on a line that loses packets. It tells how late the ticks are.

    python examples/game_tick/game.py [--loss 5] [--rtt 60] [--jitter 10] [--seconds 6] [--plot latency.png]

A real server sends its state (200 bytes) to every player at each tick, every player sends 40 bytes of input; both sides and what
is between them are in this process, on real sockets. A relay between them is the line: datagrams of KCP get lost, late and out of
order. The segments of TCP cannot be touched from here, so its relay is a model of what Linux makes of the same losses, as kind to
TCP as it can be: tcp_model.py says how. In short: what comes after a lost segment waits until that has been sent again, which
is a round trip and a bit later, or 200 ms and more when nothing follows.

It needs pip install 'gws_gevent[kcp]', and with --plot also 'gws_gevent[plot]'.
"""

from __future__ import annotations

import argparse
import struct
import sys
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import gevent
from relays import tcp_relay, udp_relay

from gws_gevent import ClientOptions, Connection, EventHandler, GwsError, Message, Server, connect
from gws_gevent.transports.simulated import Impairment

TICK = 1 / 60
STATE, INPUT = 200, 40
HEAD = struct.Struct("!Id")
#: KCP as games use it: no congestion control, repeated after 30 ms at the earliest or two later acknowledgements, 10 ms steps.
KCP = {"mode": "fast3"}
#: Seconds that the last ticks get to arrive. What is not there then counts with the time it has waited.
REST = 4.0


class Game(EventHandler):
    """The server's side: players, and the ticks that they all get."""

    def __init__(self) -> None:
        self.players: set[Connection] = set()
        self.inputs = 0
        self.sent_at: list[float] = []

    def on_open(self, conn: Connection) -> None:
        self.players.add(conn)

    def on_close(self, conn: Connection, info: Any) -> None:
        self.players.discard(conn)

    def on_message(self, conn: Connection, message: Message) -> None:
        self.inputs += 1

    def run(self, ticks: int) -> None:
        for number in on_time(ticks):
            self.sent_at.append(time.monotonic())
            state = HEAD.pack(number, self.sent_at[-1]).ljust(STATE, b"\0")
            for player in list(self.players):
                player.send(state)


def on_time(ticks: int) -> Iterator[int]:
    """Count the ticks, each at its time; those that are late do not make the next ones late."""
    began = time.monotonic()
    for number in range(ticks):
        gevent.sleep(max(0.0, began + number * TICK - time.monotonic()))
        yield number


def play(url: str, ticks: int, late: list[float]) -> Exception | None:
    """A player's side: send input, and note how old each tick was when it came, in ms. Return what went wrong."""
    params = KCP if url.startswith("ws+kcp:") else {}
    sending = None
    try:
        with connect(url, options=ClientOptions(transport_params=params, handshake_timeout=15, close_timeout=1)) as conn:
            sending = gevent.spawn(send_input, conn, ticks)
            while len(late) < ticks:
                _, sent_at = HEAD.unpack_from(conn.receive())
                late.append((time.monotonic() - sent_at) * 1000)
    except (GwsError, TimeoutError) as error:
        return error
    finally:
        if sending is not None:
            sending.kill()
    return None


def send_input(conn: Connection, ticks: int) -> None:
    try:
        for number in on_time(ticks):
            conn.send(HEAD.pack(number, time.monotonic()).ljust(INPUT, b"\0"))
    except GwsError:
        pass  # whoever receives hears of it, too


def measure(scheme: str, line: Impairment, args: argparse.Namespace) -> list[list[float]]:
    """Play; return for each player how late the ticks came, in ms, in the order of the ticks."""
    game = Game()
    ticks = max(2, int(args.seconds / TICK))
    relay = udp_relay if scheme == "kcp" else tcp_relay
    query = "?mode=" + KCP["mode"] if scheme == "kcp" else ""
    with Server(game) as server:
        server.start(f"{scheme}://127.0.0.1:0{query}")
        target = ("127.0.0.1", int(server.address.rpartition(":")[2]))
        with relay(target, line, args.seed) as (host, port):
            url = f"ws{'+kcp' if scheme == 'kcp' else ''}://{host}:{port}/"
            late: list[list[float]] = [[] for _ in range(args.players)]
            players = [gevent.spawn(play, url, ticks, one) for one in late]
            while len(game.players) < args.players:
                gevent.sleep(0.01)
                for player in players:
                    if player.ready():
                        raise player.value
            game.run(ticks)
            gevent.joinall(players, timeout=REST)
            now = time.monotonic()
            for one in late:
                one += [(now - sent_at) * 1000 for sent_at in game.sent_at[len(one) :]]
            gevent.killall(players)
    return late


def attempt(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    """Call a function in a greenlet; return one that returns what it returned, or raises what it raised."""
    try:
        result = function(*args)
        return lambda: result
    except (GwsError, OSError, TimeoutError) as error:
        raised = error

        def fail() -> None:
            raise raised

        return fail


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


SHARES = (0.5, 0.9, 0.99, 0.999, 1.0)


def row(name: str, players: list[list[float]]) -> str:
    values = [value for one in players for value in one]
    return f"{name:<5}" + "".join(f"{percentile(values, share):9.1f}" for share in SHARES)


def title(args: argparse.Namespace) -> str:
    return f"{args.loss:g} % loss each way, round trip {args.rtt:g} ms and up to {args.jitter:g} ms jitter each way"


def draw(args: argparse.Namespace, found: dict[str, list[list[float]]]) -> None:
    figure = import_module("matplotlib.figure").Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(f"A game tick at 60 Hz, KCP and TCP: {title(args)}")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for colour, (name, players) in zip(("C1", "C0"), found.items(), strict=True):
        left.plot([number * TICK for number in range(len(players[0]))], players[0], color=colour, linewidth=1, label=name.upper())
        values = sorted(value for one in players for value in one)
        beyond = [1 - number / len(values) for number in range(len(values))]
        right.plot(values, beyond, color=colour, label=name.upper())
    left.set(xlabel="seconds into the game", ylabel="age of a tick when it arrives, ms", title="one player")
    left.set_ylim(bottom=0)
    left.margins(x=0)
    right.set(xlabel="age, ms", ylabel="share of ticks that are older", yscale="log", title=f"{args.players} players")
    right.grid(alpha=0.3)
    right.legend()
    figure.supxlabel(
        "KCP (mode=fast3): datagrams through a relay. TCP: a relay that models Linux (RACK, tail loss probe, RTO of 200 ms "
        "and more, congestion window).",
        fontsize=8,
        color="0.4",
    )
    figure.savefig(args.plot, dpi=80)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", type=float, default=5.0, help="percent of packets, each way (5)")
    parser.add_argument("--rtt", type=float, default=60.0, help="milliseconds, without jitter (60)")
    parser.add_argument("--jitter", type=float, default=10.0, help="milliseconds, each way (10)")
    parser.add_argument("--seconds", type=float, default=6.0, help="of play (6)")
    parser.add_argument("--players", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1, help="of the line (1)")
    parser.add_argument("--plot", metavar="FILE", help="draw it, as .png or .svg")
    args = parser.parse_args()
    if not (
        0 <= args.loss <= 50 and 0 <= args.rtt <= 2000 and 0 <= args.jitter <= 1000 and 0 < args.seconds <= 600 and args.players > 0
    ):
        parser.error("loss is 0 to 50 %, rtt up to 2000 ms, jitter up to 1000 ms, seconds up to 600, and there is a player")
    line = Impairment(loss=args.loss / 100, delay=args.rtt / 2000, jitter=args.jitter / 1000)
    try:
        if args.plot:
            import_module("matplotlib.figure")  # found out before the game
        games = {scheme: gevent.spawn(attempt, measure, scheme, line, args) for scheme in ("tcp", "kcp")}
        found = {scheme: game.get()() for scheme, game in games.items()}
        print(f"age of a tick when it arrives, ms; {title(args)}")
        print(f"{'':<5}" + "".join(f"{f'p{share * 100:g}' if share < 1 else 'worst':>9}" for share in SHARES))
        for scheme, players in found.items():
            print(row(scheme, players), flush=True)
        if args.plot:
            draw(args, found)
    except (GwsError, OSError, TimeoutError) as error:
        print(error, file=sys.stderr)
        return 1
    except ImportError:
        print("--plot needs matplotlib: pip install 'gws_gevent[plot]'", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
