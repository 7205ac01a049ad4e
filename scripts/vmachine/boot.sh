# Starts the virtual machine for one job; sourced by scripts/vm.

vm_pid=""
vm_run=""
vm_deadline=${SKIFF_VM_DEADLINE:-900}

end_machine() {
    if [ -n "$vm_pid" ]; then
        kill "$vm_pid" 2>/dev/null || true
        wait "$vm_pid" 2>/dev/null || true
    fi
    [ -z "$vm_run" ] || rm -rf "$vm_run"
}

# What runs that were killed left. A machine holds the lock of its directory as long as it runs.
remove_old_runs() {
    local dir
    for dir in "$vm"/run.*; do
        [ ! -d "$dir" ] || flock --nonblock "$dir" rm -rf "$dir" || true
    done
}

# boot ACTION [ARGUMENT…]: runs the job, shows its output and returns its exit status; a job that
# brings none back has failed.
boot() {
    local accel status
    accel=$(accelerator)
    remove_old_runs
    vm_run=$(mktemp -d "$vm/run.XXXXXX")
    trap end_machine EXIT
    export TMPDIR=$vm_run
    exec 7<"$vm_run"
    flock 7
    # Others may use the disks at the same time.
    exec 8>&-
    touch "$vm_run/output" "$vm_run/status"
    make_job "$@"
    qemu_arguments "$accel"
    step "starting the machine ($accel)"
    if [ "$1" = shell ]; then
        qemu-system-x86_64 "${qemu[@]}" -serial mon:stdio || true
    else
        run_unattended
    fi
    status=$(cat "$vm_run/status")
    if ! [[ "$status" =~ ^[0-9]{1,3}$ ]]; then
        show_console
        die "the machine brought back no exit status"
    fi
    return "$status"
}

run_unattended() {
    local ended=0
    # It ends with this script, however that ends.
    setpriv --pdeathsig TERM timeout --kill-after=10 "$vm_deadline" \
        qemu-system-x86_64 "${qemu[@]}" -serial "file:$vm_run/console" </dev/null &
    vm_pid=$!
    tail -q -n +1 -f --pid="$vm_pid" "$vm_run/output" || true
    wait "$vm_pid" || ended=$?
    vm_pid=""
    cp "$vm_run/output" "$vm/output.log"
    cp "$vm_run/console" "$vm/console.log"
    [ "$ended" -ne 0 ] || return 0
    show_console
    [ "$ended" -ne 124 ] || die "the machine was still running after $vm_deadline s and was ended"
    die "qemu failed with status $ended"
}

show_console() {
    [ -s "$vm_run/console" ] || return 0
    printf -- '--- the end of the console:\n%s\n---\n' "$(tail -n 80 "$vm_run/console" | tr -d '\r\0')" >&2
}

# What nextest counted in the last run.
summary() {
    grep -a 'Summary' "$vm/output.log" | tail -n 1 | sed -E 's/\x1b\[[0-9;]*m//g; s/^ *//'
}

# The job: a tar archive as a disk, with the guest's script and what it has to do.
make_job() {
    local job=$vm_run/job
    mkdir "$job"
    cp "$root/scripts/vmachine/guest" "$job/guest"
    {
        printf 'action=%q checkout=%q target=%q now=%q deadline=%q\n' \
            "$1" "$root" "$target" "$(date +%s)" "$vm_deadline"
        printf 'size=%q term=%q\n' "$(stty size 2>/dev/null || true)" "${TERM:-vt100}"
        printf 'arguments=('
        [ $# -eq 1 ] || printf '%q ' "${@:2}"
        printf ')\n'
    } >"$job/job"
    tar -C "$job" -cf "$vm_run/job.img" guest job
    truncate -s 4G "$vm_run/ext4.img" "$vm_run/xfs.img"
}

# Sets the array `qemu`. What a start writes to root and payload goes to files without names in TMPDIR.
qemu_arguments() {
    local cpu=host memory=${SKIFF_VM_MEMORY:-3072} name
    # What is emulated costs least on an old processor: without the extensions that programs would save and
    # restore (AVX), those that a call ends a block of translated code for (SMAP), and string instructions
    # of single bytes (ERMS), by which a newer one fills and copies memory.
    [ "$1" = kvm ] || cpu=Nehalem
    qemu=(-nodefaults -no-user-config -no-reboot -display none -machine q35 -cpu "$cpu" -smp 2 -m "$memory")
    case "$1" in
        kvm) qemu+=(-accel kvm) ;;
        *) qemu+=(-accel "tcg,thread=multi,tb-size=512") ;;
    esac
    qemu+=(-kernel "$vm/root/vmlinuz" -initrd "$vm/root/initrd.img" -append "$(kernel_arguments)")
    qemu+=(-device virtio-rng-pci -device virtio-serial-pci)
    for name in output status; do
        qemu+=(-chardev "file,id=$name,path=$vm_run/$name")
        qemu+=(-device "virtserialport,chardev=$name,name=skiff.$name")
    done
    disk root "$vm/root/root.img" snapshot=on
    disk payload "${vm_payload:-$vm/payload.img}" snapshot=on
    disk job "$vm_run/job.img" readonly=on
    disk ext4 "$vm_run/ext4.img" cache=unsafe
    disk xfs "$vm_run/xfs.img" cache=unsafe
}

# An error in writing, as on a full host, is the machine's to see: qemu would have it stand still, for ever.
disk() {
    qemu+=(-drive "if=none,format=raw,id=$1,file=${2//,/,,},discard=unmap,werror=report,$3")
    qemu+=(-device "virtio-blk-pci,drive=$1,serial=$1")
}

# Mitigations and pages that are cleared twice only cost time in a machine that runs nothing foreign.
kernel_arguments() {
    printf '%s' "root=LABEL=skiff-root rw console=ttyS0 loglevel=4 panic=-1 mitigations=off init_on_alloc=0" \
        " rcupdate.rcu_expedited=1 systemd.show_status=0 systemd.log_level=warning"
}

# kvm where a kernel gets as far as its panic for want of a root: there are machines that have
# /dev/kvm and hang in it. Else tcg. Found out once for each boot of the host.
accelerator() {
    local known boot
    if [ -n "${SKIFF_VM_ACCEL:-}" ]; then
        printf '%s\n' "$SKIFF_VM_ACCEL"
        return
    fi
    [ -w /dev/kvm ] || { printf 'tcg\n'; return; }
    boot=$(cat /proc/sys/kernel/random/boot_id)
    known=$(cat "$vm/accelerator" 2>/dev/null) || true
    if [ "${known% *}" != "$boot" ]; then
        known="$boot tcg"
        ! timeout --signal=KILL 15 qemu-system-x86_64 -nodefaults -no-user-config -no-reboot -display none \
            -accel kvm -cpu host -m 256 -kernel "$vm/root/vmlinuz" -append panic=-1 \
            </dev/null >/dev/null 2>&1 || known="$boot kvm"
        printf '%s\n' "$known" >"$vm/accelerator"
    fi
    printf '%s\n' "${known#* }"
}
