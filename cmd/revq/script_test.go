package main

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/revq/revq/internal/rabbit/node"
	"github.com/revq/revq/internal/rabbit/rabbittest"
	"github.com/revq/revq/internal/stack/stacktest"
)

// TestMain makes two programs of the test binary: revq, and revq on a machine without RabbitMQ.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){
		"revq": func() { os.Exit(run()) },
		"revq-without-rabbitmq": func() {
			os.Args[0] = "revq"
			findServer = func() (string, error) { return "", node.ErrNotFound }
			os.Exit(run())
		},
	})
}

type tests struct{ *testing.M }

func (t tests) Run() int { return stacktest.Main(t.M) }

// TestScript runs the stories in testdata/script. Beside testscript's own commands they have
//
//	stack             revq, running on a broker of the story's own; see REVQ_API_URL and the like
//	vhost             a broker of the story's own: REVQ_AMQP_URL
//	ports             three free ports: PORT, PORT2, PORT3
//	occupy PORT       something that listens there
//	await FILE RE     wait until the file matches
//	daemons           revq-api, revq-socket and revq-worker in PATH
//
// and the condition rabbitmq: whether there is one to be run.
func TestScript(t *testing.T) {
	t.Parallel()
	broker := sync.OnceValue(func() *node.Node { return rabbittest.StartNode(t) })
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
				ts.Setenv("REVQ_AMQP_URL", url)
				ts.Setenv("REVQ_API_URL", s.API)
				ts.Setenv("REVQ_SOCKET_URL", s.Socket)
			},
			"vhost": func(ts *testscript.TestScript, neg bool, args []string) {
				ts.Setenv("REVQ_AMQP_URL", rabbittest.NewVhost(of(ts), broker()))
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

// awaitFile waits until what a program in the background writes to a file matches.
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	path, want := ts.MkAbs(args[0]), regexp.MustCompile(args[1])
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	timeout := time.After(time.Minute)
	for {
		content, err := os.ReadFile(path)
		if err == nil && want.Match(content) {
			return
		}
		select {
		case <-ticker.C:
		case <-timeout:
			ts.Fatalf("%s does not match %q: %s (%v)", args[0], want, content, err)
		}
	}
}
