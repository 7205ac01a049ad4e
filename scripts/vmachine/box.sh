# A box for Vagrant's libvirt provider from the same root filesystem; sourced by scripts/vm.
#
# It has no boot loader: libvirt starts the kernel that lies in the box.

make_box() {
    local work
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
