//! Shared by the tests: roles made of closures, processes of them, requests, and waiting.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use sekiwake_runtime::{About, Ending, Process, Role, Running, Scope, Worker};
use sekiwake_settings::{Environment, Reader};

/// The start of a role, given by a test.
pub(crate) type Body = Box<dyn FnOnce(&Scope) -> anyhow::Result<()> + Send>;

thread_local! {
    /// The bodies of the roles of this test, by service. A test runs in a thread of its own, and
    /// starts its roles there.
    static BODIES: Mutex<Vec<(&'static str, Body)>> = const { Mutex::new(Vec::new()) };
}

macro_rules! toy {
    ($role:ident, $service:literal) => {
        pub(crate) struct $role;

        impl Role for $role {
            const ABOUT: About = About { service: $service, binary: "sekiwake-toy", summary: "A toy", admin_port: 0 };
            type Settings = Duration;

            fn read(reader: &mut Reader) -> Duration {
                reader.value("SEKIWAKE_TICK")
            }

            fn start(_tick: Duration, scope: &Scope) -> anyhow::Result<()> {
                match take_body($service) {
                    Some(body) => body(scope),
                    None => Ok(scope.idle()?),
                }
            }
        }
    };
}

toy!(First, "first");
toy!(Second, "second");

fn take_body(service: &str) -> Option<Body> {
    BODIES.with(|bodies| {
        let mut bodies = bodies.lock().unwrap();
        let position = bodies.iter().position(|(of_service, _)| *of_service == service)?;
        Some(bodies.remove(position).1)
    })
}

/// Sets the body of the next role of this service that starts in this thread. Without one it idles.
pub(crate) fn on_start(service: &'static str, body: impl FnOnce(&Scope) -> anyhow::Result<()> + Send + 'static) {
    BODIES.with(|bodies| bodies.lock().unwrap().push((service, Box::new(body))));
}

/// Sets the body of the only worker of this service.
pub(crate) fn works(service: &'static str, body: impl FnOnce(&Worker) -> anyhow::Result<()> + Send + 'static) {
    on_start(service, move |scope| Ok(scope.spawn("toy-0", body)?));
}

/// A process of both toys.
pub(crate) fn both() -> Process {
    Process::new(About { service: "toys", binary: "sekiwake-toys", summary: "Toys", admin_port: 0 })
        .add::<First>()
        .add::<Second>()
}

pub(crate) fn start(process: Process, settings: &[(&str, &str)]) -> Running {
    let environment = Environment::from_pairs([("SEKIWAKE_ADMIN", "127.0.0.1:0")].iter().chain(settings).copied());
    process.read(&environment).unwrap().start().unwrap()
}

/// Runs in the background, so that the test can send requests.
pub(crate) fn in_background(
    running: Running,
) -> (SocketAddr, sekiwake_runtime::StopHandle, thread::JoinHandle<Ending>) {
    let address = running.admin_address();
    let stop = running.stop_handle();
    (address, stop, thread::spawn(|| running.run()))
}

pub(crate) fn get(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, &format!("GET {path} HTTP/1.1\r\nHost: toy\r\n\r\n"))
}

/// Status and body. The server closes the connection after each response.
pub(crate) fn request(address: SocketAddr, text: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Waits until the condition is met, for a minute at most.
pub(crate) fn wait_until(what: &str, mut is_met: impl FnMut() -> bool) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while !is_met() {
        assert!(Instant::now() < give_up, "timed out waiting until {what}");
        thread::yield_now();
    }
}
