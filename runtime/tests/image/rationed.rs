//! A registry that sends some of a layer and no more.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::*;

/// Bytes of the layer: what is smaller is not kept.
pub(crate) const LAYER_BYTES: usize = 9 << 20;

/// A registry over a layout with the image `x:1`, which knows ranges and sends at most `budget`
/// bytes of the layer; after that it breaks every connection.
#[derive(Clone)]
pub(crate) struct Rationed {
    address: String,
    pub(crate) layer: String,
    budget: Arc<AtomicU64>,
    /// Connections stay when the budget is spent, and bring nothing.
    stays: Arc<AtomicBool>,
    ranges: Arc<Mutex<Vec<u64>>>,
}

impl Rationed {
    pub(crate) fn start(place: &Place) -> Self {
        let layout = Layout::new(&place.path("layout"));
        let noise: String = (0..LAYER_BYTES as u64).map(|n| char::from(b'!' + (n * n % 89) as u8)).collect();
        let archive = tar(&[("noise", &noise)]);
        let image = layout.image(&[(TAR, archive.clone(), archive.clone())], "amd64");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let registry = Self {
            address: listener.local_addr().unwrap().to_string(),
            layer: sha256(&archive),
            budget: Arc::default(),
            stays: Arc::default(),
            ranges: Arc::default(),
        };
        let manifest = image["digest"].as_str().unwrap().to_owned();
        let served = registry.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (registry, dir, manifest) = (served.clone(), layout.dir.clone(), manifest.clone());
                std::thread::spawn(move || registry.serve(stream, &dir, &manifest));
            }
        });
        registry
    }

    pub(crate) fn name(&self) -> String {
        format!("{}/x:1", self.address)
    }

    pub(crate) fn may_send(&self, bytes: u64) {
        self.budget.store(bytes, Ordering::SeqCst);
    }

    pub(crate) fn stays(&self, stays: bool) {
        self.stays.store(stays, Ordering::SeqCst);
    }

    /// The first bytes that were asked for of the layer, and forgets them.
    pub(crate) fn ranges(&self) -> Vec<u64> {
        std::mem::take(&mut self.ranges.lock().unwrap())
    }

    fn serve(&self, mut stream: TcpStream, dir: &Path, manifest: &str) -> Option<()> {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).ok()?;
        let path = request.split(' ').nth(1)?;
        let digest = if path.contains("/manifests/") { manifest } else { path.rsplit('/').next()? };
        let body = fs::read(dir.join("blobs").join(digest.replace(':', "/"))).ok()?;
        let range = request.to_ascii_lowercase();
        let from: usize = match range.split_once("range: bytes=") {
            Some((_, rest)) => rest.split('-').next()?.parse().ok()?,
            None => 0,
        };
        let (status, total) = (if from > 0 { "206 Partial Content" } else { "200 OK" }, body.len());
        let mut head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", total - from);
        if from > 0 {
            head.push_str(&format!("Content-Range: bytes {from}-{}/{total}\r\n", total - 1));
        }
        let mut rest = &body[from..];
        if digest == self.layer {
            self.ranges.lock().unwrap().push(from as u64);
            let take = |left: u64| Some(left.saturating_sub(rest.len() as u64));
            let left = self.budget.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).ok()?;
            rest = &rest[..rest.len().min(left as usize)];
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
        stream.write_all(rest).ok()?;
        if rest.len() < total - from && self.stays.load(Ordering::SeqCst) {
            // Until the other side goes.
            let _ = stream.read(&mut [0]);
        }
        Some(())
    }
}
