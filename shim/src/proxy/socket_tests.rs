//! Unix and TCP listeners on the real file system and network.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::Listener;
use crate::ErrorKind;

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("made")
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("there").permissions().mode() & 0o777
}

/// A socket that nobody listens on any more.
fn dead(path: &Path) {
    drop(UnixListener::bind(path).expect("bound"));
    assert!(path.exists());
}

#[test]
fn a_unix_socket_is_the_owners_alone_and_goes_with_its_listener() {
    let dir = dir();
    let path = dir.path().join("s");
    let listener = Listener::unix(&path).expect("listens");
    assert_eq!(mode(&path), 0o600);
    assert_eq!(listener.address(), format!("unix:{}", path.display()));
    UnixStream::connect(&path).expect("connects");
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_live_socket_is_not_replaced() {
    let dir = dir();
    let path = dir.path().join("s");
    let first = Listener::unix(&path).expect("listens");
    let error = Listener::unix(&path).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    assert!(error.advice().is_some());
    UnixStream::connect(&path).expect("the first still listens");
    drop(first);
    Listener::unix(&path).expect("free again");
}

#[test]
fn a_dead_socket_is_replaced() {
    let dir = dir();
    let path = dir.path().join("s");
    dead(&path);
    let _listener = Listener::unix(&path).expect("listens");
    UnixStream::connect(&path).expect("connects");
}

#[test]
fn anything_else_in_the_way_is_kept() {
    let dir = dir();
    let real = dir.path().join("real");
    dead(&real);
    type Make = fn(&Path, &Path);
    let cases: [(&str, Make); 3] = [
        ("file", |path, _| fs::write(path, "precious").expect("written")),
        ("directory", |path, _| fs::create_dir(path).expect("made")),
        ("link", |path, real| symlink(real, path).expect("linked")),
    ];
    for (name, make) in cases {
        let path = dir.path().join(name);
        make(&path, &real);
        let error = Listener::unix(&path).expect_err(name);
        assert_eq!(error.kind(), ErrorKind::Listen);
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert!(fs::symlink_metadata(&path).is_ok(), "{name} is still there");
    }
    assert_eq!(fs::read(dir.path().join("file")).expect("readable"), b"precious");
}

#[test]
fn paths_that_cannot_be_are_explained() {
    let dir = dir();
    for (path, part) in [
        (dir.path().join("missing/s"), "directory cannot be opened"),
        (PathBuf::from("/"), "names no file"),
        (PathBuf::from(""), "names no file"),
        (dir.path().join("x".repeat(300)), "bind"),
    ] {
        let error = Listener::unix(&path).expect_err("impossible");
        assert_eq!(error.kind(), ErrorKind::Listen);
        assert!(error.chain().contains(part) || error.chain().contains("too long"), "{}", error.chain());
    }
}

#[test]
fn a_path_longer_than_an_address_works() {
    let dir = dir();
    let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
    fs::create_dir_all(&deep).expect("made");
    let path = deep.join("invoke.sock");
    assert!(path.as_os_str().len() > 200);
    let listener = Listener::unix(&path).expect("listens");
    assert_eq!(mode(&path), 0o600);
    let error = Listener::unix(&path).expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    drop(listener);
    assert!(!path.exists());
}

#[test]
fn a_socket_that_is_another_ones_by_now_is_not_removed() {
    let dir = dir();
    let path = dir.path().join("s");
    let first = Listener::unix(&path).expect("listens");
    fs::rename(&path, dir.path().join("moved")).expect("moved");
    let _second = Listener::unix(&path).expect("listens");
    drop(first);
    UnixStream::connect(&path).expect("the second still listens");
}

#[test]
fn of_many_that_start_at_once_one_listens() {
    let dir = dir();
    let path = dir.path().join("s");
    dead(&path);
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| Listener::unix(&path))).collect();
        threads.into_iter().map(|thread| thread.join().expect("joined")).collect()
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    UnixStream::connect(&path).expect("the winner listens");
}

#[tokio::test]
async fn a_tcp_port_in_use_is_named() {
    let first = Listener::tcp(([127, 0, 0, 1], 0).into()).await.expect("listens");
    let address = first.address();
    let address = address.strip_prefix("http://").expect("prefix");
    let error = Listener::tcp(address.parse().expect("address")).await.expect_err("in use");
    assert_eq!(error.kind(), ErrorKind::AddressInUse);
    assert!(error.to_string().contains(address), "{error}");
    assert!(error.advice().expect("advice").contains("another port"));
    drop(first);
    Listener::tcp(address.parse().expect("address")).await.expect("free again");
}

#[tokio::test]
async fn an_address_of_another_host_is_explained() {
    let error = Listener::tcp(([192, 0, 2, 1], 0).into()).await.expect_err("not ours");
    assert_eq!(error.kind(), ErrorKind::Listen);
    assert!(error.to_string().contains("192.0.2.1"), "{error}");
}
