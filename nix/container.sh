# What boot.sh and cluster.sh begin with.
set -eu

fail() {
	echo "FAILED: $*"
	systemctl --no-pager --all list-units 'revq*' 'rabbitmq*' 'epmd*' 'stop-former*'
	systemctl --no-pager status rabbitmq-revq revq-setup 'revq-*@*.service' || true
	journalctl -b --no-pager -o short-monotonic | grep -v 'rabbitmq-server.*\[info\]' | tail -n 80
	exit 1
}
ok() { echo "ok: $*"; }

# await SECONDS COMMAND... repeats the command until it succeeds.
await() {
	deadline=$(($(date +%s) + $1))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(date +%s)" -lt $deadline ] || fail "in vain: $*"
		sleep 0.2
	done
}
active() { systemctl -q is-active "$@"; }
pid() { systemctl show -P MainPID "$1"; }

