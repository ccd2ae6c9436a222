//! A client that is in no group and has captures leave its destinations alone.
//!
//! ```text
//! Waiting ── acknowledged by every live publisher ──▶ Registered ── no answer to a message of the last 3 s ──▶ Waiting
//! ```
//!
//! A registration is believed in for three seconds after a message that was answered was *sent*.
//! The coordinator lists the destinations for longer, counted from when it received that message;
//! and a coordinator that starts later needs longer, too, before publishers drop what it does not
//! know. So whatever is lost, captures leave the destinations alone while the client is
//! `Registered`.

#[cfg(test)]
mod simulation;

use std::{collections::VecDeque, time::Duration};

use sekiwake_record::Name;

use crate::{
    BootTime, LEASE, RENEW_EVERY,
    mutants::Mutants,
    wire::{ClientOutcome, Destination, Message, RegisterClient},
};

/// How long a client waits for the first answer. The connection may have to be made first.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(4);
/// Messages without an answer whose times are kept: all of a lease.
const MAX_SENT: usize = 8;

/// What a client may assume of its registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegistrantState {
    /// Publishers do not know the destinations yet, or the coordinator is unavailable.
    Waiting,
    /// Captures leave the destinations alone.
    Registered,
    /// The coordinator has no room for them.
    Full,
    /// The coordinator has not answered for four seconds: it is of a version that does not know
    /// the message, or there is no connection.
    Unanswered,
}

/// The machine of a client. Its shell calls it like the other machines.
#[derive(Debug)]
pub struct Registrant {
    client: Name,
    incarnation: u64,
    destinations: Vec<Destination>,
    /// Counts messages.
    number: u64,
    /// Messages that are not answered, and when they were sent.
    sent: VecDeque<(u64, BootTime)>,
    send_at: BootTime,
    answer_by: BootTime,
    has_answer: bool,
    outcome: ClientOutcome,
    /// When the newest answered message was sent, and a lease later.
    valid_until: BootTime,
    is_leaving: bool,
    output: Option<Vec<u8>>,
    mutants: Mutants,
}

impl Registrant {
    /// A client that the coordinator does not know yet. `incarnation` is random. At most
    /// [`MAX_CLIENT_DESTINATIONS`](crate::wire::MAX_CLIENT_DESTINATIONS) are accepted.
    pub fn new(client: Name, incarnation: u64, destinations: Vec<Destination>, now: BootTime) -> Registrant {
        Registrant {
            client,
            incarnation,
            destinations,
            number: 0,
            sent: VecDeque::new(),
            send_at: now,
            answer_by: now + FIRST_ANSWER_WITHIN,
            has_answer: false,
            outcome: ClientOutcome::Waiting,
            valid_until: now,
            is_leaving: false,
            output: None,
            mutants: Mutants::default(),
        }
    }

    #[cfg(test)]
    pub(crate) fn with_mutants(self, mutants: Mutants) -> Registrant {
        Registrant { mutants, ..self }
    }

    /// Takes a message of the coordinator. Others than answers to this client are ignored.
    pub fn on_message(&mut self, now: BootTime, frame: &[u8]) {
        let Ok(Message::ClientRegistered(answer)) = Message::decode(frame) else { return };
        let sent_at = self.sent.iter().find(|(number, _)| *number == answer.number).map(|(_, at)| *at);
        if answer.incarnation != self.incarnation || self.is_leaving {
            return;
        }
        let Some(sent_at) = sent_at else { return };
        self.has_answer = true;
        self.sent.retain(|(number, _)| *number >= answer.number);
        let was_valid = now < self.valid_until;
        match answer.outcome {
            ClientOutcome::Waiting => {
                // Another coordinator does not know yet what publishers have acknowledged. They
                // keep to it, as long as the registration was not interrupted.
                if !(was_valid && self.outcome == ClientOutcome::Acknowledged) {
                    self.outcome = ClientOutcome::Waiting;
                }
            }
            outcome => self.outcome = outcome,
        }
        if self.outcome != ClientOutcome::Full {
            self.valid_until = self.valid_until.max(sent_at + LEASE);
        }
    }

    /// Does what is due.
    pub fn on_tick(&mut self, now: BootTime) {
        if now >= self.valid_until && !self.mutants.never_lapses() && self.outcome == ClientOutcome::Acknowledged {
            self.outcome = ClientOutcome::Waiting;
        }
        if now >= self.send_at && !self.is_leaving {
            self.send(now);
        }
    }

    /// Says that the destinations are not needed any longer. They are left alone for some seconds
    /// more.
    pub fn leave(&mut self, now: BootTime) {
        self.is_leaving = true;
        self.send(now);
    }

    fn send(&mut self, now: BootTime) {
        self.send_at = now + RENEW_EVERY;
        self.number += 1;
        if self.sent.len() == MAX_SENT {
            self.sent.pop_front();
        }
        self.sent.push_back((self.number, now));
        let register = RegisterClient {
            client: self.client.clone(),
            incarnation: self.incarnation,
            number: self.number,
            leaving: self.is_leaving,
            destinations: self.destinations.clone(),
        };
        self.output = Some(Message::from(register).encode());
    }

    /// When [`Registrant::on_tick`] has something to do.
    pub fn next_deadline(&self) -> BootTime {
        if self.is_leaving { BootTime::NEVER } else { self.send_at }
    }

    /// The next message to the coordinator.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.output.take()
    }

    /// What may be assumed now.
    pub fn state(&self, now: BootTime) -> RegistrantState {
        let is_valid = now < self.valid_until || self.mutants.never_lapses();
        match self.outcome {
            ClientOutcome::Full => RegistrantState::Full,
            ClientOutcome::Acknowledged if is_valid => RegistrantState::Registered,
            _ if !self.has_answer && now >= self.answer_by => RegistrantState::Unanswered,
            _ => RegistrantState::Waiting,
        }
    }
}
