//! Skiff's layers, mounted over each other, and umoci's bundle of the same image are the same tree:
//! type, mode, owner, size, content, link target, extended attributes, link count, and time.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use tar::EntryType;

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
async fn same(place: &Place, layers: &[(&str, Vec<u8>, Vec<u8>)]) -> usize {
    let dir = place.dir.path();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    let layout = Layout::new(&place.path("layout"));
    layout.index(&[("t", layout.image(layers, "amd64"))]);
    let image = place.pull(&format!("oci:{}:t", layout.dir.display())).await.unwrap();
    // Fewer than those of the image where one comes twice or hides all below it.
    for layer in &image.layers {
        let layer = layer.parent().unwrap();
        // A fix-up layer is of no archive.
        if layer.parent().unwrap().parent().unwrap().ends_with("chains") {
            continue;
        }
        let diff_id = format!("sha256:{}", layer.file_name().unwrap().to_str().unwrap());
        let found = skiff_runtime::image::fuzzing::verify(layer, &diff_id);
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
        // and on that one: Skiff the time that was described, or the epoch.
        if directory_time(theirs).is_some_and(|time| run.contains(&time)) {
            assert_eq!(without_time(ours), without_time(theirs), "Skiff's, and umoci's, but for the time");
            assert!(directory_time(ours).is_some_and(|time| !run.contains(&time)), "{ours}");
            continue;
        }
        assert_eq!(ours, theirs, "Skiff's, and umoci's");
    }
    assert_eq!(skiff.lines().count(), umoci.lines().count());
    umoci.lines().count()
}

/// Where the time is in a line.
const TIME_FIELD: usize = 7;

/// The time of a line in nanoseconds, if it is about a directory.
fn directory_time(line: &str) -> Option<u128> {
    let fields: Vec<&str> = line.split(", ").collect();
    fields[1].starts_with("'0o4").then(|| fields[TIME_FIELD].parse().unwrap())
}

fn without_time(line: &str) -> Vec<&str> {
    let mut fields: Vec<&str> = line.split(", ").collect();
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

/// What one layer does to one name.
#[derive(Clone, Debug)]
enum Change {
    Put(Kind),
    Remove,
}

#[derive(Clone, Debug)]
enum Kind {
    File { size: usize, mode: u32 },
    Dir { mode: u32, opaque: bool },
    Symlink,
    Hard,
    Fifo,
    Device,
}

/// One change, at a place in a small tree, by an owner, at a time.
#[derive(Clone, Debug)]
struct Step {
    path: Vec<u8>,
    change: Change,
    owner: u64,
    mtime: i64,
    nanos: u32,
    attribute: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        4 => (0usize..3000, 0u32..0o10000).prop_map(|(size, mode)| Kind::File { size, mode }),
        6 => (0u32..0o10000, prop::bool::weighted(0.1)).prop_map(|(mode, opaque)| Kind::Dir { mode, opaque }),
        1 => Just(Kind::Symlink),
        1 => Just(Kind::Hard),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Device),
    ];
    let change = prop_oneof![4 => kind.prop_map(Change::Put), 1 => Just(Change::Remove)];
    let path = prop::collection::vec(0u8..6, 1..5);
    let owner = prop_oneof![Just(0u64), Just(1000), 0u64..4_000_000_000];
    (path, change, owner, 0i64..2_000_000_000, 0u32..1_000_000_000, prop::bool::weighted(0.2)).prop_map(
        |(path, change, owner, mtime, nanos, attribute)| Step {
            path,
            change,
            owner,
            mtime,
            nanos,
            attribute,
        },
    )
}

/// What the layers so far have made: names and whether each is a directory. Archives are made as
/// builders make them: parents first, and nothing is put below what is not a directory.
#[derive(Default)]
struct Tree(std::collections::BTreeMap<String, bool>);

impl Tree {
    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.0.retain(|name, _| name != path && !name.starts_with(&below));
    }

    fn layer(&mut self, steps: &[Step]) -> Vec<u8> {
        let mut archive = Vec::new();
        // Every name once in a layer, and after its parent.
        let mut done: std::collections::BTreeMap<String, bool> = Default::default();
        let mut sorted = steps.to_vec();
        sorted.sort_by_key(|step| step.path.len());
        let mut last_file = None;
        for step in sorted {
            let names: Vec<String> = step.path.iter().map(|n| format!("n{n}")).collect();
            let path = names.join("/");
            let parents: Vec<String> = (1..names.len()).map(|n| names[..n].join("/")).collect();
            let has_parents = parents.iter().all(|parent| self.0.get(parent) == Some(&true));
            if !has_parents || done.contains_key(&path) || parents.iter().any(|p| done.get(p) == Some(&false))
            {
                continue;
            }
            // Usual builders have the parents in the layer themselves; here some are implied.
            let implies = step.owner % 2 == 1;
            for parent in parents {
                if done.insert(parent.clone(), true).is_none() && !implies {
                    entry(&mut archive, &parent, EntryType::Directory, "", 0o755, &step, b"");
                }
            }
            match &step.change {
                Change::Remove if self.0.contains_key(&path) => {
                    let (dir, name) = path.rsplit_once('/').unwrap_or(("", &path));
                    let whiteout = format!("{dir}{}.wh.{name}", if dir.is_empty() { "" } else { "/" });
                    entry(&mut archive, &whiteout, EntryType::Regular, "", 0o600, &step, b"");
                    self.remove(&path);
                    done.insert(path, false);
                }
                Change::Remove => {}
                Change::Put(kind) => {
                    self.put(&mut archive, &path, kind, &step, &mut last_file);
                    done.insert(path.clone(), self.0.get(&path) == Some(&true));
                }
            }
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    }

    fn put(
        &mut self,
        archive: &mut Vec<u8>,
        path: &str,
        kind: &Kind,
        step: &Step,
        last: &mut Option<String>,
    ) {
        let mut add =
            |kind, link: &str, mode, data: &[u8]| entry(archive, path, kind, link, mode, step, data);
        let is_dir = matches!(kind, Kind::Dir { .. });
        if !is_dir || self.0.get(path) == Some(&false) {
            self.remove(path);
        }
        match kind {
            Kind::File { size, mode } => {
                add(EntryType::Regular, "", *mode, &vec![(*size % 251) as u8; *size]);
                *last = Some(path.to_owned());
            }
            Kind::Dir { mode, opaque } => {
                add(EntryType::Directory, "", *mode, b"");
                if *opaque {
                    let name = format!("{path}/.wh..wh..opq");
                    entry(archive, &name, EntryType::Regular, "", 0o600, step, b"");
                    self.remove(path);
                }
            }
            Kind::Symlink => add(EntryType::Symlink, "/n0/n1", 0o777, b""),
            Kind::Hard => match last {
                Some(target) => add(EntryType::Link, target, 0o644, b""),
                None => add(EntryType::Regular, "", 0o640, b"no link"),
            },
            Kind::Fifo => add(EntryType::Fifo, "", 0o620, b""),
            Kind::Device => add(EntryType::Char, "", 0o660, b""),
        }
        self.0.insert(path.to_owned(), is_dir);
    }
}

fn entry(
    archive: &mut Vec<u8>,
    path: &str,
    kind: EntryType,
    link: &str,
    mode: u32,
    step: &Step,
    data: &[u8],
) {
    let mut records = format!("{}{}", record("mtime", &format!("{}.{:09}", step.mtime, step.nanos)), "");
    records += &record("uid", &step.owner.to_string());
    if step.attribute && matches!(kind, EntryType::Regular | EntryType::Directory) && !path.contains(".wh.") {
        records += &record("SCHILY.xattr.user.note", "a value");
    }
    for (kind, data) in [(EntryType::XHeader, records.as_bytes()), (kind, data)] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).unwrap();
        if !link.is_empty() && kind != EntryType::XHeader {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_mode(mode);
        header.set_uid(step.owner % 1000);
        header.set_gid(step.owner % 7);
        header.set_mtime(step.mtime as u64);
        header.set_size(data.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        header.set_cksum();
        archive.extend_from_slice(header.as_bytes());
        archive.extend_from_slice(data);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
}

fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let length = (rest..).find(|n| *n == rest + n.to_string().len()).unwrap();
    format!("{length} {key}={value}\n")
}

/// The root directory is in the first layer, or each side makes its own.
fn root() -> Vec<u8> {
    let step = Step {
        path: Vec::new(),
        change: Change::Remove,
        owner: 0,
        mtime: 1_000_000_000,
        nanos: 0,
        attribute: false,
    };
    let mut archive = Vec::new();
    entry(&mut archive, "./", EntryType::Directory, "", 0o755, &step, b"");
    archive.resize(archive.len() + 1024, 0);
    archive
}

async fn compare_generated(layers: &[Vec<Step>]) -> usize {
    let mut tree = Tree::default();
    let mut archives = vec![];
    for steps in layers {
        archives.push(tree.layer(steps));
    }
    // Last, so that its time is the same on both sides.
    archives.push(root());
    let packed: Vec<_> = archives.into_iter().map(|archive| (GZIP, gzip(&archive), archive)).collect();
    same(&Place::new(), &packed).await
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(future)
}

#[test]
fn thirty_layers_with_whiteouts_of_every_kind() {
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;
    // Always the same image.
    let mut runner = TestRunner::deterministic();
    let layers = prop::collection::vec(prop::collection::vec(step(), 60..=60), 29..=29);
    let mut layers = layers.new_tree(&mut runner).unwrap().current();
    // Most layers leave the directories at the top as they are, or hardly anything would last.
    for (_, layer) in layers.iter_mut().enumerate().filter(|(n, _)| n % 6 != 5 || *n == 29) {
        let mut steps = layer.clone();
        steps.truncate(6);
        for (n, step) in steps.iter_mut().enumerate() {
            step.path = vec![n as u8];
            step.change = Change::Put(Kind::Dir { mode: 0o755, opaque: false });
        }
        layer.splice(0..0, steps);
    }
    let files = block_on(compare_generated(&layers));
    assert!(files > 15, "{files}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, max_shrink_iters: 60, ..Default::default() })]

    #[test]
    fn generated_trees(layers in prop::collection::vec(prop::collection::vec(step(), 1..40), 1..5)) {
        block_on(compare_generated(&layers));
    }
}
