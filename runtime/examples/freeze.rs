//! Freezes and thaws a container again and again, and prints how long each took in microseconds: what
//! `scripts/bench memory` shows.
//!
//! `freeze KEEPER ROOTFS DIR RUNS`: the container runs `/function` of ROOTFS. State is kept in DIR.

use std::error::Error;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use skiff_runtime::image::{Image, ImageConfig};
use skiff_runtime::{ContainerSpec, Runtime, RuntimeOptions};

/// Between two rounds: what was thawed gets to run.
const PAUSE: Duration = Duration::from_millis(2);

/// How long the server may take until it runs.
const START: Duration = Duration::from_millis(300);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [keeper, rootfs, dir, runs] = args.as_slice() else {
        return Err("usage: freeze KEEPER ROOTFS DIR RUNS".into());
    };
    let dir = PathBuf::from(dir);
    let options = RuntimeOptions {
        keeper: Some(keeper.into()),
        ..RuntimeOptions::new(dir.join("state"), dir.join("run"))
    };
    let runtime = Runtime::open(options).await?;
    let image = Image::unmanaged("bench", ImageConfig::default(), vec![rootfs.into()]);
    let spec = ContainerSpec {
        id: "bench".into(),
        hostname: "bench".into(),
        entrypoint: Some(vec!["/function".into()]),
        memory_bytes: 128 << 20,
        pids: 1024,
        nofile: 1024,
        writable_bytes: 512 << 20,
        tmp_bytes: 512 << 20,
        ..ContainerSpec::default()
    };
    let container = runtime.start(&image, spec).await?;
    tokio::time::sleep(START).await;
    let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
    for _ in 0..runs.parse::<usize>()? {
        let began = Instant::now();
        container.freeze().await?;
        freezes.push(began.elapsed().as_micros());
        assert!(container.is_frozen(), "it is not frozen");
        let began = Instant::now();
        container.thaw()?;
        thaws.push(began.elapsed().as_micros());
        tokio::time::sleep(PAUSE).await;
    }
    container.stop(Duration::ZERO).await?;
    drop(container);
    runtime.shutdown().await?;
    let out = serde_json::json!({ "freeze_us": freezes, "thaw_us": thaws });
    serde_json::to_writer(std::io::stdout(), &out)?;
    Ok(())
}
