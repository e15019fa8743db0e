// Command centrifuge is a websocket server on the centrifuge library, for
// comparison: see ../../README.md. Whoever connects is subscribed to one
// channel, to which the body of each POST is published.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"io"
	"log"
	"net/http"
	"time"

	"github.com/centrifugal/centrifuge"
)

const channel = "results"

func main() {
	addr := flag.String("listen", "127.0.0.1:8096", "`ADDRESS` to listen at")
	delay := flag.Duration("write-delay", 0, "gather messages for a listener for so long, as the library advises for many messages a second")
	flag.Parse()

	node, err := centrifuge.New(centrifuge.Config{
		ClientQueueMaxSize: 64 << 20, // 1 MiB by default, above which a listener is disconnected
	})
	if err != nil {
		log.Fatal(err)
	}
	node.OnConnecting(func(context.Context, centrifuge.ConnectEvent) (centrifuge.ConnectReply, error) {
		reply := centrifuge.ConnectReply{
			Credentials:   &centrifuge.Credentials{},
			Subscriptions: map[string]centrifuge.SubscribeOptions{channel: {}},
		}
		if *delay > 0 {
			reply.WriteDelay = *delay
			reply.WriteWithTimer = true // instead of a goroutine for each listener
			reply.MaxMessagesInFrame = -1
		}
		return reply, nil
	})
	node.OnConnect(func(*centrifuge.Client) {})
	if err := node.Run(); err != nil {
		log.Fatal(err)
	}

	http.Handle("GET /ws", centrifuge.NewWebsocketHandler(node, centrifuge.WebsocketConfig{UseWriteBufferPool: true}))
	http.HandleFunc("POST /pub", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		data, err := json.Marshal(string(body))
		if err == nil {
			_, err = node.Publish(channel, data)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	server := &http.Server{Addr: *addr, ReadHeaderTimeout: 10 * time.Second}
	log.Fatal(server.ListenAndServe())
}
