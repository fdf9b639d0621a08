// npm's ws server on a free port: echoes, and does what "please ..." asks; prints its port and how connections closed.
"use strict";
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, perMessageDeflate: false });
server.on("listening", () => console.log("port", server.address().port));
server.on("connection", (peer) => {
  peer.on("pong", (data) => data.toString() === "server" && peer.send("you answered my ping"));
  peer.on("close", (code, reason) => console.log("closed", code, reason.toString()));
  peer.on("message", (data, isBinary) => {
    const asked = isBinary ? "" : data.toString();
    if (asked === "please fragment") {
      for (const piece of ["alpha ", ""]) peer.send(piece, { fin: false });
      peer.send("\u03b2\u03ae\u03c4\u03b1", { fin: true });
    } else if (asked === "please ping") {
      peer.ping("server");
    } else if (asked === "please close") {
      peer.close(4002, "as you wish \u20ac");
    } else {
      peer.send(data, { binary: isBinary });
    }
  });
});
