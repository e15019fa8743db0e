# Boots the system below the directory $1 as a container called $2, with what it writes kept in memory, and takes all
# of it away when the standard input ends: when the test is over, however it ended. It runs in a mount namespace of
# its own, with which all mounts go. $3 is a directory that it owns; "$3/notify" is told when the container is up.
#
# $4 is the name of the host. If $5 is there, it is the host's address, such as 192.0.2.1/24, in the network of which
# "lan" is the bridge. A line "off" on the standard input cuts the power, "new" replaces the disk of a host that is off, and
# "on" boots it again.
set -eu
trap '' INT TERM HUP QUIT PIPE
root=$1 name=$2 dir=$3 host=$4 address=${5:-}
mkdir "$dir/memory"
mount -t tmpfs -o mode=755,size=2g tmpfs "$dir/memory"
cd "$dir/memory"

# A disk on which nothing is that this machine has enabled or configured, only what a fresh Debian has.
disk() {
	mkdir upper work root
	mount -t overlay -o "lowerdir=$root,upperdir=upper,workdir=work" overlay root
	rm -rf root/etc/systemd/system root/var/lib/rabbitmq/mnesia root/var/log/journal root/etc/revq
	mkdir -p root/etc/systemd/system/multi-user.target.wants
	ln -s /lib/systemd/system/rabbitmq-server.service root/etc/systemd/system/multi-user.target.wants/
	echo "$host" >root/etc/hostname
	printf '%s\n' '127.0.0.1 localhost' '::1 localhost' "127.0.1.1 $host" >root/etc/hosts
}

# A control group for all of it: that is how nothing of it is left. Only version 2 filters addresses.
[ -e /sys/fs/cgroup/cgroup.controllers ] || mount -t cgroup2 cgroup2 /sys/fs/cgroup
group=/sys/fs/cgroup/$name
mkdir "$group"

on() {
	network=--private-network
	if [ -n "$address" ]; then
		network=--network-namespace-path=$PWD/network
		: >network
		unshare --net=network ip link set lo up
		ip link add name "$host" type veth peer name eth0 netns "$PWD/network"
		nsenter --net=network ip address add "$address" dev eth0
		nsenter --net=network ip link set eth0 up
		ip link set "$host" master lan up
	fi
	(
		echo 0 >"$group/cgroup.procs"
		# Where systemd runs this machine, too, --keep-unit leaves the container in our control group, not in a scope.
		# systemd in the container needs bpf to filter addresses, which nspawn does not allow by itself.
		NOTIFY_SOCKET=$dir/notify exec systemd-nspawn --quiet --register=no --keep-unit --notify-ready=yes "$network" \
			--capability=CAP_BPF --system-call-filter=bpf --machine="$name" --directory=root --boot systemd.log_color=0
	) </dev/null &
}

off() {
	# First, so that nothing tells the others that connections end.
	if mountpoint -q network; then ip link delete "$host"; fi
	echo 1 >"$group/cgroup.kill"
	wait || :
	tries=0
	while grep -q '^populated 1' "$group/cgroup.events" && [ $tries -lt 200 ]; do
		sleep 0.05 # there is nothing to wait for the end of processes that are not our children
		tries=$((tries + 1))
	done
	find "$group" -mindepth 1 -depth -type d -exec rmdir {} +
	if mountpoint -q network; then umount network; fi # nspawn has it open until its end
}

disk
on
while read -r command; do # until the standard input ends
	case $command in
	on) on ;;
	off) off ;;
	new)
		umount root
		rm -rf upper work root
		disk
		;;
	esac
done
off
rmdir "$group"
cd /
umount "$dir/memory/root" "$dir/memory"
rm -rf "$dir"
