# What nix/check boot runs inside of the container, on the units of the configuration "large".
#   sh boot.sh PACKAGE UNITS-OF-THE-SMALLER-ONE
package=$1 smaller=$2
revq=$package/bin/revq
work=$(mktemp -d)
export HOME=/var/lib/rabbitmq RABBITMQ_NODENAME=rabbit@localhost # for rabbitmqctl

# through sends a text to each API site and sees all of them at each socket site.
through() {
	for site in $sockets; do
		rm -f $work/$site # with the greeting of the last time
		$revq listen --count "$(echo $apis | wc -w)" --url "ws://localhost:808$site/listen_results" >$work/$site 2>$work/$site.log &
		listeners="${listeners:-} $!"
		await 20 grep -q Salut $work/$site
	done
	for site in $apis; do
		[ "$($revq send --url "http://localhost:808$site" --text "abcdef$site")" = "Got it" ] || fail "site $site did not take a text"
	done
	for l in $listeners; do
		timeout 30 tail --pid "$l" -f /dev/null || fail "a listener did not get all results: $(cat $work/*)"
	done
	listeners=
	for site in $sockets; do
		for a in $apis; do
			grep -qx "${a}fedcba" $work/$site || fail "socket site $site did not pass on the text of API site $a"
		done
	done
}

apis='1 2 4' sockets='3 5'
for i in $apis; do await 40 active revq-api@$i.socket; done
for i in $sockets; do await 40 active revq-socket@$i.socket; done
for i in 1 2 3 4; do await 40 active revq-worker@$i.service; done
for i in rabbitmq-revq revq-setup revq-setup@shout; do await 40 active $i.service; done # a worker needs only its own queue
ok "three API sites, two socket sites and four workers come up"

through
ok "texts go from each API site to each socket site"

await 30 $revq status
for i in api@1 api@2 api@4 socket@3 socket@5 worker@1 worker@2 worker@3 worker@4 worker@shout worker@shout:2; do
	[ "$(stat -c '%U %G %a' /run/revq/$i.admin)" = "root revq-admin 660" ] || fail "the admin socket of $i: $(stat /run/revq/$i.admin)"
done
ok "revq status sees all daemons, and finds that they do well"

bash -c "exec 3<>/dev/tcp/127.0.0.1/8090; printf 'GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3; cat <&3" >$work/metrics
[ "$(grep -c '^revq_up{daemon=".*"} 1' $work/metrics)" = 11 ] || fail "metrics of other daemons than those that run: $(grep revq_up $work/metrics)"
ok "one address has the metrics of all daemons"

ss -Hltn | awk '{print $4}' | sort >$work/listening
cat $work/listening
! grep -Ev '^(127\.0\.0\.1|127\.0\.0\.53|127\.0\.0\.54|\[::1\]):' $work/listening || fail "something listens on other interfaces"
ok "sites, RabbitMQ and Erlang listen on the addresses that were given, and on no others"

rabbitmqctl -q list_users >$work/users
! grep -q guest $work/users || fail "guest is still there"
rabbitmqctl -q list_permissions -p revq | sed 1d | sort >$work/permissions
cat $work/permissions
printf '%s\t%s\t%s\t%s\n' \
	revq-api '^$' '^revq(\.wait)?$' '^$' \
	revq-setup '^revq' '^revq' '^revq' \
	revq-socket '^$' '^revq\.marks$' '^revq\.results$' \
	revq-worker '^$' '^revq(\.wait)?$' '^revq\.tasks(\.[a-z0-9_-]+)?$' | diff - $work/permissions || fail "other permissions than expected"
ok "there is no guest, and each role has its own user with the least permissions"

for role in api socket worker setup; do
	file=/var/lib/revq/$role.amqp-url
	[ "$(stat -Lc '%U %a' $file)" = "root 600" ] || fail "$file: $(stat -Lc '%U %a' $file)"
	! setpriv --reuid=nobody --regid=nogroup --clear-groups cat $file 2>/dev/null || fail "nobody can read $file"
	# In a file: as an argument of grep it would be found there.
	sed 's|.*:\([^@:]*\)@.*|\1|' $file >$work/secret
	! systemctl show '*' | grep -qFf $work/secret || fail "the secret of $role is in the properties of a unit"
	! journalctl -b | grep -qFf $work/secret || fail "the secret of $role is in the journal"
	! cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | grep -qFf $work/secret || fail "the secret of $role is in a process's environment or arguments"
done
ok "secrets are read by root alone, and in no unit, journal, environment or command line"

for unit in revq-api@1 revq-socket@3 revq-worker@1 revq-setup; do
	systemd-analyze security --no-pager --threshold=10 $unit.service | tail -n 1 || fail "$unit is exposed"
done
ok "systemd-analyze security is at most 1.0 for each service"

for unit in revq-api@1.socket revq-api@1.service revq-socket@3.socket revq-socket@3.service revq-worker@2.service revq-setup.service \
	rabbitmq-revq.service rabbitmq-revq-rotate.service stop-former-revq.service revq.target; do
	systemd-analyze verify --man=no --recursive-errors=yes $unit || fail "verify $unit"
	! SYSTEMD_LOG_LEVEL=debug systemd-analyze verify --man=no $unit 2>&1 | grep "Skipping overridden file '/etc" || fail "a drop-in of $unit is hidden"
done
ok "systemd-analyze verify finds nothing, and no drop-in is hidden"

systemctl show -P Environment revq-worker@1 | tr ' ' '\n' | grep -x REVQ_PAUSE=10ms
systemctl show -P Environment revq-worker@2 | tr ' ' '\n' | grep -x REVQ_PAUSE=0s
systemctl show -P Environment revq-worker@2 | tr ' ' '\n' | grep -x REVQ_CONCURRENCY=20
! systemctl show -P Environment revq-worker@2 | grep PATH= || fail "PATH is set"
systemctl show -P Environment revq-socket@3 | grep -F 'https://a.example,https://b.example:8443'
ok "a worker of its own keeps the settings of all, and what it has besides"

systemctl start revq-worker@7
active revq-worker@7
ok "systemctl start revq-worker@7 adds one by hand, with the same settings and secret"

cp /var/lib/revq/worker.amqp-url $work/before
systemctl start rabbitmq-revq-rotate || fail "rotate"
! cmp -s $work/before /var/lib/revq/worker.amqp-url || fail "the secret is the same"
for i in 1 2 3 4; do await 60 active revq-worker@$i.service; done
! rabbitmqctl -q authenticate_user revq-worker "$(sed 's|.*:\([^@:]*\)@.*|\1|' $work/before)" 2>/dev/null || fail "the old secret is still good"
through
ok "new secrets take the place of the old ones, and texts go through"

# A queue of one's own.
active revq-handler-shout.socket && active revq-setup@shout.service || fail "the queue was not made"
for i in shout shout:2; do await 40 active revq-worker@$i.service; done
$revq listen --count 1 --url "ws://localhost:8083/listen_results?queue=shout" >$work/shout 2>$work/shout.log &
listener=$!
await 20 grep -q Salut $work/shout
post='POST /queue/shout HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello'
bash -c "exec 3<>/dev/tcp/127.0.0.1/8081; printf '$post' >&3; head -n 1 <&3" | grep 202 || fail "the queue took no text"
timeout 30 tail --pid $listener -f /dev/null || fail "no result of the queue: $(cat $work/shout $work/shout.log)"
grep -qx 'HELLO %i $HOME colour=green' $work/shout || fail "the result is $(cat $work/shout)"
systemctl show -P Environment revq-worker@shout | tr ' ' '\n' | grep -x REVQ_CONCURRENCY=3
systemctl show -P Environment revq-worker@shout | tr ' ' '\n' | grep -x REVQ_PAUSE=10ms
systemctl show -P MemoryMax revq-handler-shout@1.service | grep -x 104857600 || fail "serviceConfig has no effect"
ok "a queue of one's own has a worker, and a handler in a unit of its own"

before=$(pid revq-worker@1)
systemctl reload 'revq-api@*.service' 'revq-socket@*.service' 'revq-worker@*.service' || fail "reload"
[ "$before" = "$(pid revq-worker@1)" ] || fail "a reload restarts"
ok "systemctl reload works without /bin/kill"

worker1=$(pid revq-worker@1) api1=$(pid revq-api@1) socket3=$(pid revq-socket@3) broker=$(pid rabbitmq)
ln -sfn "$smaller" /etc/systemd/system.new && mv -T /etc/systemd/system.new /etc/systemd/system
systemctl daemon-reload
systemctl restart stop-former-revq.service # NixOS does, since it has changed
systemctl start revq.target
for unit in revq-worker@3.service revq-worker@4.service revq-worker@7.service revq-worker@shout.service revq-worker@shout:2.service revq-handler-shout.socket revq-setup@shout.service revq-api@4.socket revq-api@4.service; do
	! active $unit || fail "$unit still runs"
done
[ "$worker1 $api1 $socket3 $broker" = "$(pid revq-worker@1) $(pid revq-api@1) $(pid revq-socket@3) $(pid rabbitmq)" ] || fail "something else was restarted"
apis='1 2'
through
ok "with fewer sites and workers, the others end, and those that stay are not touched"

systemctl stop revq.target
# What belongs to the target ends after it.
ended() { [ -z "$(systemctl list-units --plain --no-legend --state=active,activating,deactivating,failed 'revq-*.s*')" ]; }
await 30 ended
active rabbitmq || fail "RabbitMQ was stopped, too"
ok "systemctl stop revq.target ends all of revq"
