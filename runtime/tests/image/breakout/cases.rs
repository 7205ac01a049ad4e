//! What layers try, and what must come of it.

use crate::raw::E::{self, Dir, File, Hard, Sym};

pub(super) enum Want {
    /// The pull fails: there is no honest reading.
    Refused,
    /// A shell expression that holds in the root of the image.
    Holds(&'static str),
}
use Want::{Holds, Refused};

/// Name, entries of the layer below, entries of the layer, what must be so.
pub(super) type Case = (&'static str, &'static [E], &'static [E], Want);

const PASSWD: &[E] = &[Dir("etc", 0o755), File("etc/passwd", "inside")];
const UNBROKEN: Want = Holds("test \"$(cat etc/unbroken)\" = unbroken");
const SAME: Want = Holds("test etc/passwd -ef localpasswd");

/// Those of containerd. Where Skiff refuses what containerd clamps into the root (names that climb out
/// as text) or takes from a lower layer (hard links), nothing is written either.
pub(super) const CONTAINERD: &[Case] = &[
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
pub(super) const OTHERS: &[Case] = &[
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
