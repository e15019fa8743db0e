package rabbit

import (
	"errors"
	"slices"
	"testing"

	amqp "github.com/rabbitmq/amqp091-go"
)

// An attempt is something that a user of the broker may try.
type attempt struct {
	what string
	do   func(*amqp.Channel) error
}

// attempts returns what can be tried with the objects in names, and with
// others: all that changes them, and all that reads from them.
func attempts(queues, exchanges []string) (all []attempt) {
	add := func(what string, do func(*amqp.Channel) error) { all = append(all, attempt{what, do}) }
	for _, q := range queues {
		add("consume "+q, func(ch *amqp.Channel) error {
			if err := ch.Qos(1, 0, false); err != nil { // a stream asks for it
				return err
			}
			_, err := ch.Consume(q, "", false, false, false, false, nil)
			return err
		})
		add("get "+q, func(ch *amqp.Channel) error { _, _, err := ch.Get(q, false); return err })
		add("purge "+q, func(ch *amqp.Channel) error { _, err := ch.QueuePurge(q, false); return err })
		add("delete "+q, func(ch *amqp.Channel) error { _, err := ch.QueueDelete(q, false, false, false); return err })
		add("bind "+q, func(ch *amqp.Channel) error { return ch.QueueBind(q, "tasks", Exchange, false, nil) })
		add("bind "+q+" to marks", func(ch *amqp.Channel) error { return ch.QueueBind(q, "", MarksExchange, false, nil) })
		add("unbind "+q, func(ch *amqp.Channel) error { return ch.QueueUnbind(q, "tasks", Exchange, nil) })
		add("publish to "+q+" by the default exchange", func(ch *amqp.Channel) error { return publish(ch, "", q) })
	}
	for _, e := range exchanges {
		add("publish to "+e, func(ch *amqp.Channel) error { return publish(ch, e, "nowhere") })
		add("delete "+e, func(ch *amqp.Channel) error { return ch.ExchangeDelete(e, false, false) })
		add("bind "+e, func(ch *amqp.Channel) error { return ch.ExchangeBind(e, "tasks", MarksExchange, false, nil) })
		add("bind revq.marks to "+e, func(ch *amqp.Channel) error { return ch.ExchangeBind(MarksExchange, "tasks", e, false, nil) })
	}
	for _, name := range []string{"revq.tasks.mine", "revq.wait.99", "mine"} {
		add("declare the queue "+name, func(ch *amqp.Channel) error {
			_, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
			return err
		})
	}
	add("declare a queue of one's own", func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare("", false, true, true, false, nil)
		return err
	})
	add("declare an exchange", func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare("revq.mine", amqp.ExchangeFanout, true, false, false, false, nil)
	})
	return all
}

// publish publishes a message and returns what the broker says about it.
func publish(ch *amqp.Channel, exchange, key string) error {
	if err := ch.Confirm(false); err != nil {
		return err
	}
	closed := ch.NotifyClose(make(chan *amqp.Error, 1))
	confirmed, err := ch.PublishWithDeferredConfirm(exchange, key, false, false, amqp.Publishing{})
	if err != nil {
		return err
	}
	select {
	case <-confirmed.Done():
		return nil
	case err := <-closed:
		return err
	}
}

// The user of each role can do what the role needs, and of all that can be
// tried with revq's objects nothing else.
func TestUsersCanDoNothingElse(t *testing.T) {
	t.Parallel()
	r := setup(t).declared()
	r.declaredQueue("pages")
	r.declaredQueue("page") // whose name begins like another's
	var queues, exchanges []string
	for _, o := range r.cfg.Topology.objects() {
		if o.kind == "queue" {
			queues = append(queues, o.name)
		} else {
			exchanges = append(exchanges, o.name)
		}
	}
	queues = append(queues, TasksQueueOf("pages"), TasksQueueOf("page"))
	all := attempts(queues, exchanges)
	reading := func(q string) []string { return []string{"consume " + q, "get " + q, "purge " + q} }
	sending := []string{"publish to " + Exchange, "publish to " + WaitExchange}
	for _, tc := range []struct {
		role, write, read string
		may               []string
	}{
		{"api", `^revq(\.wait)?$`, `^$`, sending},
		{"worker", `^revq(\.wait)?$`, `^revq\.tasks$`, append(reading(TasksQueue), sending...)},
		{"worker of a named queue", `^revq(\.wait)?$`, `^revq\.tasks\.page$`, append(reading(TasksQueueOf("page")), sending...)},
		{"socket", `^revq\.marks$`, `^revq\.results$`, append(reading(ResultsQueue), "publish to "+MarksExchange)},
		{"dead letters", `^revq$`, `^revq\.dead$`, append(reading(DeadQueue), "publish to "+Exchange)},
	} {
		t.Run(tc.role, func(t *testing.T) {
			t.Parallel()
			url := r.user(tc.role, "^$", tc.write, tc.read).URLs[0]
			for _, a := range all {
				// A connection for each: the broker ends one that gets from a stream.
				conn, err := amqp.Dial(url)
				if err != nil {
					t.Fatal(err)
				}
				ch, err := conn.Channel()
				if err != nil {
					t.Fatal(err)
				}
				err = a.do(ch)
				var said *amqp.Error
				refused := errors.As(err, &said) && said.Code == amqp.AccessRefused
				if may := slices.Contains(tc.may, a.what); refused == may {
					t.Errorf("%s: %v, allowed: %t", a.what, err, may)
				}
				conn.Close()
			}
		})
	}
}

// A user of one virtual host reaches no other.
func TestUsersStayInTheirVirtualHost(t *testing.T) {
	t.Parallel()
	r, other := setup(t), setup(t)
	uri, err := amqp.ParseURI(r.user("socket", "^$", `^revq\.marks$`, `^revq\.results$`).URLs[0])
	if err != nil {
		t.Fatal(err)
	}
	uri.Vhost = other.vhost()
	if conn, err := amqp.Dial(uri.String()); err == nil {
		conn.Close()
		t.Error("it could connect")
	}
}
