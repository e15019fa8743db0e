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

// tools are the programs beside the server that a node needs.
type tools struct {
	epmd    string
	erlCall string // "" if the Erlang installation lacks it
	ctl     string
}

// toolsScript prints where epmd and erl_call are. Which Erlang is used is up to the server's scripts:
// those of Nix extend PATH in rabbitmq-env.
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
		return tools{}, fmt.Errorf("look for the programs that belong to %s: %w", server, err)
	}
	epmd, erlCall, _ := strings.Cut(string(out), "\n")
	t := tools{epmd: epmd, erlCall: strings.TrimSpace(erlCall), ctl: filepath.Join(dir, "rabbitmqctl")}
	if t.epmd == "" {
		return tools{}, fmt.Errorf("%s finds no epmd in PATH: install Erlang completely (Debian: erlang-base)", server)
	}
	if _, err := os.Stat(t.ctl); err != nil {
		t.ctl = filepath.Join(filepath.Dir(server), "rabbitmqctl")
	}
	return t, nil
}

// Ctl runs rabbitmqctl against the node and returns its standard output. It takes a second or more:
// Erlang starts for it. [Node.Eval] is much faster.
func (n *Node) Ctl(ctx context.Context, args ...string) (string, error) {
	return n.run(ctx, "", n.tools.ctl, args...)
}

// Eval evaluates an Erlang expression in the server and returns the result as Erlang writes it. It takes
// some milliseconds where Erlang's erl_call is installed, and as long as [Node.Ctl] elsewhere; the two
// may write the same term in different ways.
func (n *Node) Eval(ctx context.Context, erlang string) (string, error) {
	if n.tools.erlCall == "" {
		out, err := n.Ctl(ctx, "eval", erlang+".")
		return strings.TrimSpace(out), err
	}
	// The expression goes by standard input, and the cookie is read from HOME: neither is on a command
	// line for others to see.
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
