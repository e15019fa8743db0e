package load

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/feed"
)

// In whatever pieces frames arrive, each marker is counted once, and control
// frames are passed on whole.
func TestFrameReader(t *testing.T) {
	t.Parallel()
	var stream []byte
	marks := 0
	for _, text := range []string{
		"Salut, let's wait some text...", "~", "abc~", "", strings.Repeat("x", 126) + "~", strings.Repeat("y", 70_000) + "~",
		`{"push":"a~"}` + "\n" + `{"push":"b~"}`, // two messages in one frame
	} {
		stream = feed.AppendFrame(stream, feed.OpText, []byte(text))
		stream = feed.AppendFrame(stream, feed.OpPing, []byte("p~"+text[:min(len(text), 3)])) // markers there do not count
		marks += strings.Count(text, "~")
	}
	// A message in two frames, with a ping between them.
	stream = append(stream, 0x01, 2, 'a', '~')
	stream = feed.AppendFrame(stream, feed.OpPing, []byte("within"))
	stream = append(stream, 0x80, 2, 'b', '~')
	marks += 2
	for _, piece := range []int{1, 2, 3, 7, 127, 4096, len(stream)} {
		var pings []string
		r := frameReader{control: func(op feed.Opcode, payload []byte) error {
			if op != feed.OpPing {
				return fmt.Errorf("a frame of kind %d", op)
			}
			pings = append(pings, string(payload))
			return nil
		}}
		got := 0
		for part := range slices.Chunk(stream, piece) {
			n, err := r.feed(part)
			if err != nil {
				t.Fatalf("pieces of %d bytes: %v", piece, err)
			}
			got += n
		}
		if got != marks {
			t.Errorf("pieces of %d bytes: %d marks, want %d", piece, got, marks)
		}
		if want := []string{"p~Sal", "p~~", "p~abc", "p~", "p~xxx", "p~yyy", `p~{"p`, "within"}; !slices.Equal(pings, want) {
			t.Errorf("pieces of %d bytes: pings %q, want %q", piece, pings, want)
		}
	}
}

func TestFrameReaderText(t *testing.T) {
	t.Parallel()
	texts := []string{"a", "", strings.Repeat("x", 300), strings.Repeat("y", 70_000)}
	var stream []byte
	for _, text := range texts {
		stream = feed.AppendFrame(stream, feed.OpText, []byte(text))
	}
	for _, piece := range []int{1, 5, 1000, len(stream)} {
		var got []string
		r := frameReader{text: func(payload []byte) error {
			got = append(got, string(payload))
			return nil
		}}
		for part := range slices.Chunk(stream, piece) {
			if _, err := r.feed(part); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(got, texts) {
			t.Errorf("pieces of %d bytes: got %d texts, not those that were sent", piece, len(got))
		}
	}
}

func TestFrameReaderRefuses(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		frame []byte
		want  error
	}{
		{"masked", appendMasked(nil, feed.OpText, []byte("abc")), errMasked},
		{"too large", []byte{0x81, 127, 0, 0, 1, 0, 0, 0, 0, 0}, errTooLarge},
		{"closed", feed.AppendClose(nil, 1012, "bye"), ErrClosed},
		{"closed without a reason", feed.AppendFrame(nil, feed.OpClose, nil), ErrClosed},
	} {
		r := frameReader{control: func(_ feed.Opcode, payload []byte) error { return closedError(payload) }}
		if _, err := r.feed(tt.frame); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
}

func BenchmarkFrameReader(b *testing.B) {
	frame := feed.AppendFrame(nil, feed.OpText, []byte(Marked(100)))
	stream := bytes.Repeat(frame, readSize/len(frame))
	r := frameReader{}
	b.ReportAllocs()
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		if _, err := r.feed(stream); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*(readSize/len(frame))), "ns/frame")
}
