//! `--network`: what a function reaches and what not, and what is left of it. Everything happens in
//! network namespaces of the test ([`Topology`]).
#![allow(clippy::print_stderr, reason = "a skipped part says why")]

use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use skiff_tests::topology::{METADATA, python_in, with_resolv_conf};
use skiff_tests::{Sandbox, Served, Topology, images, process, wait_for};

/// Servers outside, as containers see them.
const SERVER4: &str = "198.51.100.10";
const SERVER6: &str = "2001:db8:0:2::10";

/// A `skiff run` of the Python image on the host of a topology, whose resolver is outside.
fn command(topology: &Topology, sandbox: &Sandbox, options: &[&str]) -> Command {
    let file = sandbox.write("resolv.conf", format!("nameserver {SERVER4}\n"));
    let command = sandbox.skiff(&[&["run", &images::oci("python")], options].concat());
    topology.host.inside_after(&with_resolv_conf(&file), &command)
}

#[track_caller]
fn serve(topology: &Topology, sandbox: &Sandbox, options: &[&str]) -> Served {
    sandbox.start(command(topology, sandbox, options))
}

/// Waits until the host of a topology is as it was.
#[track_caller]
fn assert_restored(topology: &Topology, before: &str) {
    let restored = wait_for(Duration::from_secs(20), || (topology.traces() == before).then_some(()));
    assert!(restored.is_some(), "before: {before}\nafter: {}", topology.traces());
}

fn has_ipv6(topology: &Topology) -> bool {
    // Before Linux 6.17 a host that forwards IPv6 is one that its owner made a router.
    let here = !topology
        .host
        .shell("cat /proc/sys/net/ipv6/conf/all/force_forwarding 2>/dev/null || true")
        .is_empty();
    if !here {
        eprintln!("skipped for IPv6: this kernel has no force_forwarding");
    }
    here
}

#[test]
fn a_bridge_leads_outside_by_tcp_udp_and_name() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let before = topology.traces();
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    let found = python_in(
        &served,
        &format!(
            "print(tcp('{SERVER4}'))\nprint(udp('{SERVER4}'))\n\
             print(sorted({{a[4][0] for a in socket.getaddrinfo('server.test', 7000)}}))\n\
             print(tcp(socket.gethostbyname('server.test')))"
        ),
    );
    let seen = "world sees 192.0.2.2";
    assert_eq!(found, format!("{seen}\n{seen}\n['198.51.100.10', '2001:db8:0:2::10']\n{seen}"));
    if has_ipv6(&topology) {
        let found = python_in(&served, &format!("print(tcp('{SERVER6}'))\nprint(udp('{SERVER6}'))"));
        assert_eq!(found, "world sees 2001:db8:0:1::2\nworld sees 2001:db8:0:1::2");
    }
    let answer = served.get("/x").ok();
    assert_eq!(answer.status, 200, "and it is invoked as ever");
    let _ = served.stop();
    assert_restored(&topology, &before);
}

#[test]
fn a_bridge_leads_neither_to_the_host_nor_to_others_nor_to_metadata() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let options = ["--network", "bridge"];
    let (one, other) = (serve(&topology, &sandbox, &options), serve(&topology, &sandbox, &options));
    let neighbour4 = python_in(&other, "print(own(socket.AF_INET))");
    assert!(neighbour4.starts_with("198.19."), "{neighbour4}");
    let local6 =
        topology.host.shell("ip -6 -o addr show up0 scope link | grep -o 'fe80::[0-9a-f:]*' | head -1");
    let mut forbidden: Vec<(String, u16)> = [
        "192.0.2.2",
        "203.0.113.1",
        "169.254.1.1",
        "255.255.255.255",
        "224.0.0.1",
        "2001:db8:0:1::2",
        "ff02::1%eth0",
    ]
    .map(|address| (address.to_owned(), 7000))
    .into();
    forbidden.extend(METADATA.map(|address| (address.to_owned(), 7000)));
    for link_local in ["fe80::1".to_owned(), local6] {
        forbidden.push((format!("{link_local}%eth0"), 7000));
    }
    forbidden.push((neighbour4, 9000));
    if has_ipv6(&topology) {
        forbidden.push((python_in(&other, "print(own(socket.AF_INET6))"), 9000));
    }
    // All of these answer the host, so what keeps the container from them is not that they are dead.
    for (address, port) in
        forbidden.iter().filter(|(a, _)| METADATA.contains(&a.as_str()) || a.starts_with("192."))
    {
        let found = topology.host.python(&format!("print(tcp('{address}', {port}))"));
        assert!(found.contains(" sees "), "{address}: {found}");
    }
    for (address, port) in forbidden {
        let found =
            python_in(&one, &format!("print(tcp('{address}', {port}))\nprint(udp('{address}', {port}))"));
        for line in found.lines() {
            // Refused would be an answer, by whoever has the address.
            let unreached = line.starts_with("failed: ") && !line.contains("refused");
            assert!(unreached, "{address} port {port}: {line}");
        }
    }
    assert!(python_in(&one, &format!("print(tcp('{SERVER4}'))")).contains("sees"), "it is not just cut off");
    // Nor does anybody come in from outside, as if containers had addresses there.
    let address = python_in(&one, "print(own(socket.AF_INET))");
    let _ = topology.world.shell(&format!("ip route add {address}/32 via 192.0.2.2"));
    let found = topology.world.python(&format!("print(tcp('{address}', 9000))"));
    assert!(found.starts_with("failed: "), "{found}");
}

/// Root in a container may send whatever packets it likes; the host takes only its own.
#[test]
fn packets_with_foreign_addresses_do_not_get_out() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    let routes = "ip route; ip -6 route";
    let before = topology.host.shell(routes);
    let script = r#"
def checksum(data):
    s = sum(struct.unpack(f"!{len(data) // 2}H", data))
    return ~((s >> 16) + (s & 0xffff)) & 0xffff

def send4(source, text, target="198.51.100.10"):
    udp = struct.pack("!HHHH", 5000, 7001, 8 + len(text), 0) + text.encode()
    a, b = socket.inet_aton(source), socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, 17, 0, a, b)
    s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    s.sendto(head + udp, (target, 0))

def frame(kind, payload, destination=b"\x02\x73\x6b\x00\x00\x01"):
    s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    s.bind(("eth0", 0))
    s.send(destination + b"\x02\x73\x6b\x00\x00\x02" + struct.pack("!H", kind) + payload)

me = own(socket.AF_INET)
near = me.rsplit(".", 1)[0] + "." + str(int(me.rsplit(".", 1)[1]) ^ 3)
for source in ["192.0.2.2", "198.51.100.77", "203.0.113.2", "127.0.0.1", "169.254.100.2", near]:
    send4(source, f"spoofed {source}")
# Router advertisement with a prefix and a default route, and a neighbour that is not there.
src, dst = socket.inet_pton(socket.AF_INET6, "fe80::bad"), socket.inet_pton(socket.AF_INET6, "ff02::1")
ra = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0)
ra += struct.pack("!BBBBIII16s", 3, 4, 64, 0xc0, 9000, 9000, 0, socket.inet_pton(socket.AF_INET6, "2001:db8:bad::"))
pseudo = src + dst + struct.pack("!II", len(ra), 58) + ra
ra = ra[:2] + struct.pack("!H", checksum(pseudo)) + ra[4:]
frame(0x86dd, struct.pack("!IHBB", 0x60000000, len(ra), 58, 255) + src + dst + ra, b"\x33\x33\x00\x00\x00\x01")
arp = struct.pack("!HHBBH6s4s6s4s", 1, 0x800, 6, 4, 2, b"\x02\x73\x6b\x00\x00\x02", socket.inet_aton("192.0.2.1"),
                  b"\x02\x73\x6b\x00\x00\x01", socket.inet_aton("192.0.2.2"))
frame(0x806, arp)
v6 = struct.pack("!HHHH", 5000, 7001, 14, 0xffff) + b"spoof6"
for source in ["2001:db8:0:1::2", "2001:db8:0:2::77", "fd73:6b69:6666::77", "fe80::7"]:
    a, b = socket.inet_pton(socket.AF_INET6, source), socket.inet_pton(socket.AF_INET6, "2001:db8:0:2::10")
    p = v6[:6] + struct.pack("!H", checksum(a + b + struct.pack("!II", len(v6), 17) + v6[:6] + b"\0\0" + v6[8:])) + v6[8:]
    frame(0x86dd, struct.pack("!IHBB", 0x60000000, len(v6), 17, 64) + a + b + p)
send4(me, "honest")
print("sent")
"#;
    assert_eq!(python_in(&served, script), "sent");
    let noted = wait_for(Duration::from_secs(10), || {
        let noted = topology.world.python("print(tcp('::1', 7001))");
        noted.contains("honest").then_some(noted)
    });
    // One way, one order: what was sent before the honest packet would be there before it.
    assert_eq!(
        noted.as_deref(),
        Some("192.0.2.2 honest"),
        "a raw packet with its own address arrives, alone"
    );
    assert_eq!(topology.host.shell(routes), before, "the host believed a container about the network");
    // Its router is known to the host by now, and not by what the container said of it.
    let neighbours = topology.host.shell("ip neigh show dev up0");
    assert!(!neighbours.contains("02:73:6b:00:00:02"), "{neighbours}");
}

#[test]
fn two_daemons_share_a_host_and_nothing_else() {
    let topology = Topology::new();
    let (first, second) = (Sandbox::with_shared_images(), Sandbox::with_shared_images());
    let before = topology.traces();
    let options = ["--network", "bridge", "--egress-range", "198.18.7.0/28", "--network-pool", "2"];
    let (one, two) = (serve(&topology, &first, &options), serve(&topology, &second, &options));
    let address = |served: &Served| python_in(served, "print(own(socket.AF_INET))");
    let (a, b) = (address(&one), address(&two));
    assert!(a != b && a.starts_with("198.18.7.") && b.starts_with("198.18.7."), "{a} {b}");
    for (from, to) in [(&one, &b), (&two, &a)] {
        let found = python_in(from, &format!("print(tcp('{to}', 9000))"));
        assert!(found.starts_with("failed: ") && !found.contains("refused"), "{found}");
    }
    let _ = one.stop();
    assert!(
        python_in(&two, &format!("print(tcp('{SERVER4}'))")).contains("sees"),
        "the other's end cut it off"
    );
    let _ = two.stop();
    assert_restored(&topology, &before);
}

#[test]
fn nothing_is_left_after_a_crash_and_a_start() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let before = topology.traces();
    let served = serve(&topology, &sandbox, &["--network", "bridge", "--network-pool", "3"]);
    let (keeper, init) = (served.keeper(), served.init());
    for pid in [served.pid(), keeper.pid] {
        process::send(pid, Signal::KILL);
    }
    drop(served);
    let gone = wait_for(Duration::from_secs(20), || {
        (!init.is_alive() && !topology.traces().contains(" sk-")).then_some(())
    });
    assert!(gone.is_some(), "links are left: {}", topology.traces());
    assert!(topology.traces().contains("table inet skiff-"), "the rules wait for the next start");
    let _ = serve(&topology, &sandbox, &[]).stop();
    assert_restored(&topology, &before);
}

#[test]
fn rules_that_somebody_flushes_come_back() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let before = topology.traces();
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    let rules = topology.host.shell("nft list ruleset");
    assert!(rules.contains("table inet skiff-uplink") && rules.contains("masquerade"), "{rules}");
    let _ = topology.host.shell("nft flush ruleset");
    let same = wait_for(Duration::from_secs(20), || {
        (topology.host.shell("nft list ruleset") == rules).then_some(())
    });
    assert!(same.is_some(), "before: {rules}\nafter: {}", topology.host.shell("nft list ruleset"));
    assert!(python_in(&served, "print(tcp('192.0.2.2'))").starts_with("failed: "));
    assert!(python_in(&served, &format!("print(tcp('{SERVER4}'))")).contains("sees"));
    let _ = served.stop();
    assert_restored(&topology, &before);
}

/// The host did not forward before, and forwards for containers only.
#[test]
fn the_host_becomes_nobody_elses_router() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    // A datagram tells even where nothing would come back.
    let noted_in_lan = || {
        let _ = topology.world.python("udp('203.0.113.2', 7001, b'in')");
        topology.lan.python("print(tcp('127.0.0.1', 7001))")
    };
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    assert_eq!(topology.host.shell("cat /proc/sys/net/ipv4/conf/up0/forwarding"), "1");
    assert_eq!(noted_in_lan(), "", "the host forwards for others");
    let _ = served.stop();
    // The topology would let it through if the host were a router.
    let _ = topology.host.shell("echo 1 >/proc/sys/net/ipv4/ip_forward");
    assert_eq!(noted_in_lan(), "192.0.2.1 in");
    // On a host that is one, that stays.
    let before = topology.traces();
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    assert_eq!(noted_in_lan(), "192.0.2.1 in\n192.0.2.1 in");
    assert!(python_in(&served, &format!("print(tcp('{SERVER4}'))")).contains("sees"));
    let _ = served.stop();
    assert_restored(&topology, &before);
}

/// The host's resolver listens on its loopback, where no container comes.
#[test]
fn names_are_forwarded_where_only_the_host_reaches_its_resolver() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let file = sandbox.write("loopback.conf", "nameserver 127.0.0.1\nsearch test\n");
    let command = sandbox.skiff(&["run", &images::oci("python"), "--network", "bridge"]);
    let served = sandbox.start(topology.host.inside_after(&with_resolv_conf(&file), &command));
    assert_eq!(served.shell("cat /etc/resolv.conf"), "nameserver 127.0.0.11\nsearch test\n");
    let script = r#"
print(socket.gethostbyname("server.test"))
question = b"\x01\x02\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06server\x04test\x00\x00\x01\x00\x01"
s = socket.create_connection(("127.0.0.11", 53), 4)
for _ in range(2):
    s.sendall(struct.pack("!H", len(question)) + question)
    length = struct.unpack("!H", s.recv(2))[0]
    print(socket.inet_ntoa(s.recv(length)[-4:]))
"#;
    assert_eq!(python_in(&served, script), format!("{SERVER4}\n{SERVER4}\n{SERVER4}"));
    let _ = served.stop();
}

#[test]
fn the_hosts_own_network_is_the_hosts() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let before = topology.traces();
    let served = serve(&topology, &sandbox, &["--network", "host"]);
    assert_eq!(served.shell("cat /etc/resolv.conf"), format!("nameserver {SERVER4}\n"));
    let script = format!(
        "print(tcp('127.0.0.1'))\nprint(tcp('{SERVER4}'))\nprint(socket.gethostbyname('server.test'))"
    );
    assert_eq!(python_in(&served, &script), format!("host sees 127.0.0.1\nworld sees 192.0.2.2\n{SERVER4}"));
    let writable = "for f in /sys/class/net/up0/mtu /proc/sys/net/ipv4/ip_forward; do \
                    if (echo 1 >$f) 2>/dev/null; then echo $f; fi; done; \
                    if mkdir /sys/x 2>/dev/null; then echo /sys; fi; grep ' /sys ' /proc/mounts";
    let found = served.shell(writable);
    assert!(found.starts_with("sysfs /sys sysfs ro,"), "{found}");
    // A second one would be taken for the first.
    let again = sandbox.finish(command(&topology, &sandbox, &["--network", "host", "--event", "{}"]));
    again.fails(3, &["port 9000 of this host", "is in use", "help: "]);
    let _ = served.stop();
    assert_restored(&topology, &before);
    let writable = topology.host.shell("grep ' /sys ' /proc/mounts");
    assert!(writable.contains(" rw,"), "the host's /sys: {writable}");
}

#[test]
fn a_server_on_loopback_is_refused_behind_a_bridge_too() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    for (platform, text) in [
        ("fc", "Function instance health check failed on port 9000 in 2 seconds."),
        ("scf", "Please confirm your http server have enabled listening on port 9000."),
    ] {
        let image = images::oci("local");
        let options = [
            "run",
            &image,
            "--platform",
            platform,
            "--network",
            "bridge",
            "--start-timeout",
            "2s",
            "--event",
            "{}",
        ];
        let outcome = sandbox.finish(topology.host.inside(&sandbox.skiff(&options)));
        let (_, body) = outcome.fails(3, &["127.0.0.1 is not reached"]).platform_answer();
        assert!(body.contains(text), "{platform}: {body}");
    }
}

#[test]
fn what_a_bridge_lacks_is_told() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let before = topology.traces();
    let event = ["--network", "bridge", "--event", "{}"];
    let run =
        |options: &[&str]| sandbox.finish(command(&topology, &sandbox, &[&event[..], options].concat()));
    let taken = run(&["--egress-range", "192.0.2.0/24"]);
    taken.fails(3, &["192.0.2.0/24", "the host has a route", "--egress-range"]);
    run(&["--egress-range", "169.254.0.0/24"]).fails(2, &["link-local", "10.213.0.0/16"]);
    run(&["--egress-range", "10.0.0.1/8"]).fails(2, &["is no block of addresses"]);
    // As if other runs had all of them.
    let _ =
        topology.host.shell("for i in $(seq 1 14); do ip route add 10.9.0.$i/32 dev lan0 proto 213; done");
    run(&["--egress-range", "10.9.0.0/28"]).fails(3, &["10.9.0.0/28 has no free address", "--egress-range"]);
    let _ = topology.host.shell("ip route flush proto 213");
    let plain = sandbox.skiff(&[&["run", &images::oci("python")][..], &event].concat());
    let hidden = topology.host.inside_after("mount --bind /dev/null \"$(command -v nft)\"", &plain);
    sandbox.finish(hidden).fails(3, &["the program nft, and there is none", "apt install nftables"]);
    assert_restored(&topology, &before);
    let _ = topology.host.shell("ip route del default; ip -6 route del default");
    run(&[]).fails(3, &["no default route", "--network bridge"]);
    // With a /run of its own: other tests' runs have the lock there too, and their end would remove what is left.
    let own = sandbox.path().join("own-run");
    std::fs::create_dir(&own).expect("a directory");
    let script = format!("mount --bind {} /run", own.display());
    sandbox.finish(topology.host.inside_after(&script, &plain)).fails(3, &["no default route"]);
    let left: Vec<_> =
        std::fs::read_dir(&own).expect("a directory").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

/// Without a way out over IPv6 there is no IPv6 at all between a container and the host.
#[test]
fn a_host_without_ipv6_outside_has_none_for_containers() {
    let (topology, sandbox) = (Topology::new(), Sandbox::with_shared_images());
    let _ = topology.host.shell("ip -6 route del default");
    let served = serve(&topology, &sandbox, &["--network", "bridge"]);
    let script = format!("print(tcp('{SERVER4}'))\nprint(tcp('{SERVER6}'))\nprint(tcp('fe80::1%eth0'))");
    let found = python_in(&served, &script);
    let lines: Vec<&str> = found.lines().collect();
    assert!(
        lines[0].contains("sees") && lines[1..].iter().all(|line| line.starts_with("failed: ")),
        "{found}"
    );
    let disabled = topology.host.shell("cat /proc/sys/net/ipv6/conf/sk-*/disable_ipv6");
    assert_eq!(disabled, "1");
    let _ = served.stop();
}
