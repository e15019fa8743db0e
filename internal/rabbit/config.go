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

// DefaultURL is a RabbitMQ on this machine, as it is after installation.
const DefaultURL = "amqp://guest:guest@localhost:5672/"

// Config says how to reach the broker. DefaultConfig gives a usable one.
type Config struct {
	// URLs are the AMQP addresses of the nodes of one broker, tried in turn.
	// A password with reserved characters is percent-encoded.
	URLs []string

	// Name is shown by the broker for each connection.
	Name string

	// DialTimeout bounds connecting, TLS and the AMQP handshake together.
	// Default 5 s: a node that needs longer is better left for the next one.
	DialTimeout time.Duration

	// Heartbeat is how often both sides show that they are alive; one and a
	// half without a word from the broker is its end. `?heartbeat=SECONDS` in a URL
	// takes precedence. Default 10 s, the broker's own suggestion.
	Heartbeat time.Duration

	// RetryMin and RetryMax bound the wait before connecting again. It doubles
	// with each failure and is jittered, so that a restarted broker is not met
	// by everyone at once. Default 100 ms to 2 s: clients that got a 503 try
	// again within seconds, too.
	RetryMin, RetryMax time.Duration

	// ConfirmTimeout is how long a message may wait for the broker's
	// confirmation before its publisher is told that it is not known to be
	// queued. Default 1.5 s: a client is better served by a quick 503, and a
	// repetition with the same id is harmless.
	ConfirmTimeout time.Duration

	// PublishConnections is how many connections messages are published over.
	// Default 4, 1 for workers: a broker works on one connection's messages, and on the
	// confirmations of one channel, in one process each, and holds back what
	// comes faster.
	PublishConnections int

	// MaxUnconfirmed is how many messages may wait for confirmation at once,
	// over all connections; what comes on top is refused. Default 8,192, a
	// quarter of a second of what a broker on two cores confirms.
	MaxUnconfirmed int

	// InHand is how many results there can be at once whose publishers wait
	// for the confirmation, as a worker's tasks in hand do: a message with
	// half of them is sent without waiting for more. Default 0, not known.
	InHand int

	// MaxResult is the longest text of a result, in bytes, that a reader passes
	// on; a longer one is told as lost. Default 16 MiB, the longest that any
	// worker publishes.
	MaxResult int

	// Topology is what is declared where it is missing.
	Topology Topology

	credential *credential               // set by Settings; nil if there is none
	reloaded   *atomic.Pointer[[]string] // what Reload read; shared by all copies of the Config
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
		MaxUnconfirmed: 8192,
		MaxResult:      task.MaxText,
		Topology:       DefaultTopology(),

		PublishConnections: 4,
		reloaded:           new(atomic.Pointer[[]string]),
	}
}

// Patient returns c for a publisher for which nobody waits, and where trying
// again makes a second result: confirmations have 10 s. It uses one connection:
// several workers have several between them, and the stream takes more in at
// once of what comes over one.
func (c Config) Patient() Config {
	c.ConfirmTimeout = 10 * time.Second
	c.PublishConnections = 1
	return c
}

// Settings declares how to reach the broker. The URL may also come from the
// file amqp-url in $CREDENTIALS_DIRECTORY, where systemd puts secrets. Check
// says whether it is usable.
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
// they hold passwords (which is why this is not the flag's own validation).
func (c *Config) Check() error {
	if len(c.URLs) == 0 {
		return errors.New("no broker is given: set --amqp-url to " + urlForm)
	}
	for i, url := range c.URLs {
		c.URLs[i] = strings.TrimSpace(url) // a credential file ends with a line break
		if _, err := amqp.ParseURI(c.URLs[i]); err != nil {
			return fmt.Errorf("URL %d of the broker cannot be used: give %s, and percent-encode special characters in the password", i+1, urlForm)
		}
	}
	return nil
}

// A credential is a file with the URL, and knows whether it was needed.
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

// Reload reads the credential file again. What it says holds from the next
// time that something connects; what is connected stays so. If it is wrong,
// nothing changes.
func (c *Config) Reload() error {
	if c.credential == nil || !c.credential.used {
		return errors.New("the broker's URL is not from a credential file, and nothing else can change at run time: restart instead")
	}
	text, err := os.ReadFile(c.credential.path)
	if err != nil {
		return fmt.Errorf("read the credential: %w", err)
	}
	fresh := Config{URLs: strings.Split(string(text), ",")}
	if err := fresh.Check(); err != nil {
		return err
	}
	if slices.Equal(fresh.URLs, c.urls()) {
		return errors.New("the credential file says the same as before: where systemd does not make it anew for a reload, restart instead")
	}
	c.reloaded.Store(&fresh.URLs)
	return nil
}

// urls returns the URLs that hold at present.
func (c *Config) urls() []string {
	if c.reloaded != nil {
		if urls := c.reloaded.Load(); urls != nil {
			return *urls
		}
	}
	return c.URLs
}

// Login returns the virtual host and the user that the URLs name. They are
// those of the first, since all are of one broker.
func (c *Config) Login() (vhost, user string) {
	uri, err := amqp.ParseURI(c.URLs[0])
	if err != nil {
		return "", "" // Check has been left out
	}
	return uri.Vhost, uri.Username
}

var errUnusableURL = errors.New("the URL cannot be used: give " + urlForm)

const urlForm = "amqp://USER:PASSWORD@HOST:PORT/VHOST"

// host returns what may be shown of an AMQP URL.
func host(url string) string {
	uri, err := amqp.ParseURI(url)
	if err != nil {
		return "an unusable URL"
	}
	return fmt.Sprintf("%s:%d", uri.Host, uri.Port)
}
