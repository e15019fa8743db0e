package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/revq/revq/internal/daemon/daemontest"
	"github.com/revq/revq/internal/wire"
)

// TestProgress runs with a terminal as stderr. Only there does revq show the
// progress of a file. It clears the line before each message and at the end.
func TestProgress(t *testing.T) {
	t.Parallel()
	texts := strings.Repeat("abcdef\n", 300)
	for name, tt := range map[string]struct {
		args  []string
		input string
		want  string // regular expression for what the terminal shows meanwhile; empty for nothing
		left  string // and in the end
	}{
		"a file":    {[]string{"--file", "texts"}, "", `^\rsending +\d+%, \d+ texts, \d+/s\x1b\[K`, ""},
		"stdin":     {nil, texts, `^\rsending \d+ texts, \d+/s\x1b\[K`, ""},
		"quiet":     {[]string{"--quiet", "--file", "texts"}, "", "", ""},
		"arguments": {[]string{"abc", "def"}, "", "", ""},
		"with a line that is refused": {[]string{"--file", "bad"}, "", `.`,
			"revq: line 2 was not accepted: it is refused\nrevq: 1 of 2 texts were not accepted\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "texts"), texts)
			write(t, filepath.Join(dir, "bad"), "good\nbad\n")
			screen, terminal := openTerminal(t)
			cmd := exec.Command("revq", append([]string{"send", "--url", fakeAPI(t)}, tt.args...)...)
			cmd.Dir, cmd.Stdin, cmd.Stderr = dir, strings.NewReader(tt.input), terminal
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			terminal.Close()
			shown, err := io.ReadAll(screen) // ends when the program does
			if err != nil && !strings.Contains(err.Error(), "input/output error") {
				t.Fatal(err)
			}
			if err := cmd.Wait(); (err != nil) != (tt.left != "") {
				t.Errorf("revq send: %v", err)
			}
			if tt.want == "" && len(shown) > 0 || !regexp.MustCompile(tt.want).Match(shown) {
				t.Errorf("shown: %q, want %q", shown, tt.want)
			}
			if got := onScreen(string(shown)); got != tt.left {
				t.Errorf("left on the screen: %q, want %q", got, tt.left)
			}
		})
	}
}

// TestProgressInNarrowWindow makes the window narrower meanwhile: the line is
// never wrapped.
func TestProgressInNarrowWindow(t *testing.T) {
	t.Parallel()
	screen, terminal := openTerminal(t)
	input, feed := io.Pipe()
	cmd := exec.CommandContext(t.Context(), "revq", "send", "--url", fakeAPI(t))
	cmd.Stdin, cmd.Stderr = input, terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	go func() { // until the test closes the pipe
		for err := error(nil); err == nil; {
			_, err = io.WriteString(feed, "abcdef\n")
		}
	}()
	columns, narrow := 100, 15
	for lines := bufio.NewReader(screen); ; {
		line, err := lines.ReadString('K') // of what erases the rest of the line
		if err != nil {
			break // the program has ended
		}
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\r"), "\x1b[K")
		if len(line) > 40 {
			t.Errorf("wrote %q, %d columns, want at most 40", line, len(line))
		}
		switch {
		case columns > narrow && line != "":
			if err := unix.IoctlSetWinsize(int(screen.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(narrow)}); err != nil {
				t.Fatal(err)
			}
			columns = narrow
		case len(line) == narrow-1:
			feed.Close()
		}
	}
	feed.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("revq send: %v", err)
	}
	if columns > narrow {
		t.Error("no progress was shown")
	}
}

// TestStatusWatches looks on while a daemon begins to answer. Each look replaces
// the one before.
func TestStatusWatches(t *testing.T) {
	t.Parallel()
	socket := filepath.Join(t.TempDir(), "api.admin")
	screen, terminal := openTerminal(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "revq", "status", "--watch", "--admin", socket)
	cmd.Stdout = terminal
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	terminal.Close()
	lines := bufio.NewReader(screen)
	verdict := func() string {
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatalf("revq status ended: %v", err)
			}
			if _, verdict, ok := strings.Cut(line, "\x1b[H\x1b[2J"); ok {
				return verdict
			}
		}
	}
	if first := verdict(); !strings.Contains(first, socket) {
		t.Errorf("without a daemon it says %q", first)
	}
	daemontest.Start(t, daemontest.Config{
		Path: daemontest.Binary(t, "revq-api"),
		Args: []string{"--listen", "127.0.0.1:0", "--admin", socket, "--amqp-url", "amqp://127.0.0.1:1"},
	})
	for !strings.Contains(verdict(), "the broker") {
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("ended with %v, want status 1", err)
	}
}

// TestPurgeAsks runs at a terminal: nothing is purged without a yes.
func TestPurgeAsks(t *testing.T) {
	t.Parallel()
	for answer, want := range map[string]string{
		"\n":    "revq: nothing was purged\n",
		"no\n":  "revq: nothing was purged\n",
		"yes\n": "revq: connect to 127.0.0.1:1: dial tcp 127.0.0.1:1: connect: connection refused\n",
	} {
		screen, terminal := openTerminal(t)
		var stderr strings.Builder
		cmd := exec.Command("revq", "dead", "purge", "--amqp-url", "amqp://127.0.0.1:1", "a", "b")
		cmd.Stdin, cmd.Stderr = terminal, &stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(screen, answer); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("answered %q: revq dead purge succeeded", answer)
		}
		terminal.Close()
		if got := stderr.String(); got != "purge a, b for good? [y/N] "+want {
			t.Errorf("answered %q: %q, want %q", answer, got, want)
		}
	}
}

// fakeAPI returns the URL of an API that accepts all texts but "bad".
func fakeAPI(t *testing.T) string {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		lines := strings.Split(strings.TrimSpace(string(body)), "\n")
		if bad := strings.Contains(lines[0], `"bad"`); len(lines) == 1 && bad {
			w.Header().Set("Content-Type", wire.ProblemType)
		} else if len(lines) == 1 {
			w.WriteHeader(http.StatusAccepted)
		}
		for _, line := range lines {
			if strings.Contains(line, `"bad"`) {
				fmt.Fprintln(w, `{"status":400,"detail":"it is refused"}`)
			} else {
				fmt.Fprintln(w, `{"status":202}`)
			}
		}
	}))
	t.Cleanup(server.Close)
	return server.URL
}

// onScreen returns what a terminal shows at the end. A carriage return goes to
// the start of the line, and "erase in line" empties it.
func onScreen(output string) string {
	var screen, line strings.Builder
	output = strings.ReplaceAll(output, "\r\n", "\n")
	for i := 0; i < len(output); i++ {
		switch rest := output[i:]; {
		case rest[0] == '\n':
			screen.WriteString(strings.TrimRight(line.String(), " ") + "\n")
			line.Reset()
		case rest[0] == '\r':
			line.Reset() // what is left of it is erased
		case strings.HasPrefix(rest, "\x1b[K"):
			i += len("\x1b[K") - 1 // the carriage return has emptied it
		default:
			line.WriteByte(rest[0])
		}
	}
	return screen.String() + strings.TrimRight(line.String(), " ")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// openTerminal returns both ends of a new pseudo-terminal, 100 columns wide.
func openTerminal(t *testing.T) (screen, terminal *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no pseudo-terminals: ", err)
	}
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 100}); err != nil {
		t.Fatal(err)
	}
	if terminal, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return screen, terminal
}
