"""Other people's clients and servers with a bridge between them: what they say to each other is none of ours."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import trustme

from gws_gevent import Bridge, ListenSettings, TlsFiles, client_context
from gws_gevent.transports.base import DialSettings
from tests.peers.programs import HERE, Program, node_modules, running
from tests.peers.test_peers import SEEN, WHOLE
from tests.support import require_module, require_tool, run_program

pytestmark = [pytest.mark.slow, pytest.mark.peer]


@pytest.mark.parametrize(
    ("pair", "middle"), [("websockets to ws", "unix"), ("ws to websockets", "unix"), ("websockets to ws", "h3")]
)
def test_a_client_and_a_server_of_others_meet_over_two_bridges(pair: str, middle: str, tmp_path: Path) -> None:
    require_module("websockets")
    require_module("aioquic")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca"))
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert"))
    env = node_modules()
    client, _, server = pair.split()
    programs = {
        "websockets": [sys.executable, str(HERE / "websockets_{}.py")],
        "ws": [require_tool("node"), str(HERE / "ws_{}.js")],
    }
    interpreter, script = programs[server]
    with running([interpreter, script.format("server")], tmp_path, Program.output, env) as program:
        with Bridge(f"tcp://127.0.0.1:{int(program.output().split()[1])}") as far:
            place = f"unix:{tmp_path}/middle" if middle == "unix" else "h3://127.0.0.1:0"
            far.start(place, settings=ListenSettings(tls=TlsFiles(str(tmp_path / "cert"))))
            with Bridge(far.addresses[0], dial=DialSettings(ssl_context=client_context(str(tmp_path / "ca")))) as near:
                near.start("127.0.0.1:0")
                url = near.addresses[0].replace("tcp:", "ws:")
                interpreter, script = programs[client]
                finished = run_program([interpreter, script.format("client"), url], timeout=60, env=env)
        assert finished.status == 0, finished.errors
        saw = json.loads(finished.output)
        # ws answers a close frame with its reason as well, and hands out whole messages only.
        saw["close"][1], saw["fragments received"] = "", ["".join(saw["fragments received"])]
        assert saw == {**SEEN, "fragments received": [WHOLE]}
        assert program.output().count("closed") == 2
