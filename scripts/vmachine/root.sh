# The root filesystem of the virtual machine; sourced by scripts/vm, which sets $vm.
#
# $vm/root/ holds root.img (ext4), vmlinuz and initrd.img, and the stamp of what they are made from.

vm_suite=bookworm
vm_mirror=${SKIFF_DEBIAN_MIRROR:-http://deb.debian.org/debian}
vm_kernel=linux-image-cloud-amd64
vm_packages="$vm_kernel,initramfs-tools,systemd,systemd-sysv,udev,dbus,kmod,procps,iproute2,nftables"
vm_packages+=",e2fsprogs,xfsprogs,quota,apparmor,libseccomp2,crun,runc,busybox-static,zstd,ca-certificates,python3"
# For scripts/soak.
vm_packages+=",docker-registry"
# For a box of Vagrant's (box.sh), where they are started; not in scripts/vm.
vm_packages+=",openssh-server,sudo,rsync"

# The same text for the same root. Debian's newest kernel is asked for where apt knows it, so that
# a security update is tested.
root_stamp() {
    local kernel
    kernel=$(apt-cache policy "$vm_kernel" 2>/dev/null | sed -n 's/^ *Candidate: //p')
    printf '%s\n' "$vm_suite" "$vm_packages" "$vm_mirror" "${kernel:-unknown}"
    cat "$root/scripts/vmachine/"{root.sh,skiff-vm.service,vagrant.pub}
}

make_root() {
    local stamp work
    stamp=$(root_stamp | sha256sum | cut -d' ' -f1)
    # Two runs at once would share half-made files.
    exec 8>"$vm/.lock"
    flock 8
    if [ "$(cat "$vm/root/stamp" 2>/dev/null)" != "$stamp" ]; then
        step "making the machine's Debian (some minutes, once)"
        work=$(mktemp -d "$vm/work.XXXXXX")
        # A mount namespace of its own: nothing that debootstrap mounts is seen or left outside.
        unshare --mount --propagation private bash -euo pipefail -c \
            '. "$1/scripts/vmachine/root.sh"; debian_tree "$1" "$2"' bash "$root" "$work" >"$work/log" 2>&1 ||
            { tail -n 30 "$work/log" >&2; rm -rf "$work"; die "the machine's Debian could not be made"; }
        printf '%s\n' "$stamp" >"$work/disk/stamp"
        rm -rf "$vm/root"
        mv "$work/disk" "$vm/root"
        rm -rf "$work"
    fi
}

# debian_tree CHECKOUT WORK: makes WORK/disk, with WORK/tree on the way.
debian_tree() {
    local checkout=$1 tree=$2/tree disk=$2/disk
    mkdir -p "$disk"
    debootstrap --variant=minbase --include="$vm_packages" "$vm_suite" "$tree" "$vm_mirror"
    configure_tree "$checkout" "$tree"
    cp -L "$tree/vmlinuz" "$disk/vmlinuz"
    cp -L "$tree/initrd.img" "$disk/initrd.img"
    rm -rf "$tree"/var/cache/apt/* "$tree"/var/lib/apt/lists/* "$tree"/usr/share/{doc,man,locale}
    # Sparse, and made without a mount. Room for the layers that tests unpack.
    mkfs.ext4 -q -L skiff-root -E lazy_itable_init=1 -d "$tree" "$disk/root.img" 10G
}

configure_tree() {
    local checkout=$1 tree=$2 unit
    echo skiff-vm >"$tree/etc/hostname"
    printf '127.0.0.1 localhost skiff-vm\n::1 localhost\n' >"$tree/etc/hosts"
    printf 'LABEL=skiff-root / ext4 defaults 0 0\n' >"$tree/etc/fstab"
    # A machine that has been started before: no first-boot work.
    printf '%032x\n' 1 >"$tree/etc/machine-id"
    # What nobody uses here and costs seconds in emulation.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service \
        docker-registry.service fstrim.timer getty.target quota.service quotarpc.service systemd-networkd-wait-online.service \
        xfs_scrub_all.timer; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    # Started on the console in getty's place.
    ln -sf /dev/null "$tree/etc/systemd/system/serial-getty@ttyS0.service"
    cp "$checkout/scripts/vmachine/skiff-vm.service" "$tree/etc/systemd/system/"
    chroot "$tree" systemctl --quiet enable skiff-vm.service
    configure_box "$checkout" "$tree"
    # Only what finds the disk: a small initramfs is unpacked sooner.
    printf 'MODULES=list\n' >"$tree/etc/initramfs-tools/conf.d/skiff"
    printf 'virtio_pci\nvirtio_blk\next4\n' >"$tree/etc/initramfs-tools/modules"
    chroot "$tree" update-initramfs -u
}

# As Vagrant wants a machine: a user with its well-known key, who may do all; addresses by DHCP. Only
# where the kernel's command line says skiff.box, which scripts/vm does not.
configure_box() {
    local checkout=$1 tree=$2 unit
    chroot "$tree" useradd --create-home --shell /bin/bash vagrant
    printf 'vagrant ALL=(ALL) NOPASSWD: ALL\n' >"$tree/etc/sudoers.d/vagrant"
    chmod 440 "$tree/etc/sudoers.d/vagrant"
    install -D -m 600 "$checkout/scripts/vmachine/vagrant.pub" "$tree/home/vagrant/.ssh/authorized_keys"
    chroot "$tree" chown -R vagrant: /home/vagrant/.ssh
    printf '[Match]\nName=en* eth*\n[Network]\nDHCP=yes\n' >"$tree/etc/systemd/network/80-box.network"
    chroot "$tree" systemctl --quiet enable ssh.service systemd-networkd.service
    for unit in ssh.service systemd-networkd.service systemd-networkd.socket; do
        mkdir -p "$tree/etc/systemd/system/$unit.d"
        printf '[Unit]\nConditionKernelCommandLine=skiff.box\n' >"$tree/etc/systemd/system/$unit.d/box.conf"
    done
}
