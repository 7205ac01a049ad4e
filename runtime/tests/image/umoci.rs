//! Skiff's layers, mounted over each other, and umoci's bundle of the same image are the same tree:
//! type, mode, owner, size, content, link target, extended attributes, link count, and time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::support::*;

/// One line for each file. `trusted.overlay.*` is how Skiff keeps whiteouts; what an image has of that
/// name is tested elsewhere. Links are counted by names: overlayfs
/// tells the count of the layer, with names that a higher layer removed.
const LIST: &str = "import collections,hashlib,os,sys,stat
root=sys.argv[1]; lines=[]; names=collections.Counter()
for d,ds,fs in os.walk(root):
  names.update(os.lstat(os.path.join(d,n)).st_ino for n in fs)
for d,ds,fs in os.walk(root):
  for n in ds+fs+(['.'] if d==root else []):
    p=os.path.normpath(os.path.join(d,n)); s=os.lstat(p); r=os.path.relpath(p,root)
    x=sorted((a,os.getxattr(p,a,follow_symlinks=False)) for a in os.listxattr(p,follow_symlinks=False) if not a.startswith('trusted.overlay'))
    c=hashlib.sha256(open(p,'rb').read()).hexdigest() if stat.S_ISREG(s.st_mode) else os.readlink(p) if stat.S_ISLNK(s.st_mode) else ''
    isdir=stat.S_ISDIR(s.st_mode)
    lines.append(repr((r,oct(s.st_mode),s.st_uid,s.st_gid,s.st_rdev,0 if isdir else s.st_size,names[s.st_ino],s.st_mtime_ns,x,c)))
print('\\n'.join(sorted(lines)))
";

fn run(script: &str, dir: &Path) {
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Unpacks an image both ways, and compares. Gives the number of files.
pub(crate) async fn same(place: &Place, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> usize {
    let dir = place.dir.path();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let layout = Layout::new(&place.path("layout"));
    layout.index(&[("t", layout.image(layers, "amd64"))]);
    let image = place.pull(&format!("oci:{}:t", layout.dir.display())).await.unwrap();
    for (_, _, archive) in layers {
        let diff_id = sha256(archive);
        let layer = place.path("state/layers").join(diff_id.replace(':', "/"));
        let found = skiff_runtime::image::fuzzing::verify(&layer, &diff_id);
        assert_eq!(found, "", "what was unpacked verifies");
    }
    let lower: Vec<String> = image.layers.iter().rev().map(|l| l.display().to_string()).collect();
    std::fs::write(dir.join("list.py"), LIST).unwrap();
    run("mkdir -p merged; rm -rf b; umoci unpack --image layout:t b >umoci.log 2>&1", dir);
    // In a mount namespace of its own: nothing is left when the command ends. By descriptor, as an
    // option has at most a page.
    let links: Vec<String> = (0..lower.len()).map(|n| format!("l/{n}")).collect();
    let _ = std::fs::remove_dir_all(dir.join("l"));
    std::fs::create_dir(dir.join("l")).unwrap();
    for (link, layer) in links.iter().zip(&lower) {
        std::os::unix::fs::symlink(layer, dir.join(link)).unwrap();
    }
    // A single lower directory makes no overlay: an empty one goes below it.
    run("mkdir -p empty", dir);
    let lowerdir = links.join(":");
    run(
        &format!(
            "unshare --mount --propagation private sh -euc 'mount -t overlay none -o ro,lowerdir={lowerdir}:empty merged
             python3 list.py merged > skiff.txt'; python3 list.py b/rootfs > umoci.txt"
        ),
        dir,
    );
    let read = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    let run = begin..SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let (skiff, umoci) = (read("skiff.txt"), read("umoci.txt"));
    for (ours, theirs) in skiff.lines().zip(umoci.lines()) {
        // umoci leaves the present time on a directory in which it makes one that no entry describes,
        // and on that one: Skiff the time that was described, or the epoch. Skiff unpacks each layer by itself, so
        // that such a directory has nothing of a parent that another layer describes.
        if directory_time(theirs).is_some_and(|time| run.contains(&time)) {
            let (mine, mut other) = (without_time(ours), without_time(theirs));
            if inherits_group(&other) && !inherits_group(&mine) {
                // The kernel gives it to one that is made in one that has it, with the group.
                other[MODE_FIELD] = other[MODE_FIELD].replace("'0o42", "'0o40").replace("'0o43", "'0o41");
                other[GROUP_FIELD].clone_from(&mine[GROUP_FIELD]);
            }
            assert_eq!(mine, other, "Skiff's, and umoci's, but for the time");
            assert!(directory_time(ours).is_some_and(|time| !run.contains(&time)), "{ours}");
            continue;
        }
        assert_eq!(ours, theirs, "Skiff's, and umoci's");
    }
    assert_eq!(skiff.lines().count(), umoci.lines().count());
    umoci.lines().count()
}

/// Where mode, group and time are in a line.
const MODE_FIELD: usize = 1;
const GROUP_FIELD: usize = 3;
const TIME_FIELD: usize = 7;

/// Whether what is made in a directory gets the directory's group.
fn inherits_group(fields: &[String]) -> bool {
    ["'0o42", "'0o43"].iter().any(|mode| fields[MODE_FIELD].starts_with(mode))
}

/// The time of a line in nanoseconds, if it is about a directory.
fn directory_time(line: &str) -> Option<u128> {
    let fields: Vec<&str> = line.split(", ").collect();
    fields[MODE_FIELD].starts_with("'0o4").then(|| fields[TIME_FIELD].parse().unwrap())
}

fn without_time(line: &str) -> Vec<String> {
    let mut fields: Vec<String> = line.split(", ").map(str::to_owned).collect();
    fields.remove(TIME_FIELD);
    fields
}

fn test_image(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/test-images").join(name);
    assert!(path.exists(), "{} is missing: run scripts/images", path.display());
    path
}

fn inflated(packed: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut archive = Vec::new();
    flate2::read::MultiGzDecoder::new(packed).read_to_end(&mut archive).unwrap();
    archive
}

#[tokio::test]
async fn debian_with_python_and_node() {
    let place = Place::new();
    let layers = ["base.tar.gz", "node.tar.gz"].map(|name| {
        let packed = std::fs::read(test_image(name)).unwrap();
        let archive = inflated(&packed);
        (GZIP, packed, archive)
    });
    assert!(same(&place, &layers).await > 5000);
}
