//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/wire"
)

// residentBytes returns how much memory a process has at present.
func residentBytes(t *testing.T, d *daemontest.Daemon) int64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.Pid()))
	if err != nil {
		t.Fatal(err)
	}
	var kib int64
	_, after, _ := bytes.Cut(status, []byte("VmRSS:"))
	if _, err := fmt.Sscan(string(after), &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}

// Uploads that stop short of their end neither take more memory than the bound
// says, nor keep it, nor hold up clients that behave.
func TestStalledUploads(t *testing.T) {
	s := start(t)
	const (
		stalled = 900
		size    = 1 << 20
		bound   = 64 << 20 // --max-body-bytes
		missing = 100
	)
	line := []byte("{\"text\":\"" + strings.Repeat("x", 1000) + "\"}\n")
	whole := bytes.Repeat(line, size/len(line))
	before := residentBytes(t, s.api)

	var conns []net.Conn
	hangUp := func() {
		for _, c := range conns {
			c.Close()
		}
		conns = nil
	}
	defer hangUp()
	for i := range stalled {
		c, err := net.Dial("tcp", s.apiSites[i%2])
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	var sending sync.WaitGroup
	for i, c := range conns {
		sending.Go(func() {
			c.SetDeadline(time.Now().Add(await.Patience))
			length := fmt.Sprintf("Content-Length: %d", len(whole))
			rest := whole[:len(whole)-missing]
			if i%2 == 1 {
				length = "Transfer-Encoding: chunked"
				rest = append(fmt.Appendf(nil, "%x\r\n", len(whole)), rest...)
			}
			fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n%s\r\n\r\n", wire.QueuePath, length)
			_, _ = c.Write(rest) // fails for those that are refused
		})
	}
	var highest int64
	for i := range 50 {
		if a := post(t, s.apiSites[i%2], "text/plain", "abcdef"); a.status != http.StatusAccepted {
			t.Errorf("a text was answered %d %s", a.status, a.body)
		}
		highest = max(highest, residentBytes(t, s.api))
	}
	sending.Wait()
	// A whole batch has room as soon as those that bring nothing give way.
	took := await.True(t, "a batch is accepted", func() bool {
		a := post(t, s.apiSites[0], "application/x-ndjson", string(whole))
		highest = max(highest, residentBytes(t, s.api))
		if a.status != http.StatusAccepted && a.status != http.StatusServiceUnavailable {
			t.Errorf("a batch was answered %d %.200s", a.status, a.body)
		}
		return a.status == http.StatusAccepted
	})
	t.Logf("from %d to %d MB; a batch was accepted after %v", before/1e6, highest/1e6, took)
	if took > 20*time.Second {
		t.Errorf("a batch was accepted after %v", took)
	}
	if daemontest.Race() {
		return
	}
	// A quarter of the bound may be of bodies that have just been ended, each
	// connection takes some 30 KiB, and Go's heap may be twice what is in use.
	if limit := before + 2*(bound+bound/4+stalled*32<<10); highest > limit {
		t.Errorf("%d uploads take %d MB, want %d at most", stalled, highest/1e6, limit/1e6)
	}
	hangUp()
	await.True(t, "memory is given back", func() bool { return residentBytes(t, s.api) < before+bound })
	t.Logf("%d MB afterwards", residentBytes(t, s.api)/1e6)
}
