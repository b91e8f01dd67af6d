# Makes the root filesystem: root.sh KIB UUID UNIT… <TREE+OVERLAY >IMAGE
#
# Standard input is two tar files one after the other: Debian's packages and
# what is laid over them. The image, of KIB kibibytes, goes to standard output;
# each UNIT is masked. It runs as root, or as mmdebstrap's stand-in for it
# (files belong to many users), who may not open the caller's own files: hence
# no paths.
set -eu
kib=$1 uuid=$2
shift 2
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
root=$tmp/root
mkdir "$root"
tar --extract --ignore-zeros --file - --directory "$root" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
for unit; do
	case $unit in
	*-generator) dir=system-generators ;;
	*) dir=system ;;
	esac
	mkdir -p "$root/etc/systemd/$dir"
	ln -sf /dev/null "$root/etc/systemd/$dir/$unit"
done
enable() { # UNIT TARGET
	mkdir -p "$root/etc/systemd/system/$2.wants"
	ln -sf "/lib/systemd/system/$1" "$root/etc/systemd/system/$2.wants/$1"
}
enable systemd-networkd.service multi-user.target
if [ -e "$root/lib/systemd/system/cloud-init.target" ]; then
	# cloud-init ends after multi-user.target, and this comes after its end.
	enable slipway-ready.service cloud-init.target
else
	enable slipway-firstboot.service multi-user.target
	enable slipway-ready.service multi-user.target
fi
rm -f "$root"/etc/ssh/ssh_host_*_key*
rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/var/log/*.log
echo localhost >"$root/etc/hostname"
: >"$root/etc/machine-id" # made anew at each machine's first boot, without systemd's whole first-boot ceremony
printf 'UUID=%s / ext4 rw,noatime 0 0\n' "$uuid" >"$root/etc/fstab"
mke2fs -q -t ext4 -d "$root" -L slipway-root -U "$uuid" -m 1 -N 65536 \
	-E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -J size=16 "$tmp/image" "${kib}k" >&2
cat "$tmp/image"
