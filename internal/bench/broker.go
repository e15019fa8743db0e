package bench

import (
	"context"
	"fmt"
	"net"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// brokerTimeout is the time limit for what is asked of the broker before and
// after measuring.
const brokerTimeout = 30 * time.Second

// A brokerConn is a connection to the broker with one channel.
type brokerConn struct {
	conn *amqp.Connection
	ch   *amqp.Channel
}

// dialBroker connects to the broker at url under a name that it lists.
func dialBroker(ctx context.Context, url, name string) (*brokerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	properties := amqp.NewConnectionProperties()
	properties.SetClientConnectionName("revq " + name)
	conn, err := amqp.DialConfig(url, amqp.Config{
		Heartbeat:  10 * time.Second,
		Locale:     "en_US",
		Properties: properties,
		Dial: func(network, addr string) (net.Conn, error) {
			conn, err := new(net.Dialer).DialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return conn, conn.SetDeadline(time.Now().Add(brokerTimeout)) // amqp091-go removes it after the handshake
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the broker: %w", err)
	}
	ch, err := conn.Channel()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("open a channel: %w", err)
	}
	return &brokerConn{conn, ch}, nil
}

func (b *brokerConn) close() { b.conn.CloseDeadline(time.Now().Add(closeTimeout)) }

// closeTimeout is the time limit for closing a connection to the broker.
const closeTimeout = 5 * time.Second

// deleteQueue deletes a queue over a connection of its own, since the one that
// measured may be broken.
func deleteQueue(url, name string) error {
	broker, err := dialBroker(context.Background(), url, "bench")
	if err == nil {
		defer broker.close()
		_, err = broker.ch.QueueDelete(name, false, false, false)
	}
	if err != nil {
		return fmt.Errorf("the queue %s was left at the broker: %w", name, err)
	}
	return nil
}
