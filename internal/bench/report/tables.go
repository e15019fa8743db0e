package report

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// tables writes tables in columns: words align left, numbers right.
type tables struct {
	w    io.Writer
	rows [][]string
	err  error
}

func (t *tables) line(format string, args ...any) {
	if _, err := fmt.Fprintf(t.w, format+"\n", args...); t.err == nil {
		t.err = err
	}
}

func (t *tables) begin(title string, columns ...string) {
	t.line("\n%s\n", title)
	rules := make([]string, len(columns))
	for i, c := range columns {
		rules[i] = strings.Repeat("-", utf8.RuneCountInString(c))
	}
	t.rows = [][]string{columns, rules}
}

func (t *tables) row(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = fmt.Sprint(c)
	}
	t.rows = append(t.rows, row)
}

// end writes the table, without its empty columns.
func (t *tables) end() {
	const head = 2 // rows
	columns := len(t.rows[0])
	widths, words, used := make([]int, columns), make([]bool, columns), make([]bool, columns)
	for r, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
			used[i] = used[i] || r >= head && cell != ""
			words[i] = words[i] || r >= head && cell != "" && !strings.ContainsAny(cell[:1], "0123456789")
		}
	}
	for _, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			if !used[i] {
				continue
			}
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
			if words[i] {
				line.WriteString(cell + pad + "  ")
			} else {
				line.WriteString(pad + cell + "  ")
			}
		}
		t.line("%s", strings.TrimRight(line.String(), " "))
	}
}
