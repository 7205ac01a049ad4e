//! The files that a container sees, and how much it can write.

use serde_json::Value;
use skiff_tests::http::Response;
use skiff_tests::{Sandbox, Served, images, process};

const MIB: u64 = 1024 * 1024;

#[track_caller]
fn json(served: &Served, target: &str) -> Value {
    served.get(target).ok().json()
}

#[track_caller]
fn read(served: &Served, path: &str) -> Response {
    served.get(&format!("/read?path={path}"))
}

/// Writes until it is full; gives the bytes that went in.
#[track_caller]
fn fill(served: &Served, dir: &str, mib: u64) -> u64 {
    let result = json(served, &format!("/fill?dir={dir}&mib={mib}"));
    assert_eq!(result["error"], "ENOSPC", "{dir}: {result}");
    result["bytes"].as_u64().expect("bytes")
}

#[test]
fn the_writable_layer_is_capped_by_enospc() {
    let sandbox = Sandbox::new();
    for kind in ["loop", "tmpfs"] {
        let options =
            ["--writable", kind, "--writable-size", "64MiB", "--memory", "512MiB", "--timeout", "60s"];
        let served = sandbox.serve_function(&options);
        let bytes = fill(&served, "/", 200);
        assert!((40 * MIB..=64 * MIB).contains(&bytes), "{kind}: {} MiB", bytes / MIB);
        let small = json(&served, "/write?path=/tmp/still&text=works");
        assert!(small["error"].is_null(), "/tmp is full too: {small}");
        let _ = served.stop();
    }
}

#[test]
fn a_full_layer_takes_no_more_of_the_host_than_its_cap_and_gives_it_back() {
    let sandbox = Sandbox::new();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    let free = || process::free_bytes(sandbox.state_dir());
    let before = free();
    let served = sandbox.serve_function(&["--writable-size", "256MiB", "--timeout", "60s"]);
    let bytes = fill(&served, "/", 600);
    assert!(bytes > 128 * MIB, "{bytes}");
    let _ = served.stop();
    // Other tests write to the same disk meanwhile; the layer is larger than that.
    let restored = skiff_tests::wait_for(std::time::Duration::from_secs(60), || {
        (free() + 64 * MIB > before).then_some(())
    });
    assert!(restored.is_some(), "{} MiB are gone", (before.saturating_sub(free())) / MIB);
}

#[test]
fn tmp_has_a_cap_of_its_own() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--tmp-size", "16MiB", "--timeout", "60s"]);
    let bytes = fill(&served, "/tmp", 100);
    assert!((8 * MIB..=16 * MIB).contains(&bytes), "{} MiB", bytes / MIB);
    let other = json(&served, "/fill?dir=/&mib=24");
    assert!(other["error"].is_null(), "the root is full too: {other}");
    let tmp = json(&served, "/ls?dir=/");
    assert_eq!(tmp["tmp"]["mode"], "1777");
}

#[test]
fn a_read_only_root_leaves_tmp_writable() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--read-only"]);
    assert_eq!(json(&served, "/write?path=/new&text=x")["error"], "EROFS");
    assert_eq!(json(&served, "/write?path=/data.txt&text=x")["error"], "EROFS");
    assert!(json(&served, "/write?path=/tmp/new&text=x")["error"].is_null());
    assert_eq!(read(&served, "/tmp/new").text(), "x");
}

#[test]
fn what_one_instance_writes_the_next_does_not_see() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    assert!(json(&served, "/write?path=/data.txt&text=changed")["error"].is_null());
    assert!(json(&served, "/write?path=/tmp/mine&text=x")["error"].is_null());
    assert_eq!(read(&served, "/data.txt").text(), "changed");
    let _ = served.stop();
    let served = sandbox.serve_function(&[]);
    assert_eq!(read(&served, "/data.txt").text(), "not a program\n");
    assert_eq!(read(&served, "/tmp/mine").status, 404);
}

#[test]
fn two_instances_at_once_share_no_file() {
    let sandbox = Sandbox::new();
    let (one, two) = (sandbox.serve_function(&[]), sandbox.serve_function(&[]));
    assert!(json(&one, "/write?path=/only&text=one")["error"].is_null());
    assert_eq!(read(&two, "/only").status, 404);
}

#[test]
fn layers_are_stacked_with_their_whiteouts() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve(&images::oci("layered"), &[]);
    let data = json(&served, "/ls?dir=/data");
    let names: Vec<&str> = data.as_object().expect("names").keys().map(String::as_str).collect();
    let mut expected = ["dir", "hard", "keep", "opaque", "remove", "replaced", "setuid", "soft"];
    expected.sort_unstable();
    let mut found = names.clone();
    found.sort_unstable();
    assert_eq!(found, expected, "a whiteout is wrong");
    assert_eq!(read(&served, "/data/keep").text(), "kept\n");
    assert_eq!(read(&served, "/data/remove").text(), "back\n");
    assert_eq!(read(&served, "/data/dir/a").text(), "old\n");
    assert_eq!(read(&served, "/data/dir/b").text(), "new\n");
    assert_eq!(read(&served, "/data/replaced/file").text(), "a directory now\n");
    let opaque = json(&served, "/ls?dir=/data/opaque");
    assert_eq!(opaque.as_object().expect("names").keys().collect::<Vec<_>>(), ["new"]);
}

#[test]
fn owners_modes_and_links_are_the_images() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve(&images::oci("layered"), &[]);
    let data = json(&served, "/ls?dir=/data");
    assert_eq!(data["setuid"]["mode"], "4755");
    assert_eq!((&data["setuid"]["uid"], &data["setuid"]["gid"]), (&12.into(), &34.into()));
    assert_eq!((&data["soft"]["type"], &data["soft"]["target"]), (&"symlink".into(), &"keep".into()));
    assert_eq!(read(&served, "/data/soft").text(), "kept\n");
    assert_eq!(read(&served, "/data/hard").text(), "kept\n");
}

#[test]
fn files_of_the_network_are_there_as_in_any_container() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let hostname = read(&served, "/etc/hostname").ok().text();
    let hostname = hostname.trim();
    assert!(!hostname.is_empty());
    assert_eq!(read(&served, "/proc/sys/kernel/hostname").ok().text().trim(), hostname);
    let hosts = read(&served, "/etc/hosts").ok().text();
    let has = |address: &str, name: &str| {
        hosts.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(address) && words.any(|word| word == name)
        })
    };
    assert!(has("127.0.0.1", "localhost"), "{hosts}");
    assert!(hosts.contains(hostname), "{hosts}");
    assert!(read(&served, "/etc/resolv.conf").ok().text().contains("nameserver"));
    let etc = json(&served, "/ls?dir=/etc");
    for name in ["hosts", "hostname", "resolv.conf"] {
        assert_eq!(etc[name]["mode"], "644", "{name}");
    }
}

#[test]
fn devices_are_the_harmless_ones() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let dev = json(&served, "/ls?dir=/dev");
    let devices =
        [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in devices {
        assert_eq!(dev[name]["type"], "character device", "{name}: {dev}");
        assert_eq!(dev[name]["rdev"], serde_json::json!([major, minor]), "{name}");
        assert_eq!(dev[name]["mode"], "666", "{name}");
    }
    for name in ["shm", "pts", "mqueue"] {
        assert_eq!(dev[name]["type"], "directory", "{name}: {dev}");
    }
    for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"), ("ptmx", "pts/ptmx")] {
        assert_eq!(dev[name]["target"], target, "{name}");
    }
    for (name, entry) in dev.as_object().expect("names") {
        assert_ne!(entry["type"], "block device", "{name}");
    }
    for name in ["kmsg", "mem", "kvm", "fuse", "loop-control", "sda", "vda"] {
        assert!(dev[name].is_null(), "{name}");
    }
    assert!(json(&served, "/write?path=/dev/null&text=x")["error"].is_null());
    assert!(json(&served, "/write?path=/dev/shm/x&text=x")["error"].is_null());
}

#[test]
fn proc_and_sys_are_there_and_cannot_change_the_host() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    assert!(read(&served, "/proc/1/status").ok().text().contains("Pid:\t1\n"));
    assert!(!json(&served, "/ls?dir=/sys/class")["net"].is_null());
    let files = [
        "proc/sys/kernel/hostname",
        "proc/sys/vm/drop_caches",
        "proc/sysrq-trigger",
        "sys/kernel/mm/ksm/run",
    ];
    for path in files.map(|file| format!("/{file}")) {
        let error = json(&served, &format!("/write?path={path}&text=h"))["error"].clone();
        assert!(["EROFS", "EACCES", "EPERM", "ENOENT"].iter().any(|name| error == *name), "{path}: {error}");
    }
}

#[test]
fn paths_that_tell_of_the_host_are_masked() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    for path in ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug"] {
        let response = read(&served, path);
        assert!(response.body.is_empty() || response.status == 404, "{path}: {} bytes", response.body.len());
    }
    for dir in ["/proc/scsi", "/sys/firmware", "/proc/acpi", "/sys/devices/virtual/powercap"] {
        let list = json(&served, &format!("/ls?dir={dir}"));
        let empty = list.as_object().is_some_and(serde_json::Map::is_empty);
        assert!(empty || list["error"] == "ENOENT", "{dir}: {list}");
    }
}

#[test]
fn no_mount_of_the_host_is_seen_and_none_is_shared() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mounts = served.get("/mounts").ok().text();
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
    assert!(root.contains(" - overlay "), "{root}");
    for line in mounts.lines() {
        assert!(!line.contains(" shared:"), "{line}");
    }
    let tmp = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/tmp")).expect("/tmp");
    for option in ["nosuid", "nodev"] {
        assert!(tmp.split(' ').nth(5).is_some_and(|options| options.contains(option)), "{tmp}");
    }
    let host = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let ours = sandbox.path().display().to_string();
    assert!(!host.contains(&ours), "a mount of a container is on the host");
}

/// The image `function` with layers that a shell script makes of it, in the layout `img`.
fn image_with_layers(sandbox: &Sandbox, script: &str) -> String {
    let script = format!("skopeo copy -q '{}' oci:img:more; {script}", images::oci("function"));
    let output = std::process::Command::new("sh")
        .args(["-euc", &script])
        .current_dir(sandbox.path())
        .output()
        .expect("a shell");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    format!("oci:{}:more", sandbox.path().join("img").display())
}

#[test]
fn names_lead_through_links_of_lower_layers() {
    let sandbox = Sandbox::new();
    let image = image_with_layers(
        &sandbox,
        "add() { umoci --log=error raw add-layer --no-history --image img:more $1; }
         mkdir -p low/usr/lib high/lib; ln -s usr/lib low/lib; echo old >low/usr/lib/old; echo x >high/lib/x
         tar -C low -cf low.tar usr lib; tar -C high -cf high.tar lib/x; add low.tar; add high.tar",
    );
    for options in [&[][..], &["--userns"]] {
        let served = sandbox.serve(&image, options);
        for (path, text) in [("/lib/x", "x\n"), ("/usr/lib/x", "x\n"), ("/lib/old", "old\n")] {
            assert_eq!(read(&served, path).ok().text(), text, "{options:?}: {path}");
        }
        assert_eq!(json(&served, "/ls?dir=/")["lib"]["target"], "usr/lib");
        let _ = served.stop();
    }
}

/// An image that has nodes of the host's root disk and of `/dev/zero`.
fn image_with_devices(sandbox: &Sandbox) -> String {
    let disk = std::fs::metadata("/").map(|meta| std::os::unix::fs::MetadataExt::dev(&meta)).expect("/");
    let (major, minor) = (rustix::fs::major(disk), rustix::fs::minor(disk));
    image_with_layers(
        sandbox,
        &format!(
            "mkdir layer; mknod -m 666 layer/zero c 1 5; mknod -m 666 layer/disk b {major} {minor}
             tar -C layer -cf layer.tar zero disk
             umoci --log=error raw add-layer --no-history --image img:more layer.tar"
        ),
    )
}

#[test]
fn devices_of_an_image_are_there_and_cannot_be_opened() {
    let sandbox = Sandbox::new();
    let image = image_with_devices(&sandbox);
    for options in [&[][..], &["--read-only"], &["--writable", "tmpfs"]] {
        let served = sandbox.serve(&image, options);
        let all = json(&served, "/ls?dir=/");
        for (name, kind) in [("zero", "character device"), ("disk", "block device")] {
            assert_eq!((&all[name]["type"], &all[name]["mode"]), (&kind.into(), &"666".into()), "{all}");
            let response = read(&served, &format!("/{name}"));
            assert_eq!((response.status, response.text().as_str()), (404, "EACCES"), "{options:?}: {name}");
        }
        let mounts = served.get("/mounts").ok().text();
        let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
        let options = root.split(' ').nth(5).expect("options");
        assert!(options.split(',').any(|option| option == "nodev"), "{root}");
        let _ = served.stop();
    }
}
