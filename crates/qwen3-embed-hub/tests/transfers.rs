//! Downloads whose connection breaks, whose contents are damaged, or that run at the same time.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "shared with other tests")]
mod hub_server;
#[allow(dead_code, reason = "shared with other tests")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hub_server::{Reply, Request, sha256};
use qwen3_embed_hub::HubProblem;
use support::{ID, World, download, files, is_weights, problem, tree};

#[test]
fn downloads_several_files_at_a_time() {
    const SILENCE: Duration = Duration::from_secs(1);
    for world in World::each_with(|| files(&[("modules.json", "[]")])) {
        let times = Arc::new(Mutex::new(Vec::new()));
        let seen = times.clone();
        world.server.change(move |request, reply| {
            if request.method == "HEAD" && request.path.starts_with("/owner/model/resolve/") {
                seen.lock().unwrap().push(Instant::now());
                reply.silence = SILENCE;
            }
        });
        download(&world.hub()).unwrap();
        let times = times.lock().unwrap();
        // The requests for three files arrive before the response to the first of them is sent.
        assert!(times[2] - times[0] < SILENCE, "{times:?}");
    }
}

#[test]
fn resumes_broken_connection() {
    let world = World::http();
    let n = world.weights().len();
    let mut breaks = 0;
    world.server.change(move |request, reply| {
        // The connection breaks more often than there are attempts, but each connection transfers some bytes.
        if is_weights(request) && reply.body.len() > n / 10 {
            breaks += 1;
            reply.cut = (breaks <= 8).then_some(n / 10);
        }
    });
    let dir = download(&world.hub().attempts(2)).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    let requests = world.server.requests();
    let ranges = requests.iter().filter(|r| is_weights(r)).filter_map(|r| r.header("range"));
    let starts: Vec<_> = ranges.map(|range| range.split_once('-').unwrap().0).collect();
    let expected: Vec<_> = (1..=8).map(|i| format!("bytes={}", n / 10 * i)).collect();
    assert_eq!(starts, expected);
}

#[test]
fn next_download_resumes_interrupted_one() {
    let world = World::http();
    let n = world.weights().len();
    world.server.change(move |request, reply| {
        if is_weights(request) && reply.body.len() == n {
            reply.cut = Some(n / 2);
        } else if is_weights(request) && request.header("range").is_some() {
            *reply = Reply::status(503);
        }
    });
    let error = download(&world.hub()).unwrap_err();
    assert!(matches!(error.problem, HubProblem::Status { status: 503, .. }), "{error}");
    assert_eq!(error.file.as_deref(), Some("model.safetensors"));
    assert_eq!(fs::metadata(world.partial()).unwrap().len(), n as u64 / 2);
    assert!(!world.snapshot().join("model.safetensors").exists());
    // The cache does not record that it has the model.
    assert!(!world.repo().join("refs/main").exists());
    let offline = problem(&world.hub().offline(true));
    assert!(matches!(offline, HubProblem::Offline { .. }));

    world.server.behave();
    world.server.requests();
    let dir = download(&world.hub()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
    let requests = world.server.requests();
    let [request] = requests.iter().filter(|r| is_weights(r)).collect::<Vec<_>>()[..] else {
        panic!("{requests:?}")
    };
    let range = request.header("range").unwrap();
    assert!(range.starts_with(&format!("bytes={}-", n / 2)), "{range}");
    assert!(!world.partial().exists());
}

#[test]
fn reports_bytes_done_when_every_attempt_breaks() {
    let world = World::http();
    let n = world.weights().len() as u64;
    world.server.change(move |request, reply| {
        if is_weights(request) {
            reply.cut = Some(if reply.body.len() as u64 == n { 1000 } else { 0 });
        }
    });
    let error = download(&world.hub()).unwrap_err();
    assert!(
        matches!(error.problem, HubProblem::Cut { done: 1000, total, .. } if total == n),
        "{error}"
    );
    // The first attempt transferred bytes, the next five did not.
    let requests = world.server.requests();
    let resumed = requests.iter().filter(|r| is_weights(r) && r.header("range").is_some());
    assert_eq!(resumed.count(), 5);
}

#[test]
fn restarts_if_partial_file_is_damaged() {
    for world in World::each() {
        let n = world.weights().len();
        // The partial file has wrong bytes: fewer bytes than the file, more bytes, or the same number.
        for length in [100, n + 100, n] {
            fs::create_dir_all(world.partial().parent().unwrap()).unwrap();
            fs::write(world.partial(), vec![1; length]).unwrap();
            let dir = download(&world.hub()).unwrap();
            let downloaded = fs::read(dir.join("model.safetensors")).unwrap();
            assert_eq!(downloaded, world.weights(), "{length}");
            fs::remove_dir_all(world.repo()).unwrap();
        }
    }
}

#[test]
fn restarts_if_server_ignores_ranges() {
    let world = World::http();
    let whole = world.weights();
    let n = whole.len();
    let mut first = true;
    world.server.change(move |request, reply| {
        if is_weights(request) && std::mem::take(&mut first) {
            reply.cut = Some(n / 2);
        } else if request.header("range").is_some() {
            *reply = Reply { body: whole.clone(), ..Reply::status(200) };
        }
    });
    let dir = download(&world.hub()).unwrap();
    assert_eq!(fs::read(dir.join("model.safetensors")).unwrap(), world.weights());
}

#[test]
fn rejects_wrong_sha256() {
    for world in World::each() {
        world.server.change(move |request, reply| {
            if is_weights(request) {
                *reply.body.last_mut().unwrap() ^= 1;
            }
        });
        let error = download(&world.hub()).unwrap_err();
        let hash = sha256(&world.weights());
        match &error.problem {
            HubProblem::Checksum { expected, got } => {
                assert!(*expected == hash && got.len() == 64);
            }
            other => panic!("{other:?}"),
        }
        let prefix = "owner/model, model.safetensors (from http://127.0.0.1:";
        assert!(error.to_string().starts_with(prefix), "{error}");
        assert!(!world.snapshot().join("model.safetensors").exists());
        assert!(tree(&world.repo().join("blobs")).iter().all(|blob| !blob.starts_with(&hash)));
        world.server.behave();
        download(&world.hub()).unwrap();
    }
}

#[test]
fn rejects_wrong_size() {
    for (file, change) in [
        ("model.safetensors", -1),
        ("model.safetensors", 1),
        ("config.json", -1),
        ("config.json", 1),
    ] {
        let world = World::http();
        let n = world.server.repos()[ID][file].len();
        world.server.change(move |request, reply| {
            if request.header("range").is_some() {
                *reply = Reply::status(416);
            } else if request.method == "GET" && reply.body.len() == n {
                reply.body.resize((n as i64 + change) as usize, b' ');
            }
        });
        let error = download(&world.hub().attempts(2)).unwrap_err();
        let size = (n as i64 + change) as u64;
        match error.problem {
            HubProblem::Size { expected, got } => assert_eq!((expected, got), (n as u64, size)),
            other => panic!("{other:?}"),
        }
        assert_eq!(error.file.as_deref(), Some(file));
        assert!(!world.snapshot().join(file).exists());
        // Parts of other files, whose downloads were stopped, may remain.
        let hash = sha256(&world.server.repos()[ID][file]);
        let blobs = tree(&world.repo().join("blobs"));
        assert!(!blobs.iter().any(|blob| blob.starts_with(&hash[..40])), "{blobs:?}");
    }
}

#[test]
fn slow_connection_succeeds_and_silent_connection_times_out() {
    let world = World::http();
    let slow = |_: &Request, reply: &mut Reply| reply.per_kilobyte = Duration::from_millis(4);
    world.server.change(slow);
    let hub = world.hub().timeout(Duration::from_millis(500));
    let start = Instant::now();
    download(&hub).unwrap();
    // The transfer takes longer than the timeout.
    assert!(start.elapsed() > Duration::from_secs(1), "{:?}", start.elapsed());

    fs::remove_dir_all(world.repo()).unwrap();
    let mut first = true;
    world.server.change(move |request, reply| {
        if is_weights(request) && std::mem::take(&mut first) {
            reply.silence = Duration::from_secs(3);
        }
    });
    let start = Instant::now();
    download(&hub).unwrap();
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());

    fs::remove_dir_all(world.repo()).unwrap();
    world.server.change(|_, reply| reply.silence = Duration::from_secs(3));
    let problem = problem(&hub.attempts(2));
    assert!(matches!(problem, HubProblem::Unreachable { .. }), "{problem}");
}

#[test]
fn concurrent_downloads_transfer_each_file_once() {
    for world in World::each() {
        world.server.change(|_, reply| reply.silence = Duration::from_millis(50));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let dir = download(&world.hub()).unwrap();
                    let downloaded = fs::read(dir.join("model.safetensors")).unwrap();
                    assert_eq!(downloaded, world.weights());
                });
            }
        });
        let requests = world.server.requests();
        assert_eq!(requests.iter().filter(|request| is_weights(request)).count(), 1);
        assert!(!tree(world.cache.path()).iter().any(|file| file.contains(".new")));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn reports_full_disk() {
    let world = World::http();
    fs::create_dir_all(world.partial().parent().unwrap()).unwrap();
    // This device has no space for any write.
    std::os::unix::fs::symlink("/dev/full", world.partial()).unwrap();
    let n = world.weights().len() as u64;
    match problem(&world.hub()) {
        HubProblem::DiskFull { dir, done: 0, total, .. } => {
            assert_eq!((dir, total), (world.repo().join("blobs"), n));
        }
        other => panic!("{other:?}"),
    }
    assert!(!world.snapshot().join("model.safetensors").exists());
}

#[test]
fn progress_reaches_the_end_of_every_file() {
    for world in World::each_with(|| files(&[("modules.json", "[]")])) {
        let seen = Arc::new(Mutex::new(BTreeMap::<String, Vec<(u64, u64)>>::new()));
        let callback = seen.clone();
        let hub = world.hub().on_download(move |progress| {
            let mut files = callback.lock().unwrap();
            let steps = files.entry(progress.name.to_owned()).or_default();
            steps.push((progress.done, progress.total));
        });
        let dir = download(&hub).unwrap();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen.len(), 3);
        for (name, steps) in seen {
            let size = fs::metadata(dir.join(&name)).unwrap().len();
            assert!(steps.is_sorted() && steps.iter().all(|(_, total)| *total == size), "{name}");
            assert_eq!(steps.iter().filter(|(done, total)| done == total).count(), 1, "{name}");
            assert_eq!(steps.last(), Some(&(size, size)));
        }
    }
}
