//! Images of generated trees, unpacked by Skiff and by umoci: the same tree comes of both.

use proptest::prelude::*;
use tar::EntryType;

use crate::support::*;
use crate::umoci::same;

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
