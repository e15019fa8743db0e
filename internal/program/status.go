package program

import (
	"github.com/revq/revq/internal/admin"
	"github.com/revq/revq/internal/api"
	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/socket"
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

func describeQueues(s *admin.Status, depths []rabbit.Depth) {
	for _, d := range depths {
		s.Queues = append(s.Queues, admin.Queue{Name: d.Queue, Of: d.Of, Tasks: d.Tasks, Consumers: d.Consumers})
	}
}

func describeAPI(server *api.Server, p *rabbit.Publisher, sites int) func(*admin.Status) {
	return func(s *admin.Status) {
		describeBroker(s, p)
		describeQueues(s, p.Depths())
		s.Blocked = p.Blocked()
		s.API = &admin.API{
			InFlight: server.InFlight(), MaxInFlight: server.MaxInFlight(),
			Connections: server.Connections(), MaxConnections: sites * server.MaxConnections(),
		}
	}
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
		describeQueues(s, c.Depths())
		s.Blocked = p.Blocked()
		s.Worker = &admin.Worker{Queue: queue, Slots: w.Slots(), Busy: w.Busy()}
		if err := w.Ready(); err != nil {
			s.Worker.Paused = err.Error()
		}
		for _, r := range w.Running() {
			s.Worker.Tasks = append(s.Worker.Tasks, admin.Task{ID: r.ID, Attempt: r.Attempt, Accepted: r.Accepted, Since: r.Since})
		}
	}
}
