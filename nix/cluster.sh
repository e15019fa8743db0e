# What nix/check cluster runs inside of each of three containers, on the units of the configurations "clustered…".
#   sh cluster.sh PACKAGE
# All three share the directory /shared, in which a file says that something has happened.
revq=$1/bin/revq host=$(cat /etc/hostname)
export HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=rabbit@revq-$host # for rabbitmqctl

# through LABEL COUNT HOST... sends a text, and waits until this host's site has COUNT results from the beginning on, among
# them those of the hosts' texts.
through() {
	label=$1 count=$2
	shift 2
	$revq send --timeout 60s --url http://localhost:8081 --text "$label $host" >/tmp/sent 2>&1 || fail "send: $(cat /tmp/sent)"
	timeout 90 $revq listen --raw --after -1 --count "$count" >/tmp/results 2>&1 || fail "fewer than $count results: $(cat /tmp/results)"
	for other; do
		grep -qx "$(echo "$label $other" | rev)" /tmp/results || fail "no result of $other's text: $(cat /tmp/results)"
	done
	: >"/shared/$label.$host"
}

await 120 active rabbitmq.service
await 60 rabbitmqctl -q await_online_nodes 3 -t 1
for i in rabbitmq-revq revq-setup revq-worker@1; do await 90 active $i.service; done
for i in api@1 socket@3; do await 10 active revq-$i.socket; done
ok "$host: RabbitMQ has joined the others, and revq runs"

rabbitmqctl -q -p revq list_queues name members >/tmp/queues
for queue in revq.tasks revq.results revq.dead; do
	[ "$(grep "^$queue	" /tmp/queues | grep -o 'rabbit@revq-' | wc -l)" = 3 ] || fail "$queue is not on all hosts: $(cat /tmp/queues)"
done
! rabbitmqctl -q list_users | grep -q guest || fail "guest is still there"
ok "$host: each queue is on all hosts, and there is no guest"

through first 3 one two three
ok "$host: texts of all hosts were accepted, and their results came"

if [ "$host" = one ]; then
	sleep 600 # until its power is cut
else
	await 120 test -e /shared/one-is-gone
	through second 5 two three
	await 30 $revq status
	ok "$host: so they do without the host one"
fi
