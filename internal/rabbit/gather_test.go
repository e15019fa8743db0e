package rabbit

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// A heldConn passes on what is written to it, one write for each token.
type heldConn struct {
	net.Conn
	tokens chan struct{}
	writes chan []byte
}

func (c *heldConn) SetWriteDeadline(time.Time) error { return nil }

func (c *heldConn) Write(b []byte) (int, error) {
	c.writes <- bytes.Clone(b)
	if _, ok := <-c.tokens; !ok {
		return 0, os.ErrDeadlineExceeded
	}
	return len(b), nil
}

func (c *heldConn) Close() error { return nil }

func TestGathering(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		held := &heldConn{tokens: make(chan struct{}), writes: make(chan []byte, 10)}
		c := gather(held)
		write := func(b []byte) {
			t.Helper()
			if n, err := c.Write(b); n != len(b) || err != nil {
				t.Fatalf("Write of %d bytes returned %d, %v", len(b), n, err)
			}
		}
		sent := func() []byte {
			t.Helper()
			synctest.Wait()
			select {
			case b := <-held.writes:
				return b
			default:
				t.Fatal("nothing is being sent")
				return nil
			}
		}

		write([]byte("one"))
		if got := sent(); string(got) != "one" {
			t.Errorf("an idle connection was sent %q", got)
		}
		// While that is being sent, the next ones gather.
		write([]byte("two"))
		write([]byte("three"))
		held.tokens <- struct{}{}
		if got := sent(); string(got) != "twothree" {
			t.Errorf("then %q", got)
		}

		// What gathers is bounded: the next writer waits.
		write(make([]byte, maxGathered))
		waiting := make(chan struct{})
		go func() {
			defer close(waiting)
			write([]byte("four"))
		}()
		synctest.Wait()
		select {
		case <-waiting:
			t.Fatal("a full connection takes more")
		default:
		}
		held.tokens <- struct{}{}
		<-waiting
		if got := sent(); len(got) != maxGathered {
			t.Errorf("%d bytes were sent", len(got))
		}

		// An error in sending is everyone's from then on.
		write(make([]byte, maxGathered))
		failed := make(chan error)
		go func() {
			_, err := c.Write([]byte("five"))
			failed <- err
		}()
		close(held.tokens)
		if err := <-failed; !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a writer that waited got %v", err)
		}
		if _, err := c.Write([]byte("six")); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the next one got %v", err)
		}
		c.Close()
	})
}

func TestGatheringKeepsTheOrder(t *testing.T) {
	ours, theirs := net.Pipe()
	c := gather(ours)
	var want bytes.Buffer
	for i := range 10_000 {
		want.WriteByte(byte(i))
		want.WriteByte(byte(i >> 8))
	}
	go func() {
		for b := range slices.Chunk(want.Bytes(), 2) {
			c.Write(b)
		}
	}()
	got := make([]byte, want.Len())
	if _, err := io.ReadFull(theirs, got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want.Bytes()) {
		t.Error("what arrived is not what was written")
	}
	c.Close()
	if _, err := c.Write([]byte("more")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("writing to a closed connection returned %v", err)
	}
}
