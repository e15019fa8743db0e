package stack

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/daemon"
)

// A notify is the service manager's end of sd_notify.
type notify struct {
	path  string
	conn  *net.UnixConn
	ready chan struct{} // gets one value when the daemon is ready for the first time

	mu     sync.Mutex
	status string // the newest status
}

func listenNotify(path string) (*notify, error) {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for the daemon's readiness: %w", err)
	}
	n := &notify{path: path, conn: conn, ready: make(chan struct{}, 1)}
	go n.receive()
	return n, nil
}

// receive reads what the daemon sends until close. It must not wait for
// anything else, since the socket's queue is short.
func (n *notify) receive() {
	message := make([]byte, 4<<10)
	for ready := false; ; {
		length, err := n.conn.Read(message)
		if err != nil {
			return // closed
		}
		for line := range strings.SplitSeq(string(message[:length]), "\n") {
			if line == daemon.SdNotifyReady && !ready { // the others end reloads
				ready = true
				n.ready <- struct{}{}
			}
			if status, ok := strings.CutPrefix(line, "STATUS="); ok {
				n.mu.Lock()
				n.status = status
				n.mu.Unlock()
			}
		}
	}
}

// lastStatus returns the daemon's newest status.
func (n *notify) lastStatus() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return cmp.Or(n.status, "none")
}

func (n *notify) close() {
	n.conn.Close()
	os.Remove(n.path)
}
