package front

import (
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// An uploader is a connection that is sent bodies.
type uploader struct {
	*conn
	t      *testing.T
	client net.Conn
}

const mib = 1 << 20

func newUploader(t *testing.T, b *bodies) *uploader {
	client, server := net.Pipe()
	u := &uploader{(&listener{bodies: b, maxHeader: 1 << 10, total: new(gauge)}).take(server), t, client}
	t.Cleanup(func() { client.Close(); server.Close() })
	return u
}

// send sends text, and reads it as fasthttp would.
func (u *uploader) send(text string) error {
	u.t.Helper()
	go u.client.Write([]byte(text))
	for got := 0; got < len(text); {
		n, err := u.Read(make([]byte, 4*mib))
		if err != nil {
			return err
		}
		got += n
	}
	return nil
}

func (u *uploader) begin(length string) error {
	u.t.Helper()
	return u.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + length + "\r\n\r\n")
}

func (u *uploader) want(want *fault, err error) {
	u.t.Helper()
	if want == nil && err != nil || want != nil && err != want {
		u.t.Errorf("%v, want %v", err, want)
	}
}

func TestBodies(t *testing.T) {
	for name, story := range map[string]func(t *testing.T, b *bodies, next func() *uploader){
		"bodies have room up to the bound": func(_ *testing.T, b *bodies, next func() *uploader) {
			for range 4 {
				u := next()
				u.want(nil, u.begin("1048576"))
			}
			u := next()
			u.want(b.crowded, u.begin("1048576"))
			u.want(b.crowded, u.send("x")) // for good
		},
		"small ones need none": func(t *testing.T, b *bodies, next func() *uploader) {
			for range 1000 {
				u := next()
				u.want(nil, u.begin("16384"))
			}
			if b.sum != 0 {
				t.Errorf("%d bytes", b.sum)
			}
		},
		"nor do those that are refused for their size": func(t *testing.T, b *bodies, next func() *uploader) {
			u := next()
			u.want(nil, u.begin("999999999999"))
			if b.sum != 0 {
				t.Errorf("%d bytes", b.sum)
			}
		},
		"chunks count as they begin": func(t *testing.T, b *bodies, next func() *uploader) {
			u := next()
			u.want(nil, u.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"))
			if b.sum != 0 {
				t.Errorf("%d bytes of 4", b.sum)
			}
			u.want(nil, u.send("10000\r\n"))
			if b.sum != 1<<17 { // with 4 bytes before, and the line break
				t.Errorf("%d bytes", b.sum)
			}
		},
		"what was answered has no room any more": func(t *testing.T, b *bodies, next func() *uploader) {
			u := next()
			for range 10 { // the next request is read when this one was answered
				u.want(nil, u.begin("20000"))
				u.want(nil, u.send(string(make([]byte, 20000))))
				if b.sum != 1<<15 || len(b.receiving) != 0 {
					t.Errorf("%d bytes, %d are being received", b.sum, len(b.receiving))
				}
			}
			u.want(nil, u.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
			if b.sum != 0 {
				t.Errorf("%d bytes", b.sum)
			}
		},
		"nor has what was closed": func(t *testing.T, b *bodies, next func() *uploader) {
			u := next()
			u.want(nil, u.begin("1048576"))
			u.Close()
			if b.sum != 0 || len(b.receiving) != 0 {
				t.Errorf("%d bytes, %d are being received", b.sum, len(b.receiving))
			}
		},
		"one that brings nothing gives way, one that brings enough does not": func(_ *testing.T, _ *bodies, next func() *uploader) {
			slow := next()
			slow.want(nil, slow.begin("1048576"))
			slow.want(nil, slow.send(string(make([]byte, mib-100))))
			ended := make(chan error)
			go func() {
				_, err := slow.Read(make([]byte, 10))
				ended <- err
			}()
			quick := []*uploader{next(), next(), next()}
			for _, u := range quick {
				u.want(nil, u.begin("1048576"))
			}
			for range 3 {
				<-time.After(pieceTime)
				for _, u := range quick {
					u.want(nil, u.send(string(make([]byte, pieceBytes))))
				}
			}
			another := next()
			another.want(nil, another.begin("1048576"))
			slow.want(faultSlow, <-ended)
			for _, u := range quick {
				u.want(nil, u.send("x"))
			}
		},
		"those that gave way keep their memory until they end": func(t *testing.T, b *bodies, next func() *uploader) {
			slow := []*uploader{next(), next(), next(), next()}
			for _, u := range slow {
				u.want(nil, u.begin("1048576"))
			}
			<-time.After(2 * pieceTime)
			u := next()
			u.want(nil, u.begin("1048576"))
			u = next()
			u.want(b.crowded, u.begin("1048576"))
			if b.sum != 5*mib || b.leaving != mib {
				t.Errorf("%d bytes, of which %d leave", b.sum, b.leaving)
			}
			for _, u := range slow {
				if u.send("x") != nil {
					u.Close()
				}
			}
			u = next()
			u.want(nil, u.begin("1048576"))
		},
		"nobody gives way while there is room": func(_ *testing.T, _ *bodies, next func() *uploader) {
			slow, other := next(), next()
			slow.want(nil, slow.begin("1048576"))
			<-time.After(time.Minute)
			other.want(nil, other.begin("1048576"))
			slow.want(nil, slow.send("x"))
		},
		"what is being handled does not give way": func(_ *testing.T, b *bodies, next func() *uploader) {
			for range 4 {
				u := next()
				u.want(nil, u.begin("1048576"))
				u.want(nil, u.send(string(make([]byte, mib))))
			}
			<-time.After(time.Minute)
			u := next()
			u.want(b.crowded, u.begin("1048576"))
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBodies(4*mib, mib)
				story(t, b, func() *uploader { return newUploader(t, b) })
			})
		})
	}
}

// There is room for one body, however large: a setting must not shut it out.
func TestRoomForTheLargestBody(t *testing.T) {
	b := newBodies(mib, 6*mib)
	u := newUploader(t, b)
	u.want(nil, u.begin("6291456"))
	second := newUploader(t, b)
	second.want(b.crowded, second.begin("20000"))
}
