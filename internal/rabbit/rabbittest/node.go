package rabbittest

import (
	"bytes"
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/revq/revq/internal/rabbit/node"
)

// A Node is a private node with what only tests need: they look into it, change
// it, and make it hang.
type Node struct {
	*node.Node
	ctl, erlCall string // paths; erlCall is "" if the Erlang installation lacks it
}

// Of returns a node that is no node of this package with what tests need.
func Of(t testing.TB, n *node.Node) *Node {
	t.Helper()
	wrapped, err := wrap(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	return wrapped
}

func wrap(ctx context.Context, n *node.Node) (*Node, error) {
	ctl, err := n.Tool(ctx, "rabbitmqctl")
	if err != nil {
		return nil, err
	}
	erlCall, _ := n.Tool(ctx, "erl_call") // Eval does without
	return &Node{Node: n, ctl: ctl, erlCall: erlCall}, nil
}

// VhostURL returns the AMQP URL of the node with its user and password for a
// virtual host.
func (n *Node) VhostURL(vhost string) string {
	return strings.TrimSuffix(n.URL(), url.PathEscape("/")) + url.PathEscape(vhost)
}

// user returns the name of the node's only user.
func (n *Node) user() string {
	u, err := url.Parse(n.URL())
	if err != nil {
		panic(err) // node makes it
	}
	return u.User.Username()
}

// Ctl runs rabbitmqctl on the node and returns its standard output. It takes a
// second or more, because it starts Erlang. [Node.Eval] is much faster.
func (n *Node) Ctl(ctx context.Context, args ...string) (string, error) {
	return n.run(ctx, "", n.ctl, args...)
}

// Eval evaluates an Erlang expression in the server and returns the result as
// Erlang writes it. It takes some milliseconds where Erlang's erl_call is
// installed. Elsewhere it uses rabbitmqctl, takes as long as [Node.Ctl], and
// may write the same term in another way.
func (n *Node) Eval(ctx context.Context, erlang string) (string, error) {
	if n.erlCall == "" {
		out, err := n.Ctl(ctx, "eval", erlang+".")
		return strings.TrimSpace(out), err
	}
	// The expression is sent to standard input and the cookie is read from
	// HOME, so that other users see neither on a command line.
	out, err := n.run(ctx, erlang+".\n", n.erlCall, "-sname", node.Name, "-R", "-e")
	if err != nil {
		return "", err
	}
	return evaluated(erlang, out)
}

// evaluated returns the result in what erl_call has printed.
func evaluated(erlang, out string) (string, error) {
	result, ok := strings.CutPrefix(strings.TrimSpace(out), "{ok, ")
	if !ok {
		return "", fmt.Errorf("evaluate %q in RabbitMQ: %s", erlang, out)
	}
	return strings.TrimSuffix(result, "}"), nil
}

func (n *Node) run(ctx context.Context, input, path string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = n.Env()
	return output(cmd, input)
}

// output runs a command with an input, and returns its standard output.
func output(cmd *exec.Cmd, input string) (string, error) {
	cmd.Stdin = strings.NewReader(input)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		text := strings.TrimSpace(stderr.String() + stdout.String())
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, text)
	}
	return stdout.String(), nil
}

// Sync makes the server write the list of its quorum queues to disk, so that
// new ones survive Kill. Confirmed messages are on disk without it.
func (n *Node) Sync(ctx context.Context) error {
	_, err := n.Eval(ctx, `[ok = dets:sync(Table) || Table <- dets:all()]`)
	return err
}

// suspendTimeout is the time limit of Suspend, which takes milliseconds unless
// the machine is very busy.
const suspendTimeout = 10 * time.Second

// Suspend stops the server's process with SIGSTOP and waits until it is
// stopped. Its connections stay open and nothing answers.
func (n *Node) Suspend() error {
	if err := n.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	late := time.After(suspendTimeout)
	for {
		err := n.suspended()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-n.Done():
			return os.ErrProcessDone
		case <-late:
			return fmt.Errorf("suspend RabbitMQ: not within %v: %w", suspendTimeout, err)
		}
	}
}

// suspended returns an error if one of the server's threads still runs: the
// threads stop one after another.
func (n *Node) suspended() error {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", n.Pid()))
	for _, thread := range threads {
		stat, err := os.ReadFile(thread)
		if err == nil && !bytes.Contains(stat, []byte(") T ")) {
			return fmt.Errorf("%s: %s", thread, stat)
		}
	}
	return nil
}

// Resume lets a suspended server run again.
func (n *Node) Resume() error { return n.signal(syscall.SIGCONT) }

func (n *Node) signal(sig syscall.Signal) error {
	select {
	case <-n.Done():
		return os.ErrProcessDone
	default:
		return syscall.Kill(n.Pid(), sig)
	}
}
