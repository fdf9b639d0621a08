// npm's ws client against the server at argv[2]: does what test_peers.py expects and prints what it saw as JSON.
"use strict";
const { createHash } = require("node:crypto");
const { once } = require("node:events");
const WebSocket = require("ws");

const BIG = 1 << 20;
const url = process.argv[2];
const saw = {};

const digest = (data) => createHash("sha256").update(data).digest("hex");

async function answer(peer) {
  const [data, isBinary] = await once(peer, "message");
  return isBinary ? data : data.toString();
}

async function everything() {
  const peer = new WebSocket(url, { perMessageDeflate: false });
  await once(peer, "open");
  peer.send("h\u00e9llo \u20ac \u{1d11e}");
  saw.text = await answer(peer);
  peer.send(Buffer.from(Array.from({ length: 256 }, (_, i) => i)));
  saw.binary = (await answer(peer)).toString("hex");
  peer.send(Buffer.alloc(BIG, Buffer.from(Array.from({ length: 256 }, (_, i) => i))));
  const binary = await answer(peer);
  saw["big binary"] = [binary.length, digest(binary)];
  peer.send("\u20ac".repeat(Math.floor(BIG / 3)));
  const text = await answer(peer);
  saw["big text"] = [text.length, digest(text)];
  for (const piece of ["al", "pha ", ""]) peer.send(piece, { fin: false });
  peer.send("\u03b2\u03ae\u03c4\u03b1", { fin: true });
  saw["fragments sent"] = await answer(peer);
  peer.send("please fragment");
  saw["fragments received"] = [await answer(peer)];
  peer.ping("tick");
  await once(peer, "pong");
  saw.pong = true;
  peer.send("please ping");
  saw.answered = await answer(peer);
  peer.close(4001, "bye \u20ac");
  const [code, reason] = await once(peer, "close");
  saw.close = [code, reason.toString()];
}

async function closedByServer() {
  const peer = new WebSocket(url, { perMessageDeflate: false });
  await once(peer, "open");
  peer.send("please close");
  const [code, reason] = await once(peer, "close");
  saw.closed = [code, reason.toString()];
}

everything()
  .then(closedByServer)
  .then(() => console.log(JSON.stringify(saw)));
