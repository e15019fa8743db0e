package node

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// toolScript prints the path of the program $3. The server's scripts are in $1,
// or in $2 under other names. They decide which Erlang is used: those of Nix
// extend PATH in rabbitmq-env.
const toolScript = `
for dir in "$1" "$2"; do
	[ ! -x "$dir/$3" ] || { echo "$dir/$3"; exit; }
done
if [ -r "$1/rabbitmq-env" ]; then RABBITMQ_SCRIPTS_DIR=$1; . "$1/rabbitmq-env"; fi
command -v "$3" || echo
`

// Tool returns the path of a program of the RabbitMQ or the Erlang that the node
// runs, such as rabbitmqctl. With [Node.Env], it works on this node.
func (n *Node) Tool(ctx context.Context, name string) (string, error) {
	path, err := filepath.EvalSymlinks(n.cfg.Server)
	if err != nil {
		return "", fmt.Errorf("server script: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", toolScript, "sh", filepath.Dir(path), filepath.Dir(n.cfg.Server), name)
	cmd.Env = n.Env()
	out, err := cmd.Output()
	tool := strings.TrimSpace(string(out))
	if err == nil && tool == "" {
		err = errors.New("there is none in PATH")
	}
	if err != nil {
		return "", fmt.Errorf("find %s, which belongs to %s: %w", name, n.cfg.Server, err)
	}
	return tool, nil
}
