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
}
