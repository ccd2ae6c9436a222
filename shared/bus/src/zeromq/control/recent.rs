//! A subscription that begins with what publishers still hold of the last seconds.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use sekiwake_group::{BootTime, Missing, MissingPart, RecentDelivery, RecentReader, RecentReaderSettings, Stream};
use sekiwake_record::{Batch, Topic};
use sekiwake_runtime::{Latch, Metrics};
use sekiwake_sys::clock::wall_now_ns;
use tracing::debug;

use super::dealer::{CONTROL_BURST, Incoming, receive, routing_id, send};
use crate::{
    BusError, Delivery, Frame, MissingRecent, Source, Subscribing,
    clock::{boot_now, wait_until},
    settings::Controlling,
    zeromq::{
        Subscriber,
        connections::{Connections, Side},
        inlet::{Inlet, wait},
        socket::Context,
    },
};

/// The longest sleep, so that connections are looked after.
const IDLE_POLL: Duration = Duration::from_millis(50);
/// Live batches taken before the control connection has its turn.
const LIVE_BURST: usize = 64;
/// Maximum bytes of live batches that wait for records before them: five seconds of 100,000 small
/// datagrams per second.
const MAX_HELD_BYTES: usize = 128 << 20;

/// A [`Subscriber`] that begins with recent records. Belongs to one thread.
pub struct RecentSubscriber {
    subscriber: Subscriber,
    /// `None` once everything is live.
    catching_up: Option<CatchingUp>,
    missing: VecDeque<MissingRecent>,
    since_ns: u64,
}

struct CatchingUp {
    socket: Inlet,
    connections: Connections,
    in_process: bool,
    was_connected: bool,
    settings: RecentReaderSettings,
    /// Begins when records are first received.
    reader: Option<RecentReader<Delivery>>,
    // The socket is closed before the context is released.
    _context: Context,
}

impl RecentSubscriber {
    /// Subscribes to the topics that begin with one of `prefixes`, at the relays in `from`, and
    /// connects to the proxy in `to`. Each may be started later. Records captured in the last `age`
    /// come first.
    ///
    /// # Errors
    /// Invalid endpoints, too many sockets, or no random numbers.
    pub fn connect(
        context: &Context,
        (from, to): (&Subscribing, &Controlling),
        prefixes: &[String],
        age: Duration,
        metrics: &Metrics,
        connected: impl Into<Option<Latch>>,
    ) -> Result<RecentSubscriber, BusError> {
        let mut subscriber = Subscriber::connect(context, from, prefixes, metrics, connected)?;
        subscriber.keep_announcements();
        let socket = context.control_client(&routing_id()?, to.zeromq.keys.as_ref())?;
        let mut connections = context.watch(&socket, Side::Control)?;
        connections.connect(&socket, &to.zeromq.endpoints)?;
        let is_selected = |topic: &Topic| prefixes.iter().any(|prefix| topic.as_str().starts_with(prefix));
        let age_ns = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let since_ns = wall_now_ns().saturating_sub(age_ns);
        let topics = Topic::all().filter(is_selected).collect();
        let settings = RecentReaderSettings::new(topics, since_ns, MAX_HELD_BYTES);
        let catching_up = CatchingUp {
            socket: Inlet::new(socket),
            connections,
            in_process: to.zeromq.is_in_process(),
            was_connected: false,
            settings,
            reader: None,
            _context: context.clone(),
        };
        Ok(RecentSubscriber { subscriber, catching_up: Some(catching_up), missing: VecDeque::new(), since_ns })
    }
}

impl Source for RecentSubscriber {
    fn receive(&mut self, timeout: Duration) -> Result<Option<Delivery>, BusError> {
        let mut deadline = None;
        while let Some(catching_up) = &mut self.catching_up {
            if let Some(delivery) = catching_up.next_delivery(&self.subscriber) {
                return Ok(Some(delivery));
            }
            if catching_up.is_over() {
                self.catching_up = None;
                self.subscriber.count_losses();
                break;
            }
            let has_worked = catching_up.turn(&mut self.subscriber, &mut self.missing)?;
            let now = Instant::now();
            let left = deadline.get_or_insert(now + timeout).saturating_duration_since(now);
            if !has_worked && !left.is_zero() {
                catching_up.wait(&mut self.subscriber, left)?;
            } else if left.is_zero() {
                return Ok(catching_up.next_delivery(&self.subscriber));
            }
        }
        self.subscriber.receive(timeout)
    }

    fn next_missing(&mut self) -> Option<MissingRecent> {
        self.missing.pop_front()
    }

    fn is_live(&self) -> bool {
        self.catching_up.as_ref().is_none_or(CatchingUp::is_over)
    }

    fn since_ns(&self) -> u64 {
        self.since_ns
    }
}

impl CatchingUp {
    fn is_over(&self) -> bool {
        self.reader.as_ref().is_some_and(RecentReader::is_over)
    }

    fn next_delivery(&mut self, subscriber: &Subscriber) -> Option<Delivery> {
        let reader = self.reader.as_mut()?;
        while let Some(delivery) = reader.poll_delivery() {
            match delivery {
                RecentDelivery::Live { batch: mut delivery, skip } => {
                    delivery.batch.drop_first(skip as usize);
                    delivery.first_sequence += u64::from(skip);
                    return Some(delivery);
                }
                RecentDelivery::Retransmitted { stream, topic, first_sequence, count, skip, body } => {
                    match Batch::decode(Frame::from(body), count) {
                        Ok(mut batch) => {
                            batch.drop_first(skip as usize);
                            return Some(Delivery {
                                topic,
                                stream_name: stream.name,
                                stream_epoch: stream.epoch,
                                first_sequence: first_sequence + u64::from(skip),
                                batch,
                                is_retransmitted: true,
                            });
                        }
                        Err(error) => {
                            subscriber.count_malformed();
                            debug!(%error, %topic, "retransmitted batch rejected");
                        }
                    }
                }
            }
        }
        None
    }

    /// Takes what has arrived, and sends what is due. Returns whether there was anything.
    fn turn(&mut self, subscriber: &mut Subscriber, missing: &mut VecDeque<MissingRecent>) -> Result<bool, BusError> {
        let reader = self.reader.get_or_insert_with(|| RecentReader::new(self.settings.clone(), boot_now()));
        let mut has_worked = false;
        for _ in 0..LIVE_BURST {
            let delivery = subscriber.receive(Duration::ZERO)?;
            let now = boot_now();
            // These were received before the batch.
            while let Some(announcement) = subscriber.next_announcement() {
                let stream =
                    Stream { name: Arc::from(announcement.stream_name.as_str()), epoch: announcement.stream_epoch };
                let next = announcement.positions.iter().map(|position| (position.topic, position.next_sequence));
                reader.on_announced(now, &stream, next, announcement.ended);
            }
            let Some(delivery) = delivery else { break };
            has_worked = true;
            let stream = Stream { name: Arc::clone(&delivery.stream_name), epoch: delivery.stream_epoch };
            let (topic, first) = (delivery.topic, delivery.first_sequence);
            let count = u32::try_from(delivery.batch.len()).unwrap_or(u32::MAX);
            let bytes = delivery.batch.memory_bytes();
            reader.on_live(now, (&stream, topic), first, count, bytes, delivery);
        }
        // While there are always live batches, nobody waits for these.
        self.socket.ask_again();
        self.was_connected |= self.in_process || self.connections.poll_connected(&mut self.socket);
        for _ in 0..CONTROL_BURST {
            match receive(&mut self.socket, "control")? {
                Incoming::Frame(frame) => {
                    has_worked = true;
                    self.connections.heard();
                    reader.on_message(boot_now(), &frame);
                }
                Incoming::Malformed => {}
                Incoming::Nothing => break,
            }
        }
        reader.on_tick(boot_now());
        while let Some(frame) = reader.poll_output() {
            // What the socket has no room for is requested again.
            send(&mut self.socket, &frame, "control")?;
        }
        while let Some(part) = reader.poll_missing() {
            missing.extend(describe(part, self.was_connected));
        }
        subscriber.lost(reader.take_lost());
        Ok(has_worked)
    }

    fn wait(&mut self, subscriber: &mut Subscriber, timeout: Duration) -> Result<(), BusError> {
        let deadline = self.reader.as_ref().map_or(BootTime::ZERO, RecentReader::next_deadline);
        let limit = wait_until(boot_now(), deadline, IDLE_POLL.min(timeout));
        wait([subscriber.inlet(), &mut self.socket], [], limit)
            .map_err(|source| BusError::Io { role: "subscriber", source: source.into() })
    }
}

fn describe(Missing { stream, part }: Missing, was_connected: bool) -> Option<MissingRecent> {
    let of_stream = match part {
        MissingPart::NoAnswer if was_connected => return Some(MissingRecent::NoAnswer),
        MissingPart::NoAnswer => return Some(MissingRecent::NoConnection),
        MissingPart::Silent => MissingRecent::Silent,
        MissingPart::Gone => MissingRecent::Gone,
        MissingPart::Late => MissingRecent::Late,
        MissingPart::NoRoom => MissingRecent::NoRoom,
    };
    stream.map(of_stream)
}
