//! Images that mean harm, by what they say of themselves: labels, variables, users, and sizes at the
//! bounds. Needs root, and `busybox` from Debian's package `busybox-static`.

use std::fs;
use std::path::Path;
use std::process::Command;

use skiff_runtime::image::{Image, ImageConfig};
use skiff_runtime::{Container, ContainerSpec, ErrorKind};

mod bench;
use bench::{Bench, finish, keeper_of, shell};

async fn start(bench: &Bench, config: ImageConfig, spec: ContainerSpec) -> skiff_runtime::Result<Container> {
    let image = Image::unmanaged("test", config, vec![bench.rootfs()]);
    bench.runtime.start(&image, spec).await
}

/// What other runtimes have obeyed, or might: a log's program (CVE-2026-53488), hooks, handlers, settings
/// of units, annotations that move mounts, and what looks like the runtime's own.
fn labels(marker: &Path) -> Vec<(String, String)> {
    let marker = marker.display();
    let touch = format!("/bin/touch {marker}");
    let pairs = [
        ("io.containerd.log.uri", format!("binary:///bin/touch?{marker}")),
        ("containerd.io/log-uri", format!("file://{marker}")),
        ("nerdctl/log-uri", format!("binary:///bin/touch?{marker}")),
        ("io.kubernetes.cri-o.LogPath", marker.to_string()),
        ("io.kubernetes.cri.container-type", "sandbox".into()),
        ("io.podman.annotations.privileged", "TRUE".into()),
        ("org.systemd.property.ExecStartPost", format!("['{touch}']")),
        ("run.oci.hooks.stdout", marker.to_string()),
        ("run.oci.handler", "krun".into()),
        ("run.oci.systemd.subgroup", "../../..".into()),
        ("org.criu.config", marker.to_string()),
        ("module.wasm.image/variant", "compat".into()),
        ("org.opencontainers.image.ref.name", format!("$({touch}); `{touch}` | {touch}")),
        ("skiff", "../../../etc/shadow".into()),
        ("skiff.run/privileged", "true".into()),
        ("hooks", format!(r#"{{"createRuntime":[{{"path":"/bin/touch","args":["touch","{marker}"]}}]}}"#)),
        ("\u{1b}[2J\0\n", "\u{1b}]0;x\u{7}\n--keeper\0/bin/touch".into()),
        ("", String::new()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What would change the runtime's own programs if it was in their environment.
fn variables(marker: &Path) -> Vec<String> {
    let marker = marker.display();
    [
        "LD_PRELOAD=/evil.so",
        "LD_AUDIT=/evil.so",
        "LD_LIBRARY_PATH=/evil",
        "GCONV_PATH=/evil",
        "GLIBC_TUNABLES=glibc.malloc.check=3",
        "RUST_LOG=trace",
        "RUST_BACKTRACE=full",
        "SKIFF_BREAK_AT=start-mounted",
        "SKIFF_STATE_DIR=/evil",
        "SKIFF_RUN_DIR=/evil",
        "SKIFF_KEEPER=/evil/keeper",
        "LISTEN_FDS=3",
        "LISTEN_PID=1",
        "NOTIFY_SOCKET=@evil",
        "_LIBCONTAINER_INITPIPE=0",
        "TMPDIR=/evil",
        "HOME=/proc/self/fd",
        "BASH_FUNC_touch%%=() { :; }",
    ]
    .map(str::to_owned)
    .into_iter()
    .chain([format!("EVIL={marker}"), format!("ENV={marker}")])
    .collect()
}

#[tokio::test]
async fn labels_and_variables_of_an_image_change_nothing_of_the_host() {
    let bench = Bench::new().await;
    let outside = tempfile::tempdir().expect("tempdir");
    let marker = outside.path().join("evil-marker");
    let config = || {
        let mut config = ImageConfig::default();
        (config.labels, config.env) = (labels(&marker).into_iter().collect(), variables(&marker));
        config
    };
    let keeper = keeper_of(bench.runtime.dir());
    let of = |pid: u32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).expect("readable by root");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let before = ["environ", "cmdline", "limits", "cgroup"].map(|file| of(keeper, file));

    let container = start(&bench, config(), shell("env; id -u; cat /proc/self/status; exec sleep 1000"));
    let container = container.await.expect("starts");
    let (mut out, _err) = container.take_output().expect("output");
    let mut seen = String::new();
    while !seen.contains("Seccomp:") {
        seen = String::from_utf8_lossy(out.look(seen.len()).await.expect("looked")).into_owned();
    }
    // The variables are the command's, as they are; what it may do is no other than without them.
    for variable in variables(&marker).iter().filter(|v| !v.starts_with("BASH_FUNC")) {
        assert!(seen.lines().any(|line| line == variable), "{variable} is not in {seen}");
    }
    assert!(seen.contains("CapEff:\t00000000a00425fb") && seen.contains("NoNewPrivs:\t1"), "{seen}");

    assert_eq!(["environ", "cmdline", "limits", "cgroup"].map(|file| of(keeper, file)), before);
    for pid in [keeper, container.pid()] {
        assert!(!of(pid, "maps").contains("evil") && !of(pid, "cmdline").contains("evil"), "{pid}");
    }
    let files = Command::new("grep").args(["-rqsF", "--", "evil"]).arg(bench.dir.path()).status();
    assert_eq!(files.expect("grep runs").code(), Some(1), "a label or a variable is in a file");
    let names = Command::new("find").arg(bench.dir.path()).args(["-name", "*evil*"]).output();
    assert_eq!(String::from_utf8_lossy(&names.expect("find runs").stdout), "");
    drop(container);
    // Nor how one ends, or fails to start.
    let (exit, ..) = finish(&start(&bench, config(), shell("exit 7")).await.expect("starts")).await;
    assert_eq!(exit.code, Some(7));
    let none = ContainerSpec { entrypoint: Some(vec!["none-such".into()]), ..shell("") };
    let error = start(&bench, config(), none).await.expect_err("no such command");
    assert_eq!(error.kind(), ErrorKind::CommandNotFound, "{error:?}");
    assert!(!error.chain().contains("evil"), "{error:?}");
    bench.end().await;
    assert_eq!(fs::read_dir(outside.path()).expect("read").count(), 0, "something obeyed");
}

/// CVE-2024-40635, CVE-2026-30892: numbers that other runtimes read as another user, often root.
#[tokio::test]
async fn a_user_is_exactly_who_it_says_or_an_error() {
    let bench = Bench::new().await;
    let etc = bench.rootfs().join("etc");
    fs::create_dir(&etc).expect("mkdir");
    let passwd =
        "root:x:0:0::/:/bin/sh\nbig:x:4294967296:0::/:\nminus:x:-1:0::/:\n+x:x:0:0::/:\n7:x:1007:1007::/:\n";
    fs::write(etc.join("passwd"), passwd).expect("write");
    fs::write(etc.join("group"), "root:x:0:\nbig:x:4294967296:7\n").expect("write");
    for (text, wanted) in [
        ("1", "1:0"),
        ("0001", "1:0"),
        ("7", "1007:1007"),
        ("2147483647:2147483647", "2147483647:2147483647"),
        ("65534:65534", "65534:65534"),
    ] {
        let config = |user: &str| {
            let mut config = ImageConfig::default();
            user.clone_into(&mut config.user);
            config
        };
        let container = start(&bench, config(text), shell("echo $(id -u):$(id -g)")).await.expect(text);
        assert_eq!(finish(&container).await.1.trim(), wanted, "{text}");
    }
    for text in [
        "4294967296:1",
        "4294967296",
        "4294967295",
        "2147483648",
        "2147483648:2147483648",
        "1:4294967296",
        "1:2147483648",
        "18446744073709551616",
        "18446744073709551617:0",
        "-1",
        "-4294967296",
        "0x0",
        "0x1",
        "1:",
        ":1",
        ":",
        "1:1:1",
        "0:0:0",
        " 0",
        "0 ",
        "+0",
        "0.0",
        "1e0",
        "big",
        "minus",
        "1:big",
        "root ",
        "Root",
        "\u{661}",
        "root\0",
        "nobody",
    ] {
        let mut config = ImageConfig::default();
        text.clone_into(&mut config.user);
        let error = start(&bench, config, shell("id -u")).await.expect_err(text);
        assert_eq!(error.kind(), ErrorKind::UnknownUser, "{text}: {error:?}");
    }
    bench.end().await;
}

/// CVE-2021-43784: a length of 64 KiB and more was one of 16 bits in a message of runc's.
#[tokio::test]
async fn lengths_around_multiples_of_64_kib_are_no_other_lengths() {
    const KIB_64: usize = 64 << 10;
    let bench = Bench::new().await;
    let measure = "echo ${#A} ${#1} $B";
    let with = |a: usize, argument: usize| ContainerSpec {
        entrypoint: Some(["/bin/sh", "-c", measure, "sh", &"x".repeat(argument)].map(str::to_owned).to_vec()),
        env: vec![("A".into(), "a".repeat(a)), ("B".into(), "after".into())],
        ..shell("")
    };
    // As the kernel counts them: with the name, `=` and the NUL byte.
    for total in [KIB_64 - 1, KIB_64, KIB_64 + 1, 2 * KIB_64 - 1, 2 * KIB_64] {
        let (a, argument) = (total - "A=\0".len(), total - "\0".len());
        let container = bench.start(with(a, argument)).await.expect("starts");
        let (exit, out, err) = finish(&container).await;
        assert_eq!((exit.code, out), (Some(0), format!("{a} {argument} after\n")), "{total}: {err}");
    }
    for spec in [with(2 * KIB_64 - 2, 1), with(1, 2 * KIB_64)] {
        let error = bench.start(spec).await.expect_err("one byte more than the kernel takes");
        assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error:?}");
    }
    // All together.
    for (number, each) in [(16, KIB_64), (8, 2 * KIB_64), (4096, 256), (31, KIB_64)] {
        let value = |name: &str| "v".repeat(each - name.len() - "=\0".len());
        let names = (0..number).map(|number| format!("N{number}"));
        let env: Vec<_> = names.map(|name| (name.clone(), value(&name))).collect();
        let spec = ContainerSpec { env, ..shell("env | busybox grep -c '^N[0-9]*=v*$'") };
        let (exit, out, err) = finish(&bench.start(spec).await.expect("starts")).await;
        assert_eq!((exit.code, out.trim()), (Some(0), number.to_string().as_str()), "{each}: {err}");
    }
    let spec = ContainerSpec { label: vec![b'l'; 4096], ..with(KIB_64 - 3, KIB_64 - 1) };
    let labelled = bench.start(spec).await.expect("starts");
    assert_eq!((labelled.label().len(), finish(&labelled).await.0.code), (4096, Some(0)));
    bench.end().await;
}
