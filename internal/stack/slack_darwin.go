package stack

// withTimerSlack calls start: only Linux knows timer slack.
func withTimerSlack(start func()) { start() }
