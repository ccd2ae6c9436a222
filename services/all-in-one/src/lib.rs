//! Every role in one process, for a site without containers: the same services, the same settings.
//!
//! The roles meet on the bus within the process, so that no datagram takes the way through TCP. Whoever sets
//! `SEKIWAKE_BUS_PUBLISH`, `SEKIWAKE_BUS_SUBSCRIBE` or `SEKIWAKE_BUS_CONTROL` has them use that instead. The proxy's own addresses are bound as
//! always: the tap and subscribers of one's own connect there.

use std::marker::PhantomData;

use sekiwake_anomaly_detector::AnomalyDetector;
use sekiwake_bus::{Controlling, INPROC_CONTROL, INPROC_PUBLISH, INPROC_SUBSCRIBE, Publishing, Subscribing};
use sekiwake_capture::CaptureService;
use sekiwake_forward::{Forwarder, Protocol};
use sekiwake_proxy::ProxyService;
use sekiwake_runtime::{About, Process, Role, Scope};
use sekiwake_settings::{Endpoint, List, Reader};
use sekiwake_storer::Storer;
use sekiwake_syslog_forwarder::SyslogForwarder;
use sekiwake_trap_forwarder::TrapForwarder;
use sekiwake_xflow_forwarder::XflowForwarder;

const ABOUT: About =
    About { service: "all-in-one", binary: "sekiwake", summary: "Every role in one process", admin_port: 9607 };

/// All roles, in the order in which they start and stop: who brings before who takes, and the proxy last, for all others say
/// goodbye to it.
pub fn process() -> Process {
    Process::new(ABOUT)
        .add::<Inside<CaptureService>>()
        .add::<Inside<SyslogForwarder>>()
        .add::<Inside<XflowForwarder>>()
        .add::<Inside<TrapForwarder>>()
        .add::<Inside<Storer>>()
        .add::<Inside<AnomalyDetector>>()
        .add::<Inside<ProxyService>>()
}

/// A role that finds the bus within the process.
struct Inside<R>(PhantomData<R>);

/// A role that can be told where the bus is. Within the process nothing is encrypted, whatever keys are set.
trait OnBus: Role {
    /// Turns the settings to the bus within the process, where nothing else is set.
    fn turn_inside(settings: &mut Self::Settings, reader: &mut Reader);
}

impl<R: OnBus> Role for Inside<R> {
    const ABOUT: About = R::ABOUT;

    type Settings = R::Settings;

    fn read(reader: &mut Reader) -> R::Settings {
        let mut settings = R::read(reader);
        R::turn_inside(&mut settings, reader);
        settings
    }

    fn describe(settings: &R::Settings) -> Vec<(String, String)> {
        R::describe(settings)
    }

    fn start(settings: R::Settings, scope: &Scope) -> anyhow::Result<()> {
        R::start(settings, scope)
    }
}

impl OnBus for CaptureService {
    fn turn_inside(settings: &mut Self::Settings, reader: &mut Reader) {
        if is_unset(reader, "SEKIWAKE_BUS_PUBLISH") {
            settings.bus = Publishing { endpoints: vec![INPROC_PUBLISH.to_owned()], keys: None };
        }
        turn_control_inside(&mut settings.controlling, reader);
    }
}

impl OnBus for ProxyService {
    fn turn_inside(settings: &mut Self::Settings, _reader: &mut Reader) {
        settings.in_process = true;
    }
}

impl<P: Protocol> OnBus for Forwarder<P> {
    fn turn_inside(settings: &mut Self::Settings, reader: &mut Reader) {
        turn_subscribing_inside(&mut settings.subscribing, reader);
        turn_control_inside(&mut settings.controlling, reader);
    }
}

impl OnBus for Storer {
    fn turn_inside(settings: &mut Self::Settings, reader: &mut Reader) {
        // A process that forwards fills no disk unless somebody asks for it.
        settings.dir = reader.optional("SEKIWAKE_STORE_DIR");
        turn_subscribing_inside(&mut settings.subscribing, reader);
        turn_control_inside(&mut settings.controlling, reader);
    }
}

impl OnBus for AnomalyDetector {
    fn turn_inside(settings: &mut Self::Settings, reader: &mut Reader) {
        if is_unset(reader, "SEKIWAKE_BUS_PUBLISH") {
            settings.publishing = Publishing { endpoints: vec![INPROC_PUBLISH.to_owned()], keys: None };
        }
        turn_subscribing_inside(&mut settings.subscribing, reader);
        turn_control_inside(&mut settings.controlling, reader);
    }
}

fn turn_subscribing_inside(subscribing: &mut Subscribing, reader: &mut Reader) {
    if is_unset(reader, "SEKIWAKE_BUS_SUBSCRIBE") {
        *subscribing = Subscribing { endpoints: vec![INPROC_SUBSCRIBE.to_owned()], keys: None };
    }
}

/// Where the bus may be turned to another one: all of it, or nothing. Half a bus would be two, and each would do all the work.
const BUS: [&str; 3] = ["SEKIWAKE_BUS_PUBLISH", "SEKIWAKE_BUS_SUBSCRIBE", "SEKIWAKE_BUS_CONTROL"];

fn turn_control_inside(controlling: &mut Controlling, reader: &mut Reader) {
    let unset: Vec<&'static str> = BUS.into_iter().filter(|name| is_unset(reader, name)).collect();
    if !unset.is_empty() && unset.len() < BUS.len() {
        for name in unset {
            reader.mistake(
                name,
                "",
                "an endpoint: of SEKIWAKE_BUS_PUBLISH, _SUBSCRIBE and _CONTROL all are set, or none",
            );
        }
        return;
    }
    if is_unset(reader, "SEKIWAKE_BUS_CONTROL") {
        *controlling = Controlling { endpoints: vec![INPROC_CONTROL.to_owned()], keys: None };
    }
}

fn is_unset(reader: &mut Reader, name: &'static str) -> bool {
    reader.optional::<List<Endpoint>>(name).is_none()
}
