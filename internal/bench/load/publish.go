package load

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/revq/revq/internal/rabbit"
	"github.com/revq/revq/internal/task"
)

// A Publisher publishes messages to the listeners of a server, in order.
type Publisher interface {
	// Publish publishes a message. It does not wait for the confirmation.
	Publish(text string)

	// Failed returns why a message was not published, if one was not.
	Failed() error

	// Close ends the publisher.
	Close()
}

// publishTimeout is the time limit for connecting to the broker, and for the
// confirmation of a message: long, since the broker is kept busy.
const publishTimeout = 30 * time.Second

// A resultPublisher publishes results as workers do, without the workers.
type resultPublisher struct {
	publisher *rabbit.Publisher
	stop      context.CancelFunc
	stopped   chan struct{}
	pending   []<-chan error // in flight, oldest first
	err       error
}

// PublishResults returns a publisher of results at the broker at url, for at
// most window messages that not all listeners have.
func PublishResults(ctx context.Context, url string, window int) (Publisher, error) {
	cfg := rabbit.DefaultConfig("bench")
	cfg.URLs = []string{url}
	cfg.MaxInFlight = 2 * window // a result may reach listeners before its confirmation reaches us
	cfg.ConfirmTimeout = publishTimeout
	running, stop := context.WithCancel(context.Background())
	p := &resultPublisher{
		publisher: rabbit.NewPublisher(cfg, slog.New(slog.DiscardHandler)),
		stop:      stop, stopped: make(chan struct{}),
	}
	go func() {
		defer close(p.stopped)
		p.publisher.Run(running)
	}()
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	ticker := time.NewTicker(maxWait)
	defer ticker.Stop()
	for p.publisher.Ready() != nil {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			p.Close()
			return nil, fmt.Errorf("connect to the broker: %w", p.publisher.Ready())
		}
	}
	return p, nil
}

func (p *resultPublisher) Publish(text string) {
	now := time.Now()
	p.pending = append(p.pending, p.publisher.PublishResult(task.Result{ID: task.NewID(), Text: text, Accepted: now, Done: now}))
}

func (p *resultPublisher) Failed() error {
	for p.err == nil && len(p.pending) > 0 {
		select {
		case p.err = <-p.pending[0]:
			p.pending = p.pending[1:]
		default:
			return nil
		}
	}
	return p.err
}

func (p *resultPublisher) Close() {
	p.stop()
	<-p.stopped
}

// A postPublisher posts each message to a URL, as nchan and small servers on
// the centrifuge library expect it.
type postPublisher struct {
	url    string
	client *http.Client
	texts  chan string
	stop   context.CancelFunc
	done   sync.WaitGroup

	mu  sync.Mutex
	err error
}

// postConnections is the number of connections that post messages. postTimeout
// is the time limit of one post.
const (
	postConnections = 8
	postTimeout     = 10 * time.Second
)

// PublishByPost returns a publisher that posts messages to url. At most window
// of them wait; Publish blocks when more do.
func PublishByPost(url string, window int) Publisher {
	ctx, stop := context.WithCancel(context.Background())
	p := &postPublisher{
		url:    url,
		client: &http.Client{Timeout: postTimeout, Transport: &http.Transport{MaxIdleConnsPerHost: postConnections}},
		texts:  make(chan string, window),
		stop:   stop,
	}
	for range postConnections {
		p.done.Go(func() {
			for {
				select {
				case text := <-p.texts:
					if err := p.post(ctx, text); err != nil && ctx.Err() == nil {
						p.fail(err)
						return
					}
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return p
}

func (p *postPublisher) Publish(text string) { p.texts <- text }

func (p *postPublisher) post(ctx context.Context, text string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.url, strings.NewReader(text))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/plain")
	res, err := p.client.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	io.Copy(io.Discard, io.LimitReader(res.Body, maxAnswer))
	if res.StatusCode < 200 || res.StatusCode > 299 {
		return fmt.Errorf("publish: %s answers %s", p.url, res.Status)
	}
	return nil
}

func (p *postPublisher) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *postPublisher) Failed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *postPublisher) Close() {
	p.stop()
	p.done.Wait()
	p.client.CloseIdleConnections()
}
