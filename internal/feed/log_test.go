package feed

import (
	"bytes"
	"errors"
	"fmt"
	"sync"
	"testing"
)

func TestLogGivesEveryFrameInOrder(t *testing.T) {
	l := newLog(Text, 1<<30)
	var want []byte
	for i := range 30_000 {
		frame := fmt.Appendf(nil, "%0*d|", i%50+1, i)
		l.append(frame)
		want = append(want, frame...)
	}
	var got []byte
	reads := 0
	for from := Position(0); from < l.End(); reads++ {
		frames, err := l.Read(from)
		if err != nil || len(frames) == 0 {
			t.Fatalf("Read(%d) = %d bytes, %v", from, len(frames), err)
		}
		if frames[len(frames)-1] != '|' {
			t.Fatalf("Read(%d) ends within a frame", from)
		}
		got = append(got, frames...)
		from += Position(len(frames))
	}
	if !bytes.Equal(got, want) {
		t.Error("what was read is not what was appended")
	}
	if limit := len(want)/segmentBytes + 3; reads > limit {
		t.Errorf("took %d reads for %d bytes, want at most %d", reads, len(want), limit)
	}
	if frames, err := l.Read(l.End()); len(frames) != 0 || err != nil {
		t.Errorf("Read at the end = %d bytes, %v", len(frames), err)
	}
}

func TestLogReleasesTheOldest(t *testing.T) {
	l := newLog(Text, 3*segmentBytes)
	frame := bytes.Repeat([]byte("x"), 1000)
	begin := l.End()
	for range 10 * segmentBytes / len(frame) {
		l.append(frame)
		if l.bytes > 3*segmentBytes {
			t.Fatalf("the log holds %d bytes, more than its limit", l.bytes)
		}
	}
	if _, err := l.Read(begin); !errors.Is(err, ErrGone) {
		t.Errorf("Read of what was released = %v, want ErrGone", err)
	}
	if _, err := l.Read(l.segments[0].start); err != nil {
		t.Errorf("Read of the oldest kept = %v", err)
	}
	if kept := l.End() - l.segments[0].start; int(kept) != l.bytes {
		t.Errorf("%d bytes between the ends, %d counted", kept, l.bytes)
	}
}

func TestLogTakesFramesLargerThanASegment(t *testing.T) {
	l := newLog(Text, segmentBytes)
	l.append([]byte("small"))
	large := bytes.Repeat([]byte("x"), 3*segmentBytes)
	l.append(large)
	frames, err := l.Read(l.End() - Position(len(large)))
	if err != nil || !bytes.Equal(frames, large) {
		t.Errorf("Read = %d bytes, %v; want the large frame, larger than the whole log", len(frames), err)
	}
}

func TestReadersFollowAWriter(t *testing.T) {
	const frames = 20_000
	l := newLog(Text, 1<<30)
	var mu sync.Mutex
	grown := sync.NewCond(&mu)
	done := false

	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			var got []byte
			for from := Position(0); ; {
				mu.Lock()
				for from == l.End() && !done {
					grown.Wait()
				}
				end := done && from == l.End()
				mu.Unlock()
				if end {
					break
				}
				part, err := l.Read(from)
				if err != nil {
					t.Error(err)
					return
				}
				got = append(got, part...)
				from += Position(len(part))
			}
			for i := range frames {
				want := fmt.Appendf(nil, "%07d", i)
				if !bytes.HasPrefix(got, want) {
					t.Errorf("frame %d is missing or torn", i)
					return
				}
				got = got[len(want):]
			}
		})
	}
	for i := range frames {
		l.append(fmt.Appendf(nil, "%07d", i))
		mu.Lock()
		done = i == frames-1
		mu.Unlock()
		grown.Broadcast()
	}
	readers.Wait()
}

func BenchmarkLog(b *testing.B) {
	frame := AppendFrame(nil, OpText, bytes.Repeat([]byte("x"), 100))
	b.Run("append", func(b *testing.B) {
		l := newLog(Text, DefaultConfig().MaxBytes)
		b.ReportAllocs()
		for b.Loop() {
			l.append(frame)
		}
	})
	b.Run("read", func(b *testing.B) {
		l := newLog(Text, DefaultConfig().MaxBytes)
		l.append(frame)
		b.ReportAllocs()
		for b.Loop() {
			if _, err := l.Read(0); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func TestHold(t *testing.T) {
	l := newLog(Text, 2*segmentBytes)
	frame := bytes.Repeat([]byte("x"), segmentBytes)
	fill := func(n int) {
		for range n {
			l.append(frame)
		}
	}
	fill(1)
	first, second := l.Hold(10), l.Hold(20)
	if _, n := l.Held(); n != 0 {
		t.Errorf("%d bytes are held of what the log holds itself", n)
	}
	fill(3)
	if _, err := l.Read(10); err != ErrGone {
		t.Fatalf("Read = %v, want ErrGone", err)
	}
	if b, err := first.Read(10, segmentBytes); err != nil || len(b) != segmentBytes-10 {
		t.Errorf("held: %d bytes, %v", len(b), err)
	}
	if !first.Covers(10) || first.Covers(segmentBytes) {
		t.Error("the hold covers another frame")
	}
	if _, n := l.Held(); n != segmentBytes {
		t.Errorf("%d bytes are held for two holds on a segment, want %d", n, segmentBytes)
	}
	first.Release()
	if _, err := second.Read(20, 30); err != nil {
		t.Errorf("the second hold: %v", err)
	}
	second.Release()
	if _, n := l.Held(); n != 0 {
		t.Errorf("%d bytes are held by nobody", n)
	}

	// As much as the log's own size may be held: then the oldest go.
	var holds []*Hold
	for range 5 {
		holds = append(holds, l.Hold(l.End()-1))
		fill(1)
	}
	fill(2)
	if _, n := l.Held(); n != 2*segmentBytes {
		t.Errorf("%d bytes are held, want %d", n, 2*segmentBytes)
	}
	for i, h := range holds {
		at := Position(3+i)*segmentBytes + segmentBytes
		if _, err := h.Read(at-1, at); (err == ErrGone) != (i < 3) {
			t.Errorf("hold %d: %v", i, err)
		}
		h.Release()
	}
	if _, n := l.Held(); n != 0 || len(l.retired) != 0 {
		t.Errorf("%d bytes are held by nobody, in %d segments", n, len(l.retired))
	}
}
