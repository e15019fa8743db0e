package status

import (
	"slices"
	"testing"
)

// What systemctl show prints of units that do their work, have failed, or are
// started again and again.
func TestUnitsIn(t *testing.T) {
	t.Parallel()
	const shown = "Id=revq-api@1.service\nActiveState=active\nSubState=running\nResult=success\nStatusText=ready; 0 in flight\n\n" +
		"Id=revq-api@2.service\nActiveState=failed\nSubState=failed\nResult=exit-code\nStatusText=failed: --amqp-url: no host\n\n" +
		"Id=revq-worker@1.service\nActiveState=activating\nSubState=auto-restart\nResult=signal\nStatusText=\n\n" +
		"Id=revq-worker@7.service\nActiveState=deactivating\nSubState=stop-post\nResult=exit-code\nStatusText=failed: a flag\n\n" +
		"Id=revq-worker@8.service\nActiveState=deactivating\nSubState=stop-post\nResult=success\nStatusText=\n\n" +
		"Id=revq-api@2.socket\nActiveState=failed\nSubState=failed\nResult=trigger-limit-hit\n\n" +
		"Id=revq-setup.service\nActiveState=inactive\nSubState=dead\nResult=success\n"
	want := []Unit{
		{"revq-api@2.service", "has failed (exit-code): --amqp-url: no host"},
		{"revq-worker@1.service", "ends again and again (signal)"},
		{"revq-worker@7.service", "ends again and again (exit-code): a flag"},
		{"revq-api@2.socket", "has failed (trigger-limit-hit)"},
	}
	if got := unitsIn(shown); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := unitsIn(""); got != nil {
		t.Errorf("nothing is %q", got)
	}
}
