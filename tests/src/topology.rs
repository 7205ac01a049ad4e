//! A host with a network, made of network namespaces of the test: nothing of the machine's own
//! network is touched.
//!
//! ```text
//!  (lan) 203.0.113.2 ── 203.0.113.1 (host) 192.0.2.2 ── 192.0.2.1 (world) 198.51.100.10
//!                             2001:db8:0:1::2 ── 2001:db8:0:1::1    2001:db8:0:2::10, metadata
//! ```
//!
//! Each has the services of `topology/services.py`. The world has no route to containers.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::Served;

const SERVICES: &str = include_str!("topology/services.py");

/// Functions for Python scripts: `tcp(address)`, `udp(address)`, `own(family)`.
pub const CLIENT: &str = include_str!("topology/client.py");

/// What the world's address of metadata services are.
pub const METADATA: [&str; 3] = ["169.254.169.254", "100.100.100.200", "fd00:ec2::254"];

const WORLD: &str = "
ip link set lo up; ip link set w0 up
ip addr add 192.0.2.1/24 dev w0; ip addr add 2001:db8:0:1::1/64 dev w0 nodad
for a in 198.51.100.10 169.254.169.254 100.100.100.200; do ip addr add $a/32 dev lo; done
for a in 2001:db8:0:2::10 fd00:ec2::254; do ip addr add $a/128 dev lo nodad; done
ip route add 203.0.113.0/24 via 192.0.2.2
";
const LAN: &str = "
ip link set lo up; ip link set l0 up; ip addr add 203.0.113.2/24 dev l0; ip route add default via 203.0.113.1
";
const HOST: &str = "
ip link set lo up; ip link set up0 up; ip link set lan0 up
ip addr add 192.0.2.2/24 dev up0; ip addr add 2001:db8:0:1::2/64 dev up0 nodad
ip addr add 203.0.113.1/24 dev lan0
ip route add default via 192.0.2.1; ip route add default via 2001:db8:0:1::1
";

/// A process in a network namespace of its own; ends with this.
#[derive(Debug)]
pub struct Namespace {
    services: Child,
}

impl Namespace {
    fn new(name: &str, options: &[&str]) -> Self {
        let mut services = Command::new("unshare")
            .args(["--net", "python3", "-u", "-c", SERVICES, name])
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare (util-linux) and python3");
        expect_line(&mut services, "here");
        Self { services }
    }

    fn serve(&mut self) {
        let stdin = self.services.stdin.as_mut().expect("a pipe");
        stdin.write_all(b"go\n").expect("services that listen");
        expect_line(&mut self.services, "serving");
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.services.id())
    }

    /// The same command, to be run in this namespace; the process keeps its id.
    #[must_use]
    pub fn inside(&self, command: &Command) -> Command {
        self.wrap(&["--"], command)
    }

    /// The same, in a mount namespace too where a shell has first run a script.
    #[must_use]
    pub fn inside_after(&self, script: &str, command: &Command) -> Command {
        let script = format!("set -e; {script}; exec \"$@\"");
        self.wrap(&["--", "unshare", "--mount", "sh", "-c", &script, "sh"], command)
    }

    fn wrap(&self, before: &[&str], command: &Command) -> Command {
        let mut wrapped = Command::new("nsenter");
        wrapped.arg(format!("--net={}", self.path())).args(before);
        wrapped.arg(command.get_program()).args(command.get_args()).env_clear().stdin(Stdio::null());
        for (name, value) in command.get_envs() {
            if let Some(value) = value {
                wrapped.env(name, value);
            }
        }
        if let Some(dir) = command.get_current_dir() {
            wrapped.current_dir(dir);
        }
        wrapped
    }

    /// What a shell script prints there.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    #[must_use]
    pub fn shell(&self, script: &str) -> String {
        self.output(Command::new("sh").args(["-ec", script]))
    }

    /// What a Python script prints there, with [`CLIENT`] before it.
    ///
    /// # Panics
    /// When it fails.
    #[track_caller]
    #[must_use]
    pub fn python(&self, script: &str) -> String {
        self.output(Command::new("python3").arg("-c").arg(format!("{CLIENT}\n{script}")))
    }

    #[track_caller]
    fn output(&self, command: &mut Command) -> String {
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        let output = self.inside(command).output().expect("nsenter (util-linux)");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.services.kill();
        let _ = self.services.wait();
    }
}

#[track_caller]
fn expect_line(services: &mut Child, wanted: &str) {
    let mut line = String::new();
    // Unbuffered beyond the line: nothing else is written until the next is asked for.
    let out = services.stdout.as_mut().expect("a pipe");
    BufReader::with_capacity(1, out).read_line(&mut line).expect("a line");
    assert_eq!(line.trim(), wanted, "services did not start");
}

/// The three namespaces.
#[derive(Debug)]
pub struct Topology {
    /// Where Skiff runs.
    pub host: Namespace,
    /// What is outside.
    pub world: Namespace,
    /// Another network of the host.
    pub lan: Namespace,
}

impl Default for Topology {
    fn default() -> Self {
        Self::new()
    }
}

impl Topology {
    /// A host with IPv4 and IPv6 that does not forward.
    ///
    /// # Panics
    /// When the kernel or a program refuses something.
    #[must_use]
    pub fn new() -> Self {
        let (host, world, lan) =
            (Namespace::new("host", &["dns"]), Namespace::new("world", &["dns"]), Namespace::new("lan", &[]));
        let mut this = Self { host, world, lan };
        for (near, far, pid) in
            [("up0", "w0", this.world.services.id()), ("lan0", "l0", this.lan.services.id())]
        {
            let _ = this.host.shell(&format!("ip link add {near} type veth peer name {far} netns {pid}"));
        }
        let _ = this.world.shell(WORLD);
        let _ = this.lan.shell(LAN);
        let _ = this.host.shell(&format!("echo 0 >/proc/sys/net/ipv4/ip_forward; {HOST}"));
        for namespace in [&mut this.host, &mut this.world, &mut this.lan] {
            namespace.serve();
        }
        this
    }

    /// Interfaces, rules and forwarding of the host that Skiff may have changed.
    #[must_use]
    pub fn traces(&self) -> String {
        self.host.shell(
            "ip -o link | cut -d: -f2 | sort; ip route; ip -6 route | grep -v fe80; nft list ruleset; \
             cd /proc/sys/net; cat ipv4/ip_forward ipv4/conf/*0/forwarding; \
             cat ipv6/conf/*0/force_forwarding 2>/dev/null || true",
        )
    }
}

/// A script of a container that prints what it finds out about the network, with [`CLIENT`].
#[track_caller]
#[must_use]
pub fn python_in(served: &Served, script: &str) -> String {
    served.python(&format!("{CLIENT}\n{script}")).trim().to_owned()
}

/// A script that gives a process its own `/etc/resolv.conf`, for [`Namespace::inside_after`].
#[must_use]
pub fn with_resolv_conf(file: &Path) -> String {
    format!("mount --bind '{}' /etc/resolv.conf", file.display())
}
