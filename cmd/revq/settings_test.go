package main

import (
	"flag"
	"os"
	"testing"

	"github.com/revq/revq/internal/program"
	"github.com/revq/revq/internal/setting"
)

var update = flag.Bool("update", false, "write the files that are made from the settings")

// The generated files agree with the declarations of the settings. The NixOS
// module makes its options of settings.json.
func TestSettingsFiles(t *testing.T) {
	for path, format := range map[string]string{
		"settings.json":                  "json",
		"SETTINGS.md":                    "markdown",
		"../../systemd/revq.env.example": "env",
	} {
		want, err := renderings[format](program.Sets())
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(path, want, 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
			t.Errorf("%s is not what the settings are: run go test ./cmd/revq -run SettingsFiles -update (%v)", path, err)
		}
	}
}

// Every setting has a description, and its default is within its bounds.
func TestSettings(t *testing.T) {
	for _, set := range program.Sets() {
		seen := make(map[string]bool)
		for _, s := range set.Settings {
			switch {
			case seen[s.Name]:
				t.Errorf("%s: --%s is declared twice", set.Program, s.Name)
			case s.Usage == "" || s.Group == "":
				t.Errorf("%s: --%s has no usage or no group", set.Program, s.Name)
			case s.Kind == setting.Int && s.Unit == "":
				t.Errorf("%s: --%s says not what it counts", set.Program, s.Name)
			case s.Max != 0 && s.Max < s.Min:
				t.Errorf("%s: --%s takes %s", set.Program, s.Name, s.Bounds())
			}
			seen[s.Name] = true
		}
	}
}
