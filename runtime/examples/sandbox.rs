//! Starts containers through the library and prints how long each step took, one JSON object for each
//! measurement: what `scripts/bench sandbox` shows beside other runtimes.
//!
//! `sandbox KEEPER ROOTFS DIR RUNS PARALLEL SECONDS`: a container of ROOTFS runs `/bin/true` RUNS times,
//! by PARALLEL callers, or for SECONDS if that is not 0. State is kept in DIR. `AHEAD` in the environment is how many
//! containers are made ahead.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use skiff_runtime::image::{Image, ImageConfig};
use skiff_runtime::{ContainerSpec, Runtime, RuntimeOptions};

/// Of one container, in microseconds.
#[derive(serde::Serialize)]
struct Sample {
    /// From the call until the command was executed.
    exec_us: u128,
    /// Until it had ended and its exit was known.
    exit_us: u128,
    rootfs_us: u128,
    network_us: u128,
    spawn_us: u128,
    mounts_us: u128,
    create_us: u128,
    start_us: u128,
}

fn spec(number: usize) -> ContainerSpec {
    ContainerSpec {
        id: format!("bench-{number}"),
        hostname: "bench".into(),
        entrypoint: Some(vec!["/bin/true".into()]),
        memory_bytes: 128 << 20,
        cpu_millis: 1000,
        pids: 1024,
        nofile: 1024,
        writable_bytes: 512 << 20,
        tmp_bytes: 512 << 20,
        ..ContainerSpec::default()
    }
}

async fn one(runtime: &Runtime, image: &Image, number: usize) -> skiff_runtime::Result<Sample> {
    let began = Instant::now();
    let container = runtime.start(image, spec(number)).await?;
    let exec_us = began.elapsed().as_micros();
    let exit = container.wait().await?;
    let exit_us = began.elapsed().as_micros();
    assert_eq!(exit.code, Some(0), "the command of container {number} failed");
    let timings = container.timings();
    Ok(Sample {
        exec_us,
        exit_us,
        rootfs_us: timings.rootfs.as_micros(),
        network_us: timings.network.as_micros(),
        spawn_us: timings.spawn.as_micros(),
        mounts_us: timings.mounts.as_micros(),
        create_us: timings.create.as_micros(),
        start_us: timings.exec.as_micros(),
    })
}

fn cpu_us(who: UsageWho) -> Result<i64, Box<dyn Error>> {
    let usage = getrusage(who)?;
    Ok((usage.user_time() + usage.system_time()).num_microseconds())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [keeper, rootfs, dir, runs, parallel, seconds] = args.as_slice() else {
        return Err("usage: sandbox KEEPER ROOTFS DIR RUNS PARALLEL SECONDS".into());
    };
    let (runs, parallel, seconds) = (runs.parse::<usize>()?, parallel.parse::<usize>()?, seconds.parse()?);
    let dir = PathBuf::from(dir);
    let options = RuntimeOptions {
        keeper: Some(keeper.into()),
        containers_ahead: std::env::var("AHEAD").map_or(0, |n| n.parse().unwrap_or(0)),
        ..RuntimeOptions::new(dir.join("state"), dir.join("run"))
    };
    let runtime = Runtime::open(options).await?;
    let image = Arc::new(Image::unmanaged("bench", ImageConfig::default(), vec![rootfs.into()]));
    one(&runtime, &image, 0).await?;
    let (next, until) = (Arc::new(AtomicUsize::new(1)), Instant::now() + Duration::from_secs(seconds));
    let began = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..parallel {
        let (runtime, image, next) = (Arc::clone(&runtime), Arc::clone(&image), Arc::clone(&next));
        callers.spawn(async move {
            let mut samples = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let done = if seconds > 0 { Instant::now() >= until } else { number > runs };
                if done {
                    return Ok::<_, skiff_runtime::Error>(samples);
                }
                samples.push(one(&runtime, &image, number).await?);
            }
        });
    }
    let mut samples = Vec::new();
    while let Some(caller) = callers.join_next().await {
        samples.extend(caller??);
    }
    let elapsed_us = began.elapsed().as_micros();
    runtime.shutdown().await?;
    // All of it, the opening of the run too: of this process, its keeper, and what came from that.
    let cpu_us = cpu_us(UsageWho::RUSAGE_SELF)? + cpu_us(UsageWho::RUSAGE_CHILDREN)?;
    let out = serde_json::json!({ "elapsed_us": elapsed_us, "cpu_us": cpu_us, "samples": samples });
    serde_json::to_writer(std::io::stdout(), &out)?;
    Ok(())
}
