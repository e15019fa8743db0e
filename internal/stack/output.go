package stack

import (
	"bytes"
	"fmt"
	"io"
	"sync"

	"github.com/revq/revq/internal/visible"
)

// An output joins what several processes write, line by line.
type output struct {
	mu sync.Mutex
	w  io.Writer
}

// say writes a line of the stack's own.
func (o *output) say(format string, args ...any) {
	o.line("up", fmt.Appendf(nil, format, args...))
}

func (o *output) line(name string, text []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fmt.Fprintf(o.w, "%-8s | %s\n", name, visible.Lines(string(text)))
}

// prefixed returns a writer for the output of one process.
func (o *output) prefixed(name string) *prefixed { return &prefixed{out: o, name: name} }

// A prefixed writer writes whole lines, each with the process's name.
type prefixed struct {
	out  *output
	name string

	mu   sync.Mutex
	rest []byte // an incomplete line
}

// maxLine bounds how much of a line is kept until it ends, in bytes.
const maxLine = 64 << 10

func (p *prefixed) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rest = append(p.rest, b...)
	for {
		line, rest, ok := bytes.Cut(p.rest, []byte("\n"))
		if !ok {
			break
		}
		p.out.line(p.name, line)
		p.rest = rest
	}
	if len(p.rest) > maxLine {
		p.out.line(p.name, p.rest)
		p.rest = nil
	}
	p.rest = bytes.Clone(p.rest) // frees the lines that are written
	return len(b), nil
}

// end writes an incomplete line when the process has ended.
func (p *prefixed) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.rest) > 0 {
		p.out.line(p.name, p.rest)
		p.rest = nil
	}
}
