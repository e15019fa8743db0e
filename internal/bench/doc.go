// Package bench measures revq for `revq bench`: the API alone, the broker alone
// as the reference, the way from a text to a listener's frame, and the fan-out
// to many listeners. Package load generates the load, package report holds and
// prints what was measured.
//
// A rate is what was counted in a window of time that begins after a warm-up,
// and only what the broker has confirmed counts. Latencies at a given rate are
// measured from when a text was due, not from when a busy client sent it, which
// avoids coordinated omission.
package bench
