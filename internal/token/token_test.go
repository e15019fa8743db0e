package token

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var (
	now   = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)
	hashA = fmt.Sprintf("%x", sha256.Sum256([]byte("a")))
	hashB = fmt.Sprintf("%x", sha256.Sum256([]byte("b")))
	key64 = strings.Repeat("0f", 32)
)

func TestParse(t *testing.T) {
	secret, _ := New()
	for _, tc := range []struct{ name, text, wrong string }{
		{"one", hashA + " send *", ""},
		{"all fields", "# shops\n\n" + hashA + "  send,listen  reverse_text,thumbs until=2027-01-31T12:00:00Z # the web shop\n" + hashB + " listen * until=2027-01-31\r\n", ""},
		{"a key", hashA + " send *\nticket-key " + key64, ""},
		{"nothing", "", "no token: make one"},
		{"only comments", "# nothing\n", "no token: make one"},
		{"a token", "# x\n" + secret + " send *", "line 2: this is a token"},
		{"no hash", "send *", "line 1: give HASH"},
		{"a short hash", hashA[1:] + " send *", "64 hexadecimal digits"},
		{"a long hash", hashA + "0 send *", "64 hexadecimal digits"},
		{"not hexadecimal", "g" + hashA[1:] + " send *", "64 hexadecimal digits"},
		{"no queues", hashA + " send", "give HASH"},
		{"an unknown scope", hashA + " sned *", "scope must be"},
		{"no scope", hashA + " , *", "scope must be"},
		{"a bad queue", hashA + " send Thumbs", "queues must be"},
		{"an empty queue", hashA + " send a,", "queues must be"},
		{"* among others", hashA + " send a,*", "queues must be"},
		{"no time", hashA + " send * until=", "until=TIME"},
		{"a bad time", hashA + " send * until=tomorrow", "until=TIME"},
		{"another field", hashA + " send * name=x", "until=TIME"},
		{"too many fields", hashA + " send * until=2027-01-31 x", "give HASH"},
		{"twice", hashA + " send *\n" + hashA + " listen *", "line 2: the hash is there twice"},
		{"a short key", hashA + " send *\nticket-key 0f", "line 2: ticket-key must have"},
		{"two keys", "ticket-key " + key64 + "\nticket-key " + key64, "line 2: there is more than one"},
		{"too long", strings.Repeat("#\n", MaxFile), "longer than"},
		{"one long line", strings.Repeat("#", MaxFile), "no token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Parse([]byte(tc.text))
			if tc.wrong == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tc.wrong) {
				t.Fatalf("%v, want %q", err, tc.wrong)
			}
			for _, private := range []string{hashA[2:], secret[5:], key64} {
				if strings.Contains(err.Error(), private) {
					t.Errorf("the error repeats the file: %v", err)
				}
			}
		})
	}
}

// write returns a File with these lines.
func write(t *testing.T, lines ...string) *File {
	t.Helper()
	f := NewFile()
	f.Path = filepath.Join(t.TempDir(), "tokens")
	rewrite(t, f, lines...)
	if err := f.Load(); err != nil {
		t.Fatal(err)
	}
	return f
}

func rewrite(t *testing.T, f *File, lines ...string) {
	t.Helper()
	if err := os.WriteFile(f.Path, []byte(strings.Join(lines, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	secret, hash := New()
	other, _ := New()
	f := write(t,
		hashA+" send *",
		Grant{Scope: Send | Listen, Queues: Queues{"thumbs"}, Expires: now.Add(time.Hour)}.Line(hash),
		hashB+" listen * until=2026-05-31")
	p, err := f.Check(secret, now)
	if err != nil || p.Scope != Send|Listen || p.Queues.String() != "thumbs" || !p.Valid(now) {
		t.Errorf("%+v, %v", p, err)
	}
	for _, tc := range []struct {
		token string
		now   time.Time
		want  error
	}{
		{"a", now, nil}, {"b", now, ErrExpired}, {"b", now.AddDate(0, 0, -2), nil}, {secret, now.Add(time.Hour), ErrExpired},
		{"", now, ErrUnknown}, {other, now, ErrUnknown}, {secret + "x", now, ErrUnknown}, {hashA, now, ErrUnknown}, {" a", now, ErrUnknown},
	} {
		if _, err := f.Check(tc.token, tc.now); !errors.Is(err, tc.want) {
			t.Errorf("%v, want %v", err, tc.want)
		}
	}
}

func TestReload(t *testing.T) {
	f := write(t, hashA+" send *", hashB+" send,listen *")
	a, err := f.Check("a", now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := f.Check("b", now)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Reload(); !errors.Is(err, ErrUnchanged) {
		t.Errorf("the same again: %v", err)
	}
	rewrite(t, f, "what is this?")
	if err := f.Reload(); err == nil || !a.Valid(now) {
		t.Errorf("a wrong file: %v, and tokens are valid: %t", err, a.Valid(now))
	}
	rewrite(t, f, hashB+" send thumbs")
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	if a.Valid(now) {
		t.Error("a revoked token is valid")
	}
	if b.Valid(now) {
		t.Error("a token is valid for more than it permits now")
	}
	if _, err := f.Check("a", now); !errors.Is(err, ErrUnknown) {
		t.Errorf("a revoked token: %v", err)
	}
}

func TestTicket(t *testing.T) {
	lines := []string{hashA + " send,listen *", hashB + " listen thumbs,pages until=2027-01-31"}
	f := write(t, lines...)
	a, _ := f.Check("a", now)
	b, _ := f.Check("b", now)
	ticket, err := b.Ticket(Queues{"thumbs"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(ticket, hashB[:8]) {
		t.Error("the ticket holds the hash")
	}
	p, err := f.CheckTicket(ticket, now.Add(MaxTicket-time.Second))
	if err != nil || p.Scope != Listen || p.Queues.String() != "thumbs" || !p.Expires.Equal(b.Expires) || !p.Valid(now) {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := f.CheckTicket(ticket, now.Add(MaxTicket)); !errors.Is(err, ErrTicket) {
		t.Errorf("after a minute: %v", err)
	}
	if _, err := f.CheckTicket(ticket, now.Add(-time.Hour)); !errors.Is(err, ErrTicket) {
		t.Errorf("a ticket for longer than tickets are valid: %v", err)
	}
	for i := range len(ticket) {
		forged := []byte(ticket)
		forged[i] ^= 1
		if _, err := f.CheckTicket(string(forged), now); !errors.Is(err, ErrTicket) {
			t.Errorf("with byte %d changed: %v", i, err)
		}
		if _, err := f.CheckTicket(ticket[:i], now); !errors.Is(err, ErrTicket) {
			t.Errorf("cut after %d bytes: %v", i, err)
		}
	}
	if _, err := b.Ticket(nil, now); err == nil {
		t.Error("a ticket for more queues than the token's")
	}
	all, err := a.Ticket(nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if p, err := f.CheckTicket(all, now); err != nil || p.Queues != nil || p.Scope != Listen {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := f.Check(ticket, now); !errors.Is(err, ErrUnknown) {
		t.Errorf("a ticket as a token: %v", err)
	}
	if _, err := write(t, lines...).CheckTicket(ticket, now); !errors.Is(err, ErrTicket) {
		t.Errorf("at another process: %v", err)
	}
	rewrite(t, f, hashB+" listen thumbs,pages until=2027-01-31")
	if err := f.Reload(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.CheckTicket(all, now); !errors.Is(err, ErrTicket) {
		t.Errorf("of a revoked token: %v", err)
	}
	if _, err := f.CheckTicket(ticket, now); err != nil {
		t.Errorf("of a token that remains: %v", err)
	}
}

// Servers with the same key in their files take each other's tickets.
func TestTicketsOfSeveralServers(t *testing.T) {
	lines := []string{hashA + " listen *", "ticket-key " + key64}
	p, err := write(t, lines...).Check("a", now)
	if err != nil {
		t.Fatal(err)
	}
	ticket, err := p.Ticket(nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := write(t, lines...).CheckTicket(ticket, now); err != nil {
		t.Error(err)
	}
	if _, err := write(t, lines[0], "ticket-key "+strings.Repeat("f0", 32)).CheckTicket(ticket, now); !errors.Is(err, ErrTicket) {
		t.Errorf("with another key: %v", err)
	}
}

func TestNoFile(t *testing.T) {
	f := NewFile()
	if err := f.Load(); err != nil || f.Enabled() || (*File)(nil).Enabled() {
		t.Errorf("%v, enabled: %t", err, f.Enabled())
	}
	f.Path = filepath.Join(t.TempDir(), "tokens")
	if err := f.Load(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(hashA + " send,listen a,b until=2027-01-31 # x\nticket-key " + key64))
	f.Add([]byte(hashA + " send *"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Parse(text)
		if err != nil {
			return
		}
		var again []string
		for _, e := range s.entries {
			again = append(again, e.grant.Line(e.hash))
		}
		if _, err := Parse([]byte(strings.Join(again, "\n"))); err != nil {
			t.Errorf("%q came from %q: %v", again, text, err)
		}
	})
}

func FuzzTicket(f *testing.F) {
	key := []byte(rand.Text())
	for _, text := range []string{"t1.1780315260.00112233445566778899aabbccddeeff.a,b", "t1.1.00.*", "t1.1780315260.0.*", "t1.x.00112233445566778899aabbccddeeff.*", "", "...."} {
		f.Add(text, true)
		f.Add(text, false)
	}
	f.Fuzz(func(t *testing.T, text string, signed bool) {
		ticket := text
		if signed { // as only a server can
			ticket += "." + sign(key, text)
		}
		id, queues, err := openTicket(key, ticket, now)
		if err != nil {
			return
		}
		if !signed {
			t.Errorf("%q is a ticket that nobody signed", ticket)
		}
		if !strings.HasSuffix(text, fmt.Sprintf(".%x.%s", id[:], queues)) && !strings.Contains(strings.ToLower(text), fmt.Sprintf("%x", id[:])) {
			t.Errorf("%q is read as %x, %v", text, id, queues)
		}
	})
}

func BenchmarkCheck(b *testing.B) {
	s := &Set{}
	for range 100 {
		s.entries = append(s.entries, new(entry))
	}
	token, _ := New()
	b.ReportAllocs()
	for b.Loop() {
		s.find(token)
	}
}
