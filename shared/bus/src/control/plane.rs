//! The proxy's end of the control plane: a ROUTER, and the coordinator behind it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use sekiwake_group::{
    Coordinator, CoordinatorSettings, CoordinatorView, GroupView, NoteRefusals, NoteStore, NoteStoreSettings,
    NotesView, Peer, Refusals, StreamView, wire::is_about_notes,
};
use sekiwake_record::Kind;
use sekiwake_runtime::{Latch, Metrics, RateLimited, StatusDesk, Worker};
use serde_json::{Value, json};
use tracing::{info, warn};

use crate::{
    BusError, ServerKeys,
    control::{CONTROL_BURST, boot_now, pass_over, patience},
    metrics::ControlPlaneMetrics,
    relay::bind_all,
    socket::{Bus, milliseconds, uninterrupted},
};

/// The longest sleep, so that a stop is noticed.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often metrics are set.
const METER_EVERY: Duration = Duration::from_millis(500);
/// What is said last has so long to leave.
const LINGER: Duration = Duration::from_millis(200);
/// When told to stop it goes on for as long as members or publishers are on their way out too, and so much longer, for those who
/// have been told at the same time and have not said so yet.
const LEAVING_GRACE: Duration = Duration::from_millis(700);
/// Publishers are waited for no longer than this: one that reads a file may take hours, and the next proxy serves it.
const PUBLISHERS_AT_MOST: Duration = Duration::from_secs(4);

/// Where the control plane binds.
#[derive(Clone, Debug, Default)]
pub struct ControlPlaneSettings {
    /// For everybody.
    pub endpoints: Vec<String>,
    /// The proxy's keys, where the bus is encrypted.
    pub keys: Option<ServerKeys>,
}

/// A bound control plane. Belongs to one thread.
pub struct ControlPlane {
    bus: Bus,
    socket: zmq::Socket,
    /// Held for as long as the socket is: the gatekeeper goes with the last of them.
    keys: Option<ServerKeys>,
    endpoints: Vec<String>,
    coordinator: Coordinator,
    notes: NoteStore,
    metrics: ControlPlaneMetrics,
    counted: (Refusals, NoteRefusals),
    metered_at: Option<Instant>,
    refused_log: RateLimited,
    ready: Latch,
    desk: StatusDesk,
    said_settled: bool,
    /// What each group's members were when that was last logged.
    logged: BTreeMap<String, usize>,
}

impl ControlPlane {
    /// Binds.
    ///
    /// # Errors
    /// An address that is taken, or that libzmq does not understand; no random numbers.
    pub fn bind(
        bus: &Bus,
        settings: &ControlPlaneSettings,
        metrics: &Metrics,
        (ready, desk): (Latch, StatusDesk),
    ) -> Result<ControlPlane, BusError> {
        let socket = bus.control_server(settings.keys.as_ref())?;
        let endpoints = bind_all(&socket, &settings.endpoints)?;
        let epoch = getrandom::u64().map_err(BusError::Random)?.max(1);
        Ok(ControlPlane {
            bus: bus.clone(),
            socket,
            keys: settings.keys.clone(),
            endpoints,
            coordinator: Coordinator::new(CoordinatorSettings::default(), epoch, boot_now()),
            notes: NoteStore::new(NoteStoreSettings::default(), epoch, boot_now()),
            metrics: ControlPlaneMetrics::new(metrics),
            counted: Default::default(),
            metered_at: None,
            refused_log: RateLimited::default(),
            ready,
            desk,
            said_settled: false,
            logged: BTreeMap::new(),
        })
    }

    /// Where everybody connects, with the ports that were really bound.
    pub fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    /// Coordinates until the worker is told to stop and nobody is on the way out.
    ///
    /// # Errors
    /// The socket failed: the context is gone.
    pub fn run(mut self, worker: &Worker) -> Result<(), BusError> {
        self.ready.set(true);
        let (mut last_leaver, mut told_at) = (None, None);
        loop {
            worker.beat();
            self.take_messages()?;
            let now = boot_now();
            if now >= self.coordinator.next_deadline() {
                self.coordinator.on_tick(now);
            }
            if now >= self.notes.next_deadline() {
                self.notes.on_tick(now, &self.coordinator);
            }
            self.send_outputs()?;
            self.look_around(now);
            if let Some(deadline) = worker.deadline() {
                let instant = Instant::now();
                let since = last_leaver.get_or_insert(instant);
                let patient = instant < *told_at.get_or_insert(instant) + PUBLISHERS_AT_MOST;
                if self.coordinator.is_being_left(now) && (patient || self.coordinator.has_leavers()) {
                    *since = instant;
                }
                if instant >= *since + LEAVING_GRACE || instant + 2 * LINGER >= deadline {
                    return self.close(deadline);
                }
            }
            let deadline = self.coordinator.next_deadline().min(self.notes.next_deadline());
            let wait = patience(now, deadline, PATIENCE);
            match self.socket.poll(zmq::POLLIN, wait) {
                Ok(_) | Err(zmq::Error::EINTR) => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }

    fn take_messages(&mut self) -> Result<(), BusError> {
        for _ in 0..CONTROL_BURST {
            let id = match uninterrupted(|| self.socket.recv_msg(zmq::DONTWAIT)) {
                Ok(id) => id,
                Err(zmq::Error::EAGAIN) => return Ok(()),
                Err(source) => return Err(failed(source)),
            };
            let peer = Peer::new(&id);
            if !id.get_more() {
                self.metrics.malformed.inc();
                continue;
            }
            let frame = uninterrupted(|| self.socket.recv_msg(0)).map_err(failed)?;
            if frame.get_more() {
                self.metrics.malformed.inc();
                pass_over(&self.socket, "control plane")?;
                continue;
            }
            let Some(peer) = peer else {
                self.metrics.malformed.inc();
                continue;
            };
            self.metrics.received_bytes.inc_by(frame.len() as u64);
            if is_about_notes(&frame) {
                self.notes.on_message(boot_now(), &peer, &frame, &self.coordinator);
            } else {
                self.coordinator.on_message(boot_now(), &peer, &frame);
            }
        }
        Ok(())
    }

    /// Sends what the coordinator has to say, and then notes. Where a peer is gone, or does not read, it is dropped and counted.
    fn send_outputs(&mut self) -> Result<(), BusError> {
        while let Some((peer, frame)) = self.coordinator.poll_output().or_else(|| self.notes.poll_output()) {
            let bytes = frame.len() as u64;
            // libzmq looks for room only when the first part is sent.
            match uninterrupted(|| self.socket.send(peer.as_bytes(), zmq::DONTWAIT | zmq::SNDMORE)) {
                Ok(()) => {}
                Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => {
                    self.metrics.undeliverable.inc();
                    continue;
                }
                Err(source) => return Err(failed(source)),
            }
            match self.socket.send(frame, zmq::DONTWAIT) {
                Ok(()) => self.metrics.sent_bytes.inc_by(bytes),
                Err(zmq::Error::EAGAIN | zmq::Error::EHOSTUNREACH) => self.metrics.undeliverable.inc(),
                Err(source) => return Err(failed(source)),
            }
        }
        Ok(())
    }

    fn look_around(&mut self, now: u64) {
        self.desk.answer(|| status(&self.coordinator.view(now), &self.notes.view()));
        let instant = Instant::now();
        if self.metered_at.is_some_and(|at| instant.duration_since(at) < METER_EVERY) {
            return;
        }
        self.metered_at = Some(instant);
        if !self.said_settled && self.coordinator.settled(now) {
            self.said_settled = true;
            info!("the control plane grants shards: every lease of a proxy before this one has run out");
        }
        let groups = self.coordinator.groups(now);
        self.metrics.follow(&groups, &self.coordinator.streams(now), &self.notes.view());
        for group in &groups {
            let members = self.logged.entry(group.name.to_string()).or_default();
            if *members != group.members.len() {
                *members = group.members.len();
                let labels: Vec<&str> = group.members.iter().map(|member| member.label.as_str()).collect();
                info!(group = %group.name, members = *members, labels = labels.join(","), "a group has changed");
            }
        }
        self.logged.retain(|name, _| groups.iter().any(|group| group.name.as_str() == name));
        let (refusals, of_notes) = (self.coordinator.refusals(), self.notes.refusals());
        let refused =
            self.metrics.refuse(&self.counted.0, &refusals) + self.metrics.refuse_notes(&self.counted.1, &of_notes);
        self.counted = (refusals, of_notes);
        if refused > 0
            && let Some(suppressed) = self.refused_log.allow(instant)
        {
            warn!(messages = refused, suppressed, ?refusals, ?of_notes, "refused control messages");
        }
    }

    fn close(self, deadline: Instant) -> Result<(), BusError> {
        let closing_at = Instant::now();
        let left = deadline.saturating_duration_since(closing_at);
        self.socket.set_linger(milliseconds(LINGER.min(left / 2))).map_err(failed)?;
        let ControlPlane { bus, socket, keys, .. } = self;
        // The socket goes before the keys, and before the context, whose last clone waits for what lingers.
        drop(socket);
        if let Some(keys) = keys {
            keys.release();
        }
        drop(bus);
        // The relay has gone before, and what it had for its subscribers has lingered until now.
        if closing_at.elapsed() >= left * 2 / 3 && left > LINGER {
            warn!("subscribers did not take everything within the drain time: records may be lost");
        }
        Ok(())
    }
}

fn failed(source: zmq::Error) -> BusError {
    BusError::Io { role: "control plane", source }
}

fn status(view: &CoordinatorView, notes: &NotesView) -> Value {
    let mut refused: BTreeMap<&str, u64> = view.refusals.by_reason().into_iter().collect();
    for (reason, count) in notes.refusals.by_reason() {
        *refused.entry(reason).or_default() += count;
    }
    json!({
        "epoch": format!("{:016x}", view.epoch),
        "settled": view.settled,
        "destinations": view.destinations,
        "destinations_version": view.list_version,
        "groups": view.groups.iter().map(|group| group_status(group, notes)).collect::<Vec<_>>(),
        "streams": view.streams.iter().map(stream_status).collect::<Vec<_>>(),
        "notes": notes_status(notes),
        "refused_messages": refused,
    })
}

/// Of all groups, those without members among them, whose notes are kept for a while.
fn notes_status(notes: &NotesView) -> Value {
    let groups = notes.groups.iter().map(|group| {
        json!({ "group": group.name.as_str(), "notes": group.notes, "bytes": group.bytes, "evicted": group.evicted })
    });
    json!({ "bytes": notes.bytes, "evicted": notes.evicted, "groups": groups.collect::<Vec<_>>() })
}

fn group_status(group: &GroupView, notes: &NotesView) -> Value {
    let of_group = notes.groups.iter().find(|notes| notes.name == group.name);
    let members = group.members.iter().map(|member| {
        json!({
            "label": member.label.as_str(),
            "incarnation": format!("{:016x}", member.incarnation),
            "leaving": member.leaving,
            "lease_seconds_left": member.lease_left as f64 / 1e9,
            "protocols": [member.protocols.0, member.protocols.1],
            "destinations": member.destinations,
            "destinations_acknowledged": member.destinations_acknowledged,
            "shards": member.shards.len(),
        })
    });
    let owned = group.members.iter().flat_map(|member| {
        member.shards.iter().map(|shard| {
            let owner = json!({
                "shard": format!("{:02x}", shard.shard),
                "owner": member.label.as_str(),
                "generation": shard.generation,
                "state": shard.state.as_str(),
            });
            (shard.shard, owner)
        })
    });
    let free = group.unowned.iter().map(|&shard| {
        (shard, json!({ "shard": format!("{shard:02x}"), "owner": null, "generation": null, "state": "free" }))
    });
    // In the order of the shards.
    let shards: BTreeMap<u8, Value> = owned.chain(free).collect();
    let mut positions: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for position in &group.positions {
        positions.entry(position.stream.to_string()).or_default().push(json!({
            "shard": format!("{:02x}", position.shard),
            "committed": position.committed,
            "lag_records": position.lag,
        }));
    }
    let positions = positions.into_iter().map(|(stream, shards)| json!({ "stream": stream, "shards": shards }));
    json!({
        "name": group.name.as_str(),
        "kind": group.kind.as_str(),
        "protocol": group.protocol,
        "members": members.collect::<Vec<_>>(),
        "shards": shards.into_values().collect::<Vec<_>>(),
        "next_generation": group.next_generation,
        "lag_records": group.positions.iter().map(|position| position.lag).sum::<u64>(),
        "positions": positions.collect::<Vec<_>>(),
        "notes": of_group.map_or(0, |notes| notes.notes),
        "notes_bytes": of_group.map_or(0, |notes| notes.bytes),
    })
}

fn stream_status(stream: &StreamView) -> Value {
    let by_kind = |counts: &[u64; Kind::ALL.len()]| -> BTreeMap<&str, u64> {
        Kind::ALL.iter().map(|kind| kind.as_str()).zip(counts.iter().copied()).collect()
    };
    json!({
        "stream": stream.stream.to_string(),
        "live": stream.answers,
        "ended": stream.ended,
        "heard_seconds_ago": stream.heard_ago as f64 / 1e9,
        "waits_for_groups": stream.wants_commits,
        "has_destinations": stream.has_list,
        "retained": by_kind(&stream.retained),
        "published": by_kind(&stream.published),
    })
}

#[cfg(test)]
mod tests {
    use sekiwake_group::GroupNotes;
    use sekiwake_record::Name;

    use super::*;

    #[test]
    fn the_status_says_how_many_notes_a_group_has_even_when_its_members_are_gone() {
        let coordinator = Coordinator::new(CoordinatorSettings::default(), 1, 0);
        let name = Name::new("xflow-forwarder.default").unwrap();
        let groups = vec![GroupNotes { name: name.clone(), notes: 3, bytes: 1000, evicted: 2 }];
        let refusals = NoteRefusals { malformed: 4, foreign: 5, notes: 6 };
        let notes = NotesView { groups, bytes: 1000, evicted: 7, refusals };
        let mut view = coordinator.view(0);
        let page = status(&view, &notes);
        let of_notes = json!({
            "bytes": 1000,
            "evicted": 7,
            "groups": [{ "group": "xflow-forwarder.default", "notes": 3, "bytes": 1000, "evicted": 2 }],
        });
        assert_eq!(page["notes"], of_notes);
        assert_eq!((&page["refused_messages"]["foreign"], &page["refused_messages"]["notes"]), (&json!(5), &json!(6)));
        view.groups.push(GroupView {
            name,
            kind: Kind::Xflow,
            protocol: Some(1),
            members: Vec::new(),
            unowned: Vec::new(),
            next_generation: 1,
            positions: Vec::new(),
        });
        let page = status(&view, &notes);
        assert_eq!((&page["groups"][0]["notes"], &page["groups"][0]["notes_bytes"]), (&json!(3), &json!(1000)));
    }
}
