//go:build linux

package boot

import (
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/revq/revq/internal/await"
)

func (b *bootTest) tokens(t *testing.T) {
	made := strings.Fields(b.Run(t, "revq", "token", "new", "--scope", "send,listen")) // and its line for the file
	b.Write(t, "/srv/tokens/tokens", strings.Join(made[1:], " ")+"\n")
	b.Write(t, "/srv/tokens/mine", made[0]+"\n")
	// Two other sites get them: whoever listens at the usual ones has no token.
	script, restart, found := strings.Cut(documented(t, "tokens"), "systemctl try-restart")
	if !found {
		t.Fatalf("the documented commands restart nothing: %s", restart)
	}
	b.Shell(t, "cd /srv/tokens\n"+script+"\nsystemctl start revq-api@7.socket revq-socket@6.socket")
	p := &poster{host: b.Host, site: "127.0.0.1:8087"}
	defer p.close()
	if err := p.post("without-token", "abc"); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a token: %v, want 401", err)
	}
	const send = "revq send --token-file /srv/tokens/mine --url http://127.0.0.1:8087 --socket-url ws://127.0.0.1:8086 --wait mnopqr"
	if got := b.Shell(t, send); got != "rqponm" {
		t.Errorf("revq send --wait printed %q, want rqponm", got)
	}
	for _, unit := range []string{"revq-api@7", "revq-socket@6"} {
		limits := b.Shell(t, "cat /proc/$(systemctl show --value -p MainPID "+unit+")/limits")
		if !regexp.MustCompile(`Max core file size +0 +0 `).MatchString(limits) {
			t.Errorf("%s may write a core:\n%s", unit, limits)
		}
	}
	next := b.replaceToken(t, script)
	for _, secret := range slices.Concat(made[:2], next[:2]) {
		if shown := b.shown(t, secret); shown != "0\n0" {
			t.Errorf("a token or its hash is in the journal, in files, or in properties of units (lines in each):\n%s", shown)
		}
	}
	b.Shell(t, "systemctl stop 'revq-api@7.*' 'revq-socket@6.*'; rm -r /etc/credstore/* /srv/tokens")
}

// replaceToken puts another token in the place of the first one, and returns it
// and its line. A reload is enough where systemd gives a service that runs the
// new content of its credentials, and the daemon says so where not. After a
// restart the first one is of no use.
func (b *bootTest) replaceToken(t *testing.T, install string) (next []string) {
	t.Helper()
	next = strings.Fields(b.Run(t, "revq", "token", "new", "--scope", "send,listen"))
	b.Write(t, "/srv/tokens/tokens", strings.Join(next[1:], " ")+"\n")
	b.Write(t, "/srv/tokens/next", next[0]+"\n")
	letIn := func(file string) bool {
		_, err := b.Try(t, "revq", "send", "--token-file", "/srv/tokens/"+file, "--url", "http://127.0.0.1:8087", "--text", "abc")
		return err == nil
	}
	b.Shell(t, "cd /srv/tokens\n"+install+"\nsystemctl reload revq-api@7 revq-socket@6")
	await.True(t, "the API reads the tokens again, or says that it cannot", func() bool {
		return letIn("next") || b.Shell(t, "journalctl --no-pager -u revq-api@7 | grep -c 'file of tokens has not changed' || true") != "0"
	})
	if mine, other := letIn("mine"), letIn("next"); mine == other {
		t.Errorf("after the reload, the first token lets in: %t, the next one: %t", mine, other)
	} else {
		t.Logf("systemd refreshes credentials on reload: %t", other)
	}
	b.Shell(t, "systemctl restart revq-api@7 revq-socket@6")
	if mine, other := letIn("mine"), letIn("next"); mine || !other {
		t.Errorf("after the restart, the first token lets in: %t, the next one: %t", mine, other)
	}
	return next
}
