//! Programs under test: their output, their CPU time and memory. They are killed when dropped.

use std::{
    collections::VecDeque,
    fs,
    io::{self, BufRead, BufReader, Read},
    iter::Sum,
    ops::Sub,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context;
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process};

use crate::wait::wait_for_some;

/// Lines kept of each stream; older lines are discarded.
const KEPT_LINES: usize = 100_000;

/// A running program. It is killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

/// The use of processors by a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// User and system time.
    pub cpu: Duration,
    /// How often a thread has waited (voluntary context switches).
    pub wake_ups: u64,
}

impl Sub for Usage {
    type Output = Usage;

    fn sub(self, earlier: Usage) -> Usage {
        Usage { cpu: self.cpu.saturating_sub(earlier.cpu), wake_ups: self.wake_ups.saturating_sub(earlier.wake_ups) }
    }
}

impl Sum for Usage {
    fn sum<I: Iterator<Item = Usage>>(usages: I) -> Usage {
        usages.fold(Usage::default(), |total, usage| Usage {
            cpu: total.cpu + usage.cpu,
            wake_ups: total.wake_ups + usage.wake_ups,
        })
    }
}

impl Process {
    /// Starts `command` with both output streams captured and no input.
    pub fn spawn(command: Command) -> anyhow::Result<Process> {
        Process::spawn_with_stderr(command, Stdio::piped())
    }

    /// The same with another standard error, which is not captured unless it is piped.
    pub fn spawn_with_stderr(mut command: Command, stderr: Stdio) -> anyhow::Result<Process> {
        let name = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .with_context(|| format!("cannot run {name}"))?;
        let stdout = Lines::read(child.stdout.take().context("no standard output")?);
        let stderr = child.stderr.take().map_or_else(|| Lines::read(io::empty()), Lines::read);
        Ok(Process { name, child, stdout, stderr })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The last 100,000 lines of its standard output.
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.all()
    }

    /// The last 100,000 lines of its standard error.
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.all()
    }

    /// Waits for the first line on standard error or standard output for which `wanted` is true.
    pub fn wait_for_line(&self, timeout: Duration, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let what = format!("the expected line of {}", self.name);
        wait_for_some(&what, timeout, || self.stderr.find(&wanted).or_else(|| self.stdout.find(&wanted)))
            .with_context(|| self.log())
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) -> anyhow::Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("cannot send {signal:?} to {}", self.name))
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> anyhow::Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end, and until all of its output has been read.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let what = format!("the end of {}", self.name);
        let status = wait_for_some(&what, timeout, || self.child.try_wait().ok().flatten())
            .with_context(|| format!("standard error:\n{}", self.stderr.all().join("\n")))?;
        for lines in [&mut self.stdout, &mut self.stderr] {
            lines.join(timeout);
        }
        Ok(status)
    }

    /// Sends SIGTERM and waits for the end.
    pub fn stop(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        if self.is_running()? {
            self.terminate()?;
        }
        self.wait(timeout)
    }

    /// User and system time of all its threads so far, with a resolution of 10 ms. Only while the
    /// process has not been waited for.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid());
        let stat = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let ticks = cpu_ticks(&stat).with_context(|| format!("cannot parse {path}: {stat}"))?;
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// CPU time and wake-ups of its threads so far. Those of ended threads are missing. Only while
    /// the process has not been waited for.
    pub fn usage(&self) -> anyhow::Result<Usage> {
        let threads = format!("/proc/{}/task", self.pid());
        let mut usage = Usage::default();
        for thread in fs::read_dir(&threads).with_context(|| format!("cannot read {threads}"))? {
            let folder = thread?.path();
            let read = |file| fs::read_to_string(folder.join(file));
            // It may have ended meanwhile.
            let (Ok(schedstat), Ok(status)) = (read("schedstat"), read("status")) else { continue };
            let nanoseconds = schedstat.split(' ').next().and_then(|time| time.parse().ok());
            let wake_ups = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            usage.cpu += Duration::from_nanos(nanoseconds.context("no time in schedstat")?);
            usage.wake_ups += wake_ups.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or_default();
        }
        Ok(usage)
    }

    /// Its resident memory, in bytes.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let path = format!("/proc/{}/statm", self.pid());
        let statm = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
        let pages = pages.with_context(|| format!("cannot parse {path}: {statm}"))?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    fn log(&self) -> String {
        format!("standard error of {}:\n{}", self.name, self.stderr.all().join("\n"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// utime and stime (proc(5): fields 14 and 15) of a stat line. The name in field 2 may contain
/// spaces and parentheses.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    let mut times = after_name.split(' ').skip(11);
    Some(times.next()?.parse::<u64>().ok()? + times.next()?.parse::<u64>().ok()?)
}

/// The lines of one stream, read by a thread.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<VecDeque<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Lines {
    fn read(stream: impl Read + Send + 'static) -> Lines {
        let lines = Arc::new(Mutex::new(VecDeque::new()));
        let shared = Arc::clone(&lines);
        let reader = thread::spawn(move || {
            let mut stream = BufReader::new(stream);
            let mut line = Vec::new();
            while matches!(stream.read_until(b'\n', &mut line), Ok(1..)) {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                line.clear();
                let mut kept = shared.lock().unwrap_or_else(PoisonError::into_inner);
                if kept.len() == KEPT_LINES {
                    kept.pop_front();
                }
                kept.push_back(text);
            }
        });
        Lines { lines, reader: Some(reader) }
    }

    fn all(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    fn find(&self, wanted: &impl Fn(&str) -> bool) -> Option<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).iter().find(|line| wanted(line)).cloned()
    }

    /// Waits for the end of the stream, within a limit because a grandchild may keep it open.
    fn join(&mut self, timeout: Duration) {
        let Some(reader) = self.reader.take() else { return };
        if wait_for_some("the end of the output", timeout, || reader.is_finished().then_some(())).is_ok() {
            let _ = reader.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::spawn(command).unwrap()
    }

    #[test]
    fn lines_and_the_exit_status_are_kept() {
        let mut process = shell("echo out; echo err >&2; exit 3");
        assert_eq!(process.wait(LONG).unwrap().code(), Some(3));
        assert_eq!((process.stdout(), process.stderr()), (vec!["out".to_owned()], vec!["err".to_owned()]));
    }

    #[test]
    fn missing_line_is_an_error() {
        let process = shell("echo ready >&2; exec sleep 60");
        assert_eq!(process.wait_for_line(LONG, |line| line.starts_with("rea")).unwrap(), "ready");
        assert!(process.wait_for_line(Duration::from_millis(20), |line| line == "never").is_err());
    }

    #[test]
    fn sigterm_stops_and_drop_kills() {
        let mut process = shell("exec sleep 60");
        assert!(!process.stop(LONG).unwrap().success());
        let process = shell("exec sleep 60");
        let path = format!("/proc/{}", process.pid());
        assert!(fs::exists(&path).unwrap());
        drop(process);
        assert!(!fs::exists(&path).unwrap());
    }

    #[test]
    fn cpu_time_and_memory_are_read_from_proc() {
        let process = shell("while :; do :; done");
        wait_for_some("100 ms of work", LONG, || {
            (process.cpu_time().unwrap() > Duration::from_millis(100)).then_some(())
        })
        .unwrap();
        assert!(process.resident_bytes().unwrap() > 100_000);
        assert_eq!(cpu_ticks("12 (a ) b) R 1 1 1 0 -1 4 5 0 0 0 40 2 0 0 20 0 1 0 3"), Some(42));
    }
}
