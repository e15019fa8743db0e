// Package token decides who may send and listen: tokens, the file that lists
// them, and tickets, which stand for a token for a short time.
//
// A token is 32 random bytes as text. The file holds the SHA-256 hash of each
// token and what it permits. A plain hash is enough, since nobody can guess
// that many random bytes; whoever reads the file gets no token.
//
// Nothing here logs, and no error holds a token, a ticket, a hash or a line of
// the file.
package token

import (
	"bufio"
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/revq/revq/internal/wire"
)

// A Scope is a kind of request that a token permits. Scopes can be joined
// with |.
type Scope uint8

// The scopes.
const (
	Send   Scope = 1 << iota // post texts
	Listen                   // receive results
)

var scopeNames = []struct {
	scope Scope
	name  string
}{{Send, "send"}, {Listen, "listen"}}

func (s Scope) String() string {
	var names []string
	for _, of := range scopeNames {
		if s&of.scope != 0 {
			names = append(names, of.name)
		}
	}
	return strings.Join(names, ",")
}

// ParseScope parses scopes as String returns them.
func ParseScope(text string) (Scope, error) {
	var s Scope
	for name := range strings.SplitSeq(text, ",") {
		i := slices.IndexFunc(scopeNames, func(of struct {
			scope Scope
			name  string
		}) bool {
			return of.name == name
		})
		if i < 0 {
			return 0, errors.New("the scope must be send, listen, or send,listen")
		}
		s |= scopeNames[i].scope
	}
	return s, nil
}

// MaxQueues is how many queues a token can be for: a listener's costs a
// comparison for each result.
const MaxQueues = 32

// AllQueues stands for all queues in the file.
const AllQueues = "*"

// Queues are the names of the queues that a token is for; nil stands for all.
type Queues []string

func (q Queues) String() string {
	if q == nil {
		return AllQueues
	}
	return strings.Join(q, ",")
}

// Covers reports whether all queues of other are among q.
func (q Queues) Covers(other Queues) bool {
	if q == nil {
		return true
	}
	if other == nil {
		return false
	}
	return !slices.ContainsFunc(other, func(name string) bool { return !slices.Contains(q, name) })
}

// ParseQueues parses queues as String returns them.
func ParseQueues(text string) (Queues, error) {
	if text == AllQueues {
		return nil, nil
	}
	var q Queues
	if strings.Count(text, ",") >= MaxQueues {
		return nil, fmt.Errorf("there are more than %d queues: give the token * or make several tokens", MaxQueues)
	}
	for name := range strings.SplitSeq(text, ",") {
		if err := wire.CheckQueue(name); err != nil {
			return nil, fmt.Errorf("the queues must be * or names with commas between them: %w", err)
		}
		q = append(q, name)
	}
	return q, nil
}

// A Grant is what a token permits.
type Grant struct {
	Scope   Scope
	Queues  Queues
	Expires time.Time // zero if never
}

// Line returns the line of the file for a token with this hash.
func (g Grant) Line(hash [sha256.Size]byte) string {
	line := fmt.Sprintf("%x %s %s", hash, g.Scope, g.Queues)
	if !g.Expires.IsZero() {
		line += " until=" + g.Expires.UTC().Format(time.RFC3339)
	}
	return line
}

// prefix begins every token, so that scanners for secrets recognise one.
const prefix = "revq_"

// New returns a new token and its hash.
func New() (string, [sha256.Size]byte) {
	var secret [32]byte
	_, _ = rand.Read(secret[:]) // never fails
	text := prefix + base64.RawURLEncoding.EncodeToString(secret[:])
	return text, sha256.Sum256([]byte(text))
}

// The limits of a file. A check hashes one token and compares it with all
// others: 100 take about 7 µs.
const (
	MaxFile   = 1 << 20 // bytes
	MaxTokens = 10_000
)

// keyWord begins the line with the key of tickets.
const keyWord = "ticket-key"

// An entry is a token in a file.
type entry struct {
	hash  [sha256.Size]byte
	id    [idSize]byte
	grant Grant
}

// A Set is the tokens of a file. It does not change.
type Set struct {
	entries []*entry
	byID    map[[idSize]byte]*entry
	key     []byte // of tickets
}

// Parse parses a file. Each line is empty, a comment that begins with #, or
//
//	HASH SCOPES QUEUES [until=TIME]
//	ticket-key KEY
//
// HASH is the SHA-256 hash of a token in hexadecimal digits, SCOPES is send,
// listen, or both with a comma, QUEUES is * or names with commas, and TIME is
// as 2027-01-31 or 2027-01-31T12:00:00Z. KEY is 64 hexadecimal digits. Errors
// name the number of the line.
func Parse(text []byte) (*Set, error) {
	if len(text) > MaxFile {
		return nil, fmt.Errorf("it is longer than %d bytes", MaxFile)
	}
	s := &Set{byID: make(map[[idSize]byte]*entry)}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, MaxFile+1)
	for n := 1; lines.Scan(); n++ {
		if err := s.parseLine(lines.Text()); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if len(s.entries) == 0 {
		return nil, errors.New("it has no token: make one with revq token new")
	}
	return s, nil
}

func (s *Set) parseLine(line string) error {
	fields := strings.Fields(line)
	if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
		return nil
	}
	if at := slices.IndexFunc(fields, func(f string) bool { return strings.HasPrefix(f, "#") }); at > 0 {
		fields = fields[:at]
	}
	if fields[0] == keyWord {
		return s.parseKey(fields[1:])
	}
	if strings.HasPrefix(fields[0], prefix) {
		return errors.New("this is a token: the file holds the hashes of tokens, which revq token new prints; replace the token, since others may have read it")
	}
	if len(fields) < 3 || len(fields) > 4 {
		return errors.New("give HASH SCOPES QUEUES, and until=TIME if the token is to expire, as revq token new prints them")
	}
	e := new(entry)
	if n, err := hex.Decode(e.hash[:], []byte(first(fields[0], 2*sha256.Size))); err != nil || n != sha256.Size || len(fields[0]) != 2*sha256.Size {
		return errors.New("the line must begin with a hash of 64 hexadecimal digits, as revq token new prints it")
	}
	var err error
	if e.grant.Scope, err = ParseScope(fields[1]); err != nil {
		return err
	}
	if e.grant.Queues, err = ParseQueues(fields[2]); err != nil {
		return err
	}
	if len(fields) == 4 {
		if e.grant.Expires, err = parseUntil(fields[3]); err != nil {
			return err
		}
	}
	if slices.ContainsFunc(s.entries, func(other *entry) bool { return other.hash == e.hash }) {
		return errors.New("the hash is there twice")
	}
	if len(s.entries) == MaxTokens {
		return fmt.Errorf("there are more than %d tokens", MaxTokens)
	}
	e.id = idOf(e.hash)
	s.entries, s.byID[e.id] = append(s.entries, e), e
	return nil
}

func first(text string, n int) string { return text[:min(n, len(text))] }

func (s *Set) parseKey(fields []string) error {
	if s.key != nil {
		return errors.New("there is more than one " + keyWord)
	}
	if len(fields) == 1 && len(fields[0]) == 2*sha256.Size {
		if key, err := hex.DecodeString(fields[0]); err == nil {
			s.key = key
			return nil
		}
	}
	return errors.New(keyWord + " must have 64 hexadecimal digits, as openssl rand -hex 32 prints them")
}

func parseUntil(field string) (time.Time, error) {
	text, ok := strings.CutPrefix(field, "until=")
	if ok {
		for _, layout := range []string{time.RFC3339, time.DateOnly} {
			if t, err := time.Parse(layout, text); err == nil {
				return t, nil
			}
		}
	}
	return time.Time{}, errors.New("after the queues there may be until=TIME, as until=2027-01-31 or until=2027-01-31T12:00:00Z")
}

// find returns the entry of a token, or nil. It takes the same time for each
// token that is not there, however similar it is to one that is.
func (s *Set) find(token string) *entry {
	hash := sha256.Sum256([]byte(token))
	at := -1
	for i := range s.entries {
		at = subtle.ConstantTimeSelect(subtle.ConstantTimeCompare(s.entries[i].hash[:], hash[:]), i, at)
	}
	if at < 0 {
		return nil
	}
	return s.entries[at]
}

// idSize is the length of an entry's id in bytes.
const idSize = 16

// idOf returns what tells a token from others without giving its hash away.
// Tickets hold it.
func idOf(hash [sha256.Size]byte) (id [idSize]byte) {
	sum := sha256.Sum256(append([]byte("revq id of a token "), hash[:]...))
	copy(id[:], sum[:])
	return id
}

func (e *entry) expired(now time.Time) bool {
	return !e.grant.Expires.IsZero() && !now.Before(e.grant.Expires)
}

// The reasons why a token or a ticket is refused.
var (
	ErrUnknown = errors.New("the token is not known here")
	ErrExpired = errors.New("the token has expired")
	ErrTicket  = errors.New("the ticket is not valid here, or not any more: get a new one with POST " + wire.TicketPath)
)

// MaxTicket is how long a ticket is valid. A page uses it at once; what is
// longer gives whoever reads it in a proxy's log more time.
const MaxTicket = time.Minute

// ticketVersion begins a ticket. The rest is when it ends (Unix seconds), the id
// of the token, the queues, and the code that only the holder of the key can
// make, with dots between them.
const ticketVersion = "t1"

func sign(key []byte, text string) string {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
}

// makeTicket returns a ticket for listening to queues.
func makeTicket(key []byte, e *entry, queues Queues, ends time.Time) string {
	text := fmt.Sprintf("%s.%d.%x.%s", ticketVersion, ends.Unix(), e.id[:], queues)
	return text + "." + sign(key, text)
}

// openTicket returns the id and the queues of a ticket that was made with key
// and has not ended.
func openTicket(key []byte, ticket string, now time.Time) (id [idSize]byte, queues Queues, err error) {
	at := strings.LastIndexByte(ticket, '.')
	if at < 0 || !hmac.Equal([]byte(sign(key, ticket[:at])), []byte(ticket[at+1:])) {
		return id, nil, ErrTicket
	}
	parts := strings.Split(ticket[:at], ".")
	if len(parts) != 4 || parts[0] != ticketVersion {
		return id, nil, ErrTicket
	}
	ends, err := strconv.ParseInt(parts[1], 10, 64)
	if left := time.Unix(ends, 0).Sub(now); err != nil || left <= 0 || left > MaxTicket+time.Second {
		return id, nil, ErrTicket
	}
	if n, err := hex.Decode(id[:], []byte(first(parts[2], 2*idSize))); err != nil || n != idSize || len(parts[2]) != 2*idSize {
		return id, nil, ErrTicket
	}
	if queues, err = ParseQueues(parts[3]); err != nil {
		return id, nil, ErrTicket
	}
	return id, queues, nil
}
