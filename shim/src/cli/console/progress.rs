//! The progress of a pull: bars on a terminal, lines elsewhere, JSON on request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use skiff::PullEvent;

use super::{Console, bytes};

/// Redraws of the bars in a second.
const REDRAWS_PER_SECOND: u8 = 12;

const BAR: &str = "{prefix} {bar:32} {bytes:>10} of {total_bytes:>10} {bytes_per_sec:>12} {msg}";

/// A pull's progress; nothing more is drawn once it is dropped.
#[derive(Clone)]
pub(crate) struct Progress {
    console: Console,
    layers: Arc<Mutex<Layers>>,
}

/// The layers that are being fetched, by digest.
struct Layers {
    bars: MultiProgress,
    started: HashMap<String, (u64, ProgressBar)>,
}

impl Progress {
    /// The progress of one pull.
    pub(crate) fn new(console: Console) -> Self {
        let target = if console.stderr.terminal && !console.quiet && !console.is_json() {
            ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_SECOND)
        } else {
            ProgressDrawTarget::hidden()
        };
        let layers = Layers { bars: MultiProgress::with_draw_target(target), started: HashMap::new() };
        Self { console, layers: Arc::new(Mutex::new(layers)) }
    }

    /// Where the pull tells of its steps.
    pub(crate) fn observer(&self) -> Arc<dyn Fn(PullEvent) + Send + Sync> {
        let this = self.clone();
        Arc::new(move |event| this.event(&event))
    }

    fn event(&self, event: &PullEvent) {
        if self.console.quiet {
            return;
        }
        if self.console.is_json() {
            if let Some((name, fields)) = fields(event) {
                self.console.event(name, fields);
            }
            return;
        }
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(line) = layers.apply(event)
            && !self.console.stderr.terminal
        {
            super::write_stderr(&format!("{line}\n"));
        }
    }
}

impl Layers {
    /// Moves the bars; returns the line that stands for the event where there are no bars.
    fn apply(&mut self, event: &PullEvent) -> Option<String> {
        match event {
            PullEvent::Resolved { digest, layers, bytes: size } => {
                Some(format!("image {} has {layers} layers, {}", short(digest), bytes(*size)))
            }
            PullEvent::LayerStarted { digest, bytes } => {
                let bar = self.bars.add(ProgressBar::new(*bytes)).with_prefix(short(digest).to_owned());
                bar.set_style(style());
                self.started.insert(digest.clone(), (*bytes, bar));
                None
            }
            PullEvent::LayerProgress { digest, done } => {
                if let Some((_, bar)) = self.started.get(digest) {
                    bar.set_position(*done);
                }
                None
            }
            PullEvent::LayerDone { digest } => {
                let (size, bar) = self.started.remove(digest)?;
                bar.set_position(size);
                bar.finish_with_message("done");
                Some(format!("layer {} done, {}", short(digest), bytes(size)))
            }
            // Layers that are there already are no progress.
            _ => None,
        }
    }
}

fn style() -> ProgressStyle {
    // The template is a constant that a test tries; the default is no worse than no bar.
    ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("━╸ ")
}

/// The first 12 digits of a digest, as people know them.
fn short(digest: &str) -> &str {
    let hex = digest.split_once(':').map_or(digest, |(_, hex)| hex);
    hex.get(..12).unwrap_or(hex)
}

fn fields(event: &PullEvent) -> Option<(&'static str, Value)> {
    Some(match event {
        PullEvent::Resolved { digest, layers, bytes } => {
            ("resolved", json!({"digest": digest, "layers": layers, "bytes": bytes}))
        }
        PullEvent::LayerCached { digest, bytes } => {
            ("layer_cached", json!({"digest": digest, "bytes": bytes}))
        }
        PullEvent::LayerStarted { digest, bytes } => {
            ("layer_started", json!({"digest": digest, "bytes": bytes}))
        }
        PullEvent::LayerProgress { digest, done } => {
            ("layer_progress", json!({"digest": digest, "done": done}))
        }
        PullEvent::LayerDone { digest } => ("layer_done", json!({"digest": digest})),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn layers() -> Layers {
        Layers {
            bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()),
            started: HashMap::new(),
        }
    }

    fn digest() -> String {
        DIGEST.to_owned()
    }

    #[test]
    fn a_layer_is_one_line_when_it_is_done() {
        let mut layers = layers();
        assert_eq!(layers.apply(&PullEvent::LayerStarted { digest: digest(), bytes: 4096 }), None);
        assert_eq!(layers.apply(&PullEvent::LayerProgress { digest: digest(), done: 9 }), None);
        assert_eq!(
            layers.apply(&PullEvent::LayerDone { digest: digest() }).as_deref(),
            Some("layer 0123456789ab done, 4.0 KiB")
        );
        assert!(layers.started.is_empty());
    }

    #[test]
    fn events_of_unknown_layers_are_nothing() {
        let mut layers = layers();
        assert_eq!(layers.apply(&PullEvent::LayerProgress { digest: digest(), done: 9 }), None);
        assert_eq!(layers.apply(&PullEvent::LayerDone { digest: digest() }), None);
        assert_eq!(layers.apply(&PullEvent::LayerCached { digest: digest(), bytes: 9 }), None);
    }

    #[test]
    fn the_template_of_the_bar_is_sound() {
        assert!(ProgressStyle::with_template(BAR).is_ok());
    }

    #[test]
    fn json_names_every_event() {
        let (name, fields) =
            fields(&PullEvent::Resolved { digest: digest(), layers: 2, bytes: 7 }).expect("fields");
        assert_eq!((name, fields), ("resolved", json!({"digest": DIGEST, "layers": 2, "bytes": 7})));
    }

    #[test]
    fn digests_are_shortened_and_never_cut_amiss() {
        assert_eq!(short(DIGEST), "0123456789ab");
        assert_eq!(short("sha256:01"), "01");
        assert_eq!(short("äöüäöüäöüäöü"), "äöüäöü");
    }
}
