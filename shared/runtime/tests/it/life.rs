use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sekiwake_runtime::{Ending, Process};
use sekiwake_settings::Environment;

use crate::toys::{First, Second, both, in_background, on_start, start, works};

/// Reached only by a test that fails.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn role_that_finishes_ends_the_process_with_status_0() {
    on_start("first", |scope| {
        for index in 0..3 {
            scope.spawn(format!("toy-{index}"), |_| Ok(()))?;
        }
        Ok(())
    });
    assert_eq!(start(Process::of::<First>(), &[]).run(), Ending::Done);
}

#[test]
fn failed_worker_ends_the_process_after_the_others_drained() {
    let drained = Arc::new(Mutex::new(false));
    let seen = drained.clone();
    works("first", |_| anyhow::bail!("the disk has failed"));
    works("second", move |worker| {
        *drained.lock().unwrap() = worker.stop().wait(LONG);
        Ok(())
    });
    assert_eq!(start(both(), &[]).run(), Ending::Failed);
    assert!(*seen.lock().unwrap());
}

#[test]
fn last_word_of_a_role_follows_its_workers() {
    let log: Arc<Mutex<Vec<&str>>> = Arc::default();
    let (working, ending) = (log.clone(), log.clone());
    on_start("first", move |scope| {
        scope.at_end(move || ending.lock().unwrap().push("last word"));
        scope.spawn("toy", move |_| {
            working.lock().unwrap().push("worker ended");
            Ok(())
        })?;
        Ok(())
    });
    assert_eq!(start(Process::of::<First>(), &[]).run(), Ending::Done);
    assert_eq!(*log.lock().unwrap(), ["worker ended", "last word"]);
}

#[test]
fn panicking_worker_ends_the_process_with_status_1() {
    works("first", |_| panic!("a bug"));
    assert_eq!(start(Process::of::<First>(), &[]).run(), Ending::Failed);
}

#[test]
fn role_finishes_after_workers_spawned_by_workers() {
    let done = Arc::new(Mutex::new(false));
    let seen = done.clone();
    on_start("first", move |scope| {
        let own = scope.clone();
        scope.spawn("parent", move |_| {
            own.spawn("child", move |_| {
                *done.lock().unwrap() = true;
                Ok(())
            })?;
            Ok(())
        })?;
        Ok(())
    });
    assert_eq!(start(Process::of::<First>(), &[]).run(), Ending::Done);
    assert!(*seen.lock().unwrap());
}

#[test]
fn each_role_is_joined_before_the_next_is_stopped() {
    let log: Arc<Mutex<Vec<&str>>> = Arc::default();
    let first = log.clone();
    let second = log.clone();
    works("first", move |worker| {
        assert!(worker.stop().wait(LONG));
        first.lock().unwrap().push("first stopped");
        // Delayed by something else: the second role must still not be stopped.
        std::thread::yield_now();
        first.lock().unwrap().push("first ended");
        Ok(())
    });
    works("second", move |worker| {
        assert!(worker.stop().wait(LONG));
        second.lock().unwrap().push("second stopped");
        Ok(())
    });
    let running = start(both(), &[]);
    running.stop_handle().stop("the test");
    assert_eq!(running.run(), Ending::Done);
    assert_eq!(*log.lock().unwrap(), ["first stopped", "first ended", "second stopped"]);
}

#[test]
fn all_roles_drain_before_one_deadline() {
    let deadlines: Arc<Mutex<Vec<Instant>>> = Arc::default();
    for service in ["first", "second"] {
        let deadlines = deadlines.clone();
        works(service, move |worker| {
            assert_eq!((worker.stopping(), worker.deadline()), (worker.stop().stopping(), worker.stop().deadline()));
            worker.stop().wait_forever();
            deadlines.lock().unwrap().extend(worker.deadline());
            Ok(())
        });
    }
    let running = start(both(), &[("SEKIWAKE_DRAIN", "60s")]);
    let before = Instant::now();
    running.stop_handle().stop("the test");
    assert_eq!(running.run(), Ending::Done);
    let deadlines = deadlines.lock().unwrap();
    assert_eq!(deadlines.len(), 2);
    assert_eq!(deadlines[0], deadlines[1]);
    assert!(deadlines[0] >= before + LONG);
}

#[test]
fn exceeding_the_drain_deadline_gives_status_1() {
    let (let_go, held) = crossbeam_channel::bounded::<()>(0);
    works("first", move |_| {
        let _ = held.recv();
        Ok(())
    });
    let running = start(Process::of::<First>(), &[("SEKIWAKE_DRAIN", "10ms")]);
    running.stop_handle().stop("the test");
    assert_eq!(running.run(), Ending::Failed);
    drop(let_go);
}

#[test]
fn role_that_cannot_start_fails_after_the_others_drained() {
    let drained = Arc::new(Mutex::new(false));
    let seen = drained.clone();
    works("first", move |worker| {
        worker.stop().wait_forever();
        *drained.lock().unwrap() = true;
        Ok(())
    });
    on_start("second", |_| Err(anyhow::anyhow!("no such device").context("cannot open eth9")));
    let ready = both().read(&Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0")])).unwrap();
    let error = ready.start().unwrap_err();
    assert_eq!(format!("{error:#}"), "second: cannot open eth9: no such device");
    assert!(*seen.lock().unwrap());
}

#[test]
fn role_without_work_can_idle_until_it_is_stopped() {
    on_start("first", |scope| Ok(scope.idle()?));
    let (_, stop, ended) = in_background(start(Process::of::<First>(), &[]));
    stop.stop("the test");
    assert_eq!(ended.join().unwrap(), Ending::Done);
}

#[test]
fn mistakes_of_roles_and_process_are_reported_together() {
    let environment = Environment::from_pairs([
        ("SEKIWAKE_TICK", "fast"),
        ("SEKIWAKE_ADMIN", "here"),
        ("SEKIWAKE_LOG", "inof"),
        ("SEKIWAKE_LOG_FORMAT", "xml"),
        ("SEKIWAKE_DRAIN", "2h"),
        ("SEKIWAKE_NOPE", "1"),
    ]);
    let mistakes = both().add::<Second>().read(&environment).err().unwrap().to_string();
    let expected = [
        r#"SEKIWAKE_NOPE="1": no such setting"#,
        r#"SEKIWAKE_TICK="fast": expected a duration such as 2ms, 10s or 1m"#,
        r#"SEKIWAKE_ADMIN="here": expected an address with a port such as 127.0.0.1:9600, [::1]:9600 or :9600"#,
        r#"SEKIWAKE_DRAIN="2h": expected a duration such as 2ms, 10s or 1m, from 0s to 1h"#,
        r#"SEKIWAKE_LOG="inof": expected a level (error, warn, info, debug, trace, off) or a filter such as info,sekiwake_bus=debug ("inof" is not a level)"#,
        r#"SEKIWAKE_LOG_FORMAT="xml": expected text or json"#,
    ];
    assert_eq!(mistakes.lines().collect::<Vec<_>>(), expected);
}
