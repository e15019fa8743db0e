// Package load is the load generator of `revq bench`: connections that post
// texts, websockets that listen, publishers of results, and the times at which
// texts are due.
//
// The load usually shares a machine with what is measured, so it must be cheap.
// One goroutine serves all sockets of a measurement from an epoll instance (a
// [Loop]). Requests are built once and sent as they are. Answers and frames are
// counted, not decoded.
package load
