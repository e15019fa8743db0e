package main

import (
	"io"
	"time"

	"github.com/schollz/progressbar/v3"
)

// A benchProgress shows the progress of `revq bench` on a terminal.
type benchProgress struct {
	out  io.Writer // nil for none
	bar  *progressbar.ProgressBar
	what string
}

func newBenchProgress(out io.Writer) *benchProgress {
	if !isTerminal(out) {
		out = nil
	}
	return &benchProgress{out: out}
}

// show shows that a fraction of what, from 0 to 1, is done.
func (p *benchProgress) show(what string, done float64) {
	if p.out == nil {
		return
	}
	const steps = 1000
	if what != p.what || p.bar == nil {
		p.end()
		p.what = what
		p.bar = progressbar.NewOptions(steps,
			progressbar.OptionSetWriter(p.out),
			progressbar.OptionSetDescription(what),
			progressbar.OptionThrottle(100*time.Millisecond),
			progressbar.OptionSetPredictTime(false),
			progressbar.OptionClearOnFinish(),
		)
		p.bar.RenderBlank() // otherwise the bar appears with the first progress
	}
	p.bar.Set(int(done * steps))
}

// end removes the bar.
func (p *benchProgress) end() {
	if p.bar != nil {
		p.bar.Finish()
		p.bar.Clear()
		p.bar = nil
	}
}
