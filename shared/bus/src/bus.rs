//! The bus as services see it: the settings say which bus it is, and this connects to it.

use std::{net::SocketAddr, time::Duration};

use sekiwake_record::Name;
use sekiwake_runtime::{Hangups, Latch, Metrics, Scope};
use sekiwake_sys::clock::wall_now_ns;

#[cfg(feature = "jetstream")]
use crate::jetstream::{
    JetStreamEventSink, JetStreamEventSource, JetStreamGroup, JetStreamRegistrar, JetStreamRequests, JetStreamSource,
    JetStreamSubject, JetStreamWriter,
};
use crate::{
    BusError, Controlling, EventSink, EventSource, GroupSettings, GroupSource, NatsAccess, NatsLogin, PublishedStream,
    Publishing, Registrar, Reporting, Requests, Source, StreamSettings, SubjectPublisher, Subscribing,
    group::{DeduplicatingSource, ReadPast},
    metrics::DeduplicateMetrics,
    zeromq::{
        Context, ControlReader, DestinationRegistrar, EventPublisher, EventSubscriber, GroupSubscriber, Publisher,
        RecentSubscriber, Subscriber,
    },
};

/// How far back the past of new shards is requested from publishers at most.
const LONGEST_PAST: Duration = Duration::from_secs(60);
/// Of members without destinations that do not deduplicate: members that do are reported.
const EVERY_COPY: u64 = 1;

/// Connects to the bus. The other end may be started later.
#[derive(Clone, Default)]
pub struct Bus {
    zeromq: Context,
    /// How often secrets are to be read again.
    #[cfg_attr(not(feature = "jetstream"), allow(dead_code, reason = "keys of CURVE are read once"))]
    hangups: Hangups,
}

impl Bus {
    /// The bus of all roles of this process, which also meet within it.
    pub fn shared() -> Bus {
        Bus { zeromq: Context::shared(), hangups: Hangups::default() }
    }

    /// The same, for a role whose connections to NATS servers are made again when the process is
    /// asked to reload.
    pub fn of(scope: &Scope) -> Bus {
        Bus { hangups: scope.hangups(), ..Bus::shared() }
    }

    /// A new stream. `to` coordinates the groups that receive it. `connected` is set while there is
    /// a connection.
    ///
    /// # Errors
    /// Invalid settings, no descriptor is left, or no random numbers.
    pub fn stream(
        &self,
        settings: StreamSettings,
        to: &Controlling,
        connected: Latch,
        reporting: Reporting,
    ) -> Result<PublishedStream, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = settings.publishing.jetstream.clone() {
            return JetStreamWriter::open(&servers, &self.hangups, settings, connected, reporting);
        }
        let (mut publisher, producer) = Publisher::new(&self.zeromq, settings, &reporting.metrics, connected)?;
        let control = publisher.control(to, reporting)?;
        Ok(PublishedStream {
            producer,
            own: control.own_destinations(),
            subscribers: publisher.subscription_watch(),
            sources: Box::new(control.sources()),
            writer: Box::new(publisher),
            responder: Some(Box::new(control)),
        })
    }

    /// A member of a group. It is ready while it has a lease.
    ///
    /// # Errors
    /// As [`Bus::stream`].
    pub fn group_source(
        &self,
        settings: GroupSettings,
        mut reporting: Reporting,
    ) -> Result<Box<dyn GroupSource>, BusError> {
        let GroupSettings { kind, deduplicate, .. } = settings;
        let (metrics, status) = (reporting.metrics.clone(), reporting.deduplicate.take());
        let (mut inner, read_past) = self.member(settings, reporting)?;
        // Registered in any case, so that dashboards have data.
        let metrics = DeduplicateMetrics::new(&metrics);
        let Some(deduplicate) = deduplicate else {
            inner.set_destinations_digest(EVERY_COPY);
            return Ok(inner);
        };
        let seed = getrandom::u64().map_err(BusError::Random)?;
        let mut source = DeduplicatingSource::new(inner, kind, deduplicate, seed, read_past, metrics, status);
        source.set_destinations_digest(0);
        Ok(Box::new(source))
    }

    /// A member that delivers everything, and how what former owners have handled is read.
    fn member(
        &self,
        settings: GroupSettings,
        reporting: Reporting,
    ) -> Result<(Box<dyn GroupSource>, ReadPast), BusError> {
        let GroupSettings { subscribing, controlling, .. } = settings.clone();
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &subscribing.jetstream {
            let group = JetStreamGroup::connect(servers, &self.hangups, settings, reporting)?;
            let past = group.past();
            let read_past: ReadPast = Box::new(move |prefixes, since_ns| Ok(Box::new(past.open(prefixes, since_ns))));
            return Ok((Box::new(group), read_past));
        }
        let bus = self.clone();
        let read_past = move |prefixes: &[String], since_ns| {
            // Not the metrics of the process: its records are those of the group.
            let metrics = Metrics::new("past");
            let age = Duration::from_nanos(wall_now_ns().saturating_sub(since_ns)).min(LONGEST_PAST);
            bus.recent_source(&subscribing, &controlling, prefixes, age, &metrics, None)
        };
        let member = GroupSubscriber::connect(&self.zeromq, settings, reporting)?;
        Ok((Box::new(member), Box::new(read_past)))
    }

    /// Records of the topics that begin with one of `prefixes`, published from now on. `connected`
    /// is set while there is a connection.
    ///
    /// # Errors
    /// Invalid settings, or no descriptor is left.
    pub fn source(
        &self,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
        connected: Option<Latch>,
    ) -> Result<Box<dyn Source>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &from.jetstream {
            return Ok(Box::new(JetStreamSource::open(servers, &self.hangups, prefixes, None, metrics, connected)?));
        }
        Ok(Box::new(Subscriber::connect(&self.zeromq, from, prefixes, metrics, connected)?))
    }

    /// As [`Bus::source`]. Records captured in the last `age` come first, as far as they are
    /// retained; `to` is where they are requested.
    ///
    /// # Errors
    /// As [`Bus::source`], or no random numbers.
    pub fn recent_source(
        &self,
        from: &Subscribing,
        to: &Controlling,
        prefixes: &[String],
        age: Duration,
        metrics: &Metrics,
        connected: Option<Latch>,
    ) -> Result<Box<dyn Source>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &from.jetstream {
            return Ok(Box::new(JetStreamSource::open(
                servers,
                &self.hangups,
                prefixes,
                Some(age),
                metrics,
                connected,
            )?));
        }
        let to = (from, to);
        Ok(Box::new(RecentSubscriber::connect(&self.zeromq, to, prefixes, age, metrics, connected)?))
    }

    /// The events and the status whose topics begin with one of `prefixes`.
    ///
    /// # Errors
    /// As [`Bus::source`].
    pub fn event_source(
        &self,
        from: &Subscribing,
        prefixes: &[String],
        metrics: &Metrics,
    ) -> Result<Box<dyn EventSource>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &from.jetstream {
            return Ok(Box::new(JetStreamEventSource::open(servers, &self.hangups, prefixes, metrics)?));
        }
        Ok(Box::new(EventSubscriber::connect(&self.zeromq, from, prefixes, metrics)?))
    }

    /// For the events of the publisher of this name.
    ///
    /// # Errors
    /// As [`Bus::source`].
    pub fn event_sink(&self, to: &Publishing, name: &Name, metrics: &Metrics) -> Result<Box<dyn EventSink>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &to.jetstream {
            return Ok(Box::new(JetStreamEventSink::open(servers, &self.hangups, name, metrics)?));
        }
        Ok(Box::new(EventPublisher::connect(&self.zeromq, to, name, metrics)?))
    }

    /// For requests of a client that is in no group.
    ///
    /// # Errors
    /// As [`Bus::source`], or no random numbers.
    pub fn requests(&self, to: &Controlling) -> Result<Box<dyn Requests>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &to.jetstream {
            return Ok(Box::new(JetStreamRequests::open(servers, &self.hangups)?));
        }
        Ok(Box::new(ControlReader::connect(&self.zeromq, to)?))
    }

    /// For a client that registers these destinations of UDP, 1 to 64. `client` names it in logs,
    /// status and metrics.
    ///
    /// # Errors
    /// As [`Bus::requests`].
    pub fn registrar(
        &self,
        to: &Controlling,
        client: Name,
        destinations: &[SocketAddr],
    ) -> Result<Box<dyn Registrar>, BusError> {
        #[cfg(feature = "jetstream")]
        if let Some(servers) = &to.jetstream {
            return Ok(Box::new(JetStreamRegistrar::open(servers, &self.hangups, &client, destinations)?));
        }
        Ok(Box::new(DestinationRegistrar::connect(&self.zeromq, to, client, destinations)?))
    }
}

/// Delivers to a subject of NATS servers, whichever bus is used. The servers may be started later.
/// With more than one message `per_lane` on its way, those of a lane may be stored in another order
/// when one of them is lost. Each of `hangups` makes it connect again, with the secrets and
/// certificates that the files have then.
///
/// # Errors
/// No descriptor or thread is left, files cannot be used, or the program was built without NATS.
#[cfg_attr(not(feature = "jetstream"), expect(unused_variables, reason = "there is no client"))]
pub fn subject_publisher(
    access: NatsAccess,
    hangups: &Hangups,
    subject: &str,
    per_lane: usize,
) -> Result<Box<dyn SubjectPublisher>, BusError> {
    #[cfg(feature = "jetstream")]
    return Ok(Box::new(JetStreamSubject::open(access, hangups, subject, per_lane)?));
    #[cfg(not(feature = "jetstream"))]
    Err(BusError::Connect { endpoint: access.servers(), source: WITHOUT_NATS.into() })
}

/// Reads the secrets of a login once.
///
/// # Errors
/// A file cannot be used, or the program was built without NATS.
#[cfg_attr(not(feature = "jetstream"), expect(unused_variables, reason = "there is no client"))]
pub fn check_login(login: &NatsLogin) -> Result<(), String> {
    #[cfg(feature = "jetstream")]
    return crate::jetstream::check_login(login);
    #[cfg(not(feature = "jetstream"))]
    Err(WITHOUT_NATS.to_owned())
}

#[cfg(not(feature = "jetstream"))]
const WITHOUT_NATS: &str = "NATS needs the cargo feature jetstream, without which this program was built";
