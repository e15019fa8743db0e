package admin

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// The metrics of several daemons are one page: the first description counts,
// another type does not, and a daemon that does not answer is down.
func TestMerge(t *testing.T) {
	page := func(daemon, text string) scraped {
		parser := expfmt.NewTextParser(model.LegacyValidation)
		families, err := parser.TextToMetricFamilies(strings.NewReader(text))
		return scraped{daemon, families, err}
	}
	var log, got bytes.Buffer
	families := merge(slog.New(slog.NewTextHandler(&log, nil)), []scraped{
		page("api@1", "# HELP a_total Old words.\n# TYPE a_total counter\na_total{result=\"ok\"} 1\n# HELP b B.\n# TYPE b gauge\nb 5\n"),
		page("api@2", "# HELP a_total New words.\n# TYPE a_total counter\na_total{result=\"ok\"} 2\n# HELP b B.\n# TYPE b counter\nb 7\n"),
		{"worker@1", nil, errors.New("nothing came")},
		page("worker@2", "not a page"),
	})
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToText(&got, family); err != nil {
			t.Fatal(err)
		}
	}
	const want = `# HELP a_total Old words.
# TYPE a_total counter
a_total{result="ok",daemon="api@1"} 1
a_total{result="ok",daemon="api@2"} 2
# HELP b B.
# TYPE b gauge
b{daemon="api@1"} 5
# HELP revq_up 1 if the daemon has shown its metrics to revq metrics within 2.5s, else 0.
# TYPE revq_up gauge
revq_up{daemon="api@1"} 1
revq_up{daemon="api@2"} 1
revq_up{daemon="worker@1"} 0
revq_up{daemon="worker@2"} 0
`
	if got.String() != want {
		t.Errorf("the page is\n%swant\n%s", got.String(), want)
	}
	if !strings.Contains(log.String(), "metric=b") {
		t.Errorf("the metric that is left out is not told: %s", log.String())
	}
}
