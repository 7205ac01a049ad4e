//! Images of generated trees, unpacked by Skiff and by umoci: the same tree comes of both.
#![allow(clippy::print_stdout, reason = "the counts are shown with --no-capture")]

mod archive;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use proptest::prelude::*;
use tar::EntryType;

use self::archive::{Layer, root};
use crate::support::*;
use crate::umoci::same;

/// What one layer does to one name.
#[derive(Clone, Debug)]
enum Change {
    Put(Kind),
    Remove,
    /// An opaque whiteout in what should be a directory, and no entry for it.
    Clear,
}

#[derive(Clone, Debug)]
enum Kind {
    File { size: usize, mode: u32 },
    Sparse { holes: u8 },
    Dir { mode: u32, opaque: bool },
    Symlink { to: usize },
    Hard,
    Fifo,
    Char,
    Block,
}

/// Where links lead: within the tree, out of it, to nothing, to another link or to themselves.
const TARGETS: &[&str] =
    &["/n0/n1", "n1", "../n2", "/n3", "../../../../n0", "/n7/n8", "/n1/n1/n1", "n0", "/", "."];

/// How an entry is written.
#[derive(Clone, Copy, Debug)]
struct Form {
    /// PAX records, or GNU's long names and base-256 numbers.
    pax: bool,
    /// Before the path.
    prefix: &'static str,
    /// After all others of the layer, where that says the same.
    late: bool,
    /// Another entry of the same name comes first.
    twice: bool,
}

/// One change, at a place in a small tree, by an owner, at a time.
#[derive(Clone, Debug)]
struct Step {
    path: Vec<u8>,
    change: Change,
    owner: u64,
    group: u64,
    mtime: i64,
    nanos: u32,
    attribute: bool,
    form: Form,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![
        6 => (0usize..3000, 0u32..0o10000).prop_map(|(size, mode)| Kind::File { size, mode }),
        1 => (0u8..8).prop_map(|holes| Kind::Sparse { holes }),
        6 => (0u32..0o10000, prop::bool::weighted(0.04)).prop_map(|(mode, opaque)| Kind::Dir { mode, opaque }),
        2 => (0..TARGETS.len()).prop_map(|to| Kind::Symlink { to }),
        1 => Just(Kind::Hard),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Char),
        1 => Just(Kind::Block),
    ];
    let change =
        prop_oneof![20 => kind.prop_map(Change::Put), 3 => Just(Change::Remove), 1 => Just(Change::Clear)];
    let path = prop::collection::vec(0u8..6, 1..5);
    let id = || prop_oneof![Just(0u64), Just(1000), 0u64..4_000_000_000];
    let prefix = prop_oneof![4 => Just(""), 1 => Just("./"), 1 => Just("/"), 1 => Just("n9/..//")];
    let form = (prop::bool::weighted(0.7), prefix, prop::bool::weighted(0.2), prop::bool::weighted(0.1))
        .prop_map(|(pax, prefix, late, twice)| Form { pax, prefix, late, twice });
    let time = (0i64..2_000_000_000, 0u32..1_000_000_000);
    (path, change, id(), id(), time, prop::bool::weighted(0.2), form).prop_map(
        |(path, change, owner, group, (mtime, nanos), attribute, form)| {
            let nanos = if form.pax { nanos } else { 0 };
            Step { path, change, owner, group, mtime, nanos, attribute: attribute && form.pax, form }
        },
    )
}

/// Some names need more than a header has room for.
fn name(number: u8) -> String {
    match number {
        4 => format!("n4{}", "-long".repeat(30)),
        5 => format!("n5{}", "-längr".repeat(8)),
        _ => format!("n{number}"),
    }
}

/// What is at a path.
#[derive(Clone, Debug, PartialEq)]
enum Node {
    Dir,
    File,
    Link(&'static str),
}

/// What came up while archives were made.
#[derive(Debug, Default)]
struct Seen {
    removed_files: usize,
    removed_dirs: usize,
    opaque: usize,
    opaque_without_entry: usize,
    made_again: usize,
    through_links: usize,
    whiteouts_through_links: usize,
    late: usize,
    twice: usize,
    sparse: usize,
    capabilities: usize,
    long_names: usize,
    large_ids: usize,
    blocks: usize,
}

/// What the layers so far have made. Archives are made as builders make them: nothing is put below what is
/// not a directory, unless it is a link of a lower layer.
#[derive(Default)]
struct Tree {
    nodes: BTreeMap<String, Node>,
    gone: BTreeSet<String>,
    seen: Seen,
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.to_owned() } else { format!("{dir}/{name}") }
}

fn parents(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(end, _)| &path[..end])
}

fn is_below(path: &str, dir: &str) -> bool {
    dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with('/'))
}

impl Tree {
    fn remove(&mut self, path: &str) {
        self.nodes.retain(|name, _| name != path && !is_below(name, path));
    }

    /// Where a directory is, and the links on the way; `None` for a way that has no end.
    fn follow(&self, path: &str) -> Option<(String, Vec<String>)> {
        let mut todo: VecDeque<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        let (mut real, mut links) = (String::new(), Vec::new());
        while let Some(name) = todo.pop_front() {
            match name {
                "" | "." => continue,
                ".." => real.truncate(real.rfind('/').unwrap_or(0)),
                _ => {
                    let next = join(&real, name);
                    let Some(Node::Link(target)) = self.nodes.get(&next) else {
                        real = next;
                        continue;
                    };
                    links.push(next);
                    if links.len() > 30 {
                        return None;
                    }
                    if target.starts_with('/') {
                        real.clear();
                    }
                    target.split('/').rev().for_each(|part| todo.push_front(part));
                }
            }
        }
        Some((real, links))
    }

    /// The real path of a step's directory, if a layer may have names in it.
    fn directory(&mut self, layer: &mut Layer, dir: &str) -> Option<String> {
        let (real, links) = self.follow(dir)?;
        let is_done = |path: &str, wanted: bool| layer.done.get(path) == Some(&wanted);
        let all = || parents(&real).chain([real.as_str()]).filter(|path| !path.is_empty());
        if all().any(|path| is_done(path, false)) {
            return None;
        }
        if links.is_empty() {
            let is_there = all().all(|path| self.nodes.get(path) == Some(&Node::Dir));
            return is_there.then(|| real.clone());
        }
        // Links of the layer itself lead only where it has directories itself.
        let is_own =
            |link: &String| layer.done.contains_key(link) || parents(link).any(|path| is_done(path, false));
        let in_the_way = || all().any(|path| self.nodes.get(path).is_some_and(|node| *node != Node::Dir));
        if layer.may_repeat || links.iter().any(is_own) || in_the_way() {
            return None;
        }
        layer.used.extend(links);
        all().for_each(|path| {
            let _ = layer.done.insert(path.to_owned(), true);
        });
        let made: Vec<String> = all().map(str::to_owned).collect();
        self.nodes.extend(made.into_iter().map(|path| (path, Node::Dir)));
        self.seen.through_links += 1;
        Some(real)
    }

    fn layer(&mut self, steps: &[Step]) -> Vec<u8> {
        let may_repeat = steps.first().is_some_and(|step| step.form.twice);
        let mut layer = Layer { may_repeat, ..Layer::default() };
        let mut sorted = steps.to_vec();
        sorted.sort_by_key(|step| step.path.len());
        for step in sorted {
            let names: Vec<String> = step.path.iter().map(|number| name(*number)).collect();
            let (own, dirs) = names.split_last().unwrap();
            let dir = dirs.join("/");
            let Some(real_dir) = self.directory(&mut layer, &dir) else { continue };
            let (path, real) = (join(&dir, own), join(&real_dir, own));
            let is_used = layer.used.iter().any(|link| *link == real || is_below(link, &real));
            if layer.done.contains_key(&real) || is_used {
                continue;
            }
            // Usual builders have the parents in the layer themselves; here some are implied.
            if dir == real_dir && step.owner % 2 == 0 {
                for parent in parents(&path) {
                    if layer.done.insert(parent.to_owned(), true).is_none() {
                        layer.add(parent, EntryType::Directory, "", 0o755, &step, b"");
                    }
                }
            }
            parents(&real).for_each(|parent| {
                let _ = layer.done.insert(parent.to_owned(), true);
            });
            self.change(&mut layer, &path, &real, &step);
        }
        layer.archive.append(&mut layer.late);
        layer.archive.resize(layer.archive.len() + 1024, 0);
        layer.archive
    }

    fn change(&mut self, layer: &mut Layer, path: &str, real: &str, step: &Step) {
        let whiteout = |inside: &str, name: &str| join(inside, &format!(".wh.{name}"));
        let there = self.nodes.get(real).cloned();
        match (&step.change, there) {
            (Change::Remove, Some(node)) => {
                let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
                self.seen.late += usize::from(step.form.late);
                layer.add_at(step.form.late, &whiteout(dir, name), EntryType::Regular, "", 0o600, step, b"");
                *match node {
                    Node::Dir => &mut self.seen.removed_dirs,
                    _ => &mut self.seen.removed_files,
                } += 1;
                self.seen.whiteouts_through_links += usize::from(path != real);
                self.gone.insert(real.to_owned());
                self.remove(real);
                layer.done.insert(real.to_owned(), false);
            }
            (Change::Clear, Some(Node::Dir)) if !layer.done.keys().any(|name| is_below(name, real)) => {
                layer.add(&whiteout(path, ".wh..opq"), EntryType::Regular, "", 0o600, step, b"");
                self.seen.opaque_without_entry += 1;
                self.seen.whiteouts_through_links += usize::from(path != real);
                self.nodes.retain(|name, _| !is_below(name, real));
                layer.done.insert(real.to_owned(), true);
            }
            (Change::Remove | Change::Clear, _) => {}
            (Change::Put(kind), there) => {
                self.put(layer, path, real, kind, step, there);
                layer.done.insert(real.to_owned(), self.nodes.get(real) == Some(&Node::Dir));
                self.seen.made_again += usize::from(self.gone.remove(real));
                self.seen.long_names += usize::from(path.len() > 100);
                self.seen.large_ids += usize::from(!step.form.pax && step.group > 0o7777777);
            }
        }
    }

    fn put(
        &mut self,
        layer: &mut Layer,
        path: &str,
        real: &str,
        kind: &Kind,
        step: &Step,
        there: Option<Node>,
    ) {
        if !matches!(kind, Kind::Dir { .. }) || there.as_ref().is_some_and(|node| *node != Node::Dir) {
            self.remove(real);
        }
        let mut node = Node::File;
        match kind {
            Kind::File { size, mode } => {
                let twice = step.form.twice && layer.may_repeat;
                if twice {
                    self.seen.twice += 1;
                    layer.add(path, EntryType::Regular, "", 0o444, step, b"not this");
                }
                self.seen.capabilities += usize::from(step.attribute);
                layer.add(path, EntryType::Regular, "", *mode, step, &vec![(*size % 251) as u8; *size]);
                layer.last_file = Some(path.to_owned());
            }
            Kind::Sparse { holes } => {
                self.seen.sparse += 1;
                layer.sparse(path, *holes, step);
            }
            Kind::Dir { mode, opaque } => {
                // Before what is in it comes what a link would lead elsewhere.
                let late = step.form.late && !opaque && there.is_none_or(|node| node == Node::Dir);
                self.seen.late += usize::from(late);
                layer.add_at(late, path, EntryType::Directory, "", *mode, step, b"");
                if *opaque {
                    self.seen.opaque += 1;
                    layer.add(&join(path, ".wh..wh..opq"), EntryType::Regular, "", 0o600, step, b"");
                    self.nodes.retain(|name, _| !is_below(name, real));
                }
                node = Node::Dir;
            }
            Kind::Symlink { to } => {
                layer.add(path, EntryType::Symlink, TARGETS[*to], 0o777, step, b"");
                node = Node::Link(TARGETS[*to]);
            }
            Kind::Hard => match layer.last_file.clone() {
                Some(target) => layer.add(path, EntryType::Link, &target, 0o644, step, b""),
                None => layer.add(path, EntryType::Regular, "", 0o640, step, b"no link"),
            },
            Kind::Fifo => layer.add(path, EntryType::Fifo, "", 0o620, step, b""),
            Kind::Char => layer.add(path, EntryType::Char, "", 0o660, step, b""),
            Kind::Block => {
                self.seen.blocks += 1;
                layer.add(path, EntryType::Block, "", 0o660, step, b"");
            }
        }
        self.nodes.insert(real.to_owned(), node);
    }
}

async fn compare_generated(layers: &[Vec<Step>]) -> (usize, Seen) {
    let mut tree = Tree::default();
    let mut archives: Vec<_> = layers.iter().map(|steps| tree.layer(steps)).collect();
    // Last, so that its time is the same on both sides.
    archives.push(root());
    let packed: Vec<_> = archives.into_iter().map(|archive| (GZIP, gzip(&archive), archive)).collect();
    let place = Place::new();
    let files = same(&place, &packed).await;
    let report = place.store.verify(&Default::default()).unwrap();
    assert!(report.is_sound() && report.unverifiable.is_empty(), "{report:?}");
    (files, tree.seen)
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
    let layers = prop::collection::vec(prop::collection::vec(step(), 320..=320), 29..=29);
    let mut layers = layers.new_tree(&mut runner).unwrap().current();
    for (number, layer) in layers.iter_mut().enumerate() {
        let mut steps = layer[..if number % 3 == 0 { 42 } else { 12 }].to_vec();
        for (n, step) in (0u8..).zip(&mut steps) {
            // Most layers leave the directories at the top as they are, or hardly anything would last; and
            // some have names below a link to one of them.
            (step.path, step.change) = match (number % 3, n) {
                (2, _) => (vec![6], Change::Put(Kind::Symlink { to: 3 })),
                (1, 0..6) => (vec![6, n], Change::Remove),
                (1, 6..12) => (vec![6, n - 6, 2], Change::Put(Kind::File { size: 9, mode: 0o600 })),
                (0, 0..6) => (vec![n], Change::Put(Kind::Dir { mode: 0o755, opaque: false })),
                (0, _) => (vec![n / 6 - 1, n % 6], Change::Put(Kind::Dir { mode: 0o755, opaque: false })),
                _ => continue,
            };
        }
        layer.retain(|step| step.path.len() > 2 || number == 5);
        layer.splice(0..0, steps);
    }
    let (files, seen) = block_on(compare_generated(&layers));
    println!("{files} files: {seen:?}");
    assert!(files > 200, "{files}");
    let Seen { removed_files, removed_dirs, opaque, opaque_without_entry, made_again, .. } = seen;
    for (what, count) in [
        ("files removed", removed_files),
        ("directories removed", removed_dirs),
        ("opaque directories", opaque),
        ("opaque directories without an entry", opaque_without_entry),
        ("removed and made again", made_again),
        ("names through links", seen.through_links),
        ("whiteouts through links", seen.whiteouts_through_links),
        ("entries after what depends on them", seen.late),
        ("names that come twice", seen.twice),
        ("sparse files", seen.sparse),
        ("capabilities", seen.capabilities),
        ("long names", seen.long_names),
        ("base-256 owners", seen.large_ids),
        ("block devices", seen.blocks),
    ] {
        assert!(count > 0, "no {what}: {seen:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, max_shrink_iters: 60, ..Default::default() })]

    #[test]
    fn generated_trees(layers in prop::collection::vec(prop::collection::vec(step(), 1..40), 1..5)) {
        block_on(compare_generated(&layers));
    }
}
