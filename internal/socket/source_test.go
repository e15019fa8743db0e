package socket

import (
	"context"
	"sync"

	"github.com/revq/revq/internal/task"
)

// A source stands for the stream at the broker, which package rabbit tests.
type source struct {
	mu      sync.Mutex
	ready   error
	stream  []entry // offsets may have holes
	grown   chan struct{}
	history int // how often History was called
}

type entry struct {
	offset int64
	result task.Result
}

func (s *source) setReady(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = err
}

func (s *source) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready
}

// add appends results from, … to-1 under their numbers as offsets.
func (s *source) add(from, to int) {
	for i := from; i < to; i++ {
		s.addResult(int64(i), result(i))
	}
}

func (s *source) addResult(offset int64, r task.Result) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stream = append(s.stream, entry{offset, r})
	if s.grown != nil {
		close(s.grown)
		s.grown = nil
	}
}

func (s *source) addMark(offset int64, id string) {
	s.addResult(offset, task.Result{ID: id})
}

func (s *source) History(ctx context.Context, offset, before int64,
	result func(int64, task.Result) error, mark func(int64, string) error, end func() error) error {
	s.mu.Lock()
	s.history++
	atFirst := len(s.stream)
	beyond := atFirst == 0 || s.stream[atFirst-1].offset < offset
	s.mu.Unlock()
	if beyond {
		if err := end(); err != nil {
			return err
		}
	}
	for i := 0; ; {
		s.mu.Lock()
		part := s.stream[min(i, len(s.stream)):]
		if s.grown == nil {
			s.grown = make(chan struct{})
		}
		grown := s.grown
		s.mu.Unlock()
		for _, e := range part {
			i++
			var err error
			switch {
			case e.offset < offset-before:
			case e.result.Text == "":
				err = mark(e.offset, e.result.ID)
			default:
				err = result(e.offset, e.result)
			}
			if err == nil && i == atFirst && !beyond {
				err = end()
			}
			if err != nil {
				return err
			}
		}
		select {
		case <-grown:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
