package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/revq/revq/internal/command"
	"github.com/revq/revq/internal/program"
	"github.com/revq/revq/internal/setting"
)

// settings prints the settings of the daemons. The files that the NixOS module
// reads, the reference page and the example environment file are its output; a
// test compares them with it.
func settings() *cli.Command {
	format := "text"
	return &cli.Command{
		Name:  "settings",
		Usage: "list the settings of the daemons and of revq setup",
		Description: `Each setting is a flag of its program, and a variable for its environment.

EXAMPLES:
   revq settings
   revq settings --format json`,
		Flags: command.Flags([]setting.Setting{
			setting.OneOf("format", "`FORMAT` of the list: text, json, markdown, or env for an environment file", &format, "text", "json", "markdown", "env"),
		}),
		Action: func(_ context.Context, cmd *cli.Command) error {
			if err := command.NoArguments(cmd); err != nil {
				return err
			}
			page, err := renderings[strings.ToLower(format)](program.Sets())
			if err != nil {
				return err
			}
			_, err = cmd.Root().Writer.Write(page)
			return err
		},
	}
}

var renderings = map[string]func([]program.Set) ([]byte, error){
	"text":     settingsText,
	"json":     settingsJSON,
	"markdown": settingsMarkdown,
	"env":      settingsEnv,
}

func settingsText(sets []program.Set) ([]byte, error) {
	var page bytes.Buffer
	for i, set := range sets {
		if i > 0 {
			page.WriteByte('\n')
		}
		fmt.Fprintf(&page, "%s\n", set.Program)
		for _, s := range set.Settings {
			fmt.Fprintf(&page, "  --%s, %s\n      %s\n", s.Name, setting.Variable(s.Name), strings.ReplaceAll(s.Sentence(), "`", ""))
			if limits := limits(s); limits != "" {
				fmt.Fprintf(&page, "      %s\n", limits)
			}
		}
	}
	return page.Bytes(), nil
}

// limits returns a setting's default and bounds in words.
func limits(s setting.Setting) string {
	var parts []string
	if s.Default != "" && !s.Wiring {
		parts = append(parts, "Default "+s.Default+".")
	}
	if bounds := s.Bounds(); bounds != "" {
		parts = append(parts, "Takes "+strings.TrimSpace(bounds+" "+s.Unit)+".")
	}
	return strings.Join(parts, " ")
}

// A settingObject is a setting in JSON.
type settingObject struct {
	Program     string       `json:"program"`
	Role        string       `json:"role"`
	Name        string       `json:"name"`
	Variable    string       `json:"variable"`
	Kind        setting.Kind `json:"kind"`
	Unit        string       `json:"unit,omitempty"`
	Default     string       `json:"default"`
	Min         *any         `json:"min,omitempty"` // a number, or a duration as text
	Max         *any         `json:"max,omitempty"`
	Choices     []string     `json:"choices,omitempty"`
	Pattern     string       `json:"pattern,omitempty"`
	Description string       `json:"description"`
	Wiring      bool         `json:"wiring,omitempty"` // units and sockets decide it
}

func settingsJSON(sets []program.Set) ([]byte, error) {
	all := []settingObject{}
	for _, set := range sets {
		for _, s := range set.Settings {
			o := settingObject{
				Program: set.Program, Role: set.Role, Name: s.Name, Variable: setting.Variable(s.Name),
				Kind: s.Kind, Unit: s.Unit, Default: s.Default, Choices: s.Choices, Pattern: s.Pattern,
				Description: s.Sentence(), Wiring: s.Wiring,
			}
			if s.Kind == setting.Int || s.Kind == setting.Duration {
				o.Min = bound(s, s.Min)
				if s.Max != 0 {
					o.Max = bound(s, s.Max)
				}
			}
			all = append(all, o)
		}
	}
	var page bytes.Buffer
	encoder := json.NewEncoder(&page)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(all)
	return page.Bytes(), err
}

func bound(s setting.Setting, n int64) *any {
	var value any = n
	if s.Kind == setting.Duration {
		value = time.Duration(n).String()
	}
	return &value
}

func settingsMarkdown(sets []program.Set) ([]byte, error) {
	var page bytes.Buffer
	io.WriteString(&page, `# Settings

`+"`revq settings --format markdown`"+` prints this page. Each setting is a flag of its program and a variable for its
environment: `+"`--max-text` is `REVQ_MAX_TEXT`"+`. The flag wins over the variable. Give a duration as a number and a unit,
such as `+"`500ms`, `10s` or `1m30s`"+`.
`)
	for _, set := range sets {
		fmt.Fprintf(&page, "\n## %s\n\n| flag | what it sets | default | takes |\n|---|---|---|---|\n", set.Program)
		for _, s := range set.Settings {
			value := s.Default
			if value != "" && !s.Wiring {
				value = "`" + value + "`"
			}
			fmt.Fprintf(&page, "| `--%s` | %s | %s | %s |\n", s.Name, s.Sentence(), value, strings.TrimSpace(s.Bounds()+" "+s.Unit))
		}
	}
	return page.Bytes(), nil
}

func settingsEnv(sets []program.Set) ([]byte, error) {
	var page bytes.Buffer
	io.WriteString(&page, `# Settings for revq's daemons, one line each. `+"`revq settings --format env`"+` prints this file.
# Copy the lines that you need to one of
#   /etc/revq/revq.env            all daemons
#   /etc/revq/revq-worker.env     the daemons of one kind; likewise revq-api.env, revq-socket.env, revq-setup.env
#   /etc/revq/revq-worker@2.env   one instance
# The later ones win. Then restart what the setting is for: systemctl restart 'revq-worker@*'
#
# No secrets here: the broker's URL is a credential (/etc/revq/worker.amqp-url and so on).
`)
	for _, set := range sets {
		fmt.Fprintf(&page, "\n### %s\n", set.Program)
		for _, s := range set.Settings {
			if s.Wiring {
				continue
			}
			text := strings.ReplaceAll(s.Sentence(), "`", "")
			if bounds := s.Bounds(); bounds != "" {
				text += " Takes " + strings.TrimSpace(bounds+" "+s.Unit) + "."
			}
			fmt.Fprintf(&page, "\n%s#%s=%s\n", wrap("# ", text, 100), setting.Variable(s.Name), s.Default)
		}
	}
	return page.Bytes(), nil
}

// wrap breaks text into lines of at most width columns that begin with prefix.
func wrap(prefix, text string, width int) string {
	var page strings.Builder
	line := prefix
	for i, word := range strings.Fields(text) {
		if i > 0 && len(line)+1+len(word) > width {
			page.WriteString(line + "\n")
			line = prefix + word
			continue
		}
		if line != prefix {
			line += " "
		}
		line += word
	}
	return page.String() + line + "\n"
}
