//! Image acceleration: what a start touches is recorded once and read ahead later; it never stands in
//! a start's way.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::fs::{Advice, fadvise};
use rustix::process::Signal;
use serde_json::Value;
use skiff_tests::process::{self, Process};
use skiff_tests::{Baseline, Sandbox, images, wait_for};

/// All lists of a sandbox.
fn lists(sandbox: &Sandbox) -> Vec<PathBuf> {
    let Ok(dirs) = fs::read_dir(sandbox.state_dir().join("traces")) else { return Vec::new() };
    let files = dirs.flatten().filter_map(|dir| fs::read_dir(dir.path()).ok());
    files.flat_map(|entries| entries.flatten().map(|entry| entry.path())).collect()
}

/// The one list, with its paths.
#[track_caller]
fn recorded(sandbox: &Sandbox) -> (PathBuf, Vec<String>) {
    let [list] = &lists(sandbox)[..] else { panic!("not one list: {:?}", lists(sandbox)) };
    let value: Value = serde_json::from_slice(&fs::read(list).expect("a list")).expect("JSON");
    let entries = value["entries"].as_array().expect("entries").clone();
    let paths = entries.iter().map(|entry| entry["path"].as_str().expect("a path").to_owned());
    (list.clone(), paths.collect())
}

/// Descriptors of a process that are fanotify groups.
fn groups(pid: u32) -> usize {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
    let is_group =
        |path: &Path| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("fanotify"));
    entries.flatten().filter(|entry| is_group(&entry.path())).count()
}

/// Takes the files of all layers out of the page cache.
fn drop_pages(dir: &Path) {
    for entry in fs::read_dir(dir).expect("a directory").flatten() {
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            drop_pages(&entry.path());
        } else if kind.is_file() {
            let file = File::open(entry.path()).expect("a file");
            fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
        }
    }
}

#[test]
fn a_prepared_python_knows_its_interpreter_libc_and_server() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let image = images::oci("python");
    let outcome = sandbox.run(&["pull", "--prepare", "--output", "json", &image]).ok();
    let prepared = outcome.json_events().into_iter().find(|event| event["event"] == "prepared");
    let prepared = prepared.unwrap_or_else(|| panic!("not prepared: {}", outcome.stderr));
    assert_eq!(prepared["listened"], true);
    baseline.assert_restored();
    let (_, paths) = recorded(&sandbox);
    assert_eq!(prepared["files"], paths.len());
    for name in ["usr/bin/python3", "/libc.so.6", "srv/server.py", "/ld-linux", "http"] {
        assert!(paths.iter().any(|path| path.contains(name)), "{name} is not in {paths:?}");
    }
    let strange =
        paths.iter().find(|path| path.starts_with('/') || path.contains("rootfs") || path.contains(".."));
    assert_eq!(strange, None);
    // 250 MB are in the image; a start needs little of it.
    let bytes = prepared["bytes"].as_u64().expect("a number");
    assert!((1 << 20..40 << 20).contains(&bytes), "{bytes}");
    let json = &["--accelerate", "--log-level", "debug", "--output", "json"];
    let told = |message: &str, outcome: &skiff_tests::Outcome| {
        outcome.json_events().iter().any(|event| event["message"].as_str() == Some(message))
    };
    // What the host takes out of its page cache meanwhile, a start puts back.
    let warm = (0..5).map(|_| sandbox.event(&image, json).ok());
    let warm = warm.into_iter().any(|run| told("the page cache is warm: nothing is read ahead", &run));
    assert!(warm, "each of five starts read ahead");
    rustix::fs::sync();
    drop_pages(&sandbox.state_dir().join("layers"));
    let cold = sandbox.event(&image, json).ok();
    assert!(told("read ahead", &cold), "{}", cold.stderr);
    baseline.assert_restored();
}

/// How many pages of a part of a file are not in the page cache (mincore(2)).
fn absent_pages(file: &Path, offset: u64, length: u64) -> u64 {
    let script = "import ctypes, mmap, sys
file, offset, length = open(sys.argv[1], 'rb'), int(sys.argv[2]), int(sys.argv[3])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
at = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), offset)
assert at != ctypes.c_void_p(-1).value, ctypes.get_errno()
pages = (ctypes.c_ubyte * -(-length // mmap.PAGESIZE))()
assert libc.mincore(ctypes.c_void_p(at), ctypes.c_size_t(length), pages) == 0, ctypes.get_errno()
print(sum(1 for page in pages if not page & 1))";
    let arguments = [file.display().to_string(), offset.to_string(), length.to_string()];
    let told = skiff_tests::must("python3", &["-c", script, &arguments[0], &arguments[1], &arguments[2]]);
    told.trim().parse().expect("a number")
}

/// The largest file of all layers that is not in a list.
fn largest_beside(dir: &Path, listed: &[String]) -> (u64, PathBuf) {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let of = |entry: fs::DirEntry| {
        let (path, kind) = (entry.path(), entry.file_type().expect("a type"));
        if kind.is_dir() {
            return largest_beside(&path, listed);
        }
        let is_free = kind.is_file() && !listed.iter().any(|name| path.ends_with(name));
        (if is_free { entry.metadata().expect("a size").len() } else { 0 }, path)
    };
    entries.map(of).max().unwrap_or_default()
}

/// A part of a file that the start itself never reads is in the page cache afterwards if the list says so,
/// and not otherwise.
#[test]
fn what_the_list_says_is_in_the_page_cache_after_a_cold_start() {
    const OFFSET: u64 = 64 << 10;
    const LENGTH: u64 = 3 << 20;
    let sandbox = Sandbox::new();
    let image = images::oci("python");
    let _ = sandbox.run(&["pull", "--prepare", &image]).ok();
    let (list, paths) = recorded(&sandbox);
    let layers = sandbox.state_dir().join("layers");
    let (size, file) = largest_beside(&layers, &paths);
    assert!(size > OFFSET + 2 * LENGTH, "{} has {size} bytes", file.display());
    let in_image = file.iter().skip_while(|part| *part != "fs").skip(1).collect::<PathBuf>();
    let mut value: Value = serde_json::from_slice(&fs::read(&list).expect("a list")).expect("JSON");
    let more = serde_json::json!({"path": in_image.to_str().expect("a path"), "ranges": [[OFFSET, LENGTH]]});
    value["entries"].as_array_mut().expect("entries").push(more);
    fs::write(&list, value.to_string()).expect("written");
    let absent = || absent_pages(&file, OFFSET, LENGTH);
    for (options, is_read) in [(&[][..], false), (&["--accelerate"], true)] {
        rustix::fs::sync();
        drop_pages(&layers);
        assert_eq!(absent(), LENGTH / 4096, "the page cache is not cold");
        let served = sandbox.serve(&image, options);
        assert_eq!(served.get("/").status, 200);
        // It goes on beside the start, which does not wait for it.
        let there = wait_for(Duration::from_secs(20), || (!is_read || absent() == 0).then_some(()));
        assert!(there.is_some(), "{} pages of {} are not there", absent(), file.display());
        assert_eq!(absent() == 0, is_read, "{options:?}");
        let behind = absent_pages(&file, OFFSET + LENGTH + (1 << 20), 1 << 20);
        assert_eq!(behind, 256, "more is read than the list says");
        let _ = served.stop();
    }
}

#[test]
fn the_first_accelerated_run_is_recorded_and_others_are_not() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let _ = sandbox.event(&image, &[]).ok();
    assert!(lists(&sandbox).is_empty(), "acceleration is off");
    let _ = sandbox.event(&image, &["--accelerate"]).ok();
    let (list, paths) = recorded(&sandbox);
    assert!(paths.contains(&"function".to_owned()), "{paths:?}");
    let before = fs::metadata(&list).expect("a list").modified().expect("a time");
    let _ = sandbox.event(&image, &["--accelerate"]).ok();
    assert_eq!(fs::metadata(&list).expect("a list").modified().expect("a time"), before, "recorded again");
    // Another command of the same image is another start.
    let _ = sandbox.event(&image, &["--accelerate", "--", "late", "1"]).ok();
    assert_eq!(lists(&sandbox).len(), 2);
}

#[test]
fn a_damaged_list_is_made_again_and_harms_no_start() {
    let sandbox = Sandbox::new();
    let image = images::oci("function");
    let _ = sandbox.event(&image, &["--accelerate"]).ok();
    let (list, good) = recorded(&sandbox);
    let hostile = r#"{"version":1,"entries":[{"path":"/etc/shadow","ranges":[[0,99]]}]}"#;
    for bytes in [b"\x00\xffjunk".to_vec(), hostile.into(), vec![b'['; 1 << 20]] {
        fs::write(&list, bytes).expect("written");
        let _ = sandbox.event(&image, &["--accelerate"]).ok();
        // The start that found it may have removed it only after it had looked whether to record.
        let _ = sandbox.event(&image, &["--accelerate"]).ok();
        assert_eq!(recorded(&sandbox).1, good);
    }
}

#[test]
fn what_cannot_be_prepared_is_pulled_and_warned_of() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let outcome = sandbox.run(&["pull", "--prepare", &images::oci("exits")]).ok();
    assert!(outcome.stderr.contains("warning: the image is pulled, but not prepared"), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("exited with code 7"), "{}", outcome.stderr);
    assert!(outcome.stdout().starts_with("sha256:"), "{}", outcome.stdout());
    let image = images::oci("function");
    let outcome = sandbox.run(&["pull", "--prepare", "--keeper", "/no/keeper", &image]).ok();
    assert!(outcome.stderr.contains("there is no keeper at /no/keeper"), "{}", outcome.stderr);
    let outcome = sandbox.run(&["pull", "--prepare", &images::oci("no-command")]).ok();
    assert!(outcome.stderr.contains("neither ENTRYPOINT nor CMD"), "{}", outcome.stderr);
    assert!(lists(&sandbox).is_empty());
    baseline.assert_restored();
}

#[test]
fn a_server_that_does_not_listen_is_recorded_for_ten_seconds() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let outcome = sandbox.run(&["pull", "--prepare", &images::oci("hangs")]).ok();
    assert!(outcome.stderr.contains("did not listen in that time"), "{}", outcome.stderr);
    assert!(recorded(&sandbox).1.contains(&"function".to_owned()));
    baseline.assert_restored();
}

/// A run of a command that does not listen, when its container runs.
fn recording(sandbox: &Sandbox, options: &[&str]) -> (Child, Process) {
    let mut command = sandbox.skiff(&[&["run", &images::oci("hangs")], options].concat());
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("skiff");
    let init = wait_for(Duration::from_secs(30), || {
        let keeper = Process::children_of(child.id()).pop()?;
        let all = Process::children_of(keeper.pid);
        all.into_iter().find(|process| process.name == "function")
    });
    (child, init.expect("the container runs"))
}

#[test]
fn kill_9_in_mid_recording_leaves_nothing() {
    let sandbox = Sandbox::new();
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    let baseline = Baseline::take(&sandbox);
    let (mut child, init) = recording(&sandbox, &["--accelerate"]);
    let keeper = init.parent;
    assert!(groups(child.id()) > 0, "it is not recorded");
    assert_eq!((groups(keeper), groups(init.pid)), (0, 0), "the group has leaked");
    process::send(child.id(), Signal::KILL);
    child.wait().expect("dead");
    let dead = wait_for(Duration::from_secs(20), || (!init.is_alive()).then_some(()));
    assert!(dead.is_some(), "{init:?} lives on");
    let _ = sandbox.event(&images::oci("function"), &[]).ok();
    baseline.assert_restored();
    assert!(lists(&sandbox).is_empty());
}

#[test]
fn without_acceleration_there_is_no_group() {
    let sandbox = Sandbox::new();
    let (mut child, init) = recording(&sandbox, &[]);
    assert_eq!((groups(child.id()), groups(init.parent), groups(init.pid)), (0, 0, 0));
    process::send(child.id(), Signal::TERM);
    child.wait().expect("ended");
}
