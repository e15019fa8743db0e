package wire_test

import (
	"encoding/json"
	"fmt"

	"github.com/revq/revq/internal/wire"
)

func ExampleParseMark() {
	mark, err := wire.ParseMark("42/order-7")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(mark.Offset, mark.ID, mark)

	_, err = wire.ParseMark("yesterday")
	fmt.Println(err)
	// Output:
	// 42 order-7 42/order-7
	// "yesterday" is no place in the results: give the offset of the last one received, or OFFSET/ID
}

// A listener that asked for wire.FormatJSON gets one of these a frame.
func ExampleMessage() {
	for _, frame := range []string{
		`{"type":"greeting","offset":41,"id":"order-6","text":"Salut, let's wait some text..."}`,
		`{"type":"result","offset":42,"id":"order-7","text":"fedcba","done":"2026-01-02T03:04:05Z"}`,
		`{"type":"gap","offset":42,"id":"order-7","text":"the stream was re-created"}`,
	} {
		var m wire.Message
		if err := json.Unmarshal([]byte(frame), &m); err != nil {
			fmt.Println(err)
			return
		}
		switch m.Type {
		case wire.TypeResult:
			fmt.Println(m.Text, "is done; resume after", wire.Mark{Offset: m.Offset, ID: m.ID})
		case wire.TypeGap, wire.TypeLost:
			fmt.Println("missing:", m.Text)
		}
	}
	// Output:
	// fedcba is done; resume after 42/order-7
	// missing: the stream was re-created
}
