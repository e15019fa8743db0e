package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/wire"
)

// Characters that a terminal would obey, or show as another line.
const (
	evil       = "a\x1b]0;title\a\x1b[2J\nb\u009b2J\u202ec"
	evilQuoted = `"a\x1b]0;title\a\x1b[2J\nb\u009b2J\u202ec"`
	evilLine   = `a\x1b]0;title\a\x1b[2J\nb\u009b2J\u202ec`
	evilJSON   = `a\u001b]0;title\u0007\u001b[2J\nb\u009b2J\u202ec`
)

// hostile is a server whose answers and results are evil. It accepts every text
// but "refuse".
func hostile(t *testing.T) (api, socket string) {
	t.Helper()
	ids := make(chan string, 10)
	mux := http.NewServeMux()
	mux.HandleFunc("POST /queue_reverse_text", func(w http.ResponseWriter, r *http.Request) {
		var body struct{ Text, ID string }
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		if body.Text == "refuse" {
			w.Header().Set("Content-Type", wire.ProblemType)
			w.WriteHeader(http.StatusBadRequest)
			json.NewEncoder(w).Encode(map[string]any{"status": 400, "detail": evil})
			return
		}
		ids <- body.ID
		w.WriteHeader(http.StatusAccepted)
	})
	mux.HandleFunc("GET /listen_results", func(w http.ResponseWriter, r *http.Request) {
		conn, err := (&websocket.Upgrader{}).Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		send := func(message map[string]any) {
			var b bytes.Buffer
			encoder := json.NewEncoder(&b)
			encoder.SetEscapeHTML(false)
			encoder.Encode(message)
			conn.WriteMessage(websocket.TextMessage, bytes.TrimSpace(b.Bytes()))
		}
		send(map[string]any{"type": "greeting", "offset": 0, "text": "hello"})
		if r.URL.Query().Has("wait") {
			send(map[string]any{"type": "result", "offset": 1, "id": <-ids, "text": evil})
		} else {
			send(map[string]any{"type": "result", "offset": 1, "id": "x", "text": evil})
			send(map[string]any{"type": "gap", "offset": 2, "text": evil})
			send(map[string]any{"type": "result", "offset": 2, "id": "y", "text": "harmless \"b\""})
			conn.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseTryAgainLater, evil))
		}
		for err == nil {
			_, _, err = conn.ReadMessage()
		}
	})
	mux.HandleFunc("GET /refused/listen_results", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", wire.ProblemType)
		w.WriteHeader(http.StatusForbidden)
		json.NewEncoder(w).Encode(map[string]any{"status": 403, "detail": evil})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return server.URL, "ws" + strings.TrimPrefix(server.URL, "http")
}

// A terminal obeys nothing of what others have sent, and each result is one
// line there. A pipe gets texts as they are. Flags choose the other way.
func TestHostileTexts(t *testing.T) {
	t.Parallel()
	listen, sendWait := []string{"listen", "--count", "2"}, []string{"send", "--wait", "x"}
	for _, tt := range []struct {
		name     string
		args     []string
		terminal bool
		want     string
	}{
		{"listen to a terminal", listen, true, "hello\n" + evilQuoted + "\nharmless \"b\"\n"},
		{"listen to a terminal, raw", append(listen, "--raw"), true, "hello\n" + evil + "\nharmless \"b\"\n"},
		{"listen to a pipe", listen, false, "hello\n" + evil + "\nharmless \"b\"\n"},
		{"listen to a pipe, quoted", append(listen, "--quote"), false, "hello\n" + evilQuoted + "\nharmless \"b\"\n"},
		{"send to a terminal", sendWait, true, evilQuoted + "\n"},
		{"send to a terminal, raw", append(sendWait, "--raw"), true, evil + "\n"},
		{"send to a pipe", sendWait, false, evil + "\n"},
		{"send to a pipe, quoted", append(sendWait, "--quote"), false, evilQuoted + "\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := output(t, tt.terminal, tt.args...); got != tt.want {
				t.Errorf("printed %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("JSON", func(t *testing.T) {
		t.Parallel()
		args := append(listen, "--json")
		if got := output(t, true, args...); !strings.Contains(got, `"text":"`+evilJSON+`"`) {
			t.Errorf("a terminal gets %q, want %s", got, evilJSON)
		}
		if got := output(t, false, args...); !strings.Contains(got, "b\u009b2J\u202ec") {
			t.Errorf("a pipe gets %q, want it as it came", got)
		}
	})
}

// Errors and notes show what servers say in one line that no terminal obeys,
// whether or not they go to a terminal.
func TestHostileErrors(t *testing.T) {
	t.Parallel()
	api, socket := hostile(t)
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"problem":         {[]string{"send", "--url", api, "refuse"}, "revq: text 1 was not accepted: " + evilLine},
		"problem, listen": {[]string{"listen", "--url", socket + "/refused"}, "revq: the server refuses: " + evilLine},
		"gap":             {[]string{"listen", "--url", socket}, "revq: results are missing here: " + evilLine},
		"close reason":    {[]string{"listen", "--url", socket}, "revq: connection lost: websocket: close 1013: " + evilLine},
		"argument":        {[]string{"listen", evil}, `revq: unexpected argument "` + evilLine + `"`},
		"flag":            {[]string{"send", "--" + evil}, `revq: there is no flag --`},
		"URL":             {[]string{"send", "--url", evil, "x"}, `revq: unusable URL "` + evilLine + `"`},
		"file":            {[]string{"send", "--file", evil}, "revq: open a\\x1b]0;title"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, "revq", tt.args...)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			defer cmd.Wait()
			defer cmd.Process.Kill()
			found, told := false, ""
			for lines := bufio.NewScanner(stderr); !found && len(told) < 1000 && lines.Scan(); {
				told += lines.Text() + "\n"
				found = strings.HasPrefix(lines.Text(), tt.want)
				if strings.ContainsAny(lines.Text(), "\x1b\a\u009b\u202e") || !strings.HasPrefix(lines.Text(), "revq: ") {
					t.Errorf("told %q", lines.Text())
				}
			}
			if !found {
				t.Errorf("%s was not told, but %q", tt.want, told)
			}
		})
	}
}

// output runs revq with a hostile server of its own and returns what it prints
// to stdout, which is a terminal or a pipe.
func output(t *testing.T, toTerminal bool, args ...string) string {
	t.Helper()
	api, socket := hostile(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "revq", args...)
	cmd.Env = append(os.Environ(), "REVQ_API_URL="+api, "REVQ_SOCKET_URL="+socket)
	if args[0] == "send" {
		cmd.Env = append(cmd.Env, "REVQ_SOCKET_URL="+socket+"/listen_results?wait=1")
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var screen *os.File
	if toTerminal {
		var terminal *os.File
		screen, terminal = openTerminal(t)
		cmd.Stdout = terminal
		defer terminal.Close()
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		terminal.Close()
		io.Copy(&stdout, screen) // ends with an error when the program does
	} else if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("revq %q: %v: %s", args, err, &stderr)
	}
	return strings.ReplaceAll(stdout.String(), "\r\n", "\n")
}
