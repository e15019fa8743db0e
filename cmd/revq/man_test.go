package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// Every manual page names its flags, and mandoc understands it.
func TestManPages(t *testing.T) {
	pages := manPages(root(strings.NewReader(""), io.Discard, io.Discard))
	for path, wants := range map[string][]string{
		"man1/revq.1":              {".SH COMMANDS", `revq\-send(1)`, `revq\-api(8)`},
		"man1/revq-send.1":         {`\fB\-\-text\fR \fITEXT\fR`, "Variable: REVQ_API_URL", "revq(1)"},
		"man1/revq-dead-requeue.1": {`revq dead requeue`, "revq\\-dead(1)"},
		"man8/revq-api.8":          {`\fB\-\-max\-text\fR \fIBYTES\fR`, "Default: 65536.", "Variable: REVQ_MAX_TEXT.", ".SS limits"},
		"man8/revq-worker.8":       {`\fB\-\-pause\fR`},
	} {
		page, ok := pages[path]
		if !ok {
			t.Errorf("there is no %s", path)
		}
		for _, want := range wants {
			if !bytes.Contains(page, []byte(want)) {
				t.Errorf("%s does not have %q:\n%s", path, want, page)
			}
		}
	}
	mandoc, err := exec.LookPath("mandoc")
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("mandoc is not installed")
	}
	for path, page := range pages {
		lint := exec.Command(mandoc, "-T", "lint", "-W", "warning")
		lint.Stdin = bytes.NewReader(page)
		out, _ := lint.CombinedOutput() // the status only says that there is output
		for line := range strings.Lines(string(out)) {
			if !strings.Contains(line, "missing date") { // the same page comes from the same source
				t.Errorf("%s: %s", path, line)
			}
		}
	}
}
