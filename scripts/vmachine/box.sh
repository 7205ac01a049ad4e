# A box for Vagrant's libvirt provider from the same root filesystem; sourced by scripts/vm.
#
# It has no boot loader: libvirt starts the kernel that lies in the box.

make_box() {
    local work
    check_vagrantfile
    work=$(mktemp -d "$vm/box.XXXXXX")
    cp "$vm/root/vmlinuz" "$vm/root/initrd.img" "$work"
    qemu-img convert -O qcow2 "$vm/root/root.img" "$work/box.img"
    printf '{"provider": "libvirt", "format": "qcow2", "virtual_size": 10}\n' >"$work/metadata.json"
    cat >"$work/Vagrantfile" <<'END'
Vagrant.configure("2") do |config|
  config.vm.provider "libvirt" do |libvirt|
    libvirt.kernel = File.join(__dir__, "vmlinuz")
    libvirt.initrd = File.join(__dir__, "initrd.img")
    libvirt.cmd_line = "root=LABEL=skiff-root rw console=ttyS0 skiff.box"
  end
end
END
    tar -C "$work" -czf "$vm/skiff.box" metadata.json Vagrantfile box.img vmlinuz initrd.img
    rm -rf "$work"
    printf 'vagrant box add --name skiff %s\n' "$vm/skiff.box"
}

# What Vagrant says of the Vagrantfile; of a provider's part only where it has that provider.
check_vagrantfile() {
    local data option=--ignore-provider
    if ! command -v vagrant >/dev/null; then
        step "the Vagrantfile is not checked: no vagrant here (Debian's packages vagrant and vagrant-libvirt)"
        return 0
    fi
    if vagrant plugin list 2>/dev/null | grep -q '^vagrant-libvirt '; then option=""; fi
    step "checking the Vagrantfile"
    data=$(mktemp -d "$vm/vagrant.XXXXXX")
    # It keeps a directory in the checkout otherwise.
    VAGRANT_DOTFILE_PATH=$data VAGRANT_DEFAULT_PROVIDER=libvirt vagrant validate $option >&2 ||
        { rm -rf "$data"; die "Vagrant refuses the Vagrantfile"; }
    rm -rf "$data"
}
