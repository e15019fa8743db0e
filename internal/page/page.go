// Package page has the live page of a socket site: results as they arrive, the
// state of the connection, and a field to send a text. It is one file without
// anything from outside.
package page

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html"
	"net"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/revq/revq/internal/setting"
)

// Path is where a site has the page.
const Path = "/"

//go:embed page.html
var file string

// A Config says whether there is a page, and where its texts go. DefaultConfig
// gives the default.
type Config struct {
	// Enabled says whether there is a page. Default true.
	Enabled bool

	// API is where the page sends texts: a URL, :PORT for that port of the host
	// that the page was loaded from, / for the page's own origin, or none.
	// Default :8081, the API's first site.
	API string
}

// NoAPI is the value of Config.API for a page that sends nothing.
const NoAPI = "none"

// DefaultConfig returns the default.
func DefaultConfig() Config { return Config{Enabled: true, API: ":8081"} }

// Settings declares the settings of c, which holds the defaults.
func (c *Config) Settings() []setting.Setting {
	api := setting.String("api-url", "where the live page sends texts: `URL` of an API site, :PORT of the page's own host, / for its own origin, or none",
		&c.API, checkAPI).
		With("The API must let pages of this server's origin in (`allow-origin`) unless both have the same host.")
	api.Pattern = apiPattern
	return setting.In("web pages",
		setting.Switch("page", "serve the live page at /", &c.Enabled),
		api)
}

// apiPattern is what can be the URL of an API.
const apiPattern = `none|/|:[0-9]+|https?://[^?#@[:space:]]+`

var apiForm = regexp.MustCompile(`\A(?:` + apiPattern + `)\z`)

func checkAPI(text string) error {
	if text == NoAPI || text == "/" {
		return nil
	}
	const hint = "give https://HOST, :PORT, / or none"
	if port, ok := strings.CutPrefix(text, ":"); ok {
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
			return fmt.Errorf("%q is no port: %s", text, hint)
		}
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || !apiForm.MatchString(text) || u.Hostname() == "" || strings.ContainsAny(text, ";,") {
		return errors.New("the API's URL has a scheme, a host and perhaps a path: " + hint)
	}
	return nil
}

// A Page is the page of a server.
type Page struct {
	Body   []byte
	api    string
	policy string // Content-Security-Policy without the API
}

// New returns the page of a server that pings listeners at an interval.
func New(cfg Config, ping time.Duration) *Page {
	body := strings.NewReplacer(
		"@API@", html.EscapeString(cfg.API),
		"@PING@", strconv.FormatFloat(ping.Seconds(), 'f', -1, 64),
	).Replace(file)
	return &Page{
		Body: []byte(body),
		api:  cfg.API,
		policy: "default-src 'none'; script-src " + hashOf(body, "script") + "; style-src " + hashOf(body, "style") +
			"; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'" +
			"; require-trusted-types-for 'script'; trusted-types 'none'; connect-src 'self'",
	}
}

// hashOf returns the source expression that allows the only element with a name
// (Content Security Policy level 3, section 2.3.1).
func hashOf(body, name string) string {
	_, rest, _ := strings.Cut(body, "<"+name+">")
	content, _, _ := strings.Cut(rest, "</"+name+">")
	sum := sha256.Sum256([]byte(content))
	return "'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
}

// Policy returns the Content-Security-Policy of the page at a host, which is
// "" if it is not known. The page may connect to its own server and to the API,
// and to nothing else.
func (p *Page) Policy(host string) string {
	switch {
	case p.api == NoAPI, p.api == "/":
		return p.policy
	case !strings.HasPrefix(p.api, ":"):
		u, _ := url.Parse(p.api) // checkAPI has parsed it
		return p.policy + " " + u.Scheme + "://" + u.Host
	case host == "":
		return p.policy
	}
	if ip := net.ParseIP(host); ip != nil && ip.To4() == nil {
		host = "*" // the policy's language has no such addresses
	}
	// Which of the two the page has shows only in the browser: there may be a
	// proxy with TLS.
	return p.policy + " http://" + host + p.api + " https://" + host + p.api
}
