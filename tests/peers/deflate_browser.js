// In a page: echo over the URL in arguments[0]; window.saw tells what was negotiated, or what went wrong.
const TEXT = "compress me, please ".repeat(50);
const messages = [TEXT, TEXT, "short", "", TEXT.repeat(100), TEXT];
window.saw = null;
const socket = new WebSocket(arguments[0]);
let at = 0;
socket.onopen = () => socket.send(messages[0]);
socket.onmessage = (event) => {
  if (event.data !== messages[at]) window.saw = "another message came back";
  else if (++at < messages.length) socket.send(messages[at]);
  else socket.close(1000);
};
socket.onclose = (event) => {
  window.saw = window.saw || (event.wasClean ? "extensions " + socket.extensions : "closed with " + event.code);
};
