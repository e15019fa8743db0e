package proc

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// asParent makes the test binary the parent that TestKilledParent kills; its
// value is the directory.
const asParent = "REVQ_PROC_TEST_PARENT"

// family is a child with a grandchild; both ignore all signals that can be
// ignored, keep standard output open and print one line when they run.
const family = `trap '' TERM INT HUP; (echo grandchild; exec sleep 1000) & echo child; wait`

func TestMain(m *testing.M) {
	if dir := os.Getenv(asParent); dir != "" {
		parent(dir)
	}
	os.Exit(m.Run())
}

func parent(dir string) {
	g, err := NewGroup(dir)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	for range 2 {
		cmd := exec.Command("/bin/sh", "-c", family)
		cmd.Stdout = os.Stdout
		if _, err := g.Start(cmd); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
	select {}
}

// TestKilledParent kills a parent with SIGKILL. Its children hold its standard
// output and the guard its standard error: their ends prove that all of them
// are gone.
func TestKilledParent(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "work")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), asParent+"="+dir)
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(stdout)
	for range 4 {
		line, err := out.ReadString('\n')
		if err != nil || (line != "child\n" && line != "grandchild\n") {
			t.Fatalf("parent says %q, %v", line, err)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
		t.Errorf("rest of the children's output = %q, %v", rest, err)
	}
	if rest, err := io.ReadAll(stderr); err != nil || len(rest) > 0 {
		t.Errorf("the guard's error output = %q, %v", rest, err)
	}
	cmd.Wait()
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after the parent's death: %v, want it removed", err)
	}
}

func TestStart(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		cmd     *exec.Cmd
		want    string // output, or part of the error
		wantErr bool
	}{
		{name: "arguments are not changed", cmd: exec.Command("printf", "%s|", "a b", "$HOME", "", "'"), want: "a b|$HOME||'|"},
		{name: "standard input is empty", cmd: exec.Command("cat"), want: ""},
		{name: "no such program", cmd: exec.Command("/no/such/program"), want: "/no/such/program", wantErr: true},
		{name: "not in PATH", cmd: exec.Command("revq-no-such-program"), want: "not found", wantErr: true},
		{name: "standard input taken", cmd: &exec.Cmd{Path: "/bin/cat", Args: []string{"cat"}, Stdin: strings.NewReader("")}, want: "standard input", wantErr: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := newGroup(t, "")
			var out bytes.Buffer
			tt.cmd.Stdout, tt.cmd.Stderr = &out, &out
			p, err := g.Start(tt.cmd)
			if tt.wantErr {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("Start() = %v, want an error with %q", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			<-p.Done()
			if p.Err() != nil || out.String() != tt.want {
				t.Errorf("output %q, %v, want %q", out.String(), p.Err(), tt.want)
			}
		})
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		script string
		grace  time.Duration
		want   error
		status string
	}{
		{"in an orderly way", `trap 'exit 3' TERM; echo ready; while :; do sleep 1000 & wait; done`, time.Minute, nil, "exit status 3"},
		{"by the signal", `echo ready; exec sleep 1000`, time.Minute, nil, "signal: terminated"},
		{"only by SIGKILL", `trap '' TERM; echo ready; exec sleep 1000`, time.Millisecond, ErrKilled, "signal: killed"},
		{"with a straggler", `trap 'exit 0' TERM; (trap '' TERM; echo ready; exec sleep 1000) & wait`, time.Minute, nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p, out := start(t, newGroup(t, ""), tt.script)
			if err := p.Stop(tt.grace); !errors.Is(err, tt.want) {
				t.Errorf("Stop() = %v, want %v", err, tt.want)
			}
			if err := p.Err(); (err == nil) != (tt.status == "") || err != nil && err.Error() != tt.status {
				t.Errorf("Err() = %v, want %q", err, tt.status)
			}
			if rest, err := io.ReadAll(out); err != nil || len(rest) > 0 {
				t.Errorf("rest of the output = %q, %v, want its end", rest, err)
			}
			if err := p.Signal(syscall.SIGTERM); !errors.Is(err, os.ErrProcessDone) {
				t.Errorf("Signal() after the end = %v", err)
			}
		})
	}
}

func TestClose(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "work")
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		t.Fatal(err)
	}
	g := newGroup(t, dir)
	p, out := start(t, g, family)
	out.ReadString('\n')
	if err := p.Err(); err != nil {
		t.Errorf("Err() of a running process = %v", err)
	}
	for range 2 {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.ReadAll(out); err != nil {
		t.Error(err)
	}
	select {
	case <-p.Done():
	default:
		t.Error("the process outlived its group")
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after Close: %v, want it removed", err)
	}
	if _, err := g.Start(exec.Command("true")); !errors.Is(err, ErrClosed) {
		t.Errorf("Start() after Close() = %v, want ErrClosed", err)
	}
}

func newGroup(t *testing.T, dir string) *Group {
	t.Helper()
	g, err := NewGroup(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// start runs a shell script and waits for its first line. The output ends when
// nothing that the script started is left.
func start(t *testing.T, g *Group, script string) (*Process, *bufio.Reader) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Stdout = w
	p, err := g.Start(cmd)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out := bufio.NewReader(r)
	if line, err := out.ReadString('\n'); err != nil {
		t.Fatalf("first line of the script = %q, %v", line, err)
	}
	return p, out
}
