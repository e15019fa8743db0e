package api

import (
	"hash/maphash"
	"sync/atomic"
)

// maxAccepted is how many of the last accepted texts are known. They take
// 512 KiB, and no time of those who post.
const maxAccepted = 1 << 16

// accepted knows the last texts that were accepted, by a hash of their ids, so
// that an operator can be told whether a task exists that is seen nowhere else.
// It takes another id for a known one in one of 2^48 cases.
type accepted struct {
	seed maphash.Seed
	next atomic.Uint32
	last [maxAccepted]atomic.Uint64
}

func newAccepted() *accepted { return &accepted{seed: maphash.MakeSeed()} }

func (a *accepted) add(id string) {
	a.last[(a.next.Add(1)-1)%maxAccepted].Store(maphash.String(a.seed, id))
}

// Accepted reports whether the server has accepted a text with the id, as one
// of the last 65,536.
func (s *Server) Accepted(id string) bool {
	sum := maphash.String(s.accepted.seed, id)
	for i := range s.accepted.last {
		if s.accepted.last[i].Load() == sum {
			return true
		}
	}
	return false
}
