package socket

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// pollBatch is how many events one poll takes in.
const pollBatch = 256

// A poller tells which of many sockets are ready: an epoll instance that is
// itself waited for by Go's runtime, as any connection is. A goroutine that
// blocked in epoll_wait would keep its P, one of GOMAXPROCS, until sysmon takes
// that away, which sleeps for 10 ms while nothing happens: with a shard for
// each P, what comes meanwhile found none, and on an idle system one result in
// a hundred was 10 ms late.
type poller struct {
	epoll int
	file  *os.File // owns epoll

	ready   chan []unix.EpollEvent // by close, closed when the goroutine ends
	handled chan struct{}          // what came from ready may be overwritten
}

// newPoller returns a poller that waits, with a goroutine, until it is closed.
func newPoller() (*poller, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("create an epoll instance: %w", err)
	}
	err = unix.SetNonblock(epoll, true) // NewFile would not have the runtime poll it otherwise
	file := os.NewFile(uintptr(epoll), "epoll")
	if err == nil {
		err = file.SetReadDeadline(time.Time{}) // fails if it does not
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

// run hands over what is ready, and polls again when that has been handled.
func (p *poller) run(raw syscall.RawConn) {
	defer close(p.ready)
	events := make([]unix.EpollEvent, pollBatch)
	var n int
	// The runtime is told only of changes, and Read forgets one that came
	// before it. So each time this has to look.
	poll := func(uintptr) (done bool) {
		var err error
		if n, err = unix.EpollWait(p.epoll, events, 0); err != nil && err != unix.EINTR {
			panic(fmt.Sprintf("epoll_wait: %v", err)) // only wrong arguments can do that
		}
		return n != 0
	}
	for raw.Read(poll) == nil { // until the file is closed
		p.ready <- events[:max(n, 0)]
		<-p.handled
	}
}

// control adds a socket, or changes what it is polled for. A socket that is
// closed takes itself out.
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
