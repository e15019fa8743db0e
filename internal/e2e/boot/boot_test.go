//go:build linux

package boot

import (
	"context"
	"testing"
)

func TestHost(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	h := Start(t, "/")
	if state := h.Run(t, "systemctl", "is-system-running"); state != "running" {
		t.Errorf("the host is %s, want running", state)
	}
	h.Write(t, "/srv/deep/file", "content")
	if content := h.Run(t, "cat", "/srv/deep/file"); content != "content" {
		t.Errorf("file holds %q, want content", content)
	}
	conn, err := h.Dial(context.Background(), "tcp", "127.0.0.1:5672")
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	t.Log(h.Run(t, "ip", "addr", "show", "lo"))
}
