package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/revq/revq/internal/client"
	"github.com/revq/revq/internal/task"
)

// A place is where `revq send` begins in its input, and the run from which the
// texts' ids are derived. A run that carries on with the same input gives each
// text the same id as before. So a text that may be queued already is queued
// again under the same id, and listeners get its result once.
type place struct {
	from int // number of the first text, from 1
	run  string
}

func newPlace() place { return place{1, task.NewID()} }

// parsePlace parses what String returns, or a number alone, for a new run.
func parsePlace(s string) (place, error) {
	number, run, ok := strings.Cut(s, "/")
	from, err := strconv.Atoi(number)
	if err != nil || from < 1 || ok && run == "" {
		return place{}, fmt.Errorf("%q is not a place in the input: give NUMBER/RUN as revq send printed it, or the NUMBER of a line or text, from 1", s)
	}
	p := newPlace()
	p.from = from
	if ok {
		p.run = run
	}
	return p, nil
}

func (p place) String() string { return fmt.Sprintf("%d/%s", p.from, p.run) }

// id returns the id of the text with that number: a UUID of version 8.
func (p place) id(number int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s/%d", p.run, number))
	sum[6], sum[8] = sum[6]&0x0f|0x80, sum[8]&0x3f|0x80
	h := hex.EncodeToString(sum[:16])
	return strings.Join([]string{h[:8], h[8:12], h[12:16], h[16:20], h[20:]}, "-")
}

// undecided returns the number of the first text of a batch that was neither
// accepted nor refused for good, and why. The error is nil if there is none.
func undecided(batch []text, answers []error) (number int, reason error) {
	for i, answer := range answers {
		if !client.IsFinal(answer) {
			return batch[i].number, reasonOf(answer)
		}
	}
	return 0, nil
}

// reasonOf returns answer without the words of client.Uncertain: explain says
// which texts may be queued or not.
func reasonOf(answer error) error {
	if uncertain, ok := errors.AsType[*client.Uncertain](answer); ok {
		return uncertain.Reason
	}
	return answer
}

// isUnsent reports whether a text is certainly not queued, but for a reason
// that may pass.
func isUnsent(answer error) bool { return !client.IsFinal(answer) && !client.IsUncertain(answer) }

// ranges returns, in words, the texts of a batch for whose answers is returns
// true.
func ranges(unit string, batch []text, answers []error, is func(error) bool) string {
	var found []string
	for i := 0; i < len(answers); i++ {
		if !is(answers[i]) {
			continue
		}
		first := batch[i].number
		for i+1 < len(answers) && is(answers[i+1]) {
			i++
		}
		if last := batch[i].number; last > first {
			found = append(found, fmt.Sprintf("%ss %d to %d", unit, first, last))
		} else {
			found = append(found, fmt.Sprintf("%s %d", unit, first))
		}
	}
	return strings.Join(found, ", ")
}
