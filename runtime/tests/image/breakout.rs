//! Layers that try to reach out of their root, after the tables of containerd (`TestBreakouts`),
//! moby and umoci: each is pulled as an image with a layer below it, mounted, and looked at; and so is
//! the host around it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::fuzzing;

use crate::raw::E::{Dir, File, Hard, Sym};
use crate::raw::{E, archive};
use crate::support::*;

enum Want {
    /// The pull fails: there is no honest reading.
    Refused,
    /// A shell expression that holds in the root of the image.
    Holds(&'static str),
}
use Want::{Holds, Refused};

/// Name, entries of the layer below, entries of the layer, what must be so.
type Case = (&'static str, &'static [E], &'static [E], Want);

const PASSWD: &[E] = &[Dir("etc", 0o755), File("etc/passwd", "inside")];
const UNBROKEN: Want = Holds("test \"$(cat etc/unbroken)\" = unbroken");
const SAME: Want = Holds("test etc/passwd -ef localpasswd");

/// Those of containerd. Where Skiff refuses what containerd clamps into the root (names that climb out
/// as text) or takes from a lower layer (hard links), nothing is written either.
const CONTAINERD: &[Case] = &[
    (
        "SymlinkAbsolute",
        &[],
        &[Dir("etc", 0o755), Sym("/etc", "localetc"), File("/localetc/unbroken", "unbroken")],
        UNBROKEN,
    ),
    (
        "SymlinkUpAndOut",
        &[],
        &[
            Dir("etc", 0o755),
            Dir("dummy", 0o755),
            Sym("/dummy/../etc", "localetc"),
            File("/localetc/unbroken", "unbroken"),
        ],
        UNBROKEN,
    ),
    (
        "SymlinkMultipleAbsolute",
        &[],
        &[
            Dir("etc", 0o755),
            Dir("dummy", 0o755),
            Sym("/etc", "/dummy/etc"),
            Sym("/dummy/etc", "localetc"),
            File("/dummy/etc/unbroken", "unbroken"),
        ],
        UNBROKEN,
    ),
    (
        "SymlinkMultipleRelative",
        &[],
        &[
            Dir("etc", 0o755),
            Dir("dummy", 0o755),
            Sym("/etc", "/dummy/etc"),
            Sym("./dummy/etc", "localetc"),
            File("/dummy/etc/unbroken", "unbroken"),
        ],
        UNBROKEN,
    ),
    (
        "SymlinkEmptyFile",
        &[],
        &[
            Dir("etc", 0o755),
            File("etc/emptied", "notempty"),
            Sym("/etc", "localetc"),
            File("/localetc/emptied", ""),
        ],
        Holds("test -e etc/emptied -a ! -s etc/emptied"),
    ),
    (
        "HardlinkRelative",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Dir("breakouts", 0o755),
            Sym("../../etc", "breakouts/d1"),
            Hard("/breakouts/d1/passwd", "breakouts/mypasswd"),
        ],
        Holds("test breakouts/mypasswd -ef etc/passwd"),
    ),
    (
        "HardlinkDownAndOut",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Dir("breakouts", 0o755),
            Dir("downandout", 0o755),
            Sym("../downandout/../../etc", "breakouts/d1"),
            Hard("/breakouts/d1/passwd", "breakouts/mypasswd"),
        ],
        Holds("test breakouts/mypasswd -ef etc/passwd"),
    ),
    (
        "HardlinkAbsolute",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("/etc", "localetc"),
            Hard("/localetc/passwd", "localpasswd"),
        ],
        SAME,
    ),
    (
        "HardlinkRelativeLong",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("../../../../../../../etc", "localetc"),
            Hard("/localetc/passwd", "localpasswd"),
        ],
        SAME,
    ),
    (
        "HardlinkRelativeUpAndOut",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Dir("upandout", 0o755),
            Sym("upandout/../../../etc", "localetc"),
            Hard("/localetc/passwd", "localpasswd"),
        ],
        SAME,
    ),
    // Without the directory the kernel cannot walk through it; containerd takes `..` out as text.
    (
        "HardlinkRelativeUpAndOut, as containerd has it",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("upandout/../../../etc", "localetc"),
            Hard("/localetc/passwd", "localpasswd"),
        ],
        Refused,
    ),
    (
        "HardlinkDirectRelative",
        &[],
        &[Dir("etc", 0o770), File("/etc/passwd", "inside"), Hard("../../../../../etc/passwd", "localpasswd")],
        Refused,
    ),
    (
        "HardlinkDirectAbsolute",
        &[],
        &[Dir("etc", 0o770), File("/etc/passwd", "inside"), Hard("/etc/passwd", "localpasswd")],
        SAME,
    ),
    (
        "SymlinkParentDirectory",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("/etc/", ".."),
            Hard("/etc/passwd", "localpasswd"),
        ],
        Refused,
    ),
    (
        "SymlinkEmptyFilename",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("/etc/", ""),
            Hard("/etc/passwd", "localpasswd"),
        ],
        Refused,
    ),
    (
        "SymlinkParentRelative",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("/etc/", "localetc/sub/.."),
            Hard("/etc/passwd", "/localetc/localpasswd"),
        ],
        Holds("test etc/localpasswd -ef etc/passwd"),
    ),
    (
        "SymlinkSlashEnded",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Dir("localetc/", 0o770),
            Hard("/etc/passwd", "/localetc/localpasswd"),
        ],
        Holds("test localetc/localpasswd -ef etc/passwd"),
    ),
    (
        "SymlinkOverrideDirectory",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Dir("localetc", 0o755)],
        &[Sym("/etc", "localetc"), Hard("/etc/passwd", "/localetc/localpasswd")],
        Refused,
    ),
    (
        "SymlinkOverrideDirectoryRelative",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Dir("localetc", 0o755)],
        &[Sym("../../etc", "localetc"), Hard("/etc/passwd", "/localetc/localpasswd")],
        Refused,
    ),
    (
        "DirectoryOverrideSymlink",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Sym("/etc", "localetc")],
        &[Dir("/localetc/", 0o755), Hard("/etc/passwd", "/localetc/localpasswd")],
        Refused,
    ),
    (
        "DirectoryOverrideSymlinkAndHardlink",
        &[
            Dir("etc", 0o755),
            File("etc/passwd", "inside"),
            Sym("etc", "localetc"),
            Hard("/etc/passwd", "/localetc/localpasswd"),
        ],
        &[Dir("/localetc/", 0o755), File("/localetc/localpasswd", "different")],
        Holds("test \"$(cat localetc/localpasswd etc/passwd)\" = differentinside -a ! -L localetc"),
    ),
    ("WhiteoutRootParent", PASSWD, &[File(".wh...", "")], Refused),
    ("WhiteoutParent", PASSWD, &[File("etc/.wh...", "")], Refused),
    ("WhiteoutRoot", PASSWD, &[File(".wh..", "")], Refused),
    ("WhiteoutCurrentDirectory", PASSWD, &[File("etc/.wh..", "")], Refused),
    (
        "WhiteoutSymlink",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Sym("/etc", "localetc")],
        &[File(".wh.localetc", "")],
        Holds("test -f etc/passwd -a ! -e localetc -a ! -L localetc"),
    ),
    (
        "WhiteoutSymlinkPath",
        &[
            Dir("etc", 0o755),
            File("etc/passwd", "inside"),
            File("etc/whitedout", "x"),
            Sym("/etc", "localetc"),
        ],
        &[File("localetc/.wh.whitedout", "")],
        Holds("test -f etc/passwd -a ! -e etc/whitedout -a -L localetc -a -f localetc/passwd"),
    ),
    // containerd makes a directory `.wh.etc`, which no container should see.
    ("WhiteoutDirectoryName", PASSWD, &[File(".wh.etc/somefile", "non-empty")], Refused),
    (
        "WhiteoutDeadSymlinkParent",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Sym("/dne", "localetc")],
        &[File("localetc/.wh.etc", "")],
        Holds("test -f etc/passwd -a -L localetc -a ! -e dne/etc"),
    ),
    (
        "WhiteoutRelativePath",
        &[Dir("etc", 0o755), File("etc/passwd", "inside"), Sym("/dne", "localetc")],
        &[File("dne/../.wh.etc", "")],
        Holds("test ! -e etc"),
    ),
    (
        "HardlinkSymlinkBeforeCreateTarget",
        &[],
        &[
            Dir("etc", 0o770),
            Sym("/etc/passwd", "localpasswd"),
            Hard("localpasswd", "localpasswd-dup"),
            File("/etc/passwd", "after"),
        ],
        Holds("test -L localpasswd-dup -a \"$(cat etc/passwd)\" = after"),
    ),
    (
        "HardlinkSymlinkRelative",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("../../../../../etc/passwd", "passwdlink"),
            Hard("/passwdlink", "localpasswd"),
        ],
        Holds("test \"$(readlink localpasswd)\" = ../../../../../etc/passwd"),
    ),
    (
        "HardlinkSymlinkAbsolute",
        &[],
        &[
            Dir("etc", 0o770),
            File("/etc/passwd", "inside"),
            Sym("/etc/passwd", "passwdlink"),
            Hard("/passwdlink", "localpasswd"),
        ],
        Holds("test \"$(readlink localpasswd)\" = /etc/passwd"),
    ),
    // A name of a link to a file of the host: its mode stays.
    (
        "HardlinkSymlinkChmod",
        &[],
        &[Sym("/etc/hostname", "also-exists"), Hard("also-exists", "sketchylink")],
        Holds("test -L sketchylink"),
    ),
];

/// Those of moby, umoci and the advisories of others.
const OTHERS: &[Case] = &[
    ("moby: file through a link out", &[], &[Sym("../victim/", "dir"), File("dir/hello", "x")], Refused),
    (
        "moby: hard link to a link out",
        &[],
        &[Sym("../victim", "link"), Hard("link", "hard"), File("hard", "x")],
        Holds("test \"$(cat hard)\" = x -a -L link"),
    ),
    ("moby: hard link out", &[], &[Hard("../victim", "hard")], Refused),
    (
        "moby: hard link to a directory through a link",
        &[],
        &[Sym("..", "up"), Hard("up/victim", "hard")],
        Refused,
    ),
    ("moby: climbing names", &[], &[File("../victim/hello", "x")], Refused),
    (
        "moby: a file that replaces a link out",
        &[],
        &[Sym("../victim/x", "link"), File("link", "x")],
        Holds("test -f link -a ! -L link"),
    ),
    ("umoci: the root itself is a link", &[], &[Sym("/", "."), File("x", "x")], Refused),
    ("umoci: the root as ./ is a link", &[], &[Sym("/", "./"), File("x", "x")], Refused),
    (
        "umoci: links are read within the root",
        &[],
        &[Sym("/../../../../../../dir", "a"), Dir("dir", 0o755), File("a/b/c", "x")],
        Holds("test -f dir/b/c"),
    ),
    (
        "umoci: a whiteout below a new file",
        PASSWD,
        &[File("etc/.wh.passwd", ""), File("etc/group", "x")],
        Holds("test ! -e etc/passwd -a -f etc/group"),
    ),
    (
        "umoci: an opaque directory keeps its own",
        PASSWD,
        &[File("etc/group", "x"), File("etc/.wh..wh..opq", "")],
        Holds("test ! -e etc/passwd -a -f etc/group"),
    ),
    (
        "umoci: an opaque directory in an opaque one",
        &[Dir("a", 0o755), Dir("a/b", 0o755), File("a/b/c", "x")],
        &[
            Dir("a", 0o755),
            File("a/.wh..wh..opq", ""),
            Dir("a/b", 0o755),
            File("a/b/.wh..wh..opq", ""),
            File("a/b/d", "x"),
        ],
        Holds("test ! -e a/b/c -a -f a/b/d"),
    ),
    (
        "umoci: a whiteout for what was never there",
        &[],
        &[Dir("etc", 0o755), File("etc/.wh.nothing", "")],
        Holds("test -d etc -a ! -e etc/nothing"),
    ),
    (
        "umoci: a directory over a file below",
        PASSWD,
        &[Dir("etc/passwd", 0o755), File("etc/passwd/in", "x")],
        Holds("test -f etc/passwd/in"),
    ),
    ("umoci: a file over a directory below", PASSWD, &[File("etc", "x")], Holds("test -f etc")),
    (
        "chmod through a directory's link",
        &[],
        &[Sym("/etc", "link"), Dir("link", 0o700), File("link/x", "x")],
        Holds("test -d link -a ! -L link"),
    ),
    (
        "a directory entry for a link with a slash",
        &[],
        &[Sym("../victim", "link"), Dir("link/", 0o700)],
        Holds("test -d link -a ! -L link"),
    ),
];

/// What is around the store, and must be as it was.
fn surroundings(place: &Path) -> Vec<(String, u32, u64, String)> {
    let of = |path: &Path| {
        let meta = fs::metadata(path).unwrap();
        let text = if meta.is_file() { fs::read_to_string(path).unwrap() } else { String::new() };
        (path.display().to_string(), meta.permissions().mode(), meta.nlink(), text)
    };
    let mut all = vec![of(Path::new("/etc/passwd")), of(Path::new("/etc/hostname")), of(Path::new("/etc"))];
    for dir in [place.to_owned(), place.join("victim"), place.join("state")] {
        all.push(of(&dir));
        let mut names: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().path().display().to_string()).collect();
        names.sort();
        all.push((names.join(" "), 0, 0, String::new()));
    }
    all
}

async fn try_all(cases: &[Case]) {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    fs::create_dir(place.path("victim")).unwrap();
    fs::set_permissions(place.path("victim"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::create_dir(place.path("merged")).unwrap();
    // The store makes its own files with the first pull.
    let plain = archive(&[Dir("usr", 0o755)]);
    let source = layout.index(&[("", layout.image(&[(TAR, plain.clone(), plain)], "amd64"))]);
    place.pull(&source).await.unwrap();
    let before = surroundings(place.dir.path());
    for (name, base, entries, want) in cases {
        let below = archive(&[&[Dir("usr", 0o755)], *base].concat());
        let layer = archive(entries);
        let layers = [(TAR, below.clone(), below), (TAR, layer.clone(), layer.clone())];
        let source = layout.index(&[("", layout.image(&layers, "amd64"))]);
        let pulled = place.pull(&source).await;
        assert_eq!(surroundings(place.dir.path()), before, "{name}");
        match (want, pulled) {
            (Refused, Err(error)) => assert_eq!(error.kind(), ErrorKind::InvalidImage, "{name}: {error:?}"),
            (Refused, Ok(_)) => panic!("{name} was not refused"),
            (Holds(_), Err(error)) => panic!("{name}: {error:?}"),
            (Holds(script), Ok(image)) => {
                let diff_id = sha256(&layer);
                let layer_dir = place.path("state/layers").join(diff_id.replace(':', "/"));
                assert_eq!(fuzzing::verify(&layer_dir, &diff_id), "", "{name}");
                let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
                // In a mount namespace of its own: nothing is left when the command ends.
                let script = format!(
                    "mount -t overlay none -o ro,lowerdir={} merged; cd merged; {script}",
                    lower.join(":")
                );
                let status = Command::new("unshare")
                    .args(["--mount", "--propagation", "private", "sh", "-euc", &script])
                    .current_dir(place.dir.path())
                    .status()
                    .unwrap();
                assert!(status.success(), "{name}: {script}");
            }
        }
    }
    place.nothing_half_made();
}

#[tokio::test]
async fn breakouts_of_containerd() {
    assert_eq!(CONTAINERD.len(), 34, "33 of containerd, and one of them in two forms");
    try_all(CONTAINERD).await;
}

#[tokio::test]
async fn breakouts_of_others() {
    try_all(OTHERS).await;
}

#[tokio::test]
async fn a_bomb_takes_neither_memory_nor_disk() {
    let place = Place::new();
    let layout = Layout::new(&place.path("layout"));
    // A file of 1 GiB of zeros in some 30 KiB.
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_cksum();
    use std::io::Write as _;
    encoder.write_all(header.as_bytes()).unwrap();
    for _ in 0..1 << 10 {
        encoder.write_all(&[0u8; 1 << 20]).unwrap();
    }
    let bomb = encoder.finish().unwrap();
    let source = layout.index(&[("", layout.image(&[(ZSTD, bomb, b"not looked at".to_vec())], "amd64"))]);
    let mut options = skiff_runtime::image::PullOptions::default();
    options.limits.unpacked_bytes = 200 << 20;
    let before = peak_kib();
    let error = place.error(&source, &options).await;
    assert_eq!(error.kind(), ErrorKind::LimitExceeded, "{error:?}");
    assert!(peak_kib() - before < 64 << 10, "{} KiB more", peak_kib() - before);
    let left = Command::new("du").args(["-sk", "state"]).current_dir(place.dir.path()).output().unwrap();
    let kib: u64 =
        String::from_utf8(left.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert!(kib < 1024, "{kib} KiB are left");
}

/// The most memory that this process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
