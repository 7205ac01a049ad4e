//! Pulls beside others that hold what all share: permits for layers, room for zstd windows.

use std::sync::Mutex;
use std::time::Duration;

use skiff_runtime::ErrorKind;
use skiff_runtime::image::{Image, PullEvent, PullOptions};
use tokio::task::JoinHandle;

use crate::liar::{Answer, Liar, answer, plain};
use crate::support::*;

/// Registries that send the first bytes of each layer and no more.
struct Slow {
    place: Place,
    liar: Liar,
    name: String,
}

impl Slow {
    /// An image of `count` layers, all different; `pack` makes them slow.
    async fn start(media_type: &str, count: usize, pack: impl Fn(&[u8]) -> Vec<u8>, send: usize) -> Self {
        let place = Place::new();
        let layout = Layout::new(&place.path("slow"));
        let layers: Vec<_> = (0..count)
            .map(|n| {
                let archive = tar(&[("first", &n.to_string()), ("noise", &noise(n, 300_000))]);
                (media_type, pack(&archive), archive)
            })
            .collect();
        let image = layout.image(&layers, "amd64");
        let liar = Liar::start().await;
        let name = liar.serve_image(&layout, &image);
        for (_, packed, _) in &layers {
            let stalled = Answer { send, stalls: true, ..answer("200 OK", "", packed) };
            liar.say(&format!("/v2/x/blobs/{}", sha256(packed)), &[stalled]);
        }
        Self { place, liar, name }
    }

    fn pull(&self, options: PullOptions) -> JoinHandle<skiff_runtime::Result<Image>> {
        let (store, source) = (self.place.store.clone(), self.name.parse().unwrap());
        tokio::spawn(async move { store.pull(&source, &options).await })
    }

    /// Until so many layers have begun to be unpacked.
    async fn until_unpacking(&self, count: usize) {
        loop {
            let makers = std::fs::read_dir(self.place.path("state/ingest")).unwrap();
            let begun =
                |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().path().join("fs/noise").exists();
            if makers.map(begun).filter(|begun| *begun).count() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Until a pull that was given up has left nothing.
    async fn until_nothing_is_left(&self) {
        while std::fs::read_dir(self.place.path("state/ingest")).unwrap().next().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn noise(seed: usize, length: usize) -> String {
    let mut state = u32::try_from(seed).unwrap() + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b' ' + (state >> 24) as u8 % 90)
        })
        .collect()
}

/// A zstd frame that asks for a window of `1 << log` bytes.
fn windowed(log: u32, archive: &[u8]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(log).unwrap();
    encoder.include_contentsize(false).unwrap();
    encoder.write_all(archive).unwrap();
    encoder.finish().unwrap()
}

/// A layout of one zstd layer, pulled from the file.
fn with_window(place: &Place, name: &str, log: u32) -> String {
    let layout = Layout::new(&place.path(name));
    let archive = tar(&[("name", name)]);
    layout.index(&[("v1", layout.image(&[(ZSTD, windowed(log, &archive), archive)], "amd64"))])
}

fn seen(events: &Mutex<Vec<PullEvent>>, wanted: impl Fn(&PullEvent) -> bool) -> usize {
    events.lock().unwrap().iter().filter(|event| wanted(event)).count()
}

/// Before, it waited until the other pull had ended, whatever its own time.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_a_zstd_window_ends_with_the_time_of_the_pull() {
    let slow = Slow::start(ZSTD, 1, |archive| windowed(25, archive), 200_000).await;
    let holder = slow.pull(plain());
    slow.until_unpacking(1).await;
    let large = with_window(&slow.place, "large", 25);
    let options = PullOptions { timeout: Some(Duration::from_millis(300)), ..PullOptions::default() };
    let error = slow.place.pull_with(&large, &options).await.expect_err("there is no room");
    assert_eq!(error.kind(), ErrorKind::PullTimedOut, "{error}");
    assert!(error.to_string().contains("within 300 ms: "), "{error}");

    // Given up by its caller: it must neither stay nor take room when there is some.
    let given_up = slow.place.pull(&large);
    tokio::time::timeout(Duration::from_millis(100), given_up).await.expect_err("there is no room");
    let usual = with_window(&slow.place, "usual", 23);
    slow.place.pull(&usual).await.expect("a usual window has room beside it");

    holder.abort();
    holder.await.expect_err("aborted");
    slow.until_nothing_is_left().await;
    slow.place.pull(&large).await.expect("there is room again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_goes_on_beside_one_whose_layers_all_stall() {
    let slow = Slow::start(GZIP, 12, gzip, 200_000).await;
    let (options, events) = observed();
    let holder = slow.pull(PullOptions { plain_http: true, ..options });
    slow.until_unpacking(10).await;

    let (_, small) = Layout::small(&slow.place.path("small"));
    let image = slow.place.pull(&small).await.expect("it has a share of its own");
    assert_eq!(image.layer_count(), 3);
    assert_eq!(seen(&events, |event| matches!(event, PullEvent::LayerStarted { .. })), 10, "a pull's share");

    holder.abort();
    holder.await.expect_err("aborted");
    slow.until_nothing_is_left().await;
    assert!(slow.liar.requests("/blobs/").len() >= 10);
}

/// Two of its layers wait for a permit, and the others for bytes.
#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_a_pull_ends_waits_for_permits_too() {
    let slow = Slow::start(GZIP, 12, gzip, 100_000).await;
    let holder = slow.pull(PullOptions { timeout: Some(Duration::from_secs(1)), ..plain() });
    let error = holder.await.unwrap().expect_err("nothing comes");
    assert_eq!(error.kind(), ErrorKind::PullTimedOut, "{error}");
    slow.until_nothing_is_left().await;
}

#[test]
fn a_pull_has_a_time_in_all_unless_told() {
    let options = PullOptions::default();
    assert_eq!(options.timeout, Some(skiff_runtime::image::DEFAULT_PULL_TIMEOUT));
}
