//! `make demo CONSOLE=1`: the pipeline with the console, until Ctrl-C. Something happens every
//! quarter of a minute, so that the page has something to tell.

use std::{
    io,
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use sekiwake_testkit::{
    netns::Namespace,
    process::Process,
    sink::{Options, Sink},
};
use sekiwake_tests::{HOST, Services, Site, binary, collector};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{Arguments, FORWARDED, start_replica, start_senders, start_services};

/// The console's port, here and in the namespace of the services.
const PORT: u16 = 9608;
/// The time between two events.
const STEP: Duration = Duration::from_secs(15);
/// How long the senders send; the story ends with Ctrl-C.
const FOREVER: u64 = 24 * 3600;

/// What happens, one after the other, and again from the start.
const STORY: [&str; 4] = [
    "devices send, all collectors are there",
    "the second new collector dies",
    "the second new collector is back",
    "a device floods syslog: an anomaly",
];

/// Runs until Ctrl-C.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let site = Site::new()?;
    let is_over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_over))?;
    }
    let store = tempfile::tempdir()?;
    let mut services = start_services(&site, store.path(), &["sekiwake-console"])?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, PORT))
        .with_context(|| format!("cannot listen on port {PORT} for the console's page"))?;
    listener.set_nonblocking(true)?;
    thread::scope(|scope| {
        scope.spawn(|| relay(&listener, &site.host, &is_over));
        let told = tell(&site, arguments, &mut services, &is_over);
        is_over.store(true, Ordering::Relaxed);
        told
    })?;
    println!("\nstopping");
    services.stop()
}

fn tell<'a>(
    site: &'a Site,
    arguments: &Arguments,
    services: &mut Services<'a>,
    is_over: &AtomicBool,
) -> anyhow::Result<()> {
    let _first = receivers(site, 0)?;
    let mut second = Some(receivers(site, 1)?);
    let _senders = start_senders(site, &Arguments { seconds: FOREVER, ..*arguments })?;
    println!("open http://127.0.0.1:{PORT}   (Ctrl-C ends)\n");
    let mut flood: Option<Process> = None;
    for step in 0.. {
        if step == 1 {
            services.add(start_replica(site)?);
            println!("second syslog forwarder started: each now forwards half of the sources");
        }
        println!("{}", STORY[step % STORY.len()]);
        drop(flood.take());
        match step % STORY.len() {
            1 => drop(second.take()),
            2 => second = Some(receivers(site, 1)?),
            3 => flood = Some(start_flood(site, arguments)?),
            _ => {}
        }
        let until = Instant::now() + STEP;
        while Instant::now() < until && !is_over.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(100));
        }
        if is_over.load(Ordering::Relaxed) {
            break;
        }
    }
    Ok(())
}

fn receivers(site: &Site, number: u8) -> anyhow::Result<Sink> {
    let addresses = FORWARDED.map(|(_, port)| SocketAddr::new(collector(number).into(), port));
    site.collectors.enter(|| Sink::bind(&addresses, Options::counts()))?
}

/// Five times as much syslog as usual, from one device.
fn start_flood(site: &Site, arguments: &Arguments) -> anyhow::Result<Process> {
    let mut command = site.devices.command(binary("sekiwake-sender"));
    let rate = (arguments.rate * 5).to_string();
    command.args(["--to", &HOST.to_string(), "--from", "198.19.0.63/32", "--protocol", "rfc5424"]);
    command.args(["--size", "200", "--rate", &rate, "--duration", &format!("{}s", STEP.as_secs()), "--json"]);
    Process::spawn(command)
}

/// Passes connections to this port on to the same port in the namespace, which a browser does not
/// reach.
fn relay(listener: &TcpListener, namespace: &Namespace, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        let Ok((near, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let connect = || TcpStream::connect((Ipv4Addr::LOCALHOST, PORT));
        let Ok(Ok(far)) = namespace.enter(connect) else { continue };
        if near.set_nonblocking(false).is_err() {
            continue;
        }
        for (from, to) in [(near.try_clone(), far.try_clone()), (Ok(far), Ok(near))] {
            let (Ok(mut from), Ok(mut to)) = (from, to) else { continue };
            thread::spawn(move || {
                // Either end may close the connection at any time.
                let _ = io::copy(&mut from, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    }
}
