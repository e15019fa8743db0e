package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
)

// maxAnswer bounds what is read from an admin socket, in bytes: many times a
// status with a thousand tasks.
const maxAnswer = 4 << 20

// Read returns the status of the daemon whose admin socket is at path.
func Read(ctx context.Context, path string) (Status, error) {
	var s Status
	body, err := get(ctx, path, StatusPath)
	if err == nil {
		err = json.Unmarshal(body, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the status from %s: %w", path, err)
	}
	return s, nil
}

// get returns what the daemon with the socket at path answers to a request.
func get(ctx context.Context, path, of string) ([]byte, error) {
	transport := http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://admin"+of, nil)
	if err != nil {
		return nil, err
	}
	answer, err := transport.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > maxAnswer:
		return nil, fmt.Errorf("the answer has more than %d bytes", maxAnswer)
	case answer.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("the answer is %s", answer.Status)
	}
	return body, nil
}
