package token

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/revq/revq/internal/setting"
)

// A File is the file with the tokens of a daemon. Its methods may be called
// from several goroutines, except Load and Reload, which one calls.
type File struct {
	// Path is where the file is; "" if everyone may do everything.
	Path string

	text    []byte // as it was last read
	current atomic.Pointer[Set]
	key     [32]byte // of tickets, if the file has none
}

// NewFile returns a File without tokens.
func NewFile() *File {
	f := &File{}
	_, _ = rand.Read(f.key[:]) // never fails
	return f
}

// credentialName is the name of the file in $CREDENTIALS_DIRECTORY, where
// systemd puts secrets.
const credentialName = "tokens"

// Settings declares where the file is.
func (f *File) Settings() []setting.Setting {
	s := setting.String("tokens", "let in only those who have a token that is listed in `FILE`", &f.Path, nil).
		With("`revq token new` makes tokens. Without the file, everyone who reaches the port is let in. SIGHUP reads it again.")
	s.Wiring = true
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" {
		if path := filepath.Join(dir, credentialName); exists(path) {
			f.Path = path
		}
	}
	return setting.In("tokens", s)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Enabled reports whether there is a file. Nil has none.
func (f *File) Enabled() bool { return f != nil && f.Path != "" }

// Load reads the file, if there is one.
func (f *File) Load() error {
	if !f.Enabled() {
		return nil
	}
	text, set, err := f.read()
	if err != nil {
		return err
	}
	f.text = text
	f.current.Store(set)
	return nil
}

// ErrUnchanged is the error of Reload if there is nothing new in the file.
var ErrUnchanged = errors.New("the file of tokens has not changed: if systemd does not refresh it on reload, restart instead")

// Reload reads the file again. If it is wrong, nothing changes.
func (f *File) Reload() error {
	text, set, err := f.read()
	switch {
	case err != nil:
		return err
	case bytes.Equal(text, f.text):
		return ErrUnchanged
	}
	f.text = text
	f.current.Store(set)
	return nil
}

func (f *File) read() ([]byte, *Set, error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return nil, nil, fmt.Errorf("--tokens: %w", err)
	}
	defer file.Close()
	text, err := io.ReadAll(io.LimitReader(file, MaxFile+1))
	if err != nil {
		return nil, nil, fmt.Errorf("--tokens: %w", err)
	}
	set, err := Parse(text)
	if err != nil {
		return nil, nil, fmt.Errorf("--tokens: %s: %w", f.Path, err)
	}
	return text, set, nil
}

// A Permit is what the holder of a token may do, for as long as Valid.
type Permit struct {
	Grant

	from *File
	id   [idSize]byte
}

func (f *File) permit(e *entry, grant Grant) *Permit {
	return &Permit{Grant: grant, from: f, id: e.id}
}

// Valid reports whether the token is still in the file, has not expired, and
// still permits as much. It is one look-up.
func (p *Permit) Valid(now time.Time) bool {
	e := p.from.current.Load().byID[p.id]
	return e != nil && !e.expired(now) && e.grant.Scope&p.Scope == p.Scope && e.grant.Queues.Covers(p.Queues)
}

// Check returns what the holder of a token may do.
func (f *File) Check(token string, now time.Time) (*Permit, error) {
	switch e := f.current.Load().find(token); {
	case e == nil:
		return nil, ErrUnknown
	case e.expired(now):
		return nil, ErrExpired
	default:
		return f.permit(e, e.grant), nil
	}
}

// CheckTicket returns what the holder of a ticket may do: listen, to the
// ticket's queues.
func (f *File) CheckTicket(ticket string, now time.Time) (*Permit, error) {
	set := f.current.Load()
	id, queues, err := openTicket(f.ticketKey(set), ticket, now)
	if err != nil {
		return nil, err
	}
	e := set.byID[id]
	if e == nil || e.expired(now) || e.grant.Scope&Listen == 0 || !e.grant.Queues.Covers(queues) {
		return nil, ErrTicket
	}
	return f.permit(e, Grant{Scope: Listen, Queues: queues, Expires: e.grant.Expires}), nil
}

// Ticket returns a ticket with which whoever has it may listen to queues until
// MaxTicket from now. The permit must allow that.
func (p *Permit) Ticket(queues Queues, now time.Time) (string, error) {
	set := p.from.current.Load()
	e := set.byID[p.id]
	if e == nil || p.Scope&Listen == 0 || !p.Queues.Covers(queues) {
		return "", ErrUnknown // revoked just now, or the caller did not check
	}
	return makeTicket(p.from.ticketKey(set), e, queues, now.Add(MaxTicket)), nil
}

// ticketKey returns the key of tickets: the file's, so that all servers with
// that file agree, or this process's own.
func (f *File) ticketKey(set *Set) []byte {
	if set.key != nil {
		return set.key
	}
	return f.key[:]
}
