//! All roles in one process, for a site without containers: the same services and settings.
//!
//! The roles use a bus within the process, so no datagram passes through TCP. With
//! `SEKIWAKE_BUS_PUBLISH`, `SEKIWAKE_BUS_SUBSCRIBE` and `SEKIWAKE_BUS_CONTROL` set they use that
//! bus instead. The proxy binds its own endpoints in any case, for the tap and other subscribers.
//! With `SEKIWAKE_BUS` set the roles use those servers, and there is no proxy.

use std::marker::PhantomData;

use sekiwake_anomaly_detector::AnomalyDetector;
use sekiwake_bus::{Controlling, Publishing, Subscribing};
use sekiwake_capture::CaptureService;
use sekiwake_console::Console;
use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_proxy::ProxyService;
use sekiwake_runtime::{About, Finding, Process, Role, Scope};
use sekiwake_settings::{Endpoint, List, NatsUrl, Reader};
use sekiwake_storer::{KindStorer, StoredKind, Storer, TrapStorer, XflowStorer};
use sekiwake_syslog_forwarder::SyslogForwarder;
use sekiwake_trap_forwarder::TrapForwarder;
use sekiwake_xflow_forwarder::XflowForwarder;

const ABOUT: About =
    About { service: "all-in-one", binary: "sekiwake", summary: "Runs every role in one process", admin_port: 9607 };

/// All roles, in the order in which they start and stop: producers before consumers, and the proxy
/// last, because all others deregister from it.
pub fn process() -> Process {
    Process::new(ABOUT)
        .add::<Inside<CaptureService>>()
        .add::<Inside<SyslogForwarder>>()
        .add::<Inside<XflowForwarder>>()
        .add::<Inside<TrapForwarder>>()
        .add::<Inside<Storer>>()
        .add::<Inside<XflowStorer>>()
        .add::<Inside<TrapStorer>>()
        .add::<Inside<AnomalyDetector>>()
        .add::<Inside<Console>>()
        .add::<Inside<ProxyService>>()
}

/// A role that uses the bus within the process.
struct Inside<R>(PhantomData<R>);

/// A role whose bus can be replaced. Within the process nothing is encrypted, even if keys are set.
trait OnBus: Role {
    /// Selects the bus within the process, unless another one is set.
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader);
}

impl<R: OnBus> Role for Inside<R> {
    const ABOUT: About = R::ABOUT;

    type Settings = R::Settings;

    fn read(reader: &mut Reader) -> R::Settings {
        let mut settings = R::read(reader);
        R::use_inprocess_bus(&mut settings, reader);
        settings
    }

    fn describe(settings: &R::Settings) -> Vec<(String, String)> {
        R::describe(settings)
    }

    fn examine(settings: &R::Settings) -> Vec<Finding> {
        R::examine(settings)
    }

    fn start(settings: R::Settings, scope: &Scope) -> anyhow::Result<()> {
        R::start(settings, scope)
    }
}

impl OnBus for CaptureService {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        if is_on_zeromq(reader) && is_unset(reader, "SEKIWAKE_BUS_PUBLISH") {
            settings.bus = Publishing::in_process();
        }
        use_inprocess_control(&mut settings.controlling, reader);
    }
}

impl OnBus for ProxyService {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        settings.in_process = true;
        settings.is_unused = !is_on_zeromq(reader);
    }
}

impl<P: Protocol> OnBus for Forwarder<P> {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        use_inprocess_subscribing(&mut settings.subscribing, reader);
        use_inprocess_control(&mut settings.controlling, reader);
    }
}

impl<K: StoredKind> OnBus for KindStorer<K> {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        // A process that only forwards must not fill a disk by default.
        settings.dir = reader.optional("SEKIWAKE_STORE_DIR");
        use_inprocess_subscribing(&mut settings.subscribing, reader);
        use_inprocess_control(&mut settings.controlling, reader);
    }
}

impl OnBus for AnomalyDetector {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        if is_on_zeromq(reader) && is_unset(reader, "SEKIWAKE_BUS_PUBLISH") {
            settings.publishing = Publishing::in_process();
        }
        use_inprocess_subscribing(&mut settings.subscribing, reader);
        use_inprocess_control(&mut settings.controlling, reader);
    }
}

impl OnBus for Console {
    fn use_inprocess_bus(settings: &mut Self::Settings, reader: &mut Reader) {
        settings.reads_on_demand = is_unset(reader, "SEKIWAKE_BUS_SUBSCRIBE");
        use_inprocess_subscribing(&mut settings.subscribing, reader);
        use_inprocess_control(&mut settings.controlling, reader);
    }
}

fn use_inprocess_subscribing(subscribing: &mut Subscribing, reader: &mut Reader) {
    if is_on_zeromq(reader) && is_unset(reader, "SEKIWAKE_BUS_SUBSCRIBE") {
        *subscribing = Subscribing::in_process();
    }
}

/// The settings of another bus: all or none. With only some of them set there would be two buses,
/// each doing all the work.
const BUS: [&str; 3] = ["SEKIWAKE_BUS_PUBLISH", "SEKIWAKE_BUS_SUBSCRIBE", "SEKIWAKE_BUS_CONTROL"];

fn use_inprocess_control(controlling: &mut Controlling, reader: &mut Reader) {
    if !is_on_zeromq(reader) {
        return;
    }
    let unset: Vec<&'static str> = BUS.into_iter().filter(|name| is_unset(reader, name)).collect();
    if !unset.is_empty() && unset.len() < BUS.len() {
        for name in unset {
            reader.mistake(
                name,
                "",
                "an endpoint, because SEKIWAKE_BUS_PUBLISH, _SUBSCRIBE and _CONTROL must be set together",
            );
        }
        return;
    }
    if is_unset(reader, "SEKIWAKE_BUS_CONTROL") {
        *controlling = Controlling::in_process();
    }
}

fn is_on_zeromq(reader: &mut Reader) -> bool {
    reader.optional::<List<NatsUrl>>("SEKIWAKE_BUS").is_none()
}

fn is_unset(reader: &mut Reader, name: &'static str) -> bool {
    reader.optional::<List<Endpoint>>(name).is_none()
}
