// WebSocket over kcp-go, by the packages that others wrote: github.com/xtaci/kcp-go and golang.org/x/net/websocket.
//
//	kcp_go client HOST:PORT MODE [SIZE...]   sends text and binary messages of these sizes and checks that each comes back
//	kcp_go server MODE                       prints where it listens, and sends back what it gets
//
// MODE is stream or message.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/xtaci/kcp-go"
	"golang.org/x/net/websocket"
)

func main() {
	var err error
	switch {
	case len(os.Args) >= 4 && os.Args[1] == "client":
		err = client(os.Args[2], os.Args[3] == "stream", os.Args[4:])
	case len(os.Args) == 3 && os.Args[1] == "server":
		err = server(os.Args[2] == "stream")
	default:
		err = fmt.Errorf("client HOST:PORT MODE [SIZE...] or server MODE")
	}
	if err != nil {
		fmt.Println("failed:", err)
		os.Exit(1)
	}
}

func tune(session *kcp.UDPSession, stream bool) {
	session.SetStreamMode(stream)
	session.SetNoDelay(1, 10, 2, 1)
	session.SetMtu(1200)
}

func client(address string, stream bool, sizes []string) error {
	session, err := kcp.DialWithOptions(address, nil, 0, 0)
	if err != nil {
		return err
	}
	defer session.Close()
	tune(session, stream)
	session.SetDeadline(time.Now().Add(20 * time.Second))
	config, err := websocket.NewConfig("ws://"+address+"/", "http://localhost/")
	if err != nil {
		return err
	}
	conn, err := websocket.NewClient(config, session)
	if err != nil {
		return err
	}
	for _, text := range sizes {
		size, err := strconv.Atoi(text)
		if err != nil {
			return err
		}
		sent := strings.Repeat("g", size)
		var received string
		if err := websocket.Message.Send(conn, sent); err != nil {
			return err
		}
		if err := websocket.Message.Receive(conn, &received); err != nil || received != sent {
			return fmt.Errorf("text of %d bytes: %v", size, err)
		}
		var back []byte
		if err := websocket.Message.Send(conn, []byte(sent)); err != nil {
			return err
		}
		if err := websocket.Message.Receive(conn, &back); err != nil || !bytes.Equal(back, []byte(sent)) {
			return fmt.Errorf("binary of %d bytes: %v", size, err)
		}
	}
	if err := conn.Close(); err != nil {
		return err
	}
	fmt.Println("ok")
	return nil
}

// A listener of sessions that are tuned before anybody uses them.
type tuned struct {
	*kcp.Listener
	stream bool
}

func (listener tuned) Accept() (net.Conn, error) {
	session, err := listener.AcceptKCP()
	if err == nil {
		tune(session, listener.stream)
	}
	return session, err
}

func server(stream bool) error {
	listener, err := kcp.ListenWithOptions("127.0.0.1:0", nil, 0, 0)
	if err != nil {
		return err
	}
	fmt.Printf("kcp://%s\n", listener.Addr())
	echo := func(conn *websocket.Conn) {
		for {
			var message []byte
			if err := websocket.Message.Receive(conn, &message); err != nil {
				if err != io.EOF {
					fmt.Println("ended:", err)
				}
				return
			}
			if err := websocket.Message.Send(conn, message); err != nil {
				return
			}
		}
	}
	// Without Handshake: a client that is no browser sends no Origin.
	return http.Serve(tuned{listener, stream}, websocket.Server{Handler: echo})
}
