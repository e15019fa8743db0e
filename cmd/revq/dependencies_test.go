package main

import (
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The tables in internal/README.md give the reason and licence of each
// dependency in go.mod, and name nothing else.
func TestDependencies(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json", "../../go.mod").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct {
		Require []struct{ Path string }
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	required := make(map[string]bool)
	for _, require := range mod.Require {
		required[require.Path] = true
	}
	page, err := os.ReadFile("../../internal/README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(page), "\n## Dependencies\n")
	section, _, _ = strings.Cut(section, "\n## ")
	explained := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| [^|]+ \\| [^|]+ \\|$").FindAllStringSubmatch(section, -1) {
		explained[row[1]] = true
	}
	for _, path := range slices.Sorted(maps.Keys(required)) {
		if !explained[path] {
			t.Errorf("%s is required without a reason: add it to a table in internal/README.md, section Dependencies", path)
		}
	}
	for _, path := range slices.Sorted(maps.Keys(explained)) {
		if !required[path] {
			t.Errorf("%s is in a table in internal/README.md but is not required: delete its row", path)
		}
	}
}
