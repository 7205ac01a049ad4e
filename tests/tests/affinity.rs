//! Session affinity: the calls of a session go to one instance of a node's function.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use skiff_tests::http::Response;
use skiff_tests::{Baseline, Node, Sandbox, wait_for};

const SOON: Duration = Duration::from_secs(20);
const COOKIE: &str = "x-fc-cookie-session-id";

fn deploy(node: &Node<'_>, affinity: &str) {
    let more = format!("[session_affinity]\n{affinity}");
    let _ = node.deploy("demo", "function", &more, &["--max-instances", "2"]).ok();
}

#[track_caller]
fn instance(answer: &Response) -> String {
    answer.header("x-fc-instance-id").expect("an instance").to_owned()
}

/// The session that an answer begins.
fn begun(answer: &Response) -> Option<String> {
    let cookie = answer.header("set-cookie")?;
    let (id, rest) = cookie.strip_prefix(COOKIE)?.strip_prefix('=')?.split_once(';')?;
    assert_eq!(rest, " Max-Age=21600");
    Some(id.to_owned())
}

fn get(node: &Node<'_>, target: &str, session: Option<&str>) -> Response {
    let cookie = session.map(|id| format!("theme=dark; {COOKIE}={id}"));
    let headers: Vec<(&str, &str)> = cookie.iter().map(|cookie| ("cookie", cookie.as_str())).collect();
    node.own("demo").request("GET", target, &headers, b"")
}

#[test]
fn a_cookie_leads_to_the_instance_of_its_session() {
    let sandbox = Sandbox::new();
    let baseline = Baseline::take(&sandbox);
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "sessions = 1");
    let (one, two) = (get(&node, "/status/200", None), get(&node, "/status/200", None));
    let (first, second) = (begun(&one).expect("a cookie"), begun(&two).expect("a cookie"));
    assert!(first != second && instance(&one) != instance(&two), "each has one session");
    for _ in 0..5 {
        for (session, answer) in [(&first, &one), (&second, &two)] {
            let again = get(&node, "/status/200", Some(session));
            assert_eq!((instance(&again), begun(&again)), (instance(answer), None));
        }
    }
    // The function sees all cookies, and calls of a session at once are with its instance.
    let seen = get(&node, "/request", Some(&first)).json();
    assert!(seen["headers"].to_string().contains(&format!("theme=dark; {COOKIE}={first}")), "{seen}");
    let at_once: BTreeSet<String> = thread::scope(|scope| {
        let call = || instance(&get(&node, "/sleep/300", Some(&first)));
        let calls: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        calls.into_iter().map(|call| call.join().expect("answered")).collect()
    });
    assert_eq!(at_once, BTreeSet::from([instance(&one)]));
    // Neither events nor what is for later have a session: there is no place for another one.
    let later =
        node.own("demo").request("GET", "/log?line=said-later", &[("x-fc-invocation-type", "Async")], b"");
    assert_eq!((later.status, later.header("set-cookie")), (202, None));
    let said =
        wait_for(SOON, || sandbox.run(&["logs", "demo"]).ok().stdout().contains("said-later").then_some(()));
    assert!(said.is_some(), "it has not run: {}", node.log());
    assert_eq!(node.invoke("demo", &serde_json::json!({})).ok().header("set-cookie"), None);
    let _ = sandbox.run(&["delete", "demo"]).ok();
    node.stop();
    baseline.assert_restored();
}

#[test]
fn a_session_whose_instance_is_gone_or_whose_time_is_up_is_begun_anew() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "");
    let one = get(&node, "/status/200", None);
    let session = begun(&one).expect("a cookie");
    assert_eq!(get(&node, "/exit/3", Some(&session)).status, 502);
    let gone = wait_for(SOON, || {
        let again = get(&node, "/status/200", Some(&session));
        (again.status == 200 && instance(&again) != instance(&one)).then_some(again)
    });
    let again = gone.expect("another instance");
    assert_eq!(begun(&again).as_ref(), Some(&session), "the cookie is set anew");
    let third = get(&node, "/status/200", Some(&session));
    assert_eq!((instance(&third), begun(&third)), (instance(&again), None));
    // A new revision has other instances.
    deploy(&node, "idle = \"1s\"");
    let moved = get(&node, "/status/200", Some(&session));
    assert_eq!((moved.status, begun(&moved)), (200, Some(session.clone())));
    assert_ne!(instance(&moved), instance(&again));
    thread::sleep(Duration::from_millis(1500));
    assert_eq!(begun(&get(&node, "/status/200", Some(&session))), Some(session), "it was idle for too long");
    // What is no id is none.
    let odd = get(&node, "/status/200", Some(&"x".repeat(1000)));
    assert_eq!((odd.status, begun(&odd).map(|id| id.len())), (200, Some(36)));
    node.stop();
}

#[test]
fn a_header_leads_to_the_instance_of_its_session() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "header = \"x-session\"\nsessions = 1\nlifetime = \"24h\"");
    let call = |session: &[(&str, &str)]| node.own("demo").request("GET", "/request", session, b"").ok();
    let (one, two) = (call(&[("x-session", "one")]), call(&[("x-session", "two")]));
    assert_ne!(instance(&one), instance(&two));
    assert_eq!((one.header("x-session"), one.header("set-cookie")), (None, None));
    for (session, answer) in [("one", &one), ("two", &two), ("one", &one)] {
        assert_eq!(instance(&call(&[("x-session", session)])), instance(answer));
    }
    deploy(&node, "header = \"x-session\"");
    // Who has none gets one, and so does the function.
    let made = call(&[]);
    let id = made.header("x-session").expect("an id").to_owned();
    assert!(
        made.json()["headers"].to_string().contains(&format!("[\"x-session\",\"{id}\"]")),
        "{}",
        made.text()
    );
    assert_eq!(call(&[("x-session", &id)]).header("x-session"), None);
    node.stop();
}

#[test]
fn a_new_session_waits_for_a_place_and_wrong_affinity_is_told() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let more = "[session_affinity]\nsessions = 1\nidle = \"2s\"";
    let _ = node.deploy("demo", "function", more, &["--max-instances", "1"]).ok();
    let one = get(&node, "/status/200", None);
    let clock = Instant::now();
    let two = get(&node, "/status/200", None);
    assert!(clock.elapsed() > Duration::from_secs(1), "{:?}", clock.elapsed());
    assert_eq!((two.status, instance(&two)), (200, instance(&one)));
    assert_ne!(begun(&two), begun(&one));
    for (more, part) in [
        ("platform = \"scf\"\n[session_affinity]", "say where its id is"),
        ("platform = \"fc2\"\n[session_affinity]", "platform fc2 has none"),
        ("[session_affinity]\nquery = \"session\"", "fc has no sessions by query"),
        ("[session_affinity]\nsessions = 201", "sessions 201: must be 1 to 200"),
        ("[session_affinity]\nheader = \"x-fc-mine\"", "the platform's"),
        ("[session_affinity]\ncolour = \"red\"", "colour"),
    ] {
        let _ = node.deploy("wrong", "function", more, &[]).fails(2, &[part]);
    }
    node.stop();
}

/// Which instance of a function of scf answers: it has a name of its own.
fn scf_instance(node: &Node<'_>, query: &str, headers: &[(&str, &str)]) -> (String, Response) {
    let target = format!("/read?path=/etc/hostname{query}");
    let answer = node.own("default.demo").request("GET", &target, headers, b"").ok();
    (answer.text(), answer)
}

fn deploy_scf(node: &Node<'_>, affinity: &str) {
    let more = format!("platform = \"scf\"\n[session_affinity]\nsessions = 1\n{affinity}");
    let _ = node.deploy("demo", "function", &more, &["--max-instances", "2"]).ok();
}

#[test]
fn on_scf_a_parameter_leads_to_the_instance_of_its_session() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy_scf(&node, "query = \"session\"");
    let by = |id: &str| scf_instance(&node, &format!("&session={id}"), &[]).0;
    let (one, two) = (by("one"), by("two"));
    assert_ne!(one, two, "each has one session");
    for _ in 0..3 {
        assert_eq!((by("one"), by("two")), (one.clone(), two.clone()));
    }
    // Who names none has none: all places are taken, and nobody waits for one.
    for query in ["", "&session=", "&session=a.b", "&sessions=three"] {
        let (its, answer) = scf_instance(&node, query, &[("session", "three")]);
        assert!(its == one || its == two, "{its}");
        assert_eq!((answer.header("session"), answer.header("set-cookie")), (None, None));
    }
    node.stop();
}

#[test]
fn on_scf_clients_may_choose_the_ids_of_cookies_and_headers() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy_scf(&node, "cookie = \"my-session\"\nidle = \"5m\"\nlifetime = \"10m\"");
    let by = |cookie: &str| scf_instance(&node, "", &[("cookie", cookie)]);
    let (one, answer) = by("my-session=one");
    assert_eq!(answer.header("set-cookie"), None, "it is the client's");
    let (two, answer) = by("theme=dark");
    let cookie = answer.header("set-cookie").expect("a cookie");
    let (cookie, rest) = cookie.split_once(';').expect("attributes");
    assert!(cookie.starts_with("my-session=") && rest == " Max-Age=600" && one != two, "{cookie};{rest}");
    let (cookie, its) = (cookie.to_owned(), one);
    assert_eq!((by(&cookie).0, by("my-session=one").0), (two, its));
    deploy_scf(&node, "header = \"my-session\"");
    let by = |id: &str| scf_instance(&node, "", &[("my-session", id)]);
    let ((one, answer), (two, made)) = (by("one"), by("not.one"));
    assert_eq!(answer.header("my-session"), None);
    let id = made.header("my-session").expect("an id").to_owned();
    assert_eq!((by("one").0, by(&id).0), (one, two));
    // An event has no session, and needs none of the places.
    let headers = [("X-TC-Action", "Invoke"), ("X-TC-Version", "2018-04-16")];
    let event = br#"{"FunctionName": "demo"}"#;
    let answer = node.connection().request("POST", "/", &headers, event).ok().json();
    assert_eq!(answer["Response"]["Result"]["InvokeResult"], 0, "{answer}");
    node.stop();
}

#[test]
fn an_id_that_is_used_up_begins_no_other_session() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    deploy(&node, "header = \"x-session\"\nidle = \"5s\"\nsingle_use = true");
    let call = |id: &str| node.own("demo").request("GET", "/status/200", &[("x-session", id)], b"");
    let one = call("one").ok();
    assert_eq!(instance(&call("one").ok()), instance(&one));
    thread::sleep(Duration::from_millis(5500));
    for _ in 0..2 {
        let refused = call("one");
        let told = refused.json();
        assert_eq!((refused.status, &told["Code"]), (400, &"InvalidArgument".into()), "{told}");
        assert!(told["Message"].as_str().is_some_and(|text| text.contains("'one' has expired")), "{told}");
    }
    let _ = call("two").ok();
    // Clients keep a cookie for longer than its session lasts, and cannot choose: they get another.
    deploy(&node, "idle = \"1s\"\nsingle_use = true");
    let first = begun(&get(&node, "/status/200", None)).expect("a cookie");
    thread::sleep(Duration::from_millis(1500));
    let again = begun(&get(&node, "/status/200", Some(&first))).expect("a cookie");
    assert_ne!(again, first);
    node.stop();
}

/// Sessions of the Model Context Protocol have the ids that the function gives them.
#[test]
fn a_session_of_streamable_mcp_has_the_instance_that_began_it() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let more = "[session_affinity]\nmcp = \"streamable\"\nsessions = 1";
    let _ = node.deploy("demo", "python", more, &["--max-instances", "2"]).ok();
    let call = |method: &str, session: Option<&str>| {
        let headers: Vec<_> = session.iter().map(|id| ("mcp-session-id", *id)).collect();
        node.own("demo").request(method, "/mcp", &headers, b"{}")
    };
    let id = |answer: &Response| answer.header("mcp-session-id").expect("a session").to_owned();
    let (one, two) = (call("POST", None).ok(), call("POST", None).ok());
    assert_ne!(instance(&one), instance(&two), "each has one session");
    for _ in 0..3 {
        for answer in [&one, &two] {
            let again = call("POST", Some(&id(answer))).ok();
            assert_eq!((instance(&again), id(&again)), (instance(answer), id(answer)));
        }
    }
    // Both are taken; another waits until one is over.
    let third = thread::scope(|scope| {
        let third = scope.spawn(|| call("POST", None).ok());
        thread::sleep(Duration::from_millis(300));
        let _ = call("DELETE", Some(&id(&one))).ok();
        third.join().expect("answered")
    });
    assert_eq!(instance(&third), instance(&one));
    // The function knows what is over, and what never was.
    assert_eq!((call("POST", Some(&id(&one))).status, call("POST", Some("made-up")).status), (404, 404));
    assert_eq!(instance(&call("POST", Some(&id(&two))).ok()), instance(&two));
    node.stop();
}

#[test]
fn a_session_of_mcp_over_sse_is_its_stream() {
    let sandbox = Sandbox::new();
    let node = Node::start(&sandbox, &[]);
    let more = "[session_affinity]\nmcp = \"sse\"\nsessions = 1";
    let _ = node.deploy("demo", "python", more, &["--max-instances", "2"]).ok();
    let open = || {
        let mut stream = node.own("demo");
        stream.send_head("GET", "/sse", &[]);
        let head = stream.read_head();
        let first = stream.read_part().expect("an event");
        let first = String::from_utf8(first).expect("text");
        let address =
            first.strip_prefix("event: endpoint\ndata: ").expect("the first event").trim().to_owned();
        (stream, instance(&head), address)
    };
    let post = |address: &str, text: &str| node.own("demo").request("POST", address, &[], text.as_bytes());
    let (mut first, one, at_one) = open();
    let (mut second, two, at_two) = open();
    assert_ne!(one, two, "each has one session");
    for round in 0..3 {
        for (stream, its, address) in [(&mut first, &one, &at_one), (&mut second, &two, &at_two)] {
            let text = format!("{{\"round\":{round}}}");
            assert_eq!(&instance(&post(address, &text).ok()), its);
            let event = stream.read_part().expect("an event");
            assert_eq!(String::from_utf8_lossy(&event), format!("event: message\ndata: {text}\n\n"));
        }
    }
    // With its stream a session is over, and its place is another's.
    let _ = post(&at_one, "bye").ok();
    assert_eq!(first.read_part(), None);
    let (_third, its, _) = open();
    assert_eq!(its, one);
    assert_eq!(post(&at_one, "{}").status, 404);
    node.stop();
}
