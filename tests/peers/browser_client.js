// Runs in a page, with the server's URL as its argument: does what test_peers.py expects and leaves what it saw in window.saw.
const url = arguments[0];
const BIG = 1 << 20;
const saw = (window.saw = {});

const bytes = (size) => Uint8Array.from({ length: size }, (_, i) => i & 255);
const hex = (buffer) => Array.from(new Uint8Array(buffer), (byte) => byte.toString(16).padStart(2, "0")).join("");

async function digest(data) {
  const encoded = typeof data === "string" ? new TextEncoder().encode(data) : data;
  return hex(await crypto.subtle.digest("SHA-256", encoded));
}

function opened() {
  return new Promise((resolve, reject) => {
    const peer = new WebSocket(url);
    peer.binaryType = "arraybuffer";
    peer.onopen = () => resolve(peer);
    peer.onerror = () => reject(new Error("not opened"));
  });
}

const answer = (peer) => new Promise((resolve) => { peer.onmessage = (event) => resolve(event.data); });
const end = (peer) => new Promise((resolve) => { peer.onclose = resolve; });

async function ask(peer, message) {
  const promise = answer(peer);
  peer.send(message);
  return promise;
}

async function everything() {
  const peer = await opened();
  saw.protocol = peer.protocol;
  saw.extensions = peer.extensions;
  saw.text = await ask(peer, "h\u00e9llo \u20ac \u{1d11e}");
  saw.binary = hex(await ask(peer, bytes(256)));
  const binary = await ask(peer, bytes(BIG));
  saw["big binary"] = [binary.byteLength, await digest(binary)];
  const text = await ask(peer, "\u20ac".repeat(Math.floor(BIG / 3)));
  saw["big text"] = [text.length, await digest(text)];
  saw["fragments received"] = [await ask(peer, "please fragment")];
  saw.answered = await ask(peer, "please ping");
  const ended = end(peer);
  peer.close(4001, "bye \u20ac");
  const ours = await ended;
  saw.close = [ours.code, ours.reason];
  const second = await opened();
  const theirEnd = end(second);
  second.send("please close");
  const theirs = await theirEnd;
  saw.closed = [theirs.code, theirs.reason];
  saw.clean = [ours.wasClean, theirs.wasClean];
}

everything().then(() => { saw.done = "done"; }, (error) => { saw.done = String(error); });
