//go:build linux

package foreign

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fasthttp/websocket"

	"github.com/revq/revq/internal/await"
)

// A Tab is a page in Chromium that a test uses as a person would: it looks, it
// types, it presses keys. It speaks the DevTools protocol, of which these few
// commands are not worth a library.
type Tab struct {
	t    *testing.T
	conn *websocket.Conn
	last int
	said []string // errors and warnings of the page and of its policy
}

// OpenTab opens a page. Its console must stay empty until the test ends, except
// for what allowed contains.
func OpenTab(t *testing.T, url string, allowed ...string) *Tab {
	t.Helper()
	dir := Open(t, Chromium(t), "about:blank")
	var port string
	await.True(t, "Chromium says where it is", func() bool {
		b, _ := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		var ok bool
		port, _, ok = strings.Cut(string(b), "\n")
		return ok
	})
	client := &http.Client{Timeout: await.Patience}
	var targets []struct {
		Type string
		URL  string `json:"webSocketDebuggerUrl"`
	}
	var address string
	await.True(t, "Chromium has a page", func() bool {
		res, err := client.Get("http://127.0.0.1:" + port + "/json/list")
		if err != nil {
			return false
		}
		defer res.Body.Close()
		if err := json.NewDecoder(res.Body).Decode(&targets); err != nil {
			return false
		}
		for _, target := range targets {
			if target.Type == "page" {
				address = target.URL
			}
		}
		return address != ""
	})
	conn, _, err := websocket.DefaultDialer.Dial(address, http.Header{})
	if err != nil {
		t.Fatal(err)
	}
	p := &Tab{t: t, conn: conn}
	t.Cleanup(func() {
		conn.Close()
		for _, said := range p.said {
			if !containsAny(said, allowed) {
				t.Errorf("the page's console says %s", said)
			}
		}
	})
	p.do("Runtime.enable", nil)
	p.do("Log.enable", nil)
	p.do("Page.enable", nil)
	p.do("Page.navigate", map[string]any{"url": url})
	p.Await(`document.readyState == "complete" && location.href != "about:blank"`)
	return p
}

func containsAny(s string, parts []string) bool {
	for _, part := range parts {
		if strings.Contains(s, part) {
			return true
		}
	}
	return false
}

// do sends a command and returns its result.
func (p *Tab) do(method string, params map[string]any) json.RawMessage {
	p.t.Helper()
	p.last++
	deadline := time.Now().Add(await.Patience)
	if err := p.conn.SetWriteDeadline(deadline); err != nil {
		p.t.Fatal(err)
	}
	if err := p.conn.SetReadDeadline(deadline); err != nil {
		p.t.Fatal(err)
	}
	if err := p.conn.WriteJSON(map[string]any{"id": p.last, "method": method, "params": params}); err != nil {
		p.t.Fatal(err)
	}
	for {
		var m struct {
			ID     int
			Method string
			Params json.RawMessage
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		if err := p.conn.ReadJSON(&m); err != nil {
			p.t.Fatalf("%s: %v", method, err)
		}
		switch {
		case m.Method == "Log.entryAdded", m.Method == "Runtime.exceptionThrown", m.Method == "Runtime.consoleAPICalled":
			p.said = append(p.said, string(m.Params))
		case m.ID == p.last && m.Error != nil:
			p.t.Fatalf("%s: %s", method, m.Error.Message)
		case m.ID == p.last:
			return m.Result
		}
	}
}

// Eval returns the value of an expression in the page.
func (p *Tab) Eval(expression string) any {
	p.t.Helper()
	var got struct {
		Result           struct{ Value any }
		ExceptionDetails json.RawMessage
	}
	if err := json.Unmarshal(p.do("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}), &got); err != nil {
		p.t.Fatal(err)
	}
	if got.ExceptionDetails != nil {
		p.t.Fatalf("%s: %s", expression, got.ExceptionDetails)
	}
	return got.Result.Value
}

// Await waits until an expression is true.
func (p *Tab) Await(expression string) {
	p.t.Helper()
	await.Nil(p.t, expression, func() error {
		if p.Eval(expression) == true {
			return nil
		}
		return fmt.Errorf("the page shows %q", p.Eval("document.body?.innerText"))
	})
}

// Write types a text into the element that has the focus.
func (p *Tab) Write(text string) {
	p.t.Helper()
	p.do("Input.insertText", map[string]any{"text": text})
}

// Press presses a key, with modifiers as the protocol has them: 2 is Ctrl, 8 is
// Shift.
func (p *Tab) Press(key string, code, modifiers int) {
	p.t.Helper()
	for _, kind := range []string{"rawKeyDown", "keyUp"} {
		params := map[string]any{"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
		if kind == "rawKeyDown" && key == "Enter" {
			params["type"], params["text"] = "keyDown", "\r"
		}
		p.do("Input.dispatchKeyEvent", params)
	}
}

// Size makes the window as large as a device's, in CSS pixels.
func (p *Tab) Size(width, height int) {
	p.t.Helper()
	p.do("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": height, "deviceScaleFactor": 2, "mobile": width < 600})
}

// Prefer sets what the user prefers: a colour scheme.
func (p *Tab) Prefer(scheme string) {
	p.t.Helper()
	p.do("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}}) //nolint:misspell // the name of a media feature
}

// Shoot keeps a screenshot in the directory of REVQ_SCREENSHOTS, if it is set.
func (p *Tab) Shoot(name string) {
	p.t.Helper()
	dir := os.Getenv("REVQ_SCREENSHOTS")
	if dir == "" {
		return
	}
	p.Eval("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")
	var got struct{ Data string }
	if err := json.Unmarshal(p.do("Page.captureScreenshot", map[string]any{"format": "png"}), &got); err != nil {
		p.t.Fatal(err)
	}
	b, err := base64.StdEncoding.DecodeString(got.Data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, fmt.Sprintf("%s.png", name)), b, 0o644)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}
