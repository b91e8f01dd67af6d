# Makes the root filesystem: root.sh TREE OVERLAY IMAGE KIB UUID UNIT…
#
# TREE is the tar file of packages, OVERLAY a directory laid over it, IMAGE the
# file to make, of KIB kibibytes; each UNIT is masked. It runs as root, or as
# mmdebstrap's stand-in for it, since files belong to many users.
set -eu
tree=$1 overlay=$2 image=$3 kib=$4 uuid=$5
shift 5
root=$(mktemp -d "$image.XXXXXX")
trap 'rm -rf "$root"' EXIT
tar --extract --file "$tree" --directory "$root" --numeric-owner --xattrs --xattrs-include='*' --exclude='./dev/*'
cp -R --no-preserve=ownership "$overlay/." "$root/"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
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
echo localhost > "$root/etc/hostname"
: > "$root/etc/machine-id" # made anew at each machine's first boot, without systemd's whole first-boot ceremony
printf 'UUID=%s / ext4 rw,noatime 0 0\n' "$uuid" > "$root/etc/fstab"
chmod 0440 "$root"/etc/sudoers.d/*
mke2fs -q -t ext4 -d "$root" -L slipway-root -U "$uuid" -m 1 -N 65536 -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 -J size=16 "$image" "${kib}k"
