package node

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// tools are the programs that a node needs besides the server.
type tools struct {
	epmd    string
	erlCall string // "" if the Erlang installation lacks it
	ctl     string
}

// toolsScript prints the paths of epmd and erl_call, or an empty line. The
// server's scripts decide which Erlang is used: those of Nix extend PATH in
// rabbitmq-env.
const toolsScript = `
if [ -r "$1/rabbitmq-env" ]; then RABBITMQ_SCRIPTS_DIR=$1; . "$1/rabbitmq-env"; fi
command -v epmd || echo
command -v erl_call || echo
`

func findTools(ctx context.Context, server string, env []string) (tools, error) {
	path, err := filepath.EvalSymlinks(server)
	if err != nil {
		return tools{}, fmt.Errorf("server script: %w", err)
	}
	dir := filepath.Dir(path)
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", toolsScript, "sh", dir)
	cmd.Env = env
	out, err := cmd.Output()
	if err != nil {
		return tools{}, fmt.Errorf("find the programs that belong to %s: %w", server, err)
	}
	epmd, erlCall, _ := strings.Cut(string(out), "\n")
	t := tools{epmd: epmd, erlCall: strings.TrimSpace(erlCall), ctl: filepath.Join(dir, "rabbitmqctl")}
	if t.epmd == "" {
		return tools{}, fmt.Errorf("%s finds no epmd in PATH: install all of Erlang (Debian: erlang-base)", server)
	}
	if _, err := os.Stat(t.ctl); err != nil {
		t.ctl = filepath.Join(filepath.Dir(server), "rabbitmqctl")
	}
	return t, nil
}

// Ctl runs rabbitmqctl on the node and returns its standard output. It takes a
// second or more, because it starts Erlang. [Node.Eval] is much faster.
func (n *Node) Ctl(ctx context.Context, args ...string) (string, error) {
	return n.run(ctx, "", n.tools.ctl, args...)
}

// Eval evaluates an Erlang expression in the server and returns the result as
// Erlang writes it. It takes some milliseconds where Erlang's erl_call is
// installed. Elsewhere it uses rabbitmqctl, takes as long as [Node.Ctl], and
// may write the same term in another way.
func (n *Node) Eval(ctx context.Context, erlang string) (string, error) {
	if n.tools.erlCall == "" {
		out, err := n.Ctl(ctx, "eval", erlang+".")
		return strings.TrimSpace(out), err
	}
	// The expression is sent to standard input and the cookie is read from
	// HOME, so that other users see neither on a command line.
	out, err := n.run(ctx, erlang+".\n", n.tools.erlCall, "-sname", nodeName, "-R", "-e")
	if err != nil {
		return "", err
	}
	result, ok := strings.CutPrefix(strings.TrimSpace(out), "{ok, ")
	if !ok {
		return "", fmt.Errorf("evaluate %q in RabbitMQ: %s", erlang, out)
	}
	return strings.TrimSuffix(result, "}"), nil
}

func (n *Node) run(ctx context.Context, input, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Env = n.cfg.Dir, n.env()
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String() + stdout.String())
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(path), err, text)
	}
	return stdout.String(), nil
}
