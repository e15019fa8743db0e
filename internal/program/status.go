package program

import (
	"encoding/json"

	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/socket"
	"github.com/revq/revq/internal/wire"
	"github.com/revq/revq/internal/worker"
)

func describeBroker(s *admin.Status, of ...connected) {
	for _, c := range connections(of) {
		is := admin.Connection{Role: c.Role, Connected: c.Err == nil}
		if c.Err != nil {
			is.Why = c.Err.Error()
		}
		s.Broker = append(s.Broker, is)
	}
}

func describeQueues(s *admin.Status, depths []rabbit.Depth, err error) {
	s.Silent = err != nil
	for _, d := range depths {
		s.Queues = append(s.Queues, admin.Queue{Name: d.Queue, Of: d.Of, Waiting: d.Waiting, Tasks: d.Tasks, Consumers: d.Consumers})
	}
}

// describePublisher adds what is wrong with the broker as a publisher sees it.
func describePublisher(s *admin.Status, p *rabbit.Publisher) {
	s.Blocked = p.Blocked()
	if last, refused := p.Refused(); refused {
		s.Refused = &admin.Refusal{Queue: last.Queue, At: last.At}
	}
}

func describeAPI(server *api.Server, p *rabbit.Publisher, sites int) func(*admin.Status) {
	return func(s *admin.Status) {
		describeBroker(s, p)
		known, err := p.Depths()
		describeQueues(s, known, err)
		describePublisher(s, p)
		s.API = &admin.API{
			InFlight: server.InFlight(), MaxInFlight: server.MaxInFlight(),
			Connections: server.Connections(), MaxConnections: sites * server.MaxConnections(),
		}
	}
}

// knownOf returns what the last message about a task says, which may be nil. It
// leaves out the result.
func knownOf(message []byte) (k admin.Known) {
	var m wire.Message
	if message == nil || json.Unmarshal(message, &m) != nil {
		return k
	}
	k.State, k.Offset, k.At = admin.Done, m.Offset, m.Done
	switch m.Type {
	case wire.TypeFailed:
		k.State, k.Why = admin.Failed, m.Text
	case wire.TypeLost: // the result is too long for listeners
		k.Why = m.Text
	}
	return k
}

func describeSocket(server *socket.Server, r *rabbit.Reader) func(*admin.Status) {
	return func(s *admin.Status) {
		describeBroker(s, r)
		s.Socket = &admin.Socket{Listeners: server.Listeners(), MaxListeners: server.MaxListeners()}
	}
}

func describeWorker(w *worker.Worker, p *rabbit.Publisher, c *rabbit.Consumer, queue string) func(*admin.Status) {
	return func(s *admin.Status) {
		describeBroker(s, c, p)
		known, err := c.Depths()
		describeQueues(s, known, err)
		describePublisher(s, p)
		s.Worker = &admin.Worker{Queue: queue, Slots: w.Slots(), Busy: w.Busy()}
		if err := w.Ready(); err != nil {
			s.Worker.Paused = err.Error()
		}
		for _, r := range w.Running() {
			s.Worker.Tasks = append(s.Worker.Tasks, admin.Task{ID: r.ID, Attempt: r.Attempt, Accepted: r.Accepted, Since: r.Since, Until: r.Until})
		}
		for _, r := range w.Retries() {
			s.Worker.Retries = append(s.Worker.Retries, admin.Retry{ID: r.ID, Attempt: r.Attempt, Due: r.Due, Why: r.Why})
		}
	}
}
