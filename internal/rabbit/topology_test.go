package rabbit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/await"
	"github.com/revq/revq/internal/command"

	"github.com/revq/revq/internal/rabbit/rabbittest"
)

// exists fails unless all objects are there.
func (r *rig) exists() {
	r.t.Helper()
	for _, o := range r.cfg.Topology.objects() {
		if err := o.look(r.channel()); err != nil {
			r.t.Errorf("%s: %v", o.name, err)
		}
	}
}

func TestDaemonsDeclareWhatIsMissing(t *testing.T) {
	t.Parallel()
	publish := func(r *rig) {
		p := r.publisher()
		// The first one may come back as unroutable, and has the queue
		// declared.
		eventually(r.t, "published", func() error { return r.answered(p.PublishTask(newTask(1))) })
	}
	consume := func(r *rig) {
		c := NewConsumer(r.cfg, 1, r.log)
		r.consume(c)
		r.ready(c.Ready)
	}
	read := func(r *rig) {
		reader := NewReader(r.cfg, everything, r.log)
		r.follow(reader)
		r.ready(reader.Ready)
	}
	for _, tc := range []struct {
		missing string // "" for everything
		noticed func(*rig)
	}{
		{"", publish}, {"", consume}, {"", read},
		{Exchange, publish}, {TasksQueue, publish}, {TasksQueue, consume}, {ResultsQueue, read}, {MarksExchange, read},
	} {
		t.Run(tc.missing, func(t *testing.T) {
			t.Parallel()
			r := setup(t).connected()
			if tc.missing != "" {
				// What remains has other sizes, which is no obstacle.
				other := r.cfg
				other.Topology.MaxTasks, other.Topology.ResultsMaxAge = 77, "77s"
				if _, err := Setup(t.Context(), other); err != nil {
					t.Fatal(err)
				}
				r.remove(tc.missing)
			}
			tc.noticed(r)
			r.exists()
			r.enqueue(tasksKey, text("t"))
			r.enqueue(resultsKey, text("r"))
			r.enqueue(deadKey, text("d"))
		})
	}
}

// remove deletes an object at the broker.
func (r *rig) remove(object string) {
	r.t.Helper()
	var err error
	if slices.Contains([]string{Exchange, MarksExchange, WaitExchange, DueExchange, OrphanExchange}, object) {
		err = r.ch.ExchangeDelete(object, false, false)
	} else {
		rabbittest.Settle(r.t, r.node)
		_, err = r.ch.QueueDelete(object, false, false, false)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// What the broker answers to a look, from 3.10, which needs no permission for
// it, to 4.3, which does.
func TestExists(t *testing.T) {
	t.Parallel()
	wrapped := func(code int) error { return fmt.Errorf("look: %w", &amqp.Error{Code: code}) }
	for _, tc := range []struct {
		answer error
		there  bool
		fails  bool
	}{
		{nil, true, false},
		{wrapped(amqp.NotFound), false, false},
		{&amqp.Error{Code: amqp.NotFound, Reason: "NOT_FOUND - home node 'rabbit@b' of durable queue 'revq.tasks' in vhost '/' is down or inaccessible"}, false, true},
		{wrapped(amqp.AccessRefused), true, false},
		{wrapped(amqp.ResourceLocked), false, true},
		{wrapped(amqp.InternalError), false, true},
		{amqp.ErrClosed, false, true},
		{io.EOF, false, true},
	} {
		there, err := exists(tc.answer)
		if there != tc.there || (err != nil) != tc.fails {
			t.Errorf("exists(%v) = %t, %v", tc.answer, there, err)
		}
	}
}

// Each role looks at what it uses and at nothing else.
func TestRolesLookOnlyAtWhatTheyUse(t *testing.T) {
	t.Parallel()
	r := setup(t)
	p := NewPublisher(r.cfg, r.log)
	for _, tc := range []struct {
		role *link
		want []string
	}{
		{p.lanes[0].link, []string{Exchange}},
		{NewConsumer(r.cfg, 1, r.log).link, []string{TasksQueue}},
		{NewReader(r.cfg, 0, r.log).link, []string{ResultsQueue, MarksExchange}},
	} {
		if !slices.Equal(tc.role.uses, tc.want) {
			t.Errorf("the %s looks at %q, want %q", tc.role.role, tc.role.uses, tc.want)
		}
		for _, name := range tc.role.uses {
			if !slices.Contains(r.cfg.Topology.names(), name) {
				t.Errorf("there is no object %s", name)
			}
		}
	}
}

func TestSetupTwice(t *testing.T) {
	t.Parallel()
	r := setup(t).connected()
	var all []string
	for _, o := range r.cfg.Topology.objects() {
		all = append(all, o.String())
	}
	for _, want := range [][]string{all, nil, {"the queue revq.tasks"}} {
		created, err := Setup(t.Context(), r.cfg)
		if err != nil || !slices.Equal(created, want) {
			t.Errorf("Setup = %q, %v, want %q", created, err, want)
		}
		r.exists()
		if want == nil {
			r.remove(TasksQueue)
		}
	}
}

// All differences are told, not only the first that the broker finds, and
// nothing else is left undone.
func TestSetupWithOtherArguments(t *testing.T) {
	t.Parallel()
	declare := func(name string, args amqp.Table) func(*amqp.Channel) error {
		return func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(name, true, false, false, false, args)
			return err
		}
	}
	for _, tc := range []struct {
		name   string
		before func(*amqp.Channel) error // nil: what Setup declares
		change func(*Topology)
		want   Differences
		sizes  bool
	}{
		{"sizes of several", nil, func(t *Topology) {
			t.MaxTasks, t.DeliveryLimit, t.ResultsMaxBytes = 5, 7, 64<<20
			t.ResultsMaxAge, t.ResultsSegmentBytes = "7D", 1<<20
		}, Differences{
			{"queue", ResultsQueue, []Argument{
				{"x-max-age", "24h", "7D", "results-max-age"},
				{"x-max-length-bytes", "1073741824", "67108864", "results-max-bytes"},
				{"x-stream-max-segment-size-bytes", "16777216", "1048576", "results-segment-bytes"},
			}},
			{"queue", TasksQueue, []Argument{
				{"x-delivery-limit", "20", "22", "delivery-limit"},
				{"x-max-length", "999999", "4", "max-tasks"},
			}},
		}, true},
		{"another type of queue", declare(TasksQueue, nil), nil, Differences{
			{"queue", TasksQueue, []Argument{{"x-queue-type", "classic", "quorum", ""}}},
		}, false},
		{"arguments that are not there", declare(DeadQueue, amqp.Table{"x-queue-type": "quorum"}), nil, Differences{
			{"queue", DeadQueue, []Argument{{"x-delivery-limit", "", "1000000000", ""}}},
		}, false},
		{"arguments that nobody asked for", declare(DeadQueue, amqp.Table{
			"x-queue-type": "quorum", "x-delivery-limit": int64(1_000_000_000), "x-max-length": int64(9),
		}), nil, Differences{
			{"queue", DeadQueue, []Argument{{"x-max-length", "9", "", ""}}},
		}, false},
		{"another type of exchange", func(ch *amqp.Channel) error {
			return ch.ExchangeDeclare(Exchange, amqp.ExchangeTopic, true, false, false, false, nil)
		}, nil, Differences{
			{"exchange", Exchange, []Argument{{"type", "topic", "direct", ""}}},
		}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			r := setup(t).connected()
			var err error
			if tc.before != nil {
				err = tc.before(r.ch)
			} else {
				_, err = Setup(t.Context(), r.cfg)
			}
			if err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				tc.change(&r.cfg.Topology)
			}
			_, err = Setup(t.Context(), r.cfg)
			var got Differences
			if !errors.As(err, &got) {
				t.Fatalf("Setup = %v, want differences", err)
			}
			for _, d := range got {
				slices.SortFunc(d.Arguments, func(a, b Argument) int { return strings.Compare(a.Name, b.Name) })
			}
			if !reflect.DeepEqual(got, tc.want) {
				t.Errorf("Setup = %q, want %q", got, tc.want)
			}
			if got.Sizes() != tc.sizes {
				t.Errorf("only sizes differ: %t", got.Sizes())
			}
			r.exists()
			if tc.change != nil { // it stays as it is, bound, and of use
				r.enqueue(tasksKey, text("a"))
			}
		})
	}
}

func TestSetupForbidden(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ role, configure, write, read string }{
		{"configure", "^$", "^revq", "^revq"},
		{"write", "^revq", "^$", "^revq"},
		{"read", "^revq", "^revq", "^$"},
	} {
		t.Run(tc.role, func(t *testing.T) {
			t.Parallel()
			r := setup(t)
			_, err := Setup(t.Context(), r.user(tc.role, tc.configure, tc.write, tc.read))
			if !errors.Is(err, ErrForbidden) || !strings.Contains(err.Error(), "ACCESS_REFUSED") {
				t.Errorf("Setup = %v, want ErrForbidden and what the broker says", err)
			}
		})
	}
}

func TestTopologyFlags(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		args []string
		want string // of the error; "" for none
	}{
		{nil, ""},
		{[]string{"--max-tasks", "2", "--delivery-limit", "1", "--results-max-age", "7D", "--results-max-bytes", "131072", "--results-segment-bytes", "65536"}, ""},
		{[]string{"--max-tasks", "1"}, "must be 2 or more, not 1"},
		{[]string{"--delivery-limit", "-1"}, "must be 1 to 1000000, not -1"},
		{[]string{"--delivery-limit", "1000001"}, "must be 1 to 1000000, not 1000001"},
		{[]string{"--results-max-age", "24"}, `"24" is no age: give a number and one of s, m, h, D, M, Y`},
		{[]string{"--results-max-age", "1h30m"}, "is no age"},
		{[]string{"--results-max-age", "0h"}, "is no age"},
		{[]string{"--results-max-bytes", "1"}, "must be 65536 or more, not 1"},
		{[]string{"--results-segment-bytes", "3000000001"}, "must be 65536 to 3000000000, not 3000000001"},
		{[]string{"--results-max-bytes", "20000000"}, "--results-segment-bytes 16777216 cannot keep to --results-max-bytes 20000000, since only whole segments are dropped: give segments of 10000000 or less"},
	} {
		topology := DefaultTopology()
		cmd := &cli.Command{
			Flags: command.Flags(topology.Settings()), Writer: io.Discard, ErrWriter: io.Discard,
			Action:         func(context.Context, *cli.Command) error { return topology.Check() },
			ExitErrHandler: func(context.Context, *cli.Command, error) {},
		}
		err := cmd.Run(t.Context(), append([]string{"test"}, tc.args...))
		if (tc.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: %v, want %q", tc.args, err, tc.want)
		}
		if tc.args == nil && topology != DefaultTopology() {
			t.Errorf("without flags: %+v", topology)
		}
	}
}

func TestSetupWithoutBroker(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.URLs = []string{"amqp://revq:secret@127.0.0.1:1/", "amqp://revq:secret%@127.0.0.1:2/"}
	_, err := Setup(t.Context(), r.cfg)
	if err == nil || !strings.Contains(err.Error(), "connect to 127.0.0.1:1: ") || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("Setup = %v, want what is wrong with each URL", err)
	}
	if strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("the password is shown: %v", err)
	}
}

// Setup declares nothing while fewer nodes answer than are to keep the queues,
// and looks at what exists all the same.
func TestSetupWaitsForTheNodes(t *testing.T) {
	t.Parallel()
	r := setup(t)
	cfg := r.cfg
	cfg.URLs = append(cfg.URLs, "amqp://guest:guest@127.0.0.1:1/") // nobody is there
	created, err := Setup(t.Context(), cfg)
	if !errors.Is(err, ErrAway) || !strings.Contains(err.Error(), "1 of 2, and --replicas asks for 3") || !strings.Contains(err.Error(), "127.0.0.1:1") || len(created) > 0 {
		t.Errorf("Setup = %v, %v", created, err)
	}
	cfg.Topology.Replicas = 1
	if created, err := Setup(t.Context(), cfg); err != nil || len(created) == 0 {
		t.Errorf("Setup with fewer replicas = %v, %v", created, err)
	}
	cfg.Topology.Replicas = 3
	if created, err := Setup(t.Context(), cfg); err != nil || len(created) > 0 {
		t.Errorf("Setup of what exists = %v, %v", created, err)
	}
}

// Queues that were declared before there were replicas to ask for are as asked
// for.
func TestSetupAcceptsQueuesWithoutReplicas(t *testing.T) {
	t.Parallel()
	r := setup(t).connected()
	for _, q := range r.cfg.Topology.queues() {
		for _, name := range placement {
			delete(q.args, name)
		}
		if _, err := r.ch.QueueDeclare(q.name, true, false, false, false, q.args); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Setup(t.Context(), r.cfg); err != nil {
		t.Errorf("Setup = %v", err)
	}
}

// The flags that setup names keep a queue as it is.
func TestKeep(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ name, is, flag, want string }{
		{"x-max-length", "999999", maxTasksFlag, "1000000"},
		{"x-delivery-limit", "22", deliveryLimitFlag, "7"},
		{"x-delivery-limit", "7", deliveryLimitFlag, "7"}, // of an earlier version
		{"x-max-age", "24h", maxAgeFlag, "24h"},
		{"x-max-length-bytes", "1000000", maxBytesFlag, "1000000"},
	} {
		if got := (Argument{Name: tc.name, Is: tc.is, Flag: tc.flag}).Keep(); got != tc.want {
			t.Errorf("%s %s: --%s %s, want %s", tc.name, tc.is, tc.flag, got, tc.want)
		}
	}
}

func TestQueueArguments(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	for queue, want := range map[string]map[string]string{
		DeadQueue: {
			"x-queue-type": `"quorum"`, "x-delivery-limit": "1000000000",
			"x-quorum-initial-group-size": "3", "x-queue-leader-locator": `"balanced"`,
		},
		ResultsQueue: {
			"x-queue-type":                    `"stream"`,
			"x-max-age":                       `"24h"`,
			"x-max-length-bytes":              "1073741824",
			"x-stream-max-segment-size-bytes": "16777216",
			"x-initial-cluster-size":          "3",
			"x-queue-leader-locator":          `"balanced"`,
		},
		TasksQueue: {
			"x-quorum-initial-group-size": "3", "x-queue-leader-locator": `"balanced"`,
			"x-queue-type":              `"quorum"`,
			"x-max-length":              "999999",
			"x-overflow":                `"reject-publish"`,
			"x-delivery-limit":          "20",
			"x-dead-letter-strategy":    `"at-least-once"`,
			"x-dead-letter-exchange":    `"revq"`,
			"x-dead-letter-routing-key": `"dead"`,
		},
	} {
		lookup := fmt.Sprintf(`{ok, Q} = rabbit_amqqueue:lookup(rabbit_misc:r(<<%q>>, queue, <<%q>>))`, r.vhost(), queue)
		for name, value := range want {
			if got := r.eval(`%s, {_, _, V} = lists:keyfind(<<%q>>, 1, amqqueue:get_arguments(Q)), if is_binary(V) -> binary_to_list(V); true -> V end`, lookup, name); got != value {
				t.Errorf("%s: %s is %s, want %s", queue, name, got, value)
			}
		}
		if got := r.eval(`%s, length(amqqueue:get_arguments(Q))`, lookup); got != fmt.Sprint(len(want)) {
			t.Errorf("%s has %s arguments, want %d", queue, got, len(want))
		}
		if got := r.eval(`%s, amqqueue:is_durable(Q)`, lookup); got != "true" {
			t.Errorf("%s: durable is %s", queue, got)
		}
	}
}

// user makes a user with the given permissions and returns a configuration
// that connects as that user.
func (r *rig) user(role, configure, write, read string) Config {
	r.t.Helper()
	cfg := r.cfg
	cfg.URLs = []string{rabbittest.User(r.t, r.node, r.url, role, configure, write, read)}
	return cfg
}

// Each role needs no more than this at a broker that is set up.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	api := NewPublisher(r.user("api", "^$", `^revq(\.wait)?$`, "^$"), r.log)
	worker := r.user("worker", "^$", `^revq(\.wait)?$`, `^revq\.tasks$`)
	consumer, results := NewConsumer(worker, 1, r.log), NewPublisher(worker, r.log)
	reader := NewReader(r.user("socket", "^$", `^revq\.marks$`, `^revq\.results$`), everything, r.log)
	tasks := r.consume(consumer)
	read := r.follow(reader)
	r.run(api.Run)
	r.run(results.Run)
	for _, ready := range []func() error{api.Ready, results.Ready, consumer.Ready, reader.Ready} {
		r.ready(ready)
	}
	if err := receive(t, "answer", api.PublishTask(newTask(1))); err != nil {
		t.Fatalf("PublishTask = %v", err)
	}
	h := receive(t, "task", tasks)
	if err := receive(t, "answer", results.PublishResult(result(1))); err != nil {
		t.Fatalf("PublishResult = %v", err)
	}
	h.end(t, h.Ack)
	if got := receive(t, "result", read); got.ID != result(1).ID {
		t.Errorf("result of %s", got.ID)
	}

	for _, p := range []*Publisher{api, results} {
		if err := receive(t, "answer", p.PublishTask(later(2, "", time.Second))); err != nil {
			t.Errorf("PublishTask = %v of a task that has to wait", err)
		}
	}

	setup := r.user("setup", "^revq", "^revq", "^revq")
	if _, err := Setup(t.Context(), setup); err != nil {
		t.Errorf("Setup = %v", err)
	}
}

func TestMissingAndNotAllowed(t *testing.T) {
	t.Parallel()
	cannotDeclare := " does not exist, and this user may not declare it: run `revq setup`"
	for _, tc := range []struct {
		missing       string
		ready, answer string // what they say
	}{
		{Exchange, Exchange + cannotDeclare, Exchange + cannotDeclare},
		{TasksQueue, "", ErrUnroutable.Error()}, // which an API need not be able to see
	} {
		t.Run(tc.missing, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			r.remove(tc.missing)
			p := NewPublisher(r.user("api", "^$", "^revq$", "^$"), r.log)
			r.run(p.Run)
			eventually(t, "told what is missing", func() error {
				if err := p.Ready(); err == nil && tc.ready != "" || !strings.Contains(fmt.Sprint(err), tc.ready) || err != nil && tc.ready == "" {
					return fmt.Errorf("Ready = %v, want %q", err, tc.ready)
				}
				return nil
			})
			err := r.answered(p.PublishTask(newTask(1)))
			if err == nil || !strings.Contains(err.Error(), tc.answer) {
				t.Errorf("PublishTask = %v, want %q", err, tc.answer)
			}
			if _, err := Setup(t.Context(), r.cfg); err != nil {
				t.Fatal(err)
			}
			r.ready(p.Ready)
			if err := r.answered(p.PublishTask(newTask(2))); err != nil {
				t.Errorf("PublishTask = %v after the setup", err)
			}
		})
	}
}

// A node that can dead-letter no more answers INTERNAL_ERROR, which helps
// nobody. The errors of revq say what does, and it does. See rabbittest.Settle.
func TestBrokerThatCannotDeadLetter(t *testing.T) {
	t.Parallel()
	r := setupOn(t, rabbittest.StartNode(t))
	rabbittest.EndDeadLettering(t, r.node)
	const advice = "if this lasts, restart RabbitMQ"
	if _, err := Setup(t.Context(), r.cfg); err == nil || !strings.Contains(err.Error(), advice) {
		t.Errorf("Setup: %v, want %q", err, advice)
	}
	r.consume(NewConsumer(r.cfg, 1, r.log))
	r.out.Says(t, advice)

	rabbittest.Restart(t, r.node)
	await.Nil(t, "set up", func() error {
		_, err := Setup(t.Context(), r.cfg)
		return err
	})
}
