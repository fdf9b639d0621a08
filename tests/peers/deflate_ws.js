// npm's ws with compression: "client URL COMBINATIONS" or "server COMBINATIONS"; see test_deflate_peers.py.
"use strict";
const { once } = require("node:events");
const WebSocket = require("ws");

const TEXT = "compress me, please ".repeat(50);
const BYTES = Buffer.alloc(256 * 40, Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
const MESSAGES = [TEXT, TEXT, "short", BYTES, "", TEXT.repeat(100), TEXT];

async function answer(peer) {
  const [data, isBinary] = await once(peer, "message");
  return isBinary ? data : data.toString();
}

function expect(right) {
  if (!right) throw new Error("another message came back");
}

async function client(url, combinations) {
  const saw = [];
  for (const combination of combinations) {
    const peer = new WebSocket(url, { perMessageDeflate: { ...combination, threshold: 0 } });
    peer.on("upgrade", (response) => saw.push(response.headers["sec-websocket-extensions"] || ""));
    await once(peer, "open");
    for (const message of MESSAGES) {
      peer.send(message);
      const echoed = await answer(peer);
      expect(typeof message === "string" ? echoed === message : BYTES.equals(echoed));
    }
    for (const piece of [TEXT.slice(0, 7), ""]) peer.send(piece, { fin: false });
    peer.send(TEXT.slice(7), { fin: true });
    expect((await answer(peer)) === TEXT);
    peer.close();
    await once(peer, "close");
  }
  console.log(JSON.stringify(saw));
}

async function server(combinations) {
  const ports = [];
  for (const combination of combinations) {
    const one = new WebSocket.Server({ host: "127.0.0.1", port: 0, perMessageDeflate: { ...combination, threshold: 0 } });
    one.on("connection", (peer) => peer.on("message", (data, isBinary) => peer.send(data, { binary: isBinary })));
    await once(one, "listening");
    ports.push(one.address().port);
  }
  console.log("ports", ...ports);
}

const [kind, ...rest] = process.argv.slice(2);
if (kind === "client") client(rest[0], JSON.parse(rest[1]));
else server(JSON.parse(rest[0]));
