package command

import (
	"bytes"
	"fmt"
	"io"
	"regexp"
	"strings"

	"github.com/urfave/cli/v3"
)

// ManPage returns the manual page of cmd in a section of the manual, in the man
// macros of roff. parents are the names of the commands above cmd. The page
// refers to their pages and to those in more, such as "revq-api(8)".
func ManPage(cmd *cli.Command, section int, parents []string, more ...string) []byte {
	m := man{}
	name := strings.Join(append(parents, cmd.Name), "-")
	invoked := strings.Join(append(parents, cmd.Name), " ")
	fmt.Fprintf(&m, ".TH %s %d \"\" \"revq %s\"\n", strings.ToUpper(name), section, Version())
	m.section("NAME")
	m.line(name + " - " + cmd.Usage)
	m.section("SYNOPSIS")
	synopsis := invoked
	if len(cmd.Commands) > 0 {
		synopsis += " COMMAND"
	}
	m.line(strings.TrimSpace(synopsis + " [OPTION ...] " + cmd.ArgsUsage))
	if cmd.Description != "" {
		m.section("DESCRIPTION")
		m.text(cmd.Description)
	}
	var see []string
	if commands := cmd.VisibleCommands(); len(commands) > 0 {
		m.section("COMMANDS")
		for _, sub := range commands {
			m.item(sub.Name, sub.Usage+".")
			see = append(see, fmt.Sprintf("%s-%s(%d)", name, sub.Name, section))
		}
	}
	m.options(cmd)
	m.section("EXIT STATUS")
	m.item(fmt.Sprint(StatusOK), "Success.")
	m.item(fmt.Sprint(StatusFailed), "The command failed.")
	m.item(fmt.Sprint(StatusUsage), "A flag, a variable or an argument is wrong: trying again does not help.")
	for i := range parents {
		see = append(see, fmt.Sprintf("%s(%d)", strings.Join(parents[:i+1], "-"), section))
	}
	if see = append(see, more...); len(see) > 0 {
		m.section("SEE ALSO")
		m.line(strings.Join(see, ", "))
	}
	return m.Bytes()
}

// A man is a manual page.
type man struct{ bytes.Buffer }

func (m *man) section(title string) { fmt.Fprintf(m, ".SH %s\n", title) }

// line writes a line of text, escaped: to roff, a line that begins with a period
// or an apostrophe is a macro.
func (m *man) line(text string) { io.WriteString(m, escapeRoff(text)+"\n") }

func (m *man) item(term, text string) {
	fmt.Fprintf(m, ".TP\n\\fB%s\\fR\n", escapeRoff(term))
	m.line(text)
}

// text writes paragraphs. Indented lines are printed as they are. Lines in
// capitals that end with a colon are headings.
func (m *man) text(text string) {
	verbatim, paragraph := false, false // the next line begins a paragraph
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" && !verbatim {
			paragraph = true
			continue
		}
		if indented := strings.HasPrefix(line, "  "); indented != verbatim {
			m.WriteString(map[bool]string{true: ".EX\n", false: ".EE\n"}[indented])
			verbatim, paragraph = indented, !indented
		}
		if heading.MatchString(line) {
			m.section(strings.TrimSuffix(line, ":"))
			paragraph = false
			continue
		}
		if paragraph {
			m.WriteString(".PP\n")
			paragraph = false
		}
		m.line(line)
	}
	if verbatim {
		m.WriteString(".EE\n")
	}
}

var heading = regexp.MustCompile(`^[A-Z][A-Z ]+:$`)

// options writes the flags under their categories, in the order in which they
// are declared.
func (m *man) options(cmd *cli.Command) {
	var categories []string
	flags := make(map[string][]cli.Flag)
	for _, f := range cmd.Flags {
		category := ""
		if c, ok := f.(cli.CategorizableFlag); ok {
			category = c.GetCategory()
		}
		if flags[category] == nil {
			categories = append(categories, category)
		}
		flags[category] = append(flags[category], f)
	}
	if len(categories) == 0 {
		return
	}
	m.section("OPTIONS")
	for _, category := range categories {
		if category != "" {
			fmt.Fprintf(m, ".SS %s\n", escapeRoff(category))
		}
		for _, f := range flags[category] {
			m.option(f)
		}
	}
}

func (m *man) option(f cli.Flag) {
	documented, ok := f.(cli.DocGenerationFlag)
	if !ok {
		return
	}
	placeholder, usage := unquote(documented.GetUsage())
	var names []string
	for _, name := range f.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		names = append(names, `\fB`+escapeRoff(dashes+name)+`\fR`)
	}
	term := strings.Join(names, ", ")
	if documented.TakesValue() && placeholder != "" {
		term += ` \fI` + escapeRoff(placeholder) + `\fR`
	}
	fmt.Fprintf(m, ".TP\n%s\n", term)
	text := strings.ToUpper(usage[:1]) + usage[1:] + "."
	if value := strings.Trim(documented.GetValue(), "[]"); value != "" && documented.TakesValue() && documented.IsDefaultVisible() {
		text += " Default: " + value + "."
	}
	if variables := documented.GetEnvVars(); len(variables) > 0 {
		text += " Variable: " + strings.Join(variables, ", ") + "."
	}
	m.line(text)
}

// unquote returns the word in backquotes in a usage, and the usage without
// them.
func unquote(usage string) (placeholder, plain string) {
	before, rest, found := strings.Cut(usage, "`")
	word, after, closed := strings.Cut(rest, "`")
	if !found || !closed {
		return "", usage
	}
	return word, before + word + after
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`)

func escapeRoff(text string) string {
	text = roffEscapes.Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
