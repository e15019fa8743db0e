package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
)

// maxAnswer bounds what is read from an admin socket, in bytes: many times a
// status with a thousand tasks.
const maxAnswer = 4 << 20

// Read returns the status of the daemon whose admin socket is at path.
func Read(ctx context.Context, path string) (s Status, err error) {
	if err := read(ctx, path, StatusPath, &s); err != nil {
		return s, fmt.Errorf("read the status from %s: %w", path, err)
	}
	return s, nil
}

// FindTask returns what the daemon whose admin socket is at path knows of a task.
func FindTask(ctx context.Context, path, id string) (k Known, err error) {
	if err := read(ctx, path, TasksPath+url.PathEscape(id), &k); err != nil {
		return k, fmt.Errorf("ask at %s for the task: %w", path, err)
	}
	return k, nil
}

// read decodes the JSON that a daemon answers.
func read(ctx context.Context, path, of string, to any) error {
	body, err := get(ctx, path, of)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, to)
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
