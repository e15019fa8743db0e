package rabbit

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
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
	for _, missing := range []string{"everything", Exchange, DeadQueue, ResultsQueue, TasksQueue} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			r := setup(t).connected()
			if missing != "everything" {
				// What remains has other sizes, which is no obstacle.
				other := r.cfg
				other.Topology.MaxTasks, other.Topology.ResultsMaxAge = 77, "77s"
				if err := Setup(t.Context(), other); err != nil {
					t.Fatal(err)
				}
				if missing == Exchange {
					if err := r.ch.ExchangeDelete(Exchange, false, false); err != nil {
						t.Fatal(err)
					}
				} else if _, err := r.ch.QueueDelete(missing, false, false, false); err != nil {
					t.Fatal(err)
				}
			}
			p := r.publisher()
			r.exists()
			if err := receive(t, "answer", p.PublishTask(newTask(1))); err != nil {
				t.Errorf("PublishTask = %v", err)
			}
			r.enqueue(resultsKey, text("r"))
			r.enqueue(deadKey, text("d"))
		})
	}
}

func TestSetupTwice(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	if err := Setup(t.Context(), r.cfg); err != nil {
		t.Errorf("the second Setup = %v", err)
	}
	r.exists()
}

func TestSetupWithOtherArguments(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	for _, tc := range []struct {
		queue  string
		change func(*Topology)
	}{
		{TasksQueue, func(t *Topology) { t.MaxTasks = 5 }},
		{ResultsQueue, func(t *Topology) { t.ResultsMaxBytes = 1 << 20 }},
	} {
		cfg := r.cfg
		tc.change(&cfg.Topology)
		err := Setup(t.Context(), cfg)
		var refused *amqp.Error
		if !errors.As(err, &refused) || refused.Code != amqp.PreconditionFailed || !strings.Contains(err.Error(), "declare the queue "+tc.queue) {
			t.Errorf("Setup = %v, want a failed precondition of %s", err, tc.queue)
		}
	}
}

func TestSetupWithoutBroker(t *testing.T) {
	t.Parallel()
	r := setup(t)
	r.cfg.URLs = []string{"amqp://revq:secret@127.0.0.1:1/", "amqp://revq:secret%@127.0.0.1:2/"}
	err := Setup(t.Context(), r.cfg)
	if err == nil || !strings.Contains(err.Error(), "connect to 127.0.0.1:1: ") || !strings.Contains(err.Error(), "cannot be used") {
		t.Errorf("Setup = %v, want what is wrong with each URL", err)
	}
	if strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("the password is shown: %v", err)
	}
}

func TestQueueArguments(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	for queue, want := range map[string]map[string]string{
		DeadQueue: {
			"x-queue-type":     `"quorum"`,
			"x-delivery-limit": "1000000000",
		},
		ResultsQueue: {
			"x-queue-type":                    `"stream"`,
			"x-max-age":                       `"24h"`,
			"x-max-length-bytes":              "1073741824",
			"x-stream-max-segment-size-bytes": "16777216",
		},
		TasksQueue: {
			"x-queue-type":              `"quorum"`,
			"x-max-length":              "1000000",
			"x-overflow":                `"reject-publish"`,
			"x-delivery-limit":          "5",
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
	name := role + "-" + r.vhost()
	r.eval(`ok = rabbit_auth_backend_internal:add_user(<<%[1]q>>, <<"secret">>, <<"test">>),
		ok = rabbit_auth_backend_internal:set_permissions(<<%[1]q>>, <<%[2]q>>, <<%[3]q>>, <<%[4]q>>, <<%[5]q>>, <<"test">>)`,
		name, r.vhost(), configure, write, read)
	r.t.Cleanup(func() { r.eval(`rabbit_auth_backend_internal:delete_user(<<%q>>, <<"test">>)`, name) })
	uri, err := amqp.ParseURI(r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	uri.Username, uri.Password = name, "secret"
	cfg := r.cfg
	cfg.URLs = []string{uri.String()}
	return cfg
}

// Each role needs no more than this at a broker that is set up.
func TestLeastPrivilege(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	api := NewPublisher(r.user("api", "^$", "^revq$", "^$"), r.log)
	worker := r.user("worker", "^$", "^revq$", `^revq\.tasks$`)
	consumer, results := NewConsumer(worker, 1, r.log), NewPublisher(worker, r.log)
	reader := NewReader(r.user("socket", "^$", "^$", `^revq\.results$`), everything, r.log)
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

	setup := r.user("setup", "^revq", "^revq", "^revq")
	if err := Setup(t.Context(), setup); err != nil {
		t.Errorf("Setup = %v", err)
	}
}

func TestMissingAndNotAllowed(t *testing.T) {
	t.Parallel()
	for _, missing := range []string{Exchange, TasksQueue} {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			r := setup(t).declared()
			if missing == Exchange {
				if err := r.ch.ExchangeDelete(Exchange, false, false); err != nil {
					t.Fatal(err)
				}
			} else if _, err := r.ch.QueueDelete(missing, false, false, false); err != nil {
				t.Fatal(err)
			}
			p := NewPublisher(r.user("api", "^$", "^revq$", "^$"), r.log)
			r.run(p.Run)
			want := missing + " does not exist, and this user may not declare it: run `revq setup`"
			eventually(t, "told what is missing", func() error {
				err := p.Ready()
				if err != nil && strings.Contains(err.Error(), want) {
					return nil
				}
				return fmt.Errorf("Ready = %v", err)
			})
			err := receive(t, "answer", p.PublishTask(newTask(1)))
			if !errors.Is(err, ErrNotConnected) || !strings.Contains(err.Error(), want) {
				t.Errorf("PublishTask = %v, want %q", err, want)
			}
			if err := Setup(t.Context(), r.cfg); err != nil {
				t.Fatal(err)
			}
			r.ready(p.Ready)
		})
	}
}
