// The chat of flask_chat and django_chat. The page's #chat says where the WebSocket is: data-socket="/chat/socket".
"use strict";
{
  const chat = document.getElementById("chat");
  const state = document.getElementById("state");
  const lines = document.getElementById("lines");
  const text = document.getElementById("text");
  const url = new URL(chat.dataset.socket, location.href);
  url.protocol = url.protocol.replace("http", "ws");
  let socket;
  let pause = 500;

  function show(message) {
    const line = document.createElement("li");
    const name = document.createElement("b");
    name.textContent = message.from;
    line.append(name, " ", message.text);
    lines.append(line);
    lines.scrollTop = lines.scrollHeight;
  }

  function open() {
    socket = new WebSocket(url);
    socket.onopen = () => { pause = 500; };
    socket.onmessage = (event) => {
      const message = JSON.parse(event.data);
      state.textContent = `${message.here} here`;
      if (message.text) show(message);
    };
    socket.onclose = (event) => {
      if (event.code === 1008) {
        location.assign(chat.dataset.login);  // logged out, in this window or another one
        return;
      }
      state.textContent = "Disconnected. Trying again\u2026";
      setTimeout(open, pause * (0.5 + Math.random()));
      pause = Math.min(pause * 2, 30000);
    };
  }

  document.getElementById("say").addEventListener("submit", (event) => {
    event.preventDefault();
    if (text.value && socket.readyState === WebSocket.OPEN) {
      socket.send(text.value);
      text.value = "";
    }
  });
  open();
}
