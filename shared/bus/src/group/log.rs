//! What the log says of a member. Each state is logged when it changes.

use std::{fmt::Debug, time::Instant};

use sekiwake_group::Stream;
use sekiwake_record::{Name, Topic};
use sekiwake_runtime::RateLimited;
use tracing::{info, warn};

use super::{LossLog, Lost};
use crate::reminder::{Due, Reminder};

/// The lines about a member, and what they said last.
pub(crate) struct MemberLog {
    pub(crate) group: Name,
    losses: LossLog,
    skipped: RateLimited,
    rejected: RateLimited,
    /// Members with other destinations.
    differing: Reminder<Vec<Name>>,
    /// What a server refuses.
    #[cfg(feature = "jetstream")]
    refused: Reminder<String>,
    is_leased: bool,
    owned: usize,
    has_doubts: bool,
}

impl MemberLog {
    pub(crate) fn new(group: Name) -> MemberLog {
        MemberLog {
            group,
            losses: LossLog::default(),
            skipped: RateLimited::default(),
            rejected: RateLimited::default(),
            differing: Reminder::default(),
            #[cfg(feature = "jetstream")]
            refused: Reminder::default(),
            is_leased: false,
            owned: 0,
            has_doubts: false,
        }
    }

    /// A batch is delivered, up to the record before `next`.
    pub(crate) fn delivered(
        &mut self,
        stream: &Stream,
        topic: Topic,
        next: u64,
        first_captured_at_ns: u64,
        last_captured_at_ns: u64,
    ) {
        self.losses.delivered(stream, topic, next, first_captured_at_ns, last_captured_at_ns);
    }

    /// Records are lost. `wall_ns` is the time of day.
    pub(crate) fn lost(&mut self, stream: &Stream, lost: Lost, now: Instant, wall_ns: u64) {
        self.losses.lost(stream, lost, now, wall_ns);
    }

    /// Records are not delivered, because `presenter`, or else the stream, says that they were
    /// handled.
    pub(crate) fn skipped(&self, stream: &Stream, topic: Topic, records: u64, presenter: Option<&Name>) {
        if let Some(suppressed) = self.skipped.allow(Instant::now()) {
            let presenter = presenter.map_or(&*stream.name, Name::as_str);
            warn!(%stream, %topic, records, presenter, suppressed, "records skipped, presented as handled");
        }
    }

    pub(crate) fn join_rejected(&self, reason: impl Debug) {
        if let Some(suppressed) = self.rejected.allow(Instant::now()) {
            warn!(group = %self.group, ?reason, suppressed, "proxy rejected this member's join");
        }
    }

    /// The servers cannot be used.
    #[cfg(feature = "jetstream")]
    pub(crate) fn not_usable(&self, error: &dyn std::error::Error) {
        if let Some(suppressed) = self.rejected.allow(Instant::now()) {
            warn!(group = %self.group, error = %error, suppressed, "group not joined");
        }
    }

    /// A server refuses a permission, or none.
    #[cfg(feature = "jetstream")]
    pub(crate) fn refused(&mut self, error: Option<String>, now: Instant) {
        match (self.refused.due(error.as_ref(), now), error) {
            (Some(Due::Lasts), Some(error)) => warn!(group = %self.group, error, "permission denied"),
            (Some(Due::Over), _) => info!(group = %self.group, "permissions sufficient again"),
            _ => {}
        }
    }

    /// Returns whether this is a change.
    pub(crate) fn leased(&mut self, is_leased: bool) -> bool {
        if is_leased == self.is_leased {
            return false;
        }
        self.is_leased = is_leased;
        if is_leased {
            info!(group = %self.group, "lease acquired");
        } else {
            warn!(group = %self.group, "lease expired, nothing is sent until the proxy answers");
        }
        true
    }

    /// This many shards are owned.
    pub(crate) fn owned(&mut self, shards: usize) {
        if shards != self.owned {
            info!(group = %self.group, shards, before = self.owned, "shard assignment changed");
            self.owned = shards;
        }
    }

    /// This many records are in doubt.
    pub(crate) fn in_doubt(&mut self, records: u64) {
        let has_doubts = records > 0;
        if has_doubts == self.has_doubts {
            return;
        }
        self.has_doubts = has_doubts;
        if has_doubts {
            warn!(
                group = %self.group, records,
                "records in doubt: no longer retained, a former owner of their shards may have handled them"
            );
        } else {
            info!(group = %self.group, "no records in doubt");
        }
    }

    /// Logs the losses that are over or have gone on for long, and members with other destinations.
    pub(crate) fn report(&mut self, differing: &[Name], now: Instant) {
        self.losses.report(now);
        let differing = (!differing.is_empty()).then(|| differing.to_vec());
        match (self.differing.due(differing.as_ref(), now), differing) {
            (Some(Due::Lasts), Some(others)) => warn!(
                group = %self.group,
                others = others.iter().map(Name::as_str).collect::<Vec<_>>().join(", "),
                "other members of this group have other destinations, each source is sent to those of one member: \
                 make them equal, or set another SEKIWAKE_GROUP for the other destinations; \
                 the same line is about another SEKIWAKE_DEDUPLICATE"
            ),
            (Some(Due::Over), _) => info!(group = %self.group, "members have the same destinations again"),
            _ => {}
        }
    }
}
