// Package rabbit is revq's side of the broker: the objects that it uses
// there, a publisher that knows what was confirmed, a consumer of tasks, and
// a reader of the stream of results.
//
// What it promises:
//
//   - A session is one connection and one channel. It dies as a whole, and
//     nothing of a dead session is ever acknowledged: amqp091-go's own recovery
//     would send late acknowledgements over the new channel, where the same
//     delivery tag names another message, which is then lost.
//   - Sessions are opened again for ever, with growing, jittered waits.
//   - A publisher answers each message once, within a deadline: with nil only
//     after the broker's confirmation of that very message.
//   - Publishing and consuming use separate connections, since a broker short
//     of memory or disk space blocks those that publish.
package rabbit
