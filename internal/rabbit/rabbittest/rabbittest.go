// Package rabbittest runs a real RabbitMQ for tests: one node for all tests of
// a package, which the first test that needs it starts, and a virtual host for
// each test. A package that uses it declares
//
//	func TestMain(m *testing.M) { rabbittest.Main(m) }
//
// On a machine without RabbitMQ such tests are skipped; if the variable CI is
// set, they fail. The nodes end with the test run, however it ends.
package rabbittest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/proc"
	"github.com/revq/revq/internal/rabbit/node"
)

const (
	startTimeout = 90 * time.Second // measured: 3 to 5 s; several packages may start theirs at once
	evalTimeout  = 30 * time.Second
)

// Main runs the tests, stops what they started, and exits.
func Main(m *testing.M) {
	code := m.Run()
	if err := shared.close(); err != nil {
		fmt.Fprintln(os.Stderr, "stop RabbitMQ:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// shared is the node that all tests of the package share.
var shared lazyNode

type lazyNode struct {
	once  sync.Once
	group *proc.Group
	node  *Node
	err   error
}

func (l *lazyNode) get() (*Node, error) {
	l.once.Do(func() { l.group, l.node, l.err = start() })
	return l.node, l.err
}

func (l *lazyNode) close() error {
	l.once.Do(func() { l.err = errors.New("the test run has ended") })
	if l.group == nil {
		return nil
	}
	return l.group.Close() // kills the node, whose data nobody needs
}

// start starts a node in a temporary directory, which is removed when the group
// is closed.
func start(extraConfig ...string) (*proc.Group, *Node, error) {
	server, err := node.Find()
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp("", "revq-rabbit-")
	if err != nil {
		return nil, nil, err
	}
	group, err := proc.NewGroup(dir)
	if err != nil {
		return nil, nil, errors.Join(err, os.RemoveAll(dir))
	}
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	n, err := node.Start(ctx, group, node.Config{Server: server, Dir: filepath.Join(dir, "node"), Extra: extraConfig})
	if err != nil {
		return nil, nil, errors.Join(err, group.Close())
	}
	wrapped, err := wrap(ctx, n)
	if err != nil {
		return nil, nil, errors.Join(err, group.Close())
	}
	return group, wrapped, nil
}

// Shared returns the node that all tests of the package share. A test that
// stops, slows down or configures its node uses [StartNode] instead.
func Shared(t testing.TB) *Node {
	t.Helper()
	n, err := shared.get()
	check(t, err)
	return n
}

// StartNode starts a node for this test only, with further lines of
// rabbitmq.conf. It ends with the test.
func StartNode(t testing.TB, extraConfig ...string) *Node {
	t.Helper()
	group, n, err := start(extraConfig...)
	check(t, err)
	t.Cleanup(func() {
		if err := group.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// check skips or fails the test if err is not nil.
func check(t testing.TB, err error) {
	t.Helper()
	switch {
	case err == nil:
	case errors.Is(err, node.ErrNotFound) && os.Getenv("CI") == "":
		t.Skip(err)
	default:
		t.Fatal(err)
	}
}

// Restart restarts a test's own node and waits until it accepts connections.
func Restart(t testing.TB, n *Node) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if err := n.Restart(ctx); err != nil {
		t.Fatal(err)
	}
}

// URL returns the AMQP URL of a new virtual host on the shared node. The URL's
// user may do anything there. When the test ends, the virtual host is deleted
// and its connections are closed.
func URL(t testing.TB) string {
	t.Helper()
	return NewVhost(t, Shared(t))
}

var vhosts atomic.Int64

// NewVhost is URL for a given node. On a test's own node, the virtual host ends
// with the node.
func NewVhost(t testing.TB, n *Node) string {
	t.Helper()
	vhost := fmt.Sprintf("test-%d", vhosts.Add(1))
	eval(t, n, `ok = rabbit_vhost:add(%[1]s, %[2]s),
		ok = rabbit_auth_backend_internal:set_permissions(%[2]s, %[1]s, <<".*">>, <<".*">>, <<".*">>, %[2]s)`,
		binary(vhost), binary(n.user()))
	if n != shared.node { // ends with the test
		return n.VhostURL(vhost)
	}
	t.Cleanup(func() {
		Settle(t, n)
		eval(t, n, `rabbit_vhost:delete(%s, %s)`, binary(vhost), binary(n.user()))
		if eval(t, n, `whereis(rabbit_fifo_dlx_sup)`) == "undefined" {
			t.Errorf("the broker can dead-letter no more, and tests that follow will fail with INTERNAL_ERROR: see rabbittest.Settle")
		}
	})
	return n.VhostURL(vhost)
}

// Settle waits until the node's processes that dead-letter at least once, one
// for each such queue, have started. A test calls it before it deletes a queue
// that may be new.
//
// If a queue is deleted while its process starts, that process fails, and so
// does the one that replaces it. RabbitMQ allows one failure in 5 s (module
// rabbit_fifo_dlx_sup, issue 16652 of rabbitmq-server). After the second, the
// node dead-letters nothing, and answers INTERNAL_ERROR to whoever declares or
// uses such a queue, until it is restarted.
func Settle(t testing.TB, n *Node) {
	t.Helper()
	// A channel goes on declaring a queue when its client has gone, and answers
	// when it has. A process that starts answers when it has started. One that
	// has ended meanwhile does not answer at all.
	eval(t, n, `[catch rabbit_channel:info(Pid, [pid]) || Pid <- rabbit_channel:list_local()],
		[catch sys:get_state(Pid, 20000) || Sup <- [whereis(rabbit_fifo_dlx_sup)], is_pid(Sup),
		{_, Pid, _, _} <- supervisor:which_children(Sup)], ok`)
}

// EndDeadLettering ends what supervises the node's at-least-once
// dead-lettering, as RabbitMQ does after two failures: see [Settle].
func EndDeadLettering(t testing.TB, n *Node) {
	t.Helper()
	eval(t, n, `supervisor:terminate_child(rabbit_sup, rabbit_fifo_dlx_sup)`)
}

// User creates a user with the given permissions in the virtual host of url,
// and returns the URL with which that user logs in. role is the beginning of
// the user's name. The user is deleted when the test ends.
func User(t testing.TB, n *Node, url, role, configure, write, read string) string {
	t.Helper()
	uri, err := amqp.ParseURI(url)
	if err != nil {
		t.Fatal(err)
	}
	name := role + "-" + uri.Vhost
	eval(t, n, `ok = rabbit_auth_backend_internal:add_user(%[1]s, <<"secret">>, <<"test">>),
		ok = rabbit_auth_backend_internal:set_permissions(%[1]s, %[2]s, <<%[3]q>>, <<%[4]q>>, <<%[5]q>>, <<"test">>)`,
		binary(name), binary(uri.Vhost), configure, write, read)
	t.Cleanup(func() { eval(t, n, `rabbit_auth_backend_internal:delete_user(%s, <<"test">>)`, binary(name)) })
	uri.Username, uri.Password = name, "secret"
	return uri.String()
}

// CloseConnections makes the broker close client connections in the virtual
// host of url, as an operator does (320, CONNECTION_FORCED), and returns how
// many it closed: those with the given name (the client's property
// connection_name), or all if name is "".
//
// The expression catches exits because a connection may end by itself before it
// answers.
func CloseConnections(t testing.TB, n *Node, url, name string) int {
	t.Helper()
	return number(t, eval(t, n, `Asked = fun(Pid) ->
			try rabbit_networking:connection_info(Pid, [vhost, client_properties]) of
				[{vhost, Vhost}, {client_properties, Props}] -> Vhost =:= %[1]s andalso
					(%[2]s =:= <<>> orelse is_list(Props) andalso lists:member({<<"connection_name">>, longstr, %[2]s}, Props))
			catch exit:_ -> false
			end
		end,
		Pids = lists:filter(Asked, rabbit_networking:local_connections()),
		[try rabbit_networking:close_connection(Pid, "closed by a test") catch exit:_ -> ended end || Pid <- Pids],
		length(Pids)`, vhostOf(url), binary(name)))
}

// SetAlarm raises the memory alarm until [ClearAlarm]. The broker then blocks
// every connection that publishes, so n should be the test's own node
// ([StartNode]).
func SetAlarm(t testing.TB, n *Node) {
	t.Helper()
	alarm(t, n, `set_alarm({{resource_limit, memory, node()}, []})`, true)
}

// ClearAlarm ends the memory alarm.
func ClearAlarm(t testing.TB, n *Node) {
	t.Helper()
	alarm(t, n, `clear_alarm({resource_limit, memory, node()})`, false)
}

// alarm calls a function of the broker and checks that the alarm is set or
// cleared. The broker answers that check only after it has told the
// connections.
func alarm(t testing.TB, n *Node, call string, set bool) {
	t.Helper()
	eval(t, n, `rabbit_alarm:%s, %t = lists:keymember({resource_limit, memory, node()}, 1, rabbit_alarm:get_alarms())`, call, set)
}

// QueueLength returns the current number of messages, ready and unacknowledged,
// of a classic or quorum queue in the virtual host of url. It asks the leader
// of a quorum queue, because the figures that the broker shows for those are
// seconds old.
func QueueLength(t testing.TB, n Evaluator, url, queue string) int {
	t.Helper()
	return number(t, eval(t, n, `{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(%s, queue, %s)),
		case amqqueue:get_type(Q) of
			rabbit_quorum_queue ->
				{ok, {_, N}, _} = try ra:leader_query(amqqueue:get_pid(Q), fun rabbit_fifo:query_messages_total/1)
					catch error:function_clause ->
						ra:leader_query(amqqueue:get_pid(Q), {rabbit_fifo, query_messages_total, []})
					end, N;
			_ ->
				[{messages, N}] = rabbit_amqqueue:info(Q, [messages]), N
		end`, vhostOf(url), binary(queue)))
}

// An Evaluator is a node that evaluates Erlang expressions.
type Evaluator interface {
	Eval(ctx context.Context, erlang string) (string, error)
}

// eval evaluates an Erlang expression in the node. It fails the test if that
// fails.
func eval(t testing.TB, n Evaluator, format string, args ...any) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), evalTimeout)
	defer cancel()
	out, err := n.Eval(ctx, fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func number(t testing.TB, s string) int {
	t.Helper()
	i, err := strconv.Atoi(s)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// binary returns s, which must be printable ASCII, as an Erlang binary.
func binary(s string) string { return fmt.Sprintf("<<%q>>", s) }

// vhostOf returns the virtual host of a URL from NewVhost, as an Erlang binary.
func vhostOf(url string) string { return binary(url[strings.LastIndexByte(url, '/')+1:]) }
