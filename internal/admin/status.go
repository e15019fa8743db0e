package admin

import "time"

// A State says what a daemon is doing.
type State string

// The states.
const (
	Ready    State = "ready"
	Waiting  State = "waiting"  // for something that Status.Why names
	Hangs    State = "hangs"    // one of its own loops does; Status.Why says which
	Stopping State = "stopping" // it was told to
)

// A Status is what a daemon says about itself at StatusPath, as JSON. Fields
// may be added; programs that read it must ignore those that they do not know.
type Status struct {
	Daemon  string    `json:"daemon"`  // the program, such as revq-worker
	Version string    `json:"version"` // of the program
	Pid     int       `json:"pid"`
	Started time.Time `json:"started"`

	State State  `json:"state"`
	Why   string `json:"why,omitempty"`  // it waits or hangs
	Load  string `json:"load,omitempty"` // in a few words, for people

	// Sites are the addresses at which it serves clients.
	Sites []Site `json:"sites,omitempty"`

	Broker  []Connection `json:"broker,omitempty"`
	Blocked bool         `json:"blocked"` // the broker takes no messages: it is short of memory or disk space
	Silent  bool         `json:"silent"`  // the broker is connected, and did not answer within a second

	// Refused is the last task that the broker refused, if there was one.
	Refused *Refusal `json:"refused,omitempty"`

	// Queues are the queues of the broker that the daemon can look at, if the
	// broker answers soon.
	Queues []Queue `json:"queues,omitempty"`

	API    *API    `json:"api,omitempty"`    // of revq-api only
	Socket *Socket `json:"socket,omitempty"` // of revq-socket only
	Worker *Worker `json:"worker,omitempty"` // of revq-worker only
}

// A Known is what a daemon knows of a task, at TasksPath followed by the task's
// id, without its text. Only what a worker is running, and what it sends to wait, is
// in its Status.
type Known struct {
	// Accepted says that this revq-api has accepted the task, as one of its
	// last texts.
	Accepted bool `json:"accepted,omitempty"`

	// State is Done or Failed if this revq-socket still has the last message
	// about the task, with the offset of that, its time, and the reason of a
	// failure.
	State  Outcome   `json:"state,omitempty"`
	Offset int64     `json:"offset,omitempty"`
	At     time.Time `json:"at,omitzero"`
	Why    string    `json:"why,omitempty"`
}

// An Outcome is what became of a task.
type Outcome string

// The outcomes.
const (
	Done   Outcome = "done"
	Failed Outcome = "failed"
)

// A Connection is the daemon's connection to the broker for one purpose.
type Connection struct {
	Role      string `json:"role"` // the purpose
	Connected bool   `json:"connected"`
	Why       string `json:"why,omitempty"` // it is not connected
}

// A Site is an address at which a daemon serves clients.
type Site struct {
	Address string `json:"address"` // HOST:PORT
	TLS     bool   `json:"tls"`
}

// A Refusal is a task that the broker refused, since its queue is full or not
// available.
type Refusal struct {
	Queue string    `json:"queue"` // its name at the broker
	At    time.Time `json:"at"`
}

// A Queue is what the broker says of a queue.
type Queue struct {
	Name      string `json:"name"`              // at the broker
	Of        string `json:"of,omitempty"`      // the name of the queue of tasks; missing for other queues
	Waiting   bool   `json:"waiting,omitempty"` // tasks wait there for their delay or a retry
	Tasks     int    `json:"tasks"`             // that wait, and are not on loan to a worker
	Consumers int    `json:"consumers"`
}

// An API is what a revq-api has to do.
type API struct {
	InFlight       int `json:"in_flight"` // texts that wait for the broker's confirmation
	MaxInFlight    int `json:"max_in_flight"`
	Connections    int `json:"connections"` // of clients, at all sites
	MaxConnections int `json:"max_connections"`
}

// A Socket is what a revq-socket has to do.
type Socket struct {
	Listeners    int `json:"listeners"`
	MaxListeners int `json:"max_listeners"`
}

// A Worker is what a revq-worker has to do.
type Worker struct {
	Queue  string `json:"queue"`            // the name of the queue of tasks
	Slots  int    `json:"slots"`            // tasks at once
	Busy   int    `json:"busy"`             // slots with a task
	Paused string `json:"paused,omitempty"` // why tasks wait for the handler
	Tasks  []Task `json:"tasks,omitempty"`  // running, in the order in which they were taken

	// Retries are the tasks that the worker has sent to wait for another
	// attempt, the next one first: the last thousand at most.
	Retries []Retry `json:"retries,omitempty"`
}

// A Retry is a task that waits for another attempt.
type Retry struct {
	ID      string    `json:"id"`
	Attempt int64     `json:"attempt"` // the next one
	Due     time.Time `json:"due"`     // when it begins, or later if no worker is free
	Why     string    `json:"why"`     // the last attempt did not succeed
}

// A Task is one that a worker is running.
type Task struct {
	ID       string    `json:"id"`
	Attempt  int64     `json:"attempt"`
	Accepted time.Time `json:"accepted,omitzero"` // when its text was accepted; missing if unknown
	Since    time.Time `json:"since"`             // when the worker took it
	Until    time.Time `json:"until,omitzero"`    // when the attempt ends, at the latest; missing if unknown
}
