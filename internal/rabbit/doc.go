// Package rabbit talks to the broker: it has the objects that revq uses there,
// a publisher with confirmations, a consumer of tasks, and a reader of the
// stream of results.
//
// It promises:
//
//   - A session is one connection and one channel. It dies as a whole, and
//     nothing of a dead session is ever acknowledged: amqp091-go's own recovery
//     would send late acknowledgements over the new channel, where the same
//     delivery tag names another message, which is then lost.
//   - A lost session is replaced for ever, with growing, jittered waits.
//   - A publisher answers each message once, within a deadline. The answer is
//     nil only after the broker has confirmed that very message.
//   - Publishing and consuming use separate connections, since a broker that
//     is short of memory or disk space blocks connections that publish.
package rabbit
