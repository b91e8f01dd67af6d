# Makes the packages' tree as a tar file: tree.sh SUITE PACKAGES MODE OUT.
#
# Documentation and translations are left out, and those of the kernel's
# modules that no virtual machine has hardware for: what is not in the image
# need not be written to a disk at each deploy.
set -eu
suite=$1 packages=$2 mode=$3 out=$4
set --
for path in usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/i18n; do
	set -- "$@" --dpkgopt="path-exclude=/$path/*"
done
set -- "$@" --dpkgopt='path-include=/usr/share/doc/*/copyright'
for part in sound net/wireless net/mac80211 net/bluetooth net/can net/nfc \
	fs/ceph fs/gfs2 fs/jfs fs/nfs fs/nfsd fs/ocfs2 fs/orangefs fs/reiserfs fs/smb fs/ubifs \
	drivers/comedi drivers/gpu drivers/hid drivers/hwmon drivers/iio drivers/infiniband drivers/input \
	drivers/isdn drivers/bluetooth drivers/media drivers/mfd drivers/mtd drivers/net/can \
	drivers/net/ethernet drivers/net/usb drivers/net/wireless drivers/nfc drivers/platform \
	drivers/staging drivers/usb drivers/video drivers/w1 drivers/xen; do
	set -- "$@" --dpkgopt="path-exclude=/lib/modules/*/kernel/$part/*"
done
# The initramfs loads a short list of modules and finds the root filesystem by
# blkid: without KVM udev's round through all devices takes three seconds. What
# udev's parts do beside that, one hook and one script do here.
for part in hooks scripts/init-top scripts/init-bottom; do
	set -- "$@" --dpkgopt="path-exclude=/usr/share/initramfs-tools/$part/udev"
done
initramfs='
cd "$1/etc" && mkdir -p initramfs-tools/conf.d initramfs-tools/hooks initramfs-tools/scripts/init-bottom ../usr/share/initramfs-tools/modules.d
printf "MODULES=list\nCOMPRESS=zstd\nRESUME=none\n" >initramfs-tools/conf.d/slipway
printf "%s\n" virtio_pci virtio_blk nvme ahci sd_mod ext4 >../usr/share/initramfs-tools/modules.d/slipway
printf "%s\n" "#!/bin/sh" "[ \"\$1\" = prereqs ] && exit" ". /usr/share/initramfs-tools/hook-functions" \
	"copy_exec /sbin/blkid" >initramfs-tools/hooks/slipway
printf "%s\n" "#!/bin/sh" "[ \"\$1\" = prereqs ] && exit" \
	"mount -n -o move /dev \"\$rootmnt/dev\"" >initramfs-tools/scripts/init-bottom/slipway
chmod 0755 initramfs-tools/hooks/slipway initramfs-tools/scripts/init-bottom/slipway'
set -- "$@" --dpkgopt='path-include=/lib/modules/*/kernel/drivers/net/ethernet/intel/*'
exec mmdebstrap --mode="$mode" --variant=minbase --format=tar --include="$packages" "$@" \
	--essential-hook="$initramfs" \
	--customize-hook='chroot "$1" useradd --create-home --shell /bin/bash debian' \
	"$suite" "$out"
