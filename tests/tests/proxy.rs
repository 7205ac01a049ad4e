//! Requests through the socket reach the function as they were sent, and answers come back so.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use skiff_tests::http::Connection;
use skiff_tests::{Sandbox, images};

/// The values of a header as the function saw it.
fn seen<'a>(request: &'a Value, name: &str) -> Vec<&'a str> {
    let pairs = request["headers"].as_array().expect("headers").iter();
    pairs.filter(|pair| pair[0] == name).filter_map(|pair| pair[1].as_str()).collect()
}

#[test]
fn method_path_query_headers_and_body_are_intact() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let target = "/request/a%20b//c;d/%C3%A9?x=1&y=%2F&z&x=2";
    let headers = [("X-Custom", "one"), ("X-Custom", "two"), ("Accept", "*/*"), ("Cookie", "a=1; b=2")];
    for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let body: &[u8] = if method == "GET" { b"" } else { "the body \u{e9}".as_bytes() };
        let request = served.request(method, target, &headers, body).ok().json();
        assert_eq!(request["method"], method);
        assert_eq!(request["uri"], target);
        assert_eq!(request["body"].as_str().map(str::as_bytes), Some(body), "{method}");
        assert_eq!(seen(&request, "x-custom"), ["one", "two"]);
        assert_eq!(seen(&request, "cookie"), ["a=1; b=2"]);
        assert_eq!(seen(&request, "host"), ["function.test"]);
    }
}

#[test]
fn status_and_headers_of_the_answer_are_intact() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    for status in [200, 201, 204, 301, 404, 418, 500, 503] {
        let response = served.get(&format!("/status/{status}"));
        assert_eq!(response.status, status);
        assert_eq!(response.header("x-function"), Some("yes"), "{response:?}");
        if status != 204 {
            assert_eq!(response.text(), format!("status {status}\n"));
        }
    }
}

#[test]
fn head_has_no_body_and_the_connection_goes_on() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    let head = connection.request("HEAD", "/status/200", &[], b"");
    assert_eq!((head.status, head.body.len()), (200, 0));
    let get = connection.request("GET", "/status/200", &[], b"");
    assert_eq!(get.text(), "status 200\n");
}

#[test]
fn the_platforms_headers_are_added_and_forged_ones_are_dropped() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--name", "proxied"]);
    let forged =
        [("x-fc-request-id", "forged"), ("X-Fc-Function-Name", "forged"), ("x-fc-unheard-of", "forged")];
    let request = served.request("POST", "/request", &forged, b"{}").ok().json();
    assert!(!request.to_string().contains("forged"), "{request}");
    assert_eq!(seen(&request, "x-fc-function-name"), ["proxied"]);
    assert_eq!(seen(&request, "x-fc-request-id").len(), 1);
    let again = served.get("/request").ok().json();
    assert_ne!(seen(&request, "x-fc-request-id"), seen(&again, "x-fc-request-id"));
}

#[test]
fn headers_of_one_hop_do_not_pass() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let headers =
        [("Connection", "X-Private"), ("X-Private", "1"), ("Keep-Alive", "timeout=5"), ("TE", "gzip")];
    let request = served.request("GET", "/request", &headers, b"").ok().json();
    for name in ["x-private", "keep-alive", "te", "upgrade"] {
        assert_eq!(seen(&request, name), [""; 0], "{name}: {request}");
    }
}

#[test]
fn bodies_stream_both_ways_without_waiting_for_their_end() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send_head("POST", "/echo", &[("Transfer-Encoding", "chunked")]);
    connection.send_chunk(b"first");
    assert_eq!(connection.read_head().status, 200);
    assert_eq!(connection.read_part().as_deref(), Some(&b"first"[..]));
    // The second chunk does not exist before the first has come back.
    connection.send_chunk(b"second");
    assert_eq!(connection.read_part().as_deref(), Some(&b"second"[..]));
    connection.send_chunk(b"");
    assert_eq!(connection.read_part(), None);
}

#[test]
fn an_answer_arrives_while_it_is_made() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--timeout", "30s"]);
    let mut connection = served.connect();
    connection.send_head("GET", "/stream?n=3&ms=700", &[]);
    assert_eq!(connection.read_head().status, 200);
    let mut times = Vec::new();
    let mut whole = Vec::new();
    while let Some(part) = connection.read_part() {
        times.push(Instant::now());
        whole.extend_from_slice(&part);
    }
    assert_eq!(whole, b"chunk 0\nchunk 1\nchunk 2\n");
    assert_eq!(times.len(), 3, "the chunks did not come one by one");
    assert!(times[1] - times[0] > Duration::from_millis(350), "{:?}", times[1] - times[0]);
}

#[test]
fn a_large_body_passes_unchanged_and_is_not_gathered() {
    const SIZE: usize = 24 << 20;
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--timeout", "60s"]);
    let _ = served.get("/status/200");
    let before = peak_kib(served.pid());
    let (mut writer, mut reader) = Connection::halves(served.socket()).expect("connect");
    let bytes: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    let sent = bytes.clone();
    let thread = std::thread::spawn(move || {
        let head = format!("POST /echo HTTP/1.1\r\nHost: f\r\nContent-Length: {SIZE}\r\n\r\n");
        writer.write_all(head.as_bytes()).and_then(|()| writer.write_all(&sent)).expect("send");
    });
    let response = reader.read_response("POST");
    thread.join().expect("the sender");
    assert!(response.body == bytes, "{} bytes of {SIZE} came back", response.body.len());
    let grown = peak_kib(served.pid()).saturating_sub(before);
    assert!(grown < 8 << 10, "skiff grew by {grown} KiB for a body of {SIZE} bytes");
}

/// The highest resident size of a process so far.
fn peak_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

#[test]
fn many_requests_at_once_and_many_in_a_row() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    std::thread::scope(|scope| {
        for client in 0..20 {
            let served = &served;
            scope.spawn(move || {
                let mut connection = served.connect();
                for number in 0..20 {
                    let body = format!("{client}/{number}");
                    let answer = connection.request("POST", "/request", &[], body.as_bytes()).ok().json();
                    assert_eq!(answer["body"], body.as_str());
                }
            });
        }
    });
}

#[test]
fn a_client_that_goes_away_disturbs_nobody() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    for _ in 0..5 {
        let mut connection = served.connect();
        connection.send_head("POST", "/echo", &[("Content-Length", "1000")]);
        connection.send(b"only this");
        drop(connection);
    }
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn a_client_that_expects_100_continue_is_told_to() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send_head("POST", "/request", &[("Content-Length", "2"), ("Expect", "100-continue")]);
    assert_eq!(connection.read_any_head().status, 100);
    connection.send(b"{}");
    assert_eq!(connection.read_response("POST").ok().json()["body"], "{}");
}

#[test]
fn what_is_no_http_is_refused_and_disturbs_nobody() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send(b"this is no request\r\n\r\n");
    assert_eq!(connection.read_head().status, 400);
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn a_function_that_dies_during_a_request_is_told_as_the_platform_tells_it() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let response = served.request("POST", "/exit/3", &[], b"");
    assert_eq!(response.status, 502, "{response:?}");
    let text = "Process exited unexpectedly before completing request";
    assert!(response.text().contains(text), "{}", response.text());
    served.wait().fails(1, &["3"]);
}

#[test]
fn an_invocation_over_its_time_is_answered_as_the_platform_does() {
    let sandbox = Sandbox::new();
    for (platform, text) in
        [("fc", "Function timed out after 1 second"), ("scf", "Invoking task timed out after 1 seconds")]
    {
        let served = sandbox.serve_function(&["--platform", platform, "--timeout", "1s"]);
        let response = served.get("/sleep/20000");
        assert!(response.status >= 400, "{response:?}");
        let all = format!("{:?} {}", response.headers, response.text());
        assert!(all.contains(text), "{text} is not in {all}");
    }
}

#[test]
fn node_and_python_servers_answer_too() {
    let sandbox = Sandbox::with_shared_images();
    for image in ["node", "python"] {
        let served = sandbox.serve(&images::oci(image), &["--env", "MODE=proxy"]);
        let answer = served.request("POST", "/some/path?q=1", &[("X-Mine", "yes")], b"hello").ok().json();
        assert_eq!(answer["server"], image);
        assert_eq!(answer["uri"], "/some/path?q=1");
        assert_eq!(answer["body"], "hello");
        let _ = served.stop();
    }
}

#[test]
fn a_chosen_socket_is_private_and_goes_at_the_end() {
    let sandbox = Sandbox::new();
    let path = sandbox.path().join("chosen.sock");
    let served = sandbox.serve_function(&["--socket", &path.display().to_string()]);
    assert_eq!(served.socket(), path);
    let meta = fs::symlink_metadata(&path).expect("the socket");
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o777, 0o600);
    assert_eq!(served.get("/status/200").status, 200);
    let _ = served.stop();
    assert!(!path.exists());
}

#[test]
fn a_dead_socket_is_replaced() {
    let sandbox = Sandbox::new();
    let path = sandbox.path().join("old.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let served = sandbox.serve_function(&["--socket", &path.display().to_string()]);
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn a_socket_path_of_more_than_107_bytes_works() {
    let sandbox = Sandbox::new();
    let dir = sandbox.path().join("d".repeat(120));
    fs::create_dir(&dir).expect("a directory");
    let path = dir.join("f.sock");
    let served = sandbox.serve_function(&["--socket", &path.display().to_string()]);
    // A client has the same bound: it goes by way of a short name.
    let short = sandbox.path().join("s");
    std::os::unix::fs::symlink(&dir, &short).expect("a link");
    let mut connection = Connection::unix(&short.join("f.sock")).expect("connect");
    assert_eq!(connection.request("GET", "/status/200", &[], b"").status, 200);
    let _ = served.stop();
    assert!(!path.exists());
}

#[test]
fn a_tcp_address_is_served_beside_the_socket() {
    let sandbox = Sandbox::new();
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port").port();
    let address = format!("127.0.0.1:{port}");
    let served = sandbox.serve_function(&["--listen", &address]);
    let mut connection = Connection::tcp(&address).expect("connect");
    let request = connection.request("POST", "/request?tcp", &[], b"x").ok().json();
    assert_eq!(request["uri"], "/request?tcp");
    assert_eq!(served.get("/status/200").status, 200);
    assert!(served.stdout().contains(&address), "{}", served.stdout());
}

#[test]
fn another_port_of_the_function() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--port", "8080"]);
    let environment = served.get("/env").ok().json();
    assert_eq!(environment["FC_CUSTOM_LISTEN_PORT"], "8080");
}

#[test]
fn the_function_is_not_on_the_hosts_loopback() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&["--port", "18734"]);
    assert!(Connection::tcp("127.0.0.1:18734").is_err());
    assert_eq!(served.get("/status/200").status, 200);
    assert_eq!(served.request("POST", "/invoke", &[], b"{\"a\":1}").ok().json()["event"], json!({"a": 1}));
}

#[test]
fn an_upgraded_connection_passes_bytes_both_ways() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    connection.send_head("GET", "/upgrade", &[("Connection", "upgrade"), ("Upgrade", "echo")]);
    let head = connection.read_any_head();
    assert_eq!(head.status, 101, "{head:?}");
    assert_eq!(head.header("upgrade"), Some("echo"));
    for message in [&b"one"[..], b"\x00\xff two", &[7; 100_000]] {
        connection.send(message);
        assert!(connection.read_raw(message.len()) == message, "the bytes have changed");
    }
    drop(connection);
    assert_eq!(served.get("/status/200").status, 200);
}

#[test]
fn trailers_of_a_request_arrive() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    let mut connection = served.connect();
    let headers = [("Transfer-Encoding", "chunked"), ("Trailer", "X-Sum"), ("TE", "trailers")];
    connection.send_head("POST", "/request", &headers);
    connection.send_chunk(b"body");
    connection.send(b"0\r\nX-Sum: 42\r\n\r\n");
    let request = connection.read_response("POST").ok().json();
    assert_eq!(request["body"], "body");
    assert_eq!(request["trailers"], json!([["x-sum", "42"]]), "{request}");
}

#[test]
fn requests_do_not_use_up_descriptors() {
    let sandbox = Sandbox::new();
    let served = sandbox.serve_function(&[]);
    // A client that goes may cost the instance; disks are made ready for the next ones, some at most. They are
    // roots of filesystems that are attached nowhere.
    let is_disk = |fd: &fs::DirEntry| {
        fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("/") || to.starts_with("/dev"))
    };
    let open = |pid: u32| {
        let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").flatten();
        all.filter(|fd| !is_disk(fd)).count()
    };
    let pids = [served.pid(), served.keeper().pid];
    for _ in 0..20 {
        let _ = served.get("/status/200");
    }
    let before = pids.map(open);
    for number in 0..200 {
        let mut connection = served.connect();
        // Some go away in the middle.
        if number % 3 == 0 {
            connection.send_head("POST", "/echo", &[("Content-Length", "10")]);
        } else {
            let _ = connection.request("GET", "/status/200", &[], b"");
        }
    }
    let after = skiff_tests::wait_for(Duration::from_secs(10), || {
        let after = pids.map(open);
        (after[0] <= before[0] + 3 && after[1] <= before[1]).then_some(())
    });
    assert!(after.is_some(), "{before:?} became {:?}", pids.map(open));
}
