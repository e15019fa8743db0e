package socket

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollBatch is how many events one poll returns at most.
const pollBatch = 256

// A poller reports which of many sockets are ready. It is an epoll instance,
// and Go's runtime waits for that instance as it waits for any connection.
//
// The goroutine does not block in epoll_wait, since it would then keep its P,
// one of GOMAXPROCS, until sysmon takes the P away. Sysmon sleeps for up to
// 10 ms while nothing happens. With a shard for each P, no P was free for what
// came meanwhile, and on an idle system one result in a hundred was 10 ms late.
type poller struct {
	epoll int
	file  *os.File // owns epoll

	ready   chan []unix.EpollEvent // closed when the goroutine ends
	handled chan struct{}          // the last value of ready may be overwritten
}

// newPoller returns a poller and starts its goroutine, which runs until close.
func newPoller() (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	err = unix.SetNonblock(epoll, true) // without it, NewFile does not let the runtime poll it
	file := os.NewFile(uintptr(epoll), "epoll")
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // fails if the runtime does not poll it
	}
	raw, rawErr := file.SyscallConn()
	if err := errors.Join(err, rawErr); err != nil {
		file.Close()
		return nil, fmt.Errorf("have the runtime poll an epoll instance: %w", err)
	}
	p := &poller{epoll: epoll, file: file, ready: make(chan []unix.EpollEvent), handled: make(chan struct{})}
	go p.run(raw)
	return p, nil
}

// run sends the events to ready, and polls again when they have been handled.
func (p *poller) run(raw syscall.RawConn) {
	defer close(p.ready)
	events := make([]unix.EpollEvent, pollBatch)
	var n int
	// The runtime learns only of changes, and Read forgets a change that came
	// before it. So each call has to poll.
	poll := func(uintptr) (done bool) {
		var err error
		if n, err = unix.EpollWait(p.epoll, events, 0); err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // only wrong arguments cause this
		}
		return n != 0
	}
	for raw.Read(poll) == nil { // until the file is closed
		p.ready <- events[:max(n, 0)]
		<-p.handled
	}
}

// control adds a socket, or changes the events that it is polled for. The
// kernel removes a socket when it is closed.
func (p *poller) control(operation, fd int, events uint32) error {
	return unix.EpollCtl(p.epoll, operation, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)})
}

// close closes the descriptor, and returns when the goroutine has ended.
func (p *poller) close() {
	p.file.Close()
	close(p.handled)
	for range p.ready {
	}
}
