# Boots the system below the directory $1 as a container called $2, with what it writes kept in memory, and takes all
# of it away when the standard input ends: when the test is over, however it ended. It runs in a mount namespace of
# its own, with which all mounts go. $3 is a directory that it owns; "$3/notify" is told when the container is up.
set -eu
trap '' INT TERM HUP QUIT PIPE
mkdir "$3/memory"
mount -t tmpfs -o mode=755,size=2g tmpfs "$3/memory"
cd "$3/memory"
mkdir upper work root
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root

# Nothing that this machine has enabled or configured is to run in there, only what a fresh Debian would.
rm -rf root/etc/systemd/system root/var/lib/rabbitmq/mnesia root/var/log/journal root/etc/revq
mkdir -p root/etc/systemd/system/multi-user.target.wants
ln -s /lib/systemd/system/rabbitmq-server.service root/etc/systemd/system/multi-user.target.wants/
echo host >root/etc/hostname
printf '%s\n' '127.0.0.1 localhost' '::1 localhost' '127.0.1.1 host' >root/etc/hosts

# A control group for all of it: that is how nothing of it is left. Only version 2 filters addresses.
[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/$2
mkdir "$group"

root=$1 name=$2 dir=$3
(
	echo 0 >"$group/cgroup.procs"
	# Where systemd runs this machine, too, --keep-unit leaves the container in our control group, not in a scope.
	# systemd in the container needs bpf to filter addresses, which nspawn does not allow by itself.
	NOTIFY_SOCKET=$dir/notify exec systemd-nspawn --quiet --register=no --keep-unit --notify-ready=yes --private-network \
		--capability=CAP_BPF --system-call-filter=bpf --machine="$name" --directory=root --boot systemd.log_color=0
) </dev/null &

cat >/dev/null # until the standard input ends
echo 1 >"$group/cgroup.kill"
wait
tries=0
while grep -q '^populated 1' "$group/cgroup.events" && [ $tries -lt 200 ]; do
	sleep 0.05 # there is nothing to wait for the end of processes that are not our children
	tries=$((tries + 1))
done
find "$group" -depth -type d -exec rmdir {} +
cd /
umount "$dir/memory/root" "$dir/memory"
rm -rf "$dir"
