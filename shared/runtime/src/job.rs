//! A subcommand that needs workers: it has a scope, stops in order on a signal, and has no admin
//! server.

use std::{
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use anyhow::{anyhow, bail};

use crate::{
    descriptors,
    health::Health,
    process::{MAX_EVENTS, STUCK_AFTER, catch_tool_signals},
    scope::{Scope, SharedState, Worker},
    stop::{Hangups, stop_pair},
    supervisor::{Ending, StopHandle, SupervisedRole, Supervisor},
    systemd::Systemd,
};

/// Runs `body` in a worker of its own, which may spawn others in its scope, and returns its result
/// when all of them have ended. The first SIGTERM or SIGINT stops the scope: its workers have
/// `drain` to end. A second one exits at once.
///
/// # Errors
/// Those of `body`; a worker that has failed, or that has not ended in time; no thread can be
/// spawned.
pub fn run_job(
    service: &'static str,
    drain: Duration,
    body: impl FnOnce(&Scope, &Worker) -> anyhow::Result<ExitCode> + Send + 'static,
) -> anyhow::Result<ExitCode> {
    descriptors::set_limit();
    let (event_sender, events) = mpsc::sync_channel(MAX_EVENTS);
    let stop = StopHandle::new(event_sender.clone());
    let health = Arc::new(Health::new(STUCK_AFTER));
    let hangups = Hangups::default();
    let shared = SharedState {
        health: health.clone(),
        hangups: hangups.clone(),
        events: event_sender,
        pages: Default::default(),
        sites: Default::default(),
    };
    catch_tool_signals(stop)?;
    let (stopper, stop) = stop_pair();
    let scope = Scope::new(service, 0, stop, shared);
    let supervisor = Supervisor::new(
        vec![SupervisedRole { scope: scope.clone(), stopper }],
        health,
        hangups,
        Systemd::from_environment(Instant::now()),
        drain,
    );
    let result = Arc::new(Mutex::new(None));
    let of_body = Arc::clone(&result);
    let of_worker = scope.clone();
    scope.spawn(service, move |worker| {
        let outcome = body(&of_worker, worker);
        *of_body.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        Ok(())
    })?;
    supervisor.started();
    let ended = supervisor.run(&events);
    let outcome = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (outcome, ended.ending) {
        (Some(Ok(_)), Ending::Failed) => {
            bail!("{}", ended.cause.unwrap_or_else(|| "workers did not end in time".into()))
        }
        (Some(outcome), _) => outcome,
        (None, _) => Err(anyhow!("{}", ended.cause.unwrap_or_else(|| "did not end in time".into()))),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn job_ends_with_the_result_of_its_body() {
        let with_worker = run_job("job", Duration::from_secs(5), |scope, _| {
            scope.spawn("helper", |_| Ok(()))?;
            Ok(ExitCode::from(3))
        });
        assert_eq!(format!("{:?}", with_worker.unwrap()), format!("{:?}", ExitCode::from(3)));
        let failed = run_job("job", Duration::from_secs(5), |_, _| bail!("no disk"));
        assert_eq!(failed.unwrap_err().to_string(), "no disk");
        let worker_failed = run_job("job", Duration::from_secs(5), |scope, _| {
            scope.spawn("helper", |_| bail!("no socket"))?;
            Ok(ExitCode::SUCCESS)
        });
        assert_eq!(worker_failed.unwrap_err().to_string(), "no socket");
    }
}
