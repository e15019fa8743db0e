package rabbit

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/revq/revq/internal/setting"
	"github.com/revq/revq/internal/task"
)

// DefaultURL is a RabbitMQ on this machine with the user that it is installed
// with.
const DefaultURL = "amqp://guest:guest@localhost:5672/"

// Config says how to reach the broker. DefaultConfig gives a usable one.
type Config struct {
	// URLs are the AMQP addresses of the nodes of one broker. They are tried in
	// turn, from a random one on.
	// A password with reserved characters is percent-encoded.
	URLs []string

	// Name is what the broker shows for each connection.
	Name string

	// DialTimeout bounds connecting, TLS and the AMQP handshake together.
	// Default 5 s: if a node needs longer, it is better to try the next one.
	DialTimeout time.Duration

	// Heartbeat is how often both sides show that they are alive. A connection
	// on which the broker is silent for one and a half times this is closed.
	// `?heartbeat=SECONDS` in a URL takes precedence. Default 10 s, the
	// broker's own suggestion.
	Heartbeat time.Duration

	// RetryMin and RetryMax bound the wait before connecting again. It doubles
	// with each failure and is jittered, so that not all clients connect to a
	// restarted broker at once. Default 100 ms to 2 s: HTTP clients that got a
	// 503 also retry within seconds.
	RetryMin, RetryMax time.Duration

	// ConfirmTimeout is how long a message may wait for the broker's
	// confirmation. After that its publisher gets ErrTimeout: it is not known
	// whether the message was queued. Default 1.5 s: a quick 503 serves a
	// client better, and publishing again with the same id is harmless.
	ConfirmTimeout time.Duration

	// PublishConnections is the number of connections to publish over. Default
	// 4, and 1 for workers. The broker handles the messages of a connection in
	// one process and the confirmations of a channel in another. Several
	// connections give it more of these processes.
	PublishConnections int

	// MaxInFlight is how many messages may be in flight at once over all
	// connections; further ones are refused with ErrBusy. Default 8,192: a
	// broker on two cores confirms that many in a quarter of a second.
	MaxInFlight int

	// ResultsInFlight is how many results there can be in flight at once, such
	// as the concurrency of a worker. A message that holds half of them is
	// published without waiting for more. Default 0: not known.
	ResultsInFlight int

	// MaxResult is the maximum length of a result's text, in bytes, that a
	// reader passes on; a longer one is reported as lost. Default 16 MiB, the
	// longest that any worker publishes.
	MaxResult int

	// Topology has the sizes with which missing objects are declared.
	Topology Topology

	answerWithin time.Duration             // how long a node may say nothing at first; 0: DialTimeout
	credential   *credential               // set by Settings; nil if there is none
	reloaded     *atomic.Pointer[[]string] // what Reload read; shared by all copies of the Config
}

// DefaultConfig returns the configuration for connections called name.
func DefaultConfig(name string) Config {
	return Config{
		URLs:           []string{DefaultURL},
		Name:           name,
		DialTimeout:    5 * time.Second,
		Heartbeat:      10 * time.Second,
		RetryMin:       100 * time.Millisecond,
		RetryMax:       2 * time.Second,
		ConfirmTimeout: 1500 * time.Millisecond,
		MaxInFlight:    8192,
		MaxResult:      task.MaxText,
		Topology:       DefaultTopology(),

		PublishConnections: 4,
		reloaded:           new(atomic.Pointer[[]string]),
	}
}

// Patient returns c with a ConfirmTimeout of 10 s and one connection, for a
// worker's publisher: no client waits for it, and publishing again makes a
// second result. There are usually several workers, so together they have
// several connections; and the stream stores more at once of what comes over
// the same connection.
func (c Config) Patient() Config {
	c.ConfirmTimeout = 10 * time.Second
	c.PublishConnections = 1
	return c
}

// Settings declares how to reach the broker. The URL may also come from the
// file amqp-url in $CREDENTIALS_DIRECTORY, where systemd puts secrets. Check
// reports whether it can be used.
func (c *Config) Settings() []setting.Setting {
	url := setting.Strings("amqp-url", "`URL` of a broker node, amqp://USER:PASSWORD@HOST:PORT/VHOST; several nodes of a cluster: repeat it, or separate with commas", &c.URLs, nil)
	url.Wiring = true
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		c.credential = &credential{path: filepath.Join(dir, "amqp-url")}
		url.Lookup = c.credential
	}
	return setting.In("broker", url)
}

// PublishSettings declares how messages are published.
func (c *Config) PublishSettings() []setting.Setting {
	return setting.In("broker",
		setting.Time("confirm-timeout", "`TIME` that a message may wait for the broker's confirmation", &c.ConfirmTimeout, 2*expiryInterval, 0),
		setting.Count("publish-connections", "connections", "number of `CONNECTIONS` to publish over", &c.PublishConnections, 1, 64),
	)
}

// Check returns what is wrong with the URLs. It does not repeat them, since
// they hold passwords. That is why the flag does not validate them itself.
func (c *Config) Check() error { return checkURLs(trimmed(c.URLs)) }

func checkURLs(urls []string) error {
	if len(urls) == 0 {
		return errors.New("no broker is given: set --amqp-url to " + urlForm)
	}
	for i, url := range urls {
		if _, err := amqp.ParseURI(url); err != nil {
			return fmt.Errorf("URL %d of the broker cannot be used: give %s, and percent-encode special characters in the password", i+1, urlForm)
		}
	}
	return nil
}

// trimmed returns the URLs without spaces around them: a credential file ends
// with a line break.
func trimmed(urls []string) []string {
	trimmed := make([]string, len(urls))
	for i, url := range urls {
		trimmed[i] = strings.TrimSpace(url)
	}
	return trimmed
}

// A credential is a file with the URL. It records whether it was used.
type credential struct {
	path string
	used bool
}

func (c *credential) Lookup() (string, bool) {
	text, err := os.ReadFile(c.path)
	c.used = err == nil
	return string(text), c.used
}

func (c *credential) String() string { return fmt.Sprintf("file %q", c.path) }

// Reload reads the credential file again. New connections use the new URL;
// those that exist stay open. If the file is wrong, nothing changes.
func (c *Config) Reload() error {
	if c.credential == nil || !c.credential.used {
		return errors.New("the broker's URL is not from a credential file, and nothing else can change at run time: restart instead")
	}
	text, err := os.ReadFile(c.credential.path)
	if err != nil {
		return fmt.Errorf("read the credential: %w", err)
	}
	fresh := trimmed(strings.Split(string(text), ","))
	if err := checkURLs(fresh); err != nil {
		return err
	}
	if slices.Equal(fresh, c.urls()) {
		return errors.New("the credential file has not changed: if systemd does not refresh it on reload, restart instead")
	}
	c.reloaded.Store(&fresh)
	return nil
}

// urls returns the URLs to connect to now.
func (c *Config) urls() []string {
	if c.reloaded != nil {
		if urls := c.reloaded.Load(); urls != nil {
			return *urls
		}
	}
	return trimmed(c.URLs)
}

// Login returns the virtual host and the user of the first URL. All URLs are of
// one broker.
func (c *Config) Login() (vhost, user string) {
	uri, err := amqp.ParseURI(trimmed(c.URLs)[0])
	if err != nil {
		return "", "" // the caller did not call Check
	}
	return uri.Vhost, uri.Username
}

var errUnusableURL = errors.New("the URL cannot be used: give " + urlForm)

const urlForm = "amqp://USER:PASSWORD@HOST:PORT/VHOST"

// host returns the part of an AMQP URL that may be shown.
func host(url string) string {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return "an unusable URL"
	}
	return fmt.Sprintf("%s:%d", uri.Host, uri.Port)
}
