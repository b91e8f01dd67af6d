# Runs libvirtd and sushy-emulator until standard input ends. This shell is
# process 1 of its namespace: it reaps what libvirt leaves, and with its end the
# kernel ends every process here, machines too.
# Arguments: the service's directory, the emulator.
dir=$1 emulator=$2

for pair in run:/run/libvirt lib:/var/lib/libvirt etc:/etc/libvirt log:/var/log/libvirt cache:/var/cache/libvirt; do
	mkdir -p "${pair#*:}"
	mount --bind "$dir/${pair%%:*}" "${pair#*:}"
done

libvirtd --config /etc/libvirt/libvirtd.conf >"$dir/log/libvirtd" 2>&1 </dev/null &

virsh="virsh --quiet --connect qemu:///system"
tries=0
until $virsh uri >/dev/null 2>&1; do
	tries=$((tries + 1))
	if [ $tries -gt 200 ]; then
		echo "libvirtd does not answer; the last it said:"
		tail -n 5 "$dir/log/libvirtd"
		exit 1
	fi
	sleep 0.1
done
# sushy-tools puts virtual media into the pool of this name.
$virsh pool-define-as default dir --target "$dir/pool"
$virsh pool-start default
for xml in "$dir"/domains/*.xml; do
	[ ! -e "$xml" ] || $virsh define "$xml"
done

"$emulator" --config "$dir/sushy.conf" >"$dir/log/sushy" 2>&1 </dev/null &
until "${emulator%/*}/python" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' "$(cat "$dir/url")" 2>/dev/null; do
	kill -0 $! || { tail -n 5 "$dir/log/sushy"; exit 1; }
	sleep 0.1
done
: >"$dir/ready"

cat >/dev/null # until the one who started us closes the pipe, or dies
