//! Records through crashes, full files and disks that fail, on real files.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::*;
use crate::ErrorKind;

fn record(id: &str) -> Record {
    Record {
        kind: Kind::Invocation,
        status: Status::Success,
        function: "f".to_owned(),
        request_id: id.to_owned(),
        billed_ms: 3,
        memory_mib: 128,
        ..Record::gap(0, 1, 2)
    }
}

fn open(dir: &Path) -> Meter {
    Meter::open(dir, MeterOptions::default()).expect("opened")
}

async fn keep(meter: &Meter, id: &str) -> bool {
    meter.add(record(id)).settled().await
}

/// Numbers and ids of all records; nothing else may be found.
fn read(dir: &Path) -> Vec<(u64, String)> {
    let found = Reader::open(dir, Selection::default()).expect("read");
    let records = found.map(|found| match found {
        Found::Record(record) => (record.sequence, record.request_id),
        Found::Damage(damage) => panic!("{damage:?}"),
    });
    records.collect()
}

fn missing(dir: &Path) -> Vec<u64> {
    let found = Reader::open(dir, Selection::default()).expect("read");
    let gaps = found.filter_map(|found| match found {
        Found::Record(record) if record.kind == Kind::Gap => Some(record.missing),
        _ => None,
    });
    gaps.collect()
}

#[tokio::test]
async fn what_is_settled_is_there_and_numbers_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    assert!(keep(&meter, "a").await && keep(&meter, "b").await);
    assert_eq!(read(dir.path()), [(1, "a".to_owned()), (2, "b".to_owned())], "before it is closed");
    assert_eq!(meter.status().next_sequence, 3);
    meter.close().await;
    assert!(!keep(&meter, "late").await);
    assert_eq!(meter.status().unbilled, 1);
    let meter = open(dir.path());
    assert!(keep(&meter, "c").await);
    assert_eq!(read(dir.path()).last(), Some(&(3, "c".to_owned())));
}

#[tokio::test]
async fn a_record_is_read_as_it_was_kept() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    let kept = Record {
        http_status: Some(200),
        retries: 2,
        asynchronous: true,
        cold: true,
        code: "x".to_owned(),
        image: "sha256:1".to_owned(),
        ..record("ä\"\\")
    };
    assert!(meter.add(kept.clone()).settled().await);
    let mut found = Reader::open(dir.path(), Selection::default()).expect("read");
    assert_eq!(found.next(), Some(Found::Record(Box::new(Record { sequence: 1, ..kept.clone() }))));
    let line: serde_json::Value = serde_json::from_str(&kept.to_line()).expect("JSON");
    assert_eq!(
        (&line["kind"], &line["status"], &line["gb_s"]),
        (&"invocation".into(), &"success".into(), &0.000_375.into())
    );
}

#[tokio::test]
async fn one_directory_has_one_writer() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    let error = Meter::open(dir.path(), MeterOptions::default()).expect_err("it is in use");
    assert_eq!(error.kind(), ErrorKind::Busy);
    meter.close().await;
    drop(open(dir.path()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_at_once_have_each_a_number_of_their_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    let calls = (0..2_000).map(|number| {
        let meter = meter.clone();
        tokio::spawn(async move { keep(&meter, &number.to_string()).await })
    });
    for kept in futures_util::future::join_all(calls).await {
        assert!(kept.expect("no panic"));
    }
    let records = read(dir.path());
    let ids: BTreeSet<&String> = records.iter().map(|(_, id)| id).collect();
    assert_eq!((records.len(), ids.len()), (2_000, 2_000));
    assert!(records.iter().map(|(sequence, _)| *sequence).eq(1..=2_000));
}

/// As a process that is killed leaves it: no close, and a file that ends anywhere.
#[tokio::test]
async fn after_a_cut_at_any_byte_each_record_is_there_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    for id in ["a", "b"] {
        assert!(keep(&meter, id).await);
    }
    meter.close().await;
    let path = segment::Segment::of(dir.path(), 1).path;
    let whole = fs::read(&path).expect("read");
    for cut in 0..whole.len() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = segment::Segment::of(dir.path(), 1).path;
        fs::write(&path, &whole[..cut]).expect("written");
        let before = read(dir.path());
        let meter = open(dir.path());
        assert!(keep(&meter, "next").await);
        let mut expected = before.clone();
        expected.push((before.len() as u64 + 1, "next".to_owned()));
        assert_eq!(read(dir.path()), expected, "cut at {cut}");
        meter.close().await;
    }
}

#[tokio::test]
async fn files_are_begun_and_removed_by_size() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = MeterOptions { file_bytes: 1_000, max_bytes: 5_000 };
    let meter = Meter::open(dir.path(), options).expect("opened");
    for number in 0..100 {
        assert!(keep(&meter, &number.to_string()).await);
    }
    let all = segment::Segment::all(dir.path()).expect("read");
    let bytes: u64 = all.iter().map(|segment| fs::metadata(&segment.path).expect("there").len()).sum();
    assert!(all.len() > 2 && bytes <= options.max_bytes + 500, "{} files, {bytes} bytes", all.len());
    let records = read(dir.path());
    assert!(records.iter().map(|(sequence, _)| *sequence).eq(all[0].first..=100), "{records:?}");
    meter.close().await;
    let meter = Meter::open(dir.path(), options).expect("opened");
    assert!(keep(&meter, "more").await);
    assert_eq!(read(dir.path()).last(), Some(&(101, "more".to_owned())));
}

#[tokio::test]
async fn a_disk_that_fails_is_told_and_tried_again() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("meter");
    let meter = Meter::open(&dir, MeterOptions { file_bytes: 1, ..MeterOptions::default() }).expect("opened");
    assert!(keep(&meter, "a").await);
    let away = parent.path().join("away");
    fs::rename(&dir, &away).expect("renamed");
    assert!(!keep(&meter, "b").await && !keep(&meter, "c").await);
    let status = meter.status();
    assert_eq!((status.unbilled, status.next_sequence), (2, 2));
    assert!(status.failing.is_some_and(|why| why.contains("meter") && why.contains("No such file")));
    fs::rename(&away, &dir).expect("renamed");
    while !keep(&meter, "d").await {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let status = meter.status();
    assert_eq!(status.failing, None);
    assert_eq!(missing(&dir), [status.unbilled]);
    let records = read(&dir);
    assert_eq!(records, [(1, "a".into()), (2, String::new()), (3, "d".into())]);
}

#[tokio::test]
async fn a_gap_is_told_at_the_latest_at_the_end() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = parent.path().join("meter");
    let meter = Meter::open(&dir, MeterOptions { file_bytes: 1, ..MeterOptions::default() }).expect("opened");
    let away = parent.path().join("away");
    fs::rename(&dir, &away).expect("renamed");
    assert!(!keep(&meter, "a").await);
    fs::rename(&away, &dir).expect("renamed");
    meter.close().await;
    assert_eq!(missing(&dir), [1]);
}

/// What a failed disk left in a file is not read beside what came after it.
#[tokio::test]
async fn a_file_ends_where_the_next_begins() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut bytes = frame::MAGIC.to_vec();
    for (sequence, id) in [(1, "a"), (2, "left")] {
        frame::encode(sequence, &serde_json::to_vec(&record(id)).expect("JSON"), &mut bytes);
    }
    fs::write(segment::Segment::of(dir.path(), 1).path, bytes).expect("written");
    let mut bytes = frame::MAGIC.to_vec();
    frame::encode(2, &serde_json::to_vec(&record("b")).expect("JSON"), &mut bytes);
    fs::write(segment::Segment::of(dir.path(), 2).path, bytes).expect("written");
    assert_eq!(read(dir.path()), [(1, "a".to_owned()), (2, "b".to_owned())]);
}

#[tokio::test]
async fn damage_is_told_and_costs_what_it_hits() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    for id in ["a", "b", "c"] {
        assert!(keep(&meter, id).await);
    }
    meter.close().await;
    let path = segment::Segment::of(dir.path(), 1).path;
    let mut bytes = fs::read(&path).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let meter = open(dir.path());
    assert!(keep(&meter, "d").await);
    let usage: Usage = Reader::open(dir.path(), Selection::default()).expect("read").collect();
    assert_eq!((usage.functions[0].invocations, usage.damages.len()), (3, 1));
    assert_eq!(usage.damages[0].file, path);
    assert_eq!(fs::read(&path).expect("read"), bytes, "nothing of it is cut");
    assert_eq!(meter.status().next_sequence, 5);
}

#[tokio::test]
async fn another_versions_files_are_not_touched() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = segment::Segment::of(dir.path(), 1).path;
    fs::write(&path, "skmeter9 ...").expect("written");
    let error = Meter::open(dir.path(), MeterOptions::default()).expect_err("refused");
    assert!(error.chain().contains("another version"), "{}", error.chain());
    assert_eq!(fs::read(&path).expect("read"), b"skmeter9 ...");
}

#[tokio::test]
async fn reading_takes_what_is_asked_for() {
    let dir = tempfile::tempdir().expect("a directory");
    let meter = open(dir.path());
    for id in ["a", "b"] {
        assert!(keep(&meter, id).await);
    }
    assert!(meter.add(Record { function: "g".to_owned(), ..record("c") }).settled().await);
    let of_g = Selection { function: Some("g".to_owned()), ..Selection::default() };
    assert_eq!(Reader::open(dir.path(), of_g).expect("read").count(), 1);
    let all = || Reader::open(dir.path(), Selection::default()).expect("read");
    assert_eq!((all().until(3).count(), all().until(1).count()), (2, 0));
    // Everything in the file ended in 1970, but it was written now: it is looked into, and nothing found.
    let new = Selection { since: Some(SystemTime::now()), ..Selection::default() };
    assert_eq!(Reader::open(dir.path(), new.clone()).expect("read").count(), 0);
    let later = Selection { since: Some(SystemTime::now() + Duration::from_secs(3_600)), ..new };
    assert_eq!(Reader::open(dir.path(), later).expect("read").count(), 0);
}
