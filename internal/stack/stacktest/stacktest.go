// Package stacktest gives tests revq's programs, and all of revq running. A
// package that uses it calls Main in its TestMain.
package stacktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/stack"
	"github.com/revq/revq/internal/wire"
)

// Pause is what the workers of a stack pause for each character, so that longer
// texts take longer.
const Pause = "1ms"

// built is where the programs are. It is in PATH while Main runs.
var built struct {
	dir  string
	once sync.Once
	err  error
}

// Main runs m, *testing.M or what wraps it, and returns its exit status.
// Settings in the environment are unset: what a developer has there is not what
// the tests expect.
func Main(m interface{ Run() int }) int {
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); strings.HasPrefix(name, "REVQ_") {
			os.Unsetenv(name)
		}
	}
	os.Setenv("REVQ_PAUSE", Pause)
	os.Setenv("GORACE", "atexit_sleep_ms=0") // programs with the race detector would end a second late
	dir, err := os.MkdirTemp("", "revq-programs-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "make a directory for revq's programs:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	built.dir = dir
	os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return m.Run()
}

// Programs builds all of revq's programs once, with the race detector if the
// test has it, and returns their directory, which is in PATH.
func Programs(t testing.TB) string {
	t.Helper()
	built.once.Do(func() { built.err = daemontest.Build(built.dir) })
	if built.err != nil {
		t.Fatal(built.err)
	}
	return built.dir
}

// Ports returns the first of n ports of 127.0.0.1 in a row that nothing listens
// on.
func Ports(t testing.TB, n int) int {
	t.Helper()
	first, err := stack.FreePorts(n)
	if err != nil {
		t.Fatal(err)
	}
	return first
}

// A Stack is revq, running within the test.
type Stack struct {
	API    string // URL of API site 1
	API2   string // URL of API site 2
	Socket string // URL to listen at
	Output *Buffer

	cancel context.CancelFunc
	done   chan struct{}
	err    error // of stack.Run; once done is closed
}

// Start runs revq on free ports until the test ends, with a broker of its own
// unless urls are given. It returns when everything is ready. The output is
// logged when the test fails.
func Start(t testing.TB, urls ...string) *Stack {
	t.Helper()
	Programs(t)
	for range 4 { // another test may have taken the ports meanwhile
		s, err := start(t, urls)
		if err == nil {
			return s
		}
		if !errors.Is(err, stack.ErrInUse) {
			t.Fatal(err)
		}
	}
	t.Fatal("the ports that were free were taken again and again")
	return nil
}

func start(t testing.TB, urls []string) (*Stack, error) {
	port := Ports(t, 3)
	s := &Stack{
		API:    fmt.Sprintf("http://127.0.0.1:%d", port),
		API2:   fmt.Sprintf("http://127.0.0.1:%d", port+1),
		Socket: fmt.Sprintf("ws://127.0.0.1:%d%s", port+2, wire.ListenPath),
		Output: NewBuffer(),
		done:   make(chan struct{}),
	}
	cfg := stack.DefaultConfig(s.Output)
	cfg.URLs, cfg.FirstPort = urls, port
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	up := make(chan struct{})
	go func() {
		s.err = stack.Run(ctx, cfg, func() { close(up) })
		close(s.done)
	}()
	select {
	case <-up:
	case <-s.done:
		cancel()
		return nil, fmt.Errorf("%w; its output:\n%s", s.err, s.Output)
	}
	t.Cleanup(func() {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
		if strings.Contains(s.Output.String(), "DATA RACE") {
			t.Error("a daemon has a data race")
		}
		if t.Failed() {
			t.Logf("output of the stack:\n%s", s.Output)
		}
	})
	return s, nil
}

// Stop stops everything and returns the error of stack.Run. Further calls
// return the same.
func (s *Stack) Stop() error {
	s.cancel()
	<-s.done
	return s.err
}

// A Buffer keeps what is written to it, for tests to wait for.
type Buffer struct {
	mu      sync.Mutex
	content []byte
	grown   chan struct{} // closed, and replaced, at each write
}

// NewBuffer returns an empty Buffer.
func NewBuffer() *Buffer { return &Buffer{grown: make(chan struct{})} }

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.content = append(b.content, p...)
	close(b.grown)
	b.grown = make(chan struct{})
	return len(p), nil
}

func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.content)
}

// await bounds the waits below: far more than anything takes.
const await = time.Minute

// Await waits until the buffer holds text n times.
func (b *Buffer) Await(t testing.TB, text string, n int) {
	t.Helper()
	timeout := time.After(await)
	for {
		b.mu.Lock()
		found, grown := bytes.Count(b.content, []byte(text)), b.grown
		b.mu.Unlock()
		if found >= n {
			return
		}
		select {
		case <-grown:
		case <-timeout:
			t.Fatalf("%q did not come %d times within %v:\n%s", text, n, await, b)
		}
	}
}
