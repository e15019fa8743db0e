// Package wiretest holds the servers to their OpenAPI document, for tests.
package wiretest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/revq/revq/internal/wire"
)

// A Document is the OpenAPI document of both servers.
type Document struct {
	Paths      map[string]map[string]json.RawMessage
	Components struct{ Responses map[string]response }

	path     string
	compiler *jsonschema.Compiler
}

type operation struct {
	Tags      []string
	Responses map[string]response
}

type response struct {
	Ref     string `json:"$ref"` // to one of the document's components
	Content map[string]json.RawMessage
}

// Open reads the document.
func Open(t *testing.T) *Document {
	t.Helper()
	_, self, _, _ := runtime.Caller(0)
	d := &Document{path: filepath.Join(filepath.Dir(self), "..", "openapi.json"), compiler: jsonschema.NewCompiler()}
	d.compiler.AssertFormat()
	b, err := os.ReadFile(d.path)
	if err == nil {
		err = json.Unmarshal(b, d)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// methods are those of a path that can be operations.
var methods = []string{"get", "head", "post", "put", "delete", "patch"}

// operation returns what the document says of a method at a path.
func (d *Document) operation(t *testing.T, path, method string) (op operation, found bool) {
	t.Helper()
	raw, found := d.Paths[path][strings.ToLower(method)]
	if found {
		if err := json.Unmarshal(raw, &op); err != nil {
			t.Fatal(err)
		}
	}
	return op, found
}

// CheckRoutes fails unless the routes of a server, paths with their methods, are
// those that the document has with the server's tag. A path that ends with a
// slash takes a name.
func (d *Document) CheckRoutes(t *testing.T, tag string, routes map[string][]string) {
	t.Helper()
	var have, want []string
	for path, of := range routes {
		for _, method := range of {
			have = append(have, method+" "+path)
		}
	}
	for path := range d.Paths {
		for _, method := range methods {
			if op, ok := d.operation(t, path, method); ok && slices.Contains(op.Tags, tag) {
				name, _, _ := strings.Cut(path, "{")
				want = append(want, strings.ToUpper(method)+" "+name)
			}
		}
	}
	slices.Sort(have)
	slices.Sort(want)
	if !slices.Equal(have, want) {
		t.Errorf("the routes of %s are %q, the document has %q", tag, have, want)
	}
}

// CheckAnswer returns what the document has against an answer to a method at a
// path, as the document writes it.
func (d *Document) CheckAnswer(t *testing.T, method, path string, status int, header http.Header, body []byte) error {
	t.Helper()
	op, found := d.operation(t, path, method)
	if !found {
		if status == http.StatusMethodNotAllowed || status == http.StatusNotFound || status == http.StatusNotImplemented {
			return d.validate(t, "#/components/schemas/Problem", body)
		}
		return fmt.Errorf("the document has no %s %s, but the answer is %d", method, path, status)
	}
	response, found := op.Responses[strconv.Itoa(status)]
	if !found {
		return fmt.Errorf("the document has no status %d", status)
	}
	escape := strings.NewReplacer("~", "~0", "/", "~1", " ", "%20").Replace
	at := fmt.Sprintf("#/paths/%s/%s/responses/%d", escape(path), strings.ToLower(method), status)
	if response.Ref != "" {
		at = response.Ref
		response = d.Components.Responses[at[strings.LastIndexByte(at, '/')+1:]]
	}
	kind := header.Get("Content-Type")
	if len(response.Content) == 0 {
		if len(body) > 0 {
			return fmt.Errorf("the document has no content, but the answer is %q", body)
		}
		return nil
	}
	if _, found = response.Content[kind]; !found {
		return fmt.Errorf("the document has no content of the type %q", kind)
	}
	at += "/content/" + escape(kind) + "/schema"
	switch media, _, _ := mime.ParseMediaType(kind); media {
	case "application/json", wire.ProblemType:
		return d.validate(t, at, body)
	case "application/x-ndjson":
		for line := range bytes.Lines(body) {
			if err := d.validate(t, at, line); err != nil {
				return err
			}
		}
	case "text/plain":
		quoted, err := json.Marshal(string(body))
		if err != nil {
			return err
		}
		return d.validate(t, at, quoted)
	}
	return nil
}

// validate returns what a schema of the document has against a JSON value.
func (d *Document) validate(t *testing.T, at string, body []byte) error {
	t.Helper()
	schema, err := d.compiler.Compile(d.path + at)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("%.200q: %w", body, err)
	}
	return schema.Validate(value)
}
