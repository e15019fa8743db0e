//go:build linux

package daemon_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/revq/revq/internal/daemon"
	"github.com/revq/revq/internal/daemon/daemontest"
)

// asDaemon makes the test binary a daemon; its value is what that does.
const asDaemon = "REVQ_TEST_DAEMON"

func TestMain(m *testing.M) {
	if does := os.Getenv(asDaemon); does != "" {
		small(does)
	}
	os.Exit(m.Run())
}

// small is a small daemon. It does not return.
func small(does string) {
	server := &httpServer{}
	server.Handler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "served") })
	asked := make(chan struct{})
	p := daemon.Program{Name: "small", Usage: "be tested", Sites: &daemon.Sites{Default: []int{1}}}
	switch does {
	case "serve":
		p.Run = func(ctx context.Context, d *daemon.Daemon) error { return d.Run(ctx, d.Serve(server)) }
	case "wait for a file": // named by the variable READY
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			d.Ready = func() error {
				if _, err := os.Stat(os.Getenv("READY")); err != nil {
					return errors.New("there is no file\nand this is another line")
				}
				return nil
			}
			d.Patience = 0
			return d.Run(ctx, d.Serve(server))
		}
	case "fail before it is ready":
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			d.Ready, d.Patience = func() error { return errors.New("never ready") }, 0
			return d.Run(ctx, func(context.Context) error { return errors.New("some reason\nand another one") })
		}
	case "crash":
		p.Sites = nil
		p.Run = func(context.Context, *daemon.Daemon) error { panic("a bug") }
	case "be busy": // until it is killed, or what is in the background has gone on for too long
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			return d.Run(ctx, func(ctx context.Context) error {
				<-ctx.Done()
				d.Log.Info("busy")
				<-asked
				return nil
			})
		}
	case "stop in order":
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			work := func(ctx context.Context) error {
				<-ctx.Done()
				d.Log.Info("work ended")
				return nil
			}
			background := func(ctx context.Context) {
				<-ctx.Done()
				d.Log.Info("background ended")
			}
			return d.Run(ctx, work, background)
		}
	case "hang": // while there is the file named by the variable HANG
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			hung := 0
			d.Alive = []func() error{func() error { return nil }, func() error {
				if _, err := os.Stat(os.Getenv("HANG")); err != nil {
					return nil
				}
				hung++
				d.Log.Info(fmt.Sprintf("looked %d times while it hung", hung))
				return errors.New("the reader\nand another one")
			}}
			return d.Run(ctx, d.Serve(server))
		}
	case "count looks":
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			looks := 0
			d.Status = func() string {
				looks++
				d.Log.Info(fmt.Sprintf("looked %d times", looks))
				return fmt.Sprintf("%d looks", looks)
			}
			return d.Run(ctx, d.Serve(server))
		}
	case "panic":
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			return d.Run(ctx, func(context.Context) error { panic("a bug") })
		}
	case "reload": // fails if there is the file named by the variable WRONG
		p.Run = func(ctx context.Context, d *daemon.Daemon) error {
			d.Reload = func() error {
				if _, err := os.Stat(os.Getenv("WRONG")); err == nil {
					return errors.New("a setting is wrong")
				}
				return nil
			}
			return d.Run(ctx, d.Serve(server))
		}
	case "log":
		p.Run = func(_ context.Context, d *daemon.Daemon) error {
			d.Log.Debug("quiet")
			d.Log.Info("plain")
			d.Log.Warn("loud")
			return nil
		}
	default:
		panic(does)
	}
	daemon.Main(p)
}

// httpServer is an http.Server with the manners of a daemon.Server.
type httpServer struct{ http.Server }

func (s *httpServer) Serve(ln net.Listener) error {
	if err := s.Server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func startSmall(t *testing.T, does string, cfg daemontest.Config) *daemontest.Daemon {
	t.Helper()
	var err error
	if cfg.Path, err = os.Executable(); err != nil {
		t.Fatal(err)
	}
	cfg.Env = append(cfg.Env, asDaemon+"="+does, "LISTEN_FDNAMES="+strings.Join(slices.Repeat([]string{"small"}, len(cfg.Sockets)), ":"))
	return daemontest.Start(t, cfg)
}

// startAPI starts the real revq-api, whose broker is not there.
func startAPI(t *testing.T, cfg daemontest.Config) *daemontest.Daemon {
	t.Helper()
	cfg.Path = daemontest.Binary(t, "revq-api")
	if !slices.ContainsFunc(cfg.Env, func(v string) bool { return strings.HasPrefix(v, "REVQ_AMQP_URL=") }) {
		cfg.Env = append(cfg.Env, "REVQ_AMQP_URL="+noBroker)
	}
	return daemontest.Start(t, cfg)
}

func get(t *testing.T, url string) (status int, body string) {
	t.Helper()
	client := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}
