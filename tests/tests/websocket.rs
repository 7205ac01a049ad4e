//! WebSockets of functions of Tencent SCF: how long they may be idle, and how they may end.

use std::io::Write as _;
use std::time::Duration;

use skiff_tests::http::Connection;
use skiff_tests::{Sandbox, Served};

fn serve(sandbox: &Sandbox) -> Served {
    let options = ["--platform", "scf", "--timeout", "60s", "--websocket-idle", "2s"];
    sandbox.serve_function(&options)
}

/// A connection to the function's server, which says everything back.
fn open(served: &Served) -> Connection {
    let mut connection = served.connect();
    connection.send_head("GET", "/upgrade", &[("Connection", "upgrade"), ("Upgrade", "websocket")]);
    let head = connection.read_any_head();
    assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")), "{head:?}");
    connection
}

/// A frame as clients send them, with a mask of zeros.
fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("a short one");
    [&[0x80 | opcode, 0x80 | length, 0, 0, 0, 0], payload].concat()
}

#[track_caller]
fn say(connection: &mut Connection, frame: &[u8]) {
    connection.send(frame);
    assert_eq!(connection.read_raw(frame.len()), frame);
}

#[track_caller]
fn assert_error(served: &Served, code: u16) {
    served.wait_for_stderr(&format!(r#""statusCode":{code}}}"#));
}

#[test]
fn one_that_is_idle_for_too_long_is_closed() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox);
    let mut connection = open(&served);
    // Longer than the limit in all, and never idle for so long.
    for _ in 0..6 {
        std::thread::sleep(Duration::from_millis(500));
        say(&mut connection, &frame(1, b"hello"));
    }
    assert!(!served.stderr().contains("statusCode"), "{}", served.stderr());
    assert_error(&served, 455);
    assert!(served.stderr().contains("WebSocket connection idle for 2 seconds"), "{}", served.stderr());
}

#[test]
fn a_client_may_close_it_and_not_just_go() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox);
    let mut connection = open(&served);
    say(&mut connection, &frame(8, &1000_u16.to_be_bytes()));
    drop(connection);
    served.wait_for_stderr("END RequestId:");
    assert!(!served.stderr().contains("statusCode"), "{}", served.stderr());
    let mut connection = open(&served);
    say(&mut connection, &frame(2, b"binary"));
    drop(connection);
    assert_error(&served, 456);
}

#[test]
fn a_function_that_ends_meanwhile_is_told_as_one_that_exits() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox);
    let _connection = open(&served);
    let mut other = served.connect();
    other.send_head("POST", "/exit/3", &[("Content-Length", "0")]);
    assert_error(&served, 439);
}

/// A frame of this many bytes as clients send them, with a mask of zeros.
fn large(bytes: usize) -> Vec<u8> {
    let length = u64::try_from(bytes).expect("a length").to_be_bytes();
    [&[0x82, 0x80 | 127][..], &length, &[0; 4], &vec![b'x'; bytes]].concat()
}

#[test]
fn a_message_has_a_megabyte_at_most() {
    let sandbox = Sandbox::new();
    let served = serve(&sandbox);
    let (mut writer, mut reader) = Connection::halves(served.socket()).expect("it listens");
    let head = b"GET /upgrade HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    writer.write_all(head).expect("written");
    assert_eq!(reader.read_any_head().status, 101);
    let whole = large(1 << 20);
    // What comes back is read beside what is sent: nothing in between holds so much.
    std::thread::scope(|scope| {
        let length = whole.len();
        let read = scope.spawn(move || reader.read_raw(length));
        writer.write_all(&whole).expect("written");
        assert!(read.join().expect("read") == whole, "something else came back");
    });
    // It may be broken off before all has been written.
    let _ = writer.write_all(&large((1 << 20) + 1));
    assert_error(&served, 406);
    let told = served.stderr();
    assert!(told.contains("WebSocket message exceeds maximum allowed size (1048576 bytes)"), "{told}");
    // The function goes on.
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn one_ends_with_the_functions_time() {
    for (platform, told) in [("fc", "Function timed out after 5 seconds"), ("scf", r#""statusCode":433}"#)] {
        let sandbox = Sandbox::new();
        let served = sandbox.serve_function(&["--platform", platform, "--timeout", "5s"]);
        let mut connection = open(&served);
        say(&mut connection, &frame(1, b"hello"));
        served.wait_for_stderr(told);
        assert_eq!(connection.read_part(), None, "{platform}: it is closed");
        served.stop();
    }
}
