package front

import "testing"

func TestConnections(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ files, addresses, others, want int }{
		{131072, 1, 16, 130992},
		{20000, 1, 16, 19920},
		{16384, 2, 0, 8160},
		{100, 1, 0, 50},
		{48, 2, 0, 12},
		{1, 3, 16, 1},
	} {
		if got := connections(tc.files, tc.addresses, tc.others); got != tc.want {
			t.Errorf("%+v: %d", tc, got)
		}
	}
}
