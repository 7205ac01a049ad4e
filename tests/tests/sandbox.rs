//! What a container may do and how much it may use.

use std::fs;

use serde_json::Value;
use skiff_tests::{Sandbox, Served, images};

/// Docker's default capabilities.
const DOCKERS: u64 = 0x0000_0000_a804_25fb;

#[track_caller]
fn ids(served: &Served) -> Value {
    served.get("/ids").ok().json()
}

#[track_caller]
fn bits(ids: &Value, name: &str) -> u64 {
    let text = ids[name].as_str().unwrap_or_else(|| panic!("no {name}"));
    u64::from_str_radix(text, 16).expect("hexadecimal")
}

#[test]
fn every_namespace_but_the_users_is_its_own() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let init = served.init().pid;
    let namespace =
        |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a namespace");
    for kind in ["pid", "mnt", "net", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(&init.to_string(), kind), namespace("self", kind), "{kind}");
    }
    let ids = ids(&served);
    assert_eq!(ids["Pid"], "1");
    assert_eq!(ids["PPid"], "0");
    let hostname = served.get("/read?path=/proc/sys/kernel/hostname").ok().text();
    assert_ne!(hostname, fs::read_to_string("/proc/sys/kernel/hostname").expect("hostname"));
}

#[test]
fn capabilities_are_dockers_at_most() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let ids = ids(&served);
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        let found = bits(&ids, set);
        assert_eq!(found & !DOCKERS, 0, "{set} has more than Docker's: {found:x}");
        assert_ne!(found, 0, "{set} is empty for root");
    }
    for set in ["CapInh", "CapAmb"] {
        assert_eq!(bits(&ids, set), 0, "{set}");
    }
}

#[test]
fn another_user_than_root_has_no_capability() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve(&images::oci("user"), &[]);
    let ids = ids(&served);
    for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
        assert_eq!(bits(&ids, set), 0, "{set}");
    }
}

#[test]
fn no_new_privileges_and_a_seccomp_filter() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let ids = ids(&served);
    assert_eq!(ids["NoNewPrivs"], "1");
    assert_eq!(ids["Seccomp"], "2");
}

#[test]
fn nothing_of_the_host_is_open_in_the_function() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let open = served.get("/descriptors").ok().json();
    let numbers: Vec<&String> = open.as_object().expect("descriptors").keys().collect();
    assert_eq!(numbers, ["0", "1", "2"], "{open}");
    assert_eq!(open["0"], "/dev/null");
    for number in ["1", "2"] {
        assert!(open[number].as_str().is_some_and(|target| target.starts_with("pipe:")), "{open}");
    }
}

#[test]
fn nothing_of_the_callers_environment_is_in_the_function() {
    let sandbox = Sandbox::new();
    let mut command = sandbox.skiff(&["run", &images::oci("function")]);
    command.env("CALLERS_OWN", "x").env("LISTEN_FDS", "1").env("LD_PRELOAD", "");
    let served = sandbox.start(command);
    let environment = served.get("/env").ok().json();
    for name in
        ["CALLERS_OWN", "SKIFF_STATE_DIR", "SKIFF_RUN_DIR", "SKIFF_KEEPER", "DOCKER_CONFIG", "LISTEN_FDS"]
    {
        assert!(environment[name].is_null(), "{name}: {environment}");
    }
}

#[test]
fn the_images_user_runs_it_and_can_be_overridden() {
    let sandbox = Sandbox::with_shared_images();
    let cases: [(&str, &[&str], &str, &str); 5] = [
        ("function", &[], "0 0 0 0", "0 0 0 0"),
        ("user", &[], "1000 1000 1000 1000", "1001 1001 1001 1001"),
        ("user", &["--user", "7:8"], "7 7 7 7", "8 8 8 8"),
        ("function", &["--user", "12345"], "12345 12345 12345 12345", "0 0 0 0"),
        ("user", &["--user", "0:0"], "0 0 0 0", "0 0 0 0"),
    ];
    for (image, options, uid, gid) in cases {
        let served = sandbox.serve(&images::oci(image), options);
        let ids = ids(&served);
        assert_eq!((&ids["Uid"], &ids["Gid"]), (&uid.into(), &gid.into()), "{image} {options:?}");
        let _ = served.stop();
    }
}

#[test]
fn users_and_groups_are_looked_up_by_name_in_the_image() {
    let sandbox = Sandbox::with_shared_images();
    for (options, expected) in [
        (&[][..], "65534:65534"),
        (&["--user", "daemon"], "1:1"),
        (&["--user", "daemon:games"], "1:60"),
        (&["--user", "33:www-data"], "33:33"),
    ] {
        let served = sandbox.serve(&images::oci("python-user"), options);
        let found = served.shell("printf %s:%s $(id -u) $(id -g)");
        assert_eq!(found, expected, "{options:?}");
        let _ = served.stop();
    }
}

#[test]
fn the_working_directory_is_made_and_can_be_overridden() {
    let sandbox = Sandbox::new();
    for (image, options, cwd) in [
        ("function", &[][..], "/"),
        ("workdir", &[], "/work/inside"),
        ("workdir", &["--workdir", "/elsewhere"], "/elsewhere"),
    ] {
        let served = sandbox.serve(&images::oci(image), options);
        assert_eq!(ids(&served)["cwd"], cwd, "{image} {options:?}");
        let _ = served.stop();
    }
}

#[test]
fn entrypoint_and_cmd_and_what_replaces_them() {
    let sandbox = Sandbox::new();
    let cases: [(&str, &[&str], &[&str]); 5] = [
        ("function", &[], &["/function"]),
        ("entrypoint-cmd", &[], &["/function", "late", "1"]),
        ("entrypoint-cmd", &["--", "late", "2"], &["/function", "late", "2"]),
        ("entrypoint-cmd", &["--entrypoint", "/function"], &["/function"]),
        ("no-command", &["--command", r#"["/function","serve"]"#], &["/function", "serve"]),
    ];
    for (image, options, args) in cases {
        let served = sandbox.serve(&images::oci(image), options);
        assert_eq!(ids(&served)["args"], serde_json::json!(args), "{image} {options:?}");
        let _ = served.stop();
    }
}

#[test]
fn a_command_without_a_slash_is_found_in_the_images_path() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve(&images::oci("layered"), &[]);
    assert_eq!(ids(&served)["args"], serde_json::json!(["function"]));
}

#[test]
fn the_images_environment_and_what_replaces_it() {
    let sandbox = Sandbox::new();
    let file = sandbox.write("variables", "# a comment\nFROM_FILE=one two\nSHARED=file\n");
    let file = file.display().to_string();
    let args = ["run", &images::oci("function"), "--env-file", &file, "--env", "MINE=a=b", "--env", "PASSED"];
    let mut command = sandbox.skiff(&args);
    command.env("PASSED", "on");
    let served = sandbox.start(command);
    let environment = served.get("/env").ok().json();
    assert_eq!(environment["IMAGE_SAYS"], "hello");
    assert_eq!(environment["SHARED"], "file");
    assert_eq!(environment["FROM_FILE"], "one two");
    assert_eq!(environment["MINE"], "a=b");
    assert_eq!(environment["PASSED"], "on");
    assert!(environment["PATH"].as_str().is_some_and(|path| path.contains("/usr/bin")), "{environment}");
}

#[test]
fn memory_over_the_limit_ends_the_function() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--memory", "128MiB", "--timeout", "60s"]);
    assert_eq!(served.get("/alloc?mib=40").ok().json()["held_mib"], 40);
    let response = served.get("/oom");
    assert_eq!(response.status, 502, "{response:?}");
    let outcome = served.wait().expect_code(1);
    let told = outcome.stderr.contains("137") || outcome.stderr.to_lowercase().contains("memory");
    assert!(told, "{}", outcome.stderr);
}

#[test]
fn what_a_tmpfs_layer_holds_is_the_functions_memory() {
    let sandbox = Sandbox::new();
    let options =
        ["--writable", "tmpfs", "--writable-size", "512MiB", "--memory", "128MiB", "--timeout", "60s"];
    let served = sandbox.serve_function(&options);
    let response = served.get("/fill?dir=/&mib=400");
    assert_ne!(response.status, 200, "{}", response.text());
}

#[test]
fn processes_over_the_limit_are_refused() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--pids", "32", "--timeout", "60s"]);
    let result = served.get("/fork?n=100").ok().json();
    assert_eq!(result["error"], "EAGAIN", "{result}");
    let started = result["started"].as_u64().expect("a count");
    assert!((16..32).contains(&started), "{started}");
    let _ = served.stop();
}

#[test]
fn the_limit_of_processes_is_the_platforms_unless_told() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    assert_eq!(cgroup_value(&served, "pids", "pids.max"), "1024");
}

#[test]
fn cpu_and_memory_limits_are_in_the_cgroup() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--memory", "192MiB", "--cpus", "0.5"]);
    let v1 = served.init().cgroup_dir("memory").join("memory.limit_in_bytes").exists();
    let (memory, swap, cpu) = if v1 {
        let quota: f64 = cgroup_value(&served, "cpu", "cpu.cfs_quota_us").parse().expect("a quota");
        let period: f64 = cgroup_value(&served, "cpu", "cpu.cfs_period_us").parse().expect("a period");
        // Of memory and swap together, where the kernel counts swap.
        let with_swap = served.init().cgroup_dir("memory").join("memory.memsw.limit_in_bytes");
        let memory = cgroup_value(&served, "memory", "memory.limit_in_bytes");
        let swap = fs::read_to_string(with_swap).ok().map(|both| {
            let (both, memory): (u64, u64) =
                (both.trim().parse().expect("a number"), memory.parse().expect("one"));
            (both - memory).to_string()
        });
        (memory, swap, quota / period)
    } else {
        let cpu = cgroup_value(&served, "cpu", "cpu.max");
        let (quota, period) = cpu.split_once(' ').expect("two numbers");
        let cpu = quota.parse::<f64>().expect("a quota") / period.parse::<f64>().expect("a period");
        let swap = cgroup_value(&served, "memory", "memory.swap.max");
        (cgroup_value(&served, "memory", "memory.max"), Some(swap), cpu)
    };
    assert_eq!(memory, (192 << 20).to_string());
    assert!(swap.is_none_or(|swap| swap == "0"));
    assert!((cpu - 0.5).abs() < 0.001, "{cpu}");
}

/// A file of the cgroup that the container's first process is in.
#[track_caller]
fn cgroup_value(served: &Served, controller: &str, file: &str) -> String {
    let dir = served.init().cgroup_dir(controller);
    assert!(dir.components().any(|part| part.as_os_str() == "skiff"), "{}", dir.display());
    let value = fs::read_to_string(dir.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    value.trim().to_owned()
}

#[test]
fn limits_of_descriptors_and_processes_are_the_platforms() {
    let sandbox = Sandbox::new();
    // Without CAP_SYS_RESOURCE a limit cannot be raised over what this process has.
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let may_raise = skiff_tests::process::has_sys_resource();
    let fc = if may_raise { 100_000 } else { own.min(100_000) };
    for (platform, files) in [("fc", fc.to_string()), ("scf", "1024".to_owned())] {
        let served = sandbox.serve_function(&["--platform", platform]);
        let limits = served.get("/limits").ok().text();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[3..5], [&files, &files], "{platform}");
        let _ = served.stop();
    }
}

#[test]
fn the_network_is_a_loopback_of_its_own() {
    let sandbox = Sandbox::with_shared_images();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let served = sandbox.serve(&images::oci("python"), &[]);
    let interfaces = served.shell("ls /sys/class/net");
    assert_eq!(interfaces.trim(), "lo");
    let script = format!("import socket\nprint(socket.socket().connect_ex(('127.0.0.1', {port})))");
    assert_eq!(served.python(&script).trim(), "111", "it reaches a server of the host");
    let own = "import socket\nprint(socket.socket().connect_ex(('127.0.0.1', 9000)))";
    assert_eq!(served.python(own).trim(), "0", "it does not reach itself");
}

/// Calls that could change the host or break out; each must be refused for root in the container.
#[test]
fn dangerous_system_calls_are_refused() {
    let sandbox = Sandbox::with_shared_images();
    let served = sandbox.serve(&images::oci("python"), &[]);
    let script = r#"
import ctypes, os, stat
libc = ctypes.CDLL(None, use_errno=True)
def call(name, number, *args):
    ctypes.set_errno(0)
    result = libc.syscall(number, *args)
    print(name, result, ctypes.get_errno())
call("unshare-user", 272, 0x10000000)
call("unshare-mnt", 272, 0x00020000)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, b"user", b"x", b"y", 1, -3)
call("bpf", 321, 0, 0, 0)
call("perf_event_open", 298, 0, 0, -1, -1, 0)
call("kexec_load", 246, 0, 0, 0, 0)
call("init_module", 175, 0, 0, 0)
call("reboot", 169, 0, 0, 0, 0)
call("settimeofday", 164, 0, 0)
call("swapon", 167, b"/x", 0)
call("open_by_handle_at", 304, 0, 0, 0)
call("setns", 308, 0, 0)
call("userfaultfd", 323, 0)
call("pivot_root", 155, b"/", b"/")
call("ptrace-host", 101, 16, 1, 0, 0)
"#;
    for line in served.python(script).lines() {
        let words: Vec<&str> = line.split(' ').collect();
        assert_eq!(words.get(1), Some(&"-1"), "{line} was allowed");
        // EPERM from seccomp or for want of a capability, ENOSYS where the profile says so.
        assert!(["1", "38"].contains(words.get(2).unwrap_or(&"")), "{line}");
    }
}

/// Faults of kernels by which who may read a file has written it: Dirty COW (CVE-2016-5195) and Dirty Pipe
/// (CVE-2022-0847). Files of an image are shared by all its instances.
#[test]
fn layers_are_as_they_were_after_a_hostile_run() {
    let sandbox = Sandbox::with_shared_images();
    let image = images::oci("python");
    // A store that was copied, as in the virtual machine, has lost parts of seconds.
    let verified = || sandbox.run(&["image", "verify", &image, "--output", "json"]).stdout();
    let before = verified();
    let served = sandbox.serve(&image, &["--timeout", "120s"]);
    let script = r#"
import mmap, os, sys, threading
sys.setswitchinterval(0.0001)
def dirty_pipe(path):
    reader, writer = os.pipe()
    size = 65536
    os.write(writer, b"x" * size)
    os.read(reader, size)
    file = os.open(path, os.O_RDONLY)
    assert os.splice(file, writer, 1, offset_src=0) == 1
    os.write(writer, b"OVERWRITTEN")
def dirty_cow(path):
    file = os.open(path, os.O_RDONLY)
    memory = mmap.mmap(file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    start = next(int(line.split("-")[0], 16) for line in open("/proc/self/maps") if line.rstrip().endswith(path))
    own = os.open("/proc/self/mem", os.O_RDWR)
    def advise():
        for _ in range(300): memory.madvise(mmap.MADV_DONTNEED)
    thread = threading.Thread(target=advise)
    thread.start()
    for _ in range(300):
        try: os.pwrite(own, b"OVERWRITTEN", start)
        except OSError: break
    thread.join()
for path in ("/etc/passwd", os.path.realpath(sys.executable), os.path.realpath("/bin/sh")):
    before = open(path, "rb").read()
    for attack in (dirty_pipe, dirty_cow):
        attack(path)
        print(attack.__name__, path, "tried", open(path, "rb").read() == before)
"#;
    let told = served.python(script);
    assert_eq!((told.matches("tried True").count(), told.lines().count()), (6, 6), "{told}");
    let _ = served.stop();
    assert!(before.contains("\"layers\":"), "{before}");
    assert_eq!(verified(), before);
}

#[test]
fn devices_of_the_host_cannot_be_opened() {
    let sandbox = Sandbox::with_shared_images();
    let served = sandbox.serve(&images::oci("python"), &[]);
    let root = fs::metadata("/").map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).expect("/");
    let (major, minor) = (rustix::fs::major(root), rustix::fs::minor(root));
    let script = format!(
        "import os, stat\nfor where in ('/dev/disk', '/disk', '/tmp/disk'):\n  try:\n    os.mknod(where, \
         stat.S_IFBLK | 0o600, os.makedev({major}, {minor}))\n    os.open(where, os.O_RDONLY)\n    \
         print('opened', where)\n  except OSError as e:\n    print('refused')\n"
    );
    let answer = served.python(&script);
    assert!(!answer.contains("opened") && answer.matches("refused").count() == 3, "{answer}");
}

#[test]
fn a_setuid_program_gives_no_privilege() {
    let sandbox = Sandbox::with_shared_images();
    let served = sandbox.serve(&images::oci("python-user"), &[]);
    // su of Debian is setuid root; without its privilege it cannot change the user.
    let script = "test -u /bin/su && grep -E '^(NoNewPrivs|CapEff)' /proc/self/status && \
                  ! su -s /bin/sh -c id root </dev/null 2>/dev/null";
    let text = served.shell(script);
    assert!(text.contains("NoNewPrivs:\t1"), "{text}");
}
