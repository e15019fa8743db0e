package front

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"testing"
	"time"
)

func TestForwardedFor(t *testing.T) {
	t.Parallel()
	app := App{Log: slog.New(slog.DiscardHandler)}
	app.TrustedProxies = []string{"10.0.0.0/8", "127.0.0.1", "fd00::/16"}
	cs := newClients(&app)
	for _, tc := range []struct {
		name, peer string
		lines      []string
		want       string
	}{
		{"no header", "10.0.0.1", nil, "10.0.0.1"},
		{"one client", "10.0.0.1", []string{"192.0.2.1"}, "192.0.2.1"},
		{"what the client invented does not count", "10.0.0.1", []string{"1.1.1.1, 192.0.2.1"}, "192.0.2.1"},
		{"nor in a line of its own", "10.0.0.1", []string{"1.1.1.1", "192.0.2.1"}, "192.0.2.1"},
		{"nor if it is no address", "10.0.0.1", []string{"x, 192.0.2.1"}, "192.0.2.1"},
		{"two proxies", "127.0.0.1", []string{"1.1.1.1, 192.0.2.1, 10.0.0.9"}, "192.0.2.1"},
		{"two proxies, two lines", "127.0.0.1", []string{"1.1.1.1", "192.0.2.1", "10.0.0.9"}, "192.0.2.1"},
		{"only proxies", "127.0.0.1", []string{"10.0.0.8,10.0.0.9"}, "10.0.0.8"},
		{"no address", "127.0.0.1", []string{"192.0.2.1, unknown"}, "127.0.0.1"},
		{"an empty line", "127.0.0.1", []string{""}, "127.0.0.1"},
		{"a comma at the end", "127.0.0.1", []string{"192.0.2.1,"}, "127.0.0.1"},
		{"a port", "127.0.0.1", []string{"192.0.2.1:4711"}, "192.0.2.1"},
		{"IPv6", "fd00::1", []string{"2001:db8::7"}, "2001:db8::7"},
		{"IPv6 with a port", "fd00::1", []string{"[2001:db8::7]:4711"}, "2001:db8::7"},
		{"IPv4 in IPv6", "127.0.0.1", []string{"::ffff:192.0.2.1"}, "192.0.2.1"},
		{"a zone", "127.0.0.1", []string{"fe80::1%eth0"}, "fe80::1"},
	} {
		var lines [][]byte
		for _, line := range tc.lines {
			lines = append(lines, []byte(line))
		}
		if got := cs.forwardedFor(netip.MustParseAddr(tc.peer), lines); got != netip.MustParseAddr(tc.want) {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
}

// Whatever comes in the header, only addresses after the last trusted proxy
// count, and the peer itself is not trusted because of it.
func FuzzForwardedFor(f *testing.F) {
	f.Add("1.1.1.1, 192.0.2.1", true)
	f.Add("[2001:db8::7]:4711,10.0.0.1", true)
	f.Add(",,::ffff:10.0.0.1,%", false)
	app := App{Log: slog.New(slog.DiscardHandler)}
	app.TrustedProxies = []string{"10.0.0.0/8"}
	cs := newClients(&app)
	f.Fuzz(func(t *testing.T, invented string, proxied bool) {
		peer := netip.MustParseAddr("192.0.2.1")
		if got := cs.forwardedFor(peer, [][]byte{[]byte(invented)}); got != peer {
			t.Errorf("a client that is no proxy is taken for %s", got)
		}
		lines := [][]byte{[]byte(invented), []byte("192.0.2.2")}
		if proxied {
			lines[1] = []byte("192.0.2.2, 10.0.0.2")
		}
		if got := cs.forwardedFor(netip.MustParseAddr("10.0.0.1"), lines); got != netip.MustParseAddr("192.0.2.2") {
			t.Errorf("the client is taken for %s", got)
		}
		// A proxy that is trusted is believed whatever it says.
		if got := cs.forwardedFor(netip.MustParseAddr("10.0.0.1"), [][]byte{[]byte(invented)}); !got.IsValid() || got.Is4In6() || got.Zone() != "" {
			t.Errorf("the proxy's client is taken for %s", got)
		}
	})
}

func TestPrefixes(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		text, in, out string // out is empty if text is wrong
	}{
		{"10.0.0.5", "10.0.0.5", "10.0.0.6"},
		{"10.0.0.5/24", "10.0.0.200", "10.0.1.5"},
		{"::ffff:10.0.0.5", "10.0.0.5", "10.0.0.6"},
		{"2001:db8::1/32", "2001:db8:1::", "2001:db9::"},
		{"::1", "::1", "::2"},
		{"0.0.0.0/0", "192.0.2.1", "2001:db8::"},
		{"localhost", "", ""},
		{"10.0.0.0/33", "", ""},
		{"fe80::1%eth0", "", ""},
		{"::ffff:10.0.0.0/104", "", ""},
		{"", "", ""},
	} {
		err := checkPrefixes([]string{tc.text})
		if (err != nil) != (tc.out == "") {
			t.Errorf("%q: %v", tc.text, err)
		}
		if err != nil {
			continue
		}
		p := parsePrefixes([]string{tc.text})
		if !p.contain(netip.MustParseAddr(tc.in)) || p.contain(netip.MustParseAddr(tc.out)) {
			t.Errorf("%q is %v", tc.text, p)
		}
	}
}

func limited(change func(*App)) *clients {
	app := App{Config: Config{Limits: defaultLimits()}, Log: slog.New(slog.DiscardHandler), AddressListeners: 2}
	change(&app)
	return newClients(&app)
}

func TestClientsOfOneNetwork(t *testing.T) {
	t.Parallel()
	cs := limited(func(*App) {})
	at := func(text string) *Client { return cs.at(netip.MustParseAddr(text)) }
	for _, same := range [][2]string{{"2001:db8::1", "2001:db8::ffff:0:0:1"}, {"192.0.2.1", "::ffff:192.0.2.1"}, {"fe80::1", "fe80::2%eth0"}} {
		if at(same[0]) != at(same[1]) {
			t.Errorf("%v are two clients", same)
		}
	}
	for _, different := range [][2]string{{"2001:db8::1", "2001:db8:0:1::1"}, {"192.0.2.1", "192.0.2.2"}} {
		if at(different[0]) == at(different[1]) {
			t.Errorf("%v are one client", different)
		}
	}
	for _, unlimited := range []string{"127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"} {
		if at(unlimited) != nil {
			t.Errorf("%s has limits", unlimited)
		}
	}
}

func TestClientLimits(t *testing.T) {
	t.Parallel()
	cs := limited(func(app *App) { app.AddressConnections, app.AddressRequests, app.MaxRequests = 2, 3, 5 })
	now := time.Now()
	one, other := cs.at(netip.MustParseAddr("192.0.2.1")), cs.at(netip.MustParseAddr("192.0.2.2"))
	refused := func(what string, want bool, p *Problem) {
		t.Helper()
		if (p != nil) != want || p != nil && p.Status != 429 {
			t.Errorf("%s: %v", what, p)
		}
	}
	for i := range 3 {
		refused(fmt.Sprintf("connection %d", i), i == 2, one.connect())
		refused(fmt.Sprintf("listener %d", i), i == 2, one.Listen())
	}
	refused("another client's connection", false, other.connect())
	one.disconnect()
	one.Leave()
	refused("a connection after one has ended", false, one.connect())
	refused("a listener after one has left", false, one.Listen())

	for i := range 4 {
		refused(fmt.Sprintf("request %d", i), i == 3, cs.allow(one, now))
	}
	for i := range 3 {
		refused(fmt.Sprintf("request %d of another", i), i == 2, cs.allow(other, now)) // five of all
	}
	refused("a program of this machine, as all others", true, cs.allow(nil, now))
	refused("a third of a second later", false, cs.allow(one, now.Add(time.Second/3+time.Millisecond)))
	refused("two at once then", true, cs.allow(one, now.Add(time.Second/3+time.Millisecond)))
}

// The table of clients forgets those that do nothing, and those that do much
// only if it must.
func TestClientsAreBounded(t *testing.T) {
	t.Parallel()
	cs := limited(func(app *App) { app.AddressRequests = 1 })
	busy := cs.at(netip.MustParseAddr("192.0.2.1"))
	if p := busy.connect(); p != nil {
		t.Fatal(p)
	}
	gone := cs.at(netip.MustParseAddr("192.0.2.2"))
	gone.connect()
	gone.disconnect()
	if len(cs.known) != 1 {
		t.Errorf("%d clients are known, want only the one that is connected", len(cs.known))
	}
	now := time.Now()
	for i := range uint32(3 * maxClients) {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], 11<<24+i)
		if p := cs.allow(cs.at(netip.AddrFrom4(b)), now); p != nil {
			t.Fatal(p)
		}
		if len(cs.known) > maxClients {
			t.Fatalf("%d clients are known after %d", len(cs.known), i+1)
		}
	}
	if cs.at(busy.at) != busy {
		t.Error("a client that is connected was forgotten")
	}
	busy.disconnect()
}

// What each request costs.
func BenchmarkAllow(b *testing.B) {
	cs := limited(func(app *App) { app.AddressRequests, app.TrustedProxies = 1<<20, []string{"10.0.0.1"} })
	line := [][]byte{[]byte("192.0.2.7")}
	now := time.Now()
	b.Run("direct", func(b *testing.B) {
		c := cs.at(netip.MustParseAddr("192.0.2.7"))
		for range b.N {
			now = now.Add(time.Millisecond)
			if cs.allow(c, now) != nil {
				b.Fatal("refused")
			}
		}
	})
	b.Run("proxied", func(b *testing.B) {
		peer := netip.MustParseAddr("10.0.0.1")
		for range b.N {
			now = now.Add(time.Millisecond)
			if cs.allow(cs.at(cs.forwardedFor(peer, line)), now) != nil {
				b.Fatal("refused")
			}
		}
	})
}
