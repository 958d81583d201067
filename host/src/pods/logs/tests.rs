//! Logs: what a guest writes is what people read, bounded on the way.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::new(1_700_000_000 + second, 123_456_789).expect("in range")
}

fn everything(path: &Path, options: Options) -> String {
    let mut reader = Reader::open(path, &options).expect("opens");
    let mut all = Vec::new();
    loop {
        let step = reader.step().expect("reads");
        if step.is_empty() {
            return String::from_utf8(all).expect("text");
        }
        all.extend(step);
    }
}

fn written(lines: u32) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("app").join("0.log");
    let mut buffer = Buffer::default();
    for line in 0..lines {
        buffer.write(
            LogStream::Stdout,
            format!("line {line}\n").as_bytes(),
            at(i64::from(line)),
        );
    }
    append(&path, &buffer.pending).expect("written");
    (directory, path)
}

#[test]
fn lines_are_in_cri_form_and_unfinished_ones_wait() {
    let mut buffer = Buffer::default();
    buffer.write(LogStream::Stdout, b"one\ntw", at(0));
    buffer.write(LogStream::Stderr, b"oops\n", at(1));
    buffer.write(LogStream::Stdout, b"o\n", at(2));
    let text = String::from_utf8(buffer.pending.clone()).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "2023-11-14T22:13:20.123456789Z stdout F one",
            "2023-11-14T22:13:21.123456789Z stderr F oops",
            "2023-11-14T22:13:22.123456789Z stdout F two",
        ]
    );
}

#[test]
fn an_endless_line_is_cut_and_read_back_whole() {
    let mut buffer = Buffer::default();
    let long = vec![b'x'; LINE * 2 + 10];
    buffer.write(LogStream::Stdout, &long, at(0));
    buffer.write(LogStream::Stdout, b"\n", at(0));
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("0.log");
    append(&path, &buffer.pending).expect("written");
    assert_eq!(everything(&path, Options::default()).len(), long.len() + 1);
}

#[test]
fn tail_since_timestamps_and_limit() {
    let (_directory, path) = written(10);
    let tail = |lines| Options {
        tail: Some(lines),
        ..Options::default()
    };
    assert_eq!(everything(&path, tail(2)), "line 8\nline 9\n");
    assert_eq!(everything(&path, tail(0)), "");
    assert_eq!(everything(&path, tail(99)).lines().count(), 10);
    let since = Options {
        since: Some(at(9)),
        timestamps: true,
        ..Options::default()
    };
    assert_eq!(
        everything(&path, since),
        "2023-11-14T22:13:29.123456789Z line 9\n"
    );
    let limited = Options {
        limit_bytes: Some(9),
        ..Options::default()
    };
    assert_eq!(everything(&path, limited), "line 0\nli");
}

#[test]
fn rotated_files_are_read_in_order_and_tail_reaches_into_them() {
    let (_directory, path) = written(3);
    fs::rename(&path, rotated(&path, 1)).expect("rotated");
    let mut buffer = Buffer::default();
    buffer.write(LogStream::Stdout, b"line 3\n", at(3));
    append(&path, &buffer.pending).expect("written");
    assert_eq!(
        everything(&path, Options::default()),
        "line 0\nline 1\nline 2\nline 3\n"
    );
    let tail = Options {
        tail: Some(2),
        ..Options::default()
    };
    assert_eq!(everything(&path, tail), "line 2\nline 3\n");
}

#[test]
fn a_log_stays_within_its_files() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("0.log");
    let batch = vec![b'x'; 3 * 1024 * 1024];
    for _ in 0..30 {
        append(&path, &batch).expect("written");
    }
    let files: Vec<u64> = fs::read_dir(directory.path())
        .expect("a directory")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").len())
        .collect();
    assert_eq!(files.len(), FILES as usize);
    assert!(files.iter().all(|size| *size <= FILE), "{files:?}");
    forget(directory.path().parent().expect("a parent"), "none", 0);
}

#[tokio::test]
async fn a_flood_waits_for_the_writer_and_all_of_it_arrives() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (logs, thread) = Logs::start(directory.path().join("logs")).expect("started");
    let pod = logs.pod_directory("default", "web", "u1");
    let log = logs.open(&pod, "app", 0);
    let mut sent = 0;
    while sent < 20_000 {
        let room = log.capacity();
        if room < 6 {
            log.writable().await;
            continue;
        }
        log.write(LogStream::Stdout, b"hello\n");
        sent += 1;
    }
    log.close();
    let mut progress = log.progress();
    progress
        .wait_for(|progress| progress.closed)
        .await
        .expect("the writer closes it");
    assert_eq!(
        everything(log.path(), Options::default()).lines().count(),
        20_000
    );
    drop(thread);
}
