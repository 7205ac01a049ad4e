//! Three nodes in one program, and a policy that places calls: on a node with a free warm slot, else on one that
//! holds the image, else on the one with the most room.
//!
//! ```text
//! scheduler SOURCE DIRECTORY
//! ```
//! `SOURCE` is a reference or `oci:DIR[:TAG]`; the nodes keep their things below `DIRECTORY`. `SKIFF_KEEPER` names
//! the keeper. Needs root. Each call is told with where it went and why.

#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use skiff::node::{Deployment, Node, NodeLimits, NodeOptions, Snapshot};
use skiff::{EventOutcome, InvokeOptions};

/// Memory of an instance of the functions here, MiB.
const MEMORY_MIB: u64 = 256;

struct Member {
    name: &'static str,
    node: Arc<Node>,
}

impl Member {
    async fn open(name: &'static str, below: &Path, instances: usize) -> anyhow::Result<Self> {
        let (state, run) = (below.join(name).join("state"), below.join(name).join("run"));
        let mut options = NodeOptions::new(state, run);
        options.runtime.keeper = std::env::var_os("SKIFF_KEEPER").map(PathBuf::from);
        options.limits = NodeLimits { max_instances: Some(instances), ..NodeLimits::default() };
        Ok(Self { name, node: Node::open(options).await? })
    }
}

/// A function that calls come for.
struct Wanted<'a> {
    name: &'a str,
    image: &'a str,
}

/// The node for the next call, and why.
async fn place<'a>(members: &'a [Member], wanted: &Wanted<'_>) -> anyhow::Result<(&'a Member, &'static str)> {
    let mut all = Vec::new();
    for member in members {
        // A scheduler of many calls would follow `Node::watch` instead.
        all.push((member, member.node.snapshot().await?));
    }
    let warm = |(_, snapshot): &&(&Member, Snapshot)| snapshot.free_slots(None, wanted.name) > 0;
    let holds = |(_, snapshot): &&(&Member, Snapshot)| {
        snapshot.holds(wanted.image) && snapshot.room_for(MEMORY_MIB) > 0
    };
    if let Some((member, _)) = all.iter().find(warm) {
        return Ok((member, "a warm slot"));
    }
    if let Some((member, _)) = all.iter().find(holds) {
        return Ok((member, "the image is there"));
    }
    // The first of those with the same room.
    let most = all.iter().rev().max_by_key(|(_, snapshot)| snapshot.room_for(MEMORY_MIB));
    most.map(|(member, _)| (*member, "the most room")).context("no nodes")
}

/// Places a call and makes it; a function that is not there yet is deployed first.
async fn call(members: &[Member], wanted: &Wanted<'_>, event: &str) -> anyhow::Result<EventOutcome> {
    let (member, why) = place(members, wanted).await?;
    if member.node.function(None, wanted.name).is_err() {
        let file = format!("name = {:?}\nimage = {:?}\nmemory = \"256MiB\"\n", wanted.name, wanted.image);
        member.node.deploy(Deployment::new(file, "function.toml")).await?;
    }
    println!("{} on {}: {why}", wanted.name, member.name);
    Ok(member.node.invoke(None, wanted.name, event.to_owned().into(), InvokeOptions::default()).await?)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: scheduler SOURCE DIRECTORY";
    let image = arguments.next().context(usage)?;
    let below = PathBuf::from(arguments.next().context(usage)?);
    let opened = [("a", 2), ("b", 4), ("c", 3)].map(|(name, room)| Member::open(name, &below, room));
    let members = try_join_all(opened).await?;
    // The second has the most room, so both functions come to it.
    let followed = async { Ok(follow(&members[1], 2).await) };
    let done = futures_util::future::try_join(calls(&members, &image), followed).await;
    if let Ok((_, Some(told))) = &done {
        println!("{told}");
    }
    for member in &members {
        let last = member.node.snapshot().await?;
        println!("{}: {} instances, {} functions", member.name, last.instances, last.functions.len());
        member.node.shutdown().await?;
    }
    done.map(drop)
}

/// Follows a node until it tells of so many functions.
async fn follow(member: &Member, functions: usize) -> Option<String> {
    let mut changes = pin!(member.node.watch());
    while let Some(now) = changes.next().await {
        if now.functions.len() == functions {
            return Some(format!("{} tells of {functions} functions", member.name));
        }
    }
    None
}

async fn calls(members: &[Member], image: &str) -> anyhow::Result<()> {
    let (resize, rotate) = (Wanted { name: "resize", image }, Wanted { name: "rotate", image });
    for wanted in [&resize, &resize, &rotate, &rotate] {
        let outcome = call(members, wanted, r#"{"k": 1}"#).await?;
        anyhow::ensure!(outcome.status.is_success(), "{:?}", outcome.result);
    }
    Ok(())
}
