package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/stack/stacktest"
	"github.com/revq/revq/internal/worker/workertest"
)

// TestMain makes programs of the test binary: revq, revq on a machine without
// RabbitMQ, and a worker that fails.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){
		"revq":           func() { os.Exit(run()) },
		"failing-worker": workertest.FailingWorker,
		"revq-without-rabbitmq": func() {
			os.Args[0] = "revq"
			findServer = func() (string, error) { return "", node.ErrNotFound }
			os.Exit(run())
		},
	})
}

type tests struct{ *testing.M }

func (t tests) Run() int { return stacktest.Main(t.M) }

// TestScript runs the stories in testdata/script. Beside testscript's own
// commands they have
//
//	stack             revq, running on a broker of the story's own; see REVQ_API_URL and the like
//	vhost             a broker of the story's own: REVQ_AMQP_URL, and VHOST for rabbitmqctl
//	rabbitmqctl ARGS  the real one, at that broker; it takes seconds
//	amqp-exchange NAME TYPE
//	                  declare an exchange
//	amqp-publish ID FILE
//	                  publish a task as any AMQP client can, FILE as it is; '' for no id
//	await-length QUEUE N
//	                  wait until the queue holds N messages
//	user NAME CONFIGURE WRITE READ
//	                  REVQ_AMQP_URL logs in as a user with these permissions
//	ports             three free ports: PORT, PORT2, PORT3
//	occupy PORT       something that listens there
//	await FILE RE     wait until the file matches
//	daemons           revq-api, revq-socket and revq-worker in PATH
//
// and the condition rabbitmq: whether there is one to be run.
func TestScript(t *testing.T) {
	t.Parallel()
	broker := sync.OnceValue(func() *rabbittest.Node { return rabbittest.StartNode(t) })
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Values[story{}] = env.T().(testing.TB)
			env.Setenv("GORACE", os.Getenv("GORACE"))
			return nil
		},
		Condition: func(name string) (bool, error) {
			if name != "rabbitmq" {
				return false, fmt.Errorf("there is no condition %q", name)
			}
			_, err := node.Find()
			return err == nil || os.Getenv("CI") != "", nil // in CI, have it fail
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"stack": func(ts *testscript.TestScript, neg bool, args []string) {
				url := rabbittest.NewVhost(of(ts), broker())
				s := stacktest.Start(of(ts), url)
				setBroker(ts, url)
				ts.Setenv("REVQ_API_URL", s.API)
				ts.Setenv("REVQ_SOCKET_URL", s.Socket)
			},
			"vhost": func(ts *testscript.TestScript, neg bool, args []string) {
				setBroker(ts, rabbittest.NewVhost(of(ts), broker()))
			},
			"rabbitmqctl": func(ts *testscript.TestScript, neg bool, args []string) {
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				defer cancel()
				out, err := broker().Ctl(ctx, args...)
				ts.Check(err)
				fmt.Fprint(ts.Stdout(), out)
			},
			"amqp-exchange": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Check(channel(ts).ExchangeDeclare(args[0], args[1], true, false, false, false, nil))
			},
			"amqp-publish": func(ts *testscript.TestScript, neg bool, args []string) {
				ch := channel(ts)
				ts.Check(ch.Confirm(false))
				confirm, err := ch.PublishWithDeferredConfirm(rabbit.Exchange, "tasks", true, false, amqp.Publishing{
					MessageId: args[0], Body: []byte(ts.ReadFile(args[1])), DeliveryMode: amqp.Persistent,
				})
				ts.Check(err)
				if !confirm.Wait() {
					ts.Fatalf("the broker took no task")
				}
			},
			"await-length": func(ts *testscript.TestScript, neg bool, args []string) {
				await(ts, args[0]+" to have "+args[1], func() bool {
					return strconv.Itoa(rabbittest.QueueLength(of(ts), broker(), ts.Getenv("REVQ_AMQP_URL"), args[0])) == args[1]
				})
			},
			"user": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Setenv("REVQ_AMQP_URL", rabbittest.User(of(ts), broker(), ts.Getenv("REVQ_AMQP_URL"), args[0], args[1], args[2], args[3]))
			},
			"daemons": func(ts *testscript.TestScript, neg bool, args []string) { stacktest.Programs(of(ts)) },
			"ports": func(ts *testscript.TestScript, neg bool, args []string) {
				port := stacktest.Ports(of(ts), 3)
				ts.Setenv("PORT", strconv.Itoa(port))
				ts.Setenv("PORT2", strconv.Itoa(port+1))
				ts.Setenv("PORT3", strconv.Itoa(port+2))
			},
			"occupy": func(ts *testscript.TestScript, neg bool, args []string) {
				ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", args[0]))
				ts.Check(err)
				ts.Defer(func() { ln.Close() })
			},
			"await": awaitFile,
		},
	})
}

// story is the key of a story's testing.TB.
type story struct{}

func of(ts *testscript.TestScript) testing.TB { return ts.Value(story{}).(testing.TB) }

func setBroker(ts *testscript.TestScript, url string) {
	ts.Setenv("REVQ_AMQP_URL", url)
	ts.Setenv("VHOST", url[strings.LastIndexByte(url, '/')+1:])
}

// channel returns a channel to the story's broker, for as long as the story
// goes on.
func channel(ts *testscript.TestScript) *amqp.Channel {
	conn, err := amqp.Dial(ts.Getenv("REVQ_AMQP_URL"))
	ts.Check(err)
	ts.Defer(func() { conn.Close() })
	ch, err := conn.Channel()
	ts.Check(err)
	return ch
}

// awaitFile waits until what a program in the background writes to a file
// matches.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	path, want := ts.MkAbs(args[0]), regexp.MustCompile(args[1])
	await(ts, fmt.Sprintf("%s to match %q", args[0], want), func() bool {
		content, err := os.ReadFile(path)
		return err == nil && want.Match(content)
	})
}

// await polls for what gives no signal.
func await(ts *testscript.TestScript, what string, ok func() bool) {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(time.Minute)
	for !ok() {
		select {
		case <-ticker.C:
		case <-timeout:
			ts.Fatalf("waited too long for %s", what)
		}
	}
}
