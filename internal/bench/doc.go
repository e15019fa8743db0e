// Package bench loads revq and measures it, for `revq bench`: the API alone, the broker alone as the reference, the
// way from a text to the listener's frame, and the fan-out to many listeners.
//
// Load and what is measured usually share a machine, so the load must be cheap. One goroutine serves all sockets of a
// measurement from an epoll instance (a loop); requests are bytes made beforehand, answers and frames are counted and
// not decoded. It needs Linux.
//
// A rate is what was counted in a window of time that begins after a warm-up, and only what the broker has confirmed
// counts. Latencies at a given rate are measured from when a text was due, not from when a busy client came to
// send it, and so know no coordinated omission.
package bench
