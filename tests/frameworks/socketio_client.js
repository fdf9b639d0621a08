// Socket.IO's own client against the server at argv[2], by the transports of argv[3] ("websocket" or "polling,websocket"): does what
// test_engineio.py expects and prints what it saw as JSON.
"use strict";
const { io } = require("socket.io-client");

const url = process.argv[2];
const transports = process.argv[3].split(",");
const saw = {};

function open(extra = {}) {
  return io(url, { transports, reconnection: false, forceNew: true, timeout: 10000, ...extra });
}

const heard = (socket, event) => new Promise((resolve) => socket.once(event, (...args) => resolve(args)));

async function main() {
  const socket = open();
  const used = [];
  socket.io.on("open", () => {
    used.push(socket.io.engine.transport.name);
    socket.io.engine.on("upgrade", (transport) => used.push(transport.name));
  });
  await heard(socket, "connect");
  if (transports.length > used.length) await heard(socket.io.engine, "upgrade");
  saw.transports = used;

  let answer = heard(socket, "echoed");
  saw.acknowledged = await socket.emitWithAck("echo", { text: "h\u00e9llo \u20ac", list: [1, 2, 3] });
  saw.echoed = (await answer)[0];
  answer = heard(socket, "echoed");
  socket.emit("echo", Buffer.from([0, 1, 254, 255]));
  saw.binary = Array.from((await answer)[0]);
  answer = heard(socket, "echoed");
  socket.emit("echo", "x".repeat(900000));
  saw.big = (await answer)[0].length;

  const other = open();
  await heard(other, "connect");
  answer = heard(other, "joined");
  other.emit("join", "garden");
  await answer;
  const both = [heard(socket, "joined"), heard(other, "joined")];
  socket.emit("join", "garden");
  saw.room = (await Promise.all(both)).flat();

  // The server ends one, the client the other.
  answer = heard(other, "disconnect");
  other.emit("throw me out");
  saw["server's end"] = (await answer)[0];
  answer = heard(socket, "disconnect");
  socket.disconnect();
  saw["client's end"] = (await answer)[0];

  const refused = open({ auth: { token: "wrong" } });
  saw.refused = (await heard(refused, "connect_error"))[0].message;
  refused.close();
  console.log(JSON.stringify(saw));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
